"""The doors: what requests, mistakes, leaving in every way, haste, sloth and malice do, over real sockets."""
import contextlib
import json
import os
import random
import socket
import sys
import threading
import time

import pytest

import chat
import helpers
from helpers import Peer, Wire, joined, serving, wait_for


def packet(*requests):
    """Requests as the bytes of one packet."""
    return b"".join(map(chat.encode, requests))


HELLO = packet({"do": "hello", "name": "bob"})
SYNC = packet({"do": "ping", "id": 1234567})


def ask(peer, data):
    """Send these bytes; returns the lines that come until all is carried out."""
    peer.send_bytes(data + SYNC)
    return peer.until(re="pong", id=1234567)[:-1]


def without_times(lines):
    return [{key: value for key, value in line.items() if key not in ("t", "start") and
             (key, line.get("ev")) != ("id", "session")} for line in lines]


# --- requests ---


def test_say_me_and_nick_are_told_to_everyone(server):
    with joined(server, "ann") as ann, joined(server, "bob") as bob:
        bob.send(do="say", text="привет 😀", id=1)
        bob.send(do="me", text="waves")
        bob.send(do="nick", name="rob")
        bob.send(do="say", text="hi")
        for peer in (ann, bob):
            assert peer.expect(ev="say", who="bob", text="привет 😀", id=1)
            assert peer.expect_next(ev="me", who="bob", text="waves")
            assert peer.expect_next(ev="nick", who="bob", name="rob")
            assert peer.expect_next(ev="say", who="rob", text="hi")


def test_who_and_ping_are_answered(server):
    with joined(server, "ann"), joined(server, "bob") as bob:
        bob.send(do="who")
        bob.expect_next(re="who", people=["ann", "bob"])
        bob.send(do="ping")
        bob.expect_next(re="pong")


def test_a_private_line_is_between_two(server):
    with joined(server, "ann") as ann, joined(server, "bob") as bob, joined(server, "eve") as eve:
        bob.send(do="tell", to="ANN", text="psst")
        ann.expect(re="tell", who="bob", to="ann", text="psst")
        bob.expect(re="tell", who="bob", to="ann", text="psst")
        eve.settle()
        assert b"psst" not in b"".join(eve.heard)


def test_unknown_fields_are_ignored(server):
    with joined(server, "bob") as bob:
        bob.send(do="say", text="hi", colour="red", n=99, who="ann")
        line = bob.expect_next(ev="say", n=2, who="bob", text="hi")
        assert list(line) == ["ev", "n", "t", "who", "text"]


def test_a_second_hello_is_refused(server):
    with joined(server, "bob") as bob:
        bob.send(do="hello", name="rob", id=3)
        bob.expect_next(re="error", id=3, text="you are in the room already")


def test_what_follows_the_hello_in_the_same_packet_is_carried_out(server):
    with Peer(server) as bob:
        bob.send_bytes(HELLO + packet({"do": "say", "text": "at once"}))
        bob.expect(ev="say", who="bob", text="at once")


def test_lines_in_every_json_notation_are_understood(server):
    with joined(server, "bob") as bob:
        bob.send_bytes(b' { "text" : "\\u043f\\ud83d\\ude00" ,\t"do":"say" } \r\n')
        bob.expect_next(ev="say", text="п😀")


DIALOGUE = [
    {"do": "say", "text": "nobody hears this"},
    {"do": "hello", "name": "all", "id": 1},
    {"do": "hello", "name": "bob", "id": 2},
    {"do": "say", "text": "привет 😀", "id": 3},
    {"do": "me", "text": "waves", "id": 4},
    {"do": "who", "id": 5},
    {"do": "dance", "id": 6},
    {"do": "tell", "to": "bob", "text": "psst", "id": 7},
    {"do": "nick", "name": "rob", "id": 8},
    {"do": "say", "text": "", "id": 9},
    {"do": "say", "text": "x" * 5000, "id": 10},
    {"do": "say", "text": "ж" * 4000, "id": 11},
    {"do": "ping", "id": 12},
    {"do": "ping", "junk": "я" * 40_000, "id": 13},  # over 64 KiB in bytes, though not in characters
    {"do": "nick", "name": "a b", "id": 14},
    {"do": "bye"},
    {"do": "say", "text": "too late"},
]


def dialogue_cut_by(cut):
    """What the dialogue brings, when it is sent in these pieces: (events, replies)."""
    with serving() as server, Peer(server) as peer:
        for piece in cut(packet(*DIALOGUE)):
            peer.send_bytes(piece)
        lines = without_times(peer.rest())
    return [line for line in lines if "ev" in line], [line for line in lines if "re" in line]


def pieces_of(size):
    return lambda data: [data[start:start + size] for start in range(0, len(data), size)]


def pieces_by_chance(data):
    chance = random.Random(1)
    while data:
        size = chance.choice([1, 2, 10, 100, 1000, 10_000])
        yield data[:size]
        data = data[size:]


@pytest.fixture(scope="module")
def line_by_line():
    return dialogue_cut_by(lambda data: data.splitlines(True))


@pytest.mark.parametrize("cut", [lambda data: [data], pieces_of(1000), pieces_of(3), pieces_by_chance],
                         ids=["in one packet", "in pieces of 1,000", "in pieces of 3", "in pieces by chance"])
