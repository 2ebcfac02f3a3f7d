"""`replay`: a recorded session again, with its own timing, a clock of the tests' own, and no waiting."""
import contextlib
import functools
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import tracemalloc

import pytest

import chat
import helpers
from helpers import (EVENTS, MINE, SESSION, STRANGE, UNWANTED, Wire, data, end, join, leave, mark, nick, put, say, tape_of,
                     tell, welcome)

CHAT = [sys.executable, chat.__file__]
SHOWN = """\
12:00 -- room лаб, open since 2026-11-20 12:00
12:00 -- юля joined
12:00 юля: привет
      │ мир
12:01 -- юля left
12:01 -- the room is closed
"""


@pytest.fixture
def recorded(tmp_path):
    """A file with a session."""
    return put(tmp_path / "lab.jsonl", EVENTS)


class Clock:
    """A clock that only sleeping moves on."""

    def __init__(self):
        self.now, self.slept = 1000.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert 0 <= seconds <= threading.TIMEOUT_MAX, "no system can sleep so"
        self.slept.append(seconds)
        self.now += seconds

    @property
    def passed(self):
        return self.now - 1000.0


@pytest.fixture
def clock(monkeypatch):
    """The clock by which replay goes."""
    clock = Clock()
    monkeypatch.setattr(chat, "pace", functools.partial(chat.pace, clock=clock, sleep=clock.sleep))
    return clock


def scene(event):
    return event["t"], None, event


def at(*times):
    """Scenes at these times."""
    return [scene({"ev": "end", "n": n, "t": t}) for n, t in enumerate(times)]


def steps(scenes, longest=0):
    return [step for step, scene in chat.cap_silence(scenes, longest)]


def times_of(timed, speed=1.0, printing=0.0):
    """When each event comes by a clock of its own, if printing each takes so long."""
    clock, found = Clock(), []
    for _ in chat.pace(timed, speed, clock, clock.sleep):
        found.append(clock.passed)
        clock.now += printing
    return found


# --- what one person saw ---


def short(event):
    """An event in short: its n, or what else it is."""
    return event.get("n") if "ev" in event else event.get("re", "here")


def scenes_of(tape, n=None, start=0.0, end=float("inf")):
    """The scenes that the person saw whose join was n, or everybody."""
    return list(tape.between(tape.find_seat(str(n)) if n else None, start, end))


def seats_in(tape):
    tape.grow_whole()
    return list(tape.seats.values())


def seen_by(events, n=None):
    """(name, event in short) of each scene."""
    return [(viewer, short(event)) for moment, viewer, event in scenes_of(tape_of(events), n)]


def numbers_seen(events, n=None):
    return [number for viewer, number in seen_by(events, n)]


@pytest.mark.parametrize("events, n, seen", [
    ([join(1, "ann"), say(2), join(3, "bob", 2), say(4), leave(5, "bob"), say(6)], 3, [0, 2, 3, 4, 5]),
    ([join(1, "ann"), say(2), join(3, "bob", 3), say(4), say(5)], 3, [0, 3, 4, 5]),
    ([join(1, "bob", 1), say(2), end(3)], 1, [0, 1, 2, 3]),
    ([join(1, "ann"), join(2, "bob"), leave(3, "ann"), leave(4, "bob")], 1, [0, 1, 2, 3]),
    ([join(1, "bob"), nick(2, "bob", "rob"), join(3, "bob"), leave(4, "bob"), say(5), leave(6, "rob"),
      say(7)], 1, [0, 1, 2, 3, 4, 5, 6]),
    ([join(1, "ann"), nick(2, "ann", "bob"), nick(3, "bob", "ann"), leave(4, "bob"), leave(5, "ann"),
      say(6)], 1, [0, 1, 2, 3, 4, 5]),
    ([join(1, "bob"), nick(2, "bob", "rob"), join(3, "bob", 1), nick(4, "rob", "eve"), leave(5, "eve"),
      leave(6, "bob"), say(7)], 3, [0, 1, 2, 3, 4, 5, 6]),
    ([join(1, "bob"), leave(2, "bob"), join(3, "bob", 1), say(4), leave(5, "bob", "lost"), say(6)], 3,
     [0, 1, 2, 3, 4, 5]),
    ([join(1, "bob"), leave(2, "bob"), join(3, "bob", 1), say(4)], 1, [0, 1, 2]),
    ([join(1, "bob"), say(2), end(3), join(4, "eve"), leave(5, "bob")], 1, [0, 1, 2, 3]),
    ([join(1, "bob"), end(2), join(3, "bob", 1), say(4)], 3, [0, 1, 2, 3, 4]),
    ([join(1, "bob"), leave(2, "bob", "lost"), say(3)], 1, [0, 1, 2]),
    ([join(1, "bob"), say(3), join(5, "bob", 3), leave(6, "bob")], 1, [0, 1, "here", 3]),
    ([join(1, "bob"), say(3), join(5, "bob", 3), leave(6, "bob")], 5, [0, 3, "here", 5, 6]),
    ([join(1, "bob"), {"ev": "poll", "t": 1.5}, {"ev": "poll", "n": "?", "t": 1.5}, say(2)], 1,
     [0, 1, None, "?", 2]),
], ids=["history and own leave", "no history", "the end", "others leave", "another of the old name",
        "to and fro", "former owner is renamed", "former owner left", "the former owner",
        "ended in the middle", "came back after the end", "lost", "a leave is missing",
        "the next after a missing leave", "unknown events"])
def test_a_seat_is_given_its_history_and_all_until_it_is_left(events, n, seen):
    assert numbers_seen([SESSION, *events], n) == seen


def test_everybody_together_saw_everything_and_have_no_name():
    events = [SESSION, join(1, "ann"), leave(2, "ann"), end(3), join(4, "ann")]
    assert seen_by(events) == [(None, 0), (None, 1), (None, 2), (None, 3), (None, 4)]


def test_the_viewer_has_the_name_of_that_moment():
    events = [SESSION, join(1, "ann"), join(2, "bob"), nick(3, "bob", "rob"), nick(4, "ann", "bob"), say(5),
              nick(6, "rob", "eve"), leave(7, "eve")]
    assert [viewer for viewer, n in seen_by(events, 2)] == ["bob"] * 4 + ["rob"] * 3 + ["eve"]


def test_a_name_in_the_history_is_somebody_elses():
    events = [SESSION, join(1, "bob"), nick(2, "bob", "rob"), join(3, "bob", 1), say(4)]
    assert {viewer for viewer, n in seen_by(events, 3)} == {"bob"}
    assert {viewer for viewer, n in seen_by([welcome(2, "bob"), *events])} == {"bob"}


def test_all_history_comes_at_the_moment_of_joining():
    events = [SESSION, join(1, "ann"), say(2), join(9, "bob", 1), say(10)]
    moments = [moment for moment, viewer, event in scenes_of(tape_of(events), 9)]
    assert moments[:4] == [9.0] * 4 and moments[-1] == 10.0


REJOINED = [*MINE, welcome(12, "rob", "ann"), say(10), leave(11, "rob", "lost"), say(12),
            join(13, "rob", 9), say(14), tell(15, "ann", "rob")]


