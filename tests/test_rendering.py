"""Rendering: what people wrote reaches a screen as text, and as nothing that a terminal obeys."""
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import unicodedata

import pyte
import pytest

import chat
import tables
from test_lines import EVENT_LIKE, EVENTS, REPLIES, cheap, word_of
from test_pyz import every_python

SESSION = EVENTS["session"]
INDENT = "      │ "

# What must not reach a terminal, spelled out here anew: C0 but for \n, DEL and C1; half characters and
# private use; what turns the direction, breaks rows or cannot be seen; tags, fillers, annotations.
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\uf8ff\U000f0000-\U0010ffff\ufffe\uffff\ufdd0-\ufdef"
                    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\u200b\u2060-\u2064\ufeff\xad"
                    "\U000e0000-\U000e007f\u115f\u1160\u3164\uffa0\ufff0-\ufffb\U00013430-\U0001343f"
                    "\U00016fe4\U0001bca0-\U0001bca3\U0001d173-\U0001d17a]")
COLOUR = re.compile("\x1b\\[[0-9;]*m")


def shown(event, viewer=None):
    """What is seen of an event, without its time."""
    text = chat.plain(chat.render(event, SESSION, viewer))
    assert re.match(r"\d\d:\d\d ", text)
    return text[6:]


def say(text, who="bob"):
    return {"ev": "say", "n": 1, "t": 0.0, "who": who, "text": text}


# Every place of an event where something stands that people chose: how to put it there.
TEXTS = {
    "say": lambda text: say(text),
    "me": lambda text: {**say(text), "ev": "me"},
    "tell": lambda text: {**REPLIES["tell"], "text": text},
    "notice": lambda text: {**EVENTS["notice"], "text": text},
    "mark": lambda text: {**EVENTS["mark"], "text": text},
    "error": lambda text: {**REPLIES["error"], "text": text},
    "remark": lambda text: chat.remark(0.0, text),
}
ROWS = {  # these stay on one row
    "reason": lambda text: {**EVENTS["leave"], "text": text},
    "why": lambda text: {**EVENTS["leave"], "why": text},
    "room": lambda text: {**SESSION, "room": text},
    "speaker": lambda text: say("hi", text),
    "joiner": lambda text: {**EVENTS["join"], "who": text},
    "old name": lambda text: {**EVENTS["nick"], "who": text},
    "new name": lambda text: {**EVENTS["nick"], "name": text},
    "sender": lambda text: {**REPLIES["tell"], "who": text},
    "receiver": lambda text: {**REPLIES["tell"], "to": text},
    "you": lambda text: {**REPLIES["welcome"], "you": text},
    "people": lambda text: {**REPLIES["who"], "people": ["ann", text, text]},
    "unknown event": lambda text: {"ev": "poll", "n": 1, "t": 0.0, "question": text},
    "unknown word": lambda text: {"ev": text or "x", "t": 0.0},
    "unknown field": lambda text: {"re": "hint", "t": 0.0, text: 5},
}
every_place = pytest.mark.parametrize("place", [*TEXTS, *ROWS])


def pieces_of(place, text):
    """The pieces for an event with this text in that place; half characters are nowhere but in texts."""
    if place not in TEXTS and place != "reason":
        text = text.encode(errors="ignore").decode()
    return chat.render({**TEXTS, **ROWS}[place](text), SESSION, "ann")


# --- nothing that a terminal obeys ---


@every_place
def test_no_code_point_reaches_a_terminal_that_obeys_it(place):
    # Each between two letters, many in one text; an unknown event is shown cut short, so fewer there.
    step = 40 if "unknown" in place else 4096
    for first in range(0, 0x110000, step):
        text = "a".join(map(chr, range(first, min(first + step, 0x110000)))) + "a"
        seen = chat.plain(pieces_of(place, text))
        assert not OBEYED.search(seen), ascii(OBEYED.search(seen).group())
        assert "\n" not in seen.replace("\n" + INDENT, ""), "a row without indent"


