"""A person's terminal in a room: what `join` shows of what arrives, and what becomes of what is typed."""
import contextlib
import re
import socket
import threading
import time

import pytest

import chat
import helpers
import terminal

pytestmark = terminal.needs_terminal


@pytest.fixture
def opened(server, tmp_path):
    """A function that opens terminals with join on them, all closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda *options, **settings: stack.enter_context(
            terminal.Person(tmp_path, server, *options, **settings))


@pytest.fixture
def bob(eve, opened):
    """A terminal on which bob is in the room, where eve is already."""
    return opened()


def cell(screen, text):
    """The first cell of this text on the screen, with its colours."""
    for number, row in enumerate(screen.screen.display):
        if text in row:
            return screen.screen.buffer[number][row.index(text)]
    raise AssertionError(f"not on the screen: {text}")


def hear(screen, peer, text):
    """Have this said, and wait until it is on the screen."""
    peer.say(text)
    screen.see(re.escape(text) + "$")


# --- reading ---


def test_a_name_has_one_colour_everywhere_and_another_name_another(bob, eve, server):
    with helpers.joined(server, "юля") as other:
        hear(bob, eve, "one")
        hear(bob, other, "two")
        hear(bob, eve, "three")
    colour = {row: cell(bob, row).fg for row in ("eve: one", "юля: two", "eve: three")}
    assert colour["eve: one"] == colour["eve: three"] != "default"
    assert colour["юля: two"] not in ("default", colour["eve: one"])


def test_f2_goes_round_the_forms_of_the_time(bob, eve):
    hear(bob, eve, "short")
    for form, pattern in (("long", r"^\d\d:\d\d:\d\d eve: in {}$"), ("off", "^eve: in {}$"),
                          ("short", r"^\d\d:\d\d eve: in {}$")):
        bob.type("\x1bOQ")
        bob.see(f"^-- times: {form}$")
        eve.say(f"in {form}")
        bob.see(pattern.format(form))


def test_the_times_command_and_option(opened, eve):
    bob = opened("--times", "off")
    eve.say("none")
    bob.see("^eve: none$")
    bob.enter("/times long")
    eve.say("seconds")
    bob.see(r"^\d\d:\d\d:\d\d eve: seconds$")
    bob.type("/times never\r")
    bob.see("!! it can be: short long off$")


def test_quiet_hides_who_comes_goes_and_is_renamed_until_it_is_off(bob, eve, server):
    bob.enter("/quiet on")
    with helpers.joined(server, "ann") as ann:
        ann.send(do="nick", name="anna")
        ann.expect(ev="nick")
        hear(bob, ann, "still heard")
        bob.see_bar("3 here: eve, bob, anna$")
    bob.see_bar("2 here: eve, bob$")
    bob.enter("/quiet off")
    with helpers.joined(server, "kim"):
        bob.see("-- kim joined$")
    assert not re.search("-- ann", bob.text())


def test_my_name_is_highlighted_where_it_is_a_word_of_its_own(bob, eve):
    hear(bob, eve, "ask Bob, not bobby")
    assert cell(bob, "Bob, not").reverse
    assert not cell(bob, "bobby").reverse
    assert not cell(bob, "ask").reverse


def test_the_bell_rings_for_mentions_and_private_lines_only(bob, eve):
    def rung(times):
        bob.wait(lambda: bob.written().count("\a") >= times, f"bell {times}")

    hear(bob, eve, "nothing special")
    hear(bob, eve, "hey bob")
    rung(1)
    eve.send(do="tell", to="bob", text="psst")
    bob.see("psst$")
    rung(2)
    bob.enter("bob is me")  # my own line
    bob.see("bob: bob is me$")
    bob.enter("/tell eve what?")
    bob.see(r"you → eve \(private\): what\?$")
    hear(bob, eve, "the end")
    assert bob.written().count("\a") == 2


def test_history_is_dim_and_rings_no_bell(opened, eve):
    eve.say("bob was called before he came")
    bob = opened()
    bob.see("bob was called before he came$")
    hear(bob, eve, "fresh")
    assert "\a" not in bob.written()
    (line,) = [line for line in bob.written().split("\n") if "was called before" in line]
    assert set(re.findall(r"\x1b\[([\d;]+)m", line.partition("was called")[0][-80:])) <= {"0", "2"}, "only dim"
    (line,) = [line for line in bob.written().split("\n") if "fresh" in line]
    assert f"{chat.STYLES[chat.name_style('eve')]}meve\x1b[0m" in line, "what is said now has its colours"


def test_the_bell_may_be_off_or_for_every_line(bob, eve):
    bob.enter("/bell off")
    hear(bob, eve, "hey bob")
    hear(bob, eve, "off")
    assert bob.written().count("\a") == 0
    bob.enter("/bell all")
    hear(bob, eve, "anything")
    bob.wait(lambda: bob.written().count("\a") == 1, "the bell")
    bob.enter("mine")
    bob.see("bob: mine$")
    bob.enter("/bell on")
    hear(bob, eve, "on")
    hear(bob, eve, "last")
    assert bob.written().count("\a") == 1


def test_ignore_hides_what_somebody_says_and_shows_it_again(bob, eve):
    bob.enter("/ignore EVE")
    bob.see("^-- EVE is hidden from you; the same again undoes it$")
    eve.say("hidden line, bob")
    eve.send(do="me", text="hidden deed")
    eve.send(do="tell", to="bob", text="hidden letter")
    eve.settle()
    bob.enter("mine")
    bob.see("bob: mine$")
    bob.enter("/ignore eve")
    bob.see("^-- eve is shown again$")
    hear(bob, eve, "seen")
    assert "hidden l" not in bob.text() and "hidden d" not in bob.text()
    assert "\a" not in bob.written()


def test_private_lines_look_different_and_r_answers_the_last_one(bob, eve, server):
    with helpers.joined(server, "ann") as ann:
        eve.send(do="tell", to="bob", text="from eve")
        bob.see(r"eve → you \(private\): from eve$")
        ann.send(do="tell", to="bob", text="from ann")
        bob.see(r"ann → you \(private\): from ann$")
        hear(bob, eve, "in the room")
        assert cell(bob, "from ann").fg != cell(bob, "in the room").fg
        bob.enter("/r yes, ann")
        ann.expect(re="tell", who="bob", to="ann", text="yes, ann")
        bob.see(r"you → ann \(private\): yes, ann$")
    assert not any(b"yes, ann" in line for line in eve.heard)


@pytest.mark.parametrize("text", ["漢字かな交じり文", "😀 👍 🚀", "e\u0301e\u0301 a\u0308", "한국어"])
def test_wide_and_combining_characters_keep_the_input_line_aligned(bob, eve, text):
    bob.type(text + "|ab\x1b[D\x1b[DX")  # two to the left: in front of what was typed last
    bob.wait(lambda: bob.rows()[-2:-1] and bob.rows()[-2].endswith("|Xab"), "the X in its place")
    eve.say(text + " and on")
    bob.see("eve: .*and on$")
    bob.wait(lambda: bob.rows()[-2].endswith("|Xab"), "the input line")
    column = bob.screen.cursor.x
    assert bob.screen.buffer[bob.screen.cursor.y][column].data == "a"


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


def test_ctrl_r_finds_what_was_said_and_enter_takes_it_into_the_input_line(bob, eve):
    bob.enter("a needle in the hay")
    bob.enter("straw")
    bob.see("bob: straw$")
    bob.type("\x12need")
    bob.wait(lambda: bob.rows()[-3:-2] == ["bob> a needle in the hay"], "the found line")
    bob.type("\r")
    bob.wait(lambda: "bob> a needle in the hay" in bob.rows() and "I-search" not in "".join(bob.rows()), "the line")
    bob.type("\x05!\r")
    eve.until(text="straw")
    eve.expect_next(ev="say", text="a needle in the hay!")


def test_my_line_appears_when_the_server_confirms_it_and_the_prompt_counts_until_then(bob, eve, server):
    with server.room.fanout.baton:  # nothing is sent on meanwhile
        bob.type("one\rtwo\r")
        bob.see_prompt("bob (2 unsent)>")
        assert "bob: one" not in bob.text()
    server.room.flush()
    bob.see("bob: two$")
    bob.see_prompt("bob>")


def test_a_refused_line_comes_back_into_an_empty_input_line(bob, eve, server):
    bob.enter("so far so good")
    bob.see("so far so good$")
    helpers.ask(server.room, None, "mute", to="bob", minutes=1)
    bob.type("not now\r")
    bob.see("!! you are muted for .* more seconds$")
    bob.see_prompt("bob> not now")
    helpers.ask(server.room, None, "mute", to="bob", minutes=0)
    bob.type("\r")
    assert [line["text"] for line in eve.until(text="not now") if line.get("ev") == "say"] == [
        "so far so good", "not now"]


def test_a_name_that_is_taken_comes_back_to_be_changed(bob, eve):
    bob.type("/nick EVE\r")
    bob.see("!! the name EVE is taken; EVE-2 is free$")
    bob.see_prompt("bob> /nick EVE")
    bob.type("lyn\r")
    bob.see_prompt("EVElyn>")


def test_a_refused_line_goes_into_the_history_when_something_else_is_typed(bob, eve, server):
    helpers.ask(server.room, None, "mute", to="bob", minutes=1)
    with server.room.fanout.baton:
        bob.type("refused\rmeanwhile")
        bob.see_prompt("bob> meanwhile")
    server.room.flush()
    bob.see("!! you are muted")
    bob.see_prompt("bob> meanwhile")
    bob.type("\x15\x1b[A")
    bob.see_prompt("bob> refused")


# --- the state, always in sight ---


def test_the_bar_tells_the_room_the_people_and_whether_it_is_recorded(bob, eve, server, tmp_path):
    bob.see_bar(r"^ lab \| not recorded \| 2 here: eve, bob$")
    with helpers.joined(server, "ann") as ann:
        bob.see_bar("3 here: eve, bob, ann$")
        ann.send(do="nick", name="юля")
        bob.see_bar("3 here: eve, bob, юля$")
    bob.see_bar("2 here: eve, bob$")
    server.room.record(chat.Recording(str(tmp_path / "room.jsonl"), server.room.log.session_line))
    server.room.flush()
    bob.see(r"-- this session is recorded from here on$")
    bob.see_bar(r"^ lab \| recorded \| 2 here")
    server.room.record(None)
    server.room.flush()
    bob.see("-- this session is no longer recorded$")
    bob.see_bar(r"^ lab \| not recorded \|")


def test_who_joins_a_recorded_room_is_told(server, eve, opened, tmp_path):
    server.room.record(chat.Recording(str(tmp_path / "room.jsonl"), server.room.log.session_line))
    server.room.flush()
    bob = opened()
    bob.see(r"-- you are bob; 2 here: .*; this session is recorded$")
    bob.see_bar(r"^ lab \| recorded \|")


def test_the_bar_tells_of_an_own_recording(opened, eve):
    opened("--log", "mine.jsonl").see_bar(r"^ lab \| not recorded but by you \| 2 here")


def test_the_prompt_carries_my_name(bob, eve):
    bob.enter("/nick юля")
    bob.see_prompt("юля>")
    bob.see_bar("eve, юля$")


# --- being in a room ---


@pytest.fixture
def at_door(server, tmp_path):
    """A terminal with join on it that has not been told a name."""
    with terminal.Terminal([*terminal.CHAT, "join", "%s:%d" % server.address], cwd=tmp_path) as screen:
        yield screen


def cut_off(server):
    """Break all connections, as when the cable is pulled."""
    for guest in server.guests.copy():
        guest.out.shutdown(socket.SHUT_RDWR)


def test_a_flood_never_breaks_what_is_typed(bob, eve):
    text, enough = "quick brown fox", threading.Event()

    def flood():
        for start in range(0, 100_000, 100):  # 5,000 lines a second
            eve.say(*[f"flood {start + number}" for number in range(100)])
            if enough.wait(0.02):
                return

    def drain():  # an own flood that nobody read would be cut for it
        with contextlib.suppress(OSError, ValueError):
            while eve.file.read1(1 << 20):
                pass

    threads = [threading.Thread(target=flood), threading.Thread(target=drain, daemon=True)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            typed = ""
            for key in text:
                bob.type(key)
                typed += key
                bob.see_prompt(f"bob> {typed}".rstrip())
                bob.read(0.05)  # nobody types faster, and more lines arrive
                assert sum(row.startswith("bob>") for row in bob.rows()) <= 1
            bob.type("\r")
            bob.see_prompt("bob>")
    finally:
        enough.set()
        threads[0].join()
        eve.sock.shutdown(socket.SHUT_RDWR)  # wakes the one who drains
    bob.wait(lambda: bob.text().count(f"bob: {text}") == 3, "all three lines")
    bob.see_prompt("bob>")
    for row in bob.text().split("\n"):
        assert re.match(r"\d\d:\d\d (eve: flood \d+|bob: .*|-- .*)$|… [\d,]+ lines skipped$|bob>$| lab \|", row), row


def test_every_line_is_shown_around_every_enter(bob, eve):
    for number in range(60):
        eve.say(f"before {number}")
        bob.type(f"mine {number}\r")
        eve.say(f"after {number}")
    bob.wait(lambda: "after 59" in bob.text() and "mine 59" in bob.text().replace("bob> mine", ""))
    for number in range(60):
        for text in (f"eve: before {number}", f"bob: mine {number}", f"eve: after {number}"):
            assert len(re.findall(f"{text}$", bob.text(), re.M)) == 1, text


def test_the_name_is_asked_for_and_asked_again_when_it_is_taken(eve, at_door):
    at_door.see(r"^Your name \[.+\]:$")
    at_door.type("Eve\r")
    at_door.see("the name Eve is taken; Eve-2 is free")
    at_door.see(r"^Another name \[Eve-2\]:$")
    at_door.type("\r")
    at_door.see_prompt("Eve-2>")
    eve.expect(ev="join", who="Eve-2")


def test_quit_alone_asks_before_it_leaves(bob, eve):
    bob.type("quit\r")
    bob.see("leave the room?")
    bob.type("no\r")
    bob.see_prompt("bob>")
    bob.type("exit\r")
    bob.wait(lambda: bob.text().count("leave the room?") == 2)
    bob.type("y\r")
    assert bob.exit_code() == 0
    eve.expect(ev="leave", why="left")


def test_every_request_has_its_command(bob, eve):
    for typed, shown in (("/who", "-- 2 here: eve, bob$"), ("/me waves", r"\* bob waves$"), ("//help", "bob: /help$"),
                         ("/tell eve psst", r"you → eve \(private\): psst$")):
        bob.enter(typed)
        bob.see(shown)
    eve.expect(re="tell", who="bob", text="psst")
    bob.type("/nick rob\r")
    bob.see_prompt("rob>")


def gone(server):
    """Nobody can reach this server any more, and nobody is told why."""
    server.room.host.left = True
    server.listener.shutdown(socket.SHUT_RDWR)
    server.listener.close()
    cut_off(server)


def test_a_lost_connection_keeps_what_is_typed_and_comes_back_by_itself(bob, server, eve):
    bob.type("not yet sent")
    bob.see_prompt("bob> not yet sent")
    cut_off(server)
    bob.see("the connection is lost; what you enter waits for it, Enter tries at once")
    bob.see_prompt("bob> not yet sent")
    bob.type("\r")
    bob.see("bob: not yet sent$")
    assert len(re.findall("^.{5} -- bob joined$", bob.text(), re.M)) == 1, "what was seen came again"


def test_a_line_on_its_way_when_the_connection_is_lost_arrives_once(bob, server):
    with server.room.fanout.baton:
        bob.type("on its way\r")
        bob.see_prompt("bob (1 unsent)>")
        cut_off(server)
        bob.see("the connection is lost")
    bob.see_prompt("bob>")
    bob.enter("behind it")
    bob.see("bob: behind it$")
    assert bob.text().count("bob: on its way") == 1


def test_a_server_that_stays_away_is_waited_for_and_the_client_can_still_leave(bob, server):
    gone(server)
    bob.see("the connection is lost")
    bob.see(r"bob \(no link, next try in \d+ s\)>")
    bob.type("kept\r")
    bob.see(r"bob \(.*, 1 unsent\)>")
    bob.type("\r/quit\r")
    assert bob.exit_code() == 1
    assert "this may not have arrived: kept" in bob.text() and bob.text().endswith("the connection was lost.")


def test_the_end_of_the_room_ends_the_client(bob, server):
    server.stop()
    assert bob.exit_code() == 0
    assert "-- the room is closed" in bob.text()


# --- a terminal that is none for us ---


def test_a_dumb_terminal_gets_plain_lines(server, tmp_path):
    with terminal.Terminal([*terminal.CHAT, "join", "%s:%d" % server.address, "--name", "bob"],
                           cwd=tmp_path, env={"TERM": "dumb"}) as screen:
        screen.see("-- bob joined")
        screen.type("hello\n")
        screen.see("bob: hello")
        assert "\x1b" not in screen.written()
        screen.type("\x04")
        assert screen.exit_code() == 0


def test_a_terminal_whose_output_is_piped_away_gets_plain_lines(server, eve, tmp_path):
    out = tmp_path / "out.txt"
    command = [*terminal.CHAT, "join", "%s:%d" % server.address, "--name", "bob"]
    with terminal.Terminal(["sh", "-c", f'"$@" >{out}', "sh", *command], cwd=tmp_path) as screen:
        eve.expect(ev="join", who="bob")
        screen.type("hello\n\x04")
        assert screen.exit_code() == 0
    assert "bob: hello\n" in out.read_text(encoding="utf-8")
    assert "\x1b" not in out.read_text(encoding="utf-8")
