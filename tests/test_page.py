"""The page that plays a session, in a real browser: panes, time, search, print, and hostile words."""
import pytest

import chat
from browser import Browser, needs_chromium
from test_page_text import HOSTILE, LAB, LONG, OWN, SESSION, session

pytestmark = needs_chromium

# Everything that the panes show: for each its heading, and its lines.
SHOWN = """[...document.querySelectorAll(".pane")].map(pane => [
    pane.querySelector("select").selectedOptions[0].textContent,
    [...pane.querySelectorAll(".line")].map(line =>
        [...line.children].map(row => row.textContent).join("\\n"))])"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """One browser for all tests here."""
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def play(chromium, tmp_path):
    """Call it with events to get a browser with their page, which must neither complain nor use a network."""
    def opened(events, fragment="", title="a session"):
        with open(tmp_path / "page.html", "w", encoding="utf-8", newline="\n") as file:
            file.writelines(chat.page_parts(events, title))
        chromium.open(tmp_path / "page.html", fragment)
        return chromium

    chromium.resize(1400, 900)
    chromium.look()
    chromium.speak("en-US")
    yield opened
    chromium.run("0")  # so that what it complained of last has come
    assert (chromium.errors, chromium.requests) == ([], [])


def seek(page, t):
    page.run(f"""{{ const bar = document.getElementById("seek");
                    bar.value = {t}; bar.dispatchEvent(new Event("input")); }}""")


def choose(page, select, value):
    page.run(f"""{{ const select = {select};
                    select.value = {value}; select.dispatchEvent(new Event("change")); }}""")


def shown(page, pane=0):
    """The lines in one of the panes."""
    return page.run(SHOWN)[pane][1]


def headings(page):
    return [name for name, lines in page.run(SHOWN)]


def position(page):
    return page.run("document.getElementById('seek').valueAsNumber")


def value(page, name):
    return page.run(f"document.getElementById('{name}').value")


# --- what a pane shows, told once more in Python ---


def row(event, events, viewer=None):
    midnight = {"start": "2026-11-20T00:00:00.000+03:00"}  # for want of a session line
    opening = next((event for event in events if event.get("ev") == "session"), midnight)
    return chat.plain(chat.render(event, opening, viewer))


def seen_by_all(events):
    """(moment, row) of each line in the first pane."""
    viewer, moment, rows = None, 0.0, []
    for event in events:
        if event.get("re") == "welcome" or event.get("ev") == "nick" and event["who"] == viewer:
            viewer = event.get("you", event.get("name"))
        moment = max(moment, event["t"])
        rows.append((moment, row(event, events, viewer)))
    return rows


def seen_by(seat, events):
    """(moment, row) of each line that the person in this seat saw."""
    joined = next(at for at, event in enumerate(events) if event.get("ev") == "join" and event["n"] == seat)
    mine = any(event.get("re") == "welcome" and event["n"] + 1 == seat for event in events)
    join, viewer, rows = events[joined], events[joined]["who"], []
    moment = max(event["t"] for event in events[:joined + 1])
    for event in events[:joined]:
        word = event.get("ev") or event["re"]
        history = "ev" in event and join["from"] <= event["n"] < seat
        if word == "session" or word == "welcome" and mine or history:
            rows.append((moment, row(event, events, viewer)))
    for event in events[joined:]:
        if event.get("ev") == "nick" and event["who"] == viewer:
            viewer = event["name"]
        moment = max(moment, event["t"])
        if mine or "ev" in event:
            rows.append((moment, row(event, events, viewer)))
        if event.get("ev") == "end" or event.get("ev") == "leave" and event["who"] == viewer:
            break
    return rows


def seats_of(events):
    return [event["n"] for event in events if event.get("ev") == "join"]


def until(t, rows):
    return [text for moment, text in rows if moment <= t]


# --- panes ---


@pytest.mark.parametrize("events", [LAB, OWN], ids=["server's", "own"])
def test_every_pane_shows_at_every_moment_what_was_seen_there(play, events):
    page = play(events)
    views = [seen_by_all(events), *(seen_by(seat, events) for seat in seats_of(events))]
    for choice, rows in enumerate(views):
        choose(page, "document.querySelector('.pane select')", choice)
        for t in sorted({moment for moment, text in seen_by_all(events)}, reverse=choice % 2):
            seek(page, t)
            assert shown(page) == until(t, rows), (choice, t)


def test_there_is_a_pane_for_everything_and_four_seats_beside_it(play):
    page = play(LAB)
    every = ["server", "юля", "bob → rob (12:00)", "bob (12:01)", "rob"]
    assert headings(page) == every
    for count in (2, 3):
        choose(page, "document.getElementById('count-panes')", count)
        assert headings(page) == every[:count]


@pytest.mark.parametrize("width, panes", [(1900, 5), (1100, 4), (700, 2), (390, 5)])
def test_as_many_panes_are_open_as_can_be_seen_or_swiped(play, chromium, width, panes):
    chromium.resize(width, 800)
    page = play(LAB)
    assert len(headings(page)) == panes
    inside, seen = page.run("""(({scrollWidth, clientWidth}) => [scrollWidth, clientWidth])(
        document.getElementById("panes"))""")
    assert (inside > seen) == (width < 640)


def test_in_somebodys_own_recording_they_sit_in_front(play):
    assert headings(play(OWN)) == ["recording", "bob → rob", "ann"]


@pytest.mark.parametrize("events, pane, dimmed", [
    (LAB, 4, [False, True, True, True, True, True, False]),
    (OWN, 2, [False, False, True, True, True, False])], ids=["server's", "own"])
def test_history_is_dimmed(play, events, pane, dimmed):
    page = play(events)
    seek(page, next(event["t"] for event in events if event.get("who") == "bob" and event.get("from", 0) > 3))
    assert page.run(f"""[...document.querySelectorAll(".pane:nth-child({pane}) .line")].map(line =>
        line.classList.contains("history"))""") == dimmed


def test_the_pieces_have_the_styles_of_the_terminal(play):
    page = play(LAB, "#t=300")
    said = """[...document.querySelectorAll(".pane:nth-child(%d) .line:nth-child(4) span span")].map(span =>
        [span.className, span.textContent])"""
    name, text = chat.name_style("юля"), "bobby and bob.js are not you, @"
    start = [["time", "12:00 "], [name, "юля"], ["text", ": "]]
    assert page.run(said % 2) == [
        *start, ["text", "привет, Bob!"], ["text", chat.CONTINUED + text + "bob is"]]
    assert page.run(said % 3) == [
        *start, ["text", "привет, "], ["mention", "Bob"], ["text", "!"],
        ["text", chat.CONTINUED + text], ["mention", "bob"], ["text", " is"]]


def test_only_some_hundred_of_many_lines_are_drawn_and_scrolling_brings_the_rest(play):
    page = play(LONG, "#t=149.9")
    log = "document.querySelector('.log')"
    everything = [text for moment, text in seen_by_all(LONG)]

    def scroll(pixels):
        """Scroll by so much, and wait until the page has heard of it."""
        return page.run(f"""new Promise(resolve => {{ {log}.scrollTop += {pixels};
            requestAnimationFrame(() => requestAnimationFrame(resolve)); }})""")

    for direction, edge in ((-1, everything[0]), (1, everything[-1])):
        while edge not in (lines := shown(page)):
            at = everything.index(lines[0])
            assert lines == everything[at:at + len(lines)] and len(lines) <= 500
            scroll(direction * 1500)
    assert page.run("document.querySelectorAll('*').length") < 10_000


# --- time ---


def test_it_plays_to_the_end_at_any_speed_and_cuts_silence(play):
    page = play(session(("join", 1, {"who": "ann", "from": 0}), ("say", 4e6, {"who": "ann", "text": "hi"})))
    choose(page, "document.getElementById('speed')", 16)
    page.press(" ")
    page.wait_until("document.getElementById('seek').valueAsNumber == 4e6")
    page.wait_until("document.getElementById('play').ariaLabel.startsWith('Play')")
    assert [lines[-1][6:] for name, lines in page.run(SHOWN)] == ["ann: hi", "ann: hi"]
    choose(page, "document.getElementById('speed')", 0.5)
    page.press(" ")
    page.wait_until("document.getElementById('play').ariaLabel.startsWith('Pause')")
    assert position(page) < 4e6  # again from the beginning


def test_with_a_loop_it_begins_again(play):
    page = play(session(("join", 20.0, {"who": "ann", "from": 0})))
    choose(page, "document.getElementById('speed')", 16)
    choose(page, "document.getElementById('silence')", 0)
    seek(page, 15)
    page.press("l")
    page.press(" ")
    page.wait_until("document.getElementById('seek').valueAsNumber < 10")


def test_playing_stays_with_the_newest_line_unless_somebody_scrolled_up(play):
    page = play(LONG, "#t=100")
    page.press(" ")
    newest = "Number(document.querySelector('.log').lastChild.textContent.split(' ').at(-1))"
    page.wait_until(f"{newest} > 1003")
    assert page.run("document.querySelector('.newer').hidden")
    page.run("document.querySelector('.log').scrollTop -= 500")
    page.wait_until("!document.querySelector('.newer').hidden")
    top, at = page.run("document.querySelector('.log').scrollTop"), position(page)
    page.wait_until(f"document.getElementById('seek').valueAsNumber > {at} + 0.3")
    assert page.run("document.querySelector('.log').scrollTop") == top
    page.click(".newer")
    page.wait_until(f"document.querySelector('.newer').hidden && {newest} > {at * 10}")


def test_the_newest_line_stays_in_sight_when_panes_become_narrow(play, chromium):
    page = play(LONG, "#t=100")
    for width in (500, 1800):
        chromium.resize(width, 600)
        page.wait_until("""[...document.querySelectorAll(".log")].every(log =>
            log.scrollHeight - log.clientHeight - log.scrollTop < 2)""")


def test_a_click_on_a_message_goes_to_its_moment(play):
    page = play(LAB, "#t=300")
    page.click(".pane:nth-child(1) .line:nth-child(7) .row")
    assert (position(page), shown(page)) == (7.25, until(7.25, seen_by_all(LAB)))
    seek(page, 300)
    page.click(".pane:nth-child(4) .line:nth-child(3) .row")  # history comes at the moment of the join
    assert position(page) == 70.0


def test_a_click_into_the_chart_goes_there(play):
    page = play(LAB)
    page.click("#chart")
    assert position(page) == pytest.approx(150, abs=1)


def test_a_link_leads_to_a_moment(play):
    page = play(LAB, "#t=7.25")
    assert shown(page) == until(7.25, seen_by_all(LAB))
    seek(page, 71.0)
    page.click("#link")
    assert page.run("location.hash") == "#t=71"
    seek(page, 0)
    page.run("location.hash = '#t=9'")
    page.wait_until("document.getElementById('seek').valueAsNumber == 9")


@pytest.mark.parametrize("fragment", ["#t=", "#t=x", "#t=1e9", "#t=9999999", "#t=-5", "#<img src=x>"])
def test_a_link_to_nowhere_does_no_harm(play, fragment):
    assert 0 <= position(play(LAB, fragment)) <= 300


@pytest.mark.parametrize("start, key, goal", [
    (0, ".", 1), (7, ".", 7.25), (300, ".", 300), (20, "ArrowLeft", 15), (2, "ArrowLeft", 0),
    (20, "ArrowRight", 25), (0, "PageDown", 5), (5, "PageDown", 80), (80, "PageDown", 300),
    (100, "PageUp", 80), (80, "PageUp", 5), (5, "PageUp", 0)])
def test_keys_move_as_in_the_terminal(play, start, key, goal):
    page = play(LAB, f"#t={start}")
    page.press(key)
    assert position(page) == goal


def test_keys_change_the_speed(play):
    page, speeds = play(LAB), []
    for key in "++++++=--+":
        page.press(key)
        speeds.append(float(value(page, "speed")))
    assert speeds == [2, 4, 8, 16, 16, 16, 1, 0.5, 0.5, 1]


@pytest.mark.parametrize("text, goal", [("90", 90), ("1:12", 72), ("0:01:12.5", 72.5), ("9:00", 300),
                                        ("soon", 3.5), ("", 3.5)])
def test_g_goes_to_a_time(play, text, goal):
    page = play(LAB, "#t=3.5")
    page.press("g")
    page.type(text) if text else page.run("document.activeElement.value = ''")
    page.press("Enter")
    assert position(page) == goal
    assert value(page, "position") == f"{goal // 60:.0f}:{int(goal % 60):02}"


def test_letters_work_on_a_russian_keyboard_too(play):
    page = play(LAB)
    page.press("д", "KeyL")
    assert page.run("document.getElementById('loop').ariaPressed") == "true"
    page.press("п", "KeyG")
    assert page.run("document.activeElement.id") == "position"


def test_a_question_mark_shows_the_keys(play):
    page = play(LAB)
    page.press("?")
    assert page.run("document.getElementById('help').open")
    assert page.run("document.querySelectorAll('#keys tr').length") == 13
    page.press(" ")  # closes it, since the button has the focus, and does not play
    assert page.run("!document.getElementById('help').open")
    assert page.run("document.getElementById('play').ariaLabel") == "Play (Space)"


# --- search ---


def found(page):
    """What is marked as found in the first pane."""
    return page.run("""[...document.querySelectorAll(".pane:first-child .found")].map(span =>
        span.textContent)""")


def test_search_counts_marks_and_goes_round(play):
    page = play(LAB, "#t=6")
    page.press("/")
    page.type("Юля")
    assert value(page, "count") == "6"
    places = []
    for _ in range(7):
        page.press("Enter")
        places.append((position(page), value(page, "count")))
    assert places == [(7.25, "3 / 6"), (9, "4 / 6"), (71, "5 / 6"), (73, "6 / 6"), (1, "1 / 6"),
                      (3.5, "2 / 6"), (7.25, "3 / 6")]
    page.click("#previous-match")
    assert position(page) == 3.5
    assert found(page) == ["юля", "юля"]
    assert page.run("document.querySelector('.current').textContent").startswith("12:00 юля: привет")


@pytest.mark.parametrize("query, count", [("юля: прив", "1"), (".*", "0"), ("no such thing", "0"), ("", ""),
                                          ("@BOB is", "1"), ("12:01", "0")])
def test_search_takes_words_as_they_are_across_names_and_text(play, query, count):
    page = play(LAB, "#t=300")
    page.press("/")
    page.type(query)
    assert value(page, "count") == count
    assert "".join(found(page)).lower() == (query.lower() if count == "1" else "")
    page.press("Enter")


def test_a_match_amid_much_history_comes_into_sight(play):
    events = [{"re": "welcome", "t": 600.0, "you": "bob", "n": 1499, "people": ["ann", "bob"]}, *LONG,
              {"ev": "join", "n": 1500, "t": 600.0, "who": "bob", "from": 0}]
    page = play(events)
    page.press("/")
    page.type("line 77")
    page.press("Enter")
    line, log = page.run("""[".current", ".log"].map(part => {
        const {top, bottom} = document.querySelector(part).getBoundingClientRect();
        return [top, bottom]; })""")
    assert log[0] <= line[0] and line[1] <= log[1]


# --- languages and looks ---


@pytest.mark.parametrize("language, label", [("ru-RU", "Воспроизвести (Пробел)"), ("en-GB", "Play (Space)"),
                                             ("de-DE", "Play (Space)")])
def test_it_speaks_the_readers_language(play, chromium, language, label):
    chromium.speak(language)
    page = play(LAB)
    asked = "[document.documentElement.lang, document.getElementById('play').ariaLabel]"
    before = page.run(asked)
    assert before == ["ru" if language == "ru-RU" else "en", label]
    page.click("#language")
    assert page.run(asked)[0] != before[0]
    page.click("#language")
    assert page.run(asked) == before


def test_every_label_is_there_in_both_languages(play):
    page = play(LAB)
    assert page.run("Object.keys(WORDS.en).join() === Object.keys(WORDS.ru).join()")
    assert page.run("""[...document.querySelectorAll("button, input, select, .log, #chart")].filter(element =>
        !element.ariaLabel && !element.textContent.trim()).length""") == 0
    assert "undefined" not in page.run("document.body.innerText")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_can_be_read(play, chromium, dark):
    chromium.look(dark=dark)
    talk = [{"ev": "say", "n": n, "t": 36.0, "who": f"p{n}", "text": "a rob b"} for n in range(20, 60)]
    page = play([*OWN[:-1], *talk, {"ev": "mark", "n": 60, "t": 36.0, "text": "Task"}], "#t=36")
    page.press("/")
    page.type("a")
    worst = page.run("""(() => {
        const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
        const light = colour => numbers(colour).slice(0, 3).reduce((sum, part, i) => {
            const c = part / 255, linear = c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
            return sum + linear * [.2126, .7152, .0722][i]; }, .05);
        const ground = element => {
            const {backgroundColor} = getComputedStyle(element);
            const seen = numbers(backgroundColor)[3] !== 0;
            return seen ? light(backgroundColor) : ground(element.parentElement); };
        return [...document.querySelectorAll("header *, #controls *, .pane *")].filter(element =>
            [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())).map(element => {
                const colours = [light(getComputedStyle(element).color), ground(element)];
                return [Math.max(...colours) / Math.min(...colours), element.className, element.textContent];
            }).sort((a, b) => a[0] - b[0])[0];
    })()""")
    assert worst[0] >= 4.5, worst


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_hangs_over_the_edge_of_a_phone(play, chromium, width):
    chromium.resize(width, 844, phone=True)
    endless = {"ev": "say", "n": 20, "t": 301.0, "who": "w" * 32, "text": "x" * 10_000}
    page = play([{**SESSION, "room": "room" * 80}, *LAB[1:], endless], "#t=301")
    assert page.run("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert page.run("[...document.querySelectorAll('.log')].every(log => log.scrollWidth <= log.clientWidth)")


def test_paper_gets_the_whole_session(play, chromium):
    page = play(LAB)
    page.run("""var printed;
        addEventListener("beforeprint", () => {
            printed = [...document.querySelectorAll("#transcript .line")].map(line =>
                [...line.children].map(row => row.textContent).join("\\n"));
        })""")
    assert page.pdf().startswith(b"%PDF")
    assert page.run("printed") == [text for moment, text in seen_by_all(LAB)]
    assert page.run("document.getElementById('transcript').children.length") == 0
    chromium.look("print")
    page.run("dispatchEvent(new Event('beforeprint'))")
    chromium.resize(700, 900)
    assert page.run("""["#controls", "#panes", "#timeline"].every(part =>
        getComputedStyle(document.querySelector(part)).display === "none")""")
    assert page.run("document.getElementById('transcript').innerText").startswith("12:00 -- room лаб")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")


# --- small and large sessions ---


CROWD = session(*(("join", n / 10, {"who": f"p{n}", "from": 0}) for n in range(300)))


@pytest.mark.parametrize("events, panes", [([], 1), ([SESSION], 1), (CROWD, 5), (LAB[3:4], 1),
                                           ([chat.remark(0.0, "line 1 is damaged")], 1)],
                         ids=["empty", "one", "crowd", "no session line", "remark"])
def test_a_session_of_any_size_is_played(play, events, panes):
    page = play(events)
    assert len(page.run(SHOWN)) == panes
    for key in (".", " ", "ArrowRight", "PageDown", "PageUp", "ArrowLeft", "/"):
        page.press(key)
    page.type("a")
    page.press("Enter")
    page.pdf()
    seek(page, 1000)
    lines, expected = shown(page), [text for moment, text in seen_by_all(events)]
    assert lines == expected[len(expected) - len(lines):] and len(lines) >= min(len(events), 50)


# --- hostile words ---


def test_nothing_that_was_said_is_markup(play, chromium):
    chromium.resize(390, 844, phone=True)
    names = [text.replace("\n", " ")[:200] for text in HOSTILE]
    talk = [event for n, (text, name) in enumerate(zip(HOSTILE, names), 1) for event in (
        ("join", n, {"who": name, "from": 0}), ("say", n, {"who": name, "text": text}),
        ("mark", n, {"text": text}), ("nick", n, {"who": name, "name": name + "!"}),
        ("leave", n, {"who": name + "!", "why": text, "text": text}), ("poll", n, {"question": text}))]
    events = session(*talk, room=HOSTILE[0])
    page = play(events, "#t=100", HOSTILE[0])
    assert page.run("document.title") == HOSTILE[0]
    expected = [text for moment, text in seen_by_all(events)]
    assert shown(page) == expected
    assert not set("".join(expected)) & set("\u202e\u2066\u200f\u2028\u2029\0\x1b")
    for choice in range(1, len(HOSTILE) + 1):
        choose(page, "document.querySelector('.pane select')", choice)
    page.press("/")
    page.type("<")
    page.press("Enter")
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("typeof owned") == "undefined"
    assert page.run("document.querySelectorAll('script, img, a, b').length") == 1
    assert page.run("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]


@pytest.mark.parametrize("attempt", [
    "document.body.append(Object.assign(document.createElement('script'), {textContent: 'owned = 1'}))",
    "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"owned = 1\">')",
    "document.body.insertAdjacentHTML('beforeend', '<a id=a href=\"javascript:owned=1\">x</a>'); a.click()",
    "fetch('http://127.0.0.1:9/').then(() => { owned = 1 }, () => {})",
    "new Image().src = 'http://127.0.0.1:9/'",
    "setTimeout('owned = 1')",
])
def test_the_browser_itself_refuses_what_is_not_of_the_page(play, chromium, attempt):
    page = play(LAB)
    page.run("addEventListener('securitypolicyviolation', () => { refused = 1 })")
    page.run(f"try {{ {attempt} }} catch {{}}")
    page.wait_until("typeof refused === 'number'")
    assert page.run("typeof owned") == "undefined"
    chromium.errors.clear()  # they name the refusal
    chromium.requests.clear()  # among them those that were refused
