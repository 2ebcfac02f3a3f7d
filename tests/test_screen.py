"""The pieces that every input line stands on: slash commands, their help, completion, printing in batches."""
import io
import os
import sys
import threading

import pytest

import chat

prompt_toolkit = pytest.importorskip("prompt_toolkit")
from prompt_toolkit.application import create_app_session  # noqa: E402
from prompt_toolkit.input import DummyInput  # noqa: E402
from prompt_toolkit.output import DummyOutput  # noqa: E402

# --- commands ---


@pytest.fixture
def called():
    """What the commands below were given."""
    return []


COMMANDS = {
    "help": chat.Command("", "this list", lambda called: called.append(("help",))),
    "say": chat.Command("TEXT", "say it", lambda called, text: called.append(("say", text))),
    "tell": chat.Command("NAME TEXT", "say it to one", lambda called, to, text: called.append(("tell", to, text))),
    "kick": chat.Command("NAME [reason]", "remove somebody", lambda called, *words: called.append(("kick", *words))),
}


@pytest.mark.parametrize("line, call", [
    ("/help", ("help",)),
    ("/help me please", ("help",)),
    ("/say hello  to   all", ("say", "hello  to   all")),
    ("/say two\nrows", ("say", "two\nrows")),
    ("/tell eve come here", ("tell", "eve", "come here")),
    ("/tell   eve   come", ("tell", "eve", "come")),
    ("/kick eve", ("kick", "eve")),
    ("/kick eve too loud", ("kick", "eve", "too loud")),
])
def test_a_command_is_given_the_words_that_its_usage_names(called, line, call):
    chat.run_command(COMMANDS, called, line)
    assert called == [call]


@pytest.mark.parametrize("line, answer", [
    ("/say", "usage: /say TEXT"),
    ("/say  ", "usage: /say TEXT"),
    ("/tell eve", "usage: /tell NAME TEXT"),
    ("/kick", "usage: /kick NAME [reason]"),
    ("/tel eve hi", "there is no command /tel; did you mean /tell?"),
    ("/hlep", "there is no command /hlep; did you mean /help?"),
    ("/xyzzy", "there is no command /xyzzy; /help lists what there is"),
    ("/", "there is no command /; /help lists what there is"),
    ("/ say hi", "there is no command /; /help lists what there is"),
])
def test_a_wrong_command_is_answered_and_runs_nothing(called, line, answer):
    with pytest.raises(chat.ChatError) as caught:
        chat.run_command(COMMANDS, called, line)
    assert str(caught.value) == answer
    assert called == []


def test_what_is_quoted_back_cannot_harm_the_terminal(called):
    with pytest.raises(chat.ChatError) as caught:
        chat.run_command(COMMANDS, called, "/\x1b[2J\u202e" + "x" * 1000)
    assert "\x1b" not in str(caught.value) and "\u202e" not in str(caught.value)
    assert len(str(caught.value)) < 100


def test_the_help_has_a_line_for_each_command_and_their_words_stand_in_one_column():
    lines = [chat.plain(pieces) for pieces in chat.help_lines(COMMANDS)]
    assert [line.split()[1] for line in lines] == [f"/{name}" for name in COMMANDS]
    columns = {line.index(command.help) for line, command in zip(lines, COMMANDS.values())}
    assert len(columns) == 1
    assert all(command.usage in line for line, command in zip(lines, COMMANDS.values()))


# --- what Tab makes of it ---


@pytest.mark.parametrize("before, words", [
    ("/te", ["/tell "]),
    ("/", ["/help ", "/kick ", "/say ", "/tell "]),
    ("/nothing", []),
    ("/TE", ["/tell "]),
    ("e", ["Edda: ", "eve: "]),
    ("ev", ["eve: "]),
    ("EV", ["eve: "]),
    ("/tell ev", ["eve "]),
    ("hello ev", ["eve "]),
    ("@ev", ["@eve "]),
    ("hello @e", ["@Edda ", "@eve "]),
    ("ю", ["Юля: "]),
    ("hello nobody", []),
])
def test_completion(before, words):
    length, found = chat.complete(before, COMMANDS, ["eve", "Edda", "Юля"])
    assert found == words
    assert length == len(before.rpartition(" ")[2])


# --- printing ---


