"""A person's terminal in a room: what `join` shows of what arrives, and what becomes of what is typed."""
import contextlib
import os
import re
import subprocess
import sys
import threading
import time

import pytest

import chat
import helpers
import terminal

CHAT = [sys.executable, chat.__file__]
needs_terminal = pytest.mark.skipif(not terminal.fcntl, reason="needs pseudo-terminals")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")


@pytest.fixture
def server():
    with helpers.serving() as server:
        yield server


@pytest.fixture
def eve(server):
    """Somebody else in the room."""
    with helpers.joined(server, "eve") as eve:
        yield eve


@pytest.fixture
def opened(server, tmp_path):
    """A function that opens terminals with join on them, all closed at the end."""
    with contextlib.ExitStack() as stack:
        def open_one(*options, name="bob", columns=80, rows=24, **env):
            command = [*CHAT, "join", "127.0.0.1:%d" % server.address[1], "--name", name, *options]
            screen = terminal.Terminal(command, columns, rows, {"XDG_STATE_HOME": str(tmp_path), **env}, tmp_path)
            stack.callback(screen.close)
            screen.see(f"-- {name} joined")
            screen.see_prompt(f"{name}>")
            return screen

        before = os.environ.pop("NO_COLOR", None)
        yield open_one
        if before is not None:
            os.environ["NO_COLOR"] = before


@pytest.fixture
def bob(eve, opened):
    """A terminal on which bob is in the room, where eve is already."""
    return opened()


def raw(screen):
    return "".join(screen.raw)


def cell(screen, text):
    """The first cell of this text on the screen, with its colours."""
    for number, row in enumerate(screen.screen.display):
        if text in row:
            return screen.screen.buffer[number][row.index(text)]
    raise AssertionError(f"not on the screen: {text}")


def enter(screen, text):
    """Type this line, and wait until it has been taken and the input line is empty again."""
    screen.type(text)
    screen.wait(lambda: screen.rows()[-2:-1] and screen.rows()[-2].endswith(f"> {text}"), text)
    screen.type("\r")
    screen.wait(lambda: screen.rows()[-2:-1] and re.fullmatch(r"\w+>", screen.rows()[-2]), "an empty input line")


def hear(screen, peer, text):
    """Have this said, and wait until it is on the screen."""
    peer.say(text)
    screen.see(re.escape(text) + "$")


# --- reading ---


@needs_terminal
def test_a_name_has_one_colour_everywhere_and_another_name_another(bob, eve, server):
    with helpers.joined(server, "юля") as other:
        hear(bob, eve, "one")
        hear(bob, other, "two")
        hear(bob, eve, "three")
    colour = {row: cell(bob, row).fg for row in ("eve: one", "юля: two", "eve: three")}
    assert colour["eve: one"] == colour["eve: three"] != "default"
    assert colour["юля: two"] not in ("default", colour["eve: one"])


@needs_terminal
@pytest.mark.parametrize("options, env", [([], {"NO_COLOR": "1"}), (["--no-color"], {})], ids=["variable", "option"])
def test_no_colours_when_none_are_wanted(opened, eve, options, env):
    bob = opened(*options, **env)
    hear(bob, eve, "hello bob")
    enter(bob, "hi")
    bob.see("bob: hi$")
    assert not COLOUR.search(raw(bob))


@needs_terminal
def test_colours_without_such_a_wish(bob, eve):
    hear(bob, eve, "hello")
    assert COLOUR.search(raw(bob))


@needs_terminal
def test_f2_goes_round_the_forms_of_the_time(bob, eve):
    hear(bob, eve, "short")
    for form, pattern in (("long", r"^\d\d:\d\d:\d\d eve: in {}$"), ("off", "^eve: in {}$"),
                          ("short", r"^\d\d:\d\d eve: in {}$")):
        bob.type("\x1bOQ")
        bob.see(f"^-- times: {form}$")
        eve.say(f"in {form}")
        bob.see(pattern.format(form))


@needs_terminal
def test_the_times_command_and_option(opened, eve):
    bob = opened("--times", "off")
    eve.say("none")
    bob.see("^eve: none$")
    enter(bob, "/times long")
    eve.say("seconds")
    bob.see(r"^\d\d:\d\d:\d\d eve: seconds$")
    bob.type("/times never\r")
    bob.see("!! it can be: short long off$")


