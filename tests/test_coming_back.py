"""Coming back: a seat that waits for its owner, and exactly what was missed."""
import json

import pytest

import chat
from helpers import Wire, ask, put, read_file
from rooms import enter, newcomer, open_up, say, talk, taped_room, texts, words


class Sitter(chat.Member):
    """A member with what its own client would know."""

    __slots__ = ("welcome",)


def sitting(room, name, **fields):
    """Somebody inside who can come back, and what their client would know."""
    member = Sitter(Wire(), "10.0.0.7")
    ask(room, member, "hello", name=name, back=True, **fields)
    ask(room, member, "ping")
    room.flush()
    member.welcome = member.out.lines()[0]
    return member


def lose(room, member):
    ask(room, member, "lose", why="lost")
    member.out.broken = True
    room.flush()


def back(room, member, **fields):
    """The same person with another link, who has had all that their last one brought."""
    lines = member.out.lines()
    request = {"name": member.name, "back": True, "token": member.welcome["token"], "run": member.welcome["run"],
               "last": max([line["n"] for line in lines if "ev" in line] + [0]),
               "had": max([line.get("k", 0) for line in lines]), **fields}
    again = Sitter(Wire())
    request["missed"] = room.find_missed(request)
    ask(room, again, "hello", **request)
    room.flush()
    again.welcome = again.out.lines()[0]
    return again


def test_a_lost_link_and_a_return_are_no_events():
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    before = bytes(ann.out.data)
    lose(room, bob)
    assert list(room.people) == ["ann", "bob"]
    bob2 = back(room, bob)
    assert bytes(ann.out.data) == before and room.log.n == 2
    assert bob2.welcome["seat"] == bob.seat and bob2.welcome["people"] == ["ann", "bob"]
    assert words(bob2.out.lines()) == ["welcome", "session"]
    say(room, bob2, "here again")
    assert texts(ann.out.lines()) == texts(bob2.out.lines()) == ["here again"]


def test_just_what_was_missed_comes():
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    say(room, ann, "1", "2")
    lose(room, bob)
    say(room, ann, "3", "4")
    talk(room, ann, "5")  # not even sealed when bob is back
    bob2 = back(room, bob)
    say(room, ann, "6")
    assert texts(bob.out.lines()) == ["1", "2"] and texts(bob2.out.lines()) == ["3", "4", "5", "6"]


def test_part_of_a_chunk_is_missed():
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    say(room, ann, "1", "2", "3")
    lose(room, bob)
    bob2 = back(room, bob, last=room.log.n - 2)
    assert texts(bob2.out.lines()) == ["2", "3"]


def test_the_link_that_still_stood_is_told_and_ended():
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    bob2 = back(room, bob)
    assert bob.out.lines()[-1]["code"] == "elsewhere" and bob.out.ended is not None
    say(room, bob, "from the old link")
    say(room, ann, "hi")
    assert texts(bob2.out.lines()) == ["hi"] and bob.left and not bob2.left
    ask(room, bob, "lose", why="left")  # its reader goes, later
    room.bury(bob)
    room.flush()
    assert room.people["bob"] is bob2 and not room.held


def test_who_does_not_come_back_in_time_leaves():
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    lose(room, bob)
    assert 59 < room.release() <= 60 and "bob" in room.people
    room.log.t += 60
    assert room.release() is None
    room.flush()
    assert ann.out.lines()[-1]["ev"] == "leave" and ann.out.lines()[-1]["why"] == "lost"
    assert not room.held and not room.seats and list(room.people) == ["ann"]


def test_a_late_return_is_a_new_join_that_misses_nothing():
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    say(room, ann, "1")
    lose(room, bob)
    say(room, ann, *map(str, range(2, 200)))  # more than any history
    room.log.t += 61
    room.release()
    bob2 = back(room, bob)
    assert bob2.welcome["seat"] == bob2.seat > bob.seat
    lines = bob2.out.lines()
    assert texts(lines) == [str(number) for number in range(2, 200)]
    (joined,) = [line for line in lines if line.get("ev") == "join"]
    assert joined["from"] == bob.welcome["n"] + 3 and lines[-1] == joined


def test_who_cannot_come_back_leaves_at_once():
    room = taped_room()
    ann, bob = enter(room, "ann"), enter(room, "bob")
    ask(room, bob, "lose", why="left")
    room.flush()
    assert ann.out.lines()[-1]["why"] == "left" and "token" not in bob.out.lines()[0]
    assert "back" not in bob.out.lines()[-1]


def test_who_never_answered_the_welcome_cannot_come_back():
    room = taped_room()
    bob = chat.Member(Wire())
    ask(room, bob, "hello", name="bob", back=True)
    room.flush()
    lose(room, bob)
    assert not room.people and newcomer(room, "bob").name == "bob"


@pytest.mark.parametrize("token", ["", "1", "2.00", "x" * 10_000, "999.0"])
def test_a_wrong_token_is_none(token):
    room = taped_room()
    bob = sitting(room, "bob")
    with pytest.raises(chat.ChatError) as refusal:
        ask(room, chat.Member(Wire()), "hello", name="bob", back=True, token=token)
    assert refusal.value.code == "name-taken" and not bob.left


