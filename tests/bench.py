"""Measures chat beside a naive server, and the terminal client while a room is loud.

    ./build.sh bench                     everything, three to five minutes
    ./build.sh bench --quick             everything once and shorter, about half a minute
    ./build.sh bench --only flood,start  the cells with these names or beginnings of names
    ./build.sh bench --help              their names, and the other options

How to read the figures:
    * Only ratios within one run mean something. The columns of a table are measured in turn, a fresh server
      each time; the medians of --runs are shown. A difference of less than 20 % is none.
    * CPU us per delivery is the figure to trust: user and system time of the server, all threads, for each
      message that arrived whole at one receiver. On loopback the sender also pays for the receiver's TCP.
    * This process makes the load. Where its CPU share is near 1, it and not the server is the limit of
      deliveries per second, and where both shares add up to 1 they had to share a processor.
    * flood-N/S: N members, of whom S talk: 100 bytes a message, one send each, at most 64 of them on their
      way (S = 1) or 4 of each talker. Bigger batches are cheaper, so this window is part of the figure.
    * "wrong" counts lost, doubled, reordered and torn messages at all members, and the members to whom
      other bytes came than to the rest. If it is not 0 for chat, the exit code is 1.
    * The naive server is what tutorials show: a thread per client, and sendall to everyone under one lock.
      It leaves it to the system to gather small packets (with TCP_NODELAY its floods cost twice as much),
      and it stops for everyone when one member stops reading: what is "wrong" there did not arrive.
    * Typing: a key's echo is the time from when it was due to be typed until the program has drawn it.
      Each key is a letter that occurs nowhere else in the output, so it is drawn when its bytes come out.
      "wrong" counts lines neither shown nor announced as skipped, lines shown twice, keys that the terminal
      itself showed amid what was printed, a key that never appeared and, where pyte is installed, a screen
      whose last rows are not the whole input line and the bar below it.
    * read-million: the transcript of a million events beside json.loads on each line of the same file.
      open-N: the whole index of N events, the slowest of a hundred jumps in it, and the memory of that process.
      play-N: on a terminal, until the first line is on it, and until one at a time typed after g: at once, while
      the index is still being made, and when it is.

CPU and memory come from /proc, so from Linux only; elsewhere these figures are "-".
"""
import argparse
import collections
import contextlib
import functools
import itertools
import json
import os
import platform
import random
import re
import selectors
import shlex
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

try:
    import fcntl
    import pty
    import resource
    import struct
    import termios
except ImportError:  # Windows
    pty = resource = None
try:
    import pyte
except ImportError:
    pyte = None
try:
    import browser
except ImportError:  # without pytest
    browser = None

TOP = Path(__file__).resolve().parent.parent
sys.path.append(str(TOP))  # for chat, of which the private rooms' load needs a few functions
KEYS = "абвгдежзийклмнопрстуфхцчшщъыьэюяαβγδεζηθικλμνξπρσ"  # no two alike, and none in what is said
READ_BYTES = 1 << 16
QUIET_SECONDS = 2.0  # without any delivery: nothing more will come
CROWD_SECONDS = 150.0  # for everyone to be in, or gone
START_SECONDS = 20.0
WELCOME, START = b'"re":"welcome"', b'"text":"start"}\n'
TALK = re.compile(rb'\{"ev":"say"[^{}\n]*"who":"m(\d+)","text":"(\1 (\d+) x*)"[^{}"\n]*\}')
clock = time.perf_counter


class Failure(Exception):
    """Something that could not be measured, and why."""


def naive(port):
    """Serve a room as tutorials do: a thread per client, sendall to everyone under one lock."""
    lock, members, numbers = threading.Lock(), {}, itertools.count(1)

    def tell_all(word, name, **more):
        with lock:
            event = {"ev": word, "n": next(numbers), "t": round(time.monotonic(), 3), "who": name, **more}
            line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
            for other, sock in list(members.items()):
                try:
                    sock.sendall(line)
                except OSError:
                    del members[other]

    def attend(sock):
        name = None
        with contextlib.suppress(OSError), sock, sock.makefile("rb") as lines:
            for request in map(json.loads, lines):
                if request["do"] == "hello":
                    name = request["name"]
                    with lock:
                        sock.sendall(b'{"re":"welcome"}\n')
                        members[name] = sock
                    tell_all("join", name)
                elif request["do"] == "say":
                    tell_all("say", name, text=request["text"])
        with lock:
            members.pop(name, None)
        if name:
            tell_all("leave", name)

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(1024)  # tutorials have 5; a storm would then measure how long the system waits
        while True:
            threading.Thread(target=attend, args=(listener.accept()[0],), daemon=True).start()


# === processes ====================================================================================


def raise_limits():
    """Let this process have as many sockets as it may."""
    if resource:
        with contextlib.suppress(OSError, ValueError):
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cpu_seconds(pid):
    """The CPU time that a process has used; None where the system does not tell."""
    # The threads' own figures are exact but miss threads that have ended; the process's has those, in
    # steps of a hundredth of a second. Neither is ever too high.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()
    except OSError:
        return None
    threads = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            threads += int(path.read_text().split()[0])
    return max(threads / 1e9, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))


