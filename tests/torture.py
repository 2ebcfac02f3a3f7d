"""Breaks everything that can break around a room, again and again, and looks whether anything was lost.

    ./build.sh torture                         all of it, twenty to thirty minutes
    ./build.sh torture --only kill9,resets     the tests with these names or beginnings of names
    ./build.sh torture --seed 7                other accidents; the same seed makes the same ones
    ./build.sh torture --short                 the short form, which the tests of every change run as well
    ./build.sh torture --before OLD.pyz        also: what the open room costs beside that one
    ./build.sh torture --help                  the names

Each test prints its figures and its seed as soon as it is over; a table comes at the end. The exit code is 1 if
anything failed. What is measured in times needs a machine that does nothing else.
"""
import argparse
import collections
import contextlib
import importlib
import inspect
import io
import json
import os
import platform
import random
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from unittest import mock

TOP = Path(__file__).resolve().parent.parent
sys.path.append(str(TOP))  # behind the others, so that PYTHONPATH can name another chat.py to torture

import chat
import helpers
import people
import proxy
from helpers import joined, serving, wait_for
from people import Canaries, Door, Mortal, Witness, percentile

STAMP = re.compile(rb'"text":"s \d+ (\d+\.\d+) x')  # when a line was said
GONE = re.compile(r"(\d[\d,]*) lines? that you saw")  # how a client tells that the server has lost lines


# === what dies ====================================================================================


def kill9(seed=1, kills=200, talkers=20):
    """The server dies while all talk; each second time its file is cut off somewhere."""
    rng, stopped = random.Random(seed), threading.Event()
    with people.hurried(), people.private_state() as folder, contextlib.closing(
            Mortal(folder, "--rate", 0)) as server:
        witnesses = [Witness(server.address).enter(f"w{number}") for number in range(talkers)]
        talking = threading.Thread(target=_talk, args=(witnesses, rng.random(), stopped), daemon=True)
        talking.start()
        for kill in range(kills):
            time.sleep(rng.uniform(0.02, 0.3))
            server.kill(_somewhere(rng, server) if kill % 2 else None)
            server.start()
            if rng.random() < 0.5:
                wait_for(lambda: all(witness.link.state == "in" for witness in witnesses), "everybody is back")
        stopped.set()
        talking.join()
        wait_for(lambda: all(witness.is_settled() for witness in witnesses), "all that was said has come to something")
        _meet(witnesses)
        log = server.lines()
        fates = _judge(witnesses, log, server.cut_away)
        for witness in witnesses:
            witness.leave()
    lines = sum(event["ev"] in ("say", "me", "nick") for event in people.check_log(log))
    return (f"{kills} kills, {lines} lines in the file, {len(server.cut_away)} cut off, {fates['confirmed']} "
            f"confirmed, {fates['given back']} given back; 0 twice, 0 missing")


def _somewhere(rng, server):
    # Mostly among what was said last, sometimes anywhere behind the session line.
    size, first = server.log.stat().st_size, len(server.lines()[0])
    back = rng.randrange(1, 4000) if rng.random() < 0.9 else rng.randrange(1, size)
    return max(first, size - back)


def _talk(witnesses, seed, stopped):
    # Mostly plain talk; now and then something done, a new name, something private.
    rng, number = random.Random(seed), 0
    while not stopped.wait(0.01):
        witness = rng.choice(witnesses)
        for _ in range(rng.choice((1, 1, 5))):
            number += 1
            word = rng.choices(("", "/me ", "/nick ", f"/tell {rng.choice(witnesses).view.name} "), (90, 5, 1, 4))[0]
            witness.type(f"{word}{witness.view.name[:3].rstrip('-')}-{number}")


def _meet(witnesses):
    # Everybody says one more line, and waits for everybody's: then nothing more can be on its way.
    last = [f"last-{number}" for number in range(len(witnesses))]
    for witness, text in zip(witnesses, last):
        witness.type(text)
    for witness in witnesses:
        wait_for(lambda: all(f'"text":"{text}"'.encode() in b"".join(witness.taken[-500:]) for text in last),
                 f"{witness.view.name} hears the last line of all")


