"""Make the pictures of the README from a real run: python tests/pictures.py

Real clients talk to a real server on emulated terminals; what their screens show becomes tests/pictures/*.svg.
"""
import html
import os
import pathlib
import re
import sys
import tempfile

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parent.parent)]
import terminal  # noqa: E402

from wcwidth import wcwidth  # noqa: E402

TOP = pathlib.Path(__file__).parent.parent
CELL, ROW, EDGE, BAR = 8.4, 18, 14, 30  # the size of a character, the margin, the window's title
GROUND, INK, DIM = "#1b1e26", "#d8dce6", "#8b92a5"
COLOURS = {"red": "#ff7a7a", "green": "#7ad489", "brown": "#e6c86e", "blue": "#7aa8ff", "magenta": "#d79bff",
           "cyan": "#6fd3dc", "brightred": "#ff9d9d", "brightgreen": "#a0e8ac", "brightblue": "#a5c5ff",
           "brightmagenta": "#e8c2ff", "default": INK, "black": "#30343f", "white": INK}


def runs(row, columns):
    """The row as (column, width, text, style) runs of one style, trailing blanks left out."""
    found, column = [], 0
    last = max((at for at in range(columns) if row[at].data.strip() or row[at].reverse), default=-1)
    while column <= last:
        cell = row[column]
        style = cell.fg, cell.bold, cell.reverse, cell.italics
        width = max(1, wcwidth(cell.data[:1])) if cell.data else 1
        if found and found[-1][3] == style and width == 1 == found[-1][4] and cell.data.isascii():
            at, length, text, style, wide = found.pop()
            found.append((at, length + 1, text + cell.data, style, 1))
        else:
            found.append((column, width, cell.data, style, 1 if cell.data.isascii() else 2))
        column += width
    return found


def picture(screen, title):
    """An emulated screen as an SVG that looks like a terminal's window."""
    rows = len([row for row in screen.display if row.strip()])
    width, height = screen.columns * CELL + 2 * EDGE, rows * ROW + BAR + EDGE
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
             f'height="{height:.0f}" font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14">',
             f'<title>{html.escape(title)}</title>',
             f'<rect width="100%" height="100%" rx="8" fill="{GROUND}"/>']
    parts += [f'<circle cx="{18 + 18 * number}" cy="15" r="5" fill="{colour}"/>'
              for number, colour in enumerate(("#ff6b60", "#ffc04a", "#4fd06a"))]
    parts.append(f'<text x="50%" y="20" text-anchor="middle" fill="{DIM}">{html.escape(title)}</text>')
    shown = [number for number, row in enumerate(screen.display) if row.strip()]
    for line, number in enumerate(shown):
        for column, length, text, (ink, bold, reverse, italic), _ in runs(screen.buffer[number], screen.columns):
            x, y = EDGE + column * CELL, BAR + line * ROW + 14
            colour = COLOURS.get(ink, INK)
            if reverse:
                parts.append(f'<rect x="{x:.1f}" y="{y - 14}" width="{length * CELL:.1f}" height="{ROW}" fill="{colour}"/>')
                colour = GROUND
            if text.strip():
                weight = ' font-weight="bold"' * bool(bold) + ' font-style="italic"' * bool(italic)
                parts.append(f'<text x="{x:.1f}" y="{y}" textLength="{length * CELL:.1f}" lengthAdjust="spacingAndGlyphs" '
                             f'fill="{colour}"{weight} xml:space="preserve">{html.escape(text)}</text>')
    return "\n".join(parts) + "\n</svg>\n"


def talk(folder):
    """Play the scene; returns {file name: (screen, title)}."""
    program = [sys.executable, str(TOP / "chat.py")]
    opened = []

    def open_terminal(*words, rows=16, columns=86):
        opened.append(terminal.Terminal([*program, *words], columns=columns, rows=rows, cwd=folder,
                                        env={"HOME": str(folder), "XDG_STATE_HOME": str(folder)}))
        return opened[-1]

    try:
        console = open_terminal("serve", "--port", "0", "--room", "lab 3", "--log", "lab.jsonl", rows=20)
        console.see(r"Ctrl\+C ends the room")
        port = re.search(r"listens on 127\.0\.0\.1:(\d+)", console.text()).group(1)
        people = {}
        for name in ("ann", "юля", "bob"):
            people[name] = open_terminal("join", f"127.0.0.1:{port}", "--name", name)
            people[name].see(f"{name} joined")
        for name, line, seen in (
                ("ann", "who has the cable?", "ann: who has the cable"), ("юля", "у меня 😀", "юля: у меня"),
                ("bob", "Ann, it is on the last desk", "bob: Ann, it is"), ("ann", "/me waves", "ann waves"),
                ("юля", "/tell bob спасибо за схему", None), ("ann", "/tell юля 今日は", None)):
            people[name].type(line + "\r")
            for screen in people.values() if seen else ():
                screen.see(seen)
        people["bob"].see("спасибо за схему")
        people["юля"].see("今日は")
        console.type("/mark Part two: the second server\r")
        for screen in people.values():
            screen.see("Part two")
        people["ann"].type("coming, one mom")
        people["ann"].see_prompt("ann> coming, one mom")
        console.type("/who\r")
        console.see("bob from 127.0.0.1")
        console.see_prompt(">")
        menu = open_terminal(rows=12)
        menu.see("6. quit")
        return {"talk.svg": (people["ann"].screen, "ann"), "console.svg": (console.screen, "the server"),
                "menu.svg": (menu.screen, "python3 chat.pyz")}
    finally:
        for one in opened:
            one.close()


def main():
    target = TOP / "tests" / "pictures"
    os.makedirs(target, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, (screen, title) in talk(pathlib.Path(folder)).items():
            (target / name).write_text(picture(screen, title), encoding="utf-8")
            print(target / name)


if __name__ == "__main__":
    main()
