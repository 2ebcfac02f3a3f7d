"""Faults, one at a time: the disk fails, stalls or is full, a call raises what nobody expects.

Each scenario is a function that raises AssertionError on a violation and returns its figures in a sentence; the tests
call them with small numbers, a long run with large ones.
"""
import contextlib
import errno
import itertools
import json
import os
import random
import socket
import tempfile
import threading
import time

import chat
from helpers import SECONDS, ask, joined, serving, wait_for
from rooms import enter, numbers, say

ERRORS = [lambda: OSError(errno.EIO, "Input/output error"), lambda: chat.ChatError("secret"),
          lambda: MemoryError("secret"), lambda: UnicodeEncodeError("utf-8", "secret", 0, 1, "secret")]


class Trap:
    """Lets everything through, but for the k-th call that comes by."""

    def __init__(self, k, error):
        self.k, self.error, self.calls, self.lock = k, error, 0, threading.Lock()

    def step(self):
        """Count a call; the k-th is the one that fails."""
        with self.lock:
            self.calls += 1
            if self.calls == self.k:
                raise self.error()

    @property
    def hit(self):
        """Whether so many calls came by."""
        return self.calls >= self.k


class System:
    """The os module, with some of its functions replaced."""

    def __init__(self, **functions):
        self.__dict__.update(functions)

    def __getattr__(self, name):
        return getattr(os, name)


