"""The fan-out: one order for everyone, short sends, slow members, letters, many threads. Plain values."""
import gc
import itertools
import json
import random
import socket
import sys
import threading
import time

import pytest

import chat
from helpers import SECONDS, Wire, ask, wait_for
from rooms import SESSION, after_join, enter, numbers, open_up, say, talk, taped_room, texts, words


@pytest.fixture
def room():
    return taped_room()


# --- one order ---


def test_everyone_is_given_the_lines_of_the_log_in_its_order(room):
    members = [enter(room, name) for name in ("ann", "bob", "eve")]
    for number in range(30):
        say(room, members[number % 3], f"line {number}")
    for member in members:
        assert after_join(member) == room.fanout.recording.lines()[member.seat - 1:]
    assert texts(members[0].out.lines()) == [f"line {number}" for number in range(30)]


def test_n_rises_by_one_from_the_session_line_on(room):
    ann = enter(room, "ann")
    say(room, ann, "one", "two", "three")
    ask(room, ann, "nick", name="anna")
    ask(room, None, "notice", text="all is well")
    ask(room, ann, "leave", why="left")
    room.flush()
    assert numbers(ann.out.lines()) == list(range(8))
    assert words(ann.out.lines())[1:] == ["session", "join", "one", "two", "three", "nick", "notice", "leave"]


def test_a_member_in_step_has_no_state(room):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    say(room, ann, "hi")
    assert ann.lag is bob.lag is None
    assert not room.fanout.lagging and not room.fanout.stuck


def test_a_round_is_one_send_to_each_however_many_lines_it_has(room):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    before = bob.out.sends
    for number in range(100):
        talk(room, ann, f"line {number}")
    ask(room, None, "notice", text="and this")
    room.flush()
    assert bob.out.sends == before + 1
    assert len(texts(bob.out.lines())) == 100


def test_everyone_is_sent_the_same_bytes_object(room):
    members, sent = [enter(room, f"m{number}") for number in range(5)], []
    for member in members:
        with room.fanout.baton:
            room.fanout.instep[member] = lambda data: sent.append(data) or len(data)
    say(room, members[0], "hi")
    assert len(sent) == 5 and len(set(map(id, sent))) == 1


def test_nobody_is_shown_what_is_not_in_the_recording(room):
    members = [enter(room, name) for name in ("ann", "bob")]
    shown = []
    room.fanout.recording.write = lambda lines: shown.extend(lines in member.out.data for member in members)
    say(room, members[0], "first the file")
    assert shown == [False, False]
    assert texts(members[1].out.lines()) == ["first the file"]


def test_an_event_made_during_a_round_is_carried_out_by_whoever_flushes(room):
    ann = enter(room, "ann")
    write, late = room.fanout.recording.write, ["meanwhile"]
    room.fanout.recording.write = lambda lines: write(lines) or (late and ask(room, None, "notice", text=late.pop()))
    say(room, ann, "now")
    assert words(ann.out.lines())[-2:] == ["now", "notice"]


def test_an_event_made_as_a_round_ends_is_not_left_behind(room):
    class Baton:
        """Another thread speaks at the last moment, and finds the baton taken."""

        def __init__(self):
            self.lock, self.late = threading.Lock(), ["at the last moment"]

        def acquire(self, wait):
            return self.lock.acquire(wait)

        def release(self):
            if self.late:
                ask(room, None, "notice", text=self.late.pop())
                room.flush()
            self.lock.release()

    ann = enter(room, "ann")
    room.fanout.baton = Baton()
    say(room, ann, "now")
    assert words(ann.out.lines())[-2:] == ["now", "notice"]


def test_who_flushes_does_not_have_to_go_on_for_ever(room):
    ann, wakes = enter(room, "ann"), []
    room.fanout.wake = lambda: wakes.append(True)
    room.fanout.recording.write = lambda lines: ask(room, None, "notice", text="somebody always speaks")
    say(room, ann, "hi")
    assert len(wakes) == 1, "the rest is for the caretaker"
    assert len(ann.out.lines()) == 3 + chat.ROUNDS  # welcome, session and join came before


