"""Measures chat beside a naive server, and the terminal client while a room is loud.

    ./build.sh bench                     everything, about six minutes
    ./build.sh bench --quick             everything once and shorter, about a minute
    ./build.sh bench --only flood,start  the cells with these names or beginnings of names
    ./build.sh bench --help              the names, and the other options

How to read the figures:
    * Only ratios within one run mean something. The two columns of a table are measured in turn, a fresh
      server each time, and the medians of --runs are shown; below 20 % of difference there is none.
    * CPU us per delivery is the figure to trust: user and system time of the server, all threads, for each
      message that arrived whole at one receiver. On loopback the sender also pays for the receiver's TCP.
    * The load is made by this process. Where its CPU share is near 1 it is the limit of deliveries per
      second, not the server; the CPU per delivery is right all the same.
    * flood N/S: N members, of whom S talk: 100 bytes a message, one send each, at most 64 of them on their
      way (S = 1) or 4 of each talker. Bigger batches are cheaper, so this window is part of the figure.
    * "wrong" counts lost, doubled, reordered and torn messages of all members, and members that received
      other bytes than the rest. It must be 0; else this program ends with exit code 1.
    * The naive server is what tutorials show: a thread per client, and sendall to everyone under one lock.
    * Typing: a key's echo is the time from writing it into the terminal until the program has drawn it.
      Each key is a letter that occurs nowhere else in the output, so that is when its bytes come out.

CPU and memory come from /proc, so from Linux only; elsewhere these figures are "-".
"""
import argparse
import bisect
import collections
import contextlib
import functools
import json
import os
import platform
import random
import re
import selectors
import shlex
import signal
import socket
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
    import struct
    import termios
except ImportError:  # Windows
    pty = None
try:
    import resource
except ImportError:  # Windows
    resource = None
try:
    import pyte
except ImportError:
    pyte = None

TOP = Path(__file__).resolve().parent.parent
KEYS = "абвгдежзийклмнопрстуфхцчшщъыьэюяαβγδεζηθικλμνξπρσ"  # no two alike, and none in what is said meanwhile
READ_BYTES = 1 << 16
QUIET_SECONDS = 2.0  # without any delivery: nothing more will come
ENTER_SECONDS = 150.0  # for everyone to be in, or gone
clock = time.perf_counter


class Failure(Exception):
    """A cell that could not be measured, and why."""


# === the naive server =============================================================================


def naive(port):
    """Serve a room the way tutorials do: a thread per client, sendall to everyone under one lock."""
    raise_limits()
    lock, members, numbers = threading.Lock(), {}, iter(range(1, 1 << 60))

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
            for line in lines:
                request = json.loads(line)
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
        listener.listen(1024)  # tutorials have 5; then a storm would measure how long the system waits
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=attend, args=(sock,), daemon=True).start()


# === processes ====================================================================================


def raise_limits():
    """Let this process have as many sockets as it may."""
    if resource:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cpu_seconds(pid):
    """The CPU time that a process has used; None where the system does not tell."""
    # The threads' own figures are exact, but miss threads that have ended; the process's has them, in
    # steps of a hundredth of a second. So neither is ever too high.
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


def minus(after, before):
    """The difference, None if there is none to be had."""
    return None if after is None or before is None else after - before


def free_port():
    """A port on which nobody listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command, **options):
    """A process that is there no longer afterwards, whatever happens."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def serving(setup, variant, extra=()):
    """A server that accepts: its process id and port."""
    port = free_port()
    command = [word.replace("{port}", str(port)) for word in setup.servers[variant]] + list(extra)
    with tempfile.TemporaryFile() as errors:
        with running(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                     env=setup.environment()) as process:
            try:
                wait_until_accepts(process, port)
            except Failure as failure:
                errors.seek(0)
                raise Failure(f"{failure}: {errors.read().decode(errors='replace').strip()}") from None
            yield process.pid, port