def _judge(witnesses, log, cut_away):
    # The whole judgement after deaths: the file, every screen, every typed line, and what they were told.
    people.check_log(log)
    fates = collections.Counter()
    alive = set(log)
    for witness in witnesses:
        gone = cut_away - alive
        seen = witness.seen()
        people.check_screen(witness.view.name, seen, log, gone)
        fates.update(people.check_fates(witness))
        doubtful = [text for text, became in witness.fates().items() if "given back" in became and "/tell" not in text]
        assert not doubtful, f"{witness.view.name} was given back {doubtful}, which could have been sent again"
        told, lost = _told_gone(witness), len(set(seen) & gone)
        assert told == lost, f"{witness.view.name} was told that {told} seen lines are gone, and {lost} are"
    return fates


def _told_gone(witness):
    # How many lines that they saw somebody was told to be gone.
    return sum(int(number.replace(",", "")) for row in witness.screen.rows
               for number in GONE.findall(row))


# === what breaks ==================================================================================


class Scene:
    """bob's scripted session through a proxy, with eve beside him."""

    SAID = ("one", "/me two", "/nick rob", "/tell eve psst-three", "четыре", "/who", "/nick bob", "five")
    HEARD = ("alpha", "beta", "gamma")

    def __init__(self):
        self.stack = contextlib.ExitStack()
        room = chat.Room("lab")
        room.fanout.recording = helpers.Tape()
        self.server = self.stack.enter_context(serving(room))
        self.proxy = self.stack.enter_context(proxy.Proxy(self.server.address))
        self.eve = self.stack.enter_context(joined(self.server, "eve"))
        self.bob = Witness(self.proxy.address)

    def play(self):
        """Everything in its order, without a wait in between; then both wait for each other."""
        try:
            self.bob.link.join("bob", None)
        except chat.ChatError:  # the very first link may break before anybody is in, and leave a ghost without a token
            self.bob.link.join("bob", chat.take_free)
        for text, heard in zip(self.SAID, self.HEARD + ("",) * 5):
            self.bob.type(text)
            if heard:
                self.eve.say(heard)
                self.eve.send(do="tell", to=self.bob_is(), text=f"private {heard}", id=len(heard))
        wait_for(self.bob.is_settled, "all of bob's lines came to something")
        self.bob.type("over")
        self.eve.expect(ev="say", text="over")
        self.eve.say("and out")
        wait_for(lambda: b'"text":"and out"' in b"".join(self.bob.taken[-3:]), "bob hears the end")

    def bob_is(self):
        """The name under which bob is in the room; a ghost that he left at his first attempt stands before him."""
        others = [member.name for member in list(self.server.room.people.values()) if member.name != "eve"]
        return others[-1] if others else "bob"

    def judge(self):
        """bob and eve saw what the log has, each private line once, and everything typed came to something."""
        log = self.server.room.fanout.recording.lines()
        people.check_screen("bob", self.bob.seen(), log)
        fates = people.check_fates(self.bob)
        told = [event["text"] for event in self.bob.events() if event.get("re") == "tell" and event["who"] == "eve"]
        answers = [event for event in map(json.loads, self.eve.heard) if event.get("re") == "tell"]
        sent = [event["text"] for event in answers if event["who"] == "eve"]  # not those for a name that he has left
        vain = sum("has gone without" in json.loads(line).get("text", "") for line in self.eve.heard)
        assert told == sent or vain and set(told) < set(sent), f"eve told bob {sent}, and he has {told}"
        psst = sum(event["text"] == "psst-three" for event in answers)
        assert psst <= 1 and (psst == 1 or "confirmed" not in self.bob.fates()["/tell eve psst-three"]), psst
        said = collections.Counter(json.loads(line).get("text") for line in log)
        assert not {text for text, times in said.items() if text and times > 1}, said
        return fates

    def close(self):
        """End all of it."""
        self.bob.leave()
        self.stack.close()


@contextlib.contextmanager
def scene():
    """A scene that is over at the end."""
    with people.hurried():
        stage = Scene()
        try:
            yield stage
        finally:
            stage.close()


def resets(seed=1, every=1):
    """The link is reset behind each byte of a session, on its way up and on its way down."""
    fates, played = collections.Counter(), 0
    with scene() as stage:
        carried = _counted(stage)
    for way in ("up", "down"):
        for k in range(seed % every, carried[way], every):
            with scene() as stage:
                stage.proxy.harm = proxy.ResetAt(way, k)
                with _place(f"{way}, byte {k}"):
                    stage.play()
                    fates.update(stage.judge())
            played += 1
    return (f"{played} sessions, reset at {carried['up']} + {carried['down']} bytes; {fates['confirmed']} lines "
            f"confirmed, {fates['given back']} given back, {fates['told']} told; 0 double, 0 gaps")


