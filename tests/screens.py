"""All that can be said, shown by `join` on an emulated terminal: nothing leaves its row, or begins another's."""
import random
import re
import tempfile

import chat
from helpers import joined, serving
from terminal import Person
from test_rendering import PADDED

AT_THE_EDGE = re.compile(r"\d\d:\d\d |" + re.escape(chat.CONTINUED.rstrip()))  # how every row of the talk begins
STRINGS = re.compile("\x1b[]PX^_]|[\x90\x98\x9b\x9d-\x9f]")  # what sets titles, clipboards and the like
MOVES = re.compile("\x1b\\[([0-9;?]*)([^0-9;?])")  # what an input line needs: colours, moving and clearing
PASTE = 2004 << 5  # a mode that the input line itself sets and takes back, as pyte counts it


def every_point(first, last):
    """All code points in this stretch that can be said at all."""
    return [chr(point) for point in range(first, last) if point and not 0xd800 <= point < 0xe000]


def escapes():
    """Each escape sequence of two bytes, and what many terminals obey besides."""
    pairs = [f"\x1b{chr(byte)}" for byte in range(1, 256)] + [f"\x1b[{chr(byte)}" for byte in range(1, 256)]
    return pairs + ["\x1b[2J", "\x1b[1;1H", "\x1b]0;title\x07", "\x1b]52;c;aGk=\x07", "\x1b[?1049h", "\x1bPq\x1b\\",
                    "\x9b2J", "\x1b[10A", "\x1b#8", "\x1bc", "\r", "\b\b\b\b\b\b\b\b\b\b\b\b", "\x0e", "\x0f", "\x84"]


def messages(seed, points):
    """What eve says: every code point between letters, in an order of its own, and every escape in a text."""
    said = every_point(0, points)
    for first in range(0, len(said), 200):
        yield "a".join(said[first:first + 200]) + "a"
    mixed = random.Random(seed).sample(said, min(len(said), 20_000))
    for first in range(0, len(mixed), 100):
        yield "".join(mixed[first:first + 100]) + "."
    for first in range(0, len(escapes()), 10):
        yield "b".join(escapes()[first:first + 10]) + "b"


def codepoints(seed=1, points=0x110000, widths=(20, 23, 40, 57, 79, 80, 81, 132, 200)):
    """Every code point and escape at 80 columns, and forged lines at all these widths."""
    rows = 0
    with tempfile.TemporaryDirectory() as folder, serving() as server, joined(server, "eve") as eve:
        with Person(folder, server) as bob:
            mode = set(bob.screen.mode) - {PASTE}
            rows += _show(bob, eve, messages(seed, points))
            changed = mode ^ set(bob.screen.mode) - {PASTE}
            assert (bob.screen.title, bob.screen.icon_name, changed) == ("", "", set()), changed
        for columns in widths:
            with Person(folder, server, columns=columns, name=f"w{columns}") as bob:
                rows += _show(bob, eve, [padding(columns) for padding in PADDED.values()])
    return (f"{points:,} code points, {len(escapes())} escapes, {len(PADDED)} forged lines at {len(widths)} widths: "
            f"{rows:,} rows on the screen, each its own line's or a continued one")


def _show(bob, eve, texts):
    # Have all this said, a little at a time, so that the client shows it all; returns how many rows that made.
    start = len(bob.written())
    bob.screen.history.top.clear()
    texts = [text for text in texts if chat._blank.sub("", text)]
    for number in range(0, len(texts), 10):
        eve.say(*texts[number:number + 10], f"sync {number}")
        bob.wait(lambda: f"sync {number}" in "".join(bob.raw[-20:]), f"sync {number}")
        eve.settle()  # who does not read is taken for dead after a while
        eve.heard.clear()
    written = bob.written()[start:]
    assert not STRINGS.search(written), ascii(STRINGS.search(written).group())
    ends = {end for numbers, end in MOVES.findall(written)}
    assert ends <= set("mABCDGHJKhlsu"), f"a strange sequence: {ends}"
    talk = bob.text().split("\n")[:-2]
    wrong = [row for row in talk if row.strip() and not AT_THE_EDGE.match(row) and not row.startswith("chat ")]
    assert not wrong, f"at the left edge: {wrong[:3]}"
    assert not any("skipped" in row for row in talk), "a line was not shown"
    return len(talk)
