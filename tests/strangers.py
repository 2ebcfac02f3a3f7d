"""Floods and strangers: scenarios with a server in a process of its own, short ones for the tests, long ones for torture.

Each returns its figures in one sentence and raises an AssertionError where a promise is broken.
"""
import contextlib
import os
import random
import re
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time

import chat
from helpers import Peer, Served, joined, wait_for

HELLO = chat.encode({"do": "hello", "name": "mallory"})
FOUND = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.abspath(chat.__file__))}  # for processes of this file


# --- what is measured ---


def status(server, field):
    """A number that the system tells of a server's process: VmRSS in KiB, or Threads."""
    with open(f"/proc/{server.process.pid}/status") as file:
        return int(re.search(rf"^{field}:\s+(\d+)", file.read(), re.M).group(1))


def descriptors(server):
    """How many descriptors a server has open."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def processor_seconds(server):
    """The seconds of work that a server has done so far."""
    with open(f"/proc/{server.process.pid}/stat") as file:
        return sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")


def base(server):
    """Threads and descriptors of a server."""
    return status(server, "Threads"), descriptors(server)


def p99(seconds):
    """The time that one in a hundred exceeds, in milliseconds."""
    return 1000 * sorted(seconds)[-1 - len(seconds) // 100]


def canary(server, speaker, listener, text):
    """The seconds until a word of one is heard by another."""
    start = time.perf_counter()
    speaker.say(text)
    listener.expect(ev="say", text=text)
    return time.perf_counter() - start


@contextlib.contextmanager
def sockets(count, address):
    """So many connections, whose other side has not been told anything."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(address)) for _ in range(count)]


# --- web pages ---


METHODS = "GET POST PUT OPTIONS HEAD CONNECT PRI DELETE".split()
TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2


def page_request(chance):
    """What a browser sends on behalf of a page that would like to speak in a room."""
    if chance.random() < 0.2:
        return TLS_HELLO[:chance.randint(1, len(TLS_HELLO))]
    first = f"{chance.choice(METHODS)} /{'x' * chance.randrange(100)} HTTP/1.{chance.randrange(2)}\r\n"
    headers = "".join(f"X-{number}: {{\r\n" for number in range(chance.randrange(25)))
    body = HELLO + chat.encode({"do": "say", "text": "from a page"})
    return (first + headers + "\r\n").encode() + body * chance.randint(1, 3)


def web_pages(seed=1, rounds=100):
    """Pages send requests: each hears one error line, and nobody hears anything of them."""
    chance = random.Random(seed)
    with Served() as server, joined(server, "ann") as ann:
        for _ in range(rounds):
            data = page_request(chance)
            cut = chance.randrange(len(data) + 1)
            with Peer(server) as page, contextlib.suppress(ConnectionError):  # it may be broken off in the middle
                page.send_bytes(data[:cut])
                page.send_bytes(data[cut:])
                assert [line.get("code") for line in page.rest()] == ["bad-line"], data
        assert ann.settle() == [], "a page got a word in"
    return f"{rounds} requests of pages, 0 words in the room"


# --- malformed lines ---


VALID = [chat.encode(request) for request in (
    {"do": "hello", "name": "mallory"}, {"do": "say", "text": "hi \\ \" 😀"},
    {"do": "me", "text": "x", "id": 5},
    {"do": "tell", "to": "ann", "text": "psst"}, {"do": "nick", "name": "юля"}, {"do": "who", "id": 1},
    {"do": "ping"}, {"do": "say", "text": "\n\t\x1b[2J\u202e" * 10, "extra": [[], {}, None, 1e5]})]
TOKENS = [b'"', b"{", b"}", b"[" * 40, b"]", b"\\", b"\\u", b"\\ud800", b"\0", b"\n", b"\r", b",", b":", b"-",
          b"1e999", b"NaN", b"9" * 400, b"\xff", b"\xef\xbb\xbf", b'"do":', b'"id":', b'"name":', b"null",
          b'{"do":"bye"}']