NASTY = [*"ab \n\r\t\0\x07\x08\x0b\x0c\x1b\x7f\x85\x9b\x9d\u2028\u2029\u202e\u2066",
         *"\u200b\u200c\u200d\ufe0e\ufe0f\ufeff",
         "\r\n", "\x1b[2J", "\x1b]0;title\x07", "\x1b]8;;http://x\x1b\\", "\x1bP", "\x9b31m", "\u0301",
         "\u0301" * 5, "\u0e47" * 4, "\u3164", "\u115f", "\ud800", "\udc9b", "\ue000", "\U000e0041",
         "\U0010ffff", "👩\u200d👩", "❤\ufe0f", "می\u200cخواهم", "שלום", "\u0300\u200d", "\u200d\u0301",
         "\u180e", "\xa0", "\u3000", "\xad", "[31m", "{who}", "%s", "\u093f", "\u103d", "\u11a8",
         "\U00011363", "\U0001e8d0" * 3, "\U00016fe4", "\u034f", "\u2800", "\U0001bca1", "\ufff3"]


def mixes(number):
    chance = random.Random(number)
    for _ in range(400):
        yield "".join(chance.choice(NASTY) for _ in range(chance.choice([1, 2, 3, 5, 8, 30])))


@every_place
def test_no_mixture_reaches_a_terminal_that_obeys_it(place):
    for text in mixes(place):
        seen = chat.plain(pieces_of(place, text))
        assert not OBEYED.search(seen), ascii(text)
        assert "\n" not in seen.replace("\n" + INDENT, ""), ascii(text)


@pytest.mark.parametrize("place", ROWS)
def test_what_is_no_text_stays_on_one_row(place):
    for text in mixes(place):
        assert "\n" not in chat.plain(pieces_of(place, text + "\n" + text))


@every_place
def test_colours_change_nothing_but_colours(place):
    for text in mixes(place + "colours"):
        pieces = pieces_of(place, text)
        assert COLOUR.sub("", chat.coloured(pieces)) == chat.plain(pieces)


@pytest.mark.parametrize("number", range(10))
def test_what_is_harmless_stays_as_it_is(number):
    for text in mixes(number):
        assert chat.clean(chat.clean(text)) == chat.clean(text), ascii(text)


def test_every_code_point_alone_is_made_harmless_at_once():
    for point in map(chr, range(0x110000)):
        once = chat.clean(point)
        if once != point:
            assert chat.clean(once) == once, ascii(point)


def test_what_is_cleaned_needs_no_second_cleaning_wherever_marks_and_joiners_stand():
    chance = random.Random(9)
    alphabet = ["a", " ", "\n", "\u0301", "\u0e47", "\u093f", "\u11a8", "\U00011363", *chat.JOINERS, "\u200b", "\u202e"]
    for _ in range(20_000):
        once = chat.clean("".join(chance.choices(alphabet, k=chance.randint(2, 24))))
        assert chat.clean(once) == once, ascii(once)


@pytest.mark.parametrize("text, seen", [
    ("\x1b[31mred", "␛[31mred"), ("bell\x07", "bell␇"), ("a\0b", "a␀b"), ("a\x08b", "a␈b"),
    ("a\x7fb", "a\ufffdb"), ("\x9b31mred", "\ufffd31mred"), ("a\ud800b", "a\ufffdb"),
    ("a\ue000b", "a\ufffdb"), ("a\U0010ffffb", "a\ufffdb"), ("a\tb", "a    b"), ("a\rb", "a b"),
    ("a\x0bb\x0cc\x85d", "a b c d"), ("a\u2028b\u2029c", "a b c"), ("a\r\nb", "a\nb"),
    ("pay\u200bpal", "paypal"), ("\u202egnp.exe", "gnp.exe"), ("a\u2066b\u2069c", "abc"),
    ("co\xadop", "coop"), ("\ufeffbom", "bom"), ("a\U000e0041b", "ab"), ("\u3164\u115f\u1160\uffa0", "")],
                         ids=ascii)
