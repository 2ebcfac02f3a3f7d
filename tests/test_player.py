"""The player: keys, jumps and the status by a clock of the tests' own, then as a person sees it."""
import contextlib
import io
import os
import random
import re
import signal
import subprocess
import sys

import pytest
from wcwidth import wcswidth

import chat
import terminal
from helpers import SESSION, STRANGE, UNWANTED, data, join, session, tape_of


def recording(*lines):
    """A session of these (time, event) pairs, numbered from 1."""
    return session(*((word, t, fields) for t, word, fields in lines))


def ann(text):
    return {"who": "ann", "text": text}


TALK = recording((1, "join", {"who": "ann", "from": 0}), (2, "say", ann("a")), (4, "say", ann("b")),
                 (4, "say", ann("c")), (10, "mark", {"text": "M"}), (11, "say", ann("d")),
                 (40, "mark", {"text": "N"}), (41, "say", ann("e")), (42, "end", {}))
SHOWN = "room joined a b c M d N e closed".split()


class News:
    """A condition and its clock in one: waiting moves the clock on, and does what is due by then."""

    def __init__(self):
        self.now, self.plan = 0.0, []  # what happens when, in order

    def __call__(self):
        return self.now

    def __enter__(self):
        return self

    def __exit__(self, *trouble):
        pass

    def notify_all(self):
        pass

    def wait(self, seconds):
        assert 0 <= seconds <= chat.TICK_SECONDS
        until = max(self.now + seconds, self.now + 1e-9)
        if self.plan and self.plan[0][0] <= until:
            when, happen = self.plan.pop(0)
            self.now = max(self.now, when)
            happen()
            return True
        self.now = until
        return False


class Evening:
    """Somebody plays a recording with keys. A press is (when, key, what is typed if it asks); when is a time,
    or what has just been shown. `shown` is what came when, in short."""

    def __init__(self, events, *presses, until=200.0, who=None, **options):
        self.news, self.shown, self.whole, self.asked = News(), [], "", []
        self.on_sight = {press[0]: press for press in presses if type(press[0]) is str}
        self.news.plan = [(press[0], lambda press=press: self.press(*press[1:]))
                          for press in presses if type(press[0]) is not str]
        tape = events if type(events) is chat.Tape else tape_of(events)
        seat = tape.find_seat(who) if who else None
        self.player = chat.Player(tape, seat=seat, clock=self.news, times="off", screen=self, **options)
        self.player.news, self.reply = self.news, None
        self.news.plan.append((until, lambda: self.player.press(chat.Player.stop)))
        self.player.run()

    def press(self, key, typed=None):
        self.reply = typed
        if callable(key):
            return key()
        self.player.press(next(run for keys, name, words, run in chat.PLAYER_KEYS if name == key))

    def ask(self, question, answer):
        self.asked.append(question)
        answer(self.reply)

    def refresh(self):
        """The screen draws itself anew."""

    end = refresh

    def show_all(self, lines):
        for pieces in lines:
            text = chat.plain(pieces)
            self.whole += text + "\n"
            if text.startswith("—"):
                text = text.strip("— ")
            else:
                text = "room" if "room лаб" in text else (text.split() or [""])[-1]
            self.shown.append((round(self.news.now, 3), text))
            if text in self.on_sight:
                self.press(*self.on_sight.pop(text)[1:])

    @property
    def texts(self):
        return [text for when, text in self.shown]

    def since(self, when):
        """What came from then on."""
        return [(at, text) for at, text in self.shown if at >= when]


def play(*presses, **options):
    return Evening(TALK, *presses, **options)


# --- the pace ---


@pytest.mark.parametrize("options, times", [
    ({"max_gap": 0}, [0, 1, 2, 4, 4, 10, 11, 40, 41, 42]),
    ({}, [0, 1, 2, 4, 4, 6, 7, 9, 10, 11]),
    ({"max_gap": 0.5}, [0, 0.5, 1, 1.5, 1.5, 2, 2.5, 3, 3.5, 4]),
    ({"max_gap": 0, "speed": 2.0}, [0, 0.5, 1, 2, 2, 5, 5.5, 20, 20.5, 21]),
    ({"speed": 0.5}, [0, 2, 4, 8, 8, 12, 14, 18, 20, 22]),
], ids=str)
def test_events_come_at_their_times(options, times):
    assert play(**options).shown == list(zip(times, SHOWN))


@pytest.mark.parametrize("presses, next_ones", [
    ([(5.0, "+")], [(7.5, "M"), (8.0, "d")]),
    ([(5.0, "-")], [(15.0, "M"), (17.0, "d")]),
    ([(5.0, "+"), (6.0, "+"), (6.5, "=")], [(7.5, "M"), (8.5, "d")]),
    ([(5.0, "+"), (6.0, "-")], [(9.0, "M"), (10.0, "d")]),
    ([(5.0, "space"), (25.0, "space")], [(30.0, "M"), (31.0, "d")]),
    ([(5.0, "space"), (6.0, "+"), (25.0, "space")], [(27.5, "M"), (28.0, "d")]),
    ([(5.0, "."), ], [(5.0, "M"), (6.0, "d")]),
    ([(5.0, "space"), (6.0, "."), (8.0, "."), (9.0, "space")], [(6.0, "M"), (8.0, "d"), (38.0, "N")]),
    ([(5.0, "space"), (6.0, "."), (9.0, "space")], [(6.0, "M"), (10.0, "d")]),
    ([(7.0, "?")], [(10.0, "M"), (11.0, "d")]),
], ids=lambda value: str(value) if type(value[0][1]) is str else "")
def test_the_pace_changes_from_that_moment_on(presses, next_ones):
    shown = [(when, text) for when, text in play(*presses, max_gap=0).since(4.5) if len(text) == 1]
    assert shown[:len(next_ones)] == next_ones


