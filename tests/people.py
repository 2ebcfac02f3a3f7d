"""Who takes part in a torture: real clients that remember everything, two canaries, and the judge of what they saw."""
import contextlib
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import chat
from helpers import SECONDS, Served, joined, wait_for


class Glass:
    """A screen that remembers what it showed, and what came back into its input line."""

    attended, over = True, False  # somebody sits before it, who would be asked

    def __init__(self, reads=True):
        self.reads = reads  # whether what is shown is turned into text, as a terminal would
        self.rows, self.given, self.ended = [], [], False

    def show(self, lines, bell=False):
        """Take lines as a terminal's screen does."""
        if self.reads:
            self.rows += [chat.plain(chat.Unrendered.of(line).render()) for line in lines]

    def give_back(self, text):
        """Take back a line that was entered."""
        self.given.append(text)

    def end(self):
        """The client wants to end."""
        self.ended = True

    def refresh(self, seconds=0.0):
        """A prompt may have changed."""

    def run(self):
        """Nobody types here by hand."""


class Witness(chat.Client):
    """A real client, whose screen is a Glass, and all the lines that it took in."""

    def __init__(self, address, reads=True, pool=None, **options):
        with mock.patch.object(chat, "open_screen", lambda *rest: Glass(reads)):
            super().__init__(*address[:2], **options)
        self.taken, self.typed, self.stayed = [], [], []
        self.pool = {} if pool is None else pool  # lines that many take in are kept once

    def take(self, batch):
        """Remember a batch, and take it."""
        self.taken += [self.pool.setdefault(line, line) for line, event in batch]
        super().take(batch)

    def enter(self, name):
        """Come into the room; returns itself."""
        self.link.join(name, None)
        return self

    def type(self, text):
        """Enter a line; what the client leaves in the input line is noted."""
        self.typed.append(text)
        if self.take_line(text) is False:
            self.stayed.append(text)

    def is_settled(self):
        """Whether everything that was typed has come to something."""
        return self.link.state == "in" and not self.link.unconfirmed

    def events(self):
        """All the events that it took in, decoded."""
        return [json.loads(line) for line in list(self.taken) if line]

    def seen(self):
        """The lines of the session that it took in, less the session's own line."""
        return [line for line in list(self.taken) if line.startswith(b'{"ev":') and b'"ev":"session"' not in line]

    def fates(self):
        """What became of each line that was typed: {line: the set of what did}."""
        words = {"say": "text", "me": "text", "nick": "name", "tell": "text", "who": "re"}
        came = {event[words[word]] for event in self.events() for word in [event.get("ev", event.get("re"))]
                if word in words}
        fates = {}
        for text in self.typed:
            said = text.split()[-1].lstrip("/") if text.startswith("/") else text
            told = any(row.startswith("--") and text in row for row in self.screen.rows)
            fates[text] = {fate for fate, holds in (
                ("confirmed", said in came), ("given back", text in self.screen.given + self.stayed),
                ("told", told)) if holds}
        return fates


@contextlib.contextmanager
def hurried(pauses=(0.01, 0.1)):
    """Within, clients come back almost at once, and none of their threads dies."""
    died = []
    with mock.patch.object(chat, "RETRY_PAUSES", pauses), mock.patch.object(
            threading, "excepthook", lambda trouble: died.append(repr(trouble.exc_value))):
        yield
    assert not died, f"a thread died: {died[:3]}"


@contextlib.contextmanager
def private_state():
    """A state folder and a home of one's own: a Path."""
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.dict(os.environ, {"XDG_STATE_HOME": folder, "HOME": folder}):
            yield Path(folder)


class Mortal:
    """`serve` on one port, recording into one file, killed and started again."""

    def __init__(self, folder, *options):
        self.log, self.options, self.port = folder / "log.jsonl", options, 0
        self.served, self.cut_away, self.said = None, set(), ""
        self.start()

    def start(self):
        """Let it begin, or go on in its file."""
        self.served = Served("--port", self.port, "--log", self.log, *self.options)
        self.address = self.served.address
        self.port = self.address[1]

    def kill(self, keep=None):
        """kill -9; then the file keeps only so many bytes, if that is said."""
        before = self.lines()
        self.served.close()
        self.said += self.served.errors.text()
        before = max(before, self.lines(), key=len)
        if keep is not None:
            os.truncate(self.log, keep)
            self.cut_away |= set(before) - set(self.lines())

    def lines(self):
        """The whole lines of its file."""
        return [line for line in self.log.read_bytes().splitlines(True) if line.endswith(b"\n")]

    def close(self):
        """End it."""
        self.served.close()
        self.said += self.served.errors.text()


