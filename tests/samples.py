"""Record the sample sessions again: python tests/samples.py [NAME]

A scene is a table of who types what and when. It is played by the program itself: a server that records and a
client for each person, on terminals of their own. What the server wrote becomes sessions/sample-NAME.jsonl.
"""
import collections
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TOP / "tests"), str(TOP)]
import chat  # noqa: E402
import helpers  # noqa: E402
import terminal  # noqa: E402

HOST = "server"  # who types on the console of `serve`
# What people do besides typing: start a client, make it hang, kill it, end the room.
OPEN, FREEZE, KILL, CLOSE = "(open)", "(freeze)", "(kill)", "(close)"

Scene = collections.namedtuple("Scene", "room zone lines")  # zone: what TZ is set to

# Each line: when, in seconds since the server listens; who; what they do or else type.
LAB = Scene("лаб 3", "MSK-3", [
    (0.4, "аня", OPEN),
    (3.1, "боря", OPEN),
    (6.3, "аня", "привет! меня видно?"),
    (8.9, "боря", "привет, да, строка пришла сразу"),
    (10.6, "вика", OPEN),
    (13.7, "вика", "всем привет 👋"),
    (17.2, "аня", "отлично, нас трое. пойдём по пунктам третьей лабы?"),
    (19.4, "боря", "давай"),
    (23.8, "аня", "первый: сервер держит несколько клиентов сразу"),
    (28.1, "вика", "держит: у каждого свой поток, и пока я печатаю, вы меня не ждёте"),
    (32.3, "боря", "второй, кириллица: съешь же ещё этих мягких французских булок"),
    (35.9, "вика", "булки дошли целиком, ё и й на месте"),
    (38.8, "аня", "и эмодзи: 🙂🚀"),
    (41.0, "боря", "видно"),
    (43.7, "боря", "/me проверяет команду /me"),
    (50.2, "вика", "боря, запиши в отчёт:\n1) несколько клиентов: да\n2) кириллица и эмодзи: да"),
    (52.4, "боря", "записал"),
    (53.6, "гриша", OPEN),
    (56.9, "гриша", "привет, я опоздал. что пропустил?"),
    (61.7, "аня", "гриша, привет! клиентов и кириллицу проверили, осталось отключение"),
    (66.0, "гриша", "ага, вижу: сервер прислал мне всё, что вы написали раньше"),
    (71.3, "вика", "сейчас я выйду, а вы немного подождите: вдруг остальных тоже отключит"),
    (72.8, "вика", "/quit"),
    (81.2, "боря", "все на месте, просто появилась строчка, что вика вышла"),
    (84.4, "гриша", "а имя поменять можно? в отчёте нужны полные"),
    (86.5, "боря", "да, командой /nick"),
    (88.7, "гриша", "/nick григорий"),
    (94.1, "аня", "готово, григорий 🙂 разговор записан в файл строка за строкой: приложим его к отчёту "
                  "и покажем на защите"),
    (96.3, "григорий", "супер, спасибо!"),
    (97.6, "боря", "всем пока"),
    (99.2, "аня", "пока 👋 закрываю комнату"),
    (100.4, HOST, CLOSE),
])

CLASS = Scene("networks", "CET-1", [
    (0.4, "ann", OPEN),
    (2.2, "bob", OPEN),
    (4.1, "李雷", OPEN),
    (6.4, HOST, "welcome! three small exercises: say here what you find"),
    (8.6, "ann", "hi all"),
    (9.9, "bob", "hello!"),
    (11.8, "李雷", "大家好 👋"),
    (13.1, "mira", OPEN),
    (16.2, "mira", "hi, sorry, I had the wrong port"),
    (18.3, HOST, "/mark Part one: who talks to whom?"),
    (21.5, HOST, "how many TCP sockets does the server hold right now?"),
    (24.6, "bob", "four, one for each of us"),
    (27.3, "ann", "and the one that listens, so five"),
    (31.4, "mira", "none of us talks to another one, it all goes through the server"),
    (34.2, HOST, "five it is, and mira is right too"),
    (36.8, HOST, "/mark Part two: what is in a line?"),
    (40.3, HOST, "how many bytes are hello and 你好 in UTF-8? no interpreter, please"),
    (42.7, "bob", "hello is 5"),
    (45.9, "李雷", "你好是六个字节"),
    (48.8, "ann", "李雷, is it three for each character?"),
    (52.0, "李雷", "对，常用汉字都是三个字节"),
    (54.6, "mira", "and 🙂 is four"),
    (61.8, "ann", "so a reader must not take what one recv returns for text: it may end in the middle of a "
                  "character, and only the newline says that a line is whole"),
    (64.1, HOST, "that is the whole trick"),
    (67.0, "bob", "/me goes to mend his client"),
    (69.2, HOST, "/mark Part three: a client that dies"),
    (73.4, HOST, "mira, freeze your client and then kill it, without /quit\n"
                 "the others: what do you see, and when?"),
    (75.7, "mira", "ok, freezing it now"),
    (76.5, "mira", FREEZE),
    (79.3, "ann", "mira, are you there?"),
    (83.0, "bob", "no answer, but the bar below still says 4 here"),
    (84.6, "mira", KILL),
    (87.5, "ann", "now: mira lost the connection"),
    (90.0, HOST, "how did the server notice?"),
    (94.9, "bob", "there were lines that her client had not read, so her system reset the connection"),
    (95.8, "mira", OPEN),
    (98.7, "mira", "back, with my old name! the history has what I missed"),
    (101.4, "李雷", "明白了，谢谢"),
    (104.2, HOST, "well done, you all get the recording. see you next week!"),
    (105.9, "ann", "bye 👋"),
    (106.8, "bob", "/quit"),
    (107.6, "李雷", "再见"),
    (109.3, HOST, CLOSE),
])