def wait_until_accepts(process, port):
    """Return as soon as this server takes a connection."""
    until = clock() + 20
    while clock() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
            return
        time.sleep(0.001)
    raise Failure("the server does not accept")


@contextlib.contextmanager
def terminal(command, size, environment):
    """A program in a terminal of its own: the process, and the terminal's end to read and write."""
    if not pty:
        raise Failure("this system has no pty")
    columns, rows = size
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.set_blocking(master, False)
        with running(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                     env=dict(environment, TERM="xterm-256color")) as process:
            os.close(slave)
            slave = None
            yield process, master
    finally:
        os.close(master)
        if slave is not None:
            os.close(slave)


def read_terminal(master, most=1 << 20):
    """What has come out of the program by now, at most so many bytes."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while len(data) < most:
            try:
                more = os.read(master, min(READ_BYTES, most - len(data)))
            except BlockingIOError:
                raise
            except OSError:
                more = b""  # Linux's way to say that the program has ended
            if not more:
                raise Failure("the client ended: " + data[-300:].decode(errors="replace"))
            data += more
    return data


# === load =========================================================================================
# All members of a run are sockets of one selector. They must all receive the same bytes, so whoever is
# the first to receive a stretch writes it to the log, and all others are compared with it. That checks
# every delivery for the price of comparing memory. A member that received something else is kept apart
# from there on, and counted line by line afterwards.


class Guest:
    """One member: its socket, how far in the log it is, and what it has still to send."""

    def __init__(self, sock, number):
        self.sock, self.number = sock, number
        self.take = None  # what is done with the bytes that arrive
        self.rest = b""  # of a line that has not arrived whole
        self.place = 0
        self.other = None  # what came from the first byte on that was not as in the log
        self.sent = self.arrived = 0
        self.unsent = b""
        self.witness = None  # the member whose receiving opens this one's window
        self.ends = collections.deque()  # where this one's messages end in the log


class Load:
    """The members of one run, and what they have received since the barrier."""

    def __init__(self, port, size=100):
        self.port, self.size = port, size
        self.selector = selectors.DefaultSelector()
        self.guests, self.outside, self.behind = [], 0, 0
        self.log, self.indexed, self.messages = bytearray(), 0, 0
        self.received = 0  # bytes, by all
        self.differing = False
        self.seen = collections.Counter()  # by the observer: joins and leaves

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close(self.guests)
        self.selector.close()

    # --- coming and going ---

    def enter(self, count):
        """Let so many members come, as fast as they are let in."""
        if len(self.guests) + count > 500 and isinstance(self.selector, selectors.SelectSelector):
            raise Failure("this system's select takes 512 sockets")
        until, coming = clock() + ENTER_SECONDS, count
        while coming or self.outside:
            for _ in range(min(coming, 20, 500 - self.outside)):  # else the listen queue overflows
                self.connect()
                coming -= 1
            self.turn(0 if coming and self.outside < 500 else 0.05)
            if clock() > until:
                raise Failure(f"{self.outside} members were not let in")

    def connect(self):
        """One more member, who has said hello."""
        sock = socket.create_connection(("127.0.0.1", self.port), 20)
        guest = Guest(sock, len(self.guests))
        guest.take = self.take_welcome
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b'{"do":"hello","name":"m%d"}\n' % guest.number)
        sock.setblocking(False)
        self.guests.append(guest)
        self.outside += 1
        self.selector.register(sock, selectors.EVENT_READ, functools.partial(self.read, guest))

    def close(self, guests):
        """Let these members go."""
        for guest in list(guests):
            self.selector.unregister(guest.sock) if guest.take else None
            guest.sock.close()
            self.guests.remove(guest)

    def ignore(self, guest):
        """Never read from this member's socket again, and do not count it."""
        self.selector.unregister(guest.sock)
        guest.take = None
        self.received -= guest.place

    def barrier(self):
        """Have everyone read up to one and the same line; the log begins after it."""
        until, self.behind = clock() + ENTER_SECONDS, len(self.guests)
        for guest in self.guests:
            guest.take = self.take_start
        self.guests[0].sock.send(b'{"do":"say","text":"start"}\n')
        while self.behind and clock() < until:
            self.turn(0.05)
        if self.behind:
            raise Failure(f"{self.behind} members were not told what was said")

    # --- receiving ---

    def turn(self, seconds):
        """Read what has arrived; wait so long for something."""
        for key, _ in self.selector.select(seconds):
            key.data()

    def read(self, guest):
        """Take what has arrived for one member."""
        try:
            data = guest.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            guest.take(guest, data)
        else:
            self.selector.unregister(guest.sock)
            guest.take = None

    def take_welcome(self, guest, data):
        guest.rest += data
        if b'"re":"welcome"' in guest.rest:
            guest.take, guest.rest = self.take_nothing, b""
            self.outside -= 1

    def take_nothing(self, guest, data):
        pass

    def take_comings(self, guest, data):
        whole, _, guest.rest = (guest.rest + data).rpartition(b"\n")
        for word in ("join", "leave"):
            self.seen[word] += whole.count(b'{"ev":"%s"' % word.encode())

    def take_start(self, guest, data):
        guest.rest += data
        found = guest.rest.find(b'"text":"start"')
        end = guest.rest.find(b"\n", found) + 1 if found >= 0 else 0
        if not end:
            guest.rest = guest.rest[-1000:]
            return
        data, guest.rest, guest.take = guest.rest[end:], b"", self.take_log
        self.behind -= 1
        self.take_log(guest, data)

    def take_log(self, guest, data):
        place, log = guest.place, self.log
        if not log.startswith(data, place):
            known = len(log) - place
            if known >= len(data) or not log.startswith(data[:known], place):
                guest.take, guest.other, self.differing = self.take_other, bytearray(data), True
                return
            log += data[known:]
        guest.place = place + len(data)
        self.received += len(data)

    def take_other(self, guest, data):
        guest.other += data

    def index(self):
        """Note where the messages end that are new in the log."""
        for match in re.finditer(rb'"text":"(\d+) \d+ x*"[^\n]*\n', self.log[self.indexed:]):
            self.guests[int(match.group(1))].ends.append(self.indexed + match.end())
            self.messages += 1
        self.indexed = self.log.rfind(b"\n") + 1

    def in_step(self, sent):
        """Whether everybody has everything that was said, which are so many messages."""
        if self.indexed < len(self.log):
            self.index()
        return self.messages >= sent and self.received == len(self.readers()) * len(self.log)

    def readers(self):
        """The members that read."""
        return [guest for guest in self.guests if guest.take]

    # --- sending ---

    def say(self, guest):
        """Send one more message; returns whether the socket took it."""
        line = guest.unsent
        if not line:
            text = (b"%d %d " % (guest.number, guest.sent)).ljust(self.size, b"x")
            line = b'{"do":"say","text":"%s"}\n' % text
            guest.sent += 1
        try:
            guest.unsent = line[guest.sock.send(line):]
        except BlockingIOError:
            guest.unsent = line
        return not guest.unsent

    def fill(self, guest, window):
        """Send as many messages as this member's window allows."""
        ends, place = guest.ends, guest.witness.place
        while ends and ends[0] <= place:
            ends.popleft()
            guest.arrived += 1
        while (guest.unsent or guest.sent - guest.arrived < window) and self.say(guest):
            pass