def test_a_step_shows_one_event_at_a_time_within_a_moment_too():
    presses = [(1.5, "space"), *((2.0 + step, ".") for step in range(4))]
    assert play(*presses).since(1.5) == [(2.0, "a"), (3.0, "b"), (4.0, "c"), (5.0, "M")]


@pytest.mark.parametrize("speed, key, times, becomes", [
    (1.0, "+", 3, 8.0), (1.0, "+", 99, 128.0), (1.0, "-", 99, 0.25), (7.0, "=", 1, 1.0),
    (1000.0, "+", 1, 1000.0), (1000.0, "-", 1, 500.0), (0.01, "-", 1, 0.01), (0.01, "+", 1, 0.02),
    (1e-300, "+", 1, 2e-300)])
def test_the_speed_stays_within_limits_and_moves_only_as_asked(speed, key, times, becomes):
    assert play(*[(0.0, key)] * times, until=0.5, speed=speed).player.tempo.speed == becomes


@pytest.mark.parametrize("key, typed", [("PgUp", None), ("/", "nowhere"), ("g", "soon"), ("g", ""), ("/", ""),
                                        ("a", "nobody"), ("?", None)])
def test_what_leads_nowhere_delays_nothing(key, typed):
    presses = [(5.0 + step, key, typed) for step in range(4)]
    assert (10.0, "M") in play(*presses, max_gap=0).shown


# --- going to and fro ---


@pytest.mark.parametrize("presses, options, came", [
    ([(4.5, "right")], {"max_gap": 0}, [(4.5, "on at 0:09"), (5.0, "M"), (6.0, "d")]),
    ([(11.5, "left")], {"max_gap": 0}, [(11.5, "back at 0:06"), (15.0, "M"), (16.0, "d")]),
    ([(7.5, "left")], {}, [(7.5, "back at 0:06"), (9.5, "M"), (10.5, "d")]),
    ([(20.5, "left")], {"max_gap": 0}, [(20.5, "back at 0:15"), (45.0, "N"), (46.0, "e")]),
    ([(4.5, "left")], {}, [(4.5, "back at 0:00"), (4.5, "room"), (5.5, "joined")]),
    ([(4.5, "g", "0:04")], {}, [(4.5, "back at 0:04"), (4.5, "b"), (4.5, "c"), (6.5, "M")]),
    ([(4.5, "g", "11")], {}, [(4.5, "on at 0:11"), (4.5, "d"), (6.5, "N")]),
    ([(4.5, "g", "1:02:03")], {}, [(4.5, "on at 0:42"), (4.5, "closed")]),
    ([(4.5, "g", "0")], {}, [(4.5, "back at 0:00"), (4.5, "room"), (5.5, "joined")]),
    ([(4.5, "g", "soon")], {}, [(4.5, "soon is no time; write 83 or 1:23 or 1:02:03"), (6.0, "M")]),
    ([(4.5, "g", "-1")], {}, [(4.5, "-1 is no time; write 83 or 1:23 or 1:02:03"), (6.0, "M")]),
    ([(4.5, "g", " 10 ")], {}, [(4.5, "on at 0:10"), (4.5, "M"), (5.5, "d")]),
    ([(4.5, "PgDn")], {}, [(4.5, "on at 0:10"), (4.5, "M"), (5.5, "d")]),
    ([(4.5, "PgDn"), (5.0, "PgDn")], {}, [(4.5, "on at 0:10"), (4.5, "M"), (5.0, "on at 0:40"), (5.0, "N")]),
    ([(9.5, "PgDn")], {}, [(9.5, "there is no mark after this"), (10.0, "e")]),
    ([(9.5, "PgUp")], {}, [(9.5, "back at 0:10"), (9.5, "M")]),
    ([(10.5, "PgUp")], {}, [(10.5, "back at 0:40"), (10.5, "N")]),
    ([(4.5, "PgUp")], {}, [(4.5, "there is no mark before this"), (6.0, "M")]),
    ([(4.25, "space"), (4.5, "PgDn"), (5.0, "PgDn")], {},
     [(4.5, "on at 0:10"), (4.5, "M"), (5.0, "on at 0:40"), (5.0, "N")]),
    ([(60.0, "left")], {}, [(60.0, "back at 0:37"), (62.0, "N"), (63.0, "e"), (64.0, "closed")]),
    ([(60.0, "PgUp")], {}, [(60.0, "back at 0:40"), (60.0, "N"), (61.0, "e"), (62.0, "closed")]),
    ([(60.0, "right"), (70.0, "right"), (80.0, "left")], {}, [(80.0, "back at 0:37")]),
    ([(60.0, "."), (61.0, "left")], {}, [(61.0, "back at 0:37"), (63.0, "N"), (64.0, "e"), (65.0, "closed")]),
], ids=str)
def test_keys_go_to_and_fro(presses, options, came):
    assert play(*presses, **options).since(presses[-1][0] if presses[0][0] == 60.0 else came[0][0])[:len(came)] == came


