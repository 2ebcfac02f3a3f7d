"""The server's console: what the person who hosts a room sees and types; what every input line does is in test_screen."""
import os
import re
import signal
import subprocess
import types

import pytest

import helpers
import terminal

pytestmark = terminal.needs_terminal
SERVE = [*terminal.CHAT, "serve", "--port", "0"]


@pytest.fixture
def console(tmp_path):
    with terminal.Console(tmp_path, "--room", "lab") as console:
        yield console


@pytest.fixture
def eve(console):
    """Somebody in the room."""
    with helpers.joined(console, "eve") as eve:
        console.see("-- eve joined")
        yield eve


def test_the_console_begins_with_how_to_join(console):
    console.see(r"room lab listens on 127\.0\.0\.1:\d+$")
    console.see(rf"here type: .* join 127\.0\.0\.1:{console.address[1]}$")
    console.see(r"Ctrl\+C ends the room\.$")
    console.see_bar(r"^ lab \| not recorded \| 0 here$")


def test_the_console_shows_who_comes_what_they_say_and_who_goes(console, eve):
    console.type("half a line")
    eve.say("привет", "two\nrows")
    console.see("eve: привет$")
    console.see(r"^ +│ rows$")
    console.see_bar(r"\| 1 here$")
    eve.close()
    console.see("-- eve (left|lost the connection)")
    console.see_bar(r"\| 0 here$")
    console.see_prompt("> half a line")


@pytest.mark.parametrize("typed, said", [
    ("/say hello  you", "hello  you"), ("  hello all", "hello all"), ("/say /help", "/help")])
def test_what_the_host_says(console, eve, typed, said):
    console.type(typed + "\r")
    assert eve.expect(ev="say")["text"] == said
    assert eve.heard[-1].count(b'"who":"server"') == 1
    console.see(f"server: {said}$")
    console.see_prompt(">")


def test_who_lists_the_people_with_their_addresses(console, eve):
    console.type("/who\r")
    console.see("^-- 1 here$")
    console.see(r"^   eve from 127\.0\.0\.1$")


def test_kick_removes_somebody_with_a_reason(console, eve):
    console.type("/kick eve far too loud\r")
    eve.expect(ev="leave", who="eve", why="kicked", text="far too loud")
    eve.expect_next(re="error", code="kicked", text="the host removed you: far too loud")
    assert eve.hear() is None
    console.see("-- eve was removed: far too loud$")
    console.see_bar(r"\| 0 here$")


def test_kick_without_a_reason_has_one(console, eve):
    console.type("/kick EVE\r")
    eve.expect(re="error", code="kicked", text="the host removed you")
    with helpers.Peer(console) as again:
        again.send(do="hello", name="eve")
        again.expect_next(re="error", code="kicked", text="the host removed you; come back in 5 minutes")
        assert again.hear() is None


def test_who_is_banned_is_listed_until_that_is_lifted(console, eve):
    console.type("/kick eve 3 calm down\r")
    eve.expect(re="error", code="kicked", text="the host removed you: calm down")
    console.type("/ban Rob\r")
    console.see("^-- Rob is banned$")
    console.type("/bans\r")
    console.see("^-- 2 banned or muted$")
    console.see("^   eve for 3 minutes$")
    console.see("^   Rob until the room ends$")
    console.type("/unban EVE\r")
    console.see("^-- EVE may come back$")
    with helpers.joined(console, "eve"):
        console.type("/unban eve\r")
        console.see("nobody is banned by the name eve")


def test_mute_refuses_what_somebody_says_until_it_is_ended(console, eve):
    console.type("/mute eve 3\r")
    eve.expect(ev="notice", text="eve is muted for 3 min")
    eve.say("can you hear me?")
    assert "you are muted for 3 more minutes" == eve.expect(re="error", code="muted")["text"]
    console.type("/mute eve 0\r")
    eve.expect(ev="notice", text="eve is no longer muted")
    eve.say("and now?")
    eve.expect(ev="say", text="and now?")
    assert "can you hear me?" not in console.text()


def test_mute_without_minutes_is_for_five(console, eve):
    console.type("/mute eve\r")
    eve.expect(ev="notice", text="eve is muted for 5 min")