def test_how_the_bytes_arrive_makes_no_difference(line_by_line, cut):
    assert dialogue_cut_by(cut) == line_by_line


def test_the_dialogue_goes_as_it_should(line_by_line):
    events, replies = line_by_line
    assert [(line["ev"], line.get("id")) for line in events] == [
        ("session", None), ("join", None), ("say", 3), ("me", 4), ("nick", 8), ("say", 11), ("leave", None)]
    assert [(line["re"], line.get("code"), line.get("id")) for line in replies] == [
        ("error", "not-yet", None), ("error", "bad-name", 1), ("welcome", None, 2), ("who", None, 5),
        ("error", "bad-line", 6), ("tell", None, 7), ("error", "bad-line", 9), ("error", "too-long", 10),
        ("pong", None, 12), ("error", "too-long", None), ("error", "bad-name", 14)]


def test_one_byte_at_a_time(server):
    with Peer(server) as bob:
        for byte in HELLO + packet({"do": "say", "text": "привет"}):
            bob.send_bytes(bytes([byte]))
        bob.expect(ev="say", text="привет")


# --- ids ---


@pytest.mark.parametrize("request_, answer", [
    ({"do": "say", "text": "hi"}, {"ev": "say"}),
    ({"do": "me", "text": "waves"}, {"ev": "me"}),
    ({"do": "nick", "name": "rob"}, {"ev": "nick"}),
    ({"do": "tell", "to": "ann", "text": "psst"}, {"re": "tell"}),
    ({"do": "tell", "to": "bob", "text": "psst"}, {"re": "tell"}),
    ({"do": "who"}, {"re": "who"}),
    ({"do": "ping"}, {"re": "pong"}),
    ({"do": "hello", "name": "rob"}, {"re": "error", "code": "bad-line"}),
    ({"do": "say"}, {"re": "error", "code": "bad-line"}),
    ({"do": "say", "text": " "}, {"re": "error", "code": "bad-line"}),
    ({"do": "say", "text": "x" * 4001}, {"re": "error", "code": "too-long"}),
    ({"do": "tell", "to": "nobody", "text": "psst"}, {"re": "error", "code": "nobody"}),
    ({"do": "tell", "text": "psst"}, {"re": "error", "code": "bad-line"}),
    ({"do": "nick", "name": "ANN"}, {"re": "error", "code": "name-taken"}),
    ({"do": "nick", "name": "all"}, {"re": "error", "code": "bad-name"}),
    ({"do": "nick"}, {"re": "error", "code": "bad-line"}),
], ids=lambda value: json.dumps(value)[:40])
@pytest.mark.parametrize("id", [0, 2**53 - 1])
def test_an_id_comes_back_on_exactly_one_line(server, request_, answer, id):
    with joined(server, "ann") as ann, joined(server, "bob") as bob:
        lines = ask(bob, packet({**request_, "id": id}))
        (line,) = [line for line in lines if line.get("id") == id]
        assert {key: line.get(key) for key in answer} == answer
        if "re" in answer:
            assert not any(line.get("id") == id for line in ask(ann, b""))


def test_the_id_of_a_bye_comes_back_on_the_leave(server):
    with joined(server, "bob") as bob:
        bob.send(do="bye", id=7)
        assert [(line["ev"], line["id"]) for line in bob.rest()] == [("leave", 7)]


@pytest.mark.parametrize("request_, code", [
    ({"do": "hello", "name": "ANN"}, "name-taken"), ({"do": "hello", "name": "all"}, "bad-name"),
    ({"do": "hello"}, "bad-line"), ({"do": "say", "text": "hi"}, "not-yet"), ({"do": "ping"}, "not-yet"),
    ({"do": "say", "text": ""}, "bad-line")], ids=lambda value: json.dumps(value)[:40])
def test_an_id_comes_back_before_the_hello_too(server, request_, code):
    with joined(server, "ann"), Peer(server) as bob:
        bob.send(id=5, **request_)
        bob.expect_next(re="error", code=code, id=5)
        bob.send(do="hello", name="bob", id=6)
        bob.expect_next(re="welcome", id=6)


@pytest.mark.parametrize("id", ["-1", "9007199254740992", "1.0", "true", '"1"', "[]", "1e3", "NaN",
                                pytest.param("1" * 5000, id="a huge number")])
def test_what_is_no_id_is_refused(server, id):
    with joined(server, "bob") as bob:
        (line,) = ask(bob, b'{"do":"say","text":"hi","id":%s}\n' % id.encode())
        assert (line["re"], line["code"], "id" in line) == ("error", "bad-line", False)


# --- mistakes ---


