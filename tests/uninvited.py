"""Private rooms: who comes without an invitation gets nothing, and what is secret is nowhere to be found."""
import collections
import contextlib
import json
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import chat
import helpers
import people
from helpers import serving, wait_for
from people import Witness

ROOM, WHO, SAID = "kabinet-42", "zinaida", "the-tajna-is-out"  # of which nobody outside is to hear a byte
HTTP = b"POST / HTTP/1.1\r\nHost: lab\r\nContent-Type: text/plain\r\n\r\n" + b'{"do":"hello","name":"web"}\n'


@contextlib.contextmanager
def private_room():
    """A private room in this process, in which somebody has said something: (server, its code)."""
    with people.private_state(), people.hurried():
        room = chat.Room(ROOM)
        room.gate = chat.Gate(chat.Identity())
        room.fanout.recording = helpers.Tape()
        with serving(room) as server:
            yield server, room.gate.code(room)


def invited(server, code, name):
    """Somebody with the code, who is in."""
    witness = Witness(server.address)
    witness.link.code = code
    return witness.enter(name)


# === who has no code ==============================================================================
# Each of these does its worst with one connection, and returns what it was sent, decrypted if it could be.


def sealed(address):
    """Somebody who knows how to encrypt: (a socket, the hash of the server's certificate)."""
    import hashlib

    sock = socket.create_connection(address, helpers.SECONDS)
    try:
        tls = chat.Tls(chat.open_context("CLIENT"), False)
        tls.shake_hands(sock, time.monotonic() + helpers.SECONDS)
    except BaseException:
        sock.close()
        raise
    sock.settimeout(helpers.SECONDS)
    return chat.Sealed(sock, tls), hashlib.sha256(tls.end.getpeercert(True)).digest()


def all_of(sock):
    """What comes until the other side ends, which it has to do soon."""
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        for piece in iter(lambda: sock.recv(1 << 16), b""):
            data += piece
    return data


def knock(server, *lines, proof=None):
    """Encrypt, and say hello with this proof, and more."""
    sock, digest = sealed(server.address)
    with contextlib.closing(sock):
        hello = {"do": "hello", "name": "mallory", "back": True, "proof": proof(digest) if proof else None}
        with contextlib.suppress(ConnectionError):
            sock.sendall(chat.encode(hello) + b"".join(lines))
        return all_of(sock)


def throw(server, data):
    """Send just these bytes, and wait for an answer."""
    with socket.create_connection(server.address, helpers.SECONDS) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
        return all_of(sock)


def old_hello():
    """The first message of somebody who knows nothing newer than TLS 1.1."""
    context = chat.open_context("CLIENT")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


class Uninvited:
    """All the ways in which one tries to come in without the code."""

    def __init__(self, seed, server, code):
        self.random, self.server, self.code = random.Random(seed), server, code
        self.old_hello = old_hello()
        self.heard = b""  # what somebody in between saw of an invited one's coming
        self.relay = Relay(self)

    def no_key(self):
        """Only encrypts."""
        return knock(self.server, b'{"do":"say","text":"let me in"}\n', b'{"do":"who"}\n')

    def wrong_key(self):
        """Guesses."""
        return knock(self.server, proof=lambda digest: chat.prove(self.random.getrandbits(35) ^ 1 << 34, digest))

    def forged_token(self):
        """Claims to come back."""
        token = f"1.{self.server.room.secrets.run}.{self.random.getrandbits(128):032x}"
        sock, _ = sealed(self.server.address)
        with contextlib.closing(sock):
            sock.sendall(chat.encode({"do": "hello", "name": WHO, "back": True, "token": token}))
            return all_of(sock)

    def replayed_proof(self):
        """Has a true proof, but one made for another server."""
        return knock(self.server, proof=lambda digest: chat.prove(self.code.key, b"x" * 32))

    def replayed_bytes(self):
        """Has recorded every byte that an invited one sent."""
        return throw(self.server, self.heard)

    def relayed(self):
        """Stands between an invited one and the server, with a certificate of its own."""
        return self.relay.catch()

    def old_tls(self):
        """Speaks TLS 1.1, which is broken."""
        answer = throw(self.server, self.old_hello)
        assert answer[:1] == b"\x15" and answer[5:7] == b"\2\x46", f"not an alert about the version: {answer}"
        return answer

    def plain(self):
        """Does not encrypt."""
        return throw(self.server, b'{"do":"hello","name":"mallory"}\n{"do":"who"}\n{"do":"say","text":"hi"}\n')

    def browser(self):
        """Is a web page."""
        return throw(self.server, HTTP)

    def ways(self):
        """All of them."""
        return (self.no_key, self.wrong_key, self.forged_token, self.replayed_proof, self.replayed_bytes, self.relayed,
                self.old_tls, self.plain, self.browser)

    def eavesdrop(self, name):
        """Record what an invited one sends, byte for byte."""
        from proxy import Harm, Proxy

        class Tap(Harm):
            def carry(tap, link, way, data):
                self.heard += data if way == "up" else b""
                link.pass_on(way, data)

        with Proxy(self.server.address) as wire:
            wire.harm = Tap()
            witness = invited(wire, self.code, name)
            witness.type(SAID)
            wait_for(witness.is_settled, "the invited one has said it")
            witness.leave()