SCENES = {"lab": LAB, "class": CLASS}


def event_of(who, what):
    """The fields of the event that a line of a scene becomes; None if the room does not hear of it."""
    word, _, rest = what.partition(" ")
    events = {
        OPEN: {"ev": "join", "who": who},
        FREEZE: None,
        KILL: {"ev": "leave", "who": who, "why": "lost"},
        CLOSE: {"ev": "end"},
        "/quit": {"ev": "leave", "who": who, "why": "left"},
        "/nick": {"ev": "nick", "who": who, "name": rest},
        "/me": {"ev": "me", "who": who, "text": rest},
        "/mark": {"ev": "mark", "text": rest},
    }
    return events.get(word, {"ev": "say", "who": who, "text": what})


def target(name):
    """Where the recording of this scene belongs."""
    return TOP / "sessions" / f"sample-{name}.jsonl"


class Stage:
    """A room that records, and the terminals of all who are in it."""

    def __init__(self, scene, folder):
        self.scene, self.folder = scene, pathlib.Path(folder)
        self.recording = self.folder / "recording.jsonl"
        self.terminals = {}  # name: terminal; the console is HOST's
        self.heard = 1  # lines that the recording must have by now; the first is the session itself

    def __enter__(self):
        return self

    def __exit__(self, *trouble):
        for one in self.terminals.values():
            one.close()

    def play(self):
        """Play the whole scene; afterwards the recording is complete."""
        self._open(HOST, "serve", "--port", "0", "--room", self.scene.room, "--log", self.recording.name)
        console = self.terminals[HOST]
        console.see_prompt(">")
        self.address = re.search(r"listens on (127\.0\.0\.1:\d+)", console.text()).group(1)
        curtain = time.monotonic()
        for when, who, what in self.scene.lines:
            self._watch(lambda: False, curtain + when - time.monotonic())
            ACTIONS.get(what, Stage._type)(self, who, what)
            self._expect(event_of(who, what))
            self._follow_up(who, what)

    # --- what people do ---

    def _join(self, who, what):
        self._open(who, "join", self.address, "--name", who)
        self.terminals[who].see_prompt(f"{who}>")

    def _type(self, who, what):
        self.terminals[who].type(what.replace("\n", "\x1b\r") + "\r")  # Alt+Enter begins a new row

    def _freeze(self, who, what):
        self.terminals[who].process.send_signal(signal.SIGSTOP)

    def _kill(self, who, what):
        # A connection counts as lost when it is reset, which a system does if something was left unread:
        # so in a scene somebody has to speak between FREEZE and KILL.
        self.terminals.pop(who).close()

    def _close(self, who, what):
        self.terminals[HOST].type("\x03")  # Ctrl+C

    # --- what comes of it ---

    def _open(self, who, *words):
        settings = {"HOME": str(self.folder), "XDG_STATE_HOME": str(self.folder), "TZ": self.scene.zone}
        program = helpers.limited(HOLD_SECONDS=0.0)  # whoever is killed in a scene is lost at once
        self.terminals[who] = terminal.Terminal([*program, *words], cwd=self.folder, env=settings)

    def _watch(self, seen, seconds):
        # A program whose terminal nobody reads would stop in the end, so all of them are read all the time.
        until = time.monotonic() + seconds
        while not seen() and time.monotonic() < until:
            for one in self.terminals.values():
                one.read()
            time.sleep(0.01)
        return seen()

    def _expect(self, fields):
        # What is in the recording has its place among the events: only then may the next line follow.
        if fields is None:
            return
        self.heard += 1
        arrived = self._watch(lambda: len(self._lines()) >= self.heard, helpers.SECONDS)
        event, fields = chat.decode_event(self._lines()[-1].decode()), {**fields, "n": self.heard - 1}
        assert arrived and helpers.has(event, fields), f"{fields} expected, {event} came last"

    def _lines(self):
        return self.recording.read_bytes().split(b"\n")[:-1]

    def _follow_up(self, who, what):
        if what.startswith("/nick "):
            self.terminals[event_of(who, what)["name"]] = self.terminals.pop(who)
        for name in {"/quit": [who], CLOSE: list(self.terminals)}.get(what, ()):
            code = self.terminals[name].exit_code()
            assert code == 0, f"{name} ended with exit code {code}"
            self.terminals.pop(name).close()


ACTIONS = {OPEN: Stage._join, FREEZE: Stage._freeze, KILL: Stage._kill, CLOSE: Stage._close}


def record(scene, path):
    """Play a scene in a temporary folder and put its recording to this path."""
    with tempfile.TemporaryDirectory() as folder, Stage(scene, folder) as stage:
        stage.play()
        os.makedirs(path.parent, exist_ok=True)
        shutil.copyfile(stage.recording, path)


def main(names):
    """Record the named scenes; all of them, side by side, if none is named."""
    if not names:
        players = [subprocess.Popen([sys.executable, __file__, name]) for name in SCENES]
        return int(any([player.wait() for player in players]))
    for name in names:
        record(SCENES[name], target(name))
        print(target(name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