# --- a wire that takes only part ---


def scene(room, bob):
    """Things happen, while bob's wire takes what it takes."""
    ann = enter(room, "ann")
    ask(room, bob, "hello", name="bob", id=1)
    room.flush()
    say(room, ann, "привет", "😀" * 20)
    say(room, bob, "hi")
    with_eve = enter(room, "eve")
    ask(room, ann, "nick", name="Ann")
    ask(room, with_eve, "leave", why="left")
    room.flush()
    say(room, ann, "last")


@pytest.fixture
def stopped_clock(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(time, "time", lambda: 1e9)


def scene_with(space):
    room = taped_room()
    room.log.resume(dict(SESSION))
    bob = chat.Member(Wire(space))
    scene(room, bob)
    return room, bob


def test_a_short_send_at_any_byte_loses_and_doubles_nothing(stopped_clock):
    whole = bytes(scene_with(None)[1].out.data)
    for space in range(len(whole)):
        room, bob = scene_with(space)
        assert bob.out.data == whole[:space]
        open_up(room, bob)
        assert bob.out.data == whole, f"after {space} bytes"
        assert bob.lag is None


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 1000])
def test_a_trickle_loses_and_doubles_nothing(stopped_clock, step):
    whole = bytes(scene_with(None)[1].out.data)
    room, bob = scene_with(0)
    while bob.lag:
        open_up(room, bob, step)
    assert bob.out.data == whole


@pytest.mark.parametrize("seed", range(5))
def test_lines_that_come_while_one_catches_up_keep_their_order(room, seed):
    chance = random.Random(seed)
    ann, bob = enter(room, "ann"), enter(room, "bob", 0)
    for number in range(300):
        talk(room, ann, f"line {number}")
        if chance.random() < 0.3:
            room.flush()
        if chance.random() < 0.5:
            open_up(room, bob, chance.choice([0, 1, 30, 300, 3000]))
    open_up(room, bob)
    assert after_join(bob) == room.fanout.recording.lines()[bob.seat - 1:]


def test_the_one_who_lags_does_not_hold_up_the_others(room):
    ann, bob, eve = enter(room, "ann"), enter(room, "bob", 0), enter(room, "eve")
    say(room, ann, "hi")
    assert texts(eve.out.lines()) == ["hi"] and not bob.out.data


def test_a_full_wire_is_given_to_the_helper_once(room):
    ann, bob, wakes = enter(room, "ann"), enter(room, "bob"), []
    room.fanout.wake = lambda: wakes.append(True)
    bob.out.space = 5
    for number in range(3):
        say(room, ann, "hi")
    assert room.fanout.stuck == [bob] and len(wakes) == 1


def test_one_who_caught_up_is_in_step_again(room):
    ann, bob = enter(room, "ann"), enter(room, "bob", 0)
    say(room, ann, "one")
    open_up(room, bob)
    before = bob.out.sends
    say(room, ann, "two")
    assert bob.out.sends == before + 1 and bob.lag is None
    assert texts(bob.out.lines()) == ["one", "two"]


def test_small_rounds_are_sent_together_to_one_who_lags(room):
    ann, bob = enter(room, "ann"), enter(room, "bob", 0)
    for number in range(500):
        say(room, ann, f"line {number}")
    open_up(room, bob)
    assert bob.out.sends <= 5
    assert len(texts(bob.out.lines())) == 500


def test_a_long_lag_is_not_copied_into_one_piece(room):
    ann, bob, offered = enter(room, "ann"), enter(room, "bob", 0), []
    for number in range(300):
        say(room, ann, "x" * 4000)
    bob.out.send = lambda data: offered.append(len(data)) or len(data)
    open_up(room, bob)
    assert sum(offered) > 1_000_000 and max(offered) < 100_000


def test_a_broken_wire_troubles_nobody_else(room):
    ann, bob, eve = enter(room, "ann"), enter(room, "bob"), enter(room, "eve")
    bob.out.broken = True
    say(room, ann, "one")
    say(room, ann, "two")
    assert texts(eve.out.lines()) == ["one", "two"]
    assert bob.out.ended == socket.SHUT_RDWR, "so that its reader notices"
    assert not room.fanout.lagging