TALK = re.compile(rb'\{"ev":"say"[^{}\n]*"who":"m(\d+)","text":"(\1 (\d+) x*)"[^{}"\n]*\}')


def judge(stream, size):
    """What one member received: (messages, doubled, reordered, torn), each message counted once."""
    seen, newest, doubled, reordered, torn = set(), {}, 0, 0, 0
    for line in bytes(stream).split(b"\n"):
        match = TALK.fullmatch(line)
        if match and len(match.group(2)) == size:
            who, number = int(match.group(1)), int(match.group(3))
            doubled += (who, number) in seen
            reordered += (who, number) not in seen and number < newest.get(who, 0)
            seen.add((who, number))
            newest[who] = max(number, newest.get(who, 0))
        elif line and not is_other_event(line):
            torn += 1
    return len(seen), doubled, reordered, torn


def is_other_event(line):
    """Whether this is a whole line about something else than what was said here."""
    try:
        return json.loads(line)["ev"] in ("join", "leave", "notice")
    except (ValueError, KeyError, TypeError):
        return False


def count(load, readers):
    """What these members received in all: deliveries, and everything that was wrong."""
    sent, judged = sum(guest.sent for guest in load.guests), {}
    deliveries, wrong = 0, 0
    for guest in readers:
        key = guest.place if guest.other is None else guest
        if key not in judged:
            judged[key] = judge(load.log[:guest.place] + (guest.other or b""), load.size)
        messages, *faults = judged[key]
        deliveries += messages
        wrong += sent - messages + sum(faults) + (guest.other is not None)
    return deliveries, wrong