def test_a_return_is_never_full():
    room = taped_room(max_people=1)
    bob = sitting(room, "bob")
    lose(room, bob)
    with pytest.raises(chat.ChatError):
        newcomer(room, "eve")
    assert back(room, bob).seat == bob.seat


def test_private_lines_wait_and_come_once():
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    ask(room, ann, "tell", to="bob", text="1")
    room.flush()
    lose(room, bob)
    for text in "23":
        ask(room, ann, "tell", to="bob", text=text)
    room.flush()
    assert texts_told(bob) == ["1"]
    bob2 = back(room, bob)
    assert texts_told(bob2) == ["2", "3"]
    ask(room, bob2, "ping", had=3, id=1)
    assert not bob2.kept.lines and not bob2.kept.size
    again = back(room, bob2)
    assert texts_told(again) == []


def texts_told(member):
    return [line["text"] for line in member.out.lines() if line.get("re") == "tell"]


def test_what_was_sent_into_a_dying_link_comes_again():
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    ask(room, ann, "tell", to="bob", text="1")
    ask(room, bob, "tell", to="ann", text="2", id=7)
    room.flush()
    lose(room, bob)
    again = back(room, bob, had=0)
    assert texts_told(again) == ["1", "2"] and again.out.lines()[-1]["id"] == 7


def test_the_teller_hears_that_private_lines_waited_in_vain():
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    lose(room, bob)
    ask(room, ann, "tell", to="bob", text="1")
    ask(room, ann, "tell", to="bob", text="2")
    room.log.t += 61
    room.release()
    room.flush()
    assert [line["text"] for line in ann.out.lines() if line.get("re") == "error"] == \
        ["bob has gone without 2 private lines of yours"]


def test_the_teller_hears_it_of_one_who_never_got_the_welcome_too():
    room = taped_room()
    ann, bob = enter(room, "ann"), chat.Member(Wire())
    ask(room, bob, "hello", name="bob", back=True)
    ask(room, ann, "tell", to="bob", text="1")
    room.flush()
    lose(room, bob)
    assert ann.out.lines()[-1]["text"] == "bob has gone without a private line of yours"


def test_so_much_waits_and_no_more():
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    lose(room, bob)
    with pytest.raises(chat.ChatError) as refusal:
        for number in range(10_000):
            ask(room, ann, "tell", to="bob", text=f"{number:04}" + "x" * 3000)
    assert refusal.value.code == "nobody" and 300 < number < 400 and bob.kept.size <= chat.KEPT_BYTES
    assert len(texts_told(back(room, bob))) == number


def test_what_a_standing_link_never_confirms_does_not_pile_up():
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    for number in range(500):
        ask(room, ann, "tell", to="bob", text="x" * 4000)
        room.flush()
    assert bob.kept.size <= chat.KEPT_BYTES and len(texts_told(bob)) == 500


def test_who_is_held_is_told_of_in_who():
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    lose(room, bob)
    room.log.t += 12
    ask(room, ann, "who")
    room.flush()
    who = ann.out.lines()[-1]
    assert who["people"] == ["ann", "bob"] and who["away"] == {"bob": 12}


def test_who_is_slow_is_cut_and_comes_back(monkeypatch):
    monkeypatch.setattr(chat, "LAG_BYTES", 100_000)
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    bob.out.space = 0
    for number in range(200):
        say(room, ann, "x" * 1000)
    assert bob.away is not None and not bob.left
    bob.out.space = None
    with room.fanout.baton:
        room.fanout.push(bob)
    assert bob.out.lines()[-1]["code"] == "slow" and bob.out.ended is not None
    assert len(texts(bob.out.lines())) == 1 and len(texts(back(room, bob).out.lines())) == 199


@pytest.mark.parametrize("how", ["kick", "end", "bye"])
def test_what_ends_a_stay_ends_the_waiting_too(how):
    room = taped_room()
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    lose(room, bob)
    if how == "end":
        ask(room, None, "end")
    elif how == "bye":
        ask(room, bob, "bye")
    else:
        ask(room, None, "kick", to="bob", text="because")
    room.flush()
    assert not room.held and not room.seats and "bob" not in room.people


# --- with a file: from memory, from the file, from the run before ---


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return str(tmp_path / "log.jsonl")


def opened(log):
    return chat.open_room("lab", log, 50, 0)


def test_what_memory_has_let_go_comes_from_the_file(log, monkeypatch):
    monkeypatch.setattr(chat, "KEEP_BYTES", 2000)
    room = opened(log)
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    lose(room, bob)
    for number in range(500):
        say(room, ann, str(number))
    bob2 = back(room, bob)
    assert texts(bob2.out.lines()) == [str(number) for number in range(500)]


