"""The view: what one person knows of a room, event by event; and how commands are read."""
import pytest

import chat

SESSION = {"ev": "session", "n": 0, "t": 0.0, "v": 1, "id": "s1", "start": "2026-11-20T12:00:00.000+03:00",
           "room": "lab\x1b"}


def event(word, n, **fields):
    return {"ev": word, "n": n, "t": float(n), **fields}


def bob():
    """What bob knows who has just come: ann was here, and event 5 was the last before him."""
    view = chat.View()
    for line in ({"re": "welcome", "t": 6.0, "you": "bob", "n": 5, "people": ["ann", "bob"]}, SESSION,
                 event("join", 3, who="zoe"), event("leave", 4, who="ann", why="left"), event("nick", 5, who="bob", name="x"),
                 event("join", 6, who="bob", **{"from": 3})):
        view.take(line)
    return view


def test_a_newcomer_knows_who_is_here_from_the_welcome_and_not_from_the_history():
    view = bob()
    assert (view.name, list(view.people), view.recorded, view.over) == ("bob", ["ann", "bob"], False, False)
    assert view.people["bob"] == 6


@pytest.mark.parametrize("line, known", [
    (event("nick", 7, who="bob", name="rob"), {"name": "rob", "people": {"ann": None, "rob": 6}}),
    (event("nick", 7, who="ann", name="eve"), {"name": "bob", "people": {"bob": 6, "eve": None}}),
    (event("nick", 7, who="kim", name="eve"), {"people": {"ann": None, "bob": 6}}),
    (event("join", 7, who="eve"), {"people": {"ann": None, "bob": 6, "eve": 7}}),
    (event("leave", 7, who="ann", why="lost"), {"people": {"bob": 6}}),
    (event("notice", 7, text="x", recorded=True), {"recorded": True}),
    (event("notice", 7, text="x", recorded="yes"), {"recorded": False}),
    (event("end", 7), {"people": {}, "over": True}),
    (event("end", 5), {"over": False}), (event("later", 7), {"name": "bob"}), ({"re": "pong", "t": 1.0}, {"name": "bob"}),
    ({"re": "welcome", "t": 9.0, "you": "rob", "n": 20, "people": ["rob"], "recorded": True},
     {"name": "rob", "heard": 20, "people": {"rob": None}, "recorded": True}),
], ids=str)
def test_each_event_changes_what_is_known(line, known):
    view = bob()
    view.take(line)
    assert {field: getattr(view, field) for field in known} == known


def test_only_what_they_say_from_their_seat_is_theirs():
    view, mine = chat.View(), []
    for line in ({"re": "welcome", "t": 6.0, "you": "bob", "n": 5, "people": ["bob"]}, SESSION,
                 event("say", 5, who="bob", text="another bob's"), event("join", 6, who="bob", **{"from": 3}),
                 event("nick", 7, who="bob", name="rob"), {"re": "welcome", "t": 9.0, "you": "rob", "n": 20, "seat": 6,
                                                           "people": ["rob"]}, event("nick", 9, who="rob", name="x"),
                 event("leave", 10, who="x", why="lost"), event("join", 11, who="x")):
        view.take(line)
        mine.append(view.mine)
    assert mine == [None, None, None, "bob", "rob", "rob", "x", None, None] and view.heard == 5


@pytest.mark.parametrize("lines, ended", [
    ([event("leave", 2, who="a")], [1]), ([event("join", 2, who="a")], [1]),
    ([event("nick", 2, who="a", name="b"), event("leave", 3, who="b")], [1]), ([event("leave", 2, who="b")], []),
    ([event("join", 2, who="b"), event("end", 3)], [1, 2])])
def test_it_tells_which_seats_an_event_ended(lines, ended):
    view = chat.View()
    view.take(event("join", 1, who="a"))
    assert [view.take(line) for line in lines][-1] == ended


def test_history_is_dim_and_what_follows_is_not():
    view = bob()
    old, new = event("say", 5, who="ann", text="bob?"), event("say", 7, who="ann", text="bob?")
    assert {style for style, text in view.render(old)} == {"history"}
    assert chat.plain(view.render(old)) == "12:00 ann: bob?"
    assert view.render(new) == chat.render(new, SESSION, "bob")
    assert chat.plain(view.render(new, "off")) == "ann: bob?"


def test_the_bar_tells_room_recording_and_people_and_nothing_that_a_terminal_obeys():
    assert bob().bar("not recorded") == " lab\u241b | not recorded | 2 here: ann, bob"