# === cells: servers ===============================================================================
# Each measures one system once and returns its figures.


def flood(setup, variant, members, senders, size=100, stalled=False, extra=()):
    """Members who talk as fast as their windows allow."""
    with serving(setup, variant, extra) as (pid, port), Load(port, size) as load:
        load.enter(members)
        load.barrier()
        if stalled:
            load.ignore(load.guests[-1])
        readers = load.readers()
        for guest in readers[:senders]:
            guest.witness = readers[(guest.number + 1) % len(readers)] if senders > 1 else readers[-1]
        high, cpu, own, start = memory(pid, "VmHWM"), cpu_seconds(pid), time.process_time(), clock()
        end = talk(load, readers[:senders], 64 if senders == 1 else 4, setup.flood_seconds)
        stopped = clock() - start if end is None else None
        cpu, own = minus(cpu_seconds(pid), cpu), time.process_time() - own
        seconds = stopped or end - start
        load.turn(0.1)  # whatever comes now comes twice
        deliveries, wrong = count(load, readers)
        figures = {"CPU us per delivery": cpu and cpu * 1e6 / max(deliveries, 1),
                   "deliveries per second": deliveries / seconds}
        if size == 100:
            figures.update({"load's CPU share": own / seconds, "wrong": wrong})
        else:
            figures["MiB more memory"] = (minus(memory(pid, "VmHWM"), high) or 0) / 1024
            figures["stops for everyone"] = bool(stopped)
            figures["wrong"] = wrong
        return figures


def talk(load, senders, window, seconds):
    """Have them talk for so long, and wait until all has arrived; when that was, None if it never was."""
    until = clock() + seconds
    while clock() < until and not load.differing:
        for guest in senders:
            load.fill(guest, window)
        load.turn(0.001 if any(guest.unsent for guest in senders) else 0.05)
        if load.indexed < len(load.log):
            load.index()
    for guest in senders:
        while guest.unsent and clock() < until + QUIET_SECONDS:
            load.turn(0.001)
            load.say(guest)
    sent, before, last = sum(guest.sent for guest in senders), load.received, clock()
    while clock() < last + QUIET_SECONDS:
        if load.in_step(sent):
            return clock()
        load.turn(0.05)
        if load.received != before:
            before, last = load.received, clock()
    return None