def test_a_wire_that_breaks_while_it_lags_troubles_nobody_else(room):
    ann, bob = enter(room, "ann"), enter(room, "bob", 0)
    say(room, ann, "one")
    bob.out.broken = True
    open_up(room, bob)
    say(room, ann, "two")
    assert texts(ann.out.lines()) == ["one", "two"]
    assert bob.out.ended == socket.SHUT_RDWR and bob.lag is None and not room.fanout.lagging


def test_who_left_is_buried_and_only_then_closed(room):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    ask(room, bob, "leave", why="left")
    room.flush()
    assert not bob.out.closed
    room.bury(bob)
    room.flush()
    assert bob.out.closed
    say(room, ann, "hi")  # a wire that is sent to after its close complains
    assert words(bob.out.lines())[-1] == "leave"


def test_a_socket_that_the_helper_waits_for_is_not_closed_under_it(room):
    bob = enter(room, "bob", 0)
    assert room.fanout.stuck == [bob]
    bob.out.broken = True
    with room.fanout.baton:
        room.fanout.push(bob)
    ask(room, bob, "leave", why="lost")
    room.bury(bob)
    room.flush()
    assert not bob.out.closed and room.fanout.graves == [bob]


# --- slow members ---


def flood(room, member, size):
    """Say so many bytes in rounds of about 80 kB."""
    end = room.log.end + size
    while room.log.end < end:
        say(room, member, *["x" * 4000] * 20)


def test_who_lags_less_than_8_mib_loses_nothing(room):
    ann, bob = enter(room, "ann"), enter(room, "bob", 1000)
    flood(room, ann, (8 << 20) - 200_000)
    assert not bob.left
    open_up(room, bob)
    assert after_join(bob) == room.fanout.recording.lines()[bob.seat - 1:]


def slow_one(room):
    """ann, and bob who was cut for being slow."""
    ann, bob = enter(room, "ann"), enter(room, "bob", 10_000)
    flood(room, ann, (8 << 20) + 200_000)
    return ann, bob


def test_who_lags_more_than_8_mib_is_cut_and_the_others_are_told(room):
    ann, bob = slow_one(room)
    leave = next(line for line in ann.out.lines() if line.get("ev") == "leave")
    assert (leave["who"], leave["why"]) == ("bob", "slow")
    assert list(room.people) == ["ann"]
    assert after_join(ann) == room.fanout.recording.lines(), "the others lose nothing"


def test_who_is_cut_is_given_the_rest_of_its_line_and_the_reason(room):
    ann, bob = slow_one(room)
    open_up(room, bob)
    lines = bob.out.lines()
    assert (lines[-1]["re"], lines[-1]["code"]) == ("error", "slow")
    assert "too slow" in lines[-1]["text"]
    given = bob.out.data.splitlines(True)
    assert given[-2] in room.fanout.recording.lines() and len(bob.out.data) < 20_000
    assert numbers(lines)[1:] == list(range(2, len(lines) - 1))
    assert bob.out.ended == socket.SHUT_WR


def test_who_is_cut_between_two_lines_is_given_only_the_reason(room):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    bob.out.space = 0
    flood(room, ann, (8 << 20) + 200_000)
    open_up(room, bob)
    lines = bob.out.lines()
    assert words(lines)[:3] == ["welcome", "session", "join"]
    assert len(lines) <= 5 and lines[-1]["code"] == "slow"


