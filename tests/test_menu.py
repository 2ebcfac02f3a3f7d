"""The menu of a bare start: what somebody meets who double-clicks the file, with a terminal and without."""
import contextlib
import os
import re
import signal
import subprocess
import sys

import pytest

import chat
import helpers
import terminal
from terminal import CHAT as BARE, needs_terminal

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
PYTHON = "py" if sys.platform == "win32" else "python3"
# The same on a port that is free, since the real one may be taken on this machine.
ANY_PORT = [sys.executable, "-c", "import sys, chat; chat.PORT = 0; sys.argv = ['chat.py']; sys.exit(chat.main())"]
# The same, telling what a server would be opened with: no test may open one for the whole network.
TOLD = [sys.executable, "-c",
        "import sys, chat; chat.serve = lambda *words: print('served:', *words); sys.argv = ['chat.py']; "
        "sys.exit(chat.main())"]
HOST, JOIN, REPLAY, REPORT, GIVE, QUIT = "123456"


def environment(home):
    """A person's environment whose home is this folder."""
    env = {name: value for name, value in os.environ.items() if name not in ("XDG_STATE_HOME", "NO_COLOR")}
    return {**env, "HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home), "LOGNAME": "bob",
            "PYTHONIOENCODING": "utf-8", "PYTHONPATH": os.path.dirname(chat.__file__)}


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture
def piped(tmp_path, home):
    """A function that gives these answers to the menu through a pipe; returns its exit code and output."""
    def run(*answers, program=BARE):
        done = subprocess.run(program, input="".join(f"{answer}\n" for answer in answers).encode(), timeout=30,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path, env=environment(home))
        return done.returncode, done.stdout.decode().replace("\r\n", "\n")

    return run


@pytest.fixture
def opened(tmp_path, home):
    """A function that opens the menu on a terminal of its own."""
    with contextlib.ExitStack() as stack:
        def open_one(program=BARE, **more):
            screen = stack.enter_context(terminal.Terminal(program, cwd=tmp_path, columns=100, rows=40,
                                                           env={"XDG_STATE_HOME": "", **environment(home), **more}))
            screen.see("What would you like to do?")
            return screen

        yield open_one


def menus(text):
    return text.count("What would you like to do?")


def press(screen, title, keys):
    """Wait until the menu asks this as its last question, and press these keys."""
    screen.wait(lambda: asked(screen) == title, title)
    screen.type(keys)


def asked(screen):
    """The title of the framed question at the bottom of the screen."""
    tops = [number for number, row in enumerate(screen.rows()) if row.startswith("┌")]
    if not tops or not screen.rows()[-1].startswith("└"):
        return None
    return screen.rows()[tops[-1] + 1].strip("│ ")


def see_question(screen, pattern):
    """Wait until the row with the cursor, the last one, is this question."""
    screen.wait(lambda: screen.rows() and re.search(pattern, screen.rows()[-1]), pattern)


def back_in_the_menu(screen):
    press(screen, "What would you like to do?", "")


def recordings(folder):
    """Two recordings, and a file that is none."""
    (folder / "sessions").mkdir()
    for number, (name, day, people, minutes) in enumerate(
            [("old", "2024-01-02", ["ann", "kim"], 1), ("new", "2024-03-04", ["ann", "юля", "eve"], 12)]):
        start = f"{day}T09:00:00+01:00"
        path = folder / "sessions" / f"{name}.jsonl"
        events = [{"ev": "session", "n": 0, "t": 0.0, "v": 1, "room": name, "start": start, "id": f"{number}" * 16}]
        events += [{"ev": "join", "n": n, "t": 0.0, "who": who, "from": 0} for n, who in enumerate(people, 1)]
        events += [{"ev": "say", "n": len(events), "t": 60.0 * minutes, "who": "ann", "text": f"in {name}"}]
        path.write_bytes(b"".join(map(chat.encode, events)))
        os.utime(path, (1_700_000_000 + number,) * 2)
    (folder / "sessions" / "notes.txt").write_text("no recording")
    (folder / "sessions" / "broken.jsonl").write_text("no recording either\n")


# --- through a pipe ---


def test_without_a_terminal_the_choices_are_numbered_lines(piped):
    code, out = piped(QUIT)
    assert code == 0
    assert out.startswith("\nWhat would you like to do?\n  1. host a chat\n  2. join a chat\n"
                          "  3. replay a recording\n  4. make a report\n  5. give this program to a classmate\n"
                          "  6. quit\n")
    assert "\x1b" not in out