def test_ones_own_recording_is_seen_whole_and_under_ones_own_names():
    seen = seen_by(MINE)
    assert [number for name, number in seen] == ["welcome", 0, 1, 2, 3, "tell", 4, 5, "who", "error", 7, 8]
    assert [name for name, number in seen] == ["bob"] * 8 + ["rob"] * 4


def test_ones_own_seat_in_ones_own_recording_is_the_same():
    assert seen_by(MINE, 3) == seen_by(MINE)


def test_somebody_elses_seat_in_ones_own_recording_has_no_private_lines():
    assert numbers_seen(MINE, 1) == [0, 1, 2, 3, 4, 5, 7, 8]
    assert numbers_seen(MINE, 7) == [0, 2, 3, 4, 5, 7, 8]


def test_a_second_welcome_begins_a_second_seat():
    assert numbers_seen(REJOINED)[-7:] == ["welcome", 10, 11, 12, 13, 14, "tell"]
    assert numbers_seen(REJOINED, 3) == [*numbers_seen(MINE), 10, 11]
    assert numbers_seen(REJOINED, 13) == [0, "welcome", 10, 11, 12, 13, 14, "tell"]
    assert [name for name, number in seen_by(REJOINED)][-7:] == ["rob"] * 7


def test_what_is_said_before_the_second_welcome_comes_with_it():
    moments = [moment for moment, viewer, event in scenes_of(tape_of(REJOINED))]
    assert moments[-7:] == [13.0] * 5 + [14.0, 15.0]


# --- from and to ---


@pytest.mark.parametrize("start, end, left", [
    (0.0, float("inf"), [0, 1, 1, 3, 7]), (1.0, float("inf"), [1, 1, 3, 7]), (1.5, 3.0, [3]), (0.0, 2.9, [0, 1, 1]),
    (7.1, float("inf"), []), (0.0, 0.0, [0]), (5.0, 2.0, []), (7.0, 1e11, [7])], ids=str)
def test_scenes_can_be_taken_from_one_moment_to_another(start, end, left):
    tape = tape_of([SESSION, *({**say(n), "t": t} for n, t in enumerate((1.0, 1.0, 3.0, 7.0), 1))])
    assert [moment for moment, viewer, event in scenes_of(tape, None, start, end)] == left


# --- silence ---


def test_the_first_event_comes_at_once():
    assert steps(at(500.0, 501.0)) == [0, 1]


def test_events_come_as_far_apart_as_they_were():
    assert steps(at(0.0, 1.5, 1.5, 4.0)) == [0, 1.5, 0, 2.5]


def test_silence_is_no_longer_than_asked_for():
    assert steps(at(0.0, 1.5, 100.0, 102.0, 104.5), 2.0) == [0, 1.5, 2.0, 2.0, 2.0]


def test_a_longest_silence_of_0_caps_nothing():
    assert steps(at(0.0, 10_000.0), 0) == [0, 10_000.0]


def test_no_event_comes_before_another_when_time_falls():
    assert steps(at(0.0, 10.0, 4.0, 9.0, 11.0)) == [0, 10.0, 0, 0, 1.0]


def test_the_scenes_are_passed_on_as_they_are():
    scenes = list(map(scene, EVENTS))
    assert [scene for step, scene in chat.cap_silence(scenes, 1.0)] == scenes


def test_nothing_comes_of_nothing():
    assert list(chat.pace(chat.cap_silence([], 1.0), 1.0)) == []


def test_events_are_read_only_when_their_time_comes():
    scenes, clock = map(scene, EVENTS), Clock()
    playing = chat.pace(chat.cap_silence(scenes, 1.0), 1.0, clock, clock.sleep)
    assert (next(playing), next(scenes)) == (scene(EVENTS[0]), scene(EVENTS[1]))


# --- pace ---


def timed(*steps):
    return list(zip(steps, at(*range(len(steps)))))


def test_each_event_comes_when_its_time_has_come():
    assert times_of(timed(0, 1.5, 0, 2.5)) == [0, 1.5, 1.5, 4.0]


@pytest.mark.parametrize("speed", [2.0, 0.5, 8.0])
def test_everything_comes_as_many_times_faster_as_asked_for(speed):
    assert times_of(timed(0, 1.0, 2.0), speed) == [0, 1 / speed, 3 / speed]


def test_what_printing_took_is_made_up_for():
    assert times_of(timed(0, 1, 1, 1), printing=0.25) == [0, 1, 2, 3]


def test_after_slow_printing_nothing_waits_until_all_is_made_up_for():
    clock, found = Clock(), []
    for _, _, event in chat.pace(timed(0, 1, 1, 1, 1, 1), 1.0, clock, clock.sleep):
        found.append(clock.passed)
        if event["n"] == 1:
            clock.now += 2.5  # a terminal that stood still
    assert found == [0, 1, 3.5, 3.5, 4, 5]


def test_what_is_due_now_does_not_sleep():
    clock = Clock()
    list(chat.pace(timed(0, 0, 0), 1.0, clock, clock.sleep))
    assert clock.slept == []


def test_a_clock_that_moves_on_while_it_is_read_does_no_harm():
    class Running(Clock):
        def __call__(self):
            self.now += 0.01
            return self.now

    clock = Running()
    events = list(chat.pace(timed(*[0.003 * step for step in range(100)]), 1.0, clock, clock.sleep))
    assert len(events) == 100 and clock.slept


@pytest.mark.parametrize("step, speed", [(1e11, 1.0), (2.0, 1e-300), (2.0, 5e-324)])
def test_a_wait_longer_than_any_system_can_sleep_is_no_error(step, speed):
    clock = Clock()

    def sleep(seconds):
        clock.sleep(seconds)
        if len(clock.slept) == 3:
            raise TimeoutError  # the test has seen enough

    with contextlib.suppress(TimeoutError):
        list(chat.pace(timed(0, step), speed, clock, sleep))
    assert clock.slept


# --- rows ---


def test_what_a_seat_was_told_of_before_is_dim():
    events = [SESSION, join(1, "ann"), say(2), join(3, "bob", 1), say(4)]
    tape = tape_of(events)
    seat = tape.find_seat("bob")
    rows = chat.rows_of(scenes_of(tape, 3), tape.session, seat)
    dim = [all(style == "history" for style, text in pieces) for pieces in rows]
    assert dim == [False, True, True, False, False]


# --- a file that grows ---


class Writer:
    """A file that somebody writes into, one part at each wait; when nothing is left, the wait ends it all."""

    def __init__(self, path, *parts):
        path.write_bytes(b"")
        self.file, self.parts, self.waits = path.open("ab", buffering=0), list(parts), 0

    def wait(self, seconds):
        self.waits += 1
        if not self.parts:
            raise KeyboardInterrupt
        self.file.write(self.parts.pop(0))


def followed(path, *parts):
    """What is seen of a file that is written in these parts, and how often more was waited for."""
    writer = Writer(path, *parts)
    writer.file.write(data([SESSION]))
    seen = []
    with path.open("rb") as file, writer.file, contextlib.suppress(KeyboardInterrupt):
        for moment, viewer, event in chat.Tape(file).between(wait=writer.wait):
            seen.append((short(event), writer.waits))
    return seen[1:]