@needs_terminal
def test_quiet_hides_who_comes_goes_and_is_renamed_until_it_is_off(bob, eve, server):
    enter(bob, "/quiet on")
    with helpers.joined(server, "ann") as ann:
        ann.send(do="nick", name="anna")
        ann.expect(ev="nick")
        hear(bob, ann, "still heard")
        bob.see_bar("3 here: eve, bob, anna$")
    bob.see_bar("2 here: eve, bob$")
    enter(bob, "/quiet off")
    with helpers.joined(server, "kim"):
        bob.see("-- kim joined$")
    assert not re.search("-- ann", bob.text())


@needs_terminal
def test_my_name_is_highlighted_where_it_is_a_word_of_its_own(bob, eve):
    hear(bob, eve, "ask Bob, not bobby")
    assert cell(bob, "Bob, not").reverse
    assert not cell(bob, "bobby").reverse
    assert not cell(bob, "ask").reverse


@needs_terminal
def test_the_bell_rings_for_mentions_and_private_lines_only(bob, eve):
    def rung(times):
        bob.wait(lambda: raw(bob).count("\a") >= times, f"bell {times}")

    hear(bob, eve, "nothing special")
    hear(bob, eve, "hey bob")
    rung(1)
    eve.send(do="tell", to="bob", text="psst")
    bob.see("psst$")
    rung(2)
    enter(bob, "bob is me")  # my own line
    bob.see("bob: bob is me$")
    enter(bob, "/tell eve what?")
    bob.see(r"you → eve \(private\): what\?$")
    hear(bob, eve, "the end")
    assert raw(bob).count("\a") == 2


@needs_terminal
def test_history_is_dim_and_rings_no_bell(opened, eve):
    eve.say("bob was called before he came")
    bob = opened()
    bob.see("bob was called before he came$")
    hear(bob, eve, "fresh")
    assert "\a" not in raw(bob)
    (line,) = [line for line in raw(bob).split("\n") if "was called before" in line]
    assert set(re.findall(r"\x1b\[([\d;]+)m", line.partition("was called")[0][-80:])) <= {"0", "2"}, "only dim"
    (line,) = [line for line in raw(bob).split("\n") if "fresh" in line]
    assert f"{chat.STYLES[chat.name_style('eve')]}meve\x1b[0m" in line, "what is said now has its colours"


@needs_terminal
def test_the_bell_may_be_off_or_for_every_line(bob, eve):
    enter(bob, "/bell off")
    hear(bob, eve, "hey bob")
    hear(bob, eve, "off")
    assert raw(bob).count("\a") == 0
    enter(bob, "/bell all")
    hear(bob, eve, "anything")
    bob.wait(lambda: raw(bob).count("\a") == 1, "the bell")
    enter(bob, "mine")
    bob.see("bob: mine$")
    enter(bob, "/bell on")
    hear(bob, eve, "on")
    hear(bob, eve, "last")
    assert raw(bob).count("\a") == 1


@needs_terminal
def test_ignore_hides_what_somebody_says_and_shows_it_again(bob, eve):
    enter(bob, "/ignore EVE")
    bob.see("^-- EVE is hidden from you; the same again undoes it$")
    eve.say("hidden line, bob")
    eve.send(do="me", text="hidden deed")
    eve.send(do="tell", to="bob", text="hidden letter")
    eve.settle()
    enter(bob, "mine")
    bob.see("bob: mine$")
    enter(bob, "/ignore eve")
    bob.see("^-- eve is shown again$")
    hear(bob, eve, "seen")
    assert "hidden l" not in bob.text() and "hidden d" not in bob.text()
    assert "\a" not in raw(bob)


@needs_terminal
def test_private_lines_look_different_and_r_answers_the_last_one(bob, eve, server):
    with helpers.joined(server, "ann") as ann:
        eve.send(do="tell", to="bob", text="from eve")
        bob.see(r"eve → you \(private\): from eve$")
        ann.send(do="tell", to="bob", text="from ann")
        bob.see(r"ann → you \(private\): from ann$")
        hear(bob, eve, "in the room")
        assert cell(bob, "from ann").fg != cell(bob, "in the room").fg
        enter(bob, "/r yes, ann")
        ann.expect(re="tell", who="bob", to="ann", text="yes, ann")
        bob.see(r"you → ann \(private\): yes, ann$")
    assert not any(b"yes, ann" in line for line in eve.heard)