def test_what_is_in_the_file_is_read_only_as_it_can_be_sent(log, monkeypatch):
    monkeypatch.setattr(chat, "KEEP_BYTES", 2000)
    monkeypatch.setattr(chat, "LAG_BYTES", 300_000)
    room = opened(log)
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    lose(room, bob)
    for number in range(500):
        say(room, ann, f"{number}" + "x" * 2000)
    member, request = chat.Member(Wire(0)), {"name": "bob", "back": True, "last": bob.seat,
                                             "token": bob.welcome["token"], "run": bob.welcome["run"]}
    request["missed"] = room.find_missed(request)
    ask(room, member, "hello", **request)
    room.flush()
    say(room, ann, "meanwhile")
    assert member.lag.size(room.log.end) < 10_000 and member.away is None
    while len(member.out.data) < 1_000_000:
        open_up(room, member, 10_000)
    ask(room, member, "bye")  # in the middle of it
    open_up(room, member)
    came = texts(member.out.lines())
    assert [text.rstrip("x") for text in came] == [*map(str, range(500)), "meanwhile"]
    assert member.out.lines()[-1]["ev"] == "leave"


@pytest.mark.parametrize("n, found", [(-1, 0), (0, 1), (1, 2), (5, 6), (98, 99), (99, None), (10_000, None)])
def test_a_number_is_found_in_a_long_file(tmp_path, n, found):
    path = put(tmp_path / "x.jsonl", [{"ev": "say", "n": number, "t": 1.0, "who": "a", "text": "x" * (number * 7 % 300)}
                                      for number in range(100)])
    data = path.read_bytes()
    assert chat.find_after(path, n) == (None if found is None else (data.index(b'"n":%d,' % found) - 12, found))
    lines = data.splitlines(True)
    for end in {50, 99, 100}:
        assert b"".join(chat.read_between(path, 0, end)) == b"".join(lines[:end])


def test_what_is_nowhere_any_more_shows_as_a_jump(monkeypatch):
    monkeypatch.setattr(chat, "KEEP_BYTES", 2000)
    room = taped_room()
    room.fanout.recording = None
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    lose(room, bob)
    for number in range(500):
        say(room, ann, str(number))
    bob2 = back(room, bob)
    came, numbers = texts(bob2.out.lines()), [line["n"] for line in bob2.out.lines() if "ev" in line]
    assert 0 < len(came) < 100 and came[-1] == "499" and numbers[1] == room.log.n - len(came) + 1


def killed(room):
    """The server of this room dies: nothing is told to anybody, the file is closed by the system."""
    room.fanout.recording.close()


def test_a_server_that_died_holds_who_was_inside(log):
    room = opened(log)
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    say(room, ann, "1")
    killed(room)
    room = opened(log)
    assert list(room.people) == ["bob"] and room.log.session["id"] in json.dumps(room.log.session)
    bob2 = back(room, bob)
    assert bob2.welcome["seat"] == bob.seat and bob2.welcome["since"] == 3
    assert [line.get("why") for line in bob2.out.lines() if line.get("ev") == "leave"] == ["lost"]  # ann's
    killed(room)
    events = [line["ev"] for line in read_file(open(log, "rb"))]
    assert events == ["session", "join", "join", "say", "leave"]


def test_numbers_beyond_a_lost_end_are_forgotten(log):
    room = opened(log)
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    say(room, ann, "1", "2", "3")
    killed(room)
    with open(log, "rb+") as file:
        lines = file.read().splitlines(True)
        file.truncate(sum(map(len, lines[:4])))  # 2 and 3 are gone
    room = opened(log)
    eve = enter(room, "eve")
    say(room, eve, "new 4", "new 5", "new 6")
    bob2 = back(room, bob)
    assert bob2.welcome["since"] == 3 and texts(bob2.out.lines()) == ["new 4", "new 5", "new 6"]


def test_two_restarts_are_kept_apart(log):
    room = opened(log)
    ann, bob = enter(room, "ann"), sitting(room, "bob")
    say(room, ann, "1", "2", "3")
    killed(room)
    with open(log, "rb+") as file:
        lines = file.read().splitlines(True)
        file.truncate(sum(map(len, lines[:4])))
    room = opened(log)
    say(room, enter(room, "eve"), "a", "b", "c", "d")
    killed(room)
    room = opened(log)
    assert texts(back(room, bob).out.lines()) == ["a", "b", "c", "d"]


def test_without_what_an_earlier_run_kept_nobody_is_held(log, monkeypatch):
    room = opened(log)
    sitting(room, "bob")
    killed(room)
    monkeypatch.setenv("XDG_STATE_HOME", log + ".other")
    room = opened(log)
    room.flush()
    assert not room.people and read_file(open(log, "rb"))[-1]["why"] == "lost"


def test_a_held_seat_of_a_run_before_ends_as_well(log):
    room = opened(log)
    sitting(room, "bob")
    killed(room)
    room = opened(log)
    room.log.t += 61
    room.release()
    room.flush()
    assert not room.people and read_file(open(log, "rb"))[-1]["why"] == "lost"


def test_a_session_that_is_recorded_later_can_be_gone_on_in_too(log):
    room = chat.Room("lab")
    bob = sitting(room, "bob")
    room.record(chat.new_recording(log, room.log.session_line))
    room.flush()
    killed(room)
    assert opened(log).seat_of({"token": bob.welcome["token"]}) == bob.seat