@contextlib.contextmanager
def replaced(owner, **values):
    """Within, the owner has these values."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def content(path):
    with open(path, "rb") as file:
        return file.read()


def lines_of(path):
    """The events of a file that holds whole lines only."""
    data = content(path)
    assert data.endswith(b"\n"), f"a torn line at the end: {data[-80:]}"
    return [json.loads(line) for line in data.splitlines()]


# --- the file layer ---

BEGUN = b"".join(map(chat.encode, [
    {"ev": "session", "n": 0, "t": 0.0, "v": 1, "id": "s1", "start": "2026-11-20T12:00:00.000+03:00", "room": "lab"},
    {"ev": "join", "n": 1, "t": 1.0, "who": "old", "from": 0}]))
TORN = b'{"ev":"say","n":2,"t":1.5,"who":"old","te'


def _a_life(chance, system, path):
    # A server goes on in a file, people talk, it ends; returns the room, or None if it refused to begin.
    with replaced(chat, os=system, RETRY_SECONDS=0.0, SYNC_SECONDS=0.002):
        try:
            room = chat.open_room("lab", path, 50, 0)
        except chat.ChatError:
            return None
        ann, bob = enter(room, "ann"), enter(room, "bob")
        for number in range(chance.randint(3, 8)):
            text = f"line {number} {'ж' * chance.randint(1, 50)}"
            say(room, chance.choice([ann, bob]), *[text] * chance.randint(1, 3))
            if chance.random() < 0.3:
                ask(room, None, "mark", text="part")
                time.sleep(0.004)  # so that it is synced
            room.fanout.look_after()
            room.flush()
        ask(room, None, "end")
        room.flush()
        room.fanout.look_after()
        room.flush()
        room.fanout.recording.close()
        room.fanout.recording.thread.join(SECONDS)
    for member in (ann, bob):
        seen = [n for n in numbers(member.out.lines()) if n > member.seat]
        assert seen == list(range(member.seat + 1, room.log.n + 1)), f"{member.name} has a gap: {seen}"
    return room


def _one_fault(seed, function, k):
    # Returns whether the k-th call of this function came by at all.
    chance, real = random.Random(f"{seed} {function} {k}"), getattr(os, function)
    trap = Trap(k, chance.choice(ERRORS if function == "write" else ERRORS[:1]))
    half = function == "write" and chance.random() < 0.5

    def faulty(*arguments, **options):
        if half and trap.calls == k - 1 and len(arguments[1]) > 1:  # a full disk takes a part, and fails at the next
            trap.k += 1
            trap.calls += 1
            return real(arguments[0], arguments[1][:chance.randrange(1, len(arguments[1]))])
        trap.step()
        return real(*arguments, **options)

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "lab.jsonl")
        with open(path, "wb") as file:
            file.write(BEGUN + TORN)
        room = _a_life(chance, System(**{function: faulty}), path)
        if room is None:
            assert content(path).startswith(BEGUN) and trap.hit
            lives = []  # the file is let go by a thread of its own
            wait_for(lambda: lives.append(_a_life(chance, System(), path)) or lives[-1], "somebody goes on in the file")
            room = lives[-1]
        events = lines_of(path)
        assert [event["n"] for event in events] == list(range(room.log.n + 1)), "one fault loses nothing"
        assert TORN in content(path + ".torn")
        again = chat.open_room("lab", path, 50, 0)
        again.fanout.recording.close()
        assert again.log.n == room.log.n, "the end is the end"
    return trap.hit


def file_layer(seed=0, rounds=1):
    """A fault at the k-th write, fsync, open, fstat, ftruncate, for k from 1 until none is hit."""
    faults = 0
    for number in range(rounds):
        for function in ("write", "fsync", "open", "fstat", "ftruncate"):
            for k in itertools.count(1):
                if not _one_fault(seed + number, function, k):
                    break
                faults += 1
    return f"{faults} faults of the file layer, each at another call: whole lines, nothing lost, nobody with a gap"


# --- a disk that stalls, and one that is full ---


def _flood(peer, count):
    def talk():
        for _ in range(0, count, 10):
            peer.sock.sendall(chat.encode({"do": "say", "text": "x" * 4000}) * 10)

    thread = threading.Thread(target=talk)
    thread.start()
    return thread


def _hear(peer, count, said):
    # The numbers of so many messages.
    while len(said) < count:
        line = peer.hear()
        assert line, "cut in the middle"
        said += [line["n"]] if line.get("ev") == "say" else []


def stalled_disk(seconds=0.5, flooders=4, lines=250):
    """A disk blocks for a while, under a flood: memory is bounded, nobody is cut, and it all goes on."""
    # Somebody who reads nothing is behind by half of what may wait before the disk stalls, and by more than that
    # afterwards: also they are not cut, since nothing could be sent to them.
    going, stalling, most, total = threading.Event(), threading.Event(), 0, 3 * flooders * lines
    going.set()

    def write(descriptor, data):
        if not going.is_set():
            stalling.set()
            going.wait()
        return os.write(descriptor, data)

    with tempfile.TemporaryDirectory() as folder, replaced(chat, os=System(write=write)):
        path = os.path.join(folder, "lab.jsonl")
        with serving(chat.open_room("lab", path, 50, 0)) as server, contextlib.ExitStack() as stack:
            fanout, log = server.room.fanout, server.room.log
            idle = stack.enter_context(joined(server, "idle", receive_buffer=4096))
            peers = [stack.enter_context(joined(server, f"p{number}")) for number in range(flooders)]
            said = [[] for _ in peers]
            readers = [threading.Thread(target=_hear, args=(peer, total, part)) for peer, part in zip(peers, said)]
            for thread in [*readers, *[_flood(peer, lines) for peer in peers]]:
                if thread in readers:
                    thread.start()
                else:
                    thread.join()
            wait_for(lambda: all(len(part) >= total // 3 for part in said), "the first third is heard")
            going.clear()
            floods = [_flood(peer, 2 * lines) for peer in peers]
            assert stalling.wait(SECONDS)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                most = max(most, log.end - log.tail.end + fanout.work.size())
                time.sleep(0.002)
            going.set()
            for thread in floods + readers:
                thread.join()
            assert most < chat.PENDING_BYTES + flooders * chat.LINE_BYTES * 2, f"{most:,} bytes waited"
            assert len(server.room.people) == flooders + 1, "somebody was cut"
            late = []
            _hear(idle, total, late)
            assert [late] * flooders == said, "all have the same, in the same order"
        assert [event["n"] for event in lines_of(path) if event["ev"] == "say"] == late
    return f"{seconds} s without a disk: at most {most:,} bytes waited, {total:,} lines told, nobody was cut"


def full_disk(lines=300, seed=0):
    """A disk fills up, and gets a little space again and again: whole lines, and in the end all of them."""
    chance, left, told = random.Random(seed), [3000], []

    def write(descriptor, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = os.write(descriptor, data[:left[0]])
        left[0] -= written
        return written

    with tempfile.TemporaryDirectory() as folder, replaced(chat, os=System(write=write), RETRY_SECONDS=0.0):
        path = os.path.join(folder, "lab.jsonl")
        room = chat.open_room("lab", path, 50, 0)
        ann, sizes = enter(room, "ann"), set()
        for number in range(lines):
            say(room, ann, f"line {number} {'ж' * chance.randint(1, 200)}")
            left[0] += chance.choice([0, 0, 0, 50, 100, 300, 1000])
            lines_of(path)
            sizes.add(os.path.getsize(path))
        left[0] = 1 << 30
        room.fanout.look_after()
        room.flush()
        room.fanout.recording.close()
        assert [event["n"] for event in lines_of(path)] == list(range(room.log.n + 1)), "nothing is lost"
        told = [line["text"] for line in ann.out.lines() if line["re" if "re" in line else "ev"] == "notice"]
        assert told and all(text.split()[1] == word for text, word in zip(told, itertools.cycle(["failed", "works"])))
    return f"{lines} lines on a full disk: {len(sizes)} times something fitted, {len(told)} notices, nothing lost"


# --- calls that raise ---


class FaultySocket(socket.socket):
    """A socket that a trap may catch; `traps` holds one for some of its calls."""

    __slots__ = "traps", "listens"

    def _step(self, name):
        if name in self.traps:
            self.traps[name].step()

    def send(self, *arguments):
        self._step("send")
        return super().send(*arguments)

    def close(self):
        try:
            if not self.listens:  # whose end is that of all
                self._step("close")
        finally:
            super().close()

    def accept(self):
        self._step("accept")
        sock, address = super().accept()
        return _faulty(sock, self.traps), address


def _faulty(sock, traps, listens=False):
    made = FaultySocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    made.traps, made.listens = traps, listens
    return made


def _one_evening(kind, k, error):
    # People come, talk and go while one call fails. Returns whether it came by.
    trap = Trap(k, error)
    traps = {kind: trap}

    def write(descriptor, data):
        traps.get("write", Trap(0, error)).step()
        return os.write(descriptor, data)

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = os.path.join(folder, "lab.jsonl")
        room, listen = chat.open_room("lab", path, 50, 0), chat.listen
        stack.enter_context(replaced(chat, os=System(write=write), RETRY_SECONDS=0.01,
                                     listen=lambda *address: _faulty(listen(*address), traps, True)))
        if kind == "push":
            room.fanout.push = lambda member, push=room.fanout.push: trap.step() or push(member)
        with serving(room) as server, contextlib.ExitStack() as peers:  # whose end nobody has to wait for
            lost = _talk_and_go(server, peers)
            faults = list(room.fanout.spoken.faults)
            assert server.caretaker.thread.is_alive()
        assert lost <= 1, f"{lost} connections were lost by one fault"
        assert not any("secret" in text for text in faults), faults
        events = lines_of(path)
        assert [event["n"] for event in events] == list(range(room.log.n + 1)) and events[-1]["ev"] == "end"
    return trap.hit


def _talk_and_go(server, stack):
    # Returns how many were lost.
    people = {}
    for name in ("p0", "p1", "p2", "p3", "p4"):
        with contextlib.suppress(AssertionError, OSError):
            people[name] = stack.enter_context(joined(server, name))
    for name, peer in people.items():
        with contextlib.suppress(OSError):
            peer.say("hello", "everybody")
            peer.send(do="tell", to="p0", text="psst")
            peer.send(do="bye" if name == "p1" else "ping")
    for name in ("last", "very-last"):  # the first of them may be the one whom the fault meets
        with contextlib.suppress(AssertionError, OSError), joined(server, name) as last:
            last.say("the last word")
            last.expect(text="the last word")
            break
    else:
        raise AssertionError("nobody can come in any more")
    return 5 - len(people) + sum(not _heard_all(name, peer) for name, peer in people.items())


def _heard_all(name, peer):
    # Until the last word, or to one's own leave; without a gap, even if not to the end.
    seen = []
    with contextlib.suppress(OSError):
        for line in iter(peer.hear, None):
            seen += [line] if "ev" in line else []
            if line.get("text") == "the last word" or (line.get("ev"), line.get("who")) == ("leave", name):
                break
    given = [line["n"] for line in seen]
    assert not given or given == list(range(given[0], given[0] + len(given))), f"a gap: {given}"
    return bool(seen) and (seen[-1].get("text") == "the last word" or name == "p1")


def raising(seed=0, rounds=60):
    """OSError, ChatError and others raised at the k-th write, send, push, close, accept; all of them with rounds=0."""
    kinds = ("write", "send", "push", "close", "accept")
    chance, hits = random.Random(seed), 0
    if rounds:
        for _ in range(rounds):
            hits += _one_evening(chance.choice(kinds), chance.randint(1, 12), chance.choice(ERRORS))
    else:
        for kind, error in itertools.product(kinds, ERRORS):
            for k in itertools.count(1):
                if not _one_evening(kind, k, error):
                    break
                hits += 1
    return f"{hits} calls that raised: nobody else lost anything, nobody had a gap, all threads live"