LINE = data([say(2, "юля", "ю")])


@pytest.mark.parametrize("parts, seen", [
    ([data([say(1)]), LINE], [(1, 1), (2, 2)]),
    ([data([say(1)]) + LINE + LINE[:9], LINE[9:]], [(1, 1), (2, 1), (2, 2)]),
    ([LINE[:1], LINE[1:-1], b"", LINE[-1:]], [("here", 4), (2, 4)]),
    ([b"\n", b"\n\n"], []), ([LINE[:-1]], []), ([], []),
    ([LINE[:LINE.index("ю".encode()) + 1], LINE[LINE.index("ю".encode()) + 1:]], [("here", 2), (2, 2)]),
    ([b"x" * 250, b"x" * 250, b"x\n" + LINE], [("here", 3), (2, 3)]),
    ([data(EVENTS[1:2]), data(EVENTS[2:])[:9], data(EVENTS[2:])[9:]], [(1, 1), (2, 3), (3, 3), (4, 3)]),
], ids=str)
def test_a_file_that_grows_is_followed_in_whole_lines(tmp_path, monkeypatch, parts, seen):
    monkeypatch.setattr(chat, "REPLY_BYTES", 300)
    assert followed(tmp_path / "lab.jsonl", *parts) == seen


def test_who_came_since_is_known_when_the_file_has_grown(tmp_path):
    path = put(tmp_path / "lab.jsonl", [SESSION, join(1, "ann")])
    with path.open("rb") as file, path.open("ab", buffering=0) as more:
        tape = chat.Tape(file)
        assert [seat.n for seat in seats_in(tape)] == [1]
        more.write(data([join(2, "bob"), mark(3)]))
        assert tape.find_seat("bob").n == 2
        assert (list(tape.names), list(tape.marks)) == (["ann", "bob"], [3.0])


@pytest.mark.skipif(sys.platform == "win32", reason="needs the signals of Unix")
@pytest.mark.parametrize("options", [[], ["--instant"]], ids=str)
def test_a_piped_replay_follows_a_file_line_by_line(recorded, options):
    playing = subprocess.Popen([*CHAT, "replay", str(recorded), "--follow", *options], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, encoding="utf-8", env=environment())
    out, complaint = helpers.Output(playing.stdout), helpers.Output(playing.stderr)
    try:
        out.expect("the room is closed")
        with recorded.open("ab") as more:
            more.write(data([join(5, "eve")])[:-5])
            more.flush()
            more.write(data([join(5, "eve")])[-5:])
        out.expect("12:00 -- eve joined")
        playing.send_signal(signal.SIGINT)
        assert (playing.wait(helpers.SECONDS), complaint.text()) == (0, "")
    finally:
        playing.kill()
        playing.wait()
        out.text(), complaint.text()
        playing.stdout.close()
        playing.stderr.close()


# --- a recording that can be entered anywhere ---


def random_file(seed):
    """A file of events whose times do not fall, and whatever else may be in it; as a list of lines."""
    chance = random.Random(seed)
    ending, t, lines = chance.choice([b"\n", b"\r\n"]), 0.0, [data([SESSION])[:-1]]
    for n in range(1, chance.choice([1, 2, 5, 60])):
        t += chance.choice([0, 0, 0.5, 3])
        lines += chance.choice([[], [], [], [b"garbage"], [b""], [b'{"re":"pong","t":0.0}'], [b"x" * 299],
                                [b"x" * 301], [b"x" * 1500], [b"x" * 299 + data([say(3)])[:-1]],
                                [b'{"ev":"poll","t":%.3f}' % t]])
        lines.append(data([{**say(n), "t": t, "text": "x" * chance.choice([0, 1, 100])}])[:-1])
    lines = [line + ending for line in lines]
    if chance.random() < 0.3:
        lines[0] = b"\xef\xbb\xbf" + lines[0]
    return lines + [b"", b'{"torn', data([say(99, t=t + 1)])[:-1]][seed % 3:seed % 3 + 1]


def entries(content, **options):
    """The index of a file, and what is decoded by it."""
    tape = chat.Tape(io.BytesIO(content), **options)
    tape.grow_whole()
    lines = tape.lines
    return list(zip(lines.moments, lines.numbers, map(lines.read, range(len(lines)))))


WRONG = [line.replace(*change) for line in (data([say(1, "ann", 'a "b" \\ \n\t')]), data([say(1, "юля", "ё", id=9)])) for change in (
    (b"1.0", b"1e0"), (b"1.0", b"-1.0"), (b"1.0", b"99999999999.9999"), (b"1.0", b"100000000000"),
    (b":1,", b":9007199254740992,"), (b":1,", b":999999999999999,"), (b":1,", b":1.0,"),
    (b"}", b"} "), (b"{", b" {"), (b'"say"', b'"says"'), (b'"text":"', b'"text":"\\u0041'),
    (b'"who"', b'"who":"b","who"'), (b"\n", b"\r\n"), (b"\n", b"\r\r\n"), (b"", b""))]
# Damaged behind its beginning: passed over, at its own time.
TORN_INSIDE = [data([say(1, "ann")]).replace(*change) for change in (
    (b"1.0", b"01.0"), (b":1,", b":01,"),
    (b"}", b"}}"), (b"}", b",}"), (b'"text"', b'"test"'), (b'"text":"', b'"text":"\\ud800'), (b'"text":"', b'"text":"\\x'),
    (b'"text":"', b'"text":"\x01'), (b'"text":"', b'"text":"\xff'), (b'"text":"', b'"text":"\xed\xa0\x80'))]


@pytest.mark.parametrize("files", [
    [data([SESSION]) + line + data([say(2)]) for line in WRONG], list(STRANGE.values()),
    [b"".join(random_file(seed)) for seed in range(30)]], ids=["wrong", "strange", "random"])
