"""The screens of server and client: commands, completion, printing in batches, and both input lines on terminals."""
import contextlib
import io
import os
import re
import sys
import threading

import pytest

import chat
import helpers
import terminal
from terminal import needs_terminal

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


# --- a pipe ---


class Tty(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_a_pipe_writes_a_batch_as_one_write():
    writes = []
    stream = io.StringIO()
    stream.write = writes.append
    chat.Pipe(stream).show([[("system", "one")], chat.Unrendered(3, lambda: [("text", "two"), ("me", "three")]), []])
    assert writes == ["one\ntwothree\n"]


@pytest.mark.parametrize("stream, settings, printed", [
    pytest.param(Tty, {}, "\x1b[31mno\x1b[0m\n", marks=pytest.mark.skipif(os.name != "posix", reason="Unix only")),
    (io.StringIO, {}, "no\n"), (Tty, {"TERM": "dumb"}, "no\n"), (Tty, {"NO_COLOR": "1"}, "no\n"),
])
def test_a_pipe_has_colours_only_where_a_person_wants_them(monkeypatch, stream, settings, printed):
    for name, value in {"TERM": "xterm", "NO_COLOR": "", **settings}.items():
        monkeypatch.setenv(name, value)
    stream = stream()
    chat.Pipe(stream).show([[("error", "no")]])
    assert stream.getvalue() == printed


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


# --- what waits for a terminal ---


@pytest.fixture
def backlog(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    return chat.Backlog(" (they are in the recording)")


def lines(*texts):
    return [[("text", text)] for text in texts]


def numbered(count):
    return lines(*map(str, range(count)))


def taken(backlog):
    """The rows of all batches that there are."""
    batches = iter(lambda: backlog.take() if backlog.waiting else None, None)
    return "".join(batches).split("\r\n")[:-1]


def test_a_batch_is_one_text_with_the_line_ends_of_a_raw_terminal(backlog):
    backlog.put(lines("one", "two\n      │ more"))
    assert backlog.take() == "one\r\ntwo\r\n      │ more\r\n"


def test_the_bell_rings_once_for_a_batch(backlog):
    backlog.put(lines("one"), bell=True)
    backlog.put(lines("two"))
    assert backlog.take() == "one\r\ntwo\r\n\a"
    backlog.put(lines("three"))
    assert backlog.take() == "three\r\n"


@pytest.mark.parametrize("too_many", [0, 1, 4213])
def test_a_flood_keeps_the_newest_thousand_lines_in_order_and_counts_the_rest_once(backlog, too_many):
    backlog.put(numbered(chat.SCREEN_LINES + too_many))
    told = [f"\x1b[2m… {too_many:,} lines skipped (they are in the recording)\x1b[0m"] if too_many else []
    assert taken(backlog) == told + [str(number) for number in range(too_many, chat.SCREEN_LINES + too_many)]
    backlog.put(lines("later"))
    assert taken(backlog) == ["later"]


def test_what_somebody_waits_for_is_not_skipped_with_the_rest(backlog):
    def dear(text):
        return chat.Unrendered(len(text), lambda: [("text", text)], True)

    backlog.put([dear("mine")] + numbered(10) + [dear(f"for me {number}") for number in range(chat.DEAR_LINES)])
    backlog.put(numbered(chat.SCREEN_LINES))
    first, *rest = taken(backlog)
    assert "… 11 lines skipped" in first
    assert rest[:chat.DEAR_LINES + 1] == [*(f"for me {number}" for number in range(chat.DEAR_LINES)), "0"]


def test_few_but_huge_lines_are_a_flood_too(backlog):
    backlog.put(lines(*["x" * 4000] * 100))
    first, *kept = taken(backlog)
    assert 0 < len(kept) * 4000 <= chat.SCREEN_CHARACTERS < (len(kept) + 1) * 4000
    assert f"… {100 - len(kept)} lines skipped" in first


def test_what_is_skipped_is_never_turned_into_pieces(backlog):
    backlog.put([chat.Unrendered(1, None)] * 10 + numbered(chat.SCREEN_LINES))
    assert "… 10 lines skipped" in taken(backlog)[0]


def test_batches_fit_the_terminal(backlog):
    def batch():
        backlog.put(lines(*["x" * 98] * 900))
        size = len(backlog.take())
        backlog.waiting.clear()
        return size

    first = batch()
    backlog.adapt(first, 1.0)  # held up
    assert batch() <= first // 2 + 100
    for _ in range(1000):
        backlog.adapt(1 << 20, 0.0)
    assert first < batch() <= chat.SCREEN_BATCH[1] + 100


def test_no_color_takes_the_colours_from_the_lines(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    backlog = chat.Backlog()
    backlog.put([[("error", "no")]])
    assert backlog.take() == "no\r\n"


# --- a screen before its input line is up and after, without a terminal ---


class Writes(DummyOutput):
    """An output that keeps what is written."""

    def __init__(self):
        self.writes = []

    def write_raw(self, data):
        self.writes.append(data)


@pytest.fixture
def screen():
    """A screen that is not up yet; `.written` is what it wrote."""
    output = Writes()
    with create_app_session(input=DummyInput(), output=output):
        screen = chat.Screen(lambda text: None, lambda: "> ", lambda: "", lambda before: (0, []), {})
        screen.written = output.writes
        yield screen


def test_a_screen_whose_input_line_is_gone_prints_at_once_what_waited_and_what_comes(screen):
    screen.show(lines("one"), bell=True)
    assert screen.written == []
    screen.over = True
    screen.show(lines("two"))
    screen.show(lines("three"))
    assert screen.written == ["one\r\ntwo\r\n\a", "three\r\n"]


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


# --- on a terminal: the input line of a server and that of a client ---


@pytest.fixture(params=["console", "person"])
def opened(request, tmp_path):
    """A function that opens the server's terminal or somebody's, with `.eve` in the same room."""
    with contextlib.ExitStack() as stack:
        def open_one(*options, **settings):
            if request.param == "console":
                screen = stack.enter_context(terminal.Console(tmp_path, "--room", "lab", *options, **settings))
                server, screen.commands = screen, chat.CONSOLE_COMMANDS
            else:
                server = stack.enter_context(helpers.serving())
            eve = stack.enter_context(helpers.joined(server, "eve"))
            if request.param == "person":
                screen = stack.enter_context(terminal.Person(tmp_path, server, *options, columns=120, **settings))
                screen.commands = chat.COMMANDS
            screen.see("eve")
            eve.settle()
            screen.eve = eve
            return screen

        yield open_one


@pytest.fixture
def line(opened):
    return opened()


def either(*cases):
    """Cases of which each begins with the terminal that it is for."""
    return pytest.mark.parametrize("opened, typed, answer", cases, indirect=["opened"])


def see_typed(line, typed):
    line.see_prompt(f"{line.prompt} {typed}".rstrip())


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")


@needs_terminal
@pytest.mark.parametrize("options, env, coloured", [([], {}, True), (["--no-color"], {}, False), ([], {"NO_COLOR": "1"}, False)],
                         ids=["colours", "option", "variable"])
def test_no_colours_when_none_are_wanted(opened, options, env, coloured):
    line = opened(*options, env=env)
    line.eve.say("hello bob")
    line.see("eve: hello bob$")
    line.enter("hi")
    line.see(f"{line.name}: hi$")
    assert bool(COLOUR.search(line.written())) is coloured


@needs_terminal
def test_what_is_typed_stays_whole_below_what_arrives_in_a_window_of_any_size(line):
    line.type("half a li")
    see_typed(line, "half a li")
    for columns in (60, 120, 80):
        line.resize(columns)
        line.eve.say(f"привет 😀 {columns}")
        line.see(f"eve: привет 😀 {columns}$")
        see_typed(line, "half a li")
        assert sum("half a li" in row for row in line.rows()) == 1
    line.type("ne\r")
    line.see(rf"^\d\d:\d\d {line.name}: half a line$")
    see_typed(line, "")
    line.eve.expect(ev="say", who=line.name, text="half a line")


@needs_terminal
def test_the_help_lists_every_command(line):
    line.type("/help\r")
    for name, command in line.commands.items():
        line.see(re.escape(f"/{name} {command.usage}".rstrip()))
    see_typed(line, "")


@needs_terminal
@pytest.mark.parametrize("keys", ["\x03", "\x04", "/quit\r"], ids=["Ctrl+C", "Ctrl+D", "/quit"])
def test_leaving(line, keys):
    line.type(keys)
    line.eve.expect(**{"ev": "end"} if line.name == "server" else {"ev": "leave", "why": "left"})
    assert line.exit_code() == 0
    assert "Traceback" not in line.text()


@needs_terminal
@either(
    *[("console", typed, answer) for typed, answer in [
        ("/kik eve", "there is no command /kik; did you mean /kick?"),
        ("//hi", "there is no command //hi; /help lists what there is"),
        ("/kick", "usage: /kick NAME [minutes] [reason]"),
        ("/kick nobody", "nobody here is called nobody"),
        ("/mute nobody", "nobody here is called nobody"),
        ("/mute eve soon", "minutes are a whole number; 0 ends it"),
        ("/mute eve -1", "minutes are a whole number; 0 ends it"),
        ("/mute eve 10000", "minutes are a whole number; 0 ends it"),
        ("/mute eve ²", "minutes are a whole number; 0 ends it"),
        ("/log maybe", "it can be: on off"),
        ("/log off", "recording is off already"),
        ("/mark", "usage: /mark TEXT"),
        ("/say", "usage: /say TEXT")]],
    *[("person", typed, answer) for typed, answer in [
        ("/nonsense", "there is no command /nonsense; /help lists what there is"),
        ("/nik rob", "there is no command /nik; did you mean /nick?"),
        ("/tel eve hi", "there is no command /tel; did you mean /tell?"),
        ("/tell eve", "usage: /tell NAME TEXT"),
        ("/tell nobody hi", "nobody here is called nobody"),
        ("/nick eve", "the name eve is taken; eve-2 is free"),
        ("/nick", "usage: /nick NAME"),
        ("/r hello?", "nobody has told you anything yet"),
        ("/times never", "it can be: short long off")]])
def test_a_mistake_is_answered_stays_to_be_corrected_and_goes_to_nobody(line, typed, answer):
    line.type(typed + "\r")
    line.see(re.escape(f"!! {answer}") + "$")
    see_typed(line, typed)
    line.type("\x15and on\r")
    line.eve.expect_next(ev="say", who=line.name, text="and on")


@needs_terminal
def test_a_text_over_the_limit_is_refused_here_with_its_length(line):
    line.type("\x1b[200~" + "x" * 4001 + "\x1b[201~\r")
    told = "!! a message has at most 4,000 characters, this one has 4,001"
    line.wait(lambda: told in line.text(), told)  # above an input line of many rows
    line.type("\x7f\r")  # it has stayed: one less is enough
    line.eve.expect_next(ev="say", text="x" * 4000)


@needs_terminal
@either(
    ("console", "/ki\t", "/kick"), ("console", "/kick ev\tsoftly", "/kick eve softly"), ("console", "ev\thi", "eve: hi"),
    *[("person", keys, line) for keys, line in [
        ("/qui\t", "/qui"), ("/quit\t", "/quit"), ("/wh\t", "/who"), ("ev\t", "eve:"), ("EV\thi", "eve: hi"),
        ("/tell ev\tpsst", "/tell eve psst"), ("hey @ev\tyou", "hey @eve you"), ("so ev\tis", "so eve is"),
        ("@e\t", "@eve"), ("nobo\t", "nobo")]])
def test_tab_completes_commands_and_names(line, typed, answer):
    line.type(typed)
    see_typed(line, answer)


@needs_terminal
def test_arrow_up_brings_back_what_was_entered(line):
    line.enter("first")
    line.enter("second")
    line.see(f"{line.name}: second$")
    for keys, typed in (("\x1b[A", "second"), ("\x1b[A", "first"), ("!", "first!")):
        line.type(keys)
        see_typed(line, typed)
    line.type("\r")
    line.eve.expect(text="first!")


@needs_terminal
def test_several_pasted_rows_are_one_message_sent_once(line):
    line.type("\x1b[200~one\rtwo\r\nthree\n\x1b[201~")
    line.see(r"^\.\.\. three$")
    line.eve.say("nothing was sent by the paste")
    line.see("by the paste$")
    line.type("\r")
    line.eve.expect_next(text="nothing was sent by the paste")
    line.eve.expect_next(ev="say", who=line.name, text="one\ntwo\nthree")
    line.enter("after")
    line.eve.expect_next(ev="say", text="after")


@needs_terminal
def test_alt_enter_begins_a_new_row(line):
    line.type("one\x1b\rtwo\r")
    assert line.eve.expect(ev="say")["text"] == "one\ntwo"


@needs_terminal
def test_empty_lines_say_nothing(line):
    line.type("\r   \r\x15\x1b\r\x1b\r\rand on\r")
    assert line.eve.expect_next(ev="say")["text"].strip() == "and on"


@needs_terminal
def test_nothing_hostile_reaches_the_terminal(line):
    line.eve.say("\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\rfake", "line\n12:00 bob: I agree\n\n      │ four")
    line.see("four$")
    rows = line.rows()
    first = next(number for number, row in enumerate(rows) if row.endswith("eve: line"))
    assert rows[first + 1:first + 4] == ["      │ 12:00 bob: I agree", "      │", "      │       │ four"]
    raw = line.written()
    assert "owned\x07" not in raw and "\x1b]0;" not in raw and "\x1b[2J" not in raw
    assert not set(raw) & set("\x9b\u202e")