def paced(setup, variant, members, rate):
    """One member who says something now and then, and when the last of all has it."""
    with serving(setup, variant) as (pid, port), Load(port) as load:
        load.enter(members)
        load.barrier()
        guest, waiting, took = load.guests[0], collections.deque(), []
        cpu, start = cpu_seconds(pid), clock()
        messages = int(setup.paced_seconds * rate)
        while len(took) < messages and clock() < start + setup.paced_seconds + QUIET_SECONDS:
            due = start + guest.sent / rate
            if guest.sent < messages and clock() >= due:
                waiting.append(clock())
                load.say(guest)
            load.turn(max(0, due - clock()) if guest.sent < messages else 0.05)
            if waiting and load.in_step(guest.sent):
                took += [clock() - sent for sent in waiting]
                waiting.clear()
        cpu = minus(cpu_seconds(pid), cpu)
        deliveries, wrong = count(load, load.guests)
        return {"CPU us per delivery": cpu and cpu * 1e6 / deliveries,
                "last receiver, ms, p50": percentile(took, 50) * 1e3,
                "last receiver, ms, p99": percentile(took, 99) * 1e3, "wrong": wrong}


def percentile(values, percent):
    """The value that so many percent are not above."""
    ordered = sorted(values) or [float("nan")]
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


def crowd(setup, variant, members):
    """Everybody comes at once, sits there, and goes at once."""
    with serving(setup, variant) as (pid, port), Load(port) as load:
        load.enter(1)
        observer = load.guests[0]
        observer.take = load.take_comings
        before, start = memory(pid), clock()
        load.enter(members)
        watch(load, "join", members)
        came = clock() - start
        load.barrier()
        size = minus(memory(pid), before)
        observer.take = load.take_comings
        load.seen.clear()
        start = clock()
        load.close(load.guests[1:])
        watch(load, "leave", members)
        return {"KiB per client": size and size / members, "s until all are in": came,
                "s until all are gone": clock() - start}


def watch(load, word, times):
    """Wait until the observer has seen so many of these events."""
    until = clock() + ENTER_SECONDS
    while load.seen[word] < times:
        load.turn(0.05)
        if clock() > until:
            raise Failure(f"only {load.seen[word]} of {times} {word} events were told")


def recording(setup, variant, members, senders):
    """A flood of which every line is written to a file, or not."""
    with tempfile.TemporaryDirectory() as folder:
        extra = ["--log", os.path.join(folder, "bench.jsonl")] if variant == "--log" else []
        return flood(setup, "chat", members, senders, extra=extra)


# === cells: start-up ==============================================================================


def starting(setup, variant, what):
    """How long a start takes, in ms."""
    if variant == "pass":
        start = clock()
        subprocess.run([sys.executable, "-c", "pass"], check=True, timeout=30, env=setup.environment())
        return {"ms": (clock() - start) * 1e3}
    return {"ms": what(setup) * 1e3}


def start_version(setup):
    """Until `--version` has ended."""
    start = clock()
    subprocess.run(setup.chat + ["--version"], check=True, timeout=30, stdout=subprocess.DEVNULL,
                   env=setup.environment())
    return clock() - start


def start_serve(setup):
    """Until `serve` accepts a connection."""
    start = clock()
    with serving(setup, "chat"):
        return clock() - start


def start_join(setup):
    """Until the prompt of `join` is on the screen."""
    with serving(setup, "chat") as (_, port):
        start = clock()
        with joined(setup, port, setup.environment()):
            return clock() - start


def start_cold(setup):
    """The same at the very first start, when nothing is unpacked yet."""
    with serving(setup, "chat") as (_, port), tempfile.TemporaryDirectory() as home:
        start = clock()
        with joined(setup, port, setup.environment(home)):
            return clock() - start


@contextlib.contextmanager
def joined(setup, port, environment):
    """A `join` in a terminal, whose prompt is there: the process, the terminal, and what was printed."""
    command = setup.chat + ["join", f"127.0.0.1:{port}", "--name", "typist"]
    with terminal(command, setup.screen, environment) as (process, master):
        said, until = b"", clock() + 20
        while b"typist>" not in said:
            said += read_terminal(master)
            if clock() > until:
                raise Failure("no prompt appeared: " + said[-300:].decode(errors="replace"))
            time.sleep(0.001)
        yield process, master, said