class Tty(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_a_printer_writes_a_batch_as_one_write():
    writes = []
    stream = io.StringIO()
    stream.write = writes.append
    chat.Pipe(stream).show([[("system", "one")], [("text", "two"), ("me", "three")]])
    assert writes == ["one\ntwothree\n"]


def test_a_printer_has_colours_only_where_a_person_wants_them(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def printed(stream):
        chat.Pipe(stream).show([[("error", "no")]])
        return stream.getvalue()

    if os.name == "posix":
        assert printed(Tty()) == "\x1b[31mno\x1b[0m\n"
    assert printed(io.StringIO()) == "no\n"
    monkeypatch.setenv("TERM", "dumb")
    assert printed(Tty()) == "no\n"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed(Tty()) == "no\n"


def test_a_process_without_a_stdout_prints_nothing_and_lives():
    chat.Pipe(None).show([[("text", "nobody hears")]])
    assert not chat.is_terminal(None)


def test_only_two_terminals_together_have_a_person(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert chat.is_terminal(Tty(), Tty())
    assert not chat.is_terminal(Tty(), io.StringIO())
    assert not chat.is_terminal(io.StringIO(), Tty())
    monkeypatch.setenv("TERM", "dumb")
    assert not chat.is_terminal(Tty(), Tty())


# --- the screen's queue: before its input line is up and after, without a terminal ---


class Writes(DummyOutput):
    """An output that keeps what is written."""

    def __init__(self):
        self.writes = []

    def write_raw(self, data):
        self.writes.append(data)


@pytest.fixture
def screen(monkeypatch):
    """A screen whose input line is gone already, so that it prints at once; `.written` is what it wrote."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    output = Writes()
    with create_app_session(input=DummyInput(), output=output):
        screen = chat.Screen(lambda text: None, lambda: "> ", lambda: "", lambda before: (0, []), {})
        screen.written = output.writes
        yield screen


def lines(*texts):
    return [[("text", text)] for text in texts]


def numbered(count):
    return lines(*map(str, range(count)))


def test_a_batch_is_one_write_with_the_line_ends_of_a_raw_terminal(screen):
    screen.over = True
    screen.show(lines("one", "two\n      │ more"))
    assert screen.written == ["one\r\ntwo\r\n      │ more\r\n"]


def test_the_bell_rings_once_for_a_batch(screen):
    screen.show(lines("one"), bell=True)
    screen.show(lines("two"))
    screen.over = True
    screen.show(lines("three"))
    screen.show(lines("four"))
    assert "".join(screen.written) == "one\r\ntwo\r\nthree\r\n\afour\r\n"


def test_what_waits_is_printed_in_order_and_whole(screen):
    screen.show(numbered(chat.SCREEN_LINES))
    screen.over = True
    screen.show([])
    assert "".join(screen.written).split() == [str(number) for number in range(chat.SCREEN_LINES)]


@pytest.mark.parametrize("too_many", [1, 4213])
def test_a_flood_keeps_the_newest_thousand_lines_and_counts_the_rest(screen, too_many):
    screen.show(numbered(chat.SCREEN_LINES + too_many))
    screen.over = True
    screen.show([])
    first, *rest = "".join(screen.written).split("\r\n")[:-1]
    assert first == f"\x1b[2m… {too_many:,} lines skipped\x1b[0m"
    assert rest == [str(number) for number in range(too_many, chat.SCREEN_LINES + too_many)]


def test_what_somebody_waits_for_is_not_skipped_with_the_rest(screen):
    def dear(text):
        return chat.Unrendered(len(text), lambda: [("text", text)], True)

    screen.show([dear("mine")] + numbered(10) + [dear(f"for me {number}") for number in range(chat.DEAR_LINES)])
    screen.show(numbered(chat.SCREEN_LINES))
    screen.over = True
    screen.show([])
    first, *rest = "".join(screen.written).split("\r\n")[:-1]
    assert first == "\x1b[2m… 11 lines skipped\x1b[0m"
    assert rest[:chat.DEAR_LINES + 1] == [*(f"for me {number}" for number in range(chat.DEAR_LINES)), "0"]


def test_the_count_of_skipped_lines_is_told_once_and_with_its_note(screen):
    screen.backlog.skip_note = " (they are in the recording)"
    screen.show(numbered(chat.SCREEN_LINES + 5))
    screen.over = True
    screen.show([])
    screen.show(lines("later"))
    assert "".join(screen.written).count("skipped") == 1
    assert screen.written[0].startswith("\x1b[2m… 5 lines skipped (they are in the recording)")


def test_few_but_huge_lines_are_a_flood_too(screen):
    screen.show(lines(*["x" * 4000] * 100))
    screen.over = True
    screen.show([])
    printed = "".join(screen.written)
    kept = printed.count("x" * 4000)
    assert 0 < kept * 4002 <= chat.SCREEN_CHARACTERS < (kept + 1) * 4002
    assert f"… {100 - kept} lines skipped" in printed


def test_no_color_takes_the_colours_from_the_lines(screen, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    bare = chat.Screen(lambda text: None, lambda: "> ", lambda: "", lambda before: (0, []), {})
    bare.over = True
    bare.show([[("error", "no")]])
    assert screen.written == ["no\r\n"]


def test_every_function_of_a_screen_may_be_called_before_its_input_line_is_up(screen):
    thread = threading.Thread(target=lambda: (screen.refresh(), screen.refresh(1.0), screen.give_back("x")))
    thread.start()
    thread.join()
    screen.end()
    assert screen.ending and screen.written == []


def test_without_prompt_toolkit_there_is_a_hint_and_no_screen(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    monkeypatch.setattr(chat, "is_terminal", lambda *streams: True)
    assert chat.open_screen(None, None, None, None, {}) is None
    assert "prompt_toolkit is missing, so the input line is a plain one" in capsys.readouterr().out
