"""Private rooms: what encrypts is a socket like any other, and nobody gets in, or anything, without the code."""
import contextlib
import hashlib
import json
import os
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import types
from unittest import mock

import pytest

import chat
import helpers
import terminal
from helpers import Peer, Wire, ask, identity, joined, private_room, serving, wait_for
from rooms import taped_room

HELLO = chat.encode({"do": "hello", "name": "bob"})


@pytest.fixture
def server():
    with serving(private_room()) as server:
        yield server


@pytest.fixture
def code(server):
    return server.room.gate.code(server.room)


def wrong(code):
    """A code for the same server, with another key."""
    return code._replace(key=code.key ^ 1)


def nobody_came_in(server):
    """Whether the room has stayed as empty and as silent as it was."""
    return not server.room.people and server.room.log.n == 0


def raw(server, data=b""):
    """A plain connection, over which these bytes have gone."""
    sock = socket.create_connection(server.address, helpers.SECONDS)
    sock.sendall(data)
    return sock


def answer_to(server, data):
    """All that a plain connection is sent for these bytes."""
    with raw(server, data) as sock:
        return sock.makefile("rb").read()


# --- the wire ---


def sealed_pair():
    """Both ends of an encrypted link, once they have shaken hands."""
    server, client = chat.Tls(identity().context, True), chat.Tls(chat.open_context("CLIENT"), False)
    for one, other in ((client, server), (server, client), (client, server), (server, client)):
        with contextlib.suppress(ssl.SSLWantReadError):
            one.end.do_handshake()
        other.incoming.write(one.outgoing.read())
    client.decrypt(b"")
    return server, client