# === cells: typing ================================================================================


def typing(setup, variant, rate):
    """Type into `join` while so many lines per second arrive."""
    with serving(setup, "chat") as (_, port), Load(port) as load:
        load.enter(1)
        with joined(setup, port, setup.environment()) as (process, master, said):
            cpu, typist = cpu_seconds(process.pid), Typist(setup, master, said)
            if not setup.drain:
                load.selector.register(master, selectors.EVENT_READ, lambda: None)  # just wakes
            sent = chatter(load, rate, setup.typing_seconds, typist.tick)
            until, last, size = clock() + 20, clock(), 0
            while clock() < min(until, last + 0.7):
                load.turn(0.001)
                typist.tick(False)
                if len(typist.output) != size or typist.awaited:
                    last, size = clock(), len(typist.output)
            cpu = minus(cpu_seconds(process.pid), cpu)
        output, echoes = bytes(typist.output), typist.echoes
    numbers = re.findall(rb"#(\d+) x", output)
    skipped = sum(int(number.replace(b",", b"")) for number in re.findall(rb"([\d,]+) lines skipped", output))
    lost = sent - len(set(numbers)) - skipped
    return {"echo ms p50": percentile(echoes, 50) * 1e3, "echo ms p99": percentile(echoes, 99) * 1e3,
            "echo ms max": percentile(echoes, 100) * 1e3, "client CPU s": cpu, "lines sent": sent,
            "lines shown": len(numbers), "lines announced as skipped": skipped,
            "wrong": abs(lost) + len(numbers) - len(set(numbers)) + (typist.awaited is not None)
            + (not whole_line(setup.screen, output, typist.typed))}


def chatter(load, rate, seconds, tick):
    """Have the first member say so many numbered lines per second; returns how many it was."""
    guest, sent, start, unsent = load.guests[0], 0, clock(), b""
    while clock() < start + seconds or unsent:
        due = int(min(clock() - start, seconds) * rate)
        unsent += b"".join([b'{"do":"say","text":"#%d %s"}\n' % (number, b"x" * 90)
                            for number in range(sent, due)])
        sent = max(sent, due)
        with contextlib.suppress(BlockingIOError):
            unsent = unsent[guest.sock.send(unsent):] if unsent else b""
        load.turn(0.001)
        tick()
        if clock() > start + seconds + 20:
            raise Failure("the server does not take what is said")
    return sent


class Typist:
    """Types keys into a terminal, ten a second but never one before the last is seen, and reads it."""

    def __init__(self, setup, master, output):
        self.master, self.output = master, bytearray(output)
        self.drain, self.started, self.drained = setup.drain, clock(), 0
        self.keys, self.typed, self.awaited = iter(KEYS), "", None
        self.pause, self.at, self.echoes = random.Random(1), clock(), []

    def tick(self, more=True):
        """Read what has come, and type the next key if it is time for it."""
        # It reads a little at a time, or keys would only ever be typed when the program prints nothing.
        now = clock()
        most = int((now - self.started) * self.drain) - self.drained if self.drain else READ_BYTES
        data = read_terminal(self.master, most) if most > 0 else b""
        self.drained += len(data)
        before = max(0, len(self.output) - 1)  # a letter of two bytes may have been torn apart
        self.output += data
        if self.awaited and self.output.find(self.awaited, before) >= 0:
            self.echoes.append(clock() - self.at)
            self.awaited = None
            self.at = max(clock(), self.at + self.pause.uniform(0.05, 0.15))  # never in step with the batches
        elif more and not self.awaited and now >= self.at:
            key = next(self.keys, "")
            self.typed, self.awaited = self.typed + key, key.encode() or None
            os.write(self.master, key.encode())


def whole_line(size, output, typed):
    """Whether the last row that is not empty shows the prompt and all that was typed, if there is pyte."""
    if not pyte:
        return True
    screen = pyte.Screen(*size)
    pyte.Stream(screen).feed(output[-50000:].decode(errors="ignore"))
    return "".join(screen.display).rstrip().endswith("typist> " + typed)


