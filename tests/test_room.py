"""The room: one order for everyone, newcomers, leavers, slow members, names. No network; plain values."""
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
from helpers import SECONDS, Tape, Wire, ask, wait_for

SESSION = {"ev": "session", "n": 0, "t": 0.0, "v": 1, "id": "s1", "start": "2100-01-01T00:00:00.000+00:00",
           "room": "lab"}  # in the future, so that every time is 0.0


@pytest.fixture
def room():
    return taped_room()


def taped_room(**options):
    room = chat.Room("lab", **options)
    room.fanout.recording = Tape()
    return room


def newcomer(room, name, space=None, id=None):
    """A member on a wire of its own, let in with the next round."""
    member = chat.Member(Wire(space))
    ask(room, member, "hello", name=name, id=id)
    return member


def enter(room, name, space=None):
    """A member who is inside."""
    member = newcomer(room, name, space)
    room.flush()
    return member


def say(room, member, *texts):
    """One batch of talk, and the round that carries it out."""
    talk(room, member, *texts)
    room.flush()


def talk(room, member, *texts):
    ask(room, member, "talk", said=[{"do": "say", "text": text} for text in texts])


def open_up(room, member, space=None):
    """The wire of a member takes more again, and the room is told, as by the caretaker."""
    member.out.space = space
    with room.fanout.baton:
        member.watched = False
        room.fanout.stuck = [other for other in room.fanout.stuck if other is not member]
        room.fanout.push(member)
    room.flush()


def after_join(member):
    """The encoded events that a member was given since its own join, with it."""
    lines = member.out.data.splitlines(True)
    return lines[next(i for i, line in enumerate(lines) if own_join(line, member)):]


def own_join(line, member):
    event = json.loads(line)
    return event.get("ev") == "join" and event["n"] == member.seat


def words(lines):
    """What lines are, in short: their first value, and what was said."""
    return [line["text"] if line.get("ev") in ("say", "me") else line.get("ev", line.get("re"))
            for line in lines]


def texts(lines):
    return [line["text"] for line in lines if line.get("ev") in ("say", "me")]


def numbers(lines):
    return [line["n"] for line in lines if "ev" in line]


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


# --- newcomers ---


def test_a_newcomer_is_given_welcome_session_history_its_join_and_what_follows(room):
    ann = enter(room, "ann")
    say(room, ann, "one", "two")
    bob = newcomer(room, "bob", id=7)
    room.flush()
    say(room, ann, "three")
    lines = bob.out.lines()
    assert words(lines) == ["welcome", "session", "join", "one", "two", "join", "three"]
    assert {**lines[0], "t": 0} == {"re": "welcome", "t": 0, "you": "bob", "n": 3, "people": ["ann", "bob"],
                                    "recorded": True, "id": 7}
    assert lines[5] == {"ev": "join", "n": 4, "t": lines[5]["t"], "who": "bob", "from": 1}
    assert numbers(lines) == [0, 1, 2, 3, 4, 5]


def test_the_session_line_says_what_the_room_is(room):
    ann = enter(room, "ann")
    session = ann.out.lines()[1]
    assert list(session) == ["ev", "n", "t", "v", "id", "start", "room"]
    assert session["n"] == 0 and session["v"] == 1 and session["room"] == "lab"


def test_history_is_the_old_lines_as_they_were(room):
    ann = enter(room, "ann")
    say(room, ann, "one", "two")
    bob = enter(room, "bob")
    assert bob.out.data.splitlines(True)[2:] == room.fanout.recording.lines()


def test_one_who_comes_in_the_middle_of_a_round_is_given_each_line_once(room):
    ann = enter(room, "ann")
    talk(room, ann, "before")
    bob = newcomer(room, "bob")
    talk(room, ann, "after")
    eve = newcomer(room, "eve")
    talk(room, bob, "last")
    room.flush()
    assert words(bob.out.lines()) == ["welcome", "session", "join", "before", "join", "after", "join", "last"]
    assert bob.out.data.splitlines(True)[2:] == eve.out.data.splitlines(True)[2:] == room.fanout.recording.lines()
    assert bob.out.lines()[0]["n"] == 2 and eve.out.lines()[0]["n"] == 4


