"""The log: times, and sessions that go on."""
import json
import random
import time

import pytest

import chat
from helpers import ask
from rooms import SESSION, enter, numbers, say, taped_room, words


@pytest.fixture
def room():
    return taped_room()


# --- time ---


class Clocks:
    """The two clocks of a computer, set by hand."""

    def __init__(self, monkeypatch):
        self.steady, self.wall = 1000.0, 2e9
        monkeypatch.setattr(time, "monotonic", lambda: self.steady)
        monkeypatch.setattr(time, "time", lambda: self.wall)

    def pass_by(self, steady, wall):
        self.steady += steady
        self.wall += wall


@pytest.fixture
def clocks(monkeypatch):
    return Clocks(monkeypatch)


@pytest.fixture
def fresh(clocks):
    """A room whose time is 0 and whose clocks are set by hand."""
    room = taped_room()
    room.log.resume(dict(SESSION))
    return room


@pytest.mark.parametrize("steady, wall, t", [
    (5, 5, 5), (0, 3600, 3600), (5, -3600, 5), (0, -5, 0), (7, 0, 7), (-5, -3, 0)],
    ids=["plain", "a laptop that slept", "a clock set back", "only back", "a wall that stands", "both back"])
def test_the_time_of_the_session_grows_by_the_clock_that_went_further(fresh, clocks, steady, wall, t):
    clocks.pass_by(steady, wall)
    assert fresh.log.seconds() == t


def test_a_clock_set_back_and_forth_does_not_count_twice(fresh, clocks):
    clocks.pass_by(1, -100)
    assert fresh.log.seconds() == 1
    clocks.pass_by(1, 1)
    assert fresh.log.seconds() == 2


def test_small_differences_between_the_clocks_do_not_add_up(fresh, clocks):
    for number in range(2000):
        clocks.pass_by(0.001, 0.5 if number % 2 else -0.498)
        fresh.log.seconds()
    assert fresh.log.seconds() == pytest.approx(2.0)


@pytest.mark.parametrize("seed", range(5))
def test_time_never_falls_whatever_the_clocks_do(fresh, clocks, seed):
    chance = random.Random(seed)
    ann = enter(fresh, "ann")
    for number in range(100):
        clocks.pass_by(steady=chance.choice([0, 0.0004, 1, 10]),
                       wall=chance.choice([0, 0.0004, 1, -1, -5, 10, -1000, 1000]))
        say(fresh, ann, "hi")
        ask(fresh, ann, "ping")
        fresh.refuse(ann, chat.ChatError("no"))
        fresh.flush()
    times = [line["t"] for line in ann.out.lines()[2:]]
    assert times == sorted(times)


def test_time_is_told_to_the_millisecond(fresh, clocks):
    clocks.pass_by(1.23456, 1.23456)
    ann = enter(fresh, "ann")
    clocks.pass_by(0.1, 0.1)
    say(fresh, ann, "hi")
    assert ann.out.lines()[2]["t"] == 1.235 and ann.out.lines()[3]["t"] == 1.335


def test_a_session_goes_on_with_its_number_and_never_earlier(clocks):
    room = taped_room()
    room.log.resume(dict(SESSION), 41, 99.5)  # whose start lies in the future of this computer's clock
    ann = enter(room, "ann")
    assert ann.seat == 42
    assert ann.out.lines()[2]["t"] == 99.5
    assert ann.out.lines()[1] == SESSION


def test_a_session_that_goes_on_counts_the_pause(clocks):
    room = taped_room()
    room.log.resume({**SESSION, "start": "2020-01-01T00:00:00.000+00:00"}, 41, 99.5)
    assert room.log.seconds() > 86400 * 365


def test_a_newcomer_to_a_session_that_goes_on_is_given_its_old_lines():
    first = taped_room()
    say(first, enter(first, "ann"), "one", "two")
    second = chat.Room("lab", history=1)
    second.log.resume(first.log.session, first.log.n, 1.0, bytes(first.fanout.recording.data))
    lines = enter(second, "bob").out.lines()
    assert words(lines) == ["welcome", "session", "two", "join"]
    assert lines[-1]["from"] == 3 and numbers(lines) == [0, 3, 4]


# --- what came since, and how far back it goes ---


def log_of(*rounds):
    """A log with so many lines in each round, numbered from 1."""
    log = chat.Log("lab")
    for count in rounds:
        log.append_talk('"ann"', [{"do": "say", "text": f"{log.n + number}"} for number in range(1, count + 1)])
        log.seal()
    return log


def lines(chunks):
    return b"".join(chunk.data for chunk in chunks).splitlines(True)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 9, 10])
def test_what_came_since_a_number_begins_in_the_round_of_the_next_one(n):
    rounds = [3, 1, 4, 2]
    log = log_of(*rounds)
    given = [json.loads(line)["n"] for line in lines(log.since(n))]
    first = next((sum(rounds[:i]) + 1 for i in range(4) if sum(rounds[:i + 1]) > n), 11)
    assert given == list(range(first, 11))


def test_a_round_without_events_makes_no_chunk():
    log = log_of(2)
    assert log.seal() is None and log.tail.last == 2 and len(log.kept) == 2


def test_an_event_that_cannot_be_encoded_leaves_no_trace():
    log = log_of(2)
    before = log.n, log.end, log.tail
    with pytest.raises(UnicodeEncodeError):
        log.append("notice", text="\ud800")
    assert (log.n, log.end, log.tail, log.pending) == (*before, [])


@pytest.mark.parametrize("most, first", [(0, 11), (2, 9), (7, 4), (50, 1)])
def test_history_is_so_many_lines_of_talk_sealed_or_not(most, first):
    log = log_of(3, 1, 4)
    log.append_talk('"ann"', [{"do": "me", "text": "x"}] * 2)
    place, n = log.history(most)
    assert n == first
    assert (b"".join(chunk.data for chunk in log.kept) + b"".join(log.pending))[place:].count(b"\n") == 11 - first