def test_nothing_comes_again_or_is_lost_when_an_order_comes_within_a_moment():
    evening = play(("b", "/", "nowhere"), ("M", "PgUp"))
    assert [text for text in evening.texts if len(text) < 9] == SHOWN


def test_a_remark_within_the_moment_does_not_hide_what_comes_next():
    events = [event for event in TALK if event["n"] != 5]
    evening = Evening(events, ("here", "g", "?"), ("d", "/", "nowhere"), (6.5, "g", "?"))
    assert [text for text in evening.texts if len(text) < 9] == "room joined a b c here d N e closed".split()


@pytest.mark.parametrize("size", [64, 512 << 10], ids=["not known yet", "known"])
@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_pressed_each_stretch_is_shown_whole_and_once(seed, size, monkeypatch):
    monkeypatch.setattr(chat, "INDEX_BYTES", size)
    chance, presses, when = random.Random(seed), [], 0.0
    for _ in range(30):
        when += chance.choice([0, 0.1, 0.5, 3, 7])
        key = chance.choice("space . left right PgUp PgDn + - = g / a ?".split())
        typed = {"g": chance.choice(["0:04", "10", "39.5", "x", ""]), "/": "nowhere", "a": "nobody"}.get(key)
        presses.append((chance.choice([when, when, chance.choice(SHOWN)]), key, typed))
    evening = Evening(TALK, *presses, until=when + 50)
    stretches, moments = [[]], [0.0]
    for text in evening.texts:
        if re.match("(on|back) at ", text):
            moments.append(chat.parse_minutes(text.split()[-1]))
            stretches.append([])
        elif text in SHOWN:
            stretches[-1].append(text)
    assert len(stretches) > 2
    for moment, stretch in zip(moments, stretches):  # a moment is told without its parts of a second
        assert stretch in [[text for event, text in zip(TALK, SHOWN) if event["t"] >= t][:len(stretch)]
                           for t in (moment, moment + 0.9)], evening.shown


# --- finding ---


@pytest.mark.parametrize("presses, came", [
    ([(4.5, "/", "D")], [(4.5, "on at 0:11"), (4.5, "d"), (6.5, "N")]),
    ([(4.5, "/", "ann: a")], [(4.5, "back at 0:02"), (4.5, "a"), (6.5, "b"), (6.5, "c")]),
    ([(4.5, "/", "ann: c")], [(4.5, "back at 0:04"), (4.5, "c"), (6.5, "M")]),
    ([(4.5, "/", "== ")], [(4.5, "on at 0:10"), (4.5, "M")]),
    ([(4.5, "/", "== "), (5.0, "/", ""), (5.5, "/", "")], [
        (4.5, "on at 0:10"), (4.5, "M"), (5.0, "on at 0:40"), (5.0, "N"), (5.5, "back at 0:10"), (5.5, "M")]),
    ([(4.5, "/", "zzz")], [(4.5, "zzz is nowhere in this session"), (6.0, "M")]),
    ([(4.5, "/", "z\x1b[2J")], [(4.5, "z\u241b[2J is nowhere in this session"), (6.0, "M")]),
    ([(4.5, "/", "")], [(6.0, "M")]),
    ([(4.5, "/", "2026-11-20")], [(4.5, "back at 0:00"), (4.5, "room")]),
    ([(4.25, "space"), (4.5, "/", "ann: e"), (5.0, ".")], [(4.5, "on at 0:41"), (4.5, "e"), (5.0, "closed")]),
    ([(60.0, "/", "ann: e")], [(60.0, "back at 0:41"), (60.0, "e"), (61.0, "closed")]),
], ids=str)
def test_a_text_is_found_from_here_on_and_then_from_the_beginning(presses, came):
    assert play(*presses).since(4.5 if presses[0][0] < 5 else 60.0)[:len(came)] == came


def test_several_that_match_in_one_moment_are_found_one_after_the_other():
    twins = recording(*[(1, "say", ann(text)) for text in ("x1", "y1", "x2", "x3")], (2, "say", ann("z")))
    evening = Evening(twins, (10.0, "space"), *[(11.0 + step, "/", "x") for step in range(4)])
    assert [text for when, text in evening.since(11.0) if len(text) == 2] == ["x1", "x2", "x3", "x1"]


def test_the_question_tells_what_was_looked_for():
    assert play((1.0, "/", "b"), (2.0, "/", ""), (3.0, "/", "zz"), (4.0, "/", "")).asked == [
        "find", "find [b]", "find [b]", "find [zz]"]


# --- seats ---


MET = recording((1, "join", {"who": "ann", "from": 1}), (2, "say", ann("a")), (3, "mark", {"text": "K"}),
                (5, "join", {"who": "bob", "from": 2}), (6, "nick", {"who": "bob", "name": "rob"}),
                (7, "say", ann("b")), (8, "leave", {"who": "rob", "why": "left"}), (9, "say", ann("c")),
                (12, "mark", {"text": "M"}), (13, "end", {}))


def test_a_seat_plays_from_its_history_to_its_leave():
    evening = Evening(MET, who="bob")
    assert evening.shown == [(0, "room"), (0, "a"), (0, "K"), (0, "joined"), (1, "rob"), (2, "b"),
                             (3, "left")]
    assert evening.player.status(80).startswith("the end  0:08 / 0:08")