def _counted(stage):
    # How many bytes an undisturbed session carries each way.
    carried = collections.Counter()

    class Counting(proxy.Harm):
        def carry(self, link, way, data):
            carried[way] += len(data)
            link.pass_on(way, data)

    stage.proxy.harm = Counting()
    stage.play()
    stage.judge()
    return carried


@contextlib.contextmanager
def _place(where):
    # Say where it failed.
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{where}: {error}") from error


def steps(seed=1, every=1):
    """The link is reset at each step that the client takes in sending and in losing a link."""
    played, k, reached = 0, seed % every, True
    while reached:
        with scene() as stage, _place(f"step {k}"):
            reached = _reset_at_step(stage, k)
            stage.judge()
        played, k = played + 1, k + every
    return f"{played} sessions, reset at {k - every} steps; 0 double, 0 gaps"


def _reset_at_step(stage, k):
    # Counts the lines of Link and Connection that any thread carries out; whether it came as far as k.
    codes = {function.__code__ for owner in (chat.Link, chat.Connection) for function in vars(owner).values()
             if hasattr(function, "__code__")}
    count = [0]

    def step(frame, event, argument):
        if event == "line":
            count[0] += 1
            if count[0] == k + 1:
                for link in list(stage.proxy.links):
                    link.reset()
                time.sleep(0.003)  # the other threads notice it while this one stands here
        return step

    def trace(frame, event, argument):
        return step if frame.f_code in codes else None

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        stage.play()
    finally:
        sys.settrace(None)
        threading.settrace(None)
    return count[0] > k


HOLES = {
    "one byte at a time": lambda: proxy.Dripping(),
    "merging": lambda: proxy.Merging(),
    "stalling": lambda: proxy.Stalling(1, chat.PING_SECONDS),
    "half open up": lambda: proxy.Swallowing("up"),
    "half open down": lambda: proxy.Swallowing("down"),
    "silent": lambda: proxy.Swallowing("up", "down"),
    "silent, nothing taken": lambda: proxy.Blocking(),
}
HARMLESS = ("one byte at a time", "merging", "stalling")


def black_holes(seed=1, kinds=tuple(HOLES), scale=1.0):
    """Links go bad without a FIN, each in its own way, all at once, in a room that talks."""
    # With shorter times, since a client looks up once a second.
    seconds = 30.0 if scale == 1.0 else 30.0 * scale + 1.0
    times = {name: getattr(chat, name) * scale for name in ("PING_SECONDS", "SILENCE_SECONDS")}
    with mock.patch.multiple(chat, **times), serving(chat.Room("lab")) as server, contextlib.ExitStack() as stack:
        server.room.fanout.recording = helpers.Tape()
        canaries = stack.enter_context(Canaries(server.address, 0.1))
        with contextlib.ExitStack() as holes:
            victims = [Victim(holes, server, kind, seconds) for kind in kinds]
            for victim in victims:
                victim.thread.start()
            for victim in victims:
                victim.thread.join(4 * seconds + helpers.SECONDS)
            for victim in victims:
                victim.judge(server.room.fanout.recording.lines)
        told = ", ".join(victim.figure() for victim in victims)
        people_now = len(server.room.people)
    assert people_now <= len(kinds) + 2, "somebody is there twice"
    return f"{told}; canaries p99 {canaries.p99():.0f} ms"