def test_one_who_comes_and_goes_in_one_round_is_given_all_up_to_its_leave(room):
    ann = enter(room, "ann")
    talk(room, ann, "before")
    bob = newcomer(room, "bob")
    talk(room, bob, "hi and bye")
    ask(room, bob, "leave", why="left")
    talk(room, ann, "after")
    room.flush()
    assert words(bob.out.lines()) == ["welcome", "session", "join", "before", "join", "hi and bye", "leave"]
    assert bob.out.ended == socket.SHUT_WR
    assert texts(ann.out.lines()) == ["before", "hi and bye", "after"]


def test_a_name_can_come_go_and_come_again_in_one_round(room):
    first = newcomer(room, "bob")
    ask(room, first, "leave", why="left")
    second = newcomer(room, "bob")
    room.flush()
    assert words(first.out.lines()) == ["welcome", "session", "join", "leave"]
    assert words(second.out.lines()) == ["welcome", "session", "join", "leave", "join"]
    assert second.out.lines()[0]["people"] == ["bob"] and second.seat == 3


def test_the_first_of_all_is_alone(room):
    lines = enter(room, "ann").out.lines()
    assert lines[0]["n"] == 0 and lines[0]["people"] == ["ann"]
    assert lines[2]["from"] == 1


@pytest.mark.parametrize("history", [0, 1, 3, 50])
def test_a_newcomer_is_given_so_many_lines_of_talk(history):
    room = taped_room(history=history)
    ann = enter(room, "ann")
    for number in range(60):
        ask(room, ann, "talk", said=[{"do": ("say", "me")[number % 2], "text": str(number)}])
        if number % 7 == 0:
            room.flush()
    lines = enter(room, "bob").out.lines()
    assert texts(lines) == [str(number) for number in range(60 - history, 60)]


def test_history_0_is_nothing_but_ones_own_join():
    room = taped_room(history=0)
    say(room, enter(room, "ann"), "hi")
    bob = enter(room, "bob")
    assert words(bob.out.lines()) == ["welcome", "session", "join"]
    assert bob.out.lines()[2]["from"] == bob.seat


def test_history_looks_back_over_ten_times_as_many_events():
    room = taped_room(history=3)
    ann = enter(room, "ann")
    say(room, ann, "one", "two")
    for number in range(29):
        ask(room, ann, "nick", name=f"ann{number}")
        room.flush()
    assert texts(enter(room, "bob").out.lines()) == ["two"]
    assert len(enter(room, "eve").out.lines()) == 2 + 30 + 1


def test_history_is_at_most_256_kib(room):
    ann = enter(room, "ann")
    for number in range(40):
        say(room, ann, "я" * 4000)
    bob = enter(room, "bob")
    size = sum(len(line) for line in bob.out.data.splitlines(True)[2:-1])
    assert (256 << 10) - 8200 < size <= 256 << 10


def test_from_is_the_first_number_that_a_newcomer_was_given():
    room = taped_room(history=4)
    chance = random.Random(1)
    ann = enter(room, "ann")
    for number in range(50):
        action = chance.randrange(3)
        if action == 0:
            talk(room, ann, *"abc"[:chance.randint(1, 3)])
        elif action == 1:
            ask(room, ann, "nick", name=f"ann{number}")
        else:
            room.flush()
        bob = newcomer(room, f"bob{number}")
        if chance.random() < 0.3:
            ask(room, bob, "leave", why="left")
        room.flush()
        lines = bob.out.lines()
        join = next(line for line in lines if line.get("n") == bob.seat)
        assert numbers(lines)[1] == join["from"]
        assert numbers(lines)[1:] == list(range(join["from"], numbers(lines)[-1] + 1))


def test_many_newcomers_of_one_round_are_each_given_their_own_start(room):
    ann = enter(room, "ann")
    newcomers = []
    for number in range(100):
        talk(room, ann, f"line {number}")
        newcomers.append(newcomer(room, f"m{number}"))
    room.flush()
    for number, member in enumerate(newcomers):
        lines = member.out.lines()
        assert len(lines[0]["people"]) == number + 2
        assert texts(lines) == [f"line {other}" for other in range(max(0, number - 49), 100)]


# --- leavers ---


def test_the_own_leave_is_the_last_line_of_a_leaver(room):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    talk(room, ann, "before")
    ask(room, bob, "leave", why="left")
    talk(room, ann, "after")
    room.flush()
    say(room, ann, "later")
    lines = bob.out.lines()
    assert words(lines)[-2:] == ["before", "leave"]
    assert lines[-1] == {"ev": "leave", "n": lines[-1]["n"], "t": lines[-1]["t"], "who": "bob", "why": "left"}
    assert bob.out.ended == socket.SHUT_WR
    assert texts(ann.out.lines()) == ["before", "after", "later"]