@pytest.mark.parametrize("press, came", [
    ((3.5, "a", "bob"), [(3.5, "what bob (4) saw, at 0:05"), (3.5, "room"), (3.5, "a"), (3.5, "K"), (3.5, "joined"),
                         (4.5, "rob")]),
    ((7.5, "a", "bob"), [(7.5, "what rob (4) saw, at 0:07"), *((7.5, text) for text in "room a K joined rob b".split()),
                         (8.0, "left")]),
    ((40.0, "a", "rob"), [(40.0, "what rob (4) saw, at 0:08"),
                          *((40.0, text) for text in "room a K joined rob b left".split())]),
    ((7.5, "a", "1"), [(7.5, "what ann (1) saw, at 0:07"),
                       *((7.5, text) for text in "room joined a K joined rob b".split()), (8.0, "left")]),
    ((7.5, "a", "eve"), [(7.5, "nobody called eve is in this recording; there are ann (1), bob (4)"),
                         (8.0, "left")]),
    ((7.5, "a", " "), [(7.5, "what everybody saw, at 0:07"),
                       *((7.5, text) for text in "room joined a K joined rob b".split()), (8.0, "left")]),
], ids=str)
def test_a_seat_is_taken_by_name_or_number_and_what_was_seen_is_shown_again(press, came):
    assert Evening(MET, press, max_gap=0).since(press[0])[:len(came)] == came


def test_everybody_is_seen_again_when_nobody_is_named():
    evening = Evening(MET, (2.5, "a", ""), who="bob", max_gap=0)
    texts = "what everybody saw, at 0:07|room|joined|a|K|joined|rob|b".split("|")
    assert evening.since(2.5) == [*((2.5, text) for text in texts), (3.0, "left"), (4.0, "c"), (7.0, "M"),
                                  (8.0, "closed")]


def test_of_a_name_used_twice_the_one_who_is_there_is_meant():
    twice = recording((1, "join", {"who": "kim", "from": 1}), (2, "leave", {"who": "kim", "why": "lost"}),
                      (3, "join", {"who": "kim", "from": 1}), (9, "end", {}))
    for when, seat in ((1.5, 1), (2.5, 1), (4.0, 3)):
        assert f"what kim ({seat}) saw" in Evening(twice, (when, "a", "kim"), max_gap=0).since(when)[0][1]


def test_a_seat_keeps_to_its_own_marks():
    evening = Evening(MET, (1.5, "PgDn"), (1.75, "PgUp"), who="bob")
    assert [text for text in evening.texts if "mark" in text] == ["there is no mark after this",
                                                                  "there is no mark before this"]


# --- the end, from, to, again and again ---


def test_at_the_end_it_stays_until_it_is_told_otherwise():
    evening = play((60.0, "left"), until=100.0)
    assert evening.player.status(80).startswith("the end") and evening.news.now == 100.0
    assert evening.since(60.0) == [(60.0, "back at 0:37"), (62.0, "N"), (63.0, "e"), (64.0, "closed")]


@pytest.mark.parametrize("options, shown", [
    ({"start": 10.0}, [(0, "M"), (1, "d"), (3, "N"), (4, "e"), (5, "closed")]),
    ({"start": 3.0, "end": 10.5}, [(1, "b"), (1, "c"), (3, "M")]),
    ({"start": 3.0, "end": 10.5, "max_gap": 0}, [(1, "b"), (1, "c"), (7, "M")]),
    ({"end": 2.0}, [(0, "room"), (1, "joined"), (2, "a")]),
    ({"start": 5.0, "end": 6.0}, []),
    ({"start": 99.0}, [(0, "closed")]),
    ({"start": 20.0, "end": 10.0}, [(0, "M")]),
], ids=str)
def test_it_plays_from_and_to_these_times(options, shown):
    assert play(**options).shown == shown


@pytest.mark.parametrize("press, came", [
    ((9.0, "g", "1:00"), "on at 0:10"), ((9.0, "left"), "back at 0:05"),
    ((9.0, "/", "ann: e"), "e is nowhere in this session"), ((9.0, "/", "ann: a"), "back at 0:02"),
    ((9.0, "g", "0"), "back at 0:00"), ((0.5, "PgDn"), "there is no mark after this")], ids=str)
def test_nothing_leads_beyond_the_end_that_was_given(press, came):
    end = 10.9 if press[1] != "PgDn" else 5.0
    texts = play(press, start=2.0, end=end).texts
    assert any(came in text for text in texts) and not {"d", "N", "e", "closed"} & set(texts)


# --- a file that cannot be read on ---


class Stick(io.BytesIO):
    """A memory stick that is taken out when so much was read from it."""

    name = "/media/stick/lab.jsonl"

    def readline(self, *size):
        if self.tell() > len(data(TALK[:6])):
            raise OSError(5, "Input/output error")
        return super().readline(*size)


@pytest.mark.parametrize("presses", [[], [(1.0, "/", "zzz")], [(1.0, "PgDn"), (2.0, "PgDn")]], ids=str)
def test_a_disk_that_is_taken_away_is_told_and_keys_go_on_working(presses):
    evening = Evening(chat.Tape(Stick(data(TALK))), *presses, (50.0, "g", "0"), until=60.0)
    assert evening.texts.count("cannot read /media/stick/lab.jsonl: Input/output error") >= 1
    assert evening.since(50.0)[:2] == [(50.0, "back at 0:00"), (50.0, "room")]


