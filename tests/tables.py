"""The table of marks in chat.py, made from Unicode's data: python tests/tables.py prints it as it stands there.

A mark belongs to the character before it: whatever Unicode calls a mark, and whatever takes no column by the tables
of wcwidth, which know the newest Unicode, such as the vowels of Korean syllables. Not in it is what `clean` takes
away or replaces, and what stands in ACCENTS already. Unicode assigns marks each year; then raise the version of
wcwidth, run this and put what it prints into chat.py.
"""
import pathlib
import re
import sys
import textwrap
import unicodedata

from wcwidth.table_zero import ZERO_WIDTH

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import chat  # noqa: E402

VERSION, ZERO = list(ZERO_WIDTH.items())[-1]  # the newest
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def marks():
    """Every code point that is a mark, or takes no column, and is neither removed, replaced nor an accent."""
    known = re.compile(f"[{chat.UNSEEN}{chat.JOINERS}{chat.BREAKS}{chat.CONTROLS}{chat.NOT_CHARACTERS}{chat.ACCENTS}"
                       "\U0001f3fb-\U0001f3ff]")  # the last are colours of skin, which stand alone, too
    points = {point for first, last in ZERO for point in range(first, last + 1)}
    points.update(point for point in range(0x110000) if unicodedata.category(chr(point))[0] == "M")
    return sorted(point for point in points if not known.match(chr(point)))


def ranges(points):
    """These sorted code points as [first, last] of each run."""
    runs = []
    for point in points:
        if runs and point == runs[-1][1] + 1:
            runs[-1][1] = point
        else:
            runs.append([point, point])
    return runs


def base36(number):
    """The digits of a number, as int(digits, 36) reads them."""
    return (base36(number // 36) if number > 35 else "") + DIGITS[number % 36]


def packed(runs):
    """The runs as words: how far behind the last one it begins and, if it is longer than one, by how much."""
    words, before = [], 0
    for first, last in runs:
        words.append(base36(first - before) + ("-" + base36(last - first) if last > first else ""))
        before = last
    return " ".join(words)


def rows():
    """The table as it stands in chat.py."""
    parts = textwrap.wrap(packed(ranges(marks())), 105, break_on_hyphens=False)
    return "\n".join(f'    "{part} "' for part in parts)[:-2] + '")'


if __name__ == "__main__":
    print(f"# Unicode {VERSION}\n{rows()}")