def test_what_is_seen_instead(text, seen):
    assert chat.clean(text) == seen


@pytest.mark.parametrize("text", [
    "hello", "привет, ёжик", "日本語", "שלום", "מַזָּל", "مرحبا", "مُحَمَّد", "می\u200cخواهم", "نمی\u200cدانم",
    "प्रिया", "क्\u200dष", "สวัสดีที่", "Việt Nam", "Vie\u0323\u0302t", "e\u0301", "и\u0306", "한국어",
    "ñ\u0303", "\\o/ {x} 100% <b>", "x² ≤ ½", "│ ─ ┼", "😀", "❤\ufe0f", "❤\ufe0f!", "a ❤\ufe0f b", "☎\ufe0e",
    "မြှုံ့", "བསྒྲུབས", "ཧཱུྃ", "ខ្ញុំ", "각", "👍🏽", "🇷🇺", "1\ufe0f\u20e3", "👩\u200d👩\u200d👧\u200d👦", "🏳\ufe0f\u200d🌈", "👩🏽\u200d🚀",
    "🧑\u200d❤\ufe0f\u200d💋\u200d🧑", "two\nrows", " spaces  stay "])
def test_what_people_really_write_stays_as_it_is(text):
    assert chat.clean(text) == text


@pytest.mark.parametrize("text, seen", [("\u200dbob", "bob"), ("bob\u200d", "bob"),
                                        ("bob\u200c ann", "bob ann"), ("a \u200d\ufe0fb", "a b"),
                                        ("a\n\u200cb", "a\nb"),
                                        ("a" + "\u200d" * 50 + "b", "a\u200d\u200db")], ids=ascii)
def test_joiners_stand_only_inside_words_and_are_few(text, seen):
    assert chat.clean(text) == seen


@pytest.mark.parametrize("mark", ["\u0301", "\u0336", "\u0489", "\u05b0", "\u064b", "\u0e47", "\u1dc0",
                                  "\u20dd", "\ufe20", "\u0301\u0316", "\u0301\u1ab0\u20d2"], ids=ascii)
def test_no_more_than_three_marks_pile_up(mark):
    assert chat.clean("a" + mark * 20 + "b") == "a" + (mark * 3)[:3] + "b"


def test_no_more_than_six_marks_of_any_script_pile_up():
    for mark in map(chr, tables.marks()):
        assert chat.clean("a" + mark * 20 + "b") == "a" + mark * 6 + "b", ascii(mark)