# === the tables ===================================================================================

Group = collections.namedtuple("Group", "title variants")
Cell = collections.namedtuple("Cell", "name group run options")

BIG = "crowd-5000"  # takes minutes, so only once, and only with --big or by its name
GROUPS = {
    "servers": Group("servers", ("chat", "naive")),
    "recording": Group("recording", ("--log", "without")),
    "start": Group("start-up", ("chat", "pass")),
    "typing": Group("typing in a terminal", ("chat",)),
}
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
    Cell("recording-100/1", "recording", recording, {"members": 100, "senders": 1}),
    Cell("start-version", "start", starting, {"what": start_version}),
    Cell("start-serve", "start", starting, {"what": start_serve}),
    Cell("start-join", "start", starting, {"what": start_join}),
    Cell("start-join-cold", "start", starting, {"what": start_cold}),
    Cell("typing-20", "typing", typing, {"rate": 20}),
    Cell("typing-2000", "typing", typing, {"rate": 2000}),
    Cell("typing-5000", "typing", typing, {"rate": 5000}),
    Cell("typing-20000", "typing", typing, {"rate": 20000}),
]


class Setup:
    """What is measured, and how long."""

    def __init__(self, options, home):
        self.home, self.screen, self.drain = home, options.screen, options.drain
        self.chat = [sys.executable, str(newest_chat())]
        server = shlex.split(options.server) if options.server else [
            *self.chat, "serve", "--port", "{port}", "--rate", "0"]
        self.servers = {"chat": server, "naive": [sys.executable, __file__, "naive", "{port}"]}
        self.flood_seconds, self.paced_seconds, self.typing_seconds = (0.6, 1.5, 2) if options.quick else (1.2, 3, 4)

    def environment(self, home=None):
        """For all that is started: a home of their own, so that nothing stays behind in the user's."""
        home = home or self.home
        return dict(os.environ, HOME=home, XDG_CACHE_HOME=os.path.join(home, "cache"), LOCALAPPDATA=home)


def newest_chat():
    """chat.pyz if it is made from this chat.py, else chat.py."""
    source, packed = TOP / "chat.py", TOP / "chat.pyz"
    with contextlib.suppress(OSError, KeyError, zipfile.BadZipFile), zipfile.ZipFile(packed) as archive:
        if archive.read("chat.py") == source.read_bytes():
            return packed
    return source


def measure(setup, cells, options):
    """Measure everything in turn; yields a row, {cell, variant, run, figures or failure}, for each."""
    runs = {cell.name: 1 if cell.name == BIG else options.runs for cell in cells}
    if not options.quick:
        runs.update({cell.name: max(7, options.runs) for cell in cells if cell.group == "start"})
    for run in range(max(runs.values())):
        for cell in cells:
            variants = GROUPS[cell.group].variants
            for variant in variants if run % 2 else variants[::-1]:
                if run >= runs[cell.name]:
                    continue
                print(f"\r{cell.name} {variant} {run + 1}\033[K", end="", file=sys.stderr)
                row = {"cell": cell.name, "variant": variant, "run": run}
                try:
                    row["figures"] = cell.run(setup, variant, **cell.options)
                except (Failure, OSError, subprocess.SubprocessError) as failure:
                    row["failure"] = str(failure)
                yield row
    print("\r\033[K", end="", file=sys.stderr)


def middle(values):
    """The median of what is known, be it numbers or answers."""
    known = [value for value in values if value is not None]
    if known and isinstance(known[0], bool):
        return statistics.median_low(known)
    return statistics.median(known) if known else None