@needs_terminal
def test_r_without_anybody_to_answer(bob, eve):
    bob.type("/r hello?\r")
    bob.see("!! nobody has told you anything yet$")
    bob.see_prompt("bob> /r hello?")


@needs_terminal
def test_the_rows_of_a_message_carry_an_indent_that_nobody_can_fake(bob, eve):
    eve.say("one\n12:00 bob: I agree\n\n      │ four")
    bob.see("four$")
    rows = bob.rows()
    first = next(number for number, row in enumerate(rows) if row.endswith("eve: one"))
    assert rows[first + 1:first + 4] == ["      │ 12:00 bob: I agree", "      │", "      │       │ four"]


@needs_terminal
@pytest.mark.parametrize("text", ["漢字かな交じり文", "😀 👍 🚀", "e\u0301e\u0301 a\u0308", "한국어"])
def test_wide_and_combining_characters_keep_the_input_line_aligned(bob, eve, text):
    bob.type(text + "|ab\x1b[D\x1b[DX")  # two to the left: in front of what was typed last
    bob.wait(lambda: bob.rows()[-2:-1] and bob.rows()[-2].endswith("|Xab"), "the X in its place")
    eve.say(text + " and on")
    bob.see("eve: .*and on$")
    bob.wait(lambda: bob.rows()[-2].endswith("|Xab"), "the input line")
    column = bob.screen.cursor.x
    assert bob.screen.buffer[bob.screen.cursor.y][column].data == "a"


@needs_terminal
def test_a_flood_beyond_what_a_terminal_takes_is_counted_and_in_the_recording(opened, eve, tmp_path):
    bob = opened("--log", "mine.jsonl")
    count = 6000  # lines, while this terminal takes in nothing
    for start in range(0, count, 500):
        eve.say(*[f"flood {number}" for number in range(start, start + 500)])
    eve.say("the end")
    helpers.wait_for(lambda: b"the end" in (tmp_path / "mine.jsonl").read_bytes(), "all of it recorded")
    bob.see("eve: the end$")
    counts = re.findall(r"^… ([\d,]+) lines skipped \(they are in the recording\)$", bob.text(), re.M)
    skipped = sum(int(number.replace(",", "")) for number in counts)
    shown = [int(number) for number in re.findall(r"eve: flood (\d+)$", bob.text(), re.M)]
    assert shown == sorted(set(shown))
    assert skipped and len(shown) + skipped == count
    assert (tmp_path / "mine.jsonl").read_bytes().count(b'"flood ') == count
    bob.see_prompt("bob>")


@needs_terminal
def test_resizing_while_lines_arrive_leaves_one_prompt(bob, eve):
    bob.type("typed")
    bob.see_prompt("bob> typed")
    enough = threading.Event()

    def talk():
        number = 0
        while not enough.wait(0.005):
            eve.say(f"line {number}")
            number += 1

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        for columns in (60, 100, 50, 80) * 2:
            before = bob.text().count("eve: line")
            bob.resize(columns, 24)
            bob.wait(lambda: bob.text().count("eve: line") > before + 10, "more lines")
    finally:
        enough.set()
        thread.join()
    hear(bob, eve, "the end")
    bob.see_prompt("bob> typed")
    assert sum(row.startswith("bob>") for row in bob.rows()) == 1


# --- writing ---


@needs_terminal
def test_several_pasted_rows_are_one_message_sent_once(bob, eve):
    bob.type("\x1b[200~one\rtwo\r\nthree\n\x1b[201~")
    bob.see(r"^\.\.\. three$")
    eve.say("nothing was sent by the paste")
    bob.see("by the paste$")
    bob.type("\r")
    eve.until(text="nothing was sent by the paste")
    eve.expect_next(ev="say", who="bob", text="one\ntwo\nthree")
    enter(bob, "after")
    eve.expect_next(ev="say", who="bob", text="after")


@needs_terminal
def test_alt_enter_begins_a_new_row(bob, eve):
    bob.type("one\x1b\rtwo\r")
    assert eve.expect(ev="say")["text"] == "one\ntwo"