BAD_LINES = {
    "words": (b"hello?", "bad-line"),
    "an empty line": (b"", "bad-line"),
    "a list": (b'["do","say"]', "bad-line"),
    "a string": (b'"say"', "bad-line"),
    "nothing asked": (b"{}", "bad-line"),
    "an unknown request": (b'{"do":"dance"}', "bad-line"),
    "a request that is a list": (b'{"do":["say"],"text":"hi"}', "bad-line"),
    "two objects": (b'{"do":"ping"}{"do":"ping"}', "bad-line"),
    "half an object": (b'{"do":"ping"', "bad-line"),
    "deep nesting": (b'{"do":"ping","x":' + b"[" * 30_000 + b"]" * 30_000 + b"}", "bad-line"),
    "no text": (b'{"do":"say"}', "bad-line"),
    "a number as text": (b'{"do":"say","text":5}', "bad-line"),
    "an empty text": (b'{"do":"say","text":""}', "bad-line"),
    "a blank text": ('{"do":"say","text":" \u3000 \\n"}'.encode(), "bad-line"),
    "a NUL": (b'{"do":"say","text":"a\\u0000b"}', "bad-line"),
    "half a character": (b'{"do":"say","text":"\\ud83d"}', "bad-line"),
    "bytes that are no text": (b'{"do":"say","text":"\xff"}', "bad-line"),
    "half a character in a name": (b'{"do":"nick","name":"\\udc00x"}', "bad-line"),
    "half a character in a reader": (b'{"do":"tell","to":"\\udc00x","text":"hi"}', "bad-line"),
    "4,001 characters": (packet({"do": "say", "text": "ж" * 4001})[:-1], "too-long"),
    "61 rows": (packet({"do": "say", "text": "row\n" * 60 + "row"})[:-1], "too-long"),
    "a line of 64 KiB and a byte": (b'{"do":"ping","x":"%s"}' % (b"x" * (65537 - 20)), "too-long"),
    "a line of a megabyte": (b'{"do":"ping","x":"%s"}' % (b"x" * 1_000_000), "too-long"),
    "a line of 80,000 bytes that are fewer characters":
        (b'{"do":"ping","x":"%s"}' % ("я" * 40_000).encode(), "too-long"),
}