def test_the_marks_in_chat_py_are_those_of_unicode():
    # Made from the tables of wcwidth; that they hold all that this Python calls a mark is true up to their version.
    if tuple(map(int, unicodedata.unidata_version.split("."))) <= tuple(map(int, tables.VERSION.split("."))):
        known = re.compile(f"[{chat.MARKS}{chat.UNSEEN}{chat.JOINERS}]")
        assert all(known.match(point) for point in map(chr, range(0x110000)) if unicodedata.category(point)[0] == "M")
        assert tables.rows() in pathlib.Path(chat.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("joiner", ["\u200c", "\u200d", "\ufe0e", "\ufe0f", "\u200d\ufe0f", "\u200b",
                                    "\u2060"], ids=ascii)
def test_marks_with_joiners_between_do_not_pile_up_either(joiner):
    seen = chat.clean("a" + ("\u0301\u0301\u0301" + joiner) * 20 + "b")
    assert seen.count("\u0301") <= 3


# --- what is seen of each event and reply ---


@pytest.mark.parametrize("event, text", [
    (EVENTS["session"], "-- room лаб, open since 2026-11-20 12:00"),
    (EVENTS["join"], "-- юля joined"),
    (EVENTS["leave"], "-- юля was removed: too loud"),
    ({**EVENTS["leave"], "why": "left", "text": None}, "-- юля left"),
    ({**EVENTS["leave"], "why": "lost", "text": None}, "-- юля lost the connection"),
    ({**EVENTS["leave"], "why": "slow", "text": None}, "-- юля was too slow, and was cut"),
    ({**EVENTS["leave"], "why": "bored", "text": None}, "-- юля left"),
    ({**EVENTS["leave"], "why": "left", "text": 5}, "-- юля left"),
    (EVENTS["nick"], "-- юля is now ann"),
    (EVENTS["say"], "ann: hello"),
    (EVENTS["me"], "* ann waves"),
    (EVENTS["notice"], "-- recording failed"),
    (EVENTS["mark"], "== task 2"),
    (EVENTS["end"], "-- the room is closed"),
    (REPLIES["welcome"], "-- you are ann; 2 here: юля, ann"),
    ({**REPLIES["welcome"], "recorded": True}, "-- you are ann; 2 here: юля, ann; this session is recorded"),
    ({**REPLIES["welcome"], "recorded": "no"}, "-- you are ann; 2 here: юля, ann"),
    (REPLIES["tell"], "юля → ann (private): тише"),
    (REPLIES["who"], "-- 1 here: ann"),
    ({**REPLIES["who"], "people": []}, "-- 0 here: "),
    (REPLIES["error"], "!! the name ann is taken"),
    (chat.remark(1.0, "line 3 is damaged"), "-- line 3 is damaged"),
], ids=word_of)
def test_what_is_seen_of_an_event(event, text):
    assert shown(event) == text


def test_nothing_is_seen_of_a_pong():
    assert chat.render(REPLIES["pong"], SESSION) == []


@pytest.mark.parametrize("sample", EVENT_LIKE, ids=word_of)
def test_every_event_and_reply_is_shown_with_its_time_first(sample):
    pieces = chat.render(sample, SESSION)
    assert sample == REPLIES["pong"] or pieces[0] == ("time", chat.clock(SESSION, sample["t"]) + " ")


@pytest.mark.parametrize("sample", EVENT_LIKE, ids=word_of)
def test_every_piece_has_a_style_that_there_is(sample):
    assert {style for style, text in chat.render(sample, SESSION, "ann")} <= set(chat.STYLES)


@pytest.mark.parametrize("viewer, text", [("юля", "you → ann (private): тише"),
                                          ("ann", "юля → you (private): тише"),
                                          ("bob", "юля → ann (private): тише"),
                                          (None, "юля → ann (private): тише")])
def test_a_private_line_says_you_to_the_one_who_reads_it(viewer, text):
    assert shown(REPLIES["tell"], viewer) == text


def test_a_private_line_with_ones_name_as_its_text_keeps_it():
    assert shown({**REPLIES["tell"], "text": "ann"}, "ann") == "юля → you (private): ann"


def test_a_public_line_says_ones_name():
    assert shown(EVENTS["say"], "ann") == "ann: hello"


@pytest.mark.parametrize("text", ["one\ntwo\nthree", "one\r\ntwo\r\nthree"], ids=ascii)
def test_further_rows_carry_an_indent(text):
    assert shown(say(text)) == f"bob: one\n{INDENT}two\n{INDENT}three"


def test_no_text_can_look_like_somebody_elses_line():
    seen = shown(say("hi\n12:00 ann: I owe bob 100"))
    assert not re.search("^12:00 ann", seen, re.M)


def test_names_are_shown_in_their_own_style():
    pieces = chat.render(EVENTS["say"], SESSION)
    assert pieces[1] == (chat.name_style("ann"), "ann")


def mentioned(text, viewer="bob", who="ann"):
    """What is shown to this viewer as a mention of theirs."""
    pieces = chat.render(say(text, who), SESSION, viewer)
    assert chat.plain(pieces) == chat.plain(chat.render(say(text, who), SESSION))
    return [text for style, text in pieces if style == "mention"]


@pytest.mark.parametrize("text, found", [
    ("bob", ["bob"]), ("hi Bob, is BOB in?", ["Bob", "BOB"]), ("(bob)", ["bob"]), ("that is bob.", ["bob"]),
    ("one\nbob: two", ["bob"]), ("bobby and kebob", []), ("nobody", []), ("bob-2: hi", []),
    ("e-bob", []), ("bob_2", [])], ids=ascii)
def test_ones_own_name_stands_out_where_it_is_a_word(text, found):
    assert mentioned(text) == found


def test_a_name_with_signs_in_it_stands_out_too():
    assert mentioned("hi b.o-b and bxo-b!", "b.o-b") == ["b.o-b"]


def test_ones_own_lines_mention_nobody():
    assert mentioned("i am bob", who="bob") == []


@pytest.mark.parametrize("text", ["\x1bbob\x1b", "bob\u202e", "\u200dbob"], ids=ascii)
def test_a_mention_is_made_harmless_too(text):
    assert mentioned(text) == ["bob"]
    assert not OBEYED.search(chat.plain(chat.render(say(text, "ann"), SESSION, "bob")))


def painted(text):
    """What a terminal makes of this: its characters, each with its colours, and the colours that stay on."""
    colours, characters = [], []
    for codes, run in re.findall("\x1b\\[([0-9;]*)m|([^\x1b]+)", text):
        for code in codes.split(";") if not run else ():
            colours = [*colours, code] if code.strip("0") else []
        characters += [(character, colours) for character in run]
    return characters, colours


@pytest.mark.parametrize("event", [*EVENT_LIKE, say("hi bob!\nbob?", "ann")], ids=word_of)
def test_on_a_terminal_each_piece_has_the_colours_of_its_style_and_nothing_stays_on(event):
    pieces = chat.render(event, SESSION, "bob")
    expected = [(character, chat.STYLES[style].split(";") if chat.STYLES[style] else [])
                for style, text in pieces for character in text]
    assert painted(chat.coloured(pieces)) == (expected, [])


def test_a_text_without_a_style_has_no_escape_sequences():
    assert chat.coloured([("text", "hello")]) == "hello"


# --- events that this version does not know ---


@pytest.mark.parametrize("line, text", [
    ('{"ev":"poll","n":3,"t":0,"question":"чай?"}', '-- {"ev":"poll","n":3,"t":0,"question":"чай?"}'),
    ('{"re":"hint","t":0.5}', '-- {"re":"hint","t":0.5}')])
def test_an_unknown_event_is_shown_plainly(line, text):
    assert shown(chat.decode_event(line)) == text


def test_an_unknown_event_is_shown_in_one_row_and_not_at_length():
    seen = shown(chat.decode_event(json.dumps({"ev": "poll", "t": 0, "rows": ["a\nb\x1b[2J"] * 1000})))
    assert len(seen) <= 210 and "\n" not in seen


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "9" * 4000, "[[[[]]]]", '"\\ud800"',
                                   '{"\\udfff":1}', '"\\u001b[2J"', "null"], ids=lambda value: value[:12])