def test_what_a_line_looks_like_is_what_it_is(files, monkeypatch):
    seen = []
    for believing in (True, False):
        if not believing:
            monkeypatch.setattr(chat, "_talk_or_other", re.compile(rb"()()[^\n]*\n"))
        for content in files:
            with contextlib.suppress(chat.ChatError):
                seen.append(entries(content))
    assert len(seen) > 40 and seen[:len(seen) // 2] == seen[len(seen) // 2:]


@pytest.mark.parametrize("line", TORN_INSIDE)
def test_a_line_that_is_damaged_behind_its_beginning_is_passed_over_and_leaves_no_gap(line):
    assert [(moment, n, [event.get("text") for event in events][-1:])
            for moment, n, events in entries(data([SESSION]) + line + data([say(2)]))[1:]] == [
        (1.0, 1, ["line 2 is damaged and was passed over"]), (2.0, 2, ["hi"])]


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_an_index_is_the_same_in_whatever_parts_it_is_made(seed, size, monkeypatch):
    content = b"".join(random_file(seed))
    whole = entries(content)
    monkeypatch.setattr(chat, "INDEX_BYTES", size)
    assert entries(content) == whole


def test_an_index_takes_little_memory():
    count = 100_000
    content = data([SESSION]) + b"".join(data([say(n)]) for n in range(1, count))
    tracemalloc.start()
    try:
        tape = tape_of(content)
        tape.grow_whole()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(tape.lines) == count and peak < 40 * count + (1 << 20) + chat.INDEX_BYTES * 20


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_the_index_knows_who_was_there_and_the_marks(bom):
    tape = tape_of(bom + data(MINE) + data([mark(9), leave(10, "eve"), end(11)]))
    assert [(seat.n, seat.first, seat.t, [name for i, name in seat.names], seat.left) for seat in seats_in(tape)] == [
        (1, 0, 1.0, ["ann"], 11.0), (3, 0, 3.0, ["bob", "rob"], 11.0), (7, 2, 7.0, ["eve"], 10.0)]
    assert (list(tape.marks), list(tape.names)) == ([9.0], ["ann", "bob", "rob", "eve"])


def test_the_index_ends_a_seat_whose_leave_is_missing():
    tape = tape_of([SESSION, join(1, "ann"), join(4, "ann"), leave(5, "ann")])
    assert [tape.lines.numbers[seat.last] for seat in seats_in(tape)] == [1, 5]


def test_the_index_knows_those_who_only_listened():
    assert list(tape_of([welcome(1, "bob", "quiet"), SESSION, join(2, "bob")]).names) == ["quiet", "bob"]


@pytest.mark.parametrize("event", [
    {"ev": "welcome", "t": 1.0}, {"ev": "poll", "t": 1.0, "re": "welcome"}, {"re": "join", "t": 1.0},
    {"re": "mark", "t": 1.0}, {"re": "end", "t": 1.0}, {"re": "nick", "t": 1.0, "who": "ann"},
    {**join(2, "bob"), "to": [1], "name": {}}, {**say(2), "who": "join", "name": [], "to": 7},
    {"ev": "poll", "t": 1.0, "who": ["tell"], "to": {"a": "tell"}, "name": "tell"}, {**end(2), "who": [1]},
    {**leave(2, "eve"), "name": [1]}, {"ev": "", "t": 1.0, "re": "welcome"}], ids=str)
def test_no_line_is_taken_for_what_it_is_not(tmp_path, capsys, event):
    path = put(tmp_path / "lab.jsonl", [SESSION, join(1, "ann"), event, say(3)])
    for options in (["--instant"], ["--as", "ann", "--instant"], ["--txt"],
                    ["--svg", "--from", "2"], ["--report", tmp_path / "report"]):
        assert command(path, *options) == 0, options
    assert tape_of(path.read_bytes()).viewer is None


@pytest.mark.parametrize("who, n", [("ann", 1), ("ANN", 1), ("1", 1), ("4", 4), ("bob", 2), ("rob", 2),
                                    ("eve", 4), ("5", 5), ("6", 6), ("ЮЛЯ", 7), ("ｂｏｂ", 2)])
def test_a_seat_is_found_by_number_or_name(who, n):
    events = [SESSION, join(1, "ann"), join(2, "bob"), nick(3, "bob", "rob"), join(4, "eve"), join(5, "eve"),
              join(6, "5"), join(7, "Юля")]
    assert tape_of(events).find_seat(who).n == n


@pytest.mark.parametrize("events, told", [
    ([join(1, "ann"), join(2, "b\x1b[2Job\n")], "nobody called zo\u2400e is in this recording; "
                                               "there are ann (1), b\u241b[2Job  (2)"),
    ([say(1)], "nobody called zo\u2400e is in this recording"),
    ([join(n, f"m{n}") for n in range(1, 40)], "nobody called zo\u2400e is in this recording; there are "
     + ", ".join(f"m{n} ({n})" for n in range(1, 31)) + " and more"),
], ids=["two", "nobody", "many"])
def test_who_is_not_there_is_told_with_those_who_are(events, told):
    with pytest.raises(chat.ChatError) as caught:
        tape_of([SESSION, *events]).find_seat("zo\0e")
    assert str(caught.value) == told


# --- from any moment on, all is as from the start ---


class Hall:
    """A real room in which people talk at random; `file` is its recording, `stays` is what each was given."""

    failing = gone = False

    def __init__(self, seed):
        self.chance = chance = random.Random(seed)
        self.room = room = chat.Room("lab", history=chance.choice([0, 2, 4, 50]))
        room.log.seconds = lambda: room.log.t
        room.log.t, self.file, self.here, self.stays = 0.0, bytearray(room.log.session_line), [], []
        room.fanout.recording = self
        for _ in range(chance.randrange(20, 80)):
            room.log.t = round(room.log.t + chance.choice([0, 0, 0.5, 1, 7]), 3)
            self.act(chance.choice("join join say say say me nick tell who leave lost no mark".split()))
            if chance.random() < 0.7:
                room.flush()
            if chance.random() < 0.02:
                self.close_and_open()
        room.flush()
        self.stays += [(member, bytes(member.out.data), False) for member in self.here]

    def write(self, lines):
        self.file += lines

    def close_and_open(self):
        """The server ends, and begins again on the same file."""
        room = self.room
        helpers.ask(room, None, "end")
        room.flush()
        self.stays += [(member, bytes(member.out.data), True) for member in self.here]
        self.here, t = [], room.log.t
        room.log.resume(room.log.session, room.log.n, t)
        room.log.t, room.host.left = t, False

    def act(self, what):
        room, name = self.room, self.chance.choice("ann bob eve юля 12 Rob".split())
        member = chat.Member(Wire()) if what == "join" else self.chance.choice(self.here or [None])
        try:
            if what == "join":
                helpers.ask(room, member, "hello", name=name)
                self.here.append(member)
            elif what in ("notice", "mark"):
                helpers.ask(room, None, what, text=name)
            elif not member:
                return
            elif what in ("say", "me"):
                helpers.ask(room, member, "talk", said=[{"do": what, "text": name}] * self.chance.choice([1, 1, 3]))
            elif what in ("leave", "lost"):
                room.flush()
                given = bytes(member.out.data)
                helpers.ask(room, member, "leave", why={"leave": "left"}.get(what, what))
                room.flush()
                self.here.remove(member)
                ended = what == "leave"
                self.stays.append((member, bytes(member.out.data) if ended else given, ended))
            elif what == "nick":
                helpers.ask(room, member, "nick", name=name)
            elif what == "tell":
                helpers.ask(room, member, "tell", to=name, text="psst")
            elif what == "who":
                helpers.ask(room, member, "who")
            else:
                room.refuse(member, chat.ChatError("no"))
        except chat.ChatError:
            pass

    def own_recordings(self):
        """What clients would have recorded that joined once, or again each time they were lost, as events."""
        stays = sorted(self.stays, key=lambda stay: stay[0].seat)
        for first in range(0, len(stays), 3):
            lines, last = [], -1
            for member, given, ended in stays[first:]:
                if member.seat > last:
                    for event in map(json.loads, given.splitlines()):
                        if "ev" not in event or event["n"] > last:
                            last = max(last, event["n"]) if "ev" in event else last
                            lines.append(event)
                    yield lines[:]


def assert_tails(content):
    """From whatever moment on a recording is looked at, and by whom, all is as from the start."""
    for n in [None, *(seat.n for seat in seats_in(tape_of(content)))]:
        tape = tape_of(content)
        whole = scenes_of(tape, n)
        moments = sorted({scene[0] for scene in whole})
        for t in {moment + step for moment in moments for step in (-0.25, 0.0, 0.25)}:
            assert scenes_of(tape, n, t) == [scene for scene in whole if scene[0] >= t], f"{t} as {n}"
            assert scenes_of(tape, n, 0.0, t) == [scene for scene in whole if scene[0] <= t], f"{t} as {n}"


@pytest.mark.parametrize("events", [
    MINE, REJOINED, [*REJOINED, end(16)], [SESSION, say(1), {"ev": "poll", "t": 2.0}, say(3)],
    [SESSION, join(1, "ann"), {"ev": "poll", "t": 2.0}, nick(3, "ann", "eve"), {"ev": "poll", "t": 4.0}],
    [SESSION, join(1, "ann"), say(3), join(4, "ann"), leave(5, "ann"), say(8)],
    [welcome(0, "a"), SESSION, join(1, "a"), nick(2, "a", "b"), tell(2.5, "b", "b"), tell(3, "a", "b")],
    [welcome(1, "ann"), SESSION, join(2, "ann"), leave(3, "ann"), {"re": "who", "t": 4.0, "people": []}],
], ids=["own", "joined again", "ended", "unknown", "unknown and nick", "missing leave", "private lines last",
        "reply after the leave"])
def test_from_any_moment_on_a_small_recording_is_as_from_the_start(events):
    assert_tails(data(events))


@pytest.mark.parametrize("seed", range(12))
def test_each_seat_of_a_real_room_is_what_that_person_was_given(seed):
    hall = Hall(seed)
    tape = tape_of(bytes(hall.file))
    assert [event for moment, viewer, event in scenes_of(tape)] == list(map(json.loads, hall.file.splitlines()))
    for member, given, ended in hall.stays:
        events = [event for event in map(json.loads, given.splitlines()) if "ev" in event]
        seen = [event for moment, viewer, event in scenes_of(tape, member.seat)]
        assert seen[:len(events)] == events
        assert seen == events or not ended


@pytest.mark.parametrize("seed", range(12))
def test_from_any_moment_on_all_is_as_from_the_start(seed):
    assert_tails(bytes(Hall(seed).file))


@pytest.mark.parametrize("seed", range(12))
def test_from_any_moment_on_ones_own_recording_is_as_from_the_start(seed):
    for events in itertools.islice(Hall(seed).own_recordings(), 6):
        assert [event for moment, viewer, event in scenes_of(tape_of(events))] == events
        assert_tails(data(events))


@pytest.mark.parametrize("t", [1.5, 2.0, 2.5, 6.0, 6.5])
def test_what_is_damaged_or_missing_is_remarked_from_any_moment_on(t):
    lines = [data([SESSION, join(1, "ann")]), b"garbage\n",
             data([say(4), {**say(5), "t": 4.0}, say(6)]), b"?\n", data([say(9)])]

    def told(start):
        return [(moment, event.get("n", "damaged" if "damaged" in str(event) else event.get("text")))
                for moment, viewer, event in scenes_of(tape_of(b"".join(lines)), None, start)]

    assert told(0.0)[2:5] == [(1.0, "damaged"), (4.0, "1 line was not recorded here"), (4.0, 4)]
    assert told(t) == [scene for scene in told(0.0) if scene[0] >= t]


# --- the command's function ---


def played(path, **options):
    out = io.StringIO()
    chat.replay(str(path), out=out, **options)
    return out.getvalue()


def rendered(events, session=SESSION, viewer=None):
    return "".join(chat.plain(chat.render(event, session, viewer)) + "\n" for event in events)


def test_a_replay_shows_what_was_seen(recorded, clock):
    assert played(recorded) == rendered(EVENTS) == SHOWN


def test_a_replay_at_once_shows_the_same(recorded, clock):
    assert played(recorded, instant=True) == SHOWN
    assert clock.slept == []


def test_a_replay_takes_as_long_as_the_session_when_nothing_is_cut(recorded, clock):
    played(recorded, max_gap=0)
    assert clock.passed == 65.5


def test_a_replay_cuts_silence_to_two_seconds(recorded, clock):
    played(recorded)
    assert clock.passed == 1.0 + 0.5 + 2.0 + 2.0


def test_a_replay_goes_as_fast_as_asked_for(recorded, clock):
    played(recorded, speed=4, max_gap=10)
    assert clock.passed == (1.0 + 0.5 + 10.0 + 4.0) / 4


def test_each_event_is_shown_before_the_wait_for_the_next(recorded, clock):
    class Screen(io.StringIO):
        def write(self, text):
            written.append((clock.passed, text.count("\n")))
            return super().write(text)

    written = []
    chat.replay(str(recorded), out=Screen())
    assert written == [(0, 1), (1.0, 1), (1.5, 2), (3.5, 1), (5.5, 1)]


def test_each_event_leaves_the_buffer_before_the_wait_for_the_next(recorded, monkeypatch):
    class Screen(io.StringIO):
        def flush(self):
            nonlocal flushed
            flushed = self.getvalue()

    screen, clock, flushed = Screen(), Clock(), ""

    def sleep(seconds):
        assert flushed == screen.getvalue()
        clock.sleep(seconds)

    monkeypatch.setattr(chat, "pace", functools.partial(chat.pace, clock=clock, sleep=sleep))
    chat.replay(str(recorded), out=screen)
    assert len(clock.slept) == 4


def test_what_is_damaged_or_missing_is_named_in_its_place(tmp_path):
    path = tmp_path / "lab.jsonl"
    path.write_bytes(chat.encode(SESSION) + b"garbage\n" + chat.encode(EVENTS[3]))
    shown = played(path, instant=True).splitlines()
    assert shown[1] == "12:00 -- line 2 is damaged and was passed over"
    assert shown[2] == "12:01 -- 1 line was not recorded here"
    assert shown[3] == "12:01 -- юля left"


def test_an_event_that_nobody_knows_is_shown_plainly(tmp_path):
    path = put(tmp_path / "lab.jsonl", [SESSION, {"ev": "poll", "n": 1, "t": 60.0, "question": "чай?"}])
    assert played(path, instant=True).endswith('12:01 -- {"ev":"poll","n":1,"t":60.0,"question":"чай?"}\n')


def test_what_has_nothing_to_show_takes_no_row(tmp_path):
    path = put(tmp_path / "lab.jsonl", [*EVENTS[:4], {"re": "pong", "t": 62.0}, EVENTS[4]])
    assert played(path, instant=True) == SHOWN


def test_nothing_in_a_session_is_obeyed_by_the_terminal(tmp_path):
    path = put(tmp_path / "lab.jsonl", [{**SESSION, "room": "\x1b]0;x\x07"},
                                        {**EVENTS[2], "text": "\x1b[2J\x9b2J\r"}])
    assert not set(played(path, instant=True)) & set("\x1b\x07\x9b\r")


OWN = [
    {"re": "welcome", "t": 3.0, "you": "bob", "n": 2, "people": ["юля", "bob"]},
    *EVENTS[:3],
    {"ev": "join", "n": 3, "t": 3.0, "who": "bob", "from": 0},
    {"re": "tell", "t": 4.0, "who": "юля", "to": "bob", "text": "psst"},
    {"ev": "nick", "n": 4, "t": 5.0, "who": "bob", "name": "rob"},
    {"ev": "nick", "n": 9, "t": 5.0, "who": "юля", "name": "ann"},
    {"re": "tell", "t": 6.0, "who": "rob", "to": "ann", "text": "yes?"},
    {"re": "tell", "t": 6.5, "who": "ann", "to": "bob", "text": "another bob"},
    {"re": "error", "t": 7.0, "code": "nobody", "text": "nobody here is called юля"},
]
OWN_SHOWN = """\
12:00 -- you are bob; 2 here: юля, bob
12:00 -- room лаб, open since 2026-11-20 12:00
12:00 -- юля joined
12:00 юля: привет
      │ мир
12:00 -- bob joined
12:00 юля → you (private): psst
12:00 -- bob is now rob
12:00 -- юля is now ann
12:00 you → ann (private): yes?
12:00 ann → bob (private): another bob
12:00 !! nobody here is called юля
"""


def test_ones_own_recording_is_shown_as_one_saw_it(tmp_path):
    assert played(put(tmp_path / "own.jsonl", OWN), instant=True) == OWN_SHOWN


def test_the_history_in_ones_own_recording_comes_at_once(tmp_path, clock):
    played(put(tmp_path / "own.jsonl", OWN), max_gap=0)
    assert clock.passed == 7.0 - 3.0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_terminal(path, monkeypatch, **environment):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    screen = Terminal()
    chat.replay(str(path), instant=True, out=screen)
    return screen.getvalue()


@pytest.mark.skipif(sys.platform == "win32", reason="asks the real console there")
def test_a_terminal_gets_colours(recorded, monkeypatch):
    shown = on_terminal(recorded, monkeypatch, TERM="xterm")
    assert "\x1b[" in shown and re.sub("\x1b\\[[0-9;]*m", "", shown) == SHOWN


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_whoever_wants_no_colours_gets_none(recorded, monkeypatch, environment):
    assert on_terminal(recorded, monkeypatch, **environment) == SHOWN


# --- the command ---


def command(*arguments):
    """What `replay` on the command line returns, in this process."""
    return chat.main(["replay", *map(str, arguments)])


def environment(encoding="utf-8"):
    """This machine's environment, but for what would change how Python writes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return dict(kept, PYTHONIOENCODING=encoding)


def run(*arguments, encoding="utf-8", stdout=subprocess.PIPE, **settings):
    """`replay` in a process of its own: exit code, output, and what it complained of."""
    done = subprocess.run([*CHAT, "replay", *map(str, arguments)], stdout=stdout, stderr=subprocess.PIPE,
                          env=environment(encoding), timeout=60, **settings)
    out, complaint = (done.stdout or b"").decode(encoding), done.stderr.decode(encoding)
    return done.returncode, out.replace("\r\n", "\n"), complaint.replace("\r\n", "\n")


def test_the_command_shows_the_session(recorded):
    assert run(recorded, "--instant") == (0, SHOWN, "")


def test_the_command_waits_as_replay_does(recorded, clock, capsys):
    assert command(recorded) == 0
    assert clock.passed == 1.0 + 0.5 + 2.0 + 2.0
    assert capsys.readouterr().out == SHOWN


@pytest.mark.parametrize("options, seconds", [
    (["--speed", "2"], 5.5 / 2), (["--speed", "0.5"], 11), (["--max-gap", "1"], 3.5),
    (["--max-gap", "0"], 65.5), (["--max-gap", "10", "--speed", "1e3"], 0.0155), (["--instant"], 0),
    (["--instant", "--speed", "0.1"], 0)], ids=str)
def test_the_options_change_the_time_it_takes(recorded, clock, capsys, options, seconds):
    assert command(recorded, *options) == 0
    assert clock.passed == pytest.approx(seconds)


@pytest.mark.parametrize("options", [
    ["--speed", "0"], ["--speed", "-1"], ["--speed", "fast"], ["--speed", "nan"], ["--speed", "inf"],
    ["--speed", ""], ["--speed", "1e999"], ["--speed"], ["--max-gap", "-1"], ["--max-gap", "nan"],
    ["--max-gap", "inf"], ["--max-gap", "2s"], ["--max-gap"], ["--instant=1"], ["--loud"], ["another.jsonl"]],
                         ids=str)
def test_wrong_options_are_wrong_usage(recorded, capsys, options):
    with pytest.raises(SystemExit) as caught:
        command(recorded, *options)
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert "usage: " in err and "error: " in err


@pytest.mark.parametrize("options, words", [(["--speed", "0"], "'0' is not a speed"),
                                            (["--speed", "fast"], "'fast' is not a speed"),
                                            (["--from", "1:75"], "1:75 is no time"),
                                            (["--from", "2", "--to", "1"], "--to is before --from"),
                                            (["--lang", "ru"], "--lang goes with --report"),
                                            (["--txt", "--times", "off"], "--times is for what is shown"),
                                            (["--report", "r", "--as", "ann"], "tells of the whole session"),
                                            (["--max-gap", "-1"], "'-1' is not a number of seconds")],
                         ids=str)
def test_what_is_wrong_with_an_option_is_said(recorded, capsys, options, words):
    with pytest.raises(SystemExit):
        command(recorded, *options)
    assert words in capsys.readouterr().err


def test_replay_without_a_file_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 2 and "FILE" in capsys.readouterr().err


def fails(capsys, *arguments):
    """The one sentence with which this fails."""
    assert command(*arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith(".\n")
    return err


def test_a_missing_file_is_told_in_one_sentence(tmp_path, capsys):
    assert "cannot read" in fails(capsys, tmp_path / "nothing.jsonl")


def test_a_folder_is_told_in_one_sentence(tmp_path, capsys):
    assert "cannot read" in fails(capsys, tmp_path)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that opens and cannot be read")
def test_a_file_that_fails_while_it_is_read_is_told_in_one_sentence():
    code, out, complaint = run("/proc/self/mem", "--instant")
    assert (code, out, complaint.count("\n")) == (1, "", 1)
    assert "cannot read /proc/self/mem" in complaint


@pytest.mark.parametrize("content", [b"", b"\n", b"milk\nbread\n", bytes(1000), bytes(range(256)) * 9,
                                     b'{"a":1}\n', chat.encode(EVENTS[2]), chat.encode(SESSION)[:-1]],
                         ids=lambda b: str(b[:12]))
@pytest.mark.parametrize("options", [[], ["--instant"]], ids=str)
def test_what_is_no_session_is_told_in_one_sentence(tmp_path, capsys, content, options):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    assert "is not a recorded session" in fails(capsys, path, *options)


def test_a_session_of_a_newer_chat_is_told_in_one_sentence(tmp_path, capsys):
    assert "newer chat" in fails(capsys, put(tmp_path / "new.jsonl", [{**SESSION, "v": 2}, *EVENTS[1:]]))


def test_ctrl_c_ends_a_replay_quietly(recorded, monkeypatch, capsys):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "pace", functools.partial(chat.pace, sleep=interrupted))
    assert command(recorded) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (SHOWN[:SHOWN.index("\n") + 1], "")


def test_a_reader_that_has_enough_ends_a_replay_quietly(tmp_path):
    many = [{**EVENTS[2], "n": n, "t": 1.0} for n in range(1, 10_000)]  # more than a pipe holds
    path = put(tmp_path / "long.jsonl", [SESSION, *many])
    playing = subprocess.Popen([*CHAT, "replay", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=environment())
    with playing:
        assert b"12:00 -- room" in playing.stdout.readline()
        playing.stdout.close()
        complaint = playing.stderr.read()
        assert (playing.wait(60), complaint) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "koi8-r", "cp437"])
def test_an_output_without_all_characters_gets_those_it_has(recorded, encoding):
    shown = SHOWN.encode(encoding, "replace").decode(encoding)
    assert run(recorded, "--instant", encoding=encoding) == (0, shown, "")


def test_a_file_name_that_cannot_be_printed_is_no_traceback(tmp_path):
    code, out, complaint = run("нет такого.jsonl", encoding="ascii", cwd=tmp_path)
    assert (code, out, complaint.count("\n")) == (1, "", 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_told_in_one_sentence(recorded):
    with open("/dev/full", "wb") as full:
        code, out, complaint = run(recorded, "--instant", stdout=full)
    assert (code, complaint.count("\n")) == (1, 1), complaint
    assert "No space left" in complaint


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="needs /dev/stdin")
@pytest.mark.parametrize("events, shown", [(EVENTS, SHOWN), (OWN, OWN_SHOWN)], ids=["server's", "own"])
def test_a_session_may_come_through_a_pipe(events, shown):
    data = b"".join(map(chat.encode, events))
    assert run("/dev/stdin", "--instant", input=data) == (0, shown, "")


# --- hostile files ---


COMMANDS = [["--instant"], ["--instant", "--times", "long", "--from", "2"], ["--instant", "--as", "ann"],
            ["--instant", "--as", "2", "--from", "3", "--to", "5"], [], ["--txt"], ["--svg"], ["--svg", "--as", "ann", "--at", "4"], ["--cast"], ["--report"],
            ["--report", "--lang", "ru"], ["--list"]]
def assert_well_behaved(folder, capsys, options):
    """One plain sentence or an output, and in it nothing that a terminal obeys."""
    path, report = folder / "strange.jsonl", folder / "report"
    if options == ["--list"]:
        code = command("--list", folder)
    elif options[:1] == ["--report"]:
        code = command(path, "--report", report, *options[1:])
    else:
        code = command(path, *options)
    out, err = capsys.readouterr()
    assert not UNWANTED.search(err)
    err = re.sub(r"(?m)^\(.*\)\n", "", err)  # what is good to know stands in brackets
    assert code == (1 if err else 0) and err.count("\n") == code, err
    assert not err or err.endswith(".\n") and len(err) < 3000
    made = list(report.iterdir()) if report.exists() else []
    for text in [out, err, *[file.read_bytes().decode() for file in made]]:
        assert not UNWANTED.search(text), ascii(text[max(UNWANTED.search(text).start() - 200, 0):][:400])
    return code, out, err


@pytest.fixture
def impatient(clock, monkeypatch):
    """The clock of a person who stops a replay that goes round and round, as with Ctrl+C."""
    def sleep(seconds):
        Clock.sleep(clock, seconds)
        if len(clock.slept) > 500:
            raise KeyboardInterrupt

    monkeypatch.setattr(clock, "sleep", sleep)
    monkeypatch.setattr(chat, "pace", functools.partial(chat.pace, sleep=sleep))


@pytest.mark.parametrize("options", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("name", STRANGE)
def test_no_file_does_harm(tmp_path, capsys, impatient, name, options):
    (tmp_path / "strange.jsonl").write_bytes(STRANGE[name])
    assert_well_behaved(tmp_path, capsys, options)


@pytest.mark.parametrize("seed", range(10))
def test_no_damage_to_a_file_does_harm(tmp_path, capsys, impatient, seed):
    chance, hall = random.Random(seed), Hall(seed)
    recordings = [bytes(hall.file), *map(data, itertools.islice(hall.own_recordings(), 2))]
    lines = bytearray(chance.choice(recordings)).splitlines(True)
    for _ in range(chance.randrange(1, 30)):
        where = chance.randrange(1, len(lines))
        line = lines[where]
        what = chance.randrange(6)
        if what == 0:
            line[chance.randrange(len(line))] = chance.randrange(256)
        elif what == 1:
            del line[chance.randrange(len(line)):]
        elif what == 2:
            lines.insert(where, lines[chance.randrange(len(lines))][:])
        elif what == 3 and len(lines) > 2:
            del lines[where]
        elif what == 4:
            word = chance.choice([b'"nick"', b'"welcome"', b"7"])
            line[:] = re.sub(rb'"(join|say|leave|nick|tell)"', word, line)
        else:
            line[:] = re.sub(rb":[\d.]+", b":%d" % chance.choice([0, 3, 10**9, 10**15]), line)
    (tmp_path / "strange.jsonl").write_bytes(b"".join(lines))
    for options in COMMANDS:
        assert_well_behaved(tmp_path, capsys, options)


@pytest.mark.parametrize("options", [options for options in COMMANDS if options != ["--list"]], ids=" ".join)
def test_what_cannot_be_opened_is_told_in_one_sentence(tmp_path, capsys, options):
    (tmp_path / "strange.jsonl").mkdir()
    assert assert_well_behaved(tmp_path, capsys, options)[0] == 1
    (tmp_path / "strange.jsonl").rmdir()
    assert assert_well_behaved(tmp_path, capsys, options)[0] == 1
    (tmp_path / "strange.jsonl").symlink_to("strange.jsonl")
    assert assert_well_behaved(tmp_path, capsys, options)[0] == 1
    assert not (tmp_path / "report").exists() or not list((tmp_path / "report").iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told_in_one_sentence(recorded, capsys):
    recorded.chmod(0)
    assert "cannot read" in fails(capsys, recorded)


def test_a_later_version_in_the_middle_ends_it_in_one_sentence(tmp_path, capsys):
    (tmp_path / "strange.jsonl").write_bytes(STRANGE["a later version in the middle"])
    code, out, err = assert_well_behaved(tmp_path, capsys, ["--instant"])
    assert code == 1 and "newer chat" in err and SHOWN.startswith(out)


def test_what_is_damaged_is_passed_over_and_the_rest_is_shown(tmp_path, capsys):
    for name in ("a giant line", "deep"):
        (tmp_path / "strange.jsonl").write_bytes(STRANGE[name])
        code, out, err = assert_well_behaved(tmp_path, capsys, ["--instant"])
        assert code == 0 and "".join(row for row in out.splitlines(True) if "damaged" not in row) == SHOWN
        assert len(re.findall(r"line \d is damaged and was passed over", out)) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_list_of_recordings_waits_for_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    put(tmp_path / "lab.jsonl", EVENTS)
    code, out, complaint = run("--list", tmp_path)
    assert (code, out.count("jsonl"), complaint) == (0, 1, "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("options", [["--as", "bob"], ["--from", "4"], ["--as", "3", "--from", "4"]],
                         ids=" ".join)
def test_a_session_through_a_named_pipe_can_be_entered_anywhere(tmp_path, options):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[data(MINE)])
    writer.start()
    piped = run(tmp_path / "pipe", "--instant", *options)
    writer.join()
    assert piped == run(put(tmp_path / "lab.jsonl", MINE), "--instant", *options)
    assert piped[0] == 0 and "-- bob is now rob" in piped[1]


# --- what real clients printed ---


REPLY = re.compile(r"\d\d:\d\d (-- (you are .*; )?\d+ here: |!! |\S+ → \S+ \(private\): )|-- the connection")


class Talker:
    """`join` with pipes instead of a terminal, in a process of its own."""

    def __init__(self, server, name, read=True):
        self.process = subprocess.Popen(
            [*CHAT, "join", "%s:%d" % server.address, "--name", name], encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment())
        self.name, self.cut, self.out = name, False, None
        if read:
            self.read()

    def read(self):
        self.out = helpers.Output(self.process.stdout)
        self.out.expect(f"-- you are {self.name};")
        self.out.expect(f"-- {self.name} joined")

    def type(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def leave(self):
        """Close the input, as the end of a script does, and wait for the goodbye."""
        self.process.stdin.close()
        assert self.process.wait(helpers.SECONDS) == 0

    def kill(self):
        self.cut = True
        self.process.kill()
        self.process.wait()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        if self.out:
            self.out.text()
        self.process.stdout.close()

    def events(self):
        """All that it printed but what was for it alone."""
        return [line for line in self.out.text().splitlines(True) if not REPLY.match(line)]


class Room:
    """A server that records, with talkers; at the end, all that they printed is compared with the replay."""

    def __init__(self, folder, *options, **limits):
        self.log, self.talkers, self.here = folder / "log.jsonl", [], {}
        self.server = helpers.Served("--log", self.log, "--rate", "0", *options, cwd=folder, limits=limits)

    def __enter__(self):
        return self

    def __exit__(self, *trouble):
        for talker in self.talkers:
            talker.close()
        self.server.__exit__()

    def come(self, name, **options):
        self.here[name] = Talker(self.server, name, **options)
        self.talkers.append(self.here[name])
        return self.here[name]

    def recorded(self, word, times=1):
        """Wait until the file holds this, so many times."""
        helpers.wait_for(lambda: self.log.read_bytes().count(word.encode()) >= times, word)

    def kill(self, name):
        """Have a client die, and wait until everybody knows."""
        before = self.log.read_bytes().count(b'"ev":"leave"')
        self.here.pop(name).kill()
        self.recorded('"ev":"leave"', before + 1)

    def compare(self):
        """End the room; returns how many lines each talker saw."""
        assert self.server.end() == 0
        replays, tape = [], tape_of(self.log.read_bytes())
        for talker in self.talkers:
            if not talker.cut:
                assert talker.process.wait(helpers.SECONDS) == 0
            mine = [seat.n for seat in seats_in(tape) if seat.names[0][1] == talker.name]
            seat = mine[[other for other in self.talkers if other.name == talker.name].index(talker)]
            shown = played(self.log, who=str(seat), instant=True).splitlines(True)
            printed = talker.events()
            if talker.cut:
                printed = printed[:-1] if printed and not printed[-1].endswith("\n") else printed
                assert printed == shown[:len(printed)]
            else:
                assert printed == shown
            replays.append(len(printed))
        return replays


needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs the signals of Unix")


@needs_signals
def test_the_replay_of_a_seat_is_what_that_client_printed(tmp_path):
    with Room(tmp_path, "--history", "2") as room, helpers.joined(room.server, "rows") as peer:
        ann, bob = room.come("ann"), room.come("боб")
        for line in ("привет, боб", "/me waves 👋", "/tell боб psst", "/who", "/nick server"):
            ann.type(line)
        bob.out.expect("ann → you .private.: psst")
        bob.type("/r yes")
        ann.out.expect("боб → you .private.: yes")
        ann.type("/nick anna")
        ann.type("БОБ?")
        peer.say("one\ntwo\n12:00 three", "\x1b[2J")
        room.recorded("[2J")
        bob.leave()
        zoe = room.come("zoe")
        again = room.come("боб")
        again.type("back")
        ann.out.expect("боб: back")
        zoe.leave()
        assert all(count >= 6 for count in room.compare())
        replies = [len(talker.out.text().splitlines()) - len(talker.events()) for talker in room.talkers]
        assert replies == [5, 3, 1, 1]
    assert again.out.text() != bob.out.text()


@needs_signals
def test_what_a_killed_client_printed_is_the_beginning_of_its_replay(tmp_path):
    with Room(tmp_path, HOLD_SECONDS=0.0) as room:
        ann, bob = room.come("ann"), room.come("bob")
        bob.type("one")
        bob.out.expect("bob: one")
        room.kill("bob")
        ann.type("two")
        ann.out.expect("ann: two")
        assert room.compare() == [7, 3]


@needs_signals
def test_what_a_client_printed_that_was_too_slow_and_came_back_is_its_replay(tmp_path):
    with Room(tmp_path) as room, helpers.joined(room.server, "loud") as loud:
        ann = room.come("ann", read=False)
        room.recorded('"join","n":2')
        cut = False
        while not cut:
            loud.say("😀" * 4000)
            loud.send(do="who")
            cut = "away" in loud.expect(re="who")
        ann.read()
        ann.type("here again")
        ann.out.expect("ann: here again")
        assert room.compare()[0] > 500


@needs_signals
@pytest.mark.parametrize("seed", range(4))
def test_a_random_evening_is_replayed_to_everybody_as_they_saw_it(tmp_path, seed):
    chance, number = random.Random(seed), itertools.count()
    with Room(tmp_path, "--history", chance.choice("0 3 50".split()), HOLD_SECONDS=0.0) as room:
        room.come("ann")
        for step in range(25):
            name = chance.choice(["ann", "боб", "李雷"])
            if name not in room.here:
                room.come(name)
                continue
            talker = room.here[name]
            what = chance.choice(["say", "say", "me", "tell", "who", "error", "nick", "leave", "kill"])
            if what == "leave" and len(room.here) > 1:
                room.here.pop(name).leave()
            elif what == "kill" and len(room.here) > 1:
                room.kill(name)
            else:
                talker.type({"me": "/me does", "tell": f"/tell {chance.choice(list(room.here))} psst",
                             "who": "/who", "error": "/nick server",
                             "nick": f"/nick {name}{next(number)}"}.get(what, f"hi {name}"))
                talker.type(f"step {step}")
                talker.out.expect(f"step {step}$")
        assert len(room.compare()) >= 2