@needs_terminal
def test_arrow_up_brings_back_what_was_said(bob, eve):
    enter(bob, "first")
    enter(bob, "second")
    bob.see("bob: second$")
    bob.see_prompt("bob>")
    bob.type("\x1b[A")
    bob.see_prompt("bob> second")
    bob.type("\x1b[A")
    bob.see_prompt("bob> first")
    bob.type("!\r")
    eve.expect(text="first!")


@needs_terminal
def test_ctrl_r_finds_what_was_said_and_enter_takes_it_into_the_input_line(bob, eve):
    enter(bob, "a needle in the hay")
    enter(bob, "straw")
    bob.see("bob: straw$")
    bob.type("\x12need")
    bob.wait(lambda: bob.rows()[-3:-2] == ["bob> a needle in the hay"], "the found line")
    bob.type("\r")
    bob.wait(lambda: "bob> a needle in the hay" in bob.rows() and "I-search" not in "".join(bob.rows()), "the line")
    bob.type("\x05!\r")
    eve.until(text="straw")
    eve.expect_next(ev="say", text="a needle in the hay!")


@needs_terminal
@pytest.mark.parametrize("keys, line", [
    ("/qui\t", "/qui"), ("/quit\t", "/quit"), ("/wh\t", "/who"), ("ev\t", "eve:"), ("EV\thi", "eve: hi"),
    ("/tell ev\tpsst", "/tell eve psst"), ("hey @ev\tyou", "hey @eve you"), ("so ev\tis", "so eve is"),
    ("@e\t", "@eve"), ("nobo\t", "nobo"),
])
def test_tab_completes_commands_and_names(bob, eve, keys, line):
    bob.type(keys)
    bob.see_prompt(f"bob> {line}")


@needs_terminal
def test_my_line_appears_when_the_server_confirms_it_and_the_prompt_counts_until_then(bob, eve, server):
    with server.room.baton:  # nothing is sent on meanwhile
        bob.type("one\rtwo\r")
        bob.see_prompt("bob (2 unsent)>")
        assert "bob: one" not in bob.text()
    server.room.flush()
    bob.see("bob: two$")
    bob.see_prompt("bob>")


@needs_terminal
def test_a_refused_line_comes_back_into_an_empty_input_line(bob, eve, server):
    enter(bob, "so far so good")
    bob.see("so far so good$")
    server.room.find("bob").muted = time.monotonic() + 60
    bob.type("not now\r")
    bob.see("!! you are muted for .* more seconds$")
    bob.see_prompt("bob> not now")
    server.room.find("bob").muted = 0.0
    bob.type("\r")
    assert [line["text"] for line in eve.until(text="not now") if line.get("ev") == "say"] == [
        "so far so good", "not now"]


@needs_terminal
def test_a_name_that_is_taken_comes_back_to_be_changed(bob, eve):
    bob.type("/nick EVE\r")
    bob.see("!! the name EVE is taken; EVE-2 is free$")
    bob.see_prompt("bob> /nick EVE")
    bob.type("lyn\r")
    bob.see_prompt("EVElyn>")


@needs_terminal
def test_a_refused_line_goes_into_the_history_when_something_else_is_typed(bob, eve, server):
    server.room.find("bob").muted = time.monotonic() + 60
    with server.room.baton:
        bob.type("refused\rmeanwhile")
        bob.see_prompt("bob> meanwhile")
    server.room.flush()
    bob.see("!! you are muted")
    bob.see_prompt("bob> meanwhile")
    bob.type("\x15\x1b[A")
    bob.see_prompt("bob> refused")


@needs_terminal
def test_a_text_over_the_limit_is_refused_here_with_its_length(bob, eve):
    bob.type("\x1b[200~" + "x" * 4001 + "\x1b[201~\r")
    told = "!! a message has at most 4,000 characters, this one has 4,001"
    bob.wait(lambda: told in bob.text(), told)  # above an input line of many rows
    bob.type("\x7f\r")  # it has stayed: one less is enough
    assert [line["text"] for line in eve.until(ev="say")[-1:]] == ["x" * 4000]
    assert not [line for line in eve.heard if b"error" in line]


