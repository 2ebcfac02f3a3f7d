"""The room: newcomers, leavers, letters, names, the end, the decisions. No network; plain values."""
import contextlib
import json
import random
import socket
import time

import pytest

import chat
from helpers import Wire, ask
from rooms import enter, newcomer, numbers, open_up, say, talk, taped_room, texts, words


@pytest.fixture
def room():
    return taped_room()


# --- newcomers ---


def test_a_newcomer_is_given_welcome_session_history_its_join_and_what_follows(room):
    ann = enter(room, "ann")
    say(room, ann, "one", "two")
    bob = newcomer(room, "bob", id=7)
    room.flush()
    say(room, ann, "three")
    lines = bob.out.lines()
    assert words(lines) == ["welcome", "session", "one", "two", "join", "three"]
    assert {**lines[0], "t": 0} == {"re": "welcome", "t": 0, "you": "bob", "n": 3, "people": ["ann", "bob"],
                                    "recorded": True, "id": 7}
    assert lines[4] == {"ev": "join", "n": 4, "t": lines[4]["t"], "who": "bob", "from": 2}
    assert numbers(lines) == [0, 2, 3, 4, 5]


def test_the_session_line_says_what_the_room_is(room):
    ann = enter(room, "ann")
    session = ann.out.lines()[1]
    assert list(session) == ["ev", "n", "t", "v", "id", "start", "room"]
    assert session["n"] == 0 and session["v"] == 1 and session["room"] == "lab"


def test_history_is_the_old_lines_as_they_were(room):
    ann = enter(room, "ann")
    say(room, ann, "one", "two")
    bob = enter(room, "bob")
    assert bob.out.data.splitlines(True)[2:] == room.fanout.recording.lines()[1:]


def test_one_who_comes_in_the_middle_of_a_round_is_given_each_line_once(room):
    ann = enter(room, "ann")
    talk(room, ann, "before")
    bob = newcomer(room, "bob")
    talk(room, ann, "after")
    eve = newcomer(room, "eve")
    talk(room, bob, "last")
    room.flush()
    assert words(bob.out.lines()) == ["welcome", "session", "before", "join", "after", "join", "last"]
    assert bob.out.data.splitlines(True)[2:] == eve.out.data.splitlines(True)[2:] == room.fanout.recording.lines()[1:]
    assert bob.out.lines()[0]["n"] == 2 and eve.out.lines()[0]["n"] == 4


def test_one_who_comes_and_goes_in_one_round_is_given_all_up_to_its_leave(room):
    ann = enter(room, "ann")
    talk(room, ann, "before")
    bob = newcomer(room, "bob")
    talk(room, bob, "hi and bye")
    ask(room, bob, "leave", why="left")
    talk(room, ann, "after")
    room.flush()
    assert words(bob.out.lines()) == ["welcome", "session", "before", "join", "hi and bye", "leave"]
    assert bob.out.ended == socket.SHUT_WR
    assert texts(ann.out.lines()) == ["before", "hi and bye", "after"]


def test_a_name_can_come_go_and_come_again_in_one_round(room):
    first = newcomer(room, "bob")
    ask(room, first, "leave", why="left")
    second = newcomer(room, "bob")
    room.flush()
    assert words(first.out.lines()) == ["welcome", "session", "join", "leave"]
    assert words(second.out.lines()) == ["welcome", "session", "join"]
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


def test_history_begins_with_talk_and_holds_all_that_happened_since(room):
    ann = enter(room, "ann")
    say(room, ann, "one", "two")
    for number in range(2000):
        ask(room, ann, "nick", name=f"ann{number}")
        if number % 3:
            room.flush()
    lines = enter(room, "bob").out.lines()
    assert texts(lines) == ["one", "two"] and numbers(lines) == [0, *range(2, 2005)]