@pytest.mark.parametrize("key", [(4.5, "/", "zzz"), (4.5, "PgDn")])
def test_a_session_of_a_later_version_in_the_middle_ends_neither_a_search_nor_the_player(key):
    events = [*TALK[:5], {**TALK[0], "v": 9, "n": 5, "t": 5.0}, *TALK[6:]]
    evening = Evening(events, key, (20.0, "g", "0"), until=30.0)
    assert evening.since(20.0)[:2] == [(20.0, "back at 0:00"), (20.0, "room")]



# --- a file that grows ---


@pytest.fixture
def grown(tmp_path):
    """A function that plays a file that begins with some of TALK, while more is written at some times."""
    def play_growing(first, *parts, **options):
        path = tmp_path / "lab.jsonl"
        path.write_bytes(data(TALK[:first]))
        with path.open("ab", buffering=0) as more, path.open("rb") as file:
            presses = [(part[0], lambda part=part: more.write(part[1])) if type(part[1]) is bytes else part
                       for part in parts]
            return Evening(chat.Tape(file), *presses, follow=True, **options)

    return play_growing


def test_what_is_written_comes_at_once(grown):
    b, rest = data(TALK[3:4]), data(TALK[4:5])
    evening = grown(3, (5.0, b[:7]), (6.0, b[7:]), (8.0, rest), until=20.0)
    assert evening.since(0.1) == [(when, text) for when, text in evening.since(0.1) if text in ("b", "c")]
    assert evening.texts == ["room", "joined", "a", "b", "c"]
    assert [int(when) for when, text in evening.shown] == [0, 0, 0, 6, 8]
    assert evening.player.status(80).startswith("live  0:04 / 0:04")


def test_what_is_written_later_is_not_shown_where_nobody_asked_to_follow(tmp_path):
    path = tmp_path / "lab.jsonl"
    path.write_bytes(data(TALK[:5]))
    with path.open("ab", buffering=0) as more, path.open("rb") as file:
        evening = Evening(chat.Tape(file), (60.0, lambda: more.write(data(TALK[5:]))), until=90.0)
    assert evening.texts == ["room", "joined", "a", "b", "c"] and evening.player._is_ended()


def test_keys_work_while_more_is_waited_for(grown):
    evening = grown(5, (5.0, "left"), (6.0, data(TALK[5:6])), (7.0, "PgUp"), (8.0, "/", "ann: a"),
                    (9.0, "a", "ann"), until=20.0)
    assert evening.since(5.0)[:4] == [(5.0, "back at 0:00"), (5.0, "room"), (5.0, "joined"), (5.0, "a")]
    assert evening.since(6.5)[0] == (7.0, "there is no mark before this")
    assert evening.since(8.0)[:2] == [(8.0, "back at 0:02"), (8.0, "a")]
    assert (9.0, "what ann (1) saw, at 0:10") in evening.shown and evening.texts[-1] == "M"


def test_who_came_while_it_was_followed_can_be_asked_for(grown):
    evening = grown(6, (3.0, "a", "eve"), (5.0, data([join(6, "eve", 6, t=10.5)])), (7.0, "a", "eve"), (8.0, "PgUp"), until=20.0)
    assert [text for when, text in evening.since(3.0)] == [
        "nobody called eve is in this recording; there are ann (1)", "joined", "what eve (6) saw, at 0:10",
        "room", "joined", "there is no mark before this"]


def test_a_pause_holds_what_is_written(grown):
    evening = grown(3, (1.0, "space"), (2.0, data(TALK[3:5])), (4.0, "."), (9.0, "space"), until=20.0)
    assert evening.since(1.0) == [(4.0, "b"), (9.0, "c")]


# --- the status ---


@pytest.mark.parametrize("options, presses, until, status", [
    ({}, [], 4.5, "playing  0:04 / 0:42  1x ━━━━─────"),
    ({"max_gap": 0}, [], 20.25, "playing  0:20 / 0:42  1x ━━━━━━━━━━━━━━━━────"),
    ({}, [(4.5, "space")], 30.0, "paused  0:04 / 0:42  1x ━━━━"),
    ({}, [], 30.0, "the end  0:42 / 0:42  1x ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━"),
    ({"speed": 2.5}, [], 30.0, "the end  0:42 / 0:42  2.5x ━━━"),
    ({"speed": 0.5}, [], 1.0, "playing  0:00 / 0:42  0.5x ─────"),
    ({"start": 10.0, "end": 20.0}, [], 0.5, "playing  0:10 / 0:20  1x ━━"),
], ids=str)
def test_the_status_tells_where_it_is(options, presses, until, status):
    assert play(*presses, until=until, **options).player.status(60).startswith(status)


def test_the_status_names_who_is_seen_by_the_name_of_that_moment():
    assert Evening(MET, who="bob", until=0.5).player.status(80).endswith("─ as bob")
    assert Evening(MET, who="bob", until=2.5).player.status(80).endswith("─ as rob")
    assert " as " not in Evening(MET, until=1.5).player.status(80)


LONG = [{**SESSION, "t": 90_000.0}, {"ev": "join", "n": 1, "t": 1e10, "who": "李" * 32, "from": 0}]


