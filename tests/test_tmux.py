"""Three people on three real terminals: tmux draws them, its keys type, its screens are looked at."""
import os
import re
import shlex
import shutil
import subprocess
import time

import pytest

import chat
from terminal import CHAT as PROGRAM

pytestmark = pytest.mark.skipif(not shutil.which("tmux"), reason="needs tmux")
CHAT = " ".join(map(shlex.quote, PROGRAM))
LONG_CYRILLIC = "Съешь же ещё этих мягких французских булок. " * 90 + "конец"
LONG_EMOJI = "😀🎉👍🏽❤️" * 500 + "!"


class Tmux:
    """A tmux server of this test's own, with a window for each person."""

    def __init__(self, folder):
        self.socket, self.folder = str(folder / "tmux"), folder

    def run(self, *arguments, check=True):
        return subprocess.run(["tmux", "-S", self.socket, "-f", os.devnull, *arguments], check=check, timeout=30,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder).stdout.decode()

    def open(self, window, command):
        self.run("new-session", "-d", "-s", window, "-x", "100", "-y", "30", command)
        self.run("set-option", "-t", window, "remain-on-exit", "on")
        self.run("set-option", "-t", window, "history-limit", "20000")

    def type(self, window, text):
        self.run("send-keys", "-t", window, "-l", text)

    def enter(self, window, text=""):
        if text:
            self.type(window, text)
        self.run("send-keys", "-t", window, "Enter")

    def screen(self, window):
        """All that the window shows and has scrolled away, soft line breaks joined."""
        return self.run("capture-pane", "-t", window, "-p", "-J", "-S", "-20000")

    def see(self, window, pattern):
        until = time.monotonic() + 20
        while not re.search(pattern, self.screen(window), re.M):
            assert time.monotonic() < until, f"{window} never saw {pattern}:\n{self.screen(window)}"
            time.sleep(0.05)


@pytest.fixture
def tmux(tmp_path):
    tmux = Tmux(tmp_path)
    yield tmux
    tmux.run("kill-server", check=False)


def lines_of(screen):
    """The chat's own lines on a screen, without spaces: all but the prompt and what tmux adds."""
    lines = []
    for row in screen.split("\n"):
        if re.match(r"\d\d:\d\d ", row):
            lines.append(row)
        elif row.startswith(chat.CONTINUED):
            lines[-1] += row[len(chat.CONTINUED):]
    return ["".join(line.split()) for line in lines]


def test_three_people_talk_one_leaves_one_comes_late(tmux, tmp_path):
    tmux.open("server", f"{CHAT} serve --port 0 --log lab.jsonl --room lab")
    tmux.see("server", r"Ctrl\+C ends the room")
    port = re.search(r"listens on 127\.0\.0\.1:(\d+)", tmux.screen("server")).group(1)
    join = f"{CHAT} join 127.0.0.1:{port} --name"
    for name in ("ann", "боб", "eve"):
        tmux.open(name, f"{join} {name}")
        tmux.see(name, f"-- {name} joined")
    tmux.type("ann", "half a line of mine")
    tmux.enter("боб", LONG_CYRILLIC)
    tmux.enter("eve", LONG_EMOJI)
    for name in ("ann", "боб", "eve"):
        tmux.see(name, "конец$")
        tmux.see(name, "!$")
    tmux.see("ann", "^ann> half a line of mine$")
    tmux.enter("ann", ", and the rest")
    tmux.see("eve", "ann: half a line of mine, and the rest$")
    tmux.enter("eve", "/quit")
    tmux.see("ann", "-- eve left$")
    tmux.open("zoe", f"{join} zoe")
    tmux.see("zoe", "-- you are zoe; 3 here: ann, боб, zoe; this session is recorded$")
    tmux.see("zoe", "ann: half a line of mine, and the rest$")
    tmux.see("ann", "-- zoe joined$")
    tmux.run("send-keys", "-t", "server", "C-c")
    for name in ("ann", "боб", "zoe", "server"):
        tmux.see(name, "-- the room is closed$")
    for name in ("ann", "боб", "zoe"):  # after their own welcome, which is in no file of the server
        replayed = subprocess.run([*PROGRAM, "replay", "lab.jsonl", "--instant", "--as", name], cwd=tmp_path,
                                  check=True, stdout=subprocess.PIPE).stdout.decode().splitlines()
        assert lines_of(tmux.screen(name))[1:] == ["".join(line.split()) for line in replayed], name
        assert any(line.endswith(f"боб: {LONG_CYRILLIC}") for line in replayed)
        assert any(line.endswith(f"eve: {LONG_EMOJI}") for line in replayed)


def test_a_player_whose_window_gets_narrower_and_wider_leaves_nothing_among_the_lines(tmux):
    # tmux breaks rows that are too long now, and joins them again, as most terminals do.
    tmux.open("wall", f"seq 100; {CHAT} replay demo --max-gap 0.5")
    for number, columns in enumerate((70, 40, 30, 100), 1):
        tmux.see("wall", "^playing  ")
        tmux.run("resize-window", "-t", "wall", "-x", str(columns), "-y", "30")
        tmux.type("wall", "+")
        tmux.see("wall", rf"^playing  .* {2 ** number}x ")
    tmux.see("wall", "^the end  ")
    rows = tmux.screen("wall").split("\n")
    assert [row for row in rows if re.match("playing|paused| space", row)] == [
        row for row in rows if row.startswith(" space pause")][-1:]
    tmux.type("wall", "q")
    until = time.monotonic() + 20
    while tmux.run("display-message", "-p", "-t", "wall", "#{pane_dead}") != "1\n":
        assert time.monotonic() < until
        time.sleep(0.05)