class Relay:
    """A server with a certificate of its own, to which an invited one is led astray."""

    def __init__(self, uninvited):
        self.code, self.server = uninvited.code, uninvited.server
        with people.private_state():
            self.identity = chat.Identity()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        threading.Thread(target=self._run, daemon=True).start()
        self.learned = b""  # what the invited told it, decrypted

    def _run(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                with contextlib.suppress(OSError), sock:
                    tls = chat.Tls(self.identity.context, True)
                    tls.shake_hands(sock, time.monotonic() + 10)
                    sock.settimeout(10)
                    self.learned += chat.Sealed(sock, tls).recv(1 << 16)

    def catch(self):
        """Let an invited one come here, and pass on whatever they say; returns what the true server says to it."""
        before = len(self.learned)
        try:
            chat.enter(*self.listener.getsockname(), {"name": "wanda"}, self.code)[0].close()
            raise AssertionError("an invited one talks to a server that is not the one of their code")
        except chat.ChatError:
            pass
        assert len(self.learned) == before, f"a relay was told {self.learned[before:]}"
        return b""

    def close(self):
        """End it."""
        self.listener.close()


def uninvited(seed=1, count=10_000, workers=4):
    """So many come without the code, in all ways, while somebody with it comes in each second."""
    said, times = collections.Counter(), []
    with private_room() as (server, code):
        zinaida = invited(server, code, WHO)
        zinaida.type(SAID)
        wait_for(zinaida.is_settled, "something has been said")
        gang = Uninvited(seed, server, code)
        gang.eavesdrop("valja")
        wait_for(lambda: len(server.room.people) == 1, "only one is in")
        lines, stopped = server.room.log.n, threading.Event()
        with contextlib.closing(gang.relay):
            ways = [gang.ways()[number % len(gang.ways())] for number in range(count)]
            random.Random(seed).shuffle(ways)
            trouble = _all_at_once(workers, ways, lambda way: said.update([_nothing(way, code)]))
            assert server.room.log.n == lines and not trouble, f"{server.room.log.n - lines} lines; {trouble[:3]}"
            assert list(server.room.people) == [chat.name_key(WHO)], "somebody is in"
            start = time.monotonic()
            invited(server, code, "olga").leave()
            times.append(time.monotonic() - start)
        stopped.set()
        zinaida.leave()
    assert max(times) < 2, f"an invited one needed {max(times):.1f} s"
    return (f"{count} in {len(gang.ways())} ways: 0 in, 0 lines, 0 bytes about the room ({said['nothing']} heard "
            f"nothing, {said['an error']} one error line); an invited one is in after {max(times):.2f} s")


def _nothing(way, code):
    # What somebody uninvited was sent: nothing, or one error line without anything about the room in it.
    data = way()
    for secret in (ROOM, WHO, SAID, chat.spell(code.key, 7), "zinaida", '"people"', '"token"'):
        assert secret.encode() not in data, f"{way.__name__} was sent {data}"
    if way.__name__ in ("old_tls", "replayed_bytes"):
        return "nothing"  # but for an alert of TLS, or a handshake that comes to nothing
    if not data:
        return "nothing"
    lines = [json.loads(line) for line in data.splitlines()]
    assert len(lines) == 1 and lines[0]["re"] == "error" and lines[0]["t"] == 0.0, f"{way.__name__} was sent {data}"
    return "an error"


def _all_at_once(workers, items, work):
    # Several threads share these items; returns what went wrong.
    rest, trouble = iter(items), []
    lock = threading.Lock()

    def run():
        while not trouble:
            with lock:
                item = next(rest, None)
            if item is None:
                return
            try:
                work(item)
            except Exception as error:
                trouble.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=run) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return trouble


# === secrets ======================================================================================