def memory(pid, field="VmRSS"):
    """A process's memory in KiB, now or (VmHWM) at most so far; None where the system does not tell."""
    with contextlib.suppress(OSError):
        return int(re.search(rf"{field}:\s*(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1))
    return None


def per(after, before, parts):
    """How much of a difference falls to each part; None where the system does not tell."""
    return None if after is None or not parts else (after - before) / parts


@contextlib.contextmanager
def running(command, seconds=600.0, **options):
    """A process that is gone afterwards, whatever happens, and does not live longer than this."""
    process = subprocess.Popen(command, **options)
    limit = threading.Timer(seconds, process.kill)
    limit.daemon = True
    limit.start()
    try:
        yield process
    finally:
        limit.cancel()
        process.kill()
        process.wait()


@contextlib.contextmanager
def serving(setup, variant):
    """A server that accepts: its process id and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [word.replace("{port}", str(port)) for word in setup.servers[variant]]
    with open(setup.console, "wb") as console, running(command, stdin=subprocess.DEVNULL, stdout=console,
                                                       env=setup.environment()) as process:
        until, accepts = clock() + START_SECONDS, False
        while not accepts:
            if clock() > until or process.poll() is not None:
                raise Failure("the server does not accept")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
                accepts = True
            time.sleep(0 if accepts else 0.001)
        yield process.pid, port


def joined(setup, port, home=None, at=""):
    """A `join` in a terminal of its own whose prompt is there: process id, terminal, and what it printed."""
    return on_terminal(setup, ["join", f"{at}127.0.0.1:{port}", "--name", "typist"], b"typist>", home)


@contextlib.contextmanager
def on_terminal(setup, words, awaited, home=None):
    """chat in a terminal of its own that has shown this: process id, terminal, and what it printed."""
    if not pty:
        raise Failure("this system has no pty")
    columns, rows = setup.screen
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    os.set_blocking(master, False)
    try:
        with running(setup.chat + words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                     env=dict(setup.environment(home), TERM="xterm-256color")) as process:
            yield process.pid, master, read_until(master, awaited, process)
    finally:
        os.close(master)
        os.close(slave)


def read_until(master, awaited, process=None):
    """What a terminal is sent, up to where this stands in it."""
    said, until = b"", clock() + START_SECONDS
    while awaited not in said:
        if clock() > until or process and process.poll() is not None:
            raise Failure(f"{awaited} did not appear: " + said.decode(errors="replace")[-300:])
        time.sleep(0.001)
        said += read_terminal(master, READ_BYTES)
    return said


def read_terminal(master, most):
    """What has come out of a terminal by now, at most so many bytes."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while len(data) < most:
            data += os.read(master, most - len(data))
    return data


# === load =========================================================================================
# All members of a run are sockets of one selector. They must all receive the same bytes, so whoever is
# the first to receive a stretch writes it to the log, and all others are compared with it: this checks
# every delivery for the price of comparing memory. Who receives something else is kept apart from there
# on, and counted line by line afterwards.


class Guest:
    """One member."""

    def __init__(self, sock, number, take):
        self.sock, self.number = sock, number
        self.take = take  # what is done with the bytes that arrive; None: nobody reads them
        self.marker, self.rest = WELCOME, b""  # what it waits for, and what may be the beginning of that
        self.place = 0  # in the log, up to which it has everything
        self.other = None  # what came from where it was no longer as in the log
        self.sent = self.arrived = 0  # of its own messages
        self.unsent = b""
        self.witness = None  # the member at whom its messages have to arrive before it says more
        self.ends = collections.deque()  # where in the log those end that have not


class Sealed:
    """A member's socket in a private room: after the handshake like a plain one, whose recv takes all there is."""

    def __init__(self, sock, context):
        self.sock = context.wrap_socket(sock, do_handshake_on_connect=False)
        self.fileno, self.close = self.sock.fileno, self.sock.close

    def shake_hands(self):
        """Go on with the handshake as far as one can without waiting; whether it is over."""
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def send(self, data):
        """Send what can be sent without waiting."""
        try:
            return self.sock.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def recv(self, size):
        """All that has come; nothing at the end."""
        data = bytearray()
        while True:
            try:
                piece = self.sock.recv(size)
            except ssl.SSLWantReadError:
                if not data:
                    raise BlockingIOError from None
                return bytes(data)
            data += piece
            if not piece:
                return bytes(data)


class Invitation:
    """What lets into the private room of a server that prints its code; it is stretched and checked only once."""

    def __init__(self, console, port):
        import chat

        until, match = clock() + START_SECONDS, None
        while not match:
            match = re.search(r"join ([A-Z0-9-]{20})@", Path(console).read_text(encoding="utf-8"))
            if clock() > until:
                raise Failure("the server does not tell its code")
            time.sleep(0.001)
        self.text = match.group(1)
        with socket.create_connection(("127.0.0.1", port), START_SECONDS) as sock:
            _, self.proof = chat.seal(sock, chat.Code.read(self.text), clock() + START_SECONDS)
        self.context = chat.open_context("CLIENT")


class Load:
    """The members of one run, and what they have received since the barrier."""

    def __init__(self, port, size=100, invitation=None):
        self.port, self.size, self.invitation = port, size, invitation
        self.selector = selectors.DefaultSelector()
        self.guests, self.outside, self.behind = [], 0, 0  # behind the barrier
        self.log, self.indexed, self.messages = bytearray(), 0, 0
        self.received = 0  # bytes, by all who read
        self.differing = False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for guest in self.guests:
            guest.sock.close()
        self.selector.close()

    def enter(self, count):
        """Let so many members come, as fast as they are let in."""
        if count > 500 and isinstance(self.selector, selectors.SelectSelector):
            raise Failure("this system's select takes 512 sockets")
        until, coming = clock() + CROWD_SECONDS, count
        while coming or self.outside:
            for _ in range(min(coming, 20, 500 - self.outside)):  # more would not fit the listen queue
                self.connect()
                coming -= 1
            self.turn(0 if coming and self.outside < 500 else 0.05)
            if clock() > until:
                raise Failure(f"{self.outside} members were not let in")

    def connect(self):
        """One more member, who says hello."""
        sock = socket.create_connection(("127.0.0.1", self.port), START_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        guest = Guest(sock, len(self.guests), self.take_marker)
        take = functools.partial(self.read, guest)
        if self.invitation:
            guest.sock, take = Sealed(sock, self.invitation.context), functools.partial(self.shake_hands, guest)
        else:
            sock.send(b'{"do":"hello","name":"m%d"}\n' % guest.number)
        self.guests.append(guest)
        self.outside += 1
        self.behind += 1
        self.selector.register(guest.sock, selectors.EVENT_READ, take)
        if self.invitation:
            self.shake_hands(guest)

    def shake_hands(self, guest):
        """Go on with a handshake, and say hello behind it."""
        if guest.sock.shake_hands():
            guest.sock.send(b'{"do":"hello","name":"m%d","proof":"%s"}\n' % (
                guest.number, self.invitation.proof.encode()))
            self.selector.modify(guest.sock, selectors.EVENT_READ, functools.partial(self.read, guest))

    def barrier(self):
        """Have everyone read up to one and the same line; the log begins after it."""
        until = clock() + CROWD_SECONDS
        self.guests[0].sock.send(b'{"do":"say","text":"start"}\n')
        while self.behind:
            self.turn(0.05)
            if clock() > until:
                raise Failure(f"{self.behind} members were not told what was said")

    def leave(self, guest, close=True):
        """Let a member go, or only stop reading what it is sent."""
        self.selector.unregister(guest.sock)
        guest.take = None
        if close:
            guest.sock.close()

    def turn(self, seconds):
        """Read what has arrived; wait so long for something."""
        for key, _ in self.selector.select(seconds):
            key.data()

    def read(self, guest):
        """Take what has arrived for one member."""
        try:
            data = guest.sock.recv(READ_BYTES)
        except BlockingIOError:  # no whole record yet
            return
        except OSError:
            data = b""
        if data:
            guest.take(guest, data)
        else:
            self.leave(guest, close=False)

    def take_marker(self, guest, data):
        before, found, after = (guest.rest + data).partition(guest.marker)
        if not found:
            guest.rest = before[-len(guest.marker):]
        elif guest.marker is WELCOME:
            guest.marker, guest.rest, self.outside = START, b"", self.outside - 1
            self.take_marker(guest, after)
        else:
            guest.take, self.behind = self.take_log, self.behind - 1
            self.take_log(guest, after)

    def take_log(self, guest, data):
        place, log = guest.place, self.log
        if not log.startswith(data, place):
            known = len(log) - place
            if known >= len(data) or not log.startswith(data[:known], place):
                guest.take, guest.other, self.differing = self.take_other, data, True
                return
            log += data[known:]
        guest.place = place + len(data)
        self.received += len(data)

    def take_other(self, guest, data):
        guest.other += data

    def index(self):
        """Note where the messages end that are new in the log."""
        if self.indexed == len(self.log):
            return
        for match in re.finditer(rb'"text":"(\d+) \d+ x*"[^\n]*\n', self.log[self.indexed:]):
            self.guests[int(match.group(1))].ends.append(self.indexed + match.end())
            self.messages += 1
        self.indexed = self.log.rfind(b"\n") + 1

    def in_step(self, sent):
        """Whether all who read have everything that was said, so many messages."""
        self.index()
        readers = sum(guest.take is not None for guest in self.guests)
        return self.messages >= sent and self.received == readers * len(self.log)

    def say(self, guest):
        """Send one more message; returns whether the socket took it."""
        line = guest.unsent
        if not line:
            text = (b"%d %d " % (guest.number, guest.sent)).ljust(self.size, b"x")
            line = b'{"do":"say","text":"%s"}\n' % text
            guest.sent += 1
        sent = 0
        with contextlib.suppress(BlockingIOError):
            sent = guest.sock.send(line)
        guest.unsent = line[sent:]
        return not guest.unsent

    def fill(self, guest, window):
        """Send as many messages as this member's window allows."""
        ends, place = guest.ends, guest.witness.place
        while ends and ends[0] <= place:
            ends.popleft()
            guest.arrived += 1
        while (guest.unsent or guest.sent - guest.arrived < window) and self.say(guest):
            pass


def judge(stream, size):
    """The messages that one member received, and how many were doubled, reordered or torn."""
    seen, newest, faults = set(), {}, 0
    for line in stream.split(b"\n"):
        match = TALK.fullmatch(line)
        if match and len(match.group(2)) == size:
            who, number = int(match.group(1)), int(match.group(3))
            faults += (who, number) in seen or number < newest.get(who, 0)
            seen.add((who, number))
            newest[who] = number
        elif line and not re.fullmatch(rb'\{"ev":"(join|leave|notice)"[^{}]*\}', line):
            faults += 1
    return len(seen), faults


def count(load, readers):
    """What these members received in all: deliveries, and everything that was wrong."""
    sent, judged, deliveries, wrong = sum(guest.sent for guest in readers), {}, 0, 0
    for guest in readers:
        key = guest.place if guest.other is None else guest
        if key not in judged:
            judged[key] = judge(bytes(load.log[:guest.place]) + (guest.other or b""), load.size)
        messages, faults = judged[key]
        deliveries += messages
        wrong += sent - messages + faults + (guest.other is not None)
    return deliveries, wrong


# === cells: servers ===============================================================================
# A cell measures one variant once and returns its figures.


def invitation(setup, variant, port):
    """What lets into this server; None where anybody may come in."""
    return Invitation(setup.console, port) if variant == "private" else None


def flood(setup, variant, members, senders, size=100, stalled=False):
    """Members who talk as fast as their windows allow."""
    with serving(setup, variant) as (pid, port), Load(port, size, invitation(setup, variant, port)) as load:
        load.enter(members)
        load.barrier()
        readers = load.guests[:members - stalled]
        if stalled:
            load.leave(load.guests[-1], close=False)
        for guest in readers[:senders]:
            guest.witness = readers[guest.number + 1 - members] if senders > 1 else readers[-1]
        high, cpu, own, start = memory(pid, "VmHWM"), cpu_seconds(pid), time.process_time(), clock()
        end = talk(load, readers[:senders], 64 if senders == 1 else 4, setup.flood_seconds)
        used, own, seconds = cpu_seconds(pid), time.process_time() - own, (end or clock()) - start
        load.turn(0.1)  # whatever comes now comes twice
        deliveries, wrong = count(load, readers)
        figures = {"CPU us per delivery": per(used, cpu, deliveries / 1e6),
                   "deliveries per second": deliveries / seconds, "load's CPU share": own / seconds}
        if size > 100:
            figures["MiB more memory"] = per(memory(pid, "VmHWM"), high, 1024)
            figures["stops for everyone"] = end is None
        return {**figures, "wrong": wrong}


def talk(load, senders, window, seconds):
    """Have them talk for so long, and wait until all has arrived; when that was, None if it never was."""
    until = clock() + seconds
    while clock() < until and not load.differing:
        for guest in senders:
            load.fill(guest, window)
        load.turn(0.001 if any(guest.unsent for guest in senders) else 0.05)
        load.index()
    before, last = load.received, clock()
    while clock() < last + QUIET_SECONDS:
        blocked = [guest for guest in senders if guest.unsent and not load.say(guest)]
        if not blocked and load.in_step(sum(guest.sent for guest in senders)):
            return clock()
        load.turn(0.001 if blocked else 0.05)
        if load.received != before:
            before, last = load.received, clock()
    return None


def paced(setup, variant, members, rate):
    """One member who says something now and then, and when the last of all has it."""
    with serving(setup, variant) as (pid, port), Load(port) as load:
        load.enter(members)
        load.barrier()
        guest, waiting, took = load.guests[0], collections.deque(), []
        messages, cpu, start = int(setup.paced_seconds * rate), cpu_seconds(pid), clock()
        while len(took) < messages and clock() < start + setup.paced_seconds + QUIET_SECONDS:
            due = start + guest.sent / rate if guest.sent < messages else float("inf")
            if clock() >= due:
                waiting.append(clock())
                load.say(guest)
                continue
            load.turn(max(0, min(0.05, due - clock())))
            load.index()
            last = min(member.place for member in load.guests)
            while guest.ends and guest.ends[0] <= last:
                guest.ends.popleft()
                took.append(clock() - waiting.popleft())
        used, (deliveries, wrong) = cpu_seconds(pid), count(load, load.guests)
        return {"CPU us per delivery": per(used, cpu, deliveries / 1e6),
                **percentiles("ms until the last has it", took, 50, 99), "wrong": wrong}


def percentiles(name, seconds, *percents):
    """The values that so many percent are not above, in ms."""
    ordered = sorted(seconds)
    return {f"{name}, p{percent}" if percent < 100 else f"{name}, max":
            1e3 * ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] if ordered else None
            for percent in percents}


def crowd(setup, variant, members):
    """Everybody comes at once, is there for a moment, and goes at once."""
    with serving(setup, variant) as (pid, port), Load(port, invitation=invitation(setup, variant, port)) as load:
        load.enter(1)
        before, start = memory(pid), clock()
        load.enter(members)
        load.barrier()
        came, size, start = clock() - start, per(memory(pid), before, members), clock()
        for guest in load.guests[1:]:
            load.leave(guest)
        until, gone = start + CROWD_SECONDS, 0
        while gone < members:
            load.turn(0.05)
            gone = load.log.count(b'{"ev":"leave"')
            if clock() > until:
                raise Failure(f"only {gone} of {members} were said to leave")
        return {"KiB per client": size, "s until all are in and told of each": came,
                "s until one left is told that all are gone": clock() - start}


# === cells: the terminal ==========================================================================


def starting(setup, variant, what):
    """How many ms a start takes: until the server accepts, the prompt is on the screen, or all is over."""
    with contextlib.ExitStack() as stack:
        at = ""
        if what.startswith("join") and variant != "pass":
            _, port = stack.enter_context(serving(setup, variant))
            at = Invitation(setup.console, port).text + "@" if variant == "private" else ""
        home = stack.enter_context(tempfile.TemporaryDirectory()) if what == "join, the first ever" else None
        start = clock()
        if variant == "pass" or what == "--version":
            command = [sys.executable, "-c", "pass"] if variant == "pass" else setup.chat + [what]
            process = stack.enter_context(running(command, START_SECONDS, stdout=subprocess.DEVNULL,
                                                  env=setup.environment()))
            if process.wait():
                raise Failure(f"exit code {process.returncode}")
        elif what == "serve":
            stack.enter_context(serving(setup, "chat"))
        else:
            stack.enter_context(joined(setup, port, home, at))
        return {f"ms, {what}": (clock() - start) * 1e3}


def typing(setup, variant, rate):
    """Type into `join` while so many lines per second arrive."""
    with serving(setup, "chat") as (_, port), Load(port) as load:
        load.enter(1)
        with joined(setup, port) as (pid, master, said):
            cpu, guest, typist = cpu_seconds(pid), load.guests[0], Typist(setup, master, said)
            if not setup.drain:
                load.selector.register(master, selectors.EVENT_READ, lambda: None)  # only wakes
            start = clock()
            while clock() < start + setup.typing_seconds:
                while guest.sent < (clock() - start) * rate and load.say(guest):
                    pass
                load.turn(0.001)
                typist.tick(True)
            last, size = clock(), 0
            while clock() < min(last + 1.0, start + 30):  # until nothing more is printed
                load.turn(0.001)
                typist.tick(False)
                if guest.unsent and load.say(guest) or typist.awaited or len(typist.output) > size:
                    last, size = clock(), len(typist.output)
            used = cpu_seconds(pid)
    output = bytes(typist.output)
    shown = collections.Counter(re.findall(rb" 0 (\d+) x{20}", output))
    skipped = sum(int(number.replace(b",", b"")) for number in re.findall(rb"([\d,]+) lines skipped", output))
    wrong = abs(guest.sent - len(shown) - skipped) + sum(shown.values()) - len(shown)
    wrong += typist.strays + bool(typist.awaited) + (not is_whole(setup.screen, output, typist.typed))
    return {**percentiles("ms echo", typist.echoes, 50, 99, 100), "client CPU s": per(used, cpu, 1),
            "lines shown": len(shown), "lines announced as skipped": skipped, "wrong": wrong}


class Typist:
    """Types keys into a terminal, ten a second but none before the last is seen, and reads it meanwhile."""

    def __init__(self, setup, master, output):
        self.master, self.output, self.drain = master, bytearray(output), setup.drain
        self.keys, self.typed, self.awaited = iter(KEYS), "", b""
        self.pause, self.echoes, self.drained = random.Random(1), [], 0
        self.strays = 0  # keys that the terminal itself showed, wherever its cursor was
        self.start = self.due = clock()

    def tick(self, more):
        """Read what has come, and type the next key if there is one to come and it is time."""
        # It reads a little at a time, or keys would only ever be typed while the program prints nothing.
        most = int((clock() - self.start) * self.drain) - self.drained if self.drain else READ_BYTES
        data, before = read_terminal(self.master, most), max(0, len(self.output) - 1)
        self.drained += len(data)
        self.output += data
        if self.awaited and self.output.find(self.awaited, before) >= 0:
            self.echoes.append(clock() - self.due)
            # Not ten a second exactly, which would be in step with what is printed.
            self.due = max(clock(), self.due + self.pause.uniform(0.05, 0.15))
            self.awaited = b""
        elif more and not self.awaited and clock() >= self.due:
            key = next(self.keys, "")
            self.typed, self.awaited = self.typed + key, key.encode()
            self.strays += bool(key and termios.tcgetattr(self.master)[3] & termios.ECHO)
            os.write(self.master, self.awaited)


def is_whole(size, output, typed):
    """Whether the row above the bar shows the prompt and all that was typed."""
    if not pyte:
        return True
    screen = pyte.Screen(*size)
    pyte.Stream(screen).feed(output[-50000:].decode(errors="ignore"))
    rows = [row.rstrip() for row in screen.display if row.strip()]
    return "".join(rows[:-1]).endswith("typist> " + typed)


# === cells: recordings ============================================================================


def recording(setup, events, size=40):
    """A session file of so many events, one each tenth of a second, with texts of this size."""
    path = Path(setup.home) / f"{events}-{size}.jsonl"
    if not path.exists():
        with open(path, "w", encoding="utf-8") as file:
            file.write('{"ev":"session","n":0,"t":0.0,"v":1,"id":"bench","start":"2026-11-20T12:00:00.000+03:00",'
                       '"room":"bench"}\n')
            file.writelines('{"ev":"join","n":%d,"t":0.0,"who":"m%d","from":0}\n' % (n, n) for n in range(1, 6))
            text = "x" * size
            file.writelines('{"ev":"say","n":%d,"t":%.1f,"who":"m%d","text":"line %d %s"}\n'
                            % (n, n / 10, n % 5 + 1, n, text) for n in range(6, events))
    return str(path)


def reading(setup, variant, events):
    """Read a whole recording: as a transcript, or only as JSON."""
    path = recording(setup, events)
    parse = f"import json\nfor line in open({path!r}, 'rb'): json.loads(line)"
    command = ([sys.executable, "-c", parse] if variant == "json.loads" else
               setup.chat + ["replay", path, "--instant", "--txt"])
    if not hasattr(os, "wait4"):
        raise Failure("this system does not tell the CPU time of one program")
    peak, ended = 0, 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=setup.environment()) as process:
        while not ended:  # what the system tells at the end begins with the memory of this process
            peak = max(peak, memory(process.pid, "VmHWM") or 0)
            time.sleep(0.02)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = status
    if status:
        raise Failure(f"exit status {status}")
    return {"CPU s": usage.ru_utime + usage.ru_stime, "peak MiB": peak / 1024 or None}


# Run with a recording: how long its whole index takes, the longest of many jumps in it, and the memory of both.
OPENING = """
import json, resource, sys, time
import chat
started = time.perf_counter()
with open(sys.argv[1], "rb") as file:
    tape = chat.Tape(file)
    tape.grow_whole()
    opened, jumps = time.perf_counter() - started, []
    for part in range(100):
        started = time.perf_counter()
        list(tape.scenes(tape.find(tape.lines.moments[-1] * (part * 37 % 100) / 100)))
        jumps.append(time.perf_counter() - started)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"s to open": opened, "ms to jump": max(jumps) * 1e3, "peak MiB": peak}))
"""


def opening(setup, variant, events):
    """Make the index of a whole recording, in a process of its own, and jump about in it."""
    command = [sys.executable, "-c", OPENING, recording(setup, events)]
    done = subprocess.run(command, env=setup.environment(), cwd=TOP, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.decode())


def entering(setup, variant, events, size):
    """Play a long recording on a terminal: until its first line is there, and until one at its other end is."""
    path, start = recording(setup, events, size), clock()
    with on_terminal(setup, ["replay", path], b"m1") as (_, master, said):
        first, delays = clock() - start, []
        for part in (0.99, 0.1, 0.9, 0.5, 0.3):
            n = int(events * part)
            os.write(master, b"g%d\r" % (n // 10 + 1))
            start = clock()
            read_until(master, b"line %d x" % (n // 10 * 10 + 10))
            delays.append(clock() - start)
    return {"GB": os.path.getsize(path) / 1e9, "ms to the first line": first * 1e3,
            "ms to a time before all is known": delays[0] * 1e3, "ms to any time then": max(delays[1:]) * 1e3}


def paging(setup, variant, events):
    """Write a long recording as a page, and use that in a browser."""
    path, page = recording(setup, events), os.path.join(setup.home, "page.html")
    start = clock()
    with running(setup.chat + ["replay", path, "--html", page], env=setup.environment()) as process:
        if process.wait():
            raise Failure(f"exit code {process.returncode}")
    figures = {"s to write it": clock() - start}
    if browser and browser.CHROMIUM:
        with tempfile.TemporaryDirectory() as folder, browser.Browser(folder) as chromium:
            figures.update(browser.measure_page(chromium, Path(page)))
    return figures


# === the tables ===================================================================================

BIG = "crowd-5000"  # takes minutes, so only once, and only with --big
GROUPS = {  # the columns of each table
    "servers": ("chat", "naive"), "recording": ("--log", "without"), "start-up": ("chat", "pass"),
    "typing": ("chat",), "reading": ("chat", "json.loads"), "playing": ("chat",),
    "doors": ("private", "open"), "before": ("chat", "before")}
Cell = collections.namedtuple("Cell", "name group run options")
CELLS = [
    Cell("flood-10/1", "servers", flood, {"members": 10, "senders": 1}),
    Cell("flood-100/1", "servers", flood, {"members": 100, "senders": 1}),
    Cell("flood-100/100", "servers", flood, {"members": 100, "senders": 100}),
    Cell("flood-1000/1", "servers", flood, {"members": 1000, "senders": 1}),
    Cell("paced-100", "servers", paced, {"members": 100, "rate": 50}),
    Cell("crowd-1000", "servers", crowd, {"members": 1000}),
    Cell(BIG, "servers", crowd, {"members": 5000}),
    Cell("reading-50", "servers", flood, {"members": 50, "senders": 1, "size": 2000}),
    Cell("stalled-50", "servers", flood, {"members": 50, "senders": 1, "size": 2000, "stalled": True}),
    Cell("recording-100/1", "recording", flood, {"members": 100, "senders": 1}),
    Cell("private-100/1", "doors", flood, {"members": 100, "senders": 1}),
    Cell("private-100/100", "doors", flood, {"members": 100, "senders": 100}),
    Cell("private-crowd-500", "doors", crowd, {"members": 500}),
    Cell("private-join", "doors", starting, {"what": "join"}),
    Cell("before-100/1", "before", flood, {"members": 100, "senders": 1}),
    Cell("before-100/100", "before", flood, {"members": 100, "senders": 100}),
    Cell("before-crowd-1000", "before", crowd, {"members": 1000}),
    Cell("start-version", "start-up", starting, {"what": "--version"}),
    Cell("start-serve", "start-up", starting, {"what": "serve"}),
    Cell("start-join", "start-up", starting, {"what": "join"}),
    Cell("start-cold", "start-up", starting, {"what": "join, the first ever"}),
    Cell("typing-20", "typing", typing, {"rate": 20}),
    Cell("typing-2000", "typing", typing, {"rate": 2000}),
    Cell("typing-5000", "typing", typing, {"rate": 5000}),
    Cell("typing-20000", "typing", typing, {"rate": 20000}),
    Cell("read-million", "reading", reading, {"events": 1_000_000}),
    Cell("open-100000", "playing", opening, {"events": 100_000}),
    Cell("open-million", "playing", opening, {"events": 1_000_000}),
    Cell("play-100000", "playing", entering, {"events": 100_000, "size": 40}),
    Cell("play-million", "playing", entering, {"events": 1_000_000, "size": 40}),
    Cell("play-gigabyte", "playing", entering, {"events": 1_000_000, "size": 1000}),
    Cell("page-100000", "playing", paging, {"events": 100_000}),
]


class Setup:
    """What is measured, and how long."""

    def __init__(self, options, home):
        self.home, self.screen, self.drain = home, options.screen, options.drain
        self.chat = [sys.executable, str(newest_chat())]
        served = shlex.split(options.server or "") or self.chat + ["serve", "--port", "{port}", "--rate", "0"]
        recorded = served + ["--log", os.path.join(home, "{port}.jsonl")]
        before = [sys.executable, options.before or "", "serve", "--port", "{port}", "--rate", "0"]
        self.servers = {"chat": served, "without": served, "--log": recorded, "open": served,
                        "private": served + ["--lan"], "before": before,
                        "naive": [sys.executable, __file__, "naive", "{port}"]}
        self.console = os.path.join(home, "console.txt")  # what the server printed
        lengths = (0.6, 1.5, 2.0) if options.quick else (1.2, 3.0, 4.0)
        self.flood_seconds, self.paced_seconds, self.typing_seconds = lengths

    def environment(self, home=None):
        """For all that is started: a home that is not the user's, so that nothing stays behind there."""
        home = home or self.home
        return dict(os.environ, HOME=home, XDG_CACHE_HOME=os.path.join(home, "cache"), LOCALAPPDATA=home,
                    XDG_STATE_HOME=os.path.join(home, "state"), PYTHONIOENCODING="utf-8")


def newest_chat():
    """chat.pyz if it is made from this chat.py, else chat.py."""
    packed, source = TOP / "chat.pyz", TOP / "chat.py"
    with contextlib.suppress(OSError, KeyError, zipfile.BadZipFile), zipfile.ZipFile(packed) as archive:
        if archive.read("chat.py") == source.read_bytes():
            return packed
    return source


def measure(setup, cells, runs, quick):
    """Measure everything in turn; yields a row for each."""
    for run in range(max(runs, 0 if quick else 7)):
        for cell in cells:
            enough = 1 if cell.name == BIG else 7 if cell.group == "start-up" and not quick else runs
            for variant in GROUPS[cell.group][::1 if run % 2 else -1] if run < enough else ():
                print(f"\r{cell.name} {variant} {run + 1}\033[K", end="\r", file=sys.stderr)
                row = {"cell": cell.name, "variant": variant, "run": run, "failure": None, "figures": {}}
                try:
                    row["figures"] = cell.run(setup, variant, **cell.options)
                except (Failure, OSError) as failure:
                    row["failure"] = str(failure)
                yield row
    print("\033[K", end="", file=sys.stderr)


def table(group, cells, rows):
    """The lines of one group's table."""
    variants = GROUPS[group]
    heads = [group, "figure", *variants] + ["/".join(variants)] * (len(variants) == 2)
    yield f"\n| {' | '.join(heads)} |\n|---|---{'|--:' * (len(heads) - 2)}|"
    for cell in cells:
        mine = [row for row in rows if row["cell"] == cell.name]
        for figure in dict.fromkeys(figure for row in mine for figure in row["figures"]):
            values = [middle(figure, [row["figures"].get(figure) for row in mine if row["variant"] == name])
                      for name in variants]
            texts = [cell.name, figure, *map(for_people, values)]
            if len(values) == 2:
                has_ratio = figure not in ("wrong", "stops for everyone", "load's CPU share") and all(values)
                texts.append(for_people(values[0] / values[1]) if has_ratio else "")
            yield f"| {' | '.join(texts)} |"
        for row in mine:
            if row["failure"]:
                yield f"| {cell.name} | {row['variant']} could not be measured: {row['failure']} |"


def middle(figure, values):
    """The median, of faults the worst; None if nothing is known."""
    known = [value for value in values if value is not None]
    return (max if figure == "wrong" else statistics.median_low)(known) if known else None


def for_people(value):
    """A figure, to three digits."""
    if value is None or isinstance(value, bool):
        return {None: "-", False: "no", True: "yes"}[value]
    for divisor, unit in ((1e6, "M"), (1e3, "k")):
        if value >= 10 * divisor or value >= 1e6:
            return f"{value / divisor:.3g}{unit}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def read_options():
    """The command line."""
    names = [cell.name for cell in CELLS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     epilog="cells: " + " ".join(names))
    parser.add_argument("--only", type=lambda names: tuple(names.split(",")), default=("",),
                        metavar="NAME,...", help="these cells, or those that begin so")
    parser.add_argument("--runs", type=int, metavar="N", help="default 3; start-up 7")
    parser.add_argument("--quick", action="store_true", help="one short run of everything")
    parser.add_argument("--big", action="store_true", help="also 5,000 clients")
    parser.add_argument("--json", metavar="FILE", help="write the raw rows there, a JSON object each")
    parser.add_argument("--server", metavar="COMMAND",
                        help="serve with this instead of chat; {port} is its port")
    parser.add_argument("--before", metavar="PYZ", help="another chat.pyz to measure the open room beside")
    parser.add_argument("--screen", type=lambda size: tuple(map(int, size.split("x"))), default=(80, 24),
                        metavar="WxH", help="the terminal for typing (default 80x24; try 200x50)")
    parser.add_argument("--drain", type=float, default=0, metavar="BYTES",
                        help="let that terminal take no more than so many bytes per second (try 200000)")
    options = parser.parse_args()
    options.runs = options.runs or (1 if options.quick else 3)
    usual = [cell for cell in CELLS if (options.big or cell.name != BIG) and (options.before or cell.group != "before")]
    wanted = []
    for name in options.only:
        wanted += [cell for cell in CELLS if cell.name == name] or [
            cell for cell in usual if cell.name.startswith(name)]
    options.cells = [cell for cell in CELLS if cell in wanted]
    if not options.cells:
        parser.error("there are no such cells; there are " + " ".join(names))
    return options


def main():
    """Measure, print, and say by the exit code whether anything about chat was wrong."""
    options, rows = read_options(), []
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # ends what was started
    with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
        setup = Setup(options, home)
        file = options.json and stack.enter_context(open(options.json, "w", encoding="utf-8"))
        machine = (f"{os.path.basename(setup.chat[1])} on Python {platform.python_version()}, "
                   f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs")
        if hasattr(os, "getloadavg"):
            machine += f", load average {os.getloadavg()[0]:.1f} before"
        for row in measure(setup, options.cells, options.runs, options.quick):
            rows.append(row)
            if file:
                print(json.dumps({"machine": machine, **row}), file=file, flush=True)
    print(machine)
    for group in GROUPS:
        cells = [cell for cell in options.cells if cell.group == group]
        if cells:
            print(*table(group, cells, rows), sep="\n")
    ours = [row for row in rows if row["variant"] != "naive"]
    return int(any(row["failure"] or row["figures"].get("wrong") for row in ours))


if __name__ == "__main__":
    raise_limits()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(naive(int(sys.argv[2])) if sys.argv[1:2] == ["naive"] else main())
    sys.exit(130)