class Canaries:
    """Two people who talk through all of it: one says something each 50 ms, the other notes when it came."""

    def __init__(self, address, pause=0.05, names=("kanaria", "kanario")):
        self.pause, self.took, self.said, self.stopped = pause, [], 0, threading.Event()
        self.trouble = None
        self.speaker, self.hearer = (joined(Door(address), name) for name in names)
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._speak, self._swallow, self._hear)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def _speak(self):
        while not self.stopped.wait(self.pause):
            self.speaker.say(f"cheep {self.said} {time.perf_counter():.6f}")
            self.said += 1

    def _swallow(self):
        with contextlib.suppress(OSError, ValueError):
            for _ in self.speaker.file:
                pass

    def _hear(self):
        with contextlib.suppress(OSError, ValueError):
            for line in self.hearer.file:
                event = json.loads(line)
                if event.get("text", "").startswith("cheep "):
                    _, number, when = event["text"].split()
                    self.took.append(time.perf_counter() - float(when))
                    if int(number) != len(self.took) - 1:
                        self.trouble = f"cheep {number} came as the {len(self.took)}th"

    def __exit__(self, error, *rest):
        self.stopped.set()
        self.threads[0].join(SECONDS)
        try:
            if error is None:
                wait_for(lambda: len(self.took) >= self.said or not self.threads[2].is_alive(), "the last cheep")
                assert len(self.took) == self.said, f"{self.said - len(self.took)} of {self.said} cheeps were lost"
                assert not self.trouble, self.trouble
        finally:
            for peer in (self.speaker, self.hearer):
                with contextlib.suppress(OSError):
                    peer.sock.shutdown(2)
            for thread in self.threads:
                thread.join(SECONDS)
            self.speaker.close()
            self.hearer.close()

    def p99(self):
        """The milliseconds within which 99 of 100 cheeps came."""
        return 1000 * percentile(self.took, 99)


class Door:
    """An address, as a server for those who want one."""

    def __init__(self, address):
        self.address = tuple(address[:2])


def percentile(values, percent):
    """The value that so many percent are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


# --- the judge ---


def check_log(lines):
    """The file is whole: its numbers rise by one, and no (seat, id) stands in it twice."""
    events = [json.loads(line) for line in lines]
    numbers = [event["n"] for event in events]
    assert numbers == list(range(len(numbers))), f"a jump in n: {first_jump(numbers)}"
    seats, said = {}, {}
    for event in events:
        word, who = event["ev"], event.get("who")
        if word == "join":
            seats[who] = event["n"]
        elif event.get("id") is not None:
            key = seats.get(who), event["id"]
            assert key not in said, f"seat {key[0]} said id {key[1]} twice: {said[key]} and {event}"
            said[key] = event
        if word == "nick":
            seats[event["name"]] = seats.pop(who, None)
    return events


def first_jump(numbers):
    """Where these numbers stop being 0, 1, 2 and so on."""
    return next((number, i) for i, number in enumerate(numbers) if number != i)


def check_screen(who, seen, log, gone=frozenset()):
    """What somebody saw, less what is gone, is a stretch of the log to its end: no double, no gap."""
    doubles = len(seen) - len(set(seen))
    assert not doubles, f"{who} saw {doubles} lines twice, such as {first_double(seen)}"
    kept = [line for line in seen if line not in gone]
    assert kept, f"{who} saw nothing"
    start = log.index(kept[0])
    for there, here in zip(log[start:], kept):
        assert there == here, f"{who} has a gap or another order: the log has {there}, they have {here}"
    assert len(kept) == len(log) - start, f"{who} lacks the last {len(log) - start - len(kept)} lines"


def first_double(lines):
    """A line that stands here twice."""
    seen = set()
    return next(line for line in lines if line in seen or seen.add(line))


def check_fates(witness, fates=("confirmed", "given back", "told")):
    """Everything that somebody typed was confirmed, given back or told; returns how many came to what."""
    counts = dict.fromkeys(fates, 0)
    for text, became in witness.fates().items():
        assert became, f"{witness.view.name} typed {text!r}, and nothing became of it"
        for fate in became:
            counts[fate] += 1
    return counts