def mutated(chance):
    """A request with something wrong, or just bytes."""
    if chance.random() < 0.15:
        return bytes(chance.randrange(256) for _ in range(chance.randrange(200))) + b"\n"
    line = bytearray(chance.choice(VALID))
    for _ in range(chance.randint(0, 4)):
        at, kind = chance.randrange(len(line)), chance.randrange(4)
        if kind == 0:
            line[at] = chance.randrange(256)
        elif kind == 1:
            line[at:at] = chance.choice(TOKENS)
        elif kind == 2:
            del line[at:at + chance.randint(1, 10)]
        else:
            line[at:at] = line[at:at + 20] * chance.randint(1, 5)
        line = line or bytearray(b"\n")
    return bytes(line)


def attack(address, seed, lines):
    """Send so many malformed lines, over as many connections as it takes, half of them behind a hello."""
    chance = random.Random(seed)
    while lines > 0:
        with contextlib.suppress(OSError), socket.create_connection(address) as sock:
            if chance.random() < 0.5:
                sock.sendall(chat.encode({"do": "hello", "name": f"m{seed}-{lines}"}))
                sock.recv(65536)
            for _ in range(25):
                count = min(lines, chance.randint(1, 3))
                lines -= count
                sock.sendall(b"".join(mutated(chance) for _ in range(count)))
            sock.setblocking(False)
            while sock.recv(65536):
                pass


