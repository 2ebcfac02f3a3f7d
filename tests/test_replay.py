"""`replay`: a recorded session again, with its own timing, a clock of the tests' own, and no waiting."""
import contextlib
import functools
import io
import os
import re
import subprocess
import sys
import threading

import pytest

import chat

CHAT = [sys.executable, chat.__file__]
SESSION = {"ev": "session", "n": 0, "t": 0.0, "v": 1, "id": "s1", "start": "2026-11-20T12:00:00.000+03:00",
           "room": "лаб"}
EVENTS = [
    SESSION,
    {"ev": "join", "n": 1, "t": 1.0, "who": "юля", "from": 0},
    {"ev": "say", "n": 2, "t": 1.5, "who": "юля", "text": "привет\nмир"},
    {"ev": "leave", "n": 3, "t": 61.5, "who": "юля", "why": "left"},
    {"ev": "end", "n": 4, "t": 65.5},
]
SHOWN = """\
12:00 -- room лаб, open since 2026-11-20 12:00
12:00 -- юля joined
12:00 юля: привет
      │ мир
12:01 -- юля left
12:01 -- the room is closed
"""


def put(path, events):
    path.write_bytes(b"".join(map(chat.encode, events)))
    return path


@pytest.fixture
def recorded(tmp_path):
    """A file with a session."""
    return put(tmp_path / "lab.jsonl", EVENTS)


class Clock:
    """A clock that only sleeping moves on."""

    def __init__(self):
        self.now, self.slept = 1000.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert 0 <= seconds <= threading.TIMEOUT_MAX, "no system can sleep so"
        self.slept.append(seconds)
        self.now += seconds

    @property
    def passed(self):
        return self.now - 1000.0


@pytest.fixture
def clock(monkeypatch):
    """The clock by which replay goes."""
    clock = Clock()
    monkeypatch.setattr(chat, "pace", functools.partial(chat.pace, clock=clock, sleep=clock.sleep))
    return clock


def scene(event):
    return event["t"], None, event


def at(*times):
    """Scenes at these times."""
    return [scene({"ev": "end", "n": n, "t": t}) for n, t in enumerate(times)]


def steps(scenes, longest=0):
    return [step for step, scene in chat.cap_silence(scenes, longest)]


def times_of(timed, speed=1.0, printing=0.0):
    """When each event comes by a clock of its own, if printing each takes so long."""
    clock, found = Clock(), []
    for _ in chat.pace(timed, speed, clock, clock.sleep):
        found.append(clock.passed)
        clock.now += printing
    return found


# --- silence ---


def test_the_first_event_comes_at_once():
    assert steps(at(500.0, 501.0)) == [0, 1]


def test_events_come_as_far_apart_as_they_were():
    assert steps(at(0.0, 1.5, 1.5, 4.0)) == [0, 1.5, 0, 2.5]


def test_silence_is_no_longer_than_asked_for():
    assert steps(at(0.0, 1.5, 100.0, 102.0, 104.5), 2.0) == [0, 1.5, 2.0, 2.0, 2.0]


def test_a_longest_silence_of_0_caps_nothing():
    assert steps(at(0.0, 10_000.0), 0) == [0, 10_000.0]


def test_no_event_comes_before_another_when_time_falls():
    assert steps(at(0.0, 10.0, 4.0, 9.0, 11.0)) == [0, 10.0, 0, 0, 1.0]


def test_the_scenes_are_passed_on_as_they_are():
    scenes = list(map(scene, EVENTS))
    assert [scene for step, scene in chat.cap_silence(scenes, 1.0)] == scenes


def test_nothing_comes_of_nothing():
    assert list(chat.pace(chat.cap_silence([], 1.0), 1.0)) == []


def test_events_are_read_only_when_their_time_comes():
    scenes, clock = map(scene, EVENTS), Clock()
    playing = chat.pace(chat.cap_silence(scenes, 1.0), 1.0, clock, clock.sleep)
    assert (next(playing), next(scenes)) == (scene(EVENTS[0]), scene(EVENTS[1]))


# --- pace ---


def timed(*steps):
    return list(zip(steps, at(*range(len(steps)))))


def test_each_event_comes_when_its_time_has_come():
    assert times_of(timed(0, 1.5, 0, 2.5)) == [0, 1.5, 1.5, 4.0]


@pytest.mark.parametrize("speed", [2.0, 0.5, 8.0])
def test_everything_comes_as_many_times_faster_as_asked_for(speed):
    assert times_of(timed(0, 1.0, 2.0), speed) == [0, 1 / speed, 3 / speed]


def test_what_printing_took_is_made_up_for():
    assert times_of(timed(0, 1, 1, 1), printing=0.25) == [0, 1, 2, 3]