class Victim:
    """One person whose link falls into a black hole."""

    def __init__(self, stack, server, kind, seconds):
        self.server, self.kind, self.seconds = server, kind, seconds
        self.patience = seconds * (1.1 if kind in HARMLESS else 2.2)
        self.name = "v-" + kind.replace(" ", "-").replace(",", "")
        self.proxy = stack.enter_context(proxy.Proxy(server.address))
        self.witness = Witness(self.proxy.address).enter(self.name)
        stack.callback(self.witness.leave)
        self.client = self.room = self.member = None  # the seconds until each end noticed
        self.trouble = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            self.suffer()
        except Exception as error:
            self.trouble = error

    def suffer(self):
        """Fall in, say something, and come out again."""
        for number in range(3):
            self.witness.type(f"{self.name} before {number}")
        wait_for(self.witness.is_settled, f"{self.name} is in")
        self.proxy.links[-1].harm = HOLES[self.kind]()
        # Where only the way down is dead the room hears that its guest lives, until that one comes by another link.
        self.proxy.refusing = self.kind not in HARMLESS + ("half open down",)
        self.member = self.own_member()
        began = time.monotonic()
        self.witness.type(f"{self.name} within")
        while time.monotonic() < began + self.patience and self.is_waiting():
            now = time.monotonic() - began
            if self.client is None and self.witness.link.state != "in":
                self.client = now
            if self.room is None and self.is_held():
                self.room = now
            time.sleep(0.02)
        self.proxy.refusing = False
        wait_for(self.witness.is_settled, f"{self.name} is back")

    def is_waiting(self):
        """Whether somebody has not noticed yet; where nothing is to be noticed, for a whole while."""
        return self.kind in HARMLESS or self.client is None or self.room is None

    def is_held(self):
        """Whether the room knows that this link is dead."""
        member = self.own_member()
        return member is not self.member or member.away is not None

    def own_member(self):
        """This person, as the room has it."""
        return next((member for member in list(self.server.room.people.values()) if member.name == self.name), None)

    def judge(self, log):
        """Back under one's own name, nothing missed, in time."""
        if self.trouble:
            raise AssertionError(f"{self.kind}: {self.trouble}") from self.trouble
        with _place(self.kind):
            if self.kind in HARMLESS:
                assert self.client is None and self.room is None, f"a link was given up: {self.figure()}"
            else:
                assert self.client is not None and self.client <= self.seconds, f"the client: {self.client}"
                assert self.room is not None and self.room <= self.seconds, f"the room: {self.room}"
            assert self.witness.view.name == self.name, f"came back as {self.witness.view.name}"
            text = f"{self.name} is out of it"
            self.witness.type(text)
            wait_for(lambda: text.encode() in b"".join(self.witness.taken[-200:]), text)
            seen = self.witness.seen()
            end = next(i for i, line in enumerate(seen) if text.encode() in line)
            lines = log()
            people.check_screen(self.name, seen[:end + 1], lines[:lines.index(seen[end]) + 1])
            people.check_fates(self.witness)

    def figure(self):
        """When each end noticed."""
        if self.client is None and self.room is None:
            return f"{self.kind}: held"
        return f"{self.kind}: client {self.client or 0:.0f} s, server {self.room or 0:.0f} s"


# === who does not read ============================================================================