@pytest.mark.parametrize("events, options", [
    (TALK, {}), (MET, {"who": "bob"}), (LONG, {}), ([SESSION], {}), (LONG, {"who": "1", "speed": 123.456}), (TALK, {"start": 42.0}), (TALK, {"speed": 1e-7})],
                         ids=["talk", "seat", "years", "a moment", "wide name", "the end", "slow"])
def test_the_status_is_one_row_however_narrow(events, options):
    player = Evening(events, until=3.0, **options).player
    for columns in range(0, 201):
        status = player.status(columns)
        assert wcswidth(status) < max(columns, 1), status
        assert wcswidth(status) == columns - 2 or options.get("who") or columns < 50


def test_the_status_holds_nothing_that_a_terminal_obeys():
    events = recording((1, "join", {"who": "e\x1b[2J\u202e\nve", "from": 0}), (2, "say", ann("x")))
    assert Evening(events, who="1", until=0.5).player.status(80).endswith("─ as e\u241b[2J ve")


# --- hostile files ---


@pytest.mark.parametrize("name", STRANGE)
def test_no_file_does_harm_to_the_player(name):
    keys = [key for keys, key, words, run in chat.PLAYER_KEYS if key not in ("q", "space")]
    presses = [(when, key, typed) for typed in ("a", "2", "")
               for when, key in enumerate(keys, 10 + 20 * len(typed))]
    try:
        tape = chat.Tape(io.BytesIO(STRANGE[name]))
        evening = Evening(tape, *sorted(presses)) if tape.session else None
    except chat.ChatError as error:
        assert "newer chat" in str(error)
    else:
        assert not evening or evening.whole and not UNWANTED.search(evening.whole + evening.player.status(80))


# --- on a terminal ---


CHAT = [sys.executable, chat.__file__]
needs_terminal = pytest.mark.skipif(not terminal.fcntl, reason="needs pseudo-terminals")
LESSON = recording((0, "join", {"who": "ann", "from": 0}), (0.1, "say", ann("first")),
                   (50, "mark", {"text": "two"}), (50, "join", {"who": "юля", "from": 2}),
                   (50.1, "say", ann("second")),
                   (100, "say", {"who": "юля", "text": "last"}), (100, "end", {}))
PASTE = "\x1b[200~%s\x1b[201~"
CONTROLS = "".join(chr(code) for code in range(1, 32) if code not in (3, 4, 12, 27))
LETTERS = "bcdefhijkmnoprstuvwxyzBCDEFGHIJKLMNPQRSTUVWXYZ_,^'\"<>#*"


class Screen(terminal.Terminal):
    """A terminal with a player on it."""

    def see_status(self, pattern):
        self.wait(lambda: re.search(pattern, self.status()), pattern)

    def status(self):
        """The row above the bar with the keys."""
        return self.rows()[-2] if len(self.rows()) > 1 and self.rows()[-1].startswith(" space pause") else ""

    def said(self):
        """What was shown, without times, above the input line, status and keys."""
        return [re.sub(r"^\d\d:\d\d ", "", row) for row in self.text().split("\n")[:-3]]

    def see_prompt(self, typed):
        """Wait until the input line, above status and keys, is exactly this."""
        self.wait(lambda: self.rows()[-3:-2] == [typed], typed)


@pytest.fixture
def opened(tmp_path):
    """A function that plays a recording on a terminal of its own."""
    with contextlib.ExitStack() as stack:
        def open_one(events=LESSON, *options, **settings):
            os.environ.pop("NO_COLOR", None)
            path = tmp_path / "lab.jsonl"
            path.write_bytes(data(events))
            command = [*CHAT, "replay", str(path), *options]
            screen = Screen(command, cwd=tmp_path, columns=100, **{"env": None, **settings})
            stack.callback(screen.close)
            return screen

        yield open_one


@pytest.fixture
def player(opened):
    """A player of the lesson that has shown its first part, and has a long silence before it."""
    screen = opened(LESSON, "--max-gap", "0")
    screen.see("ann: first$")
    screen.see_status("^playing  0:0")
    return screen


ROWS = ["-- room лаб, open since 2026-11-20 12:00", "-- ann joined", "ann: first"]


@needs_terminal
def test_a_person_sees_what_was_said_the_status_and_the_keys(player):
    assert player.said() == ROWS
    assert re.match("playing  0:0[0-9] / 1:40  1x [━─]{60,}$", player.status())


@needs_terminal
def test_space_pauses_and_goes_on(player):
    player.type(" ")
    player.see_status("^paused  ")
    player.type(" ")
    player.see_status("^playing  ")


@needs_terminal
def test_the_point_shows_the_next_event(player):
    player.type(" .")
    player.see("== two$")
    player.see_status("^paused  0:50 / 1:40")
    assert player.said() == ROWS + ["== two"]


@needs_terminal
def test_the_question_mark_lists_the_keys(player):
    player.type("?")
    for keys, name, words, run in chat.PLAYER_KEYS:
        player.see(f"^— {re.escape(name.ljust(12))} {words}$")


