"""A terminal for tests: a program runs in a pseudo-terminal, and its screen is emulated and looked at."""
import codecs
import os
import re
import select
import signal
import struct
import subprocess
import time

import pyte

fcntl = None
try:
    import fcntl
    import pty
    import termios
except ImportError:  # Windows has none of them; the tests that need a terminal are skipped there
    pass

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
            env={**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8",
                 "XDG_STATE_HOME": os.devnull, **(env or {})},  # the menu's memory is not for tests
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)

    def resize(self, columns, rows):
        """Give the terminal another size, as by dragging the corner of its window."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def type(self, text):
        """Press these keys."""
        os.write(self.master, text.encode())

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

    def close(self):
        """End the program if it still runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.master)