@pytest.mark.parametrize("size", [1, 2, 100, 16384, 16385, 100_000])
@pytest.mark.parametrize("step", [1, 7, 1000, 20_000])
def test_a_sealed_socket_takes_all_but_the_last_byte_until_nothing_waits(size, step):
    server, client = sealed_pair()
    wire, data, said, taken = Wire(0), os.urandom(size), b"", 0
    sealed = chat.Sealed(wire, server)
    while taken < size:
        wire.space += max(step, size // 50)
        try:
            count = sealed.send(data[taken:])
            assert count
            taken += count
        except BlockingIOError:
            pass
        assert taken < size or not sealed.rest, "all is sent, and yet something waits"
        said += client.decrypt(bytes(wire.data))
        wire.data.clear()
    assert said == data


def test_nothing_to_send_sends_nothing():
    server, client = sealed_pair()
    assert chat.Sealed(Wire(), server).send(b"") == 0
    assert server.encrypt(b"") == b""


class Someone:
    """A member of a room behind a wire that takes little, encrypted or not, and what they have heard."""

    def __init__(self, name, sealed):
        self.name, self.wire, self.said = name, Wire(0), b""
        self.tls, self.reader = sealed_pair() if sealed else (None, None)
        self.member = chat.Member(chat.Sealed(self.wire, self.tls) if sealed else self.wire)

    def hear(self):
        data, self.wire.data = bytes(self.wire.data), bytearray()
        self.said += self.reader.decrypt(data) if self.reader else data

    def take(self, room, space):
        """The wire takes so much more, and the room is told, as by the caretaker."""
        self.wire.space += space
        with room.fanout.baton:
            self.member.watched = False
            room.fanout.stuck = [other for other in room.fanout.stuck if other is not self.member]
            room.fanout.push(self.member)
        self.hear()

    def check(self, room):
        """Whole lines, all of them, each once and in order, up to the end or to where one was cut."""
        assert self.said.endswith(b"\n") or not self.said
        lines = [json.loads(line) for line in self.said.splitlines()]
        numbers = [line["n"] for line in lines[2:] if "ev" in line]
        assert not numbers or numbers == [*range(numbers[0], numbers[0] + len(numbers))]
        assert self.member.left or numbers[-1] == room.log.n
        assert self.member.left or [line["k"] for line in lines if "k" in line] == [
            *range(1, self.member.kept.last + 1 if self.member.kept else 1)]


def fuzz_wire(seed, rounds):
    """Talk, whispers, joins, leaves, kicks and cuts over wires of any space; returns how many were cut."""
    chance, room, people = random.Random(seed), taped_room(), []
    with mock.patch.object(chat, "LAG_BYTES", 60_000):
        for number in range(rounds):
            inside = [someone for someone in people if not someone.member.left]
            if len(inside) < 2 or len(inside) < 9 and chance.random() < 0.1:
                people.append(Someone(f"m{number}", sealed=chance.random() < 0.8))
                ask(room, people[-1].member, "hello", name=people[-1].name, back=chance.random() < 0.5 or None)
                inside.append(people[-1])
            someone, other = chance.choice(inside), chance.choice(inside)
            what = chance.random()
            if what < 0.6:
                texts = ["ж" * chance.choice([1, 50, 1500]) + str(number) for _ in range(chance.choice([1, 1, 4, 12]))]
                ask(room, someone.member, "talk", said=[{"do": "say", "text": text} for text in texts])
            elif what < 0.9:
                ask(room, someone.member, "tell", to=other.name, text="x" * chance.choice([1, 3000]))
            elif what < 0.95:
                ask(room, None, "kick", to=someone.name, text="out")
            else:
                ask(room, someone.member, "bye")
            if chance.random() < 0.7:
                room.flush()
            for one in people:
                if chance.random() < 0.5:
                    one.take(room, chance.choice([1, 5, 22, 23, 100, 1000, 30_000]))
        room.flush()
        for someone in people:
            someone.take(room, 1 << 30)
            someone.check(room)
    return sum(b'"code":"slow"' in someone.said for someone in people)


@pytest.mark.parametrize("seed", range(6))
def test_a_room_cannot_tell_an_encrypted_socket_from_a_plain_one(seed):
    assert fuzz_wire(seed, 150)


def test_who_never_says_a_word_is_cut():
    server, client = sealed_pair()
    server.decrypt(client.encrypt(b"x" * 100_000))
    record = client.encrypt(b"x" * 16_000)
    for byte in record[:-1]:  # one record in any pieces is no matter
        assert not server.decrypt(bytes([byte]))
    assert server.decrypt(record[-1:])
    server.end = types.SimpleNamespace(read=mock.Mock(side_effect=ssl.SSLWantReadError))  # new keys over and over
    with pytest.raises(ConnectionAbortedError):
        for _ in range(100):
            server.decrypt(b"x" * 1000)


# --- the first byte ---


@pytest.mark.parametrize("data", [
    HELLO, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\n", b"\0", b"\x80\x2e\x01\x03\x01", b"x" * 100_000, b"\x15\x03\x01"])
def test_what_is_not_encrypted_hears_one_line_and_nothing_about_the_room(server, data):
    lines = answer_to(server, data).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"re": "error", "t": 0.0, "code": "no-key", "text": "this room is private: python3 chat.pyz join CODE@ADDRESS"}]
    assert nobody_came_in(server)


def test_silence_stays_silence(server):
    with raw(server) as silent:
        with joined(server, "ann", code=server.room.gate.code(server.room)):
            silent.settimeout(0.05)
            with pytest.raises(socket.timeout):
                silent.recv(1)


def test_an_open_room_tells_one_who_encrypts_that_it_does_not():
    with serving() as server:
        (line,) = answer_to(server, b"\x16\x03\x01\x02\x00\x01").splitlines()
        assert json.loads(line)["text"] == "this room is open, and nothing in it is encrypted: join without a code"


def client_hello(version=None):
    """The first bytes of a client that shakes hands, with this version at most."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if version:
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    return out.read()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_old_kind_of_encryption_is_refused(server):
    answer = answer_to(server, client_hello(ssl.TLSVersion.TLSv1_1))
    assert answer[:1] == b"\x15" and len(answer) == 7  # an alert
    assert nobody_came_in(server)


def half_handshakes(server, step):
    """A handshake and hello broken off at each of these bytes; returns how often."""
    first, broken = client_hello(), 0
    for at in range(1, len(first), step):
        with raw(server, first[:at]):
            broken += 1
    second = 1
    while second:
        with raw(server) as sock:
            tls = chat.Tls(chat.open_context("CLIENT"), False)
            cut, rest = types.SimpleNamespace(settimeout=sock.settimeout, recv=sock.recv, sendall=lambda data: None), []
            cut.sendall = lambda data: rest.append(data) if rest or data[:1] != b"\x16" else sock.sendall(data)
            tls.shake_hands(cut, time.monotonic() + helpers.SECONDS)
            last = b"".join(rest) + tls.encrypt(chat.encode({"do": "hello", "name": "bob", "proof": "0" * 64}))
            sock.sendall(last[:second - 1])
            second = second + step if second < len(last) else 0
            broken += 1
    return broken


def test_a_handshake_that_breaks_off_at_any_byte_costs_nothing(server):
    assert half_handshakes(server, 17) > 25
    wait_for(lambda: not server.guests, "the end of all who broke off")
    assert nobody_came_in(server)


# --- the key ---


def test_with_the_code_one_comes_in_and_talks(server, code):
    with joined(server, "ann", code=code) as ann, joined(server, "bob", code=code) as bob:
        ann.say("привет" * 600)
        assert bob.expect(ev="say")["text"] == "привет" * 600
        bob.send(do="bye")
        ann.expect(ev="leave", who="bob", why="left")
        assert bob.rest()


def test_one_who_reads_late_is_given_everything(server, code):
    with joined(server, "ann", code=code) as ann, joined(server, "bob", receive_buffer=4096, code=code) as bob:
        for number in range(200):
            ann.say("ж" * 3990 + str(number))
            ann.expect(ev="say")
        said = [line["text"][3990:] for line in bob.until(text="ж" * 3990 + "199")]
        assert said == [str(number) for number in range(200)]


def test_without_the_key_nothing_is_told_but_that(server, code):
    for request in ({"do": "hello", "name": "bob"}, {"do": "hello", "name": "bob", "proof": "ж"}, {"do": "who"},
                    {"do": "hello", "name": "bob", "token": server.room.secrets.token(1)[:-1] + "x"}):
        with Peer(server, code=code) as peer:
            peer.send(**request)
            (line,) = peer.rest()
            assert (line["code"], line["t"]) == ("no-key", 0.0)
    assert nobody_came_in(server)


def test_wrong_keys_get_no_answer_any_more_and_a_right_one_lets_in(server, code):
    answers = []
    for number in range(8):
        with Peer(server, code=wrong(code)) as peer:
            peer.send(do="hello", name="bob", proof=peer.proof)
            answers.append([line["code"] for line in peer.rest()])
    assert answers == [["no-key"]] * 5 + [[]] * 3
    assert len(server.room.fanout.spoken.faults) == 1 and "127" not in server.room.fanout.spoken.faults[0]
    with joined(server, "ann", code=code):
        pass


def test_wrong_keys_are_counted_for_each_address_and_for_all_and_forgotten(monkeypatch):
    gate, now = chat.Gate(identity()), [1000.0]
    monkeypatch.setattr(chat.time, "monotonic", lambda: now[0])

    def guess(address):
        try:
            gate.check(room, address, {"do": "hello", "name": "bob"})
        except chat.ChatError:
            return True
        except ConnectionAbortedError:
            return False

    room = private_room()
    assert [guess("a") for _ in range(7)] == [True] * 5 + [False] * 2
    assert [guess(f"b{number}") for number in range(40)] == [True] * 25 + [False] * 15
    assert len(gate.wrong) == 30 and len(room.fanout.spoken.faults) == 1
    now[0] += 61
    assert guess("a") and len(gate.wrong) == 1


def test_who_has_a_token_needs_no_key_and_a_new_key_puts_nobody_out(server, code):
    with joined(server, "ann", code=code) as ann:
        with Peer(server, code=code) as bob:
            bob.send(do="hello", name="bob", back=True, proof=bob.proof)
            token = bob.expect(re="welcome")["token"]
        server.room.secrets.new_key()
        with Peer(server, code=code) as bob:
            bob.send(do="hello", name="bob", back=True, token=token)
            bob.expect(re="welcome")
        with Peer(server, code=code) as eve:
            eve.send(do="hello", name="eve", proof=eve.proof)
            eve.expect_next(re="error", code="no-key")
        ann.say("still here")
        ann.expect(ev="say")
        with joined(server, "eve", code=server.room.gate.code(server.room)):
            ann.expect(ev="join", who="eve")


def test_plain_lines_behind_the_handshake_end_it(server, code):
    with joined(server, "ann", code=code) as ann:
        bob = joined(server, "bob", code=code)
        os.write(bob.sock.fileno(), chat.encode({"do": "say", "text": "plain"}))
        ann.expect(ev="leave", who="bob", why="lost")
        bob.close()
        assert b"plain" not in b"".join(ann.heard)


def test_who_ends_only_their_sending_is_carried_out_and_has_left(server, code):
    with joined(server, "ann", code=code) as ann, joined(server, "bob", code=code) as bob:
        bob.say("one", "two")
        bob.sock.settimeout(None)
        with contextlib.suppress(OSError):
            bob.sock.unwrap()
        ann.expect(text="two")
        ann.expect(ev="leave", who="bob", why="left")


# --- somebody in between ---


class Relay:
    """Somebody in between with a certificate of their own, who passes everything on and reads it."""

    def __init__(self, server):
        self.server, self.seen = server, b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        threading.Thread(target=self._pass_on, daemon=True).start()

    def _pass_on(self):
        with contextlib.suppress(OSError), self.listener:
            victim = chat.Identity().context.wrap_socket(self.listener.accept()[0], server_side=True)
            real = chat.open_context("CLIENT").wrap_socket(socket.create_connection(self.server.address))
            data = victim.recv(10_000)
            self.seen += data
            real.sendall(data)
            victim.sendall(real.recv(10_000))
            victim.close()
            real.close()


def test_our_client_says_nothing_to_somebody_in_between(server, code):
    relay = Relay(server)
    with pytest.raises(chat.ChatError, match="what answers is not the server of this code"):
        chat.enter(*relay.address, {"name": "bob"}, code)
    assert relay.seen == b"" and nobody_came_in(server)


def test_a_proof_that_somebody_in_between_passes_on_is_none(server, code):
    relay = Relay(server)
    with Peer(relay, code=code) as bob:  # who trusts anybody
        bob.send(do="hello", name="bob", proof=bob.proof)
        bob.expect_next(re="error", code="no-key")
    assert b"hello" in relay.seen and nobody_came_in(server)


def test_what_was_overheard_is_of_no_use(server, code):
    def copy(one, other):
        with contextlib.suppress(OSError):
            for data in iter(lambda: one.recv(9999), b""):
                other.sendall(data)

    sent = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def listen():
            victim, _ = listener.accept()
            with victim, socket.create_connection(server.address) as real:
                threading.Thread(target=copy, args=[real, victim], daemon=True).start()
                for data in iter(lambda: victim.recv(9999), b""):
                    sent.append(data)
                    real.sendall(data)
                real.shutdown(socket.SHUT_WR)

        threading.Thread(target=listen, daemon=True).start()
        joined(types.SimpleNamespace(address=listener.getsockname()), "ann", code=code).close()
    wait_for(lambda: not server.room.people, "ann's leaving")
    before = server.room.log.n
    answer = answer_to(server, b"".join(sent))
    assert b"ann" not in b"".join(sent) and b"ann" not in answer and server.room.log.n == before


# --- join ---


def piped(address, text="hello\n", name="bob", **environment):
    done = subprocess.run([*terminal.CHAT, "join", address, "--name", name], input=text.encode(), timeout=30,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment})
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def place(server):
    return "%s:%d" % server.address


def test_join_takes_the_code_before_the_address_or_from_the_environment(server, code):
    for address, environment in ((f"{code}@{place(server)}", {}), (place(server), {"CHAT_INVITE": str(code).lower()}),
                                 (place(server), {"CHAT_INVITE": f"{code}@{place(server)}"}),
                                 ("", {"CHAT_INVITE": f"{code}@{place(server)}"}),
                                 (f"{code}@{place(server)}", {"CHAT_INVITE": "nonsense"})):
        done, out, err = piped(address, **environment)
        assert (done, err) == (0, "") and "bob: hello" in out


@pytest.mark.parametrize("wrongly, told", [
    (lambda code: "", "this room is private: python3 chat.pyz join CODE@ADDRESS."),
    (lambda code: f"{wrong(code)}@", "this room lets in only people with its code, and this is not it, or no longer."),
    (lambda code: f"{code._replace(pin='0' * 10)}@", "what answers is not the server of this code: it is another one, "
                                                     "or somebody is in between."),
    (lambda code: f"{code}@"[1:], "a code is 18 letters and digits, such as K7Q2MX-9D3FTA-XW4P0K."),
    (lambda code: f"{'1' if str(code)[0] == '0' else '0'}{str(code)[1:]}@", "this code has a mistyped letter."),
], ids=["none", "another key", "another server", "too short", "mistyped"])
def test_what_is_wrong_with_a_code_is_told_in_one_sentence(server, code, wrongly, told):
    assert piped(wrongly(code) + place(server)) == (1, "", f"chat.py: {told}\n")
    assert nobody_came_in(server)


def test_with_a_code_an_open_room_is_not_joined(code):
    with serving() as server:
        assert piped(f"{code}@{place(server)}") == (
            1, "", "chat.py: what answers is no private room; an open one is joined without a code.\n")
        assert nobody_came_in(server)


def test_a_code_for_another_room_is_left_alone(code):
    with serving() as server:
        done, out, err = piped(place(server), CHAT_INVITE=f"{code}@192.0.2.1")
        assert (done, err) == (0, "") and "bob: hello" in out


@terminal.needs_terminal
def test_at_a_terminal_the_code_is_asked_for_and_not_shown(server, code, tmp_path):
    command = [*terminal.CHAT, "join", place(server), "--name", "bob"]
    with terminal.Terminal(command, cwd=tmp_path, env={"XDG_STATE_HOME": str(tmp_path)}) as bob:
        bob.see("this room is private")
        bob.see("Its code, which is not shown here:")
        bob.type("K7Q2MX\r")
        bob.see("a code is 18 letters")
        bob.type(f"{code}\r")
        bob.see("-- bob joined")
        bob.type("hello\r")
        bob.see("bob: hello")
        assert str(code)[:6] not in bob.written()
        assert (tmp_path / "chat" / "recent.txt").read_text() == f"{place(server)}\n"


def test_the_menu_takes_a_code_and_shows_it_in_no_command_line(server, code, tmp_path):
    answers = f"2\n{code}@{place(server)}\nhello\n"
    done = subprocess.run(terminal.CHAT, input=answers.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          cwd=tmp_path, env={**os.environ, "XDG_STATE_HOME": str(tmp_path)}, timeout=30)
    assert f"chat.py join {place(server)}\n" in done.stdout.decode() and "joined" in done.stdout.decode()
    assert str(code)[:6].encode() not in done.stdout


# --- serve ---


class Shown:
    """A screen that keeps what it is shown."""

    def __init__(self):
        self.lines = []

    def show(self, lines, bell=False):
        self.lines += ["".join(text for style, text in line) for line in lines]


def test_the_console_tells_the_code_and_makes_a_new_one(server, code, monkeypatch):
    monkeypatch.setattr(chat, "lan_addresses", lambda: ["192.168.1.5", "10.0.0.7"])
    screen = Shown()
    console = chat.Console(server.room, screen, ("::", 7011))
    console.take_line("/code")
    assert [line.split("join ")[1] for line in screen.lines] == [f"{code}@192.168.1.5", f"{code}@10.0.0.7"]
    screen.lines.clear()
    console.take_line("/code new")
    new = server.room.gate.code(server.room)
    assert new.pin == code.pin and new.key != code.key and screen.lines[-1].endswith(f"join {new}@10.0.0.7")
    console.take_line("/code old")
    assert screen.lines[-1] == "!! it can be: new"


def test_an_open_room_has_no_code():
    screen = Shown()
    chat.Console(chat.Room(), screen).take_line("/code")
    assert screen.lines == ["!! this room is open, and needs no code"]


@pytest.mark.parametrize("host, options, private", [
    ("127.0.0.1", {}, False), ("localhost", {}, False), ("127.0.0.2", {}, False), ("", {}, True), ("0.0.0.0", {}, True),
    ("0.0.0.0", {"for_all": True}, False), ("", {"for_all": True}, False)])
def test_what_others_can_reach_is_private_unless_it_is_open(monkeypatch, host, options, private):
    rooms = []
    monkeypatch.setattr(chat.Console, "run", lambda console: rooms.append(console.room))
    monkeypatch.setattr(chat.Console, "stop", lambda *seconds: None)
    monkeypatch.setattr(chat, "signals_caught", lambda *names: contextlib.nullcontext())
    chat.serve(host, 0, **options)
    assert rooms[0].private == private


def test_a_server_that_goes_on_in_its_file_has_the_same_code(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    codes = set()
    for _ in range(2):
        room = chat.open_room("lab", str(tmp_path / "log.jsonl"), 50, 0)
        codes.add(chat.Gate(chat.Identity()).code(room))
        room.fanout.recording.close()
    assert len(codes) == 1


def test_a_private_room_keeps_its_secrets_to_itself(tmp_path):
    log = tmp_path / "log.jsonl"
    with helpers.Served("--lan", "--log", log, cwd=tmp_path) as server:
        code = chat.Code.read(server.console.expect(r"join (\S+)@").group(1))
        with Peer(server, code=code) as ann, joined(server, "bob", code=code) as bob:
            ann.send(do="hello", name="ann", back=True, proof=ann.proof)
            token = ann.expect(re="welcome")["token"]
            ann.send(do="tell", to="bob", text="psst")
            bob.expect(re="tell")
            with Peer(server, code=wrong(code)) as eve:
                eve.send(do="hello", name="eve", proof=eve.proof)
                eve.rest()
            for secret in (ann.proof, token, str(code), "127.0.0.1", "192."):
                assert secret.encode() not in b"".join(bob.heard) + log.read_bytes()
        server.interrupt()
        shown = server.console.text() + server.errors.text()
        assert shown.count(str(code)) == len(re.findall("others type", shown))
        assert not any(secret in shown for secret in (ann.proof, token, "127.0.0.1", str(code.key), "psst"))
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl"}


def test_an_open_room_starts_and_is_joined_without_what_encrypts(tmp_path):
    script = ("import sys, threading, chat; server = chat.Server(chat.Room(), chat.listen('127.0.0.1', 0)); server.start(); "
              "chat.join('127.0.0.1:%d' % server.address[1], 'bob'); server.stop(); "
              "assert not {'ssl', '_ssl', 'tempfile'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=30,
                          env={**os.environ, "PYTHONPATH": os.path.dirname(chat.__file__)})
    assert done.returncode == 0 and b"bob joined" in done.stdout


CODE = str(chat.Code("K7Q2MX9D3F", 12345))


@pytest.mark.parametrize("text", [CODE, CODE.lower().replace("-", ""), CODE.replace("-", " "), CODE[:-1] + "ZY"[CODE[-1] == "Z"]])
def test_a_code_alone_is_not_looked_up_as_the_name_of_a_computer(text, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    with pytest.raises(chat.ChatError, match="write CODE@ADDRESS") as refusal:
        chat.join(text, "bob")
    assert text not in str(refusal.value)


def test_a_computer_may_be_called_something_as_long_as_a_code():
    assert chat.find_invite("averyverylonghost1") == (None, "averyverylonghost1")