def test_mark_puts_a_chapter_into_the_log(console, eve):
    console.type("/mark second part\r")
    eve.expect(ev="mark", text="second part")
    console.see("== second part$")


def test_log_on_and_off_is_told_to_everybody_and_makes_a_recording(console, eve, tmp_path):
    eve.say("before")
    console.see("eve: before$")
    console.type("/log on\r")
    eve.expect(ev="notice", recorded=True)
    console.see(r"^-- recording into sessions.*-lab\.jsonl$")
    console.see_bar(r"recording into sessions.*-lab\.jsonl \|")
    eve.say("meanwhile")
    console.see("eve: meanwhile$")
    console.type("/log off\r")
    eve.expect(ev="notice", recorded=False)
    console.see_bar(r"\| not recorded \|")
    eve.say("after")
    console.see("eve: after$")
    (path,) = (tmp_path / "sessions").iterdir()
    recorded = path.read_text()
    assert "meanwhile" in recorded and "before" not in recorded and "after" not in recorded


def test_a_newcomer_to_a_recorded_room_is_told(tmp_path):
    with terminal.Console(tmp_path, "--log", "lab.jsonl") as console:
        console.see_bar(r"recording into lab\.jsonl \| 0 here$")
        with helpers.joined(console, "eve") as eve:
            assert eve.welcome["recorded"] is True


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_room_too(console, eve, signal_name):
    os.kill(console.process.pid, getattr(signal, signal_name))
    eve.expect(ev="end")
    assert console.exit_code() == 0
    assert "Traceback" not in console.text()


def test_a_dumb_terminal_gets_plain_lines(tmp_path):
    with terminal.Terminal(SERVE, cwd=tmp_path, env={"TERM": "dumb"}) as screen:
        screen.see("Ctrl.C ends the room")
        screen.type("\x03")
        assert screen.exit_code() == 0
        assert "\x1b" not in screen.written()


def test_people_are_let_in_before_the_input_line_is_loaded(tmp_path):
    # A prompt_toolkit that cannot be loaded before somebody is in the room.
    package = tmp_path / "prompt_toolkit"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os, time\nuntil = time.monotonic() + 10\n"
        "while not os.path.exists('let-in') and time.monotonic() < until:\n    time.sleep(0.01)\n"
        "assert os.path.exists('let-in')\nraise ImportError\n")
    with terminal.Terminal(SERVE, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}) as screen:
        screen.see(r"listens on 127\.0\.0\.1:\d+$")
        port = int(re.search(r"listens on 127\.0\.0\.1:(\d+)$", screen.text(), re.M).group(1))
        with helpers.joined(types.SimpleNamespace(address=("127.0.0.1", port)), "eve"):
            (tmp_path / "let-in").write_text("")
            screen.see("prompt_toolkit is missing, so the input line is a plain one")
            screen.see("-- eve joined")


def test_without_a_terminal_it_only_prints_and_reads_nothing(tmp_path):
    process = subprocess.Popen(SERVE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               encoding="utf-8", cwd=tmp_path)
    output = helpers.Output(process.stdout)
    try:
        process.stdin.write("/quit\nhello\n")
        process.stdin.close()
        port = int(output.expect(r"listens on 127\.0\.0\.1:(\d+)$").group(1))
        with helpers.joined(types.SimpleNamespace(address=("127.0.0.1", port)), "eve") as eve:
            eve.say("still here")
            output.expect("eve: still here$")
            process.send_signal(signal.SIGINT)
            eve.expect(ev="end")
        assert process.wait(helpers.SECONDS) == 0
        assert "\x1b" not in output.text() and "Traceback" not in output.text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_window_that_is_closed_ends_the_room_in_order(tmp_path):
    with terminal.Console(tmp_path, "--room", "lab", "--log", "log.jsonl") as console, \
            helpers.joined(console, "eve") as eve:
        console.see("-- eve joined")
        os.close(console.master)
        console.master = os.open(os.devnull, os.O_RDWR)
        assert eve.rest()[-1]["ev"] == "end"
        eve.close()
        assert b'"ev":"end"' in (tmp_path / "log.jsonl").read_bytes().splitlines()[-1]