def shown(value):
    """A figure for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    for limit, divisor, unit in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= limit:
            return f"{value / divisor:.3g}{unit}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def tables(cells, rows):
    """The lines of the tables, one for each group."""
    for name, group in GROUPS.items():
        if not any(cell.group == name for cell in cells):
            continue
        pair = ["/".join(group.variants)] if len(group.variants) == 2 else []
        heads = [group.title, "figure", *group.variants, *pair]
        yield from ["", "| " + " | ".join(heads) + " |", "|---" * 2 + "|--:" * (len(heads) - 2) + "|"]
        for cell in cells:
            if cell.group == name:
                yield from cell_lines(cell, group, rows)


def cell_lines(cell, group, rows):
    """The lines of one cell: a figure each."""
    mine = [row for row in rows if row["cell"] == cell.name]
    for row in mine:
        if "failure" in row:
            yield f"| {cell.name} | {row['variant']}: not measured: {row['failure']} |" + " |" * len(group.variants)
    for figure in dict.fromkeys(figure for row in mine for figure in row.get("figures", ())):
        values = [[row["figures"].get(figure) for row in mine if row["variant"] == variant and "figures" in row]
                  for variant in group.variants]
        settled = list(map(max, values)) if figure == "wrong" else list(map(middle, values))
        line = [cell.name, figure, *map(shown, settled)]
        if len(settled) == 2:
            plain = all(type(value) in (int, float) for value in settled) and settled[1] and figure != "wrong"
            line.append(shown(settled[0] / settled[1]) if plain else "")
        yield "| " + " | ".join(line) + " |"


def choose(cells, only, big):
    """The cells with these names or beginnings of names; the big one only if it is asked for."""
    for name in only:
        if not any(cell.name.startswith(name) for cell in cells):
            sys.exit(f"bench.py: there is no cell {name}; there are {' '.join(cell.name for cell in cells)}")
    return [cell for cell in cells if cell.name in only or cell.name.startswith(tuple(only or [""]))
            and (big or cell.name != BIG)]


def read_options():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     epilog="cells: " + " ".join(cell.name for cell in CELLS))
    parser.add_argument("--only", type=lambda names: names.split(","), default=[], metavar="NAME,...",
                        help="these cells, by the beginnings of their names")
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="default 3; start-up at least 7")
    parser.add_argument("--quick", action="store_true", help="one short run of everything")
    parser.add_argument("--big", action="store_true", help="5,000 clients, too")
    parser.add_argument("--json", metavar="FILE", help="the raw rows, a JSON object each")
    parser.add_argument("--server", metavar="COMMAND", help="measure this server instead; {port} is its port")
    parser.add_argument("--screen", type=lambda size: tuple(map(int, size.split("x"))), default=(80, 24),
                        metavar="WxH", help="of the terminal, default 80x24")
    parser.add_argument("--drain", type=float, default=0, metavar="BYTES",
                        help="a terminal that takes only so many bytes per second, e.g. 200000")
    options = parser.parse_args()
    options.runs = options.runs or (1 if options.quick else 3)
    return options


def main():
    """Measure, print, and say by the exit code whether anything was wrong."""
    if sys.argv[1:2] == ["naive"]:
        return naive(int(sys.argv[2]))
    options = read_options()
    cells = choose(CELLS, options.only, options.big)
    raise_limits()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that all that was started is ended
    with tempfile.TemporaryDirectory() as home:
        setup, rows = Setup(options, home), []
        subprocess.run(setup.chat + ["--version"], stdout=subprocess.DEVNULL, env=setup.environment(), timeout=30)
        machine = (f"{' '.join(setup.servers['chat'][1:])} on Python {platform.python_version()}, "
                   f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs")
        with open(options.json, "w") if options.json else contextlib.nullcontext() as file:
            for row in measure(setup, cells, options):
                rows.append(row)
                if file:
                    file.write(json.dumps({**row, "machine": machine}) + "\n")
                    file.flush()
    print(machine, *tables(cells, rows), sep="\n")
    return int(any("failure" in row or row["figures"].get("wrong") for row in rows if row["variant"] != "naive"))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