def malformed(seed=1, lines=2000, attackers=2, most=100):
    """Malformed lines, while two canaries talk: their p99 is `most` milliseconds, and memory grows by at most 20 MB."""
    with Served("--rate", "0") as server, joined(server, "ann") as ann, joined(server, "bob") as bob:
        processes = [subprocess.Popen([sys.executable, __file__, "attack", *map(str, (
            *server.address, seed + number, lines // attackers))], env=FOUND) for number in range(attackers)]
        times, before = [], None
        try:
            while len(times) < 100 or any(process.poll() is None for process in processes):
                times.append(canary(server, ann, bob, f"canary {len(times)}"))
                ann.expect(text=f"canary {len(times) - 1}")
                ann.heard.clear()
                bob.heard.clear()
                if len(times) == 50:
                    before = status(server, "VmRSS")
                time.sleep(0.002)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        growth = (status(server, "VmRSS") - before) / 1024
        assert growth <= 20, f"memory grew by {growth:.1f} MB"
        assert p99(times) <= most, f"one canary in a hundred took {p99(times):.0f} ms"
        assert server.end() == 0
    assert server.errors.text() == ""
    return f"{lines:,} malformed lines; canaries p99 {p99(times):.1f} ms; memory {growth:+.1f} MB"


# --- strangers ---


def silent(count=200, unfinished=0, seconds=10.0, most=48):
    """Strangers who say nothing, drip, or leave their bytes unfinished: others come in, and they are gone in time."""
    with Served("--rate", "0", limits={"HELLO_SECONDS": seconds}) as server:
        with joined(server, "early"):
            pass
        wait_for(lambda: status(server, "Threads") <= 4, "the server is alone")
        before, memory = base(server), status(server, "VmRSS")
        start = time.monotonic()
        with contextlib.ExitStack() as stack:
            peak, crowd = memory, []
            for number in range(count):
                sock = stack.enter_context(socket.create_connection(server.address))
                crowd.append(sock)
                with contextlib.suppress(OSError):
                    sock.sendall(b"{" + b"x" * (unfinished - 1) if unfinished else b"")
                peak = peak if number % 100 else max(peak, status(server, "VmRSS"))
            connected, stop = time.monotonic(), threading.Event()
            dripping = threading.Thread(target=drip, args=(crowd[::2], stop))
            dripping.start()
            try:
                with joined(server, "invited"):
                    entered = time.monotonic() - connected
                wait_for(lambda: base(server) == before, "threads and descriptors as before")
                gone = time.monotonic() - connected
            finally:
                stop.set()
                dripping.join()
            peak = max(peak, status(server, "VmRSS"))
        assert entered <= 2, f"an invited one waited {entered:.1f} s"
        assert gone <= seconds + 2, f"they were gone only after {gone:.1f} s"
        assert (peak - memory) / 1024 <= most, f"memory grew by {(peak - memory) / 1024:.1f} MB"
        return (f"{count:,} strangers in {connected - start:.1f} s; an invited one in after {entered:.2f} s; all gone after "
                f"{gone:.1f} s; memory {(peak - memory) / 1024:+.1f} MB; threads and descriptors as before")


def drip(crowd, stop):
    """Send a byte to each every now and then."""
    while not stop.wait(0.3):
        for sock in crowd:
            with contextlib.suppress(OSError):
                sock.send(b" ")


def flooded(seconds=3.0, most=2.0):
    """Connections without end from one address: others come in, and those from the same address, too."""
    with Served("--rate", "0") as server:
        flood = subprocess.Popen([sys.executable, __file__, "flood", *map(str, server.address)], env=FOUND)
        try:
            wait_for(lambda: descriptors(server) > chat.STRANGERS, "the flood has come")
            waits, start = {"127.0.0.1": [], "127.0.0.2": []}, time.monotonic()
            while time.monotonic() - start < seconds:
                for address, times in waits.items():
                    times.append(come_in(server, address, f"m{len(times)}{address[-1]}"))
            assert max(sum(waits.values(), [])) <= most, waits
            threads = status(server, "Threads")
            assert threads < chat.STRANGERS + 100, f"{threads} threads"
        finally:
            flood.kill()
            flood.wait()
    (other, own), count = map(max, waits.values()), len(waits["127.0.0.1"])
    return (f"in a flood {count} from elsewhere were in after {other:.2f} s at most, {count} from its own address after "
            f"{own:.2f} s; {threads} threads")


def come_in(server, source, name):
    """The seconds that somebody from this address needs to be let in; their line needs a moment of the network's."""
    start = time.monotonic()
    with socket.create_connection(server.address, source_address=(source, 0)) as sock:
        time.sleep(0.01)
        sock.sendall(chat.encode({"do": "hello", "name": name}))
        assert sock.recv(12) == b'{"re":"welco', f"{name} from {source} was not let in"
    return time.monotonic() - start


def flood(address):
    """Connect again and again from an address of one's own, and leave all those connections open."""
    held = []
    while True:
        with contextlib.suppress(OSError):
            held.append(socket.create_connection(address, source_address=("127.0.0.2", 0)))
            held[-1].send(b"{")
        for sock in held[:-3000]:
            sock.close()
        held = held[-3000:]


def few_descriptors(limit=64):
    """Descriptors run out, by strangers and then by members: little work, and the next comes in soon."""
    with Served("--rate", "0", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))) as server, \
            joined(server, "ann") as ann, contextlib.ExitStack() as stack:
        with sockets(4 * limit, server.address):
            start = time.monotonic()
            with joined(server, "invited") as invited:
                entered = time.monotonic() - start
                canary(server, ann, invited, "hello")
            work = share_of_work(server)
        members = []
        with contextlib.suppress(AssertionError):
            for number in range(limit):
                peer = stack.enter_context(Peer(server))
                peer.sock.settimeout(0.5)
                members.append(peer)
                peer.send(do="hello", name=f"m{number}")
                peer.expect_next(re="welcome")
        waiting = stack.enter_context(Peer(server))
        waiting.send(do="hello", name="waiting")
        full = share_of_work(server)
        start = time.monotonic()
        for peer in members[:5]:
            peer.close()
        waiting.expect_next(re="welcome")
        recovered = time.monotonic() - start
        canary(server, ann, waiting, "all well?")
        assert max(work, full) <= 0.05, f"{100 * max(work, full):.0f} % of a core"
        assert max(entered, recovered) <= 2, f"the next came in after {entered:.1f} and {recovered:.1f} s"
    return (f"{limit} descriptors: the next in after {entered:.2f} s past strangers, {recovered:.2f} s past members; "
            f"{100 * work:.1f} % and {100 * full:.1f} % of a core")


def share_of_work(server, seconds=1.0):
    """How much of a core a server takes in the next second."""
    before = processor_seconds(server)
    time.sleep(seconds)
    return (processor_seconds(server) - before) / seconds


def crowd(count=500, rate=0):
    """Many come at once from one address, and say hello as soon as they can: each gets in."""
    with Served("--rate", rate) as server, contextlib.ExitStack() as stack:
        start, peers = time.monotonic(), []
        for number in range(count):
            sock = stack.enter_context(socket.create_connection(server.address))
            sock.sendall(chat.encode({"do": "hello", "name": f"m{number}"}))
            peers.append(sock)
        for number, sock in enumerate(peers):
            sock.settimeout(90)
            assert sock.recv(12) == b'{"re":"welco', f"the {number}th did not get in"
        seconds = time.monotonic() - start
    return f"{count:,} came at once, all in after {seconds:.1f} s"


# --- who never reads ---


def never_reading(count=50, messages=300, pace=0.01, runs=1, most=1.5):
    """So many never read: how long others wait for a line, beside the same with as many who do read."""
    measured = {True: [], False: []}
    for reads in (True, False) * runs:
        measured[reads].append(among(count, reads, messages, pace))
    (fast, cheap), (slow, dear) = ([statistics.median(figures) for figures in zip(*measured[reads])]
                                   for reads in (True, False))
    assert slow <= most * fast, f"p99 {slow:.1f} ms, with readers {fast:.1f}"
    return (f"{count} who never read: others' p99 {slow:.1f} ms, {1e6 * dear:.0f} µs of work a line; "
            f"if they do read {fast:.1f} ms, {1e6 * cheap:.0f} µs")


def among(count, reads, messages, pace):
    """Talk among so many who read or do not: (p99 in milliseconds, seconds of the server's work for a line)."""
    with Served("--rate", "0") as server, joined(server, "ann") as ann, joined(server, "bob") as bob, \
            Bystanders(server, count, reads):
        before, times = processor_seconds(server), []
        while len(times) < messages:
            times.append(canary(server, ann, bob, f"{len(times)} ".ljust(4000, "x")))
            ann.expect(ev="say")
            ann.heard.clear()
            bob.heard.clear()
            time.sleep(pace)
        return p99(times), (processor_seconds(server) - before) / messages


class Bystanders:
    """Members in a process of their own, which read all that comes, or nothing."""

    def __init__(self, server, count, reads):
        self.process = subprocess.Popen([sys.executable, __file__, "stand", *map(str, (*server.address, count, int(reads)))],
                                        stdout=subprocess.PIPE, stdin=subprocess.PIPE, env=FOUND)
        assert self.process.stdout.readline() == b"ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *trouble):
        self.process.kill()
        self.process.communicate()


def stand(address, count, reads):
    """Be so many members until this process is killed."""
    selector = selectors.DefaultSelector()
    for number in range(count):
        sock = socket.socket()
        if not reads:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(address)
        sock.sendall(chat.encode({"do": "hello", "name": f"m{number}"}))
        sock.recv(100)
        selector.register(sock, selectors.EVENT_READ)
    print("ready", flush=True)
    while reads:
        for key, _ in selector.select():
            key.fileobj.recv(1 << 20)
    sys.stdin.read()


if __name__ == "__main__":
    word, host, port, *numbers = sys.argv[1:]
    {"attack": attack, "flood": flood, "stand": stand}[word]((host, int(port)), *map(int, numbers))