@pytest.mark.parametrize("line, code", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_line_that_makes_no_sense_is_answered_and_the_next_one_carried_out(server, line, code):
    with joined(server, "ann") as ann, joined(server, "bob") as bob:
        (error,) = ask(bob, line + b"\n")
        assert (error["re"], error["code"]) == ("error", code)
        assert error["text"] and list(error)[:4] == ["re", "t", "code", "text"]
        bob.say("and on")
        bob.expect(ev="say", text="and on")
        assert [line["text"] for line in ann.until(text="and on") if "text" in line] == ["and on"]


def test_the_longest_line_is_carried_out(server):
    with joined(server, "bob") as bob:
        line = b'{"do":"ping","id":8,"x":"%s"}\n'
        line %= b"x" * (65536 + 1 - len(line) + 2)
        assert len(line) == 65536 + 1
        bob.send_bytes(line)
        bob.expect_next(re="pong", id=8)


@pytest.mark.parametrize("name, free", [("ann", "ann-2"), ("ＡＮＮ", "ＡＮＮ-2"), ("a b", "a_b"), ("!bob!", "bob"),
                                        ("x" * 40, "x" * 32)])
def test_a_name_that_cannot_be_had_is_answered_with_a_free_one(server, name, free):
    with joined(server, "ann"), Peer(server) as bob:
        bob.send(do="hello", name=name)
        error = bob.expect_next(re="error", name=free)
        assert error["code"] in ("name-taken", "bad-name")
        bob.send(do="hello", name=error["name"])
        bob.expect_next(re="welcome", you=free)


@pytest.mark.parametrize("name", ["", " ", "Server", "ADMIN", "ｅｖｅｒｙｏｎｅ", "a" + "\u0301" * 4, "…"])
def test_a_name_that_nothing_is_left_of_is_refused(server, name):
    with Peer(server) as bob:
        bob.send(do="hello", name=name)
        error = bob.expect_next(re="error", code="bad-name")
        assert "name" not in error


def test_a_full_room_says_so_and_can_be_tried_again():
    with serving(chat.Room("lab", max_people=1)) as server, joined(server, "ann") as ann, Peer(server) as bob:
        bob.send(do="hello", name="bob", id=1)
        bob.expect_next(re="error", code="full", id=1, text="this room is full: 1 people")
        ann.send(do="bye")
        ann.rest()
        bob.send(do="hello", name="bob")
        bob.expect_next(re="welcome", people=["bob"])


# --- too many mistakes ---


MISTAKE = b'{"do":"dance"}\n'


def test_19_refused_lines_are_forgiven(server):
    with Peer(server) as bob:
        bob.send_bytes(MISTAKE + b"nonsense\n" * 18 + HELLO)
        assert len(bob.until(re="welcome")) == 20
        assert len(ask(bob, b"nonsense\n" * 19)) == 2 + 19  # the session line and the own join came first


def test_the_20th_refused_line_before_the_hello_closes_that_connection_only(server):
    with joined(server, "ann") as ann, Peer(server) as bob:
        bob.send_bytes(MISTAKE + b"GET / HTTP/1.1\n" * 19)
        errors = bob.rest()
        assert len(errors) == 20 and errors[-1]["code"] == "bad-line"
        assert ask(ann, b"") == []


def test_the_last_answer_arrives_even_if_more_nonsense_was_under_way(server):
    with Peer(server) as bob:
        bob.send_bytes(MISTAKE * 20 + b"x" * 1_000_000)
        assert len(bob.rest()) == 20


def test_mistakes_between_good_lines_never_end_a_connection(server):
    with joined(server, "bob") as bob:
        for _ in range(30):
            lines = ask(bob, MISTAKE + packet({"do": "tell", "to": "nobody", "text": "x"}, {"do": "hello", "name": "x"}))
            assert [line["re"] for line in lines] == ["error"] * 3


def test_20_requests_in_a_row_that_are_refused_do(server):
    with joined(server, "bob") as bob:
        bob.send_bytes(packet({"do": "say", "text": "first"}) + MISTAKE * 30 + packet({"do": "say", "text": "last"}))
        lines = bob.rest()
        assert [line.get("ev", line.get("code")) for line in lines if line.get("code") != "bad-line"] == [
            "say", "leave", "kicked"]
        assert lines[-1]["text"] == "20 of your requests in a row were refused"


def test_20_lines_that_are_no_requests_do_whatever_stands_between_them(server):
    with joined(server, "bob") as bob:
        for number in range(20):
            bob.send_bytes((b"nonsense\n", b"[]\n", b"{}\n", b"x" * 70_000 + b"\n")[number % 4] + SYNC)
        assert bob.rest()[-1]["text"] == "20 of your lines could not be understood"


def twenty_at_once(bob):
    bob.send_bytes(b"nonsense\n" * 20)


def twenty_one_by_one(bob):
    for _ in range(19):
        bob.send_bytes(b"nonsense\n")
        bob.expect_next(re="error", code="bad-line")
    bob.send_bytes(b"nonsense\n")


@pytest.mark.parametrize("send", [twenty_at_once, twenty_one_by_one])
def test_the_20th_refused_line_of_a_member_removes_it_only(server, send):
    with joined(server, "ann") as ann, joined(server, "bob") as bob:
        send(bob)
        lines = bob.rest()
        assert sum(line.get("code") == "bad-line" for line in lines) == (20 if send is twenty_at_once else 1)
        assert lines[-2]["ev"] == "leave" and lines[-2]["why"] == "kicked"
        assert lines[-1]["code"] == "kicked"
        assert lines[-1]["text"] == "20 of your lines could not be understood"
        ann.expect(ev="leave", who="bob", why="kicked", text=lines[-1]["text"])
        assert ask(ann, b"") == []


def test_refused_names_count_as_well(server):
    with joined(server, "ann"), Peer(server) as bob:
        bob.send_bytes(packet({"do": "hello", "name": "ann"}) * 25)
        assert len(bob.rest()) == 20


# --- strangers ---


@pytest.mark.parametrize("first", [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n" + HELLO, b"\x16\x03\x01\x02\x00\x01\x00",
    b"nonsense\n" + HELLO, b"\n" + HELLO, b"[]\n" + HELLO, b"{}\n" + HELLO, b'{"do":5}\n' + HELLO, b"{]\n" + HELLO,
    b"G", b"   \r\xff", b"\xef\xbb\xbf" + HELLO], ids=repr)
def test_one_whose_first_line_is_no_request_is_told_once_and_broken_off(server, first):
    with joined(server, "ann") as ann, Peer(server) as bob:
        bob.send_bytes(first)
        assert [line["code"] for line in bob.rest()] == ["bad-line"]
        assert ask(ann, b"") == []


@pytest.mark.parametrize("first", [MISTAKE, b'{"do":"hello"}\n', b'{"do":"say","text":"hi"}\n', b" \t" + MISTAKE,
                                   packet({"do": "hello", "name": "all"})], ids=repr)
def test_one_whose_first_line_is_a_request_may_try_again(server, first):
    with Peer(server) as bob:
        bob.send_bytes(first + HELLO)
        assert [line["re"] for line in bob.until(re="welcome")] == ["error", "welcome"]


@pytest.mark.parametrize("before", [b"", MISTAKE])
def test_a_line_before_the_hello_has_at_most_4_kib(server, before):
    line = b'{"do":"hello","name":"bob","x":"%s"}\n'
    longest = line % (b"x" * (4096 + 1 - len(line) + 2))
    with Peer(server) as bob:
        bob.send_bytes(before + longest)
        bob.until(re="welcome")
    with Peer(server) as bob:
        bob.send_bytes(before + longest.replace(b"x" * 9, b"x" * 10))
        assert bob.rest()[-1]["code"] == "too-long"


@pytest.mark.parametrize("first", [b"", b"{", MISTAKE])
def test_one_who_never_says_hello_is_let_go(server, monkeypatch, first):
    monkeypatch.setattr(chat, "HELLO_SECONDS", 0.1)
    with Peer(server) as bob:
        bob.send_bytes(first)
        assert len(bob.rest()) == (first == MISTAKE)


def test_the_time_until_the_hello_does_not_begin_anew_with_each_byte(server, monkeypatch):
    monkeypatch.setattr(chat, "HELLO_SECONDS", 0.3)
    start = time.monotonic()
    with Peer(server) as bob, contextlib.suppress(OSError):
        while time.monotonic() < start + 5:
            bob.send_bytes(b" ")
            time.sleep(0.02)
    assert time.monotonic() < start + 2


def test_it_does_with_a_name_that_is_refused_but_not_for_ever(server, monkeypatch):
    monkeypatch.setattr(chat, "HELLO_SECONDS", 0.5)
    start = time.monotonic()
    with Peer(server) as bob, contextlib.suppress(OSError):
        for number in range(10):
            time.sleep(0.3)
            bob.send(do="hello", name="all")
        assert len(bob.rest()) in (6, 7)
    assert time.monotonic() > start + 6 * 0.3


class Socket:
    """What a stranger that sent this is received from."""

    def __init__(self, data=b""):
        self.data, self.ended = data, False

    def recv(self, size, flags=0):
        if not self.data:
            raise BlockingIOError
        return self.data[:size]

    def shutdown(self, how):
        self.ended = True


def crowd_of(strangers, count, address, data=b""):
    return [chat.Stranger(Socket(data), address, strangers) for _ in range(count)]


def dismissed(crowd):
    return [number for number, stranger in enumerate(crowd) if stranger.out.ended]


def test_when_there_are_too_many_the_oldest_goes_of_the_address_that_has_most():
    strangers = chat.Strangers()
    class_room = crowd_of(strangers, 100, "10.0.0.1")
    flood = crowd_of(strangers, 1000, "10.0.0.2")
    alone = crowd_of(strangers, 1, "10.0.0.3")
    assert dismissed(class_room + alone) == [] and strangers.count == 512
    assert dismissed(flood) == list(range(1000 - 411))
    crowd_of(strangers, 400, "10.0.0.1")
    assert dismissed(alone) == [] and strangers.count == 512
    assert {len(neighbours) for neighbours in strangers.waiting.values()} == {1, 255, 256}


def test_nobody_goes_whose_line_has_come_though_its_thread_has_not_seen_it():
    strangers = chat.Strangers()
    heard = crowd_of(strangers, 600, "10.0.0.1", HELLO)
    assert dismissed(heard) == [] and strangers.count == 600
    for stranger in heard:
        stranger.come_in()
    assert (strangers.count, strangers.waiting) == (0, {})


@pytest.mark.parametrize("data, heard", [
    (b"", False), (b"{", False), (b"x" * 5000, False), (b"x" * 4096 + b"\n", False), (HELLO, True), (HELLO * 2, True),
    (b"\x16\x03\x01\x00\x05hello", True), (b"\x16\x03\x01\x00\x06hello", False), (b"\x16\x03\x01\x00", False)])
def test_a_line_has_come_when_it_is_whole_and_a_record_of_tls_as_well(data, heard):
    (stranger,) = crowd_of(chat.Strangers(), 1, "10.0.0.1", data)
    assert stranger.is_heard() is heard


@pytest.mark.parametrize("one, other, same", [
    ("10.0.0.1", "10.0.0.2", False), ("fe80::1%eth0", "fe80::2", True), ("2001:db8:0:1::1", "2001:db8:0:1:ffff::9", True),
    ("2001:db8:0:1::1", "2001:db8:0:2::1", False), ("::1", "10.0.0.1", False)])
def test_addresses_of_ipv6_are_told_apart_by_their_first_half(one, other, same):
    assert (chat.network_of(one) == chat.network_of(other)) is same


def test_a_flood_of_silent_strangers_keeps_nobody_out_and_leaves_nothing_behind(server, monkeypatch):
    monkeypatch.setattr(chat, "STRANGERS", 20)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(Peer(server)) for _ in range(60)]
        with joined(server, "ann") as ann:
            for stranger in silent[:40]:
                assert stranger.hear() is None
            wait_for(lambda: len(server.guests) <= 21, "whoever had to go is gone")
            assert ask(ann, b"") == []
            silent[-1].send_bytes(HELLO)
            silent[-1].expect(re="welcome")
    wait_for(lambda: not (server.guests or server.strangers.count or server.strangers.waiting), "nobody is left")


