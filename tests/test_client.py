"""`join`: what a person sees and types, on a terminal and without one."""
import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import threading

import pytest

import chat
import terminal

CHAT = [sys.executable, chat.__file__]
needs_terminal = pytest.mark.skipif(not terminal.fcntl, reason="needs pseudo-terminals")


@pytest.fixture
def server():
    """A server in this process, on a free port."""
    server = chat.Server(chat.Room("lab"), chat.listen("127.0.0.1", 0), rate=0)
    server.start()
    yield server
    server.stop()


def port_of(server):
    return server.address[1]


def address_of(server):
    return f"127.0.0.1:{port_of(server)}"


class Friend:
    """Somebody else in the room, at the other end of a plain socket."""

    def __init__(self, server, name):
        self.sock = socket.create_connection(server.address, 10)
        self.file = self.sock.makefile("rb")
        self.send(do="hello", name=name)
        self.hear("welcome")

    def send(self, **request):
        self.sock.sendall(chat.encode(request))

    def say(self, text):
        self.send(do="say", text=text)

    def hear(self, *words):
        """Read on until the line that is or holds all of these words; returns it."""
        for line in self.file:
            if all(word in line.decode() for word in words):
                return chat.decode_event(line.decode())
        raise AssertionError(f"never heard: {words}")

    def close(self):
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # wakes whoever still reads
        self.file.close()
        self.sock.close()


@pytest.fixture
def friend(server):
    friend = Friend(server, "eve")
    yield friend
    friend.close()


@pytest.fixture
def opened(tmp_path):
    """A function that opens terminals with join on them, all closed at the end."""
    terminals = []

    def open_one(server, *options, **settings):
        address = server if isinstance(server, str) else address_of(server)
        terminals.append(terminal.Terminal([*CHAT, "join", address, *options], cwd=tmp_path, **settings))
        return terminals[-1]

    yield open_one
    for one in terminals:
        one.close()


def joined(opened, server, name="bob", **settings):
    screen = opened(server, "--name", name, **settings)
    screen.see(f"-- {name} joined")
    screen.see_prompt(f"{name}>")
    return screen


def piped(server, text, *options, **settings):
    """What join prints and returns with this text as its input."""
    address = server if isinstance(server, str) else address_of(server)
    done = subprocess.run([*CHAT, "join", address, *options], input=text.encode(), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=30, **settings)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def without_times(text):
    return re.sub(r"(?m)^\d\d:\d\d ", "", text)


# --- on a terminal ---


@needs_terminal
def test_what_is_typed_stays_whole_below_what_arrives(opened, server, friend):
    screen = joined(opened, server)
    screen.type("half a li")
    screen.see_prompt("bob> half a li")
    friend.say("привет 😀")
    screen.see("eve: привет 😀")
    screen.see_prompt("bob> half a li")
    screen.type("ne\r")
    screen.see(r"^\d\d:\d\d bob: half a line$")
    screen.see_prompt("bob>")
    assert friend.hear("half a line")["who"] == "bob"


