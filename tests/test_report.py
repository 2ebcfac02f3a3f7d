"""What is made of a recording: transcript, cast, pictures, and the folder with a report."""
import io
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as xml

import pytest

import browser
import chat
import helpers
import terminal
from helpers import SESSION, put, session

CHAT = [sys.executable, chat.__file__]
KINDS = ("txt", "cast", "svg", "html")
SVG = "{http://www.w3.org/2000/svg}"


def join(who, t, first=1):
    return "join", t, {"who": who, "from": first}


def say(who, t, text):
    return "say", t, {"who": who, "text": text}


def made(path, kind, *words):
    """What `replay` prints of a recording with these words, as this kind."""
    done = subprocess.run([*CHAT, "replay", str(path), f"--{kind}", *words], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def replayed(path, *words):
    done = subprocess.run([*CHAT, "replay", str(path), "--instant", *words], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def rows_in(picture):
    """The rows of a picture's window, as one would select and copy them."""
    texts = [element for element in xml.fromstring(picture).iter(SVG + "text")][1:]  # the first is the title
    return ["".join(element.itertext()).rstrip() for element in texts]


# --- every export ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample", list(chat.SAMPLES))
def test_an_export_is_the_same_the_second_time_into_a_file_and_on_stdout(sample, kind, tmp_path):
    chat.export(sample, kind, str(tmp_path / "out"))
    assert made(sample, kind) == made(sample, kind) == (tmp_path / "out").read_bytes().decode()


def test_an_export_does_not_depend_on_what_this_system_writes_texts_in():
    done = subprocess.run([*CHAT, "replay", "demo", "--txt"], stdout=subprocess.PIPE, check=True,
                          env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert "привет! меня видно?" in done.stdout.decode()


@pytest.mark.parametrize("words", [["--instant"], *([f"--{kind}"] for kind in KINDS), ["--report", "folder"]])
def test_no_prompt_toolkit_is_loaded_for_an_export(words, tmp_path):
    told = "import sys, chat; code = chat.main(); sys.stderr.write(str('prompt_toolkit' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", told, "replay", "demo", *words], stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": os.path.dirname(chat.__file__)})
    assert done.stderr == b"False"


def test_a_file_of_another_kind_is_not_written(tmp_path):
    done = subprocess.run([*CHAT, "replay", "demo", "--svg", "lab.jsonl"], cwd=tmp_path, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert b"--svg takes a file that ends in .svg" in done.stderr
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written_is_told_in_one_sentence(tmp_path):
    for words in (["--svg", tmp_path / "no" / "lab.svg"], ["--report", tmp_path / "file" / "report"]):
        (tmp_path / "file").write_text("no folder")
        done = subprocess.run([*CHAT, "replay", "demo", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
        assert str(words[1].name).encode() in done.stderr


def test_a_recording_is_never_written_over(tmp_path):
    path = put(tmp_path / "lab.txt", session(join("ann", 1.0)))
    with pytest.raises(chat.ChatError, match="is the recording itself"):
        chat.export(path, "txt", path)
    assert len((tmp_path / "lab.txt").read_bytes().splitlines()) == 2


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="no name for stdin here")
@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_may_come_out_of_a_pipe(kind):
    done = subprocess.run([*CHAT, "replay", "/dev/stdin", f"--{kind}"], input=chat.shipped("sample-lab.jsonl"),
                          stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode() == made("demo", kind)


@pytest.mark.parametrize("words", [[], ["--as", "боря"], ["--from", "0:30", "--to", "1:00"], ["--as", "18"]])
def test_a_transcript_is_what_a_replay_prints(words):
    assert made("demo", "txt", *words) == replayed("demo", *words)


# --- the cast ---


def cast_of(*words):
    head, *lines = made("demo-en", "cast", *words).splitlines()
    return json.loads(head), list(map(json.loads, lines))


def test_a_cast_tells_the_size_and_the_start_of_the_session():
    head, lines = cast_of()
    assert (head["version"], head["width"], head["height"], head["title"]) == (2, 80, 24, "networks")
    with chat.open_tape("demo-en") as tape:
        assert tape.session["start"].startswith("2026-")
    assert head["timestamp"] > 1_700_000_000


def test_a_cast_keeps_the_times_and_caps_silence():
    capped, uncapped = cast_of()[1], cast_of("--max-gap", "0")[1]
    for lines, most in ((capped, 2.0), (uncapped, 60.0)):
        steps = [after[0] - before[0] for before, after in zip(lines, lines[1:])]
        assert all(0 <= step <= most + 0.0015 for step in steps)
    with chat.open_tape("demo-en") as tape:
        assert uncapped[-1][0] == pytest.approx(tape.lines.moments[-1], abs=0.01)


def test_a_cast_shows_what_a_replay_shows():
    text = "".join(data for t, code, data in cast_of()[1] if code == "o")
    shown = re.sub("\x1b\\[[0-9;]*m", "", text).replace("\r\n", "\n")
    assert max(map(len, shown.split("\n"))) <= chat.PICTURE[0]
    assert "".join(shown.replace(chat.CONTINUED, "").split()) == "".join(replayed("demo-en").replace(chat.CONTINUED, "").split())


needs_asciinema = pytest.mark.skipif(not shutil.which("asciinema") or not terminal.fcntl,
                                     reason="needs asciinema (on Debian and Ubuntu: apt install asciinema)")


@needs_asciinema
@pytest.mark.parametrize("sample", list(chat.SAMPLES))
def test_asciinema_plays_a_cast_to_its_last_line(sample, tmp_path):
    chat.export(sample, "cast", str(tmp_path / "lab.cast"))
    player = terminal.Terminal(["asciinema", "play", "-s", "1000", str(tmp_path / "lab.cast")], rows=24,
                               env={"HOME": str(tmp_path), "LC_ALL": "C.UTF-8"})
    try:
        player.see("-- the room is closed$")
        assert player.exit_code() == 0
        wanted = [row for row in replayed(sample).splitlines() if len(row) < 60]  # longer ones wrap
        assert [row for row in player.text().splitlines() if row in wanted] == wanted
    finally:
        player.close()


# --- pictures ---

ODD = ["plain", "Ёжик и йод", "大家好 今日は", "e\u0301a\u0323\u0302", "👩‍👩‍👧 family", "🇩🇪🇫🇷 flags", "👍🏽 skin", "☺️ ☎️",
       "tab\there", "x" * 100, "漢" * 90, "<b>&amp;\"'</b>", "]]>", "שלום עולם", "नमस्ते", "a\u200bb", "\x1b[31mred", "  two  "]


@pytest.fixture
def odd(tmp_path):
    """A recording with texts of all kinds."""
    return put(tmp_path / "odd.jsonl", session(
        join("李雷", 0.0), join("anna", 0.1), *[say("李雷", 1.0 + n, text) for n, text in enumerate(ODD)],
        say("anna", 40.0, "李雷: see?")))


def test_a_picture_has_the_rows_that_were_on_the_screen(tmp_path):
    path = put(tmp_path / "lab.jsonl", session(join("ann", 1.0), join("bob", 2.0), say("ann", 3.0, "hello, Bob\nbye")))
    assert rows_in(made(path, "svg", "--as", "bob")) == [
        "12:00 -- room лаб, open since 2026-11-20 12:00", "12:00 -- ann joined", "12:00 -- bob joined",
        "12:00 ann: hello, Bob", "      │ bye", "bob>", " лаб | recorded | 2 here: ann, bob"]
    assert rows_in(made(path, "svg", "--at", "1"))[-3:] == [
        "12:00 -- ann joined", ">", " лаб | recorded | 1 here: ann"]


def test_a_window_whose_program_has_ended_has_no_input_line(tmp_path):
    path = put(tmp_path / "lab.jsonl", session(join("ann", 1.0), join("bob", 2.0), ("leave", 3.0, {
        "who": "ann", "why": "left"}), say("bob", 4.0, "bye"), ("end", 5.0, {})))
    assert rows_in(made(path, "svg", "--as", "ann"))[-1] == "12:00 -- ann left"
    assert rows_in(made(path, "svg", "--as", "bob", "--at", "4"))[-2:] == ["bob>", " лаб | recorded | 1 here: bob"]
    assert rows_in(made(path, "svg"))[-1] == "12:00 -- the room is closed"


def test_nothing_is_to_be_seen_from_a_seat_before_it_was_taken(tmp_path):
    done = subprocess.run([*CHAT, "replay", "demo", "--svg", "--as", "гриша", "--at", "0:10"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (1, b"")
    assert "гриша joined at 0:53, and before that saw nothing" in done.stderr.decode()


def test_the_bar_of_somebody_who_came_twice_tells_who_was_there_then(tmp_path):
    path = put(tmp_path / "own.jsonl", [
        {"re": "welcome", "t": 1.0, "you": "bob", "n": 0, "people": ["bob"]}, *session(join("bob", 1.0)),
        {"re": "welcome", "t": 60.0, "you": "bob", "n": 8, "people": ["amy", "bob"]}, helpers.join(9, "bob", 1, t=60.0)])
    assert rows_in(made(path, "svg", "--at", "5"))[-1] == " лаб | recorded | 1 here: bob"
    assert rows_in(made(path, "svg"))[-1] == " лаб | recorded | 2 here: amy, bob"


def test_a_picture_shows_the_end_of_a_long_session(tmp_path):
    path = put(tmp_path / "lab.jsonl", session(join("ann", 0.0), *[say("ann", 1.0, f"line {n}") for n in range(99)]))
    rows = rows_in(made(path, "svg"))
    assert len(rows) == chat.PICTURE[1]
    assert rows[0].endswith("ann: line 77") and rows[-3].endswith("ann: line 98")


def test_a_row_too_long_for_the_window_goes_on_in_the_next():
    rows = chat.cells([("text", "x" * 79 + "漢" + "y")], 80)
    assert [(len(row), row[-1][:3]) for row in rows] == [(79, (78, 1, "x")), (2, (2, 1, "y"))]


@pytest.mark.parametrize("text, clusters", [
    ("añ", ["a", "ñ"]), ("e\u0301x", ["e\u0301", "x"]), ("👩‍👩‍👧!", ["👩‍👩‍👧", "!"]), ("🇩🇪🇫🇷", ["🇩🇪", "🇫🇷"]),
    ("👍🏽.", ["👍🏽", "."]), ("☎️!", ["☎️", "!"])])
def test_what_belongs_to_one_character_is_in_one_cell(text, clusters):
    assert [cluster for column, width, cluster, code in chat.cells([("text", text)], 80)[0]] == clusters


def test_a_picture_holds_every_character(odd):
    shown = "".join(rows_in(made(odd, "svg")))
    for text in ODD:
        assert "".join(chat.clean(text).split()) in "".join(shown.replace(chat.CONTINUED, "").split()), text


def test_a_picture_is_harmless_and_needs_nothing_from_elsewhere(odd):
    picture = made(odd, "svg")
    elements = {element.tag.replace(SVG, "") for element in xml.fromstring(picture).iter()}
    assert elements <= {"svg", "title", "rect", "circle", "text", "tspan"}
    assert not re.search(r"href|url\(|@font-face|<script|style=", picture)
    assert picture.count("http") == 1, "the name of SVG"


# Where each character of a picture is, and where it should be: [text, its box, its cell's column and width].
BOXES = """[...document.querySelectorAll("tspan")].map(span => {
    const y = +span.parentNode.getAttribute("y"), whole = span.hasAttribute("textLength");
    const xs = span.getAttribute("x").split(" ").map(Number), text = span.textContent, size = span.getNumberOfChars();
    return [...Array(whole ? 1 : size).keys()].map(at => {
        const first = span.getExtentOfChar(at), last = span.getExtentOfChar(whole ? size - 1 : at);
        const width = whole ? +span.getAttribute("textLength") : CELL;
        return [whole ? text : text[at], Math.min(first.x, last.x), Math.max(first.x + first.width, last.x + last.width),
                first.y, first.y + first.height, xs[at], xs[at] + width, y];
    });
}).flat()"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A browser for the pictures."""
    with browser.Browser(tmp_path_factory.mktemp("browser")) as one:
        yield one


@browser.needs_chromium
@pytest.mark.parametrize("what", [*chat.SAMPLES, "odd"])
def test_in_a_browser_each_glyph_lies_in_its_cell(chromium, what, odd, tmp_path):
    chat.export(odd if what == "odd" else what, "svg", str(tmp_path / "lab.svg"))
    chromium.open(tmp_path / "lab.svg")
    width, height = (float(value) for value in chromium.run(
        "[document.documentElement.viewBox.baseVal.width, document.documentElement.viewBox.baseVal.height]"))
    boxes = chromium.run(BOXES.replace("CELL", str(chat.CELL)))
    assert len(boxes) > 300
    for text, left, right, top, bottom, cell_left, cell_right, y in boxes:
        assert cell_left - 0.1 <= left and right <= cell_right + 0.1, (text, left, right, cell_left, cell_right)
        assert 0 <= left and right <= width and 0 <= top and bottom <= height, text
        assert y - chat.ROW < top and bottom < y + chat.ROW - 10, f"{text} reaches into another row"
    cells = sorted({(y, left, right) for _, _, _, _, _, left, right, y in boxes})
    assert all(before[0] < after[0] or before[2] <= after[1] + 0.01 for before, after in zip(cells, cells[1:]))
    assert (chromium.errors, chromium.requests) == ([], [])


# --- the moments of a report ---

SCENE = session(
    join("ann", 1.0), join("bob", 2.0), say("ann", 3.0, "hi"), join("kim", 4.0), say("bob", 5.0, "ho"),
    say("kim", 6.0, "ha"), say("ann", 7.0, "all of us"), ("mark", 7.5, {"text": "Part 2"}),
    ("leave", 8.0, {"who": "bob", "why": "left"}), say("ann", 9.0, "bob is gone"), join("zoe", 10.0, 1),
    say("zoe", 11.0, "what did I miss?"), join("bob", 12.0, 1), ("end", 13.0, {}))


def surveyed(events):
    return chat.Survey(helpers.tape_of(events))


def moments(events):
    return [(what, moment.t, [seat.n for seat in moment.seats])
            for what, found in surveyed(events).moments.items() for moment in found]


def test_the_moments_are_found():
    assert moments(SCENE) == [("talk", 7.0, [1, 2, 4]), ("leave", 9.0, [1, 2]), ("join", 10.0, [11]),
                              ("mark", 7.5, [])]


@pytest.mark.parametrize("events, whats", [
    (session(), []), (session(join("ann", 1.0)), []), (session(join("ann", 1.0), say("ann", 2.0, "hi")), ["talk"]),
    (session(say("server", 1.0, "hi")), []), (session(("mark", 1.0, {"text": "x"})), ["mark"])])
def test_what_did_not_happen_is_no_moment(events, whats):
    assert [what for what, t, seats in moments(events)] == whats


def test_a_moment_lasts_while_people_only_talk():
    talked = [say("ann", 20.0 + second, "so") for second in range(0, 40, 4)]
    events = session(join("ann", 1.0), join("bob", 2.0), say("ann", 3.0, "hi"), say("bob", 4.0, "ho"),
                     ("leave", 19.0, {"who": "bob", "why": "left"}), *talked, ("mark", 70.0, {"text": "Part"}), *[
                         say("ann", 71.0 + second, "on") for second in range(5)])
    assert moments(events) == [("talk", 4.0, [1, 2]), ("leave", 32.0, [1, 2]), ("mark", 75.0, [])]


def test_who_took_part_and_what_happened():
    survey = surveyed(SCENE)
    assert [(seat.n, seat.names[0][1], seat.t, seat.left, survey.said[seat.n]) for seat in survey.seats.values()] == [
        (1, "ann", 1.0, 13.0, 3), (2, "bob", 2.0, 8.0, 1), (4, "kim", 4.0, 13.0, 1), (11, "zoe", 10.0, 13.0, 1),
        (13, "bob", 12.0, 13.0, 0)]
    assert (survey.people(), survey.messages, survey.said[None], survey.end) == (4, 6, 0, 13.0)
    assert [event["ev"] for event in survey.course] == "join join join mark leave join join end".split()


@pytest.fixture
def reported(tmp_path):
    """A function that makes a report of these events: its text, and the folder with its pictures."""
    def make(events, language="en"):
        path = put(tmp_path / "lab.jsonl", events)
        file = chat.write_report(path, str(tmp_path / language), language)
        with open(file, encoding="utf-8", newline="") as text:
            return text.read(), tmp_path / language

    return make


def test_a_report_tells_of_everything_that_was_there(reported):
    text, folder = reported(SCENE)
    assert "# Lab report: a chat over TCP" in text
    assert "| ann | 12:00:01 | 12:00:13 | 3 |\n| bob | 12:00:02 | 12:00:08 | 1 |\n" in text
    assert "- 12:00:07 **Part 2**\n- 12:00:08 bob left\n" in text
    assert "in use for 13 s; people: 4, messages:\n6. The server recorded every line" in text
    assert "{" not in text and "\r" not in text
    pictures = re.findall(r"\]\((.+?)\)", text)
    assert pictures == sorted(pictures) and set(pictures) | {"report.md"} == set(os.listdir(folder))
    assert pictures == ["01-talk-server.svg", "02-talk-seat-1.svg", "03-talk-seat-2.svg", "04-talk-seat-4.svg",
                        "05-leave-server.svg", "06-leave-seat-1.svg", "07-leave-seat-2.svg", "08-join-seat-11.svg",
                        "09-mark-server.svg"]
    rows = {name[3:-4]: rows_in((folder / name).read_bytes()) for name in pictures}
    assert rows["talk-server"][-3:] == ["12:00 ann: all of us", ">", " лаб | recorded | 3 here: ann, bob, kim"]
    assert rows["leave-seat-1"][-3:] == ["12:00 ann: bob is gone", "ann>", " лаб | recorded | 2 here: ann, kim"]
    assert rows["leave-seat-2"][-1] == "12:00 -- bob left"
    assert rows["join-seat-11"][1] == "12:00 -- ann joined"
    assert rows["join-seat-11"][-3:-1] == ["12:00 -- zoe joined", "zoe>"]
    assert "The server's window, 12:00:07 — Part 2*" in text


def test_what_the_server_said_is_counted_apart(reported):
    text, folder = reported(session(join("ann", 1.0), say("server", 2.0, "welcome"), say("ann", 3.0, "hi")))
    assert "| ann | 12:00:01 | — | 1 |\n| server | — | — | 1 |\n" in text


@pytest.mark.parametrize("t, words", [(0.0, "0 s"), (59.9, "59 s"), (100.0, "1 min 40 s"), (9001.0, "2 h 30 min 1 s")])
def test_how_long_it_took_is_told_in_words(reported, t, words):
    text, folder = reported(session(join("ann", 0.0), ("end", t, {})))
    assert f"in use for {words};" in text


def test_a_report_of_somebodys_own_recording_tells_only_of_their_window(tmp_path):
    path = put(tmp_path / "own.jsonl", [
        {"re": "welcome", "t": 4.5, "you": "kim", "n": 3, "people": ["ann", "bob", "kim"]}, *SCENE[:4],
        helpers.join(4, "kim", 1, t=4.5), {"re": "tell", "t": 5.0, "who": "ann", "to": "kim", "text": "psst"}, *SCENE[6:]])
    done = subprocess.run([*CHAT, "replay", path, "--report", tmp_path / "r"], stderr=subprocess.PIPE, check=True,
                          stdout=subprocess.DEVNULL)
    assert b"what was said to them alone is in what you make of it" in done.stderr
    text = (tmp_path / "r" / "report.md").read_text(encoding="utf-8")
    assert "This recording was made by kim's program" in text
    pictures = re.findall(r"\]\((.+?)\)", text)
    assert pictures and all(name.endswith("-recording.svg") for name in pictures)
    assert set(re.findall(r"!\[(.+?)\]", text)) == {"What kim saw"}


def test_a_report_in_russian_has_russian_words(reported):
    text, folder = reported(SCENE, "ru")
    assert "# Отчёт по лабораторной работе: чат по TCP" in text
    assert "- 12:00:08 выходит bob" in text and "*Рисунок 1. Окно сервера, 12:00:07*" in text
    headings = re.findall("(?m)^##? .+", text)
    assert len(headings) == 10 and all(re.search("[а-я]", heading) for heading in headings)


def test_a_report_leaves_out_what_did_not_happen(reported):
    text, folder = reported(session(join("ann", 1.0), say("ann", 2.0, "nobody here?")))
    headings = re.findall("(?m)^## (.+)", text)
    assert headings == ["Task", "The session", "Participants", "Course of events", "Everybody talks", "Conclusions"]


def test_a_report_with_somebodys_conclusions_is_not_written_over(reported):
    text, folder = reported(SCENE)
    with pytest.raises(chat.ChatError, match="exists already, perhaps with somebody's conclusions"):
        reported(SCENE)


def test_a_report_is_the_same_the_second_time(reported, tmp_path):
    text, folder = reported(SCENE)
    first = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    shutil.rmtree(folder)
    assert reported(SCENE)[0] == text
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == first


def test_names_and_texts_cannot_change_the_report(reported):
    hostile = "](x) <img src=x onerror=alert(1)> | `code` **bold**\n# heading {room}"
    text, folder = reported(session(join(hostile, 1.0), say(hostile, 2.0, "hi"), ("mark", 3.0, {"text": hostile})))
    assert "<img" not in text and "\n# heading" not in text
    (row,) = [row for row in text.splitlines() if row.startswith("| \\")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5


def test_many_people_at_one_moment_are_counted(reported):
    names = [f"guest{number}" for number in range(9)]
    text, folder = reported(session(*[join(name, 1.0) for name in names], *[say(name, 2.0, "hi") for name in names]))
    assert "Not shown: 5 more windows" in text
    assert len(os.listdir(folder)) == 1 + 1 + chat.PICTURE_PEOPLE


@pytest.mark.parametrize("sample, language", [("demo", "ru"), ("demo-en", "en")])
def test_the_samples_give_the_pictures_of_a_lab(sample, language, tmp_path):
    file = chat.write_report(sample, str(tmp_path / "report"), language)
    whats = {re.sub(r"\d+-(\w+)-.*", r"\1", name) for name in os.listdir(tmp_path / "report")} - {"report.md"}
    assert {"talk", "leave", "join"} <= whats
    assert os.path.basename(file) == "report.md"


# --- the list of recordings ---


def listed(folder, capsys):
    chat.print_recordings(str(folder))
    return capsys.readouterr().out.splitlines()


def test_recordings_are_listed_newest_first_with_their_state(tmp_path, capsys):
    for name, day, more in (("old", 1, [("end", 61.0, {})]), ("new", 3, []), ("torn", 2, [])):
        events = session(join("ann", 1.0), say("ann", 2.0, "hi"), *more)
        events[0] = {**SESSION, "room": name, "start": f"2026-01-0{day}T09:00:00.000+03:00"}
        put(tmp_path / f"{name}.jsonl", events)
    with open(tmp_path / "torn.jsonl", "ab") as file:
        file.write(b'{"ev":"say","n":3')
    (tmp_path / "none.jsonl").write_text("no recording\n")
    rows = listed(tmp_path, capsys)
    assert [os.path.basename(row) for row in rows[::2]] == ["new.jsonl", "torn.jsonl", "old.jsonl"]
    assert [row.strip() for row in rows[1::2]] == [
        "2026-01-03 09:00  new, 1 person, 1 message, 0:02, not ended",
        "2026-01-02 09:00  torn, 1 person, 1 message, 0:02, torn",
        "2026-01-01 09:00  old, 1 person, 1 message, 1:01, complete"]


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_no_name_of_a_file_is_obeyed_by_the_terminal(tmp_path, capsys):
    put(tmp_path / "a\x1b[31m\nb.jsonl", SCENE)
    assert len(listed(tmp_path, capsys)) == 2


@pytest.mark.skipif(os.name == "nt", reason="the file would fill the disk there")
def test_a_recording_whose_end_is_no_line_is_torn_and_not_read_whole(tmp_path, capsys):
    path = put(tmp_path / "lab.jsonl", SCENE)
    os.truncate(path, 8 << 30)  # of which the disk holds nothing
    assert listed(tmp_path, capsys)[1].strip() == "2026-11-20 12:00  лаб, 0:00, torn"


def test_of_a_large_recording_only_both_ends_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(chat, "LISTED_BYTES", 100)
    put(tmp_path / "lab.jsonl", SCENE)
    assert listed(tmp_path, capsys)[1].strip() == "2026-11-20 12:00  лаб, 0:13, complete"


def test_without_recordings_the_samples_are_listed(tmp_path):
    done = subprocess.run([*CHAT, "replay", "--list"], cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode().splitlines()[::2] == list(chat.SAMPLES)


def test_a_transcript_goes_into_any_file_object():
    out = io.StringIO()
    with chat.open_tape("demo") as tape:
        chat.write_transcript(tape, None, tape.between(), out, 2.0)
    assert out.getvalue() == replayed("demo")