# --- leaving ---


def test_bye_brings_the_own_leave_and_the_end_of_the_stream(server):
    with joined(server, "ann") as ann, joined(server, "bob") as bob:
        bob.send(do="bye")
        assert [(line["ev"], line["who"], line["why"]) for line in bob.rest()] == [("leave", "bob", "left")]
        ann.expect(ev="leave", who="bob", why="left")


def test_what_was_asked_before_the_bye_is_answered(server):
    with joined(server, "bob") as bob:
        bob.send_bytes(packet({"do": "ping", "id": 1}, {"do": "say", "text": ""},
                              {"do": "say", "text": "so long"}, {"do": "bye"}))
        lines = bob.rest()
        assert lines[-1]["ev"] == "leave"
        assert sorted(line.get("ev") or line["re"] for line in lines[:-1]) == ["error", "pong", "say"]


def test_what_follows_the_bye_is_not_carried_out(server):
    with joined(server, "ann") as ann, joined(server, "bob") as bob:
        bob.send_bytes(packet({"do": "bye"}, {"do": "say", "text": "too late"}, {"do": "ping"}))
        assert [line.get("ev") for line in bob.rest()] == ["leave"]
        assert "too late" not in json.dumps(ask(ann, b""))


def test_the_end_of_the_stream_without_a_bye_is_a_leave(server):
    with joined(server, "ann") as ann:
        joined(server, "bob").close()
        ann.expect(ev="leave", who="bob", why="left")


def test_a_broken_connection_is_a_loss(server):
    with joined(server, "ann") as ann:
        joined(server, "bob").reset()
        ann.expect(ev="leave", who="bob", why="lost")


def test_a_connection_that_breaks_while_it_is_sent_to_is_a_loss(server):
    def broken(data):
        raise ConnectionResetError

    with joined(server, "ann") as ann, joined(server, "bob"):
        with server.room.fanout.baton:
            (bob,) = [member for member in server.room.fanout.instep if member.name == "bob"]
            server.room.fanout.instep[bob] = broken
        ann.say("are you there?")
        ann.expect(ev="leave", who="bob", why="lost")