@needs_terminal
@pytest.mark.parametrize("key, question, answer, note, then", [
    ("/", "find", "SEC", "— on at 0:50 —", "ann: second"),
    ("/", "find", "zzz", "— zzz is nowhere in this session —", None),
    ("g", "go to (such as 1:23)", "1:40", "— on at 1:40 —", "юля: last"),
    ("g", "go to (such as 1:23)", "soon", "— soon is no time; write 83 or 1:23 or 1:02:03 —", None),
    ("a", "as whom (nobody: all that was said)", "Ю\t", "— what юля (4) saw, at ", "-- юля joined"),
    ("a", "as whom (nobody: all that was said)", "zoe",
     "— nobody called zoe is in this recording; there are ann (1), юля (4) —", None),
    ("\x1b[6~", None, None, "— on at 0:50 —", "== two"),
    ("\x1b[5~", None, None, "— there is no mark before this —", None),
    ("\x1b[C", None, None, "— on at 0:0", None),
    ("\x1b[D", None, None, "— back at 0:00 —", "-- ann joined"),
], ids=ascii)
def test_keys_lead_to_places(player, key, question, answer, note, then):
    player.type(key)
    if question:
        player.see_prompt(f"{question}:")
        player.type(f"{answer}\r")
    player.see("^" + re.escape(note))
    if then:
        player.wait(lambda: then in player.said()[len(ROWS):], then)
    player.see_status("^(playing|the end)  ")


@needs_terminal
def test_a_question_stands_where_the_status_was_until_it_is_answered(player):
    player.type("/")
    player.see_prompt("find:")
    player.type("se")
    player.see_prompt("find: se")
    player.type("\r")
    player.see("ann: second$")
    player.see_status("^playing")
    player.type("/")
    player.see_prompt("find [se]:")


@needs_terminal
@pytest.mark.parametrize("key", ["\x1b", "\x03"], ids=["Escape", "Ctrl+C"])
def test_a_question_can_be_left(player, key):
    player.type("g")
    player.see_prompt(r"go to (such as 1:23):")
    player.type("1:40" + key)
    player.see_status("^playing  0:")
    player.type("g")
    player.see_prompt(r"go to (such as 1:23):")
    assert player.said() == ROWS


@needs_terminal
def test_keys_are_letters_while_something_is_asked(player):
    player.type("/")
    player.see_prompt("find:")
    player.type("q?. +l")
    player.see_prompt("find: q?. +l")
    assert player.said() == ROWS


@needs_terminal
def test_tab_lists_the_names_that_are_possible(opened):
    people = recording(*[(0, "join", {"who": name, "from": 0}) for name in ("anna", "andrej", "bob")],
                       (99, "end", {}))
    screen = opened(people, "--max-gap", "0")
    screen.see("-- bob joined$")
    screen.type("a")
    screen.see_prompt("as whom (nobody: all that was said):")
    screen.type("an\t")
    screen.wait(lambda: {"anna", "andrej"} <= set(" ".join(screen.rows()[3:]).split()), "both names")
    screen.type("n\t")
    screen.see_prompt("as whom (nobody: all that was said): anna")
    screen.type("\r")
    screen.see(r"— what anna \(1\) saw, at 0:0\d —$")
    screen.see_status(" as anna$")


@needs_terminal
@pytest.mark.parametrize("key, question", [("/", "find:"), ("g", "go to (such as 1:23):"), (None, None)])
def test_tab_lists_names_only_while_it_is_asked_for_one(player, key, question):
    player.type("a")
    player.see_prompt("as whom (nobody: all that was said):")
    player.type("\x1b")
    player.wait(lambda: "as whom" not in player.text(), "no question")
    if question:
        player.type(key)
        player.see_prompt(question)
    player.type("\t\t")
    if question:
        player.type("x\x1b")
    player.type("+")
    player.see_status("^playing  0:0[0-9] / 1:40  2x [━─]{60,}$")
    assert player.said() == ROWS


@needs_terminal
@pytest.mark.parametrize("typed", [
    "xyz", "\r\r", "ЖЩ", "\x12xyz", "\x13xyz", "\x0f", "\x1b\r", "\x15\x0b\x17", "\x1b[A\x1b[B", "\t",
    "\x1bOP", PASTE % "hello\nq", PASTE % " ", PASTE % "q.", "\x7f", "\x11xyz", "\x16xyz", "\x1b1\x1b2x",
    CONTROLS, "".join("\x1b" + letter for letter in LETTERS)], ids=ascii)
def test_what_is_no_key_does_nothing_and_is_not_shown(player, typed):
    player.type(typed)
    player.type("+")
    player.see_status("^playing  0:0[0-9] / 1:40  2x [━─]{60,}$")
    assert player.said() == ROWS


@needs_terminal
@pytest.mark.parametrize("key", ["q", "\x03", "\x04"], ids=["q", "Ctrl+C", "Ctrl+D"])
@pytest.mark.parametrize("before", ["", " ", "/", "gsome"], ids=ascii)
def test_a_person_can_quit_at_any_time(player, key, before):
    player.type(before)
    if before in ("/", "gsome"):
        player.see_prompt({"/": "find:", "gsome": "go to (such as 1:23): some"}[before])
        player.type("\x03")
        player.see_status("^playing")
    player.type(key)
    assert player.exit_code() == 0
    rows = player.rows()
    assert [re.sub(r"^\d\d:\d\d ", "", row) for row in rows] == ROWS, "status and keys are gone"


@needs_terminal
@pytest.mark.skipif(sys.platform == "win32", reason="needs the signals of Unix")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_it_without_a_traceback(player, number):
    os.kill(player.process.pid, getattr(signal, number))
    player.wait(lambda: player.process.poll() is not None, "the end")
    player.exit_code()
    assert "Traceback" not in player.text()