@pytest.mark.parametrize("answers", [[], [HOST], [HOST, "1"], [HOST, "1", "lab"], [JOIN], [GIVE]])
def test_the_end_of_the_input_quits_anywhere(piped, answers):
    code, out = piped(*answers)
    assert code == 0
    assert "Traceback" not in out


@pytest.mark.parametrize("wrong", ["0", "7", "-1", "host", "1.5", "²"])
def test_a_wrong_number_is_asked_again_with_the_reason(piped, wrong):
    code, out = piped(wrong, QUIT)
    assert code == 0
    assert f"{wrong} is not a number from 1 to 6." in out
    assert out.count("Number [1]:") == 2


def test_a_wrong_number_cannot_harm_the_terminal(piped):
    code, out = piped("\x1b[2J", QUIT)
    assert code == 0
    assert "\x1b" not in out


@pytest.mark.parametrize("answers, shown, served", [
    (["1", "", "1"], "serve", "127.0.0.1 7011 chat None"),
    (["", "", ""], "serve", "127.0.0.1 7011 chat None"),
    (["2", "", "1"], "serve --lan", " 7011 chat None"),
    (["3", "", "1"], "serve --lan --open", " 7011 chat None"),
    (["1", "lab", "1"], "serve --room lab", "127.0.0.1 7011 lab None"),
    (["1", "two words", "1"], "serve --room 'two words'", "127.0.0.1 7011 two words None"),
    (["1", "", "2"], "serve --log", "127.0.0.1 7011 chat sessions"),
    (["3", "юля", "2"], "serve --lan --open --room 'юля' --log", " 7011 юля sessions"),
])
def test_hosting_asks_for_whom_and_records_or_not_and_shows_the_command_line(piped, answers, shown, served):
    code, out = piped(HOST, *answers, QUIT, program=TOLD)
    assert code == 0
    assert f"\n{PYTHON} chat.py {shown}\n" in out.replace("'--room=", "--room='").replace("--room=", "--room ")
    assert f"served: {served}" in out
    assert menus(out) == 2


def test_a_room_name_that_nobody_could_use_is_asked_again(piped):
    code, out = piped(HOST, "1", "x" * 4001, "lab", "1", QUIT, program=TOLD)
    assert "a message has at most 4,000 characters, this one has 4,001." in out
    assert "served: 127.0.0.1 7011 lab" in out


def test_a_room_name_with_a_dash_in_front_is_a_name(piped):
    code, out = piped(HOST, "1", "-us", "1", QUIT, program=TOLD)
    assert code == 0
    assert "served: 127.0.0.1 7011 -us None" in out
    assert menus(out) == 2


def test_joining_through_a_pipe_asks_for_an_address_and_comes_back(piped):
    with helpers.serving() as server, helpers.joined(server, "eve") as eve:
        address = "127.0.0.1:%d" % server.address[1]
        code, out = piped(JOIN, "http://box", "127.0.0.1:99999", address)
        eve.expect(ev="leave", why="left", who="bob")
    assert code == 0
    assert "http://box is no address; write host, host:port or [v6-address]:port." in out
    assert "127.0.0.1:99999 is no address" in out
    assert f"\n{PYTHON} chat.py join {address}\n" in out
    assert "-- bob joined" in out
    assert menus(out) == 2


def test_the_menu_comes_back_after_a_command_that_failed(piped):
    code, out = piped(JOIN, "127.0.0.1:1", QUIT)
    assert code == 0
    assert "no chat answers at 127.0.0.1:1" in out
    assert menus(out) == 2


def test_the_menu_comes_back_after_an_address_that_looks_like_an_option(piped):
    code, out = piped(JOIN, "-x", "127.0.0.1:1", QUIT, QUIT)  # the second if it was asked again
    assert code == 0
    assert menus(out) >= 2


def test_replaying_offers_the_newest_first_with_date_people_and_length(piped, tmp_path):
    recordings(tmp_path)
    code, out = piped(REPLAY, "2", QUIT)
    assert code == 0
    assert ("  1. 2024-03-04 09:00  new, 3 people, 1 message, 12:00, not ended\n"
            "  2. 2024-01-02 09:00  old, 2 people, 1 message, 1:00, not ended\n"
            "  3. a sample: a lab on sockets, in Russian\n") in out
    assert f"\n{PYTHON} chat.py replay {os.path.join('sessions', 'old.jsonl')}\n" in out
    assert "09:01 ann: in old\n" in out
    assert menus(out) == 2