@needs_terminal
@pytest.mark.parametrize("typed, near", [("/nik rob", "/nick"), ("/tel eve hi", "/tell"), ("/halp", "/help")])
def test_a_mistyped_command_suggests_the_near_one_and_goes_to_nobody(bob, eve, typed, near):
    bob.type(typed + "\r")
    bob.see(f"; did you mean {near}\\?$")
    bob.type("\x15and on\r")
    eve.expect(ev="join", who="bob")
    eve.expect_next(ev="say", text="and on")


@needs_terminal
def test_empty_lines_say_nothing(bob, eve):
    bob.type("\r \r\x15\x1b\r\x1b\r\rand on\r")
    eve.expect(ev="join", who="bob")
    assert eve.expect_next(ev="say")["text"].strip() == "and on"


# --- the state, always in sight ---


@needs_terminal
def test_the_bar_tells_the_room_the_people_and_whether_it_is_recorded(bob, eve, server, tmp_path):
    bob.see_bar(r"^ lab \| not recorded \| 2 here: eve, bob$")
    with helpers.joined(server, "ann") as ann:
        bob.see_bar("3 here: eve, bob, ann$")
        ann.send(do="nick", name="юля")
        bob.see_bar("3 here: eve, bob, юля$")
    bob.see_bar("2 here: eve, bob$")
    server.room.record(chat.Recording(str(tmp_path / "room.jsonl"), server.room.session_line))
    server.room.flush()
    bob.see(r"-- this session is recorded from here on$")
    bob.see_bar(r"^ lab \| recorded \| 2 here")
    server.room.record(None)
    server.room.flush()
    bob.see("-- this session is no longer recorded$")
    bob.see_bar(r"^ lab \| not recorded \|")


@needs_terminal
def test_who_joins_a_recorded_room_is_told(server, eve, opened, tmp_path):
    server.room.record(chat.Recording(str(tmp_path / "room.jsonl"), server.room.session_line))
    server.room.flush()
    bob = opened()
    bob.see(r"-- you are bob; 2 here: .*; this session is recorded$")
    bob.see_bar(r"^ lab \| recorded \|")


@needs_terminal
def test_the_bar_tells_of_an_own_recording(opened, eve):
    opened("--log", "mine.jsonl").see_bar(r"^ lab \| not recorded but by you \| 2 here")


@needs_terminal
def test_the_prompt_carries_my_name(bob, eve):
    enter(bob, "/nick юля")
    bob.see_prompt("юля>")
    bob.see_bar("eve, юля$")


# --- without a terminal ---


def join_command(server, name="bob"):
    return [*CHAT, "join", "127.0.0.1:%d" % server.address[1], "--name", name]


def test_a_file_as_input_and_a_pipe_as_output_have_no_escape_codes(server, eve, tmp_path):
    script = tmp_path / "script.txt"
    script.write_text("hello bob\n/nick юля\n/tell eve psst\n/nonsense\n/help\n/bell all\n", encoding="utf-8")
    with script.open("rb") as file:
        done = subprocess.run(join_command(server), stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=30, env={**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"})
    out = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert "bob: hello bob" in out and "you → eve (private): psst" in out and "there is no command" in out
    assert "\x1b" not in out and "\a" not in out


def test_a_pipe_that_is_closed_behind_it_makes_no_traceback(server, eve):
    process = subprocess.Popen(join_command(server), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    eve.expect(ev="join", who="bob")
    process.stdout.close()
    eve.say("nobody reads this", "nor this")
    eve.expect(ev="leave", who="bob")
    assert process.wait(helpers.SECONDS) == 0
    assert process.stderr.read() == b""
    process.stdin.close()
    process.stderr.close()


@needs_terminal
def test_a_terminal_whose_output_is_piped_away_gets_plain_lines(server, eve, tmp_path):
    out = tmp_path / "out.txt"
    screen = terminal.Terminal(["sh", "-c", '"$@" >' + str(out), "sh", *join_command(server)], cwd=tmp_path)
    try:
        eve.expect(ev="join", who="bob")
        screen.type("hello\n\x04")
        assert screen.exit_code() == 0
    finally:
        screen.close()
    assert "bob: hello\n" in out.read_text(encoding="utf-8")
    assert "\x1b" not in out.read_text(encoding="utf-8")
