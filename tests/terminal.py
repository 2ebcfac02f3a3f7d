"""A terminal for tests: a program runs in a pseudo-terminal, and its screen is emulated and looked at."""
import codecs
import contextlib
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time

import pyte
import pytest

import chat

fcntl = None
try:
    import fcntl
    import pty
    import termios
except ImportError:  # Windows has none of them; the tests that need a terminal are skipped there
    pass

needs_terminal = pytest.mark.skipif(not fcntl, reason="needs pseudo-terminals")
CHAT = [sys.executable, chat.__file__]
SECONDS = 10  # for anything to appear; only a failing test waits so long


class Terminal:
    """A program on a terminal of its own, and what a person sees there."""

    def __init__(self, command, columns=80, rows=24, env=None, cwd=None):
        self.screen = pyte.HistoryScreen(columns, rows, history=200_000, ratio=0.5)
        self.stream = pyte.Stream(self.screen)
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.raw = []  # all that the program wrote
        self.master, slave = pty.openpty()
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, start_new_session=True,
            env={**{name: value for name, value in os.environ.items() if name != "NO_COLOR"},
                 "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8",
                 "XDG_STATE_HOME": os.devnull, **(env or {})},  # the menu's memory is not for tests
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *trouble):
        self.close()

    def resize(self, columns, rows=24):
        """Give the terminal another size, as by dragging the corner of its window."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def type(self, text):
        """Press these keys."""
        os.write(self.master, text.encode())

    def enter(self, text):
        """Type this line, and wait until it has been taken and the input line is empty again."""
        self.type(text)
        self.wait(lambda: self.rows()[-2:-1] and self.rows()[-2].endswith(f"> {text}"), text)
        self.type("\r")
        self.wait(lambda: self.rows()[-2:-1] and re.fullmatch(r"\w*>", self.rows()[-2]), "an empty input line")

    def read(self, seconds=0.0):
        """Take in what the program wrote, waiting so long for it; False when nothing came."""
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the program has ended
            return False
        text = self.decode(data)
        self.raw.append(text)
        self.stream.feed(text)
        return bool(data)

    def written(self):
        """All that the program wrote so far, as it wrote it."""
        return "".join(self.raw)

    def rows(self):
        """The rows on the screen, without the blank ones at its end."""
        rows = [row.rstrip() for row in self.screen.display]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def text(self):
        """All rows, those that have scrolled away first."""
        def row(cells):
            return "".join(cells[column].data for column in range(self.screen.columns)).rstrip()

        return "\n".join([row(cells) for cells in self.screen.history.top] + self.rows())

    def wait(self, seen, what=None):
        """Read until seen() is true."""
        until = time.monotonic() + SECONDS
        while not seen():
            if not self.read(0.05) and time.monotonic() > until:
                raise AssertionError(f"not seen: {what or seen}\n" + "\n".join(self.rows()))

    def see(self, pattern):
        """Wait until a row on the screen matches this pattern."""
        self.wait(lambda: any(re.search(pattern, row) for row in self.rows()), pattern)

    def see_prompt(self, typed):
        """Wait until the input line, above the bar with the status, is exactly this."""
        self.wait(lambda: self.rows()[-2:-1] == [typed], typed)

    def see_bar(self, pattern):
        """Wait until the bar below the input line matches this pattern."""
        self.wait(lambda: self.rows() and re.search(pattern, self.rows()[-1]), pattern)

    def exit_code(self):
        """Wait until the program ends by itself."""
        until = time.monotonic() + SECONDS
        while self.process.poll() is None and time.monotonic() < until:
            self.read(0.05)
        while self.read():
            pass
        return self.process.wait(0.1)

    @contextlib.contextmanager
    def _closed_on_failure(self):
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self):
        """End the program if it still runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.master)


class Console(Terminal):
    """`serve` on a terminal, once its input line is there; a server to connect to."""

    prompt, name = ">", "server"

    def __init__(self, folder, *options, columns=120, **settings):
        super().__init__([*CHAT, "serve", "--port", "0", *options], columns, cwd=folder, **settings)
        with self._closed_on_failure():
            self.see(r"listens on 127\.0\.0\.1:\d+$")
            port = re.search(r"listens on 127\.0\.0\.1:(\d+)$", self.text(), re.M).group(1)
            self.address = "127.0.0.1", int(port)
            self.see_prompt(self.prompt)


class Person(Terminal):
    """`join` on a terminal, once this person is in the room."""

    def __init__(self, folder, server, *options, name="bob", **settings):
        self.prompt, self.name = f"{name}>", name
        super().__init__([*CHAT, "join", "%s:%d" % server.address, "--name", name, *options], cwd=folder, **settings)
        with self._closed_on_failure():
            self.see(f"-- {name} joined")
            self.see_prompt(self.prompt)