@needs_terminal
def test_at_the_end_it_stays_and_one_can_go_back(opened):
    screen = opened(LESSON, "--speed", "1000")
    screen.see("the room is closed$")
    screen.see_status("^the end  1:40 / 1:40  1000x ━+$")
    screen.type("g1:40\r")
    screen.wait(lambda: screen.said().count("юля: last") == 2, "once more")
    screen.type("q")
    assert screen.exit_code() == 0


@needs_terminal
def test_a_resized_terminal_has_one_status(player):
    for number, columns in enumerate((60, 120, 30, 100)):
        player.resize(columns, 24)
        player.type("?")
        player.wait(lambda: player.text().count("— q  ") == number + 1, "the list")
        player.see_status("^playing  0:")
        player.wait(lambda: sum("playing  0:" in row for row in player.rows()) == 1, "one status")


@needs_terminal
def test_a_narrow_terminal_keeps_the_status_in_one_row(opened):
    path = opened().process.args[-1]
    screen = Screen([*CHAT, "replay", path, "--as", "юля"], columns=20)
    try:
        screen.wait(lambda: any(row.startswith("playing  0:50 / 1:4") for row in screen.rows()), "the status")
        screen.type("?")
        screen.wait(lambda: "quit" in screen.text(), "the list")
        screen.wait(lambda: sum("playing" in row for row in screen.rows()) == 1, "one status")
    finally:
        screen.close()


@needs_terminal
def test_a_file_is_followed_on_a_terminal(opened, tmp_path):
    screen = opened(LESSON[:3], "--follow")
    screen.see("ann: first$")
    screen.see_status("^live  0:00 / 0:00")
    with (tmp_path / "lab.jsonl").open("ab") as more:
        more.write(data(LESSON[3:]))
    screen.see("the room is closed$")
    screen.see_status("^live  1:40 / 1:40")
    screen.type("q")
    assert screen.exit_code() == 0


@needs_terminal
def test_more_than_a_screen_is_shown_whole_and_in_order(opened):
    many = recording(*[(0, "say", ann(f"line {number}")) for number in range(5000)])
    screen = opened(many)
    screen.wait(lambda: screen.said()[-1:] == ["ann: line 4999"], "the last line")
    lines = [row for row in screen.said() if "line" in row]
    assert lines == [f"ann: line {number}" for number in range(5000)]
    screen.type("q")
    assert screen.exit_code() == 0


HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b2J\u202egnp\u2066\r\x0e\x08"


@needs_terminal
def test_a_hostile_recording_brings_nothing_that_a_terminal_obeys(opened):
    evil = [{**SESSION, "room": HOSTILE}] + recording(
        (0, "join", {"who": HOSTILE + "1", "from": 0}), (0, "join", {"who": HOSTILE + "2", "from": 0}),
        (0, "say", {"who": HOSTILE + "1", "text": HOSTILE}), (0, "mark", {"text": HOSTILE}),
        (0, HOSTILE, {HOSTILE: HOSTILE}),
        (0, "leave", {"who": HOSTILE + "2", "why": HOSTILE, "text": HOSTILE}),
        (1, "say", ann("done")))[1:]
    screen = opened(evil)
    screen.see("ann: done$")
    screen.type("a")
    screen.see_prompt("as whom (nobody: all that was said):")
    screen.type("\t\t")
    screen.type("1\r")
    screen.see(r"— what .*1 \(1\) saw, at")
    screen.see_status(r"as .*\]0;owned")
    screen.type("/" + "x\r")
    screen.see("— x is nowhere")
    screen.type("q")
    assert screen.exit_code() == 0
    raw = "".join(screen.raw)
    assert not re.findall("[\x9b\u202e\u2066\x0e]|\x1b\\]|\x1b\\[2J", raw)


@needs_terminal
def test_a_dumb_terminal_gets_plain_lines(opened):
    screen = opened(LESSON, "--speed", "1000", env={"TERM": "dumb"})
    assert screen.exit_code() == 0
    assert "\x1b" not in "".join(screen.raw)
    assert screen.text().endswith("the room is closed") and "playing" not in screen.text()


@needs_terminal
@pytest.mark.parametrize("options", [["--instant"], ["--instant", "--as", "юля"]], ids=" ".join)
def test_at_once_needs_no_keys(opened, options):
    screen = opened(LESSON, *options)
    assert screen.exit_code() == 0
    assert "room is closed" in screen.text() and "playing" not in screen.text()


@pytest.mark.parametrize("stdin", [subprocess.DEVNULL, subprocess.PIPE], ids=["nothing", "a pipe"])
def test_a_pipe_gets_plain_lines(tmp_path, stdin):
    path = tmp_path / "lab.jsonl"
    path.write_bytes(data(LESSON))
    done = subprocess.run([*CHAT, "replay", str(path), "--speed", "1000"], stdin=stdin, timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, lines[0], lines[-1]) == (0, f"12:00 {ROWS[0]}", "12:01 -- the room is closed")
    assert "\x1b" not in done.stdout.decode() and len(lines) == len(LESSON)


@needs_terminal
def test_the_list_of_keys_in_a_flood_stops_nothing(opened):
    many = recording(*[(number / 1e5, "say", ann(f"line {number}")) for number in range(20_000)])
    screen = opened(many, "--speed", "1000")
    screen.see("line ")
    for _ in range(20):
        screen.type("?")
        screen.read(0.01)
    screen.type("q")
    assert screen.exit_code() == 0