def test_private_lines_count_as_lag(room):
    ann, bob = enter(room, "ann"), enter(room, "bob", 0)
    for number in range((8 << 20) // 4000):
        if not bob.left:
            ask(room, ann, "tell", to="bob", text="x" * 4000)
            room.flush()
    assert bob.left and not ann.left
    assert words(ann.out.lines()).count("tell") > 2000
    open_up(room, bob)
    assert bob.out.lines()[-1]["code"] == "slow"


def test_memory_is_bounded_when_nobody_lags(room):
    ann, _ = enter(room, "ann"), enter(room, "bob")
    room.fanout.recording = None
    flood(room, ann, 5 << 20)
    assert chunks_in_memory() < (1 << 20) + 200_000


def test_memory_is_free_again_when_the_slow_one_was_cut(room):
    room.fanout.recording = None
    ann, bob = enter(room, "ann"), enter(room, "bob", 0)
    flood(room, ann, 6 << 20)
    assert chunks_in_memory() > 6 << 20
    flood(room, ann, 4 << 20)
    assert bob.left
    assert chunks_in_memory() < (1 << 20) + 300_000


def test_memory_is_free_again_when_the_slow_one_caught_up(room):
    room.fanout.recording = None
    ann, bob = enter(room, "ann"), enter(room, "bob", 0)
    flood(room, ann, 5 << 20)
    open_up(room, bob)
    say(room, ann, "hi")
    assert chunks_in_memory() < (1 << 20) + 300_000


def chunks_in_memory():
    """The bytes of all logs of this process."""
    gc.collect()
    return sum(len(thing.data) for thing in gc.get_objects() if type(thing) is chat.Chunk)


def test_a_lag_of_very_many_rounds_goes_away_without_a_crash(room):
    # The rounds hang on one another; letting go of the first lets go of them all.
    ann, bob = enter(room, "ann"), enter(room, "bob", 0)
    for number in range(30_000):
        say(room, ann, "x")
    bob.out.broken = True
    open_up(room, bob)
    assert bob.lag is None


# --- the recording, as the room sees it ---


def test_trouble_with_the_recording_is_told_to_everyone_once(room):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    troubles = ["recording failed"]
    room.fanout.recording.write = lambda lines: troubles.pop() if troubles else None
    say(room, ann, "one")
    say(room, ann, "two")
    for member in (ann, bob):
        assert words(member.out.lines())[-3:] == ["one", "notice", "two"]


def test_a_recording_that_fails_is_tried_again_each_second(room):
    enter(room, "ann")
    tries = []
    room.fanout.recording.write = tries.append
    assert room.fanout.look_after() == chat.RETRY_SECONDS and not tries
    room.fanout.recording.failing = True
    assert room.fanout.look_after() == chat.RETRY_SECONDS and tries == [b""]


def test_a_recording_whose_file_is_gone_is_over_and_everybody_is_told(room):
    ann = enter(room, "ann")
    gone = room.fanout.recording
    gone.write, gone.gone, gone.closed = (lambda lines: "it is gone"), True, []
    gone.close = lambda: gone.closed.append(True)
    say(room, ann, "one")
    assert {**ann.out.lines()[-1], "n": 0, "t": 0} == {"ev": "notice", "n": 0, "t": 0, "text": "it is gone",
                                                       "recorded": False}
    assert room.fanout.recording is None and gone.closed == [True]
    assert "recorded" not in enter(room, "bob").out.lines()[0]


def test_the_log_in_memory_can_be_read_from_any_number_on(room):
    ann = enter(room, "ann")
    for number in range(20):
        say(room, ann, "one", "two", "three")
    for n in (0, 5, 30, room.log.n - 1, room.log.n):
        given = b"".join(chunk.data for chunk in room.since(n)).splitlines(True)
        wanted = room.fanout.recording.lines()[n:]
        assert len(given) - len(wanted) in (0, 1, 2), "no more than the rest of a round before"
        assert given[len(given) - len(wanted):] == wanted


# --- many threads ---


class RestlessWire(Wire):
    """A wire that is full, takes a part or takes all, by chance."""

    calm = False

    def __init__(self, seed):
        super().__init__()
        self.chance = random.Random(seed)

    def send(self, data):
        if not self.calm:
            self.space = self.chance.choice([0, 1, 100, 1000, 10**9])
        try:
            return super().send(data)
        finally:
            self.space = None


class RestlessCaretaker:
    """Does what the caretaker does, for wires that nobody can wait for."""

    def __init__(self, room):
        self.room, self.stopped, self.called = room, False, threading.Event()
        room.fanout.wake = self.called.set
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stopped:
            self.called.wait(0.001 if self.room.fanout.lagging else None)
            self.called.clear()
            with self.room.fanout.baton:
                for member in list(self.room.fanout.lagging):
                    self.room.fanout.push(member)
                for member in self.room.fanout.stuck:
                    member.watched = False
                self.room.fanout.stuck.clear()
                for member in self.room.fanout.graves:
                    member.out.close()
                self.room.fanout.graves.clear()
            self.room.flush()

    def stop(self):
        self.stopped = True
        self.called.set()
        self.thread.join()


@pytest.fixture
def quick_switches():
    """Threads that take turns at every opportunity."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def live(room, seed, everyone):
    """One person's evening: comes, talks, changes its name, goes and comes again."""
    chance, counter = random.Random(seed), itertools.count()
    for visit in range(4):
        member = chat.Member(RestlessWire(chance.random()))
        everyone.append(member)
        ask(room, member, "hello", name=f"p{seed}")
        room.flush()
        for _ in range(chance.randint(1, 20)):
            if chance.random() < 0.8:
                talk(room, member, *(f"{seed}:{next(counter)}" for _ in range(chance.randint(1, 4))))
            else:
                ask(room, member, "nick", name=f"p{seed}x{next(counter)}")
            room.flush()
        if visit < 3:
            ask(room, member, "leave", why="left")
            room.flush()


def tell_each_other(room, ann, bob):
    for number in range(100):
        ask(room, ann, "tell", to="bob", text=f"ann {number}")
        ask(room, bob, "tell", to="ann", text=f"bob {number}")
        room.flush()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_many_threads_do_each_member_is_given_its_stretch_of_the_log(seed, quick_switches):
    room, everyone, people = taped_room(), [], 8
    caretaker = RestlessCaretaker(room)
    pair = [chat.Member(RestlessWire(seed)) for _ in range(2)]
    for member, name in zip(pair, ("ann", "bob")):
        ask(room, member, "hello", name=name)
    everyone += pair
    threads = [threading.Thread(target=live, args=(room, seed * people + number, everyone))
               for number in range(people)]
    threads.append(threading.Thread(target=tell_each_other, args=(room, *pair)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ask(room, None, "end")
    room.flush()
    for member in everyone:
        member.out.calm = True
    caretaker.called.set()
    wait_for(lambda: not room.fanout.lagging and not room.fanout.unsent, "everything is sent")
    caretaker.stop()

    log = room.fanout.recording.lines()
    assert [json.loads(line)["n"] for line in log] == list(range(1, len(log) + 1))
    for member in everyone:
        given = [line for line in member.out.data.splitlines(True) if line.startswith(b'{"ev"')]
        events = [json.loads(line) for line in given]
        assert member.out.lines()[0]["re"] == "welcome" and events[0]["ev"] == "session"
        first = next(event for event in events if event["n"] == member.seat)["from"]
        assert given[1:] == log[first - 1:events[-1]["n"]]
        assert member.out.lines()[-1]["ev"] in ("leave", "end")
        assert member.out.ended == socket.SHUT_WR
    for member in pair:
        letters = [line["text"] for line in member.out.lines() if line.get("re") == "tell"]
        for name in ("ann", "bob"):
            assert [text for text in letters if text.startswith(name)] == [f"{name} {n}" for n in range(100)]


def test_two_who_flush_at_once_leave_nothing_behind(room, quick_switches):
    members = [enter(room, "ann"), enter(room, "bob")]
    meet = threading.Barrier(2, timeout=SECONDS)
    left_behind = []

    def speak(member):
        for _ in range(500):
            meet.wait()
            say(room, member, "now")
            meet.wait()
            if room.log.pending:
                left_behind.append(member)

    threads = [threading.Thread(target=speak, args=(member,)) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not left_behind
    assert len(texts(members[0].out.lines())) == 1000


def test_what_goes_wrong_is_told_by_its_kind_and_not_too_often():
    bell = chat.Bell()
    for _ in range(100):
        bell.fail(MemoryError("somebody's words"))
    (told,) = bell.faults
    assert "(MemoryError)" in told and "words" not in told and bell.is_set()