def test_after_slow_printing_nothing_waits_until_all_is_made_up_for():
    clock, found = Clock(), []
    for _, _, event in chat.pace(timed(0, 1, 1, 1, 1, 1), 1.0, clock, clock.sleep):
        found.append(clock.passed)
        if event["n"] == 1:
            clock.now += 2.5  # a terminal that stood still
    assert found == [0, 1, 3.5, 3.5, 4, 5]


def test_what_is_due_now_does_not_sleep():
    clock = Clock()
    list(chat.pace(timed(0, 0, 0), 1.0, clock, clock.sleep))
    assert clock.slept == []


def test_a_clock_that_moves_on_while_it_is_read_does_no_harm():
    class Running(Clock):
        def __call__(self):
            self.now += 0.01
            return self.now

    clock = Running()
    events = list(chat.pace(timed(*[0.003 * step for step in range(100)]), 1.0, clock, clock.sleep))
    assert len(events) == 100 and clock.slept


@pytest.mark.parametrize("step, speed", [(1e11, 1.0), (2.0, 1e-300), (2.0, 5e-324)])
def test_a_wait_longer_than_any_system_can_sleep_is_no_error(step, speed):
    clock = Clock()

    def sleep(seconds):
        clock.sleep(seconds)
        if len(clock.slept) == 3:
            raise TimeoutError  # the test has seen enough

    with contextlib.suppress(TimeoutError):
        list(chat.pace(timed(0, step), speed, clock, sleep))
    assert clock.slept


# --- the player ---


def played(path, **options):
    out = io.StringIO()
    chat.replay(str(path), out=out, **options)
    return out.getvalue()


def rendered(events, session=SESSION, viewer=None):
    return "".join(chat.plain(chat.render(event, session, viewer)) + "\n" for event in events)


def test_a_replay_shows_what_was_seen(recorded, clock):
    assert played(recorded) == rendered(EVENTS) == SHOWN


def test_a_replay_at_once_shows_the_same(recorded, clock):
    assert played(recorded, instant=True) == SHOWN
    assert clock.slept == []


def test_a_replay_takes_as_long_as_the_session_when_nothing_is_cut(recorded, clock):
    played(recorded, max_gap=0)
    assert clock.passed == 65.5


def test_a_replay_cuts_silence_to_two_seconds(recorded, clock):
    played(recorded)
    assert clock.passed == 1.0 + 0.5 + 2.0 + 2.0


def test_a_replay_goes_as_fast_as_asked_for(recorded, clock):
    played(recorded, speed=4, max_gap=10)
    assert clock.passed == (1.0 + 0.5 + 10.0 + 4.0) / 4


def test_each_event_is_shown_before_the_wait_for_the_next(recorded, clock):
    class Screen(io.StringIO):
        def write(self, text):
            written.append((clock.passed, text.count("\n")))
            return super().write(text)

    written = []
    chat.replay(str(recorded), out=Screen())
    assert written == [(0, 1), (1.0, 1), (1.5, 2), (3.5, 1), (5.5, 1)]


def test_each_event_leaves_the_buffer_before_the_wait_for_the_next(recorded, monkeypatch):
    class Screen(io.StringIO):
        def flush(self):
            nonlocal flushed
            flushed = self.getvalue()

    screen, clock, flushed = Screen(), Clock(), ""

    def sleep(seconds):
        assert flushed == screen.getvalue()
        clock.sleep(seconds)

    monkeypatch.setattr(chat, "pace", functools.partial(chat.pace, clock=clock, sleep=sleep))
    chat.replay(str(recorded), out=screen)
    assert len(clock.slept) == 4


def test_what_is_damaged_or_missing_is_named_in_its_place(tmp_path):
    path = tmp_path / "lab.jsonl"
    path.write_bytes(chat.encode(SESSION) + b"garbage\n" + chat.encode(EVENTS[3]))
    shown = played(path, instant=True).splitlines()
    assert shown[1] == "12:00 -- line 2 is damaged and was passed over"
    assert shown[2] == "12:01 -- 1 line was not recorded here"
    assert shown[3] == "12:01 -- юля left"


def test_an_event_that_nobody_knows_is_shown_plainly(tmp_path):
    path = put(tmp_path / "lab.jsonl", [SESSION, {"ev": "poll", "n": 1, "t": 60.0, "question": "чай?"}])
    assert played(path, instant=True).endswith('12:01 -- {"ev":"poll","n":1,"t":60.0,"question":"чай?"}\n')


def test_what_has_nothing_to_show_takes_no_row(tmp_path):
    path = put(tmp_path / "lab.jsonl", [*EVENTS[:4], {"re": "pong", "t": 62.0}, EVENTS[4]])
    assert played(path, instant=True) == SHOWN


