"""What tests of a room share: clients that send and expect, servers for them, a wire without a network."""
import contextlib
import functools
import hashlib
import io
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time

import chat

SECONDS = 30  # for anything to arrive, on a machine as busy as can be; only a failing test waits so long


def has(line, fields):
    """Whether a decoded line has all of these fields."""
    return all(line.get(field) == value for field, value in fields.items())


class Peer:
    """Somebody at the other end of a socket: sends requests or raw bytes, and hears lines."""

    # With a code it comes through Python's own encrypted socket, as a student's client would, and trusts any server.

    def __init__(self, server, receive_buffer=None, code=None):
        self.heard = []  # every line so far, as it came
        self.proof = None  # of the key, for a hello
        host, port = server.address
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.sock.settimeout(SECONDS)
        if receive_buffer:  # as small as the system allows, for one who does not read
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.connect((host, port))
        if code:
            self.sock = chat.open_context("CLIENT").wrap_socket(self.sock)
            digest = hashlib.sha256(self.sock.getpeercert(True)).digest()
            self.proof = chat.prove(code.key, digest)
        self.file = self.sock.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *trouble):
        self.close()

    def send(self, **request):
        """Send one request."""
        self.sock.sendall(chat.encode(request))

    def send_bytes(self, data):
        """Send just these bytes."""
        self.sock.sendall(data)

    def say(self, *texts):
        """Say all of this, as one packet if it is short."""
        self.sock.sendall(b"".join(chat.encode({"do": "say", "text": text}) for text in texts))

    def hear(self):
        """The next line, decoded; None at the end of the stream."""
        try:
            line = self.file.readline()
        except socket.timeout:
            raise AssertionError(f"nothing more came; the last was {self.heard[-3:]}") from None
        if not line:
            return None
        assert line.endswith(b"\n"), f"a torn line: {line[-200:]}"
        self.heard.append(line)
        return json.loads(line)

    def until(self, **fields):
        """All lines up to the one that has these fields, with it."""
        lines, deadline = [], time.monotonic() + SECONDS
        while not (lines and has(lines[-1], fields)):
            line = self.hear()
            assert line, f"the stream ended without {fields}; the last was {self.heard[-3:]}"
            assert time.monotonic() < deadline, f"{fields} never came"
            lines.append(line)
        return lines

    def expect(self, **fields):
        """Read on to the line that has these fields; returns it."""
        return self.until(**fields)[-1]

    def expect_next(self, **fields):
        """The very next line has these fields; returns it."""
        line = self.hear()
        assert line and has(line, fields), f"{fields} expected, {line} came"
        return line

    def rest(self):
        """All lines to the end of the stream."""
        return list(iter(self.hear, None))

    def settle(self):
        """Wait until all that was sent so far is carried out; returns what came meanwhile."""
        self.send(do="ping", id=987654321)
        return self.until(re="pong", id=987654321)[:-1]

    def end_sending(self):
        """Close this side's half of the connection, and still hear the rest."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        """Break the connection, as a machine that is switched off or a crashed program does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                             struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0))
        self.close()

    def close(self):
        """Close the connection without a bye."""
        self.file.close()
        self.sock.close()


def joined(server, name, **options):
    """A peer that is in the room and has read everything up to its own join."""
    peer = Peer(server, **options)
    try:
        peer.send(do="hello", name=name, proof=peer.proof)
        peer.welcome = peer.expect_next(re="welcome")
        peer.history = peer.until(ev="join", n=peer.welcome["n"] + 1)[:-1]
    except BaseException:
        peer.close()
        raise
    return peer


@functools.lru_cache(maxsize=None)
def identity():
    """One certificate for all private rooms of the tests, since it takes a moment to make."""
    return chat.Identity()


def private_room(name="lab", **options):
    """A room that lets in only people with its code."""
    room = chat.Room(name, **options)
    room.gate = chat.Gate(identity())
    return room


@contextlib.contextmanager
def serving(room=None, rate=0, host="127.0.0.1"):
    """A server in this process on a free port; that one of its threads dies fails the test."""
    died, hooks = [], (sys.unraisablehook, threading.excepthook)
    sys.unraisablehook = threading.excepthook = lambda trouble: died.append(repr(trouble.exc_value))
    server = chat.Server(room or chat.Room("lab"), chat.listen(host, 0), rate)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        sys.unraisablehook, threading.excepthook = hooks
    assert not died, f"a thread of the server died: {died}"