@pytest.mark.parametrize("space", [0, 1, 50, 200])
def test_a_leaver_that_lags_is_given_all_up_to_its_leave(room, space):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    bob.out.space = space
    say(room, ann, "one", "two")
    talk(room, ann, "three")
    ask(room, bob, "leave", why="left")
    talk(room, ann, "after")
    room.flush()
    say(room, ann, "later")
    open_up(room, bob)
    assert words(bob.out.lines())[-4:] == ["one", "two", "three", "leave"]
    assert bob.out.ended == socket.SHUT_WR


def test_what_was_answered_before_the_leave_still_arrives(room):
    bob = enter(room, "bob")
    ask(room, bob, "ping", id=7)
    ask(room, bob, "leave", why="left")
    room.flush()
    assert words(bob.out.lines())[-2:] == ["pong", "leave"]


def test_nothing_is_given_after_the_own_leave_on_a_full_wire(room):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    bob.out.space = 0
    say(room, ann, "one")
    ask(room, bob, "leave", why="left")
    room.flush()
    ask(room, bob, "who")
    ask(room, bob, "ping")
    room.refuse(bob, chat.ChatError("no"))
    ask(room, bob, "tell", to="ann", text="psst")
    room.flush()
    open_up(room, bob)
    assert words(bob.out.lines())[-2:] == ["one", "leave"]


def test_one_who_was_removed_is_told_why_as_the_last_line(room):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    ask(room, bob, "leave", why="kicked", text="too loud")
    room.flush()
    leave, error = bob.out.lines()[-2:]
    assert (leave["ev"], leave["why"], leave["text"]) == ("leave", "kicked", "too loud")
    assert (error["re"], error["code"], error["text"]) == ("error", "kicked", "too loud")
    assert bob.out.ended == socket.SHUT_WR
    assert words(ann.out.lines())[-1] == "leave", "the others are told nothing more"


def test_one_who_has_left_can_do_nothing_more(room):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    ask(room, bob, "leave", why="left")
    room.flush()
    before = bytes(room.fanout.recording.data)
    say(room, bob, "from beyond")
    ask(room, bob, "nick", name="ghost")
    ask(room, bob, "tell", to="ann", text="boo")
    ask(room, bob, "leave", why="lost")
    room.flush()
    assert room.fanout.recording.data == before
    assert words(ann.out.lines())[-1] == "leave"