def test_one_who_only_stopped_sending_is_given_all_up_to_its_leave(server):
    with joined(server, "ann"), joined(server, "bob") as bob:
        bob.say(*map(str, range(100)))
        bob.end_sending()
        lines = bob.rest()
        assert [line["text"] for line in lines[:-1]] == [str(number) for number in range(100)]
        assert (lines[-1]["ev"], lines[-1]["why"]) == ("leave", "left")


def test_one_who_stopped_sending_and_reads_late_is_given_all_up_to_its_leave(server):
    count = 500  # 6 MB: more than the system keeps for a reader, less than the room does
    with joined(server, "ann") as ann, joined(server, "bob", receive_buffer=4096) as bob:
        for number in range(count):
            bob.send(do="say", text="ж" * 3990 + str(number))
        bob.end_sending()
        ann.expect(ev="leave", who="bob", why="left")
        lines = bob.rest()
        assert [line["text"][3990:] for line in lines[:-1]] == [str(number) for number in range(count)]
        assert lines[-1]["ev"] == "leave"


def test_one_who_stopped_sending_is_given_the_rest_though_the_room_ends():
    with serving() as server, joined(server, "ann") as ann, joined(server, "bob", receive_buffer=4096) as bob:
        for number in range(300):
            bob.send(do="say", text="ж" * 3990 + str(number))
        bob.end_sending()
        ann.expect(ev="leave", who="bob", why="left")
        ann.close()
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert bob.rest()[-1]["ev"] == "leave"
        stopping.join()


def test_a_line_without_its_end_is_no_line(server):
    with joined(server, "bob") as bob:
        bob.send_bytes(packet({"do": "say", "text": "half a line"})[:-1])
        bob.end_sending()
        assert [line["ev"] for line in bob.rest()] == ["leave"]


def test_a_name_is_free_as_soon_as_the_leave_was_told(server):
    with joined(server, "ann") as ann:
        for _ in range(5):
            with joined(server, "bob"):
                pass
            ann.expect(ev="leave", who="bob")


def test_one_who_left_and_does_not_close_is_let_go(server, monkeypatch):
    monkeypatch.setattr(chat, "FAREWELL_SECONDS", 0.1)
    with joined(server, "bob") as bob:
        bob.send(do="bye")
        bob.rest()
        wait_for(lambda: not server.guests, "the connection's thread has ended")


# --- haste ---


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(chat.time, "monotonic", lambda: self.now)


def test_the_allowance_takes_a_burst_and_then_the_rate(monkeypatch):
    clock = Clock(monkeypatch)
    allowance = chat.Allowance(50)
    assert allowance.spend(200) == 0
    assert allowance.spend(1) == pytest.approx(1 / 50)
    assert allowance.spend(49) == pytest.approx(1)
    clock.now += 1
    assert allowance.spend(0) == 0
    clock.now += 2
    assert allowance.spend(100) == 0
    assert allowance.spend(50) == pytest.approx(1)


def test_the_allowance_does_not_grow_over_a_burst(monkeypatch):
    clock = Clock(monkeypatch)
    allowance = chat.Allowance(50)
    clock.now += 3600
    assert allowance.spend(200) == 0
    assert allowance.spend(50) == pytest.approx(1)


def test_a_who_costs_by_the_people_it_lists_and_a_rename_more_than_a_word():
    room, members = chat.Room(), [chat.Member(Wire()) for _ in range(250)]
    for number, member in enumerate(members):
        room.ask(member, {"do": "hello", "name": f"m{number}"})

    def cost(*lines):
        return chat.act(room, members[0], lines, chat.Refusals())

    assert cost('{"do":"who"}', '{"do":"ping"}', None) == 3 + 2
    assert cost('{"d\\u006f":"wh\\u006f"}') == 3, "however it is written"
    assert cost('{"do":"say","text":"\\"who\\""}') == 1
    assert cost('{"do":"nick","name":"new"}') == cost('{"do":"nick","name":"m1"}') == 25


def test_bytes_cost_as_well_even_if_no_line_ever_ends(monkeypatch):
    waits = []
    monkeypatch.setattr(chat, "_hold_back", lambda room, member, wait, ahead: waits.append(wait))
    receive = chat._metered(None, None, lambda size: b"x" * size, chat.Allowance(400))
    for _ in range(40):
        receive(64 << 10)  # 2,600 requests' worth in all, 1,000 over the burst
    assert waits[:20] == [0.0] * 20 and 1.0 < waits[-1] < 3.0


def test_joins_from_one_address_come_later_beyond_the_limit(monkeypatch):
    monkeypatch.setattr(chat, "JOINS", (20, 1))
    with serving(rate=50) as server, contextlib.ExitStack() as stack:
        start = time.monotonic()
        crowd = [stack.enter_context(Peer(server)) for _ in range(30)]
        for number, peer in enumerate(crowd):
            peer.send(do="hello", name=f"m{number}")
        for peer in crowd:
            peer.expect_next(re="welcome")
        assert time.monotonic() - start > 0.4


