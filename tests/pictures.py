"""Make the pictures of the README from a real run: python tests/pictures.py

Real clients talk to a real server on emulated terminals; what their screens show becomes tests/pictures/*.svg.
"""
import os
import pathlib
import re
import sys
import tempfile

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parent.parent)]
import chat  # noqa: E402
import terminal  # noqa: E402

TOP = pathlib.Path(__file__).parent.parent
CODES = {"default": "", **{f"{bright}{name}": f"{first}{number}" for bright, first in (("", 3), ("bright", 9))
                           for number, name in enumerate("black red green brown blue magenta cyan white".split())}}


def picture(screen, title):
    """An emulated screen as an SVG that looks like a terminal's window."""
    rows = []
    for row in (screen.buffer[number] for number, text in enumerate(screen.display) if text.strip()):
        cells = [(column, 1 if row[column + 1].data else 2, row[column].data, code_of(row[column]))
                 for column in range(screen.columns) if row[column].data]  # behind a wide character is an empty one
        while cells and not cells[-1][2].strip() and not cells[-1][3]:
            cells.pop()
        rows.append(cells)
    return chat.window(rows, title, screen.columns)


def code_of(cell):
    """The terminal code by which this cell looks as it does."""
    looks = "1" * cell.bold, "3" * cell.italics, "7" * cell.reverse, CODES.get(cell.fg, "")
    return ";".join(filter(None, looks))


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
        player = open_terminal("replay", "demo-en", "--as", "bob", "--speed", "8")
        player.see("hello is 5")
        player.type(" ")
        player.see("^paused ")
        return {"talk.svg": (people["ann"].screen, "ann"), "console.svg": (console.screen, "the server"),
                "menu.svg": (menu.screen, "python3 chat.pyz"),
                "player.svg": (player.screen, "python3 chat.pyz replay demo-en --as bob")}
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