def test_nothing_in_a_session_is_obeyed_by_the_terminal(tmp_path):
    path = put(tmp_path / "lab.jsonl", [{**SESSION, "room": "\x1b]0;x\x07"},
                                        {**EVENTS[2], "text": "\x1b[2J\x9b2J\r"}])
    assert not set(played(path, instant=True)) & set("\x1b\x07\x9b\r")


OWN = [
    {"re": "welcome", "t": 3.0, "you": "bob", "n": 2, "people": ["юля", "bob"]},
    *EVENTS[:3],
    {"ev": "join", "n": 3, "t": 3.0, "who": "bob", "from": 0},
    {"re": "tell", "t": 4.0, "who": "юля", "to": "bob", "text": "psst"},
    {"ev": "nick", "n": 4, "t": 5.0, "who": "bob", "name": "rob"},
    {"ev": "nick", "n": 9, "t": 5.0, "who": "юля", "name": "ann"},
    {"re": "tell", "t": 6.0, "who": "rob", "to": "ann", "text": "yes?"},
    {"re": "tell", "t": 6.5, "who": "ann", "to": "bob", "text": "another bob"},
    {"re": "error", "t": 7.0, "code": "nobody", "text": "nobody here is called юля"},
]
OWN_SHOWN = """\
12:00 -- you are bob; 2 here: юля, bob
12:00 -- room лаб, open since 2026-11-20 12:00
12:00 -- юля joined
12:00 юля: привет
      │ мир
12:00 -- bob joined
12:00 юля → you (private): psst
12:00 -- bob is now rob
12:00 -- юля is now ann
12:00 you → ann (private): yes?
12:00 ann → bob (private): another bob
12:00 !! nobody here is called юля
"""


def test_ones_own_recording_is_shown_as_one_saw_it(tmp_path):
    assert played(put(tmp_path / "own.jsonl", OWN), instant=True) == OWN_SHOWN


def test_the_history_in_ones_own_recording_comes_at_once(tmp_path, clock):
    played(put(tmp_path / "own.jsonl", OWN), max_gap=0)
    assert clock.passed == 7.0 - 3.0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_terminal(path, monkeypatch, **environment):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    screen = Terminal()
    chat.replay(str(path), instant=True, out=screen)
    return screen.getvalue()


@pytest.mark.skipif(sys.platform == "win32", reason="asks the real console there")
def test_a_terminal_gets_colours(recorded, monkeypatch):
    shown = on_terminal(recorded, monkeypatch, TERM="xterm")
    assert "\x1b[" in shown and re.sub("\x1b\\[[0-9;]*m", "", shown) == SHOWN


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_whoever_wants_no_colours_gets_none(recorded, monkeypatch, environment):
    assert on_terminal(recorded, monkeypatch, **environment) == SHOWN


# --- the command ---


def command(*arguments):
    """What `replay` on the command line returns, in this process."""
    return chat.main(["replay", *map(str, arguments)])