def test_joins_far_beyond_the_limit_are_refused_and_no_other_address_waits(monkeypatch):
    clock = Clock(monkeypatch)
    waits = []
    monkeypatch.setattr(chat.time, "sleep", waits.append)
    strangers = chat.Strangers()
    for _ in range(1000 + 6000):
        strangers.wait_for_turn("10.0.0.1")
    assert waits[999] == 0 and waits[-1] == pytest.approx(60)
    for _ in range(100):
        with pytest.raises(chat.ChatError, match="too many come in from your address at once"):
            strangers.wait_for_turn("10.0.0.1")
    strangers.wait_for_turn("10.0.0.2")
    clock.now += 1
    strangers.wait_for_turn("10.0.0.1")
    assert waits[-2] == 0 and waits[-1] == pytest.approx(59.01), "what was refused costs no one"
    for number in range(5000):
        strangers.wait_for_turn(number)
    assert len(strangers.joins) == chat.JOINS_KNOWN
    chat.Strangers(limited=False).wait_for_turn("10.0.0.1")


def test_beyond_the_limit_lines_come_later_but_all_and_in_order():
    with serving(rate=100) as server, joined(server, "bob") as bob:
        bob.say(*map(str, range(550)))
        lines = [bob.expect_next(ev="say", text=str(number)) for number in range(550)]
        assert lines[-1]["t"] - lines[0]["t"] >= 0.49  # a burst is 400, and the last 100 may come together


def test_a_hasty_one_holds_up_nobody_else():
    with serving(rate=100) as server, joined(server, "ann") as ann, joined(server, "bob") as bob:
        bob.say(*map(str, range(600)))
        ann.expect(ev="say", text="399")
        ann.say("in between")
        bob.expect(ev="say", text="in between")
        bob.expect(ev="say", text="599")


def test_whos_of_a_crowd_are_slowed_down_as_well(monkeypatch):
    monkeypatch.setattr(chat, "WHO_PEOPLE", 1)
    with serving(rate=50) as server, joined(server, "ann"), joined(server, "bob") as bob:
        bob.send_bytes(packet({"do": "who"}) * 80)  # three requests' worth each: 40 over the burst
        answers = [bob.expect_next(re="who") for _ in range(80)]
        bob.send(do="ping")
        assert bob.expect_next(re="pong")["t"] - answers[0]["t"] >= 0.79


def test_who_sends_far_ahead_of_the_limit_is_removed_and_told_so():
    with serving(rate=1) as server, joined(server, "ann") as ann, joined(server, "bob") as bob:
        bob.send_bytes(packet({"do": "ping"}) * 100)
        lines = bob.rest()
        assert (lines[-1]["re"], lines[-1]["code"]) == ("error", "kicked")
        assert lines[-1]["text"] == "you sent more than 60 seconds ahead of the limit"
        ann.expect(ev="leave", who="bob", why="kicked")


def test_a_limit_of_0_is_none(server):
    with joined(server, "bob") as bob:
        bob.say(*map(str, range(5000)))
        bob.expect(ev="say", text="4999")


# --- sloth ---


def test_one_who_never_reads_stops_nobody_and_is_cut(server, monkeypatch):
    monkeypatch.setattr(chat, "LAG_BYTES", 1 << 18)
    with joined(server, "ann") as ann, joined(server, "bob", receive_buffer=4096) as bob, \
            joined(server, "eve") as eve:
        told, number = [], 0
        while not any(line["ev"] == "leave" for line in told):
            assert number < 2000, "bob was not cut"
            ann.say("ж" * 3990 + str(number))
            told = ann.until(text="ж" * 3990 + str(number))
            number += 1
        assert [line["why"] for line in told if line["ev"] == "leave"] == ["slow"]
        ann.say("all well?")
        said = [line["text"] for line in eve.until(text="all well?") if line["ev"] == "say"]
        assert [text[3990:] for text in said[:-1]] == list(map(str, range(number))), "the others lose nothing"
        lines = bob.rest()
        assert (lines[-1]["re"], lines[-1]["code"]) == ("error", "slow")
        given = [line["n"] for line in lines[:-1] if line.get("ev") == "say"]
        assert given == list(range(given[0], given[0] + len(given)))


@pytest.mark.parametrize("places", [None, 0], ids=["waited for", "tried at intervals"])
def test_one_who_reads_late_is_given_everything(server, places):
    if places is not None:
        server.caretaker.places = places
    with joined(server, "ann") as ann, joined(server, "bob", receive_buffer=4096) as bob:
        for number in range(400):  # 5 MB
            ann.say("ж" * 3990 + str(number))
            ann.expect(ev="say")
        assert server.room.fanout.lagging
        bob.send(do="tell", to="ann", text="psst")
        ann.expect(re="tell")
        said = [line["text"][3990:] for line in bob.until(re="tell") if line.get("ev") == "say"]
        assert said == [str(number) for number in range(400)]
        wait_for(lambda: not server.room.fanout.lagging, "bob is in step again")


# --- malice ---