def test_a_leaver_whose_wire_stays_full_is_given_five_seconds(room, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bob = enter(room, "bob", 0)
    ask(room, bob, "leave", why="left")
    room.flush()
    assert room.fanout.look_after() == pytest.approx(5)
    now[0] += 4.5
    assert room.fanout.look_after() == pytest.approx(0.5)
    assert bob.out.ended is None
    now[0] += 0.5
    assert room.fanout.look_after() is None
    assert bob.out.ended == socket.SHUT_RDWR and bob.lag is None


# --- lines for one person ---


def test_a_private_line_reaches_two_among_many_and_never_the_log(room):
    members = [enter(room, f"m{number}") for number in range(30)]
    ask(room, members[3], "tell", to="m17", text="psst", id=5)
    room.flush()
    heard = {number: member.out.lines()[-1] for number, member in enumerate(members)
             if b"psst" in member.out.data}
    assert set(heard) == {3, 17}
    letter = {"re": "tell", "t": heard[3]["t"], "who": "m3", "to": "m17", "text": "psst"}
    assert heard == {3: {**letter, "id": 5}, 17: letter}
    assert b"psst" not in room.fanout.recording.data


def test_a_private_line_to_oneself_comes_once(room):
    ann = enter(room, "ann")
    ask(room, ann, "tell", to="ann", text="note to self", id=1)
    room.flush()
    assert ann.out.data.count(b"note to self") == 1


def test_a_private_line_finds_its_reader_however_the_name_is_written(room):
    ann, bob = enter(room, "ann"), enter(room, "Straße")
    ask(room, ann, "tell", to="STRASSE", text="psst")
    room.flush()
    assert bob.out.lines()[-1]["to"] == "Straße"


def test_a_private_line_to_nobody_is_refused(room):
    ann = enter(room, "ann")
    with pytest.raises(chat.ChatError, match="nobody here is called bob") as refusal:
        ask(room, ann, "tell", to="bob", text="psst")
    assert refusal.value.code == "nobody"


def test_a_private_line_follows_what_was_in_the_log(room):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    talk(room, ann, "public")
    ask(room, ann, "tell", to="bob", text="private")
    room.flush()
    assert bob.out.data.index(b"public") < bob.out.data.index(b"private")


@pytest.mark.parametrize("space", [0, 1, 60, 100])
def test_private_lines_to_one_who_lags_come_once_after_the_log_of_their_time(room, space):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    bob.out.space = space
    say(room, ann, "one")
    ask(room, ann, "tell", to="bob", text="private 1")
    room.flush()
    say(room, ann, "two")
    ask(room, ann, "tell", to="bob", text="private 2")
    room.flush()
    open_up(room, bob)
    seen = [line["text"] for line in bob.out.lines() if "text" in line]
    assert sorted(seen) == ["one", "private 1", "private 2", "two"]
    assert seen.index("one") < seen.index("private 1") < seen.index("private 2")
    assert seen.index("two") < seen.index("private 2")
    say(room, ann, "three")
    assert texts(bob.out.lines())[-1] == "three"


def test_a_newcomer_is_given_its_welcome_before_a_private_line(room):
    ann, bob = enter(room, "ann"), newcomer(room, "bob")
    ask(room, ann, "tell", to="bob", text="psst")
    room.flush()
    assert words(bob.out.lines()) == ["welcome", "session", "join", "join", "tell"]


def test_who_lists_the_people_in_the_order_of_their_coming(room):
    ann = enter(room, "ann")
    for name in ("юля", "Bob"):
        enter(room, name)
    ask(room, ann, "who", id=3)
    room.flush()
    line = ann.out.lines()[-1]
    assert {**line, "t": 0} == {"re": "who", "t": 0, "people": ["ann", "юля", "Bob"], "id": 3}


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
    assert numbers(lines)[1:] == list(range(1, len(lines) - 2))
    assert bob.out.ended == socket.SHUT_WR


def test_who_is_cut_between_two_lines_is_given_only_the_reason(room):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    bob.out.space = 0
    flood(room, ann, (8 << 20) + 200_000)
    open_up(room, bob)
    lines = bob.out.lines()
    assert words(lines)[:4] == ["welcome", "session", "join", "join"]
    assert len(lines) <= 6 and lines[-1]["code"] == "slow"


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


# --- names ---


@pytest.mark.parametrize("there, comes", [
    ("bob", "bob"), ("bob", "Bob"), ("Bob", "BOB"), ("bob", "ｂｏｂ"), ("Straße", "STRASSE"), ("юля", "ЮЛЯ"),
    ("ﬁn", "fin"), ("e\u0301va", "Éva")])
def test_a_name_is_taken_however_it_is_written(room, there, comes):
    enter(room, there)
    with pytest.raises(chat.ChatError, match="is taken") as refusal:
        ask(room, chat.Member(Wire()), "hello", name=comes)
    assert refusal.value.code == "name-taken"
    assert enter(room, refusal.value.name).name == refusal.value.name, "the suggestion is free"


def test_the_suggestion_is_a_name_that_nobody_has(room):
    for name in ("bob", "Bob-2", "BOB-3"):
        enter(room, name)
    with pytest.raises(chat.ChatError) as refusal:
        ask(room, chat.Member(Wire()), "hello", name="bob")
    assert refusal.value.name == "bob-4"
    assert "bob-4 is free" in str(refusal.value)


def test_the_suggestion_for_the_longest_name_is_a_name_too(room):
    name = "ж" * chat.NAME_POINTS
    for _ in range(12):
        enter(room, name)
        with pytest.raises(chat.ChatError) as refusal:
            ask(room, chat.Member(Wire()), "hello", name="ж" * chat.NAME_POINTS)
        name = refusal.value.name
        assert len(name) <= chat.NAME_POINTS


def test_a_name_that_is_refused_leaves_no_trace(room):
    enter(room, "bob")
    before = bytes(room.fanout.recording.data)
    for name in ("bob", "all", ""):
        with pytest.raises(chat.ChatError):
            ask(room, chat.Member(Wire()), "hello", name=name)
    room.flush()
    assert room.fanout.recording.data == before and list(room.people) == ["bob"]


def test_a_name_is_free_again_as_soon_as_its_bearer_has_left(room):
    bob = enter(room, "bob")
    ask(room, bob, "leave", why="left")
    assert enter(room, "bob").seat == 3


def test_everyone_is_told_of_a_new_name(room):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    talk(room, bob, "before")
    ask(room, bob, "nick", name="rob", id=4)
    talk(room, bob, "after")
    room.flush()
    said = ann.out.lines()[-3:]
    assert [(line["ev"], line["who"]) for line in said] == [("say", "bob"), ("nick", "bob"), ("say", "rob")]
    assert said[1]["name"] == "rob" and said[1]["id"] == 4


def test_after_a_new_name_the_old_one_is_free_and_the_new_one_taken(room):
    bob = enter(room, "bob")
    ask(room, bob, "nick", name="rob")
    enter(room, "bob")
    with pytest.raises(chat.ChatError, match="the name Rob is taken; Rob-2 is free"):
        ask(room, chat.Member(Wire()), "hello", name="Rob")
    ask(room, bob, "leave", why="left")
    enter(room, "rob")


def test_ones_own_name_can_be_written_in_another_way(room):
    bob = enter(room, "bob")
    ask(room, bob, "nick", name="Bob")
    room.flush()
    assert bob.out.lines()[-1]["name"] == "Bob"
    ask(room, bob, "who")
    room.flush()
    assert bob.out.lines()[-1]["people"] == ["Bob"]


@pytest.mark.parametrize("name, code", [("Ann", "name-taken"), ("bob", "bad-name"), ("all", "bad-name"),
                                        ("a b", "bad-name")])
def test_a_new_name_that_cannot_be_is_refused_and_the_old_one_stays(room, name, code):
    enter(room, "ann")
    bob = enter(room, "bob")
    with pytest.raises(chat.ChatError) as refusal:
        ask(room, bob, "nick", name=name)
    assert refusal.value.code == code
    say(room, bob, "still me")
    assert bob.out.lines()[-1]["who"] == "bob"


def test_a_name_is_kept_in_one_form(room):
    assert enter(room, "e\u0301va").name == "\u00e9va"


def test_a_full_room_lets_in_again_when_somebody_leaves():
    room = taped_room(max_people=2)
    ann = enter(room, "ann")
    enter(room, "bob")
    with pytest.raises(chat.ChatError, match="this room is full: 2 people") as refusal:
        ask(room, chat.Member(Wire()), "hello", name="eve")
    assert refusal.value.code == "full"
    ask(room, ann, "leave", why="left")
    assert enter(room, "eve").seat == 4


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


# --- the end of the room ---


def test_the_end_is_the_last_line_of_everyone(room):
    members = [enter(room, "ann"), enter(room, "bob")]
    talk(room, members[0], "last words")
    members.append(newcomer(room, "eve"))
    ask(room, None, "end")
    room.flush()
    for member in members:
        assert words(member.out.lines())[-1] == "end"
        assert texts(member.out.lines()) == ["last words"]
        assert member.out.ended == socket.SHUT_WR
    assert json.loads(room.fanout.recording.lines()[-1])["ev"] == "end"


def test_one_who_lags_is_given_the_end_when_its_wire_drains(room):
    ann, bob = enter(room, "ann"), enter(room, "bob", 0)
    say(room, ann, "one")
    ask(room, None, "end")
    room.flush()
    open_up(room, bob)
    assert words(bob.out.lines())[-2:] == ["one", "end"]
    assert bob.out.ended == socket.SHUT_WR


def test_at_the_end_a_full_wire_is_given_less_than_two_seconds(room, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    enter(room, "bob", 0)
    ask(room, None, "end")
    room.flush()
    assert room.fanout.look_after() < 1.5


def test_nothing_follows_the_end(room):
    ann = enter(room, "ann")
    ask(room, None, "end")
    ask(room, None, "end")
    room.flush()
    say(room, ann, "from beyond")
    ask(room, ann, "leave", why="left")
    ask(room, None, "notice", text="one more thing")
    room.flush()
    assert words(map(json.loads, room.fanout.recording.lines())) == ["join", "end"]


def test_a_closed_room_lets_nobody_in(room):
    ask(room, None, "end")
    with pytest.raises(chat.ChatError, match="closed") as refusal:
        ask(room, chat.Member(Wire()), "hello", name="bob")
    assert refusal.value.code == "full"


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
    assert room.fanout.look_after() is None and not tries
    room.fanout.recording.failing = True
    assert room.fanout.look_after() == chat.RETRY_SECONDS and tries == [b""]


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