def test_without_a_recording_it_is_told_how_to_get_one_and_there_are_samples(piped):
    code, out = piped(REPLAY)
    assert code == 0
    assert "There is no recording in the folder sessions yet: host a chat and have it recorded. Samples:" in out
    assert "  1. a sample: a lab on sockets, in Russian\n  2. a sample: a class in three parts, in English\n" in out


def test_a_report_asks_of_what_in_which_language_and_where(piped, tmp_path):
    recordings(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "report.md").write_text("conclusions")
    code, out = piped(REPORT, "3", "2", "taken", "", QUIT)
    assert code == 0
    assert "there is a report in taken already." in out
    assert f"\n{PYTHON} chat.py replay demo --report=report-demo --lang ru\n" in out
    assert "Отчёт по лабораторной" in (tmp_path / "report-demo" / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "taken" / "report.md").read_text() == "conclusions"
    assert menus(out) == 2


def test_a_folder_for_a_report_may_begin_with_a_dash(piped, tmp_path):
    code, out = piped(REPORT, "1", "1", "-x", QUIT)
    assert (code, menus(out)) == (0, 2)
    assert (tmp_path / "-x" / "report.md").exists()


def test_giving_tells_where_the_file_is_and_what_to_type_there(piped):
    code, out = piped(GIVE, QUIT)
    assert code == 0
    assert f"\n  {os.path.abspath(chat.__file__)}\n" in out
    assert f"\n  {PYTHON} chat.py serve --lan\n" in out
    assert menus(out) == 2


@needs_signals
def test_ctrl_c_ends_a_piped_menu_without_a_traceback(tmp_path, home):
    process = subprocess.Popen(BARE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               encoding="utf-8", cwd=tmp_path, env={**environment(home), "PYTHONUNBUFFERED": "1"})
    output = helpers.Output(process.stdout)
    try:
        output.expect("6. quit")
        process.send_signal(signal.SIGINT)
        assert process.wait(helpers.SECONDS) == 0
        assert "Traceback" not in output.text()
    finally:
        process.kill()
        process.communicate()


# --- on a terminal ---


@needs_terminal
@pytest.mark.parametrize("keys", ["6\r", "\x1b[B\x1b[B\x1b[B\x1b[B\x1b[B\r", "\x03"], ids=["number", "arrows", "Ctrl+C"])
def test_quitting(opened, keys):
    screen = opened()
    press(screen, "What would you like to do?", keys)
    assert screen.exit_code() == 0
    assert "Traceback" not in screen.text()
    assert menus(screen.text()) == 1


@needs_terminal
def test_the_choice_is_framed_and_has_the_number_keys(opened):
    screen = opened()
    back_in_the_menu(screen)
    for number, words in enumerate(["host a chat", "join a chat", "replay a recording", "make a report", "give this",
                                    "quit"], 1):
        screen.see(rf"^│ .*{number}\. {words}.*│$")


@needs_terminal
def test_hosting_for_this_computer_until_ctrl_c(opened, tmp_path):
    screen = opened(ANY_PORT)
    press(screen, "What would you like to do?", "\r")
    press(screen, "Who can come in?", "\r")
    see_question(screen, r"^Room \[chat\]:")
    screen.type("lab\r")
    press(screen, "Record what is said?", "2\r")
    screen.see(rf"^{PYTHON} chat\.py serve --room[ =]lab --log$")
    screen.see("room lab listens on 127.0.0.1:")
    screen.see_bar(r"^ lab \| recording into sessions/.*-lab\.jsonl \| 0 here$")
    screen.type("\x03")
    back_in_the_menu(screen)
    assert len(os.listdir(tmp_path / "sessions")) == 1
    screen.type("6\r")
    assert screen.exit_code() == 0


@needs_terminal
def test_ctrl_c_at_a_question_quits(opened):
    screen = opened()
    press(screen, "What would you like to do?", "1\r")
    press(screen, "Who can come in?", "\x03")
    assert screen.exit_code() == 0
    assert "Traceback" not in screen.text()


@needs_terminal
@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["Ctrl+C", "Ctrl+D"])
def test_no_answer_to_a_typed_question_quits(opened, key):
    screen = opened()
    press(screen, "What would you like to do?", "2\r")
    see_question(screen, r"^Address, as `serve` prints it \[127\.0\.0\.1\]:")
    screen.type(key)
    with contextlib.suppress(subprocess.TimeoutExpired):
        screen.process.wait(3)
    if screen.process.poll() is None:  # pressed between prompt and reading, it is lost in Python's own input()
        screen.type(key)
    assert screen.exit_code() == 0
    assert "Traceback" not in screen.text()