def wait_for(true, what):
    """Wait until true() is; only for what no line tells."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


class Output:
    """What a process prints, read by a thread of its own so that the process never waits for us."""

    def __init__(self, stream):
        self.stream, self.lines = stream, []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.stream:
            self.lines.append(line)

    def expect(self, pattern):
        """Wait for a line that matches; returns the match."""
        deadline, alive = time.monotonic() + SECONDS, True
        while alive and time.monotonic() < deadline:
            alive = self.thread.is_alive()
            for line in list(self.lines):
                match = re.search(pattern, line)
                if match:
                    return match
            time.sleep(0.005)
        raise AssertionError(f"{pattern} was never printed; the last was {self.lines[-5:]}")

    def text(self):
        """All of it; waits for the end."""
        self.thread.join(SECONDS)
        return "".join(self.lines)


# Run before chat.py: what an unlucky system lacks is taken away. The rest of the arguments is the program.
BARE_SYSTEM = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None
import os, select, signal
for module, names in ((select, "epoll kqueue poll devpoll"), (signal, "SIGHUP"),
                      (os, "sched_setaffinity sched_getaffinity")):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
import socket
if hasattr(socket, "SO_REUSEPORT"):
    del socket.SO_REUSEPORT
socket.has_dualstack_ipv6 = lambda: False
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


LIMITED = """
import os, sys
sys.argv = sys.argv[2:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import chat
vars(chat).update({limits})
sys.exit(chat.main())
"""


def limited(**limits):
    """The command that runs chat.py with other limits, such as HOLD_SECONDS."""
    return [sys.executable, "-c", LIMITED.replace("{limits}", repr(limits)), "-", chat.__file__]


# The same, with a disk that hangs while there is a file `hang` in the current folder.
HANGING_DISK = """
import os, sys, threading, time
write, main = os.write, threading.main_thread()

def write_or_hang(descriptor, data):
    if os.path.exists("hang") and data.startswith(b'{"ev"'):
        assert threading.current_thread() is not main, "no signal would be heard"
        while os.path.exists("hang"):
            time.sleep(0.01)
    return write(descriptor, data)

os.write = write_or_hang
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Served:
    """`python chat.py serve --port 0 ...` in a process of its own, once it listens; a script may change its system."""

    def __init__(self, *options, python=sys.executable, bare=False, script=None, limits=None, **settings):
        script = BARE_SYSTEM if bare else script
        program = [python, "-c", script, chat.__file__] if script else [python, chat.__file__]
        program = limited(**limits) if limits else program
        self.process = subprocess.Popen(
            [*program, "serve", "--port", "0", *map(str, options)], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"}, **settings)
        self.console, self.errors = Output(self.process.stdout), Output(self.process.stderr)
        try:
            host, port = self.console.expect(r"room .* listens on (.+):(\d+)$").groups()
            self.console.expect("Ctrl.C ends the room")
        except BaseException:
            self.close()
            raise
        self.address = "127.0.0.1" if "all" in host else host.strip("[]"), int(port)

    def __enter__(self):
        return self

    def __exit__(self, *trouble):
        self.close()
        assert "Traceback" not in self.errors.text(), self.errors.text()

    def interrupt(self, number=signal.SIGINT):
        """Ask it to end, as Ctrl+C does."""
        self.process.send_signal(number)

    def end(self):
        """Ask it to end and wait for it; returns its exit code. Slow while clients stay connected."""
        self.interrupt()
        return self.process.wait(SECONDS)

    def close(self):
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for output in (self.console, self.errors):
            output.thread.join(SECONDS)
            output.stream.close()


def ask(room, member, do, **fields):
    """Have a room decide a request; of the host's where there is no member."""
    room.ask(member, {"do": do, **fields})


class Wire:
    """What a room sends on, without a network: like a non-blocking socket with so much space."""

    def __init__(self, space=None):
        self.space = space  # in bytes; None takes everything
        self.data, self.sends = bytearray(), 0
        self.ended = None  # how it was shut down
        self.closed = self.broken = False

    def send(self, data):
        assert not self.closed, "sent on a closed socket, whose number may be a stranger's by now"
        if self.broken:
            raise ConnectionResetError
        assert self.ended is None, "sent after the end"
        count = len(data) if self.space is None else min(len(data), self.space)
        if not count:
            raise BlockingIOError
        if self.space is not None:
            self.space -= count
        self.data += data[:count]
        self.sends += 1
        return count

    def shutdown(self, how):
        self.ended = how

    def close(self):
        self.closed = True

    def lines(self):
        """What was taken so far, decoded; the last line is whole too."""
        assert not self.data or self.data.endswith(b"\n"), f"a torn line: {self.data[-200:]}"
        return [json.loads(line) for line in self.data.splitlines()]


class Tape:
    """A recording that only keeps what it is given."""

    failing = gone = False
    unsynced, stalled = None, float("-inf")

    def __init__(self):
        self.data = bytearray()

    def write(self, lines):
        self.data += lines

    def lines(self):
        return self.data.splitlines(True)

    def close(self):
        pass


# --- recordings: one session and one set of builders ---


SESSION = {"ev": "session", "n": 0, "t": 0.0, "v": 1, "id": "s1", "start": "2026-11-20T12:00:00.000+03:00",
           "room": "лаб"}
EVENTS = [
    SESSION,
    {"ev": "join", "n": 1, "t": 1.0, "who": "юля", "from": 0},
    {"ev": "say", "n": 2, "t": 1.5, "who": "юля", "text": "привет\nмир"},
    {"ev": "leave", "n": 3, "t": 61.5, "who": "юля", "why": "left"},
    {"ev": "end", "n": 4, "t": 65.5},
]


def join(n, who, first=0, **more):
    return {"ev": "join", "n": n, "t": float(n), "who": who, "from": first, **more}


def say(n, who="ann", text="hi", **more):
    return {"ev": "say", "n": n, "t": float(n), "who": who, "text": text, **more}


def nick(n, who, name, **more):
    return {"ev": "nick", "n": n, "t": float(n), "who": who, "name": name, **more}


def leave(n, who, why="left", **more):
    return {"ev": "leave", "n": n, "t": float(n), "who": who, "why": why, **more}


def mark(n, text="part"):
    return {"ev": "mark", "n": n, "t": float(n), "text": text}


def end(n):
    return {"ev": "end", "n": n, "t": float(n)}


def welcome(n, you, *people):
    return {"re": "welcome", "t": n + 1.0, "you": you, "n": n, "people": [*people, you]}


def tell(t, who, to):
    return {"re": "tell", "t": float(t), "who": who, "to": to, "text": "psst"}


def data(events):
    return b"".join(map(chat.encode, events))


def session(*events, **fields):
    """A server's file: these events numbered, each given as (word, t, fields)."""
    return [{**SESSION, **fields},
            *({"ev": word, "n": n, "t": float(t), **rest} for n, (word, t, rest) in enumerate(events, 1))]


def put(path, events):
    """Write these events into a file."""
    path.write_bytes(data(events))
    return path


def tape_of(events):
    """The tape of these events, or of these bytes."""
    return chat.Tape(io.BytesIO(events if type(events) is bytes else data(events)))


def read_file(file):
    """The events of a session file, and the remarks on it."""
    lines = chat.Lines(file)
    while lines.grow() is not None:
        pass
    return [event for i in range(len(lines)) for event in lines.read(i)]


# Somebody's own recording.
MINE = [welcome(2, "bob", "ann"), SESSION, join(1, "ann"), say(2), join(3, "bob", 0), tell(3.5, "ann", "bob"),
        say(4), nick(5, "bob", "rob"), {"re": "who", "t": 5.0, "people": ["ann", "rob"]},
        {"re": "error", "t": 5.0, "code": "nobody", "text": "no"}, join(7, "eve", 2), say(8)]

# What no file should do harm with.
EVIL = "\x1b[2J\x1b]0;x\x07\r\x9b2J\u202eevil\u2066\0\x7f\x85\u2028\t"
ODD = [None, True, -1, 1 << 60, 1e300, 0.5, [], {}, [[1]], {"a": []}, EVIL, "\ud800", ""]
NUMBERS = [b"-1", b"2", b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"1.5", b"true", b'"1"', b"[]"]
STRANGE = {
    "empty": b"",
    "blank": b"\n\r\n \n",
    "binary": bytes(range(256)) * 40,
    "text": "купить молоко\n".encode() * 9,
    "only a session": data([SESSION]),
    "torn": data(EVENTS)[:-9],
    "torn in a letter": data(EVENTS)[:data(EVENTS).index("привет".encode()) + 1],
    "torn at the newline": data(EVENTS)[:-1],
    "torn session": data([SESSION])[:-1],
    "a giant line": data(EVENTS[:3]) + b"x" * (9 << 20) + b"\n" + data(EVENTS[3:]),
    "a giant event": data([*EVENTS[:3], say(3, text="x" * (9 << 20)), EVENTS[4]]),
    "nothing but a giant line": b"{" * (9 << 20),
    "a later version": data([{**SESSION, "v": 2}, *EVENTS[1:]]),
    "a later version in the middle": data([*EVENTS[:3], {**SESSION, "n": 3, "v": 99}, *EVENTS[3:]]),
    "times that fall": data([SESSION, *[{**say(n), "t": float(-n % 7)} for n in range(1, 40)]]),
    "huge numbers": data([{**SESSION, "n": 2**53 - 1, "t": 9e10}, {**join(2**53 - 1, EVIL), "t": 9.9e10}]),
    "wrong numbers": data([SESSION, join(1, "ann")]) + b"".join(
        b'{"ev":"%b","n":%b,"t":%b,"who":"a","text":"x"}\n' % (word, n, t) for word in (b"say", b"poll")
        for n in NUMBERS for t in NUMBERS) + data([end(3)]),
    "unknown events": data([SESSION, join(1, "ann")]) + b"".join(
        (json.dumps({"ev": word, "n": odd, "t": 2.0, "who": odd, "name": odd, "text": odd, "to": odd,
                     "id": odd, "people": odd, "why": odd, "x": "join"}) + "\n").encode()
        for word in ("poll", EVIL, "", "welcome", "tell", "here") for odd in ODD),
    "unknown replies": data([MINE[0], SESSION, *MINE[2:5]]) + b"".join(
        (json.dumps({"re": word, "n": odd, "t": 4.0, "who": odd, "name": odd, "text": odd, "to": odd,
                     "people": odd, "recorded": odd}) + "\n").encode()
        for word in ("join", "mark", "poll", EVIL, "end") for odd in ODD),
    "odd fields in known events": data([SESSION]) + b"".join(
        (json.dumps({**event, "id": odd, "name": odd, "to": odd, "people": odd, "recorded": odd, "re": odd,
                     "here": odd, "text": odd, **event}) + "\n").encode()
        for event in (join(1, "ann"), say(2), mark(3), {**mark(4), "ev": "notice", "why": "kicked"},
                      leave(5, "ann", "kicked"), leave(5, "ann", EVIL), end(6)) for odd in ODD),
    "evil texts": data([{**SESSION, "room": EVIL}, join(1, EVIL), join(2, "ann"), say(3, EVIL, EVIL),
                        mark(4, EVIL), {**say(5, EVIL, EVIL), "ev": "me"}, nick(6, EVIL, EVIL + "2"),
                        leave(7, EVIL + "2", EVIL, text=EVIL), {**mark(8, EVIL), "ev": "notice"}]),
    "evil private lines": data([welcome(1, EVIL, "ann"), {**SESSION, "room": EVIL}, join(2, EVIL),
                                tell(3, EVIL, "x"),
                                {"re": "error", "t": 3.0, "code": EVIL, "text": EVIL, "name": EVIL},
                                {"re": "who", "t": 3.0, "people": [EVIL]}]),
    "odd lists of people": data([SESSION]) + b"".join(
        (json.dumps({"re": word, "t": 1.0, "you": "ann", "n": 1, "people": odd}) + "\n").encode()
        for word in ("welcome", "who")
        for odd in [*ODD, [None], [["a"]], ["a", 1], ["a"] * 2, ["\ud800"], [EVIL, ""]]),
    "a session in the middle": data([SESSION, join(1, "ann"), {**SESSION, "n": 2, "room": "other"}, say(3)]),
    "two sessions": data([SESSION, {**SESSION, "id": "s2"}, *EVENTS[1:], *EVENTS]),
    "a session behind others": data([join(1, "ann"), say(2), SESSION, say(3), *MINE]),
    "from beyond n": data([SESSION, join(1, "ann", 999), say(2), join(3, "bob", 2**53 - 1), leave(4, "bob")]),
    "joined twice": data([SESSION, join(1, "ann"), join(2, "ann"), join(2, "ann"), nick(3, "ann", "ann"),
                          say(4), leave(5, "ann"), leave(6, "ann"), nick(7, "ann", "bob"), end(8),
                          end(9), end(9)]),
    "welcome again and again": data([MINE[0], MINE[0], SESSION, *MINE, *MINE, MINE[0]]),
    "names of nothing": data([SESSION, join(1, ""), join(2, " "), say(3, "", " "), nick(4, "", "\n"),
                              leave(5, " ")]),
    "the end of the world": data([{**SESSION, "start": "9999-12-31T23:59:59.999+00:00"}, join(1, "ann"),
                                  {**end(2), "t": 9.9e10}]),
    "the beginning of the world": data([{**SESSION, "start": "0001-01-01T00:00:00.000+23:59"}, *EVENTS[1:]]),
    "deep": data(EVENTS[:2]) + b'{"ev":"x","t":1.5,"a":' + b"[" * 5000 + b"]" * 5000 + b"}\n"
    + data(EVENTS[2:]),
}
UNWANTED = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