def test_an_unknown_event_is_shown_whatever_it_holds(value):
    seen = shown(chat.decode_event('{"ev":"poll","t":0,"x":%s}' % value))
    assert seen.startswith('-- {"ev":"poll"') and not OBEYED.search(seen)


@pytest.mark.parametrize("line", [*('{"ev":"%s","t":0}' % word for word in [*REPLIES, "remark", "time"]),
                                  *('{"re":"%s","t":0}' % word for word in [*EVENTS, "remark", "__class__"]),
                                  '{"ev":"who","t":0,"people":5}', '{"re":"say","t":0,"who":5,"text":["a"]}'])
def test_an_event_with_the_name_of_a_reply_is_an_unknown_event(line):
    # And the other way round: both tables give their words a meaning, each only to its own.
    assert shown(chat.decode_event(line)) == "-- " + line


def test_what_the_room_tells_everyone_is_shown_as_such_whatever_else_it_holds():
    event = {**EVENTS["say"], "re": "error", "here": "remark", "do": "say"}
    assert shown(chat.decode_event(json.dumps(event))) == "ann: hello"


# --- time ---


@pytest.mark.parametrize("start, t, text", [
    ("2026-11-20T12:00:00.000+03:00", 0, "12:00"), ("2026-11-20T12:00:00.000+03:00", 59.999, "12:00"),
    ("2026-11-20T12:00:00.000+03:00", 60.0, "12:01"), ("2026-11-20T12:00:30.500+03:00", 29.4, "12:00"),
    ("2026-11-20T12:00:30.500+03:00", 29.5, "12:01"), ("2026-11-20T23:59:59.000+03:00", 1, "00:00"),
    ("2026-11-20T12:00:00.000-09:30", 43200, "00:00"), ("2026-11-20T08:05:00.000+00:00", 3 * 86400, "08:05"),
    ("2026-11-20T08:05:00+05:45", 3600.5, "09:05"), ("9999-12-31T23:59:00.000+00:00", 9e10, "15:59")])