def environment(encoding="utf-8"):
    """This machine's environment, but for what would change how Python writes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return dict(kept, PYTHONIOENCODING=encoding)


def run(*arguments, encoding="utf-8", stdout=subprocess.PIPE, **settings):
    """`replay` in a process of its own: exit code, output, and what it complained of."""
    done = subprocess.run([*CHAT, "replay", *map(str, arguments)], stdout=stdout, stderr=subprocess.PIPE,
                          env=environment(encoding), timeout=60, **settings)
    out, complaint = (done.stdout or b"").decode(encoding), done.stderr.decode(encoding)
    return done.returncode, out.replace("\r\n", "\n"), complaint.replace("\r\n", "\n")


def test_the_command_shows_the_session(recorded):
    assert run(recorded, "--instant") == (0, SHOWN, "")


def test_the_command_waits_as_replay_does(recorded, clock, capsys):
    assert command(recorded) == 0
    assert clock.passed == 1.0 + 0.5 + 2.0 + 2.0
    assert capsys.readouterr().out == SHOWN


@pytest.mark.parametrize("options, seconds", [
    (["--speed", "2"], 5.5 / 2), (["--speed", "0.5"], 11), (["--max-gap", "1"], 3.5),
    (["--max-gap", "0"], 65.5), (["--max-gap", "10", "--speed", "1e3"], 0.0155), (["--instant"], 0),
    (["--instant", "--speed", "0.1"], 0)], ids=str)
def test_the_options_change_the_time_it_takes(recorded, clock, capsys, options, seconds):
    assert command(recorded, *options) == 0
    assert clock.passed == pytest.approx(seconds)


@pytest.mark.parametrize("options", [
    ["--speed", "0"], ["--speed", "-1"], ["--speed", "fast"], ["--speed", "nan"], ["--speed", "inf"],
    ["--speed", ""], ["--speed", "1e999"], ["--speed"], ["--max-gap", "-1"], ["--max-gap", "nan"],
    ["--max-gap", "inf"], ["--max-gap", "2s"], ["--max-gap"], ["--instant=1"], ["--loud"], ["another.jsonl"]],
                         ids=str)
def test_wrong_options_are_wrong_usage(recorded, capsys, options):
    with pytest.raises(SystemExit) as caught:
        command(recorded, *options)
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert "usage: " in err and "error: " in err


@pytest.mark.parametrize("options, words", [(["--speed", "0"], "a speed is more than 0"),
                                            (["--speed", "fast"], "'fast' is not a number"),
                                            (["--max-gap", "-1"], "'-1' is not a number of seconds")],
                         ids=str)
def test_what_is_wrong_with_an_option_is_said(recorded, capsys, options, words):
    with pytest.raises(SystemExit):
        command(recorded, *options)
    assert words in capsys.readouterr().err


def test_replay_without_a_file_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 2 and "FILE" in capsys.readouterr().err


def fails(capsys, *arguments):
    """The one sentence with which this fails."""
    assert command(*arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith(".\n")
    return err


def test_a_missing_file_is_told_in_one_sentence(tmp_path, capsys):
    assert "cannot read" in fails(capsys, tmp_path / "nothing.jsonl")


def test_a_folder_is_told_in_one_sentence(tmp_path, capsys):
    assert "cannot read" in fails(capsys, tmp_path)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that opens and cannot be read")
def test_a_file_that_fails_while_it_is_read_is_told_in_one_sentence():
    code, out, complaint = run("/proc/self/mem", "--instant")
    assert (code, out, complaint.count("\n")) == (1, "", 1)
    assert "cannot read /proc/self/mem" in complaint


@pytest.mark.parametrize("content", [b"", b"\n", b"milk\nbread\n", bytes(1000), bytes(range(256)) * 9,
                                     b'{"a":1}\n', chat.encode(EVENTS[2]), chat.encode(SESSION)[:-1]],
                         ids=lambda b: str(b[:12]))
@pytest.mark.parametrize("options", [[], ["--instant"]], ids=str)
def test_what_is_no_session_is_told_in_one_sentence(tmp_path, capsys, content, options):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    assert "is not a recorded session" in fails(capsys, path, *options)


def test_a_session_of_a_newer_chat_is_told_in_one_sentence(tmp_path, capsys):
    assert "newer chat" in fails(capsys, put(tmp_path / "new.jsonl", [{**SESSION, "v": 2}, *EVENTS[1:]]))


def test_ctrl_c_ends_a_replay_quietly(recorded, monkeypatch, capsys):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "pace", functools.partial(chat.pace, sleep=interrupted))
    assert command(recorded) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (SHOWN[:SHOWN.index("\n") + 1], "")


def test_a_reader_that_has_enough_ends_a_replay_quietly(tmp_path):
    many = [{**EVENTS[2], "n": n, "t": 1.0} for n in range(1, 10_000)]  # more than a pipe holds
    path = put(tmp_path / "long.jsonl", [SESSION, *many])
    playing = subprocess.Popen([*CHAT, "replay", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=environment())
    with playing:
        assert b"12:00 -- room" in playing.stdout.readline()
        playing.stdout.close()
        complaint = playing.stderr.read()
        assert (playing.wait(60), complaint) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "koi8-r", "cp437"])
def test_an_output_without_all_characters_gets_those_it_has(recorded, encoding):
    shown = SHOWN.encode(encoding, "replace").decode(encoding)
    assert run(recorded, "--instant", encoding=encoding) == (0, shown, "")


def test_a_file_name_that_cannot_be_printed_is_no_traceback(tmp_path):
    code, out, complaint = run("нет такого.jsonl", encoding="ascii", cwd=tmp_path)
    assert (code, out, complaint.count("\n")) == (1, "", 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_told_in_one_sentence(recorded):
    with open("/dev/full", "wb") as full:
        code, out, complaint = run(recorded, "--instant", stdout=full)
    assert (code, complaint.count("\n")) == (1, 1), complaint
    assert "No space left" in complaint


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="needs /dev/stdin")
@pytest.mark.parametrize("events, shown", [(EVENTS, SHOWN), (OWN, OWN_SHOWN)], ids=["server's", "own"])
def test_a_session_may_come_through_a_pipe(events, shown):
    data = b"".join(map(chat.encode, events))
    assert run("/dev/stdin", "--instant", input=data) == (0, shown, "")
