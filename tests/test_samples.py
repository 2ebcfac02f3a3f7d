"""The sample sessions are what they promise to be: whole recordings of the scenes in samples.py."""
import io
import sys

import pytest

import chat
import helpers
import samples
import terminal

TALK = "say", "me"
needs_terminals = pytest.mark.skipif(not terminal.fcntl, reason="needs pseudo-terminals")


def read(path):
    """All that a reader is given of a session file, remarks included."""
    with open(path, "rb") as file:
        return helpers.read_file(file)


def expected(scene):
    """What the lines of a scene must have become, each as (when, fields)."""
    told = [(when, samples.event_of(who, what)) for when, who, what in scene.lines]
    return [(when, fields) for when, fields in told if fields]


def told(events, *words):
    """The events of these kinds."""
    return [event for event in events if event["ev"] in words]


@pytest.fixture(params=samples.SCENES)
def name(request):
    return request.param


@pytest.fixture
def lab():
    return read(samples.target("lab"))


@pytest.fixture
def lesson():
    return read(samples.target("class"))


# --- both ---


def test_a_sample_is_a_whole_session(name):
    events = read(samples.target(name))
    assert all("ev" in event for event in events), "a remark, or somebody's private line"
    assert [event["n"] for event in events] == list(range(len(events)))
    assert told(events, "session", "end") == [events[0], events[-1]]
    assert (events[0]["ev"], events[-1]["ev"]) == ("session", "end")


def test_a_sample_is_what_the_program_writes_byte_for_byte(name):
    data = samples.target(name).read_bytes()
    assert data == b"".join(chat.encode(chat.decode_event(line.decode())) for line in data.splitlines(True))


def test_a_sample_tells_its_scene_and_nothing_else(name):
    scene, (session, *events) = samples.SCENES[name], read(samples.target(name))
    assert session["room"] == scene.room
    assert len(events) == len(expected(scene))
    for event, (when, fields) in zip(events, expected(scene)):
        assert helpers.has(event, fields), f"{fields} expected, {event} recorded: record the samples again"
        assert when <= event["t"] < when + 5


def test_a_sample_is_short_and_has_a_length_that_one_can_watch(name):
    events = read(samples.target(name))
    assert samples.target(name).stat().st_size < 12_000
    assert 30 <= len(events) <= 50
    assert 75 <= events[-1]["t"] <= 120


def test_a_sample_can_be_replayed(name):
    shown = io.StringIO()
    chat.replay(str(samples.target(name)), instant=True, out=shown)
    assert len(shown.getvalue().splitlines()) >= len(read(samples.target(name)))


def test_most_lines_fit_on_a_terminal(name):
    session, *events = read(samples.target(name))
    rows = [row for event in events for row in chat.plain(chat.render(event, session)).split("\n")]
    assert 1 <= sum(len(row) > 80 for row in rows) <= 3


# --- each ---


def test_in_the_lab_three_people_speak_before_the_first_leaves(lab):
    (leave,) = told(lab, "leave")
    assert leave["why"] == "left"
    assert len({event["who"] for event in told(lab[:leave["n"]], *TALK)}) >= 3


def test_in_the_lab_somebody_comes_late_and_is_given_the_history(lab):
    late = told(lab, "join")[-1]
    missed = told(lab[late["from"]:late["n"]], *TALK)
    assert len(missed) > 10
    assert missed == told(lab[:late["n"]], *TALK)


def test_the_lab_shows_what_a_line_can_be(lab):
    texts = [event["text"] for event in told(lab, *TALK)]
    names = {event["who"] for event in told(lab, "join")}
    assert told(lab, "me") and told(lab, "nick")
    assert any(text.count("\n") in (1, 2) for text in texts)
    assert any("🙂" in text for text in texts)
    assert any(chat.find_mentions(text, name) for text in texts for name in names)


def test_the_lab_has_a_silence_worth_capping(lab):
    assert 7 < max(after["t"] - before["t"] for before, after in zip(lab, lab[1:])) < 12


def test_the_class_has_three_parts(lesson):
    parts = [mark["text"].partition(":")[0] for mark in told(lesson, "mark")]
    assert parts == ["Part one", "Part two", "Part three"]


def test_in_the_class_somebody_is_lost_and_comes_back_under_the_same_name(lesson):
    (lost,) = [event for event in told(lesson, "leave") if event["why"] == "lost"]
    first, second = [event["n"] for event in told(lesson, "join") if event["who"] == lost["who"]]
    assert first < lost["n"] < second


def test_in_the_class_there_are_wide_characters(lesson):
    texts = [event["text"] for event in told(lesson, *TALK) if event["who"] == "李雷"]
    assert any("六" in text for text in texts) and any("👋" in text for text in texts)


# --- how they are recorded ---


@needs_terminals
def test_a_scene_is_played_by_the_program_itself(tmp_path):
    scene = samples.Scene("tiny", "MSK-3", [
        (0.0, "аня", samples.OPEN),
        (0.1, "bob", samples.OPEN),
        (0.2, "аня", "раз\nдва"),
        (0.2, samples.HOST, "/mark Part one"),
        (0.3, "bob", "/nick rob"),
        (0.3, "rob", "/me waves 👋"),
        (0.4, "аня", "/quit"),
        (0.5, samples.HOST, "the last one here"),
        (0.6, samples.HOST, samples.CLOSE),
    ])
    samples.record(scene, tmp_path / "sessions" / "tiny.jsonl")
    session, *events = read(tmp_path / "sessions" / "tiny.jsonl")
    assert session["room"] == "tiny" and session["start"].endswith("+03:00")
    assert len(events) == len(scene.lines)
    for event, (when, fields) in zip(events, expected(scene)):
        assert helpers.has(event, fields) and event["t"] >= when


@needs_terminals
@pytest.mark.skipif(sys.platform != "linux", reason="not every system resets a connection that was not read")
def test_who_is_killed_is_lost_and_may_come_back(tmp_path):
    scene = samples.Scene("tiny", "UTC", [
        (0.0, "ann", samples.OPEN),
        (0.1, "ann", samples.FREEZE),
        (0.2, samples.HOST, "still there?"),
        (0.5, "ann", samples.KILL),
        (0.6, "ann", samples.OPEN),
        (0.7, samples.HOST, samples.CLOSE),
    ])
    samples.record(scene, tmp_path / "tiny.jsonl")
    words = [event["ev"] for event in read(tmp_path / "tiny.jsonl")]
    assert words == ["session", "join", "say", "leave", "join", "end"]


@needs_terminals
def test_a_scene_that_goes_otherwise_gives_no_sample(tmp_path):
    scene = samples.Scene("tiny", "UTC", [(0.0, "ann", samples.OPEN), (0.1, "ann", "//said with one slash")])
    with pytest.raises(AssertionError, match="//said.* expected"):
        samples.record(scene, tmp_path / "tiny.jsonl")
    assert not (tmp_path / "tiny.jsonl").exists()