@pytest.mark.parametrize("line", [
    b'"' + b'\\"' * 32_000 + b"[" * 40,
    b'{"do":"say","text":"' + b'\\"' * 32_000 + b"[" * 40,
    b'{"do":"say","text":"' + b"\\\\" * 32_000 + b"[" * 40,
    b'""' * 32_000 + b"[" * 40,
    b'{"do":"ping","x":' + b"-" * 60_000,
    b'{"do":"ping","x":' + b"1" * 65_000 + b"}",
], ids=["escaped quotes", "in a text", "backslashes", "empty strings", "minus signs", "a huge number"])
def test_no_line_is_so_tricky_that_it_holds_up_the_others(server, line):
    with joined(server, "ann") as ann, joined(server, "bob") as bob:
        bob.send_bytes((line + b"\n") * 15)
        ann.say("hello?")  # must be heard in the time that anything may take
        ann.expect(ev="say", text="hello?")
        errors = ask(bob, b"")
        assert sum(line.get("re") == "error" for line in errors) == 15


@pytest.mark.parametrize("request_", [{"do": "hello"}, {"do": "nick"}, {"do": "tell", "text": "psst"}],
                         ids=lambda request: request["do"])
def test_what_is_too_long_to_be_a_name_is_not_normalized(server, monkeypatch, request_):
    # Sorting the marks of one letter takes time that grows with the square of their number.
    lengths, normalize = [], chat.unicodedata.normalize
    monkeypatch.setattr(chat.unicodedata, "normalize",
                        lambda form, text: lengths.append(len(text)) or normalize(form, text))
    name = "a" + "\u0301\u0323" * 500
    with Peer(server) if request_["do"] == "hello" else joined(server, "bob") as bob:
        bob.send(id=5, name=name, to=name, **request_)
        assert bob.expect(re="error", id=5)["code"] in ("bad-name", "nobody")
        assert max(lengths, default=0) < 500


def test_a_crowd_that_connects_and_says_nothing_holds_up_nobody(server):
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(server.address))
        with joined(server, "ann") as ann:
            ann.say("hi")
            ann.expect(ev="say", text="hi")


def test_a_crowd_that_comes_and_breaks_off_leaves_nothing_behind(server):
    with joined(server, "ann") as ann:
        for number in range(50):
            joined(server, f"m{number}").reset()
        gone = {ann.expect(ev="leave", why="lost")["who"] for _ in range(50)}
        assert len(gone) == 50
        wait_for(lambda: len(server.guests) == 1, "only ann's connection is left")
        assert list(server.room.people) == ["ann"]


# --- on one processor while many talk ---


needs_processors = pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
                                      reason="needs a system that lets one choose among several processors")


@pytest.fixture
def huddle(monkeypatch):
    """A huddle whose time is set by hand; `huddle.after(seconds, calls)` lets it look again."""
    now, everywhere = [1000.0], os.sched_getaffinity(0)
    monkeypatch.setattr(chat.time, "monotonic", lambda: now[0])
    huddle = chat.Huddle()

    def after(seconds, calls):
        now[0] += seconds
        return huddle.look(huddle.calls + calls)

    huddle.after = after
    yield huddle
    monkeypatch.undo()
    for thread in threading.enumerate():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread.native_id, everywhere)


def processors():
    """Where the threads of this process may run, each different answer once."""
    return {tuple(os.sched_getaffinity(thread.native_id)) for thread in threading.enumerate() if thread.is_alive()}


@needs_processors
def test_threads_huddle_while_many_talk_and_spread_within_a_second_of_calm(huddle):
    stay = threading.Event()
    threads = [threading.Thread(target=stay.wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    everywhere = processors()
    assert huddle.after(0.6, 10) is None and processors() == everywhere, "a few who talk"
    assert huddle.after(0.6, 100_000) == chat.CROWD_SECONDS
    assert len(processors()) == 1 and all(len(one) == 1 for one in processors())
    assert huddle.after(0.05, 0) == chat.CROWD_SECONDS, "too early to tell"
    assert huddle.after(0.5, 100_000) and len(list(processors())[0]) == 1
    assert 2 * chat.CROWD_SECONDS <= 1
    assert huddle.after(chat.CROWD_SECONDS, 0) is None and processors() == everywhere
    stay.set()
    for thread in threads:
        thread.join()


@needs_processors
def test_a_long_calm_before_makes_no_crowd_smaller(huddle):
    huddle.after(86_400, 5000)
    assert huddle.after(0.6, 5000) and len(list(processors())[0]) == 1


@needs_processors
@pytest.mark.parametrize("lacking", ["no lock that threads take turns with", "forbidden", "no such file"])
def test_where_it_does_not_pay_or_is_not_allowed_threads_stay_as_they_are(huddle, monkeypatch, lacking):
    everywhere = processors()
    if lacking == "forbidden":
        monkeypatch.setattr(os, "sched_setaffinity", forbid)
    elif lacking == "no such file":
        monkeypatch.setattr(chat, "open", forbid, raising=False)
    else:
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
        huddle.able = chat.Huddle().able
    huddle.after(0.6, 100_000)
    huddle.after(0.6, 100_000)
    assert processors() == everywhere


def forbid(*arguments):
    raise PermissionError


def test_what_a_client_calls_missed_is_no_file_to_read(server, tmp_path):
    (tmp_path / "private").write_text('{"n":1}\nsecret\n')
    with helpers.Peer(server) as bob, helpers.Peer(server) as again:
        bob.send(do="hello", name="bob", back=True)
        token = bob.expect(re="welcome")["token"]
        again.send(do="hello", name="bob", back=True, token=token, missed=[str(tmp_path / "private"), [0, 1]])
        again.settle()
        assert b"secret" not in b"".join(again.heard)