def test_the_time_is_the_start_and_the_seconds_since(start, t, text):
    assert chat.clock({**SESSION, "start": start}, t) == text


@pytest.mark.parametrize("times, text", [("short", "12:01 "), ("long", "12:01:05 "), ("off", "")])
def test_the_time_is_shown_as_asked_for(times, text):
    assert chat.plain(chat.render(EVENTS["end"], SESSION, times=times)) == text + "-- the room is closed"


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York", "ABC-14", "Europe/Berlin"])
def test_the_time_is_that_of_the_session_wherever_it_is_read(zone):
    script = f"import chat; print(chat.plain(chat.render({EVENTS['end']!r}, {SESSION!r})), end='')"
    done = subprocess.run([sys.executable, "-c", script], cwd=os.path.dirname(chat.__file__), check=True,
                          stdout=subprocess.PIPE, universal_newlines=True, timeout=60,
                          env={**os.environ, "TZ": zone, "PYTHONIOENCODING": "utf-8"})
    assert done.stdout == "12:01 -- the room is closed"


# --- the same in every Python ---

FINGERPRINTS = r"""if True:
    import chat, hashlib

    def fingerprint(text):
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    points = [chr(number) for number in [*range(0x32000), *range(0xe0000, 0xe1000)]]
    print(fingerprint(chat.clean("".join([f"a{point}a {point}{point}\u200d{point} " for point in points]))))
    letters = [point for point in points[:0x20000] if not "\ud800" <= point <= "\udfff"]
    print(fingerprint(",".join([chat.name_style("a" + letter) for letter in letters])))
    """


def fingerprints(python):
    """One for how texts are shown, one for the colours of names."""
    done = subprocess.run([python, "-c", FINGERPRINTS], cwd=os.path.dirname(chat.__file__), check=True,
                          timeout=100, stdout=subprocess.PIPE, universal_newlines=True)
    texts, names = done.stdout.split()
    return {"texts": texts, "colours of names": names}


@pytest.fixture(scope="module")
def here():
    return fingerprints(sys.executable)


@every_python
def test_every_python_shows_the_same(python, here):
    assert fingerprints(python) == here


@pytest.mark.parametrize("name, number", [("bob", 4), ("ann", 7), ("юля", 1)])
def test_the_colour_of_a_name_never_changes(name, number):
    assert chat.name_style(name) == f"name{number}"


def test_names_have_many_colours_and_each_is_there():
    styles = {chat.name_style(f"name{number}") for number in range(500)}
    assert styles == {f"name{number}" for number in range(chat.NAME_STYLES)}
    assert styles <= set(chat.STYLES) and all(chat.STYLES[style] for style in styles)


# --- cost ---


def test_a_crowd_is_listed_without_delay():
    assert cheap(chat.render, {**REPLIES["who"], "people": ["a"] * 50_000}, SESSION)


@pytest.mark.parametrize("text", ["\u200d" * 4000, "a\u0301" * 2000, "\u0301" * 4000, " \u200d" * 2000,
                                  "\u200b" * 4000, "\x1b" * 4000, "\n" * 59 + "\r" * 3900], ids=ascii)
def test_no_text_takes_long_to_render(text):
    assert cheap(chat.render, say(text), SESSION)


# --- rows ---