def test_history_is_nothing_where_nobody_has_said_anything_near_enough(room):
    ann = enter(room, "ann")
    assert words(enter(room, "bob").out.lines()) == ["welcome", "session", "join"]
    say(room, ann, "long ago")
    for number in range((256 << 10) // 60):
        ask(room, ann, "nick", name=f"ann{number}")
    room.flush()
    eve = enter(room, "eve").out.lines()
    assert words(eve) == ["welcome", "session", "join"] and eve[2]["from"] == eve[2]["n"]


def test_finding_history_takes_no_longer_in_a_room_where_crowds_come_and_go(room):
    ann = enter(room, "ann")
    say(room, ann, *map(str, range(60)))
    for number in range(3000):
        ask(room, ann, "nick", name=f"ann{number}")
        room.flush()
    start = time.perf_counter()
    for _ in range(1000):
        room.log.history(50)
    assert time.perf_counter() - start < 1  # a tenth of that, as without the names


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
    room.fanout.recording = None  # which is looked after each second
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
    assert words(bob.out.lines()) == ["welcome", "session", "join", "tell"]


def test_who_lists_the_people_in_the_order_of_their_coming(room):
    ann = enter(room, "ann")
    for name in ("юля", "Bob"):
        enter(room, name)
    ask(room, ann, "who", id=3)
    room.flush()
    line = ann.out.lines()[-1]
    assert {**line, "t": 0} == {"re": "who", "t": 0, "people": ["ann", "юля", "Bob"], "id": 3}


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


# --- the decisions ---


def test_whatever_a_person_can_ask_is_decided():
    assert set(chat.REQUESTS) - {"say", "me"} | {"talk"} <= set(chat.DECISIONS)


def test_nobody_can_ask_for_what_only_the_host_or_the_fan_out_may():
    for do in set(chat.DECISIONS) - set(chat.REQUESTS):
        with pytest.raises(chat.ChatError, match='"do" must be one of'):
            chat.decode_request(json.dumps({"do": do, "to": "bob", "text": "x", "why": "left", "minutes": 1, "said": []}))


def random_evening(room, chance, ticks):
    """Random requests of people who come and go, and of the host; carried out at random moments."""
    people, name = [], lambda: chance.choice(["ann", "Ann", "bob", "юля", "a b", "eve", "kim"])
    for step in range(300):
        ticks.append(round(ticks[-1] + chance.choice([0, 0.001, 1, 70]), 3))
        room.log.t = ticks[-1]
        here = [other for other in people if other.seat is not None and not other.left]
        member = chance.choice(here) if here else None
        do, fields = chance.choice([
            ("hello", {"name": name()}), ("talk", {"said": [{"do": "say", "text": "hi", "id": step}, {"do": "me", "text": "я"}]}),
            ("tell", {"to": name(), "text": "psst"}), ("nick", {"name": name(), "id": step}), ("who", {}), ("bye", {}),
            ("leave", {"why": "lost"}), ("kick", {"to": name(), "text": "out", "minutes": chance.randrange(2)}),
            ("mute", {"to": name(), "minutes": 1}),
            ("notice", {"text": "!", "recorded": True}), ("mark", {"text": "part"})])
        if do == "hello":
            member = chat.Member(Wire(chance.choice([None, 0, 3000])))
            people.append(member)
        elif do in ("kick", "mute", "notice", "mark"):
            member = None
        elif not member:
            continue
        with contextlib.suppress(chat.ChatError):
            ask(room, member, do, **fields)
        if chance.random() < 0.3:
            room.flush()
    ask(room, None, "end")
    room.flush()


@pytest.mark.parametrize("seed", range(20))
def test_the_same_requests_in_the_same_order_at_the_same_times_give_the_same_bytes(seed):
    first, asked, ticks = taped_room(history=5, max_people=4), [], [0.0]
    first.log.seconds = lambda: ticks[-1]
    decide = first.decide
    first.decide = lambda member, request: (asked.append((member, request, ticks[-1])), decide(member, request))[1]
    random_evening(first, random.Random(seed), ticks)

    second, twins = taped_room(history=5, max_people=4), {first.host: None}
    second.log.resume(first.log.session)
    for member, request, t in asked:  # by people without a wire, and carried out all at once
        second.log.t, second.log.seconds = t, lambda: t
        twin = twins.setdefault(member, chat.Member(None))
        with contextlib.suppress(chat.ChatError):
            second.ask(twin, request)
    assert second.log.seal().data == first.fanout.recording.data
    assert b'"ev":"leave"' in first.fanout.recording.data and b'"ev":"nick"' in first.fanout.recording.data


def test_a_kick_whose_reason_cannot_be_encoded_leaves_all_as_it_was(room):
    bob = enter(room, "bob")
    with pytest.raises(UnicodeEncodeError):
        ask(room, None, "kick", to="bob", text="\ud800")
    say(room, bob, "still here")
    assert words(bob.out.lines())[-1] == "still here" and list(room.people) == ["bob"]


def test_a_muted_member_is_refused_by_the_time_of_the_session(room):
    ann, bob = enter(room, "ann"), enter(room, "bob")
    ask(room, None, "mute", to="bob", minutes=2)
    say(room, bob, "one", "two")
    assert [(line["code"], line["text"]) for line in bob.out.lines()[-2:]] == [
        ("muted", "you are muted for 2 more minutes")] * 2
    room.log.t += 100
    ask(room, bob, "tell", to="ann", text="psst")
    room.flush()
    assert "more seconds" in bob.out.lines()[-1]["text"]
    room.log.t += 21
    say(room, bob, "three")
    assert texts(ann.out.lines()) == ["three"]
    ask(room, None, "mute", to="bob", minutes=1)
    ask(room, None, "mute", to="bob", minutes=0)
    say(room, bob, "four")
    assert [line["text"] for line in ann.out.lines()[-4:]] == [
        "three", "bob is muted for 1 min", "bob is no longer muted", "four"]


def test_a_name_that_looks_like_one_that_is_there_is_taken():
    room = taped_room()
    enter(room, "alice")
    for name, free in (("alice.", "alice.-2"), ("Alice", "Alice-2"), ("аӏісе", "аӏісе-3")):
        with pytest.raises(chat.ChatError) as refusal:
            ask(room, chat.Member(Wire()), "hello", name=name)
        assert (refusal.value.code, refusal.value.name) == ("name-taken", free)
        enter(room, free)
    alice = room.people["alice"]
    ask(room, alice, "nick", name="ALICE_")
    assert room.people["alice_"] is alice and set(room.people.values()) == set(room.alike.values())
    ask(room, alice, "bye")
    enter(room, "alice")


def test_a_free_name_is_found_among_thousands_in_a_few_looks():
    room, looks = taped_room(), []
    for number in range(2000):
        enter(room, f"guest-{number}" if number > 1 else ("guest", "x")[number])
    is_free = room._is_free
    room._is_free = lambda *name: looks.append(name) or is_free(*name)
    with pytest.raises(chat.ChatError) as refusal:
        ask(room, chat.Member(Wire()), "hello", name="guest")
    assert refusal.value.name == "guest-2000" and len(looks) < 30


# --- whom the host does not want ---


def guest(room, name, address="", **more):
    """Somebody who comes in from this address."""
    member = chat.Member(Wire(), address)
    ask(room, member, "hello", name=name, **more)
    room.flush()
    return member


def is_refused(room, name, address="", **more):
    """Whether somebody who would come in is told that the host removed them; returns what they are told."""
    try:
        guest(room, name, address, **more)
    except chat.ChatError as error:
        assert error.code == "kicked"
        return str(error)
    return None


def test_who_is_kicked_is_told_why_and_may_come_back_after_a_while(room):
    bob = guest(room, "bob", "10.0.0.5")
    ask(room, None, "kick", to="bob", minutes=4, text="too loud")
    room.flush()
    leave, error = bob.out.lines()[-2:]
    assert (leave["why"], leave["text"], error["text"]) == ("kicked", "too loud", "the host removed you: too loud")
    for name, address in (("bob", ""), ("ＢＯＢ", "10.0.0.7"), ("rob", "10.0.0.5")):
        assert is_refused(room, name, address) == "the host removed you; come back in 4 minutes"
    assert not is_refused(room, "eve", "10.0.0.6")
    room.log.t += 180
    assert is_refused(room, "bob") == "the host removed you; come back in 61 seconds"
    room.log.t += 61
    assert not is_refused(room, "bob", "10.0.0.5")


def test_who_is_kicked_for_no_time_and_no_reason_may_come_back_at_once(room):
    bob = guest(room, "bob")
    ask(room, None, "kick", to="bob", minutes=0)
    room.flush()
    assert bob.out.lines()[-1]["text"] == "the host removed you" and "text" not in bob.out.lines()[-2]
    assert not is_refused(room, "bob")


@pytest.mark.parametrize("address, other, kept_out", [
    ("10.0.0.5", "10.0.0.5", False), ("10.0.0.5", "10.0.0.6", True), ("127.0.0.1", "", False), ("127.8.0.1", "", False),
    ("::1", "", False), ("", "", False), ("fe80::5%eth0", "fe80::6%eth0", True)])
def test_a_ban_is_for_the_address_too_unless_others_share_it(room, address, other, kept_out):
    guest(room, "ann", other)
    guest(room, "bob", address)
    ask(room, None, "ban", to="bob")
    assert bool(is_refused(room, "eve", address)) is kept_out
    assert is_refused(room, "bob", "10.9.9.9") == "the host removed you; for as long as this room is open"


def test_a_ban_is_for_the_seat_so_no_token_brings_anybody_back(room):
    bob = guest(room, "bob", back=True)
    token, ann = bob.out.lines()[0]["token"], guest(room, "ann")
    ask(room, None, "ban", to="bob")
    assert is_refused(room, "rob", token=token, back=True)
    assert bob.seat not in room.seats and not room.held
    with pytest.raises(chat.ChatError, match="banned the name"):
        ask(room, ann, "nick", name="BOB")
    ask(room, None, "unban", to="Bob")
    assert not is_refused(room, "rob", token=token, back=True)
    with pytest.raises(chat.ChatError, match="nobody is banned"):
        ask(room, None, "unban", to="bob")


def test_a_ban_of_somebody_who_has_fled_is_for_the_name(room):
    ask(room, None, "ban", to="bob")
    assert is_refused(room, "Bob") and room.people == {} and room.log.n == 0


def test_a_kick_that_cannot_be_encoded_bans_nobody(room):
    guest(room, "bob")
    with pytest.raises(UnicodeEncodeError):
        ask(room, None, "kick", to="bob", minutes=5, text="\ud800")
    assert room.bans == [] and list(room.people) == ["bob"]


@pytest.mark.parametrize("again", ["name", "address", "token"])
def test_who_is_muted_stays_it_under_a_new_name_and_when_they_come_again(room, again):
    ann, bob = guest(room, "ann", "10.0.0.6"), guest(room, "bob", "10.0.0.5", back=True)
    ask(room, None, "mute", to="bob", minutes=2)
    ask(room, bob, "nick", name="rob")
    say(room, bob, "one")
    token = bob.out.lines()[0]["token"]
    ask(room, bob, "bye")
    bob = {"name": lambda: guest(room, "bob", "10.0.0.7"), "address": lambda: guest(room, "eve", "10.0.0.5"),
           "token": lambda: guest(room, "eve", "10.0.0.8", token=token)}[again]()
    say(room, bob, "two")
    assert texts(ann.out.lines()) == [] and bob.out.lines()[-1]["code"] == "muted"
    if again == "name":
        ask(room, None, "mute", to="bob", minutes=0)
        assert room.bans == []
    room.log.t += 121
    say(room, bob, "three")
    assert texts(ann.out.lines()) == ["three"]


def test_an_address_of_those_whom_the_host_removed_is_told_to_nobody(room):
    ann = guest(room, "ann")
    for number in range(3):
        guest(room, "bob", "10.0.0.5")
        ask(room, None, "kick", to="bob", text="x")
    ask(room, None, "ban", to="ann")
    room.flush()
    assert b"10.0.0" not in ann.out.data + room.fanout.recording.data