@needs_terminal
def test_a_flood_never_breaks_what_is_typed(opened, server, friend):
    screen, text = joined(opened, server), "quick brown fox"
    enough = threading.Event()

    def flood():
        for start in range(0, 100_000, 100):  # 5,000 lines a second
            friend.sock.sendall(b"".join(chat.encode({"do": "say", "text": f"flood {start + number}"})
                                         for number in range(100)))
            if enough.wait(0.02):
                return

    def drain():  # an own flood that nobody read would be cut for it
        with contextlib.suppress(OSError):
            while friend.file.read1(1 << 20):
                pass

    threads = [threading.Thread(target=flood), threading.Thread(target=drain, daemon=True)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            typed = ""
            for key in text:
                screen.type(key)
                typed += key
                screen.see_prompt(f"bob> {typed}".rstrip())
                screen.read(0.05)  # nobody types faster, and more lines arrive
                assert sum(row.startswith("bob>") for row in screen.rows()) <= 1
            screen.type("\r")
            screen.see_prompt("bob>")
    finally:
        enough.set()
        threads[0].join()
    screen.wait(lambda: screen.text().count(f"bob: {text}") == 3, "all three lines")
    screen.see_prompt("bob>")
    for row in screen.text().split("\n"):
        assert re.match(r"\d\d:\d\d (eve: flood \d+|bob: .*|-- .*)$|… [\d,]+ lines skipped$|bob>$| lab \|", row), row


@needs_terminal
def test_every_line_is_shown_around_every_enter(opened, server, friend):
    screen = joined(opened, server)
    for number in range(60):
        friend.say(f"before {number}")
        screen.type(f"mine {number}\r")
        friend.say(f"after {number}")
    screen.wait(lambda: "after 59" in screen.text() and "mine 59" in screen.text().replace("bob> mine", ""))
    for number in range(60):
        for text in (f"eve: before {number}", f"bob: mine {number}", f"eve: after {number}"):
            assert len(re.findall(f"{text}$", screen.text(), re.M)) == 1, text


@needs_terminal
def test_the_name_is_asked_for_and_asked_again_when_it_is_taken(opened, server, friend):
    screen = opened(server)
    screen.see(r"^Your name \[.+\]:$")
    screen.type("Eve\r")
    screen.see("the name Eve is taken; Eve-2 is free")
    screen.see(r"^Another name \[Eve-2\]:$")
    screen.type("\r")
    screen.see_prompt("Eve-2>")
    assert friend.hear('"join"', "Eve-2")


@needs_terminal
def test_quit_alone_asks_before_it_leaves(opened, server, friend):
    screen = joined(opened, server)
    screen.type("quit\r")
    screen.see("leave the room?")
    screen.type("no\r")
    screen.see_prompt("bob>")
    screen.type("exit\r")
    screen.wait(lambda: screen.text().count("leave the room?") == 2)
    screen.type("y\r")
    assert screen.exit_code() == 0
    assert friend.hear('"leave"')["why"] == "left"


@needs_terminal
@pytest.mark.parametrize("keys", ["\x03", "\x04", "/quit\r"], ids=["Ctrl+C", "Ctrl+D", "/quit"])
def test_leaving(opened, server, friend, keys):
    screen = joined(opened, server)
    screen.type(keys)
    assert screen.exit_code() == 0
    assert friend.hear('"leave"')["why"] == "left"
    assert "Traceback" not in screen.text()


@needs_terminal
def test_every_command_works_and_is_in_the_help(opened, server, friend):
    screen = joined(opened, server)
    screen.type("/help\r")
    for name, command in chat.COMMANDS.items():
        screen.see(f"/{name} {command.usage}".rstrip())
    screen.type("/who\r")
    screen.see("-- 2 here: eve, bob")
    screen.type("/me waves\r")
    screen.see(r"\* bob waves")
    screen.type("/tell eve psst\r")
    screen.see(r"you → eve \(private\): psst")
    friend.send(do="tell", to="bob", text="what?")
    screen.see(r"eve → you \(private\): what\?")
    screen.type("/nick rob\r")
    screen.see_prompt("rob>")
    screen.type("//help\r")
    screen.see("rob: /help$")


@needs_terminal
@pytest.mark.parametrize("typed, answer", [
    ("/nonsense", "there is no command /nonsense; /help lists what there is"),
    ("/tell eve", "usage: /tell NAME TEXT"),
    ("/tell nobody hi", "nobody here is called nobody"),
    ("/nick eve", "the name eve is taken; eve-2 is free"),
    ("/nick", "usage: /nick NAME"),
])
def test_a_mistake_is_answered_and_goes_to_nobody(opened, server, friend, typed, answer):
    screen = joined(opened, server, columns=120)
    screen.type(typed + "\r")
    screen.see(re.escape(answer))
    screen.see_prompt(f"bob> {typed}".rstrip())  # it stays, to be corrected
    screen.type("\x15and on\r")
    assert friend.hear('"n":3')["text"] == "and on"


@needs_terminal
def test_a_lost_connection_keeps_what_is_typed_and_enter_joins_again(opened, tmp_path):
    log = str(tmp_path / "room.jsonl")
    first = chat.Server(chat.open_room("lab", log, 50, 0), chat.listen("127.0.0.1", 0))
    first.start()
    screen = joined(opened, first)
    screen.type("not yet sent")
    screen.see_prompt("bob> not yet sent")
    port = port_of(first)
    for guest in first.guests.copy():  # as when the cable is pulled
        guest.out.shutdown(socket.SHUT_RDWR)
    screen.see("the connection is lost; Enter joins again, /quit leaves")
    screen.see_prompt("bob (disconnected, Enter to rejoin)> not yet sent")
    screen.type("\r")
    screen.see_prompt("bob> not yet sent")
    screen.type("\r")
    screen.see("bob: not yet sent$")
    assert port == port_of(first)
    assert len(re.findall("^.{5} -- bob joined$", screen.text(), re.M)) == 2, "history that was seen came again"
    first.stop()
    assert screen.exit_code() == 0


@needs_terminal
def test_a_server_that_stays_away_is_told_and_the_client_can_still_leave(opened, server):
    screen = joined(opened, server)
    server.room.closed = True  # so that nobody can come back, and nobody is told an end
    server.listener.shutdown(socket.SHUT_RDWR)
    server.listener.close()
    for guest in server.guests.copy():
        guest.out.shutdown(socket.SHUT_RDWR)
    screen.see("the connection is lost")
    screen.type("kept\r")
    screen.see("no chat answers at 127.0.0.1")
    screen.see_prompt("bob (disconnected, Enter to rejoin)> kept")
    screen.type("\x15/quit\r")
    assert screen.exit_code() == 1
    assert screen.text().endswith("the connection was lost.")


@needs_terminal
def test_the_end_of_the_room_ends_the_client(opened, server):
    screen = joined(opened, server)
    server.stop()
    assert screen.exit_code() == 0
    assert "-- the room is closed" in screen.text()


@needs_terminal
def test_a_resized_window_shows_one_prompt(opened, server, friend):
    screen = joined(opened, server, columns=100)
    screen.type("typed")
    screen.see_prompt("bob> typed")
    for columns in (60, 120, 80):
        screen.resize(columns, 24)
        friend.say(f"at {columns}")
        screen.see(f"eve: at {columns}$")
        screen.see_prompt("bob> typed")


@needs_terminal
def test_nothing_hostile_reaches_the_terminal(opened, server, friend):
    screen = joined(opened, server)
    friend.say("\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\rfake")
    friend.say("line\n12:00 bob: I agree")
    screen.see("fake")
    screen.see("│ 12:00 bob: I agree")
    raw = "".join(screen.raw)
    assert "owned\x07" not in raw and "\x1b]0;" not in raw and "\x1b[2J" not in raw
    assert not set(raw) & set("\x9b\u202e")


@needs_terminal
def test_a_dumb_terminal_gets_plain_lines(opened, server, friend):
    screen = opened(server, "--name", "bob", env={"TERM": "dumb"})
    screen.see("-- bob joined")
    screen.type("hello\n")
    screen.see("bob: hello")
    assert "\x1b" not in "".join(screen.raw)
    screen.type("\x04")
    assert screen.exit_code() == 0


# --- without a terminal ---


def test_lines_are_piped_in_and_out(server, friend):
    code, out, err = piped(server, "привет\n\n/me waves\nlast, without a newline", "--name", "bob")
    assert (code, err) == (0, "")
    assert without_times(out).endswith(
        "-- bob joined\nbob: привет\n* bob waves\nbob: last, without a newline\n-- bob left\n")
    assert friend.hear('"leave"')["why"] == "left"


def test_a_file_as_input_is_all_confirmed_before_it_leaves(server, tmp_path):
    script = tmp_path / "script.txt"
    script.write_text("".join(f"line {number}\n" for number in range(3000)))
    with script.open() as file:
        out = subprocess.run([*CHAT, "join", address_of(server), "--name", "bob"], stdin=file, timeout=60,
                             stdout=subprocess.PIPE, check=True).stdout.decode()
    assert re.findall(r"bob: line (\d+)", out) == [str(number) for number in range(3000)]


def test_the_end_of_the_room_ends_a_piped_client(server):
    process = subprocess.Popen([*CHAT, "join", address_of(server), "--name", "bob"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    for line in process.stdout:
        if b"joined" in line:
            break
    server.stop()
    out, _ = process.communicate(timeout=15)
    assert process.returncode == 0
    assert out.decode().endswith("-- the room is closed\n")


def test_a_name_in_use_ends_a_script_but_not_one_who_gave_no_name(server, friend, monkeypatch):
    code, out, err = piped(server, "hi\n", "--name", "EVE")
    assert (code, out) == (1, "")
    assert err == "chat.py: the name EVE is taken; EVE-2 is free.\n"
    monkeypatch.setenv("LOGNAME", "eve")
    code, out, err = piped(server, "hi\n")
    assert code == 0 and "eve-2: hi" in out


@pytest.mark.parametrize("login, name", [("Eve Smith", "Eve_Smith"), ("admin", "guest"), ("юля", "юля")])
def test_a_login_name_becomes_a_name(server, monkeypatch, login, name):
    monkeypatch.setenv("LOGNAME", login)
    assert f"-- {name} joined" in piped(server, "")[1]


def test_a_server_that_is_not_there_is_told_in_one_sentence():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        code, out, err = piped(f"127.0.0.1:{free.getsockname()[1]}", "", "--name", "bob")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"chat.py: no chat answers at 127\.0\.0\.1:\d+ \(.+\); check the address, and "
                        r"whether the server runs\.\n", err)


@pytest.mark.parametrize("says", [b"HTTP/1.0 400 Bad Request\r\n\r\n", b"", b'{"re":"welcome"}\n',
                                  b'{"ev":"say","n":1,"t":0,"who":"a","text":"b"}\n', b"\x1b[2J\n", b"\xff\n"])
def test_what_is_no_chat_is_told_in_one_sentence(says):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def answer():
            sock, _ = listener.accept()
            sock.recv(1000)
            sock.sendall(says)
            sock.close()

        threading.Thread(target=answer, daemon=True).start()
        port = listener.getsockname()[1]
        code, out, err = piped(f"127.0.0.1:{port}", "", "--name", "bob")
    assert (code, out, err) == (1, "", f"chat.py: what answers at 127.0.0.1:{port} is not a chat.\n")


def test_a_broken_line_of_a_server_is_told_and_the_rest_is_shown(server):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def answer():
            sock, _ = listener.accept()
            sock.recv(1000)
            sock.sendall(b'{"re":"welcome","t":0.1,"you":"bob","n":0,"people":["bob"]}\n'
                         + server.room.session_line + b'nonsense\n{"ev":"later","n":1,"t":1,"x":"\\u001b[2J"}\n'
                         + b'{"ev":"say","n":2,"t":1,"who":"eve","text":"still here"}\n{"ev":"end","n":3,"t":2}\n')
            sock.recv(1000)
            sock.close()

        threading.Thread(target=answer, daemon=True).start()
        code, out, err = piped(f"127.0.0.1:{listener.getsockname()[1]}", "", "--name", "bob")
    assert (code, err) == (0, "")
    assert "a line of the server made no sense" in out and "eve: still here" in out and "\x1b" not in out


def test_who_is_removed_hears_why_and_exits_with_1(server):
    process = subprocess.Popen([*CHAT, "join", address_of(server), "--name", "bob"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stdout:
        if b"joined" in line:
            break
    server.room.leave(next(iter(server.room.people.values())), "kicked", "too loud")
    server.room.flush()
    out, err = process.communicate(timeout=15)
    assert process.returncode == 1
    assert "-- bob was removed: too loud" in out.decode()
    assert err.decode() == "chat.py: too loud.\n"


def test_a_closed_pipe_behind_join_ends_it_quietly(server):
    command = " ".join(map(shlex.quote, [*CHAT, "join", address_of(server), "--name", "bob"]))
    done = subprocess.run(f"yes hello | head -200 | {command} | head -3", shell=True, timeout=30,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout.count(b"\n") == 3
    assert done.stderr == b""


# --- recording what one sees ---


def test_join_records_what_it_was_given(server, friend, tmp_path):
    friend.say("before")
    friend.hear("before")
    code, out, err = piped(server, "mine\n/tell eve psst\n", "--name", "bob", "--log", "mine.jsonl", cwd=tmp_path)
    assert (code, err) == (0, "")
    lines = (tmp_path / "mine.jsonl").read_bytes().splitlines(True)
    events = [chat.decode_event(line.decode()) for line in lines]
    assert [event.get("ev") or event["re"] for event in events] == [
        "welcome", "session", "join", "say", "join", "say", "tell", "leave"]
    again = subprocess.run([*CHAT, "replay", "mine.jsonl", "--instant"], cwd=tmp_path, stdout=subprocess.PIPE)
    assert again.stdout.decode() == out


def test_join_never_overwrites_a_recording(server, tmp_path):
    (tmp_path / "mine.jsonl").write_text("precious\n")
    code, out, err = piped(server, "hi\n", "--name", "bob", "--log", "mine.jsonl", cwd=tmp_path)
    assert (code, err) == (1, "chat.py: mine.jsonl exists already; choose another name.\n")
    assert (tmp_path / "mine.jsonl").read_text() == "precious\n"


def test_join_log_without_a_name_makes_one_in_sessions(server, tmp_path):
    assert piped(server, "hi\n", "--name", "bob", "--log", cwd=tmp_path)[0] == 0
    (made,) = os.listdir(tmp_path / "sessions")
    assert re.fullmatch(r"\d{8}-\d{6}-lab-bob\.jsonl", made)


def test_join_log_cannot_swallow_the_address(server, tmp_path):
    done = subprocess.run([*CHAT, "join", "--log", "192.168.1.5"], cwd=tmp_path, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert b"join 192.168.1.5 --log" in done.stderr
    assert not os.listdir(tmp_path)


# --- addresses ---


@pytest.mark.parametrize("text, host, port", [
    ("", "127.0.0.1", 7011), ("box", "box", 7011), ("10.0.0.1:80", "10.0.0.1", 80), ("[::1]:9", "::1", 9),
    ("[fe80::1%eth0]", "fe80::1%eth0", 7011), ("::1", "::1", 7011), (":9", "127.0.0.1", 9),
])
def test_addresses(text, host, port):
    assert chat.parse_address(text) == (host, port)


@pytest.mark.parametrize("text", ["box:", "box:0", "box:65536", "[::1", "a b:c", "http://box"])
def test_what_is_no_address(text):
    with pytest.raises(chat.ChatError, match="is no address"):
        chat.parse_address(text)