def join_from_menu(screen, address):
    press(screen, "What would you like to do?", "2\r")
    see_question(screen, "^Address")
    screen.type(address + "\r")
    see_question(screen, r"^Your name \[bob\]:")
    screen.type("\r")
    screen.see_prompt("bob>")
    screen.type("/quit\r")


@needs_terminal
def test_an_address_that_was_joined_is_offered_the_next_time(opened, home):
    with helpers.serving() as server:
        address = "127.0.0.1:%d" % server.address[1]
        screen = opened()
        join_from_menu(screen, address)
        back_in_the_menu(screen)
        screen.type("2\r")
        press(screen, "Where?", "")
        screen.see(rf"1\. {address} ")
        screen.see(r"2\. another address")
        screen.type("1\r")
        see_question(screen, r"^Your name \[bob\]:")
        screen.type("rob\r")
        screen.see_prompt("rob>")
        screen.type("/quit\r")
        back_in_the_menu(screen)
        screen.type("2\r")
        press(screen, "Where?", "2\r")
        see_question(screen, "^Address")
    if sys.platform.startswith("linux"):
        (kept,) = [path for path in home.rglob("*") if path.is_file()]
        assert kept == home / ".local" / "state" / "chat" / "recent.txt"
        assert kept.read_text() == address + "\n", "an address, and nothing about who or what"


@needs_terminal
def test_a_home_that_cannot_be_written_remembers_nothing_and_all_else_works(opened, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with helpers.serving() as server:
        screen = opened(HOME=str(tmp_path / "file"), XDG_STATE_HOME=str(tmp_path / "file"))
        join_from_menu(screen, "127.0.0.1:%d" % server.address[1])
        back_in_the_menu(screen)
    assert "Traceback" not in screen.text()
    screen.type("2\r")
    see_question(screen, "^Address")


@needs_terminal
def test_a_command_that_failed_is_told_and_the_window_stays_open(opened):
    screen = opened()
    press(screen, "What would you like to do?", "2\r")
    see_question(screen, "^Address")
    screen.type("127.0.0.1:1\r")
    see_question(screen, "^Your name")
    screen.type("\r")
    screen.see("no chat answers at 127.0.0.1:1")
    back_in_the_menu(screen)
    assert screen.process.poll() is None


@needs_terminal
def test_a_recording_is_chosen_and_replayed(opened, tmp_path):
    recordings(tmp_path)
    screen = opened()
    press(screen, "What would you like to do?", "3\r")
    press(screen, "Which one?", "\x1b[B\r")
    screen.see("ann: in old$")
    screen.see("^the end ")
    screen.type("q")
    back_in_the_menu(screen)


@needs_terminal
def test_a_report_is_made_and_the_next_one_gets_a_folder_of_its_own(opened, tmp_path):
    screen = opened()
    for folder, language in (("report-demo-en", "1"), ("report-demo-en-2", "2")):
        press(screen, "What would you like to do?", "4\r")
        press(screen, "Which one?", "2\r")
        press(screen, "In which language?", f"{language}\r")
        see_question(screen, rf"^Folder for the report \[{folder}\]:")
        screen.type("\r")
        screen.see(rf"^{folder}/report.md$")
        back_in_the_menu(screen)
    assert "Lab report" in (tmp_path / "report-demo-en" / "report.md").read_text(encoding="utf-8")
    assert "Отчёт" in (tmp_path / "report-demo-en-2" / "report.md").read_text(encoding="utf-8")


# --- what is remembered ---


@pytest.fixture
def state(tmp_path, monkeypatch):
    for variable in ("XDG_STATE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    return tmp_path


def test_the_newest_address_comes_first_and_each_only_once(state):
    assert chat.recent_addresses() == []
    for address in ("a", "b", "a", "c"):
        chat.remember_address(address)
    assert chat.recent_addresses() == ["c", "a", "b"]


def test_only_a_few_addresses_are_remembered(state):
    for number in range(chat.RECENT + 3):
        chat.remember_address(str(number))
    assert chat.recent_addresses() == ["7", "6", "5", "4", "3"]


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"", b"\n\n"])
def test_a_damaged_list_of_addresses_is_an_empty_one(state, content):
    chat.remember_address("a")
    with open(os.path.join(chat.state_folder(), "recent.txt"), "wb") as file:
        file.write(content)
    assert chat.recent_addresses() == []
    chat.remember_address("b")
    assert chat.recent_addresses() == ["b"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the folder of this system")
def test_the_state_folder_follows_the_system(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert chat.state_folder() == str(tmp_path / ".local" / "state" / "chat")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    assert chat.state_folder() == str(tmp_path / "elsewhere" / "chat")