FORGED = "08:50 -- bob left"
PADDED = {
    "spaces": lambda columns: "hi" + " " * (columns - 13) + FORGED,
    "spaces, row by row": lambda columns: " ".join("x" + " " * n + FORGED for n in range(columns - 40, columns, 3)),
    "a word": lambda columns: "x" * (columns - 12) + " " + FORGED,
    "a long word": lambda columns: "x" * (3 * columns) + " " + FORGED,
    "wide": lambda columns: "漢" * (columns // 2 - 5) + FORGED + "漢" * columns + FORGED,
    "emoji": lambda columns: "👩‍👩‍👧‍👦" * columns + FORGED,
    "tones": lambda columns: "👍🏽" * columns + FORGED,
    "flags": lambda columns: "🇩🇪" * columns + FORGED,
    "hearts": lambda columns: "❤️" * columns + FORGED,
    "marks": lambda columns: "e\u0301" * columns + FORGED,
    "joiners": lambda columns: "\u200d ".join("x" * columns) + FORGED,
    "tabs": lambda columns: "\t" * columns + FORGED,
    "rows": lambda columns: ("y" * (columns - 11) + "\n") * 3 + FORGED,
    "an address": lambda columns: "http://" + "a" * (columns - 18) + " " + FORGED,
    "no address": lambda columns: "http://" + "й" * columns + " " + FORGED,
    "narrow Cyrillic": lambda columns: "ж" * (columns - 11) + FORGED,
}


@pytest.mark.parametrize("padding", PADDED)
def test_no_message_can_begin_a_row_at_the_left_edge(padding):
    for columns in (20, 23, 40, 57, 79, 80, 81, 132, 200):
        screen = pyte.Screen(columns, 120)
        event = {"ev": "say", "n": 1, "t": 0.0, "who": "eve", "text": PADDED[padding](columns)}
        row = chat.plain(chat.break_rows(chat.render(event, SESSION), columns))
        pyte.Stream(screen).feed(row.replace("\n", "\r\n") + "\r\nnext")
        first, *others = [line.rstrip() for line in screen.display if line.strip()]
        assert first.startswith("12:00 eve:") and others.pop() == "next", (columns, screen.display)
        assert all(line.startswith(chat.CONTINUED.rstrip()) for line in others), (columns, others)
        assert "".join(FORGED.split()) in "".join(row.replace(chat.CONTINUED, "").split())


def broken(text, columns=30):
    return chat.plain(chat.break_rows([("text", text)], columns))


@pytest.mark.parametrize("text, rows", [
    ("short", "short"),
    ("one two three four five six seven", "one two three four five six \n      │ seven"),
    ("x" * 30, "x" * 30), ("x" * 31, "x" * 30 + "\n      │ x"),
    ("see http://example.org/" + "a" * 30 + " now", "see \n      │ http://example.org/" + "a" * 30 + "\n      │ now"),
    ("see https://example.org/ and that", "see https://example.org/ and \n      │ that"),
    ("漢" * 16, "漢" * 15 + "\n      │ 漢"),
])
def test_rows_are_broken_at_words(text, rows):
    assert broken(text) == rows


def test_every_row_fits_at_every_width():
    text = " ".join("ab" * (n % 13) + "漢" * (n % 5) + "👩‍👩‍👧" * (n % 2) for n in range(200))
    for columns in range(chat.NARROWEST, 201):
        assert max(map(chat.width_of, broken(text, columns).split("\n"))) <= columns


def test_a_window_too_narrow_for_rows_is_left_alone():
    assert broken("one two three four five six", chat.NARROWEST - 1) == "one two three four five six"


def test_names_and_people_are_broken_as_well():
    event = {"re": "who", "t": 0.0, "people": ["漢" * 32, "bob", "x" * 32] * 3}
    rows = chat.plain(chat.break_rows(chat.render(event, SESSION), 40)).split("\n")
    assert max(map(chat.width_of, rows)) <= 40 and all(row.startswith(chat.CONTINUED) for row in rows[1:])