class Listeners:
    """Many people who only hear, read by one thread, which notes how long each stamped line was on its way."""

    def __init__(self, address, count):
        self.selector, self.took, self.stopped = selectors.DefaultSelector(), [], False
        self.peers = [joined(Door(address), f"l{number}") for number in range(count)]
        for peer in self.peers:
            peer.sock.setblocking(False)
            self.selector.register(peer.sock, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        rests = {}
        while not self.stopped:
            for key, _ in self.selector.select(0.1):
                with contextlib.suppress(BlockingIOError):
                    data = rests.get(key.fd, b"") + key.fileobj.recv(1 << 18)
                    cut = data.rfind(b"\n") + 1
                    rests[key.fd] = data[cut:]
                    now = time.perf_counter()
                    self.took += [now - float(when) for when in STAMP.findall(data[:cut])]

    def close(self):
        """End it, and let all leave."""
        self.stopped = True
        self.thread.join()
        for peer in self.peers:
            peer.close()


# Run before chat.py: this system would let a socket that nobody reads take 32 MB, and the room would notice late.
NARROW = """
import runpy, socket, sys
connect = socket.create_connection
def create_connection(*arguments, **options):
    sock = connect(*arguments, **options)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
    return sock
socket.create_connection = create_connection
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Sleeper:
    """`join` in a process of its own that can be stopped, and what it printed of the stamped lines."""

    def __init__(self, address):
        program = [sys.executable, "-c", NARROW, chat.__file__, "join", "%s:%d" % address, "--name", "sleeper"]
        self.process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.numbers, self.inside = [], threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        assert self.inside.wait(helpers.SECONDS), "the sleeper came in"

    def _read(self):
        for line in self.process.stdout:
            match = re.search(rb"s (\d+) \d+\.\d+ x", line)
            if match:
                self.numbers.append(int(match.group(1)))
            elif b"sleeper joined" in line:
                self.inside.set()

    def close(self):
        """End it."""
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()


def stopped_reader(seed=1, rounds=5, listeners=49, messages=1600, pace=160):
    """One of many is stopped while much is said, and goes on when it has been cut."""
    p99, sent = {False: [], True: []}, 0
    with people.private_state() as folder, contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.closing(Mortal(folder, "--rate", 0)))
        crowd = stack.enter_context(contextlib.closing(Listeners(server.address, listeners)))
        sleeper = stack.enter_context(contextlib.closing(Sleeper(server.address)))
        speaker = stack.enter_context(joined(server, "speaker"))
        threading.Thread(target=_pass_over, args=(speaker,), daemon=True).start()
        stack.callback(speaker.sock.shutdown, socket.SHUT_RDWR)  # which ends that thread
        for turn in range(2 * rounds):
            stopped = turn % 2 == 1
            if stopped:
                sleeper.process.send_signal(signal.SIGSTOP)
            crowd.took = took = []
            sent = _say_stamped(speaker, sent, messages, pace)
            wait_for(lambda: len(took) >= messages * listeners, "all hear all")
            p99[stopped].append(1000 * percentile(took, 99))
            if stopped:
                _await_cut(server, "sleeper")
                sleeper.process.send_signal(signal.SIGCONT)
            wait_for(lambda: sleeper.numbers and sleeper.numbers[-1] == sent - 1, "the sleeper has the last line")
        numbers = sleeper.numbers
        assert numbers == list(range(sent)), (f"of {sent} lines the sleeper has {len(set(numbers))}, "
                                              f"{len(numbers) - len(set(numbers))} of them twice")
    quiet, loud = statistics.median(p99[False]), statistics.median(p99[True])
    assert rounds < 3 or loud <= 1.5 * quiet, f"p99 {loud:.1f} ms with one stopped, {quiet:.1f} ms without"
    return (f"p99 {loud:.1f} ms with one stopped, {quiet:.1f} ms without; cut and back {rounds} times, {sent} lines, "
            f"0 missed")


def _pass_over(peer):
    # Read what comes for somebody, and forget it.
    with contextlib.suppress(OSError, ValueError):
        for _ in peer.file:
            pass


def _say_stamped(speaker, number, count, pace, points=3990):
    # Say so many numbered and stamped lines, so many a second; returns the next number.
    start = time.perf_counter()
    for k in range(count):
        time.sleep(max(0.0, start + k / pace - time.perf_counter()))
        text = f"s {number + k} {time.perf_counter():.6f} x"
        speaker.say(text + "漢" * (points - len(text)))  # 12 KB
    return number + count


def _await_cut(server, name):
    # Until the room says that this person has no link, or is not in it.
    with joined(server, "asker") as asker:
        def is_cut():
            asker.send(do="who")
            answer = asker.expect(re="who")
            return name not in answer["people"] or name in (answer.get("away") or ())
        wait_for(is_cut, f"{name} is cut")


# === a long evening ===============================================================================


def soak(seed=1, minutes=10.0, members=100, calm=960):
    """Everybody comes, talks, loses the link, leaves, comes again, and some flood."""
    rng = random.Random(seed)
    with people.hurried((0.1, 1.0)), people.private_state() as folder, contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.closing(Mortal(folder)))
        wire = stack.enter_context(proxy.Proxy(server.address))
        _warm_up(server)
        base = Footprint(server)
        evening = Evening(rng, server, wire)
        with Canaries(server.address) as canaries:
            for _ in range(members):
                evening.come()
            until = time.monotonic() + 60 * minutes
            while time.monotonic() < until:
                rng.choices((evening.talk, evening.reset, evening.leave, evening.flood), (calm, 20, 15, 5))[0]()
                time.sleep(0.02)
            evening.end()
        base.await_again(server)
        log = server.lines()
        people.check_log(log)
        evening.judge(log)
        more = Footprint(server).memory - base.memory
        assert more <= 20 << 10, f"{more / 1024:.1f} MiB more memory"
    return (f"{minutes:g} min, {len(evening.all)} people, {evening.cuts} cuts, {evening.floods} floods, {len(log)} "
            f"lines; same order for all, 0 lost; memory {more / 1024:+.1f} MiB, threads and descriptors as before; "
            f"canaries p99 {canaries.p99():.0f} ms")


def _warm_up(server):
    # What a server keeps once it has seen a crowd is its base.
    crowd = Listeners(server.address, 100)
    crowd.peers[0].sock.setblocking(True)
    crowd.peers[0].say(*["x" * 1000] * 150)
    time.sleep(1)
    crowd.close()
    _await_nobody(server)


def _await_nobody(server):
    # Until only the asker is in the room.
    with joined(server, "asker") as asker:
        def is_alone():
            asker.send(do="who")
            return asker.expect(re="who")["people"] == ["asker"]
        wait_for(is_alone, "all have left")
    time.sleep(0.2)


class Footprint:
    """What a server's process takes: KiB of memory, threads, descriptors."""

    def __init__(self, server):
        pid = server.served.process.pid
        status = Path(f"/proc/{pid}/status").read_text()
        self.memory, self.threads = (int(re.search(rf"{field}:\s*(\d+)", status).group(1))
                                     for field in ("VmRSS", "Threads"))
        self.descriptors = len(os.listdir(f"/proc/{pid}/fd"))

    def await_again(self, server):
        """Wait until a server is back to exactly these threads and descriptors."""
        until, now = time.monotonic() + helpers.SECONDS, Footprint(server)
        while (now.threads, now.descriptors) != (self.threads, self.descriptors):
            assert time.monotonic() < until, f"not all is given back: {self} before, {now} after"
            time.sleep(0.05)
            now = Footprint(server)

    def __str__(self):
        return f"{self.memory} KiB, {self.threads} threads, {self.descriptors} descriptors"


class Evening:
    """The people of a long evening, and what happens to them."""

    def __init__(self, rng, server, wire):
        self.rng, self.server, self.wire = rng, server, wire
        self.inside, self.all, self.pool = [], [], {}
        self.cuts = self.floods = self.said = 0

    def come(self):
        """One more person."""
        witness = Witness(self.wire.address, reads=False, pool=self.pool).enter(f"p{len(self.all)}")
        self.inside.append(witness)
        self.all.append(witness)

    def talk(self):
        """Somebody says something."""
        self.said += 1
        self.rng.choice(self.inside).type(f"line {self.said}")

    def reset(self):
        """Somebody's link is reset."""
        alive = [link for link in self.wire.links if not link.over.is_set()]
        self.wire.links = alive
        self.rng.choice(alive).reset()
        self.cuts += 1

    def leave(self):
        """Somebody who has said all goes, and somebody else comes."""
        witness = self.rng.choice(self.inside)
        if witness.is_settled():
            self.inside.remove(witness)
            witness.leave()
            self.come()

    def flood(self):
        """Somebody pastes a lot."""
        witness = self.rng.choice(self.inside)
        self.floods += 1
        for _ in range(150):
            self.said += 1
            witness.type(f"line {self.said} of a flood")

    def end(self):
        """All wait until all is said, and leave."""
        wait_for(lambda: all(witness.is_settled() for witness in self.inside), "all that was said came to something")
        for witness in self.inside:
            witness.leave()

    def judge(self, log):
        """Everybody saw a stretch of the log, as long as they were there, and all that they said is in it."""
        for witness in self.all:
            seen = witness.seen()
            people.check_screen(witness.view.name, seen, log[:log.index(seen[-1]) + 1])
            fates = people.check_fates(witness)
            assert fates["confirmed"] == len(witness.typed), f"{witness.view.name}: {fates}"


# === what it costs ================================================================================

COSTS = {  # (cell, figure, the highest that it may be, whether it is the ratio of the two columns)
    "private flood 100/1": ("private-100/1", "CPU us per delivery", 4.0, True),
    "KiB each": ("private-crowd-500", "KiB per client", 72.0, False),
    "s for 500 to arrive": ("private-crowd-500", "s until all are in and told of each", 1.0, False),
    "ms to the prompt": ("private-join", "ms, join", 400.0, False),
    "open flood 100/1, by before": ("before-100/1", "CPU us per delivery", 1.1, True),
    "open flood 100/100, by before": ("before-100/100", "CPU us per delivery", 1.1, True),
}


def cost(runs=5, before=None):
    """What a private room costs beside an open one, and an open one beside an earlier program; medians of one run."""
    import bench

    options = argparse.Namespace(screen=(80, 24), drain=0, server=None, quick=False, before=before)
    cells = [cell for cell in bench.CELLS if cell.group == "doors" or before and cell.group == "before"]
    with tempfile.TemporaryDirectory() as home, contextlib.redirect_stderr(io.StringIO()):
        rows = list(bench.measure(bench.Setup(options, home), cells, runs, True))
    broken = [row for row in rows if row["failure"] or row["figures"].get("wrong")]
    assert not broken, broken[0]
    figures, dear = [], []
    for what, (cell, figure, most, is_ratio) in COSTS.items():
        columns = [[row["figures"][figure] for row in rows if (row["cell"], row["variant"]) == (cell, variant)]
                   for variant in bench.GROUPS["before" if cell.startswith("before") else "doors"]]
        if columns[0]:
            ours, other = map(statistics.median, columns)
            value = ours / other if is_ratio else ours
            figures.append(f"{what} {value:.3g}{f' x ({ours:.3g} us)' if is_ratio else ''}")
            dear += [f"{what}: {value:.3g}, more than {most:g}"] if value > most else []
    assert not dear, f"{'; '.join(dear)} (all: {', '.join(figures)})"
    return ", ".join(figures)


# === the table ====================================================================================


class Row:
    """One test: what it does, what it must show, the function, and its numbers in the long run and in the short one."""

    def __init__(self, name, what, must, run, long=(), short=(), elsewhere=False):
        self.name, self.what, self.must, self.run = name, what, must, run
        self.long, self.short = dict(long), dict(short)
        self.elsewhere = elsewhere  # whether its short form runs among other tests


def of(module, name):
    """A function of another file of the tests, which is read when it is called, and may not want a seed."""
    def call(seed, **options):
        function = getattr(importlib.import_module(module), name)
        if "seed" in inspect.signature(function).parameters:
            options["seed"] = seed
        return function(**options)

    return call


ROWS = [
    Row("kill9", "kill -9 while 20 talk, each second time the file is cut off as well",
        "each confirmed line once in the log and on each screen, unless cut off; then all are told",
        kill9, short={"kills": 4, "talkers": 5}),
    Row("resets", "the link reset at every byte of a session, up and down", "no double, no gap, no line without a fate",
        resets, short={"every": 97}),
    Row("steps", "the link reset at every step of sending and of losing a link", "the same",
        steps, short={"every": 61}),
    Row("black-holes", "links that drip, merge, stall, are half open or silent, without a FIN",
        "noticed within 30 s by both; back under one's own name, nothing missed",
        black_holes, short={"scale": 0.12}),
    Row("raising", "an error raised at the k-th call of each write, send, push, close, accept, for every k",
        "others unaffected, nobody has a gap, threads alive", of("faults", "raising"), long={"rounds": 0},
        elsewhere=True),
    Row("file-layer", "a fault at the k-th write, fsync, open, fstat", "whole lines only",
        of("faults", "file_layer"), long={"rounds": 5}, elsewhere=True),
    Row("stalled-disk", "the disk blocks for 20 s under a flood", "nobody cut; Ctrl+C <= 2 s",
        of("faults", "stalled_disk"), long={"seconds": 20.0}, elsewhere=True),
    Row("full-disk", "the disk is full, and has space again", "whole lines, and in the end all",
        of("faults", "full_disk"), elsewhere=True),
    Row("web-pages", "pages in a browser send requests, with a hello and words in them",
        "one error line each, 0 words in",
        of("strangers", "web_pages"), long={"rounds": 5000}, short={"rounds": 50}),
    Row("malformed", "malformed lines before and after the hello",
        "alive; canaries p99 <= 100 ms; memory +20 MB at most",
        of("strangers", "malformed"), long={"lines": 1_000_000}, short={"lines": 2000, "most": 2000}),
    Row("silent", "strangers who say nothing, or drip", "an invited one in <= 2 s; all gone <= 12 s; nothing kept",
        of("strangers", "silent"), long={"count": 5000}, short={"count": 100, "seconds": 1.0}),
    Row("unfinished", "strangers with all the bytes unfinished that they may send", "the same; memory +48 MB at most",
        of("strangers", "silent"), long={"count": 6000, "unfinished": 4096},
        short={"count": 100, "unfinished": 4096, "seconds": 1.0}),
    Row("flooded", "connections without end from one address", "others come in, and those from the same address, too",
        of("strangers", "flooded"), long={"seconds": 20.0}, short={"seconds": 0.5, "most": 10.0}),
    Row("few-descriptors", "ulimit -n 64", "<= 5 % of a core; the next in <= 2 s", of("strangers", "few_descriptors"),
        short={"limit": 40}),
    Row("crowd", "5,000 come at once from one address", "all get in",
        of("strangers", "crowd"), long={"count": 5000}, short={"count": 300}),
    Row("never-reading", "500 members never read", "others' p99 <= 1.5 x that among 500 who do, medians of 5",
        of("strangers", "never_reading"), long={"count": 500, "messages": 2500, "pace": 0.0, "runs": 5},
        short={"count": 10, "messages": 40, "most": 50.0}),
    Row("hostile", "as many as a hostile server says", "the client lives, and shows nothing that a terminal obeys",
        of("hostile", "hostile"), long={"lines": 500_000, "links": 50}, short={"lines": 4000, "links": 4}),
    Row("screens", "every code point and escape through `join` on a terminal; forged lines at widths 20-200",
        "nothing outside its row; no text at the left edge that is not a line's own beginning",
        of("screens", "codepoints"), short={"points": 0x200, "widths": (20,)}),
    Row("uninvited", "no key, wrong key, replayed hello, relay, TLS 1.1, JSON, HTTP on a private port",
        "0 in, 0 bytes about the room, 0 log lines",
        of("uninvited", "uninvited"), long={"count": 10_000}, short={"count": 90}),
    Row("secrets", "key, secret, tokens, proofs, addresses searched for in all that a private room leaves behind",
        "0 where they have no business", of("uninvited", "secrets")),
    Row("stopped-reader", "one of 50 is stopped, five times",
        "others' p99 <= 1.5 x; cut, back by itself, nothing missed",
        stopped_reader, short={"rounds": 1, "listeners": 1, "messages": 1300, "pace": 5000}),
    Row("soak", "100 people come, talk, lose links, flood, leave", "same order for all, 0 lost; nothing kept",
        soak, short={"minutes": 0.03, "members": 8, "calm": 40}),
    Row("cost", "a private room beside an open one; with --before the open one beside an earlier program",
        "flood <= 4 x, <= 72 KiB each, prompt <= 0.4 s, 500 arrive <= 1 s; as before within 10 %",
        lambda seed, **options: cost(**options), short={"runs": 1}, elsewhere=True),
]


def run(row, seed, short, more=()):
    """Run one test: (whether it passed, its figures or what went wrong, the seconds it took)."""
    start, options = time.monotonic(), {**(row.short if short else row.long), **dict(more)}
    options["seed"] = seed
    try:
        passed, figure = True, row.run(**options)
    except Exception as error:  # whatever it is, the next test runs
        passed, figure = False, f"{type(error).__name__}: {error}".split("\n")[0][:500]
        if not isinstance(error, AssertionError):
            traceback.print_exc()
    return passed, figure, time.monotonic() - start


def table(outcomes):
    """The lines of the table at the end."""
    yield "| test | must show | figure | |"
    yield "|---|---|---|---|"
    for row, passed, figure, seconds in outcomes:
        yield f"| {row.name}: {row.what} | {row.must} | {figure} | {'passed' if passed else 'FAILED'} |"


def read_options():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     epilog="tests: " + " ".join(row.name for row in ROWS))
    parser.add_argument("--only", type=lambda names: names.split(","), metavar="NAME,...",
                        help="these tests, or those that begin so")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of all accidents (1)")
    parser.add_argument("--short", action="store_true", help="the short form")
    parser.add_argument("--before", metavar="PYZ", help="another chat.pyz, beside which the open room is measured")
    options = parser.parse_args()
    options.rows = [row for row in ROWS if not options.only or any(row.name.startswith(name) for name in options.only)]
    if not options.rows:
        parser.error("there are no such tests; there are " + " ".join(row.name for row in ROWS))
    return options


def main():
    """Torture, print, and say by the exit code whether anything failed."""
    options, outcomes = read_options(), []
    chat.raise_limits()
    print(f"chat {chat.__version__} on Python {platform.python_version()}, {platform.system()} {platform.release()}, "
          f"{os.cpu_count()} CPUs, seed {options.seed}", flush=True)
    for row in options.rows:
        print(f"{row.name} ...", flush=True)
        more = {"before": options.before} if row.name == "cost" and options.before else {}
        passed, figure, seconds = run(row, options.seed, options.short, more)
        print(f"    {'passed' if passed else 'FAILED'} in {seconds:.0f} s (seed {options.seed}): {figure}", flush=True)
        outcomes.append((row, passed, figure, seconds))
    print(*table(outcomes), sep="\n")
    return int(not all(passed for _, passed, _, _ in outcomes))


if __name__ == "__main__":
    sys.exit(main())
