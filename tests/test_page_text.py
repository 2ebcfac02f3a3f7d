"""The text of the page that plays a session: harmless, complete, and in little memory."""
import base64
import hashlib
import html.parser
import json
import pathlib
import re
import subprocess
import sys
import tracemalloc
import zipfile

import chat
import helpers

SESSION = {**helpers.SESSION, "start": "2026-11-20T12:00:30.500+03:00"}


def session(*events, **fields):
    return helpers.session(*events, **{**SESSION, **fields})


# Names that change, are given up and are taken again; one who comes late; a second start on the same file.
LAB = session(
    ("join", 1.0, {"who": "юля", "from": 0}),
    ("join", 2.0, {"who": "bob", "from": 0}),
    ("say", 3.5, {"who": "юля", "text": "привет, Bob!\nbobby and bob.js are not you, @bob is"}),
    ("mark", 5.0, {"text": "Task 1"}),
    ("nick", 6.0, {"who": "bob", "name": "rob"}),
    ("me", 7.25, {"who": "rob", "text": "looks for юля"}),
    ("leave", 8.0, {"who": "rob", "why": "lost"}),
    ("say", 9.0, {"who": "юля", "text": "where is rob?"}),
    ("join", 70.0, {"who": "bob", "from": 4}),
    ("say", 71.0, {"who": "bob", "text": "rob is me: юля, see\n\n  this"}),
    ("join", 72.0, {"who": "rob", "from": 0}),
    ("leave", 73.0, {"who": "юля", "why": "kicked", "text": "good night"}),
    ("mark", 80.0, {"text": "Task 2"}),
    ("notice", 81.0, {"text": "nearly over"}),
    ("end", 82.0, {}),
    ("join", 200.0, {"who": "bob", "from": 10}),
    ("leave", 201.0, {"who": "rob", "why": "constructor"}),
    ("say", 202.0, {"who": "bob", "text": "again"}),
    ("end", 300.0, {}),
)
# Somebody's own recording: the welcome is later than the history after it, and n jumps.
OWN = [
    {"re": "welcome", "t": 30.0, "you": "bob", "n": 12, "people": ["юля", "ann", "bob"], "recorded": True},
    SESSION,
    {"ev": "say", "n": 8, "t": 4.0, "who": "юля", "text": "bob was here"},
    {"ev": "leave", "n": 9, "t": 5.0, "who": "bob", "why": "left"},
    {"ev": "join", "n": 11, "t": 6.0, "who": "ann", "from": 9},
    {"ev": "join", "n": 13, "t": 30.0, "who": "bob", "from": 8},
    {"re": "tell", "t": 31.0, "who": "юля", "to": "bob", "text": "psst, bob"},
    {"re": "tell", "t": 31.5, "who": "bob", "to": "юля", "text": "yes?"},
    {"re": "who", "t": 32.0, "people": ["юля", "ann", "bob"]},
    {"ev": "nick", "n": 14, "t": 33.0, "who": "bob", "name": "rob"},
    {"ev": "say", "n": 17, "t": 34.0, "who": "ann", "text": "rob, not bob"},
    {"re": "error", "t": 35.0, "code": "nobody", "text": "nobody here is called x"},
    {"ev": "leave", "n": 18, "t": 36.0, "who": "rob", "why": "left"},
]
LONG = session(("join", 0.5, {"who": "ann", "from": 0}),
               *(("say", n / 10, {"who": "ann", "text": f"line {n}"}) for n in range(10, 1500)))
HOSTILE = ["</script><script>owned = 1</script>", "<!--<script>", "]]><img src=x onerror=owned=1>",
           "<a href='javascript:owned=1'>x</a> javascript:owned=1", "\u202eright to left\u2066\u200f",
           "w" * 10_000, "\u2028\u2029\0\x1b[2J&lt;&amp;</style>", "${owned = 1}`'\"\\u003cb>\\",
           "%EVENTS%%TITLE%%SCRIPT_HASH%"]


def page_of(events, title="a session"):
    """The page as text."""
    return "".join(chat.page_parts(events, title))


class Elements(html.parser.HTMLParser):
    """The policy of a page, and what stands in its script and style elements."""

    def __init__(self, page):
        super().__init__()
        self.contents, self.policy, self.inside = {}, "", None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.inside = attributes.get("id", tag) if tag in ("script", "style") else None
        if attributes.get("http-equiv"):
            self.policy = attributes["content"]

    def handle_data(self, data):
        if self.inside:
            self.contents[self.inside] = self.contents.get(self.inside, "") + data

    def handle_endtag(self, tag):
        self.inside = None


def lines_of(page):
    """The lines in a page, decoded, without the tables before them."""
    tables, *lines = map(json.loads, Elements(page).contents["events"].splitlines())
    assert tables["here"] == "page"
    return lines


def test_the_policy_names_the_script_and_the_style_by_their_hashes():
    elements = Elements(page_of(LAB))
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(elements.contents[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in elements.policy
    assert elements.policy.startswith("default-src 'none';")


def test_no_line_can_end_its_element():
    page = page_of(session(*(("say", 1.0, {"who": text, "text": text}) for text in HOSTILE)))
    events = page[page.index('id="events">') + len('id="events">'):page.rindex("<script>")]
    assert events.rstrip().endswith("</script>")
    assert not re.search("[<>&\u2028\u2029]", events.rstrip()[:-len("</script>")])


def test_the_page_gets_all_lines_and_only_what_it_shows():
    extra = [{**event, "secret": {"a": 1}} for event in LAB]
    assert lines_of(page_of(extra)) == LAB


def test_what_is_not_for_people_stays_away_and_the_unknown_becomes_a_remark():
    unknown = {"ev": "poll", "n": 1, "t": 2.0, "question": "чай?\u202e"}
    lines = lines_of(page_of([SESSION, {"re": "pong", "t": 1.0}, unknown]))
    assert lines[1:] == [{"here": "remark", "t": 2.0, "text": chat.clean_row(chat.describe(unknown))}]


def test_a_page_is_written_as_the_events_come():
    def many():
        for n in range(20_000):
            yield {"ev": "say", "n": n, "t": 0.0, "who": "ann", "text": "x" * 100}

    tracemalloc.start()
    try:
        size = sum(map(len, chat.page_parts(many(), "many")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 2_000_000 and peak < 1_000_000


def test_the_page_comes_out_of_a_zip_as_out_of_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "chat.zip", "w") as archive:
        archive.write(chat.__file__, "chat.py")
        archive.write(pathlib.Path(chat.__file__).parent / "sessions" / "player.html", "sessions/player.html")
    script = "import sys, chat; sys.stdout.buffer.write(''.join(chat.page_parts([], 'a session')).encode())"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True, cwd=tmp_path,
                          env={"PYTHONPATH": str(tmp_path / "chat.zip")})
    assert done.stdout.decode() == page_of([])


def test_the_page_itself_is_small():
    assert len(chat.shipped("player.html")) < 40_000