def secrets(seed=1):
    """A private room with everything that happens in one; then all that it left behind is searched."""
    with people.private_state() as folder, people.hurried(), contextlib.ExitStack() as stack:
        work = folder / "work"
        work.mkdir()
        server = stack.enter_context(contextlib.closing(people.Mortal(work, "--lan")))
        code = chat.Code.read(server.served.console.expect(r"join ([A-Z0-9-]{20})@").group(1))
        ann = Overhearing(server.address, log=str(work / "ann.jsonl"))
        ann.link.code = code
        ann.enter("ann")
        bob = stack.enter_context(_join(server, code, work))
        wait_for(lambda: b'"who":"bob"' in b"".join(ann.taken), "bob is in")
        for line in ("hello", "/tell bob psst", "/who", "/nick anna", "/tell nobody hi", "/nick admin"):
            ann.type(line)
        wait_for(ann.is_settled, "all is said")
        commands = _command_lines(server.served.process.pid)
        sock, digest = sealed(server.address)
        sock.close()
        with contextlib.suppress(OSError):
            knock(server, proof=lambda digest: chat.prove(code.key ^ 1, digest))
        server.kill()
        server.start()
        wait_for(lambda: ann.link.state == "in", "ann is back")
        ann.type("back")
        wait_for(ann.is_settled, "and has said so")
        needles = _secrets(folder, code, digest, ann)
        ann.leave()
        bob.communicate("bye\n", timeout=helpers.SECONDS)
        commands += _command_lines(server.served.process.pid)
        server.served.interrupt(signal.SIGINT)
        server.served.process.wait(helpers.SECONDS)
        _export(work, "log.jsonl", "ann.jsonl")
        (work / "console.txt").write_text(_without_invitation(server.served.console.text()))
        (work / "errors.txt").write_text(server.said + server.served.errors.text())
        (work / "commands.txt").write_text(commands)
        (work / "screen.txt").write_text("\n".join(ann.screen.rows))
        (work / "broadcast.txt").write_bytes(ann.overheard)
        hits, files = _search(work, needles)
    assert not hits, f"secrets found: {hits}"
    return f"{len(needles)} secrets in {files} files (log, recordings, exports, console, errors, processes): 0 found"


class Overhearing(Witness):
    """A Witness that keeps all that it is told but for its own welcomes, and the tokens in these."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.tokens, self.overheard = [], b""

    def arrive(self, welcome, session):
        """Note the token."""
        self.tokens.append(welcome["token"])
        super().arrive(welcome, session)

    def take(self, batch):
        """Note all else."""
        self.overheard += b"".join([line for line, event in batch if event.get("re") != "welcome"])
        super().take(batch)


@contextlib.contextmanager
def _join(server, code, work):
    # bob, in a process, with the code in his environment and a recording of his own.
    with subprocess.Popen([sys.executable, chat.__file__, "join", "%s:%d" % server.address, "--name", "bob",
                           "--log", "bob.jsonl"], cwd=work, stdin=subprocess.PIPE, encoding="utf-8",
                          stdout=open(work / "bob.out", "w"), stderr=open(work / "bob.err", "w"),
                          env={**os.environ, "CHAT_INVITE": str(code)}) as bob:
        try:
            yield bob
        finally:
            bob.kill()


def _secrets(folder, code, digest, ann):
    # Everything that is to stay where it is, in each form in which it could appear.
    (kept,) = [json.loads(path.read_text()) for path in (folder / "chat" / "rooms").glob("*.json")]
    letters = chat.spell(code.key, 7)
    tokens = [token.rpartition(".")[2] for token in ann.tokens]
    assert len(set(tokens)) >= 1 and kept["key"] == code.key
    found = {"key": str(kept["key"]), "key in letters": letters, "code": str(code),
             "code, bare": str(code).replace("-", ""), "secret": kept["secret"], "proof": chat.prove(code.key, digest),
             "proof field": '"proof"', "token field": '"token"', "address": "127.0.0.1", "address, wide": "::ffff"}
    found.update({f"token {number}": token for number, token in enumerate(dict.fromkeys(tokens))})
    return found


def _command_lines(pid):
    # What the system's list of processes shows of this one.
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() + "\n"
    return ""


def _without_invitation(text):
    # What the console prints at its start is there to be told to others.
    return "\n".join(line for line in text.splitlines() if not re.search(r"join [A-Z0-9-]{20}@|listens on", line))


def _export(work, *names):
    # Each of these recordings in each form.
    for name in names:
        for option, target in (("--txt", "txt"), ("--html", "html"), ("--svg", "svg"), ("--cast", "cast"),
                               ("--report", "report")):
            subprocess.run([sys.executable, chat.__file__, "replay", name, option, f"{name}.{target}"], cwd=work,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=60)


def _search(folder, needles):
    # (What was found in which file, how many files there are.)
    hits, files = [], [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        data = path.read_bytes()
        hits += [f"{what} in {path.name}" for what, needle in needles.items() if needle.encode() in data]
    return hits, len(files)
