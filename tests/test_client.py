"""`join` without a terminal: what scripts get and give, what is recorded, which addresses there are."""
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading

import pytest

import chat
import helpers
from terminal import CHAT


def join(server, *options):
    """The command with which bob joins this server, or whatever has this address."""
    return [*CHAT, "join", "%s:%d" % getattr(server, "address", server), *(options or ("--name", "bob"))]


def piped(server, text, *options, **settings):
    """What join prints and returns with this text as its input."""
    done = subprocess.run(join(server, *options), input=text.encode(), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=30, **settings)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def bob(server):
    """A process in which bob has joined through pipes."""
    with subprocess.Popen(join(server), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as bob:
        assert any(b"joined" in line for line in bob.stdout)
        yield bob
        bob.kill()


@contextlib.contextmanager
def answering(says):
    """An address at which somebody is who hears a first line, says this and is gone."""
    def answer():
        sock, _ = listener.accept()
        with sock:
            sock.recv(1000)
            sock.sendall(says)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, daemon=True).start()
        yield listener.getsockname()


def test_lines_are_piped_in_and_out(server, eve):
    code, out, err = piped(server, "привет\n\n/me waves\nlast, without a newline")
    assert (code, err) == (0, "")
    assert re.sub(r"(?m)^\d\d:\d\d ", "", out).endswith(
        "-- bob joined\nbob: привет\n* bob waves\nbob: last, without a newline\n-- bob left\n")
    eve.expect(ev="leave", who="bob", why="left")


def test_what_is_no_line_of_talk_is_answered_without_escape_codes(server, eve):
    text = "hello bob\n/nick юля\n/tell eve psst\n/nonsense\n/help\n/bell all\nhello, юля\n"
    code, out, err = piped(server, text, env={**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"})
    assert (code, err) == (0, "")
    assert "bob: hello bob" in out and "you → eve (private): psst" in out and "!! there is no command" in out
    assert "\x1b" not in out and "\a" not in out


def test_a_file_as_input_is_all_confirmed_before_it_leaves(server, tmp_path):
    script = tmp_path / "script.txt"
    script.write_text("".join(f"line {number}\n" for number in range(3000)))
    with script.open() as file:
        out = subprocess.run(join(server), stdin=file, timeout=60, stdout=subprocess.PIPE, check=True).stdout.decode()
    assert re.findall(r"bob: line (\d+)", out) == [str(number) for number in range(3000)]


def test_the_end_of_the_room_ends_a_piped_client(server, bob):
    server.stop()
    out, err = bob.communicate(timeout=15)
    assert (bob.returncode, err) == (0, b"")
    assert out.decode().endswith("-- the room is closed\n")


def test_who_is_removed_hears_why_and_exits_with_1(server, bob):
    helpers.ask(server.room, None, "kick", to="bob", text="too loud")
    server.room.flush()
    out, err = bob.communicate(timeout=15)
    assert (bob.returncode, err) == (1, b"chat.py: the host removed you: too loud.\n")
    assert "-- bob was removed: too loud" in out.decode()


def test_a_script_outlives_a_lost_connection(server, bob):
    helpers.wait_for(lambda: server.room.people["bob"].kept.sure, "the welcome is answered")
    cut_off(server)
    out, err = bob.communicate(b"still here\n", timeout=15)
    assert (bob.returncode, err) == (0, b"") and b"bob: still here\n" in out and b"lost" not in out


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_signals_end_a_script_politely(eve, bob, name):
    bob.send_signal(getattr(signal, name))
    assert bob.communicate(timeout=15)[1] == b"" and bob.returncode == 0
    eve.expect(ev="leave", who="bob", why="left")


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_ends_a_script_politely(eve, bob):
    bob.send_signal(signal.SIGINT)
    assert bob.communicate(timeout=15)[1] == b"" and bob.returncode == 0
    eve.expect(ev="leave", who="bob", why="left")


def test_a_pipe_that_is_closed_behind_it_makes_no_traceback(eve, bob):
    bob.stdout.close()
    eve.say("nobody reads this", "nor this")
    eve.expect(ev="leave", who="bob")
    assert bob.wait(helpers.SECONDS) == 0
    assert bob.stderr.read() == b""


def test_a_closed_pipe_behind_join_ends_it_quietly(server):
    command = " ".join(map(shlex.quote, join(server)))
    done = subprocess.run(f"yes hello | head -200 | {command} | head -3", shell=True, timeout=30,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout.count(b"\n") == 3
    assert done.stderr == b""


def test_a_name_in_use_ends_a_script_but_not_one_who_gave_no_name(server, eve, monkeypatch):
    assert piped(server, "hi\n", "--name", "EVE") == (1, "", "chat.py: the name EVE is taken; EVE-2 is free.\n")
    monkeypatch.setenv("LOGNAME", "eve")
    code, out, err = piped(server, "hi\n", "--times", "off")
    assert code == 0 and "eve-2: hi" in out


@pytest.mark.parametrize("login, name", [("Eve Smith", "Eve_Smith"), ("admin", "guest"), ("юля", "юля")])
def test_a_login_name_becomes_a_name(server, monkeypatch, login, name):
    monkeypatch.setenv("LOGNAME", login)
    assert f"-- {name} joined" in piped(server, "", "--times", "off")[1]


def test_a_server_that_is_not_there_is_told_in_one_sentence():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        code, out, err = piped(free.getsockname(), "")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"chat.py: no chat answers at 127\.0\.0\.1:\d+ \(.+\); check the address, and "
                        r"whether the server runs\.\n", err)


@pytest.mark.parametrize("says", [b"HTTP/1.0 400 Bad Request\r\n\r\n", b"", b'{"re":"welcome"}\n',
                                  b'{"ev":"say","n":1,"t":0,"who":"a","text":"b"}\n', b"\x1b[2J\n", b"\xff\n"])
def test_what_is_no_chat_is_told_in_one_sentence(says):
    with answering(says) as address:
        assert piped(address, "") == (1, "", "chat.py: what answers at %s:%d is not a chat.\n" % address)


def test_a_broken_line_of_a_server_is_told_and_the_rest_is_shown():
    with answering(b'{"re":"welcome","t":0.1,"you":"bob","n":0,"people":["bob"]}\n' + chat.Room().log.session_line
                   + b'nonsense\n{"ev":"later","n":1,"t":1,"x":"\\u001b[2J"}\n'
                   b'{"ev":"say","n":2,"t":1,"who":"eve","text":"still here"}\n{"ev":"end","n":3,"t":2}\n') as address:
        code, out, err = piped(address, "")
    assert (code, err) == (0, "")
    assert "a line of the server made no sense" in out and "eve: still here" in out and "\x1b" not in out


# --- the link by itself ---


class Somebody:
    """The person at a link, who only remembers what it told."""

    def __init__(self, server, patience=float("inf")):
        self.events, self.told, self.states = [], [], []
        self.view = chat.View()
        self.link = chat.Link(*server.address, self, patience)

    @property
    def name(self):
        return self.view.name

    def arrive(self, welcome, session):
        self.view.take(welcome)
        self.view.take(session)

    def take(self, batch):
        for line, event in batch:
            mine = "re" in event or event.get("who") == self.view.mine
            self.view.take(event)
            self.events.append(event)
            if mine:
                self.link.confirm(event.get("id"))

    def skip(self, count, seen):
        self.view.skip()
        self.told.append(("skip", count, seen))

    def give_back(self, lines):
        self.told += [("back", line) for line in lines]

    def lose(self, error):
        self.told.append(("lost", error and error.code))

    def changed(self):
        if self.states[-1:] != [self.link.state]:
            self.states.append(self.link.state)

    def texts(self):
        return [event["text"] for event in self.events if event.get("ev") == "say" or event.get("re") == "tell"]

    def see(self, *texts):
        helpers.wait_for(lambda: self.texts() == [*texts], f"{texts}, but {self.texts()}")

    def say(self, text):
        self.link.request(text, "say", text=text)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(chat, "RETRY_PAUSES", (0.01, 0.02))


@pytest.fixture
def link(server, quick):
    """bob, inside, by a link that comes back at once."""
    bob = Somebody(server)
    bob.link.join("bob", None)
    yield bob
    bob.link.leave()


def cut_off(server):
    """Break all connections of a server."""
    for guest in server.guests.copy():
        with contextlib.suppress(OSError):
            guest.out.shutdown(socket.SHUT_RDWR)


def test_a_link_comes_back_by_itself_and_nobody_notices(server, eve, link):
    eve.expect(ev="join", who="bob")
    link.say("one")
    link.see("one")
    cut_off_only(server, "bob")
    helpers.wait_for(lambda: link.states[-5:] == ["in", "lost", "trying", "catching", "in"], "it is back")
    link.say("two")
    link.see("one", "two")
    assert [line["ev"] for line in eve.until(ev="say", text="two")] == ["say", "say"]
    numbers = [event["n"] for event in link.events if "ev" in event]
    assert numbers == sorted(set(numbers)) and link.told == [("lost", None)]


def cut_off_only(server, name):
    server.room.people[name].out.shutdown(socket.SHUT_RDWR)


def test_what_was_carried_out_is_not_said_again(server, link):
    with server.room.fanout.baton:  # it is said, and the echo cannot come
        before = server.room.log.n
        link.say("one")
        link.link.request("/tell bob psst", "tell", to="bob", text="psst")
        link.link.request("/nick rob", "nick", name="rob")
        helpers.wait_for(lambda: server.room.log.n == before + 2, "it is said")
        cut_off_only(server, "rob")
        helpers.wait_for(lambda: link.link.state != "in", "the loss")
    helpers.wait_for(lambda: link.link.state == "in" and not link.link.unconfirmed, "all is confirmed")
    link.say("two")
    link.see("one", "psst", "two")
    assert link.name == "rob" and server.room.log.n == before + 3


def test_what_is_entered_meanwhile_waits_and_is_sent(server, link, monkeypatch):
    monkeypatch.setattr(chat, "RETRY_PAUSES", (60, 60))
    cut_off_only(server, "bob")
    helpers.wait_for(lambda: link.link.state == "lost", "the loss")
    for text in "123":
        link.say(text)
    assert re.fullmatch(r"no link, next try in [3-6]\d s", link.link.trouble())
    link.link.retry()
    link.see("1", "2", "3")
    assert link.told == [("lost", None)] and link.link.trouble() == ""


def test_a_script_gives_up_after_a_while(server, quick):
    bob = Somebody(server, 0.1)
    bob.link.join("bob", None)
    server.stop()
    bob.link.parting = False
    bob.link.receiver.join(helpers.SECONDS)
    assert bob.link.state == "over" and bob.told[0] == ("lost", None) and len(bob.told) == 2


def test_from_elsewhere_with_the_same_token_ends_the_first(server, link):
    other = helpers.Peer(server)
    other.send(do="hello", name="x", back=True, token=link.link.progress.token)
    assert other.expect_next(re="welcome")["you"] == "bob"
    helpers.wait_for(lambda: link.events[-1].get("code") == "elsewhere", "it is told")
    link.link.parting = True  # as a Client does then
    other.say("it is me")
    other.expect(ev="say", who="bob")
    other.close()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "log.jsonl"


@contextlib.contextmanager
def run_of(place, port=0):
    """One run of a server on this file; at the end it dies without a word."""
    server = chat.Server(chat.open_room("lab", str(place), 50, 0), chat.listen("127.0.0.1", port), 0)
    server.start()
    try:
        yield server
    finally:
        with server.room.fanout.baton:
            server.room.fanout.recording.close()
            server.room.fanout.recording = None
        with server.room.lock:
            server.room.host.left = True
            for member in server.room.people.values():
                member.left = True
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        cut_off(server)
        helpers.wait_for(lambda: not server.guests, "it is dead")
        server.caretaker.stop(helpers.SECONDS)


def test_a_server_that_died_goes_on_with_everybody(place, quick):
    with run_of(place) as server:
        bob = Somebody(server)
        bob.link.join("bob", None)
        bob.say("one")
        bob.see("one")
        port = server.address[1]
    bob.say("two")
    with run_of(place, port) as server:
        bob.see("one", "two")
        with helpers.joined(server, "eve") as eve:
            eve.send(do="who")
            assert eve.expect(re="who")["people"] == ["bob", "eve"]
        bob.link.leave()
    events = helpers.read_file(open(place, "rb"))
    assert [event["ev"] for event in events] == ["session", "join", "say", "say", "join", "leave", "leave"]
    assert bob.told == [("lost", None)]


def test_what_lay_behind_a_lost_end_is_told_and_new_numbers_count(place, quick):
    with run_of(place) as server:
        bob = Somebody(server)
        bob.link.join("bob", None)
        for text in "123":
            bob.say(text)
            bob.see(*"123"[:int(text)])
        port = server.address[1]
    with open(place, "rb+") as file:
        file.truncate(sum(map(len, file.read().splitlines(True)[:3])))
    with run_of(place, port) as server:
        bob.say("new")
        bob.see("1", "2", "3", "new")
        bob.link.leave()
    assert ("skip", 2, True) in bob.told


def test_a_private_line_on_its_way_to_a_server_that_died_is_given_back(place, quick):
    with run_of(place) as server:
        bob = Somebody(server)
        bob.link.join("bob", None)
        with server.room.lock:  # it never gets so far
            bob.link.request("/tell bob psst", "tell", to="bob", text="psst")
            bob.say("aloud")
            helpers.wait_for(lambda: bob.link.connection.outbox.empty(), "it is sent")
            server.room.host.left = True
            for member in server.room.people.values():
                member.left = True
        port = server.address[1]
    with run_of(place, port):
        bob.see("aloud")
        bob.link.leave()
    assert ("back", "/tell bob psst") in bob.told and len(bob.told) == 2


def test_a_dead_link_is_noticed_though_nothing_tells_so(server, monkeypatch, quick):
    monkeypatch.setattr(chat, "SILENCE_SECONDS", 1.5)
    monkeypatch.setattr(chat, "PING_SECONDS", 0.5)
    bob = Somebody(server)
    bob.link.join("bob", None)
    with server.room.fanout.baton:  # nothing comes any more
        helpers.wait_for(lambda: bob.link.state != "in", "the loss")
    helpers.wait_for(lambda: bob.link.state == "in", "the return")
    bob.link.leave()


def test_a_link_on_which_only_the_others_are_heard_is_dead_too(server, eve, monkeypatch, quick):
    bob = Somebody(server)
    bob.link.join("bob", None)
    bob.see()
    monkeypatch.setattr(chat, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(chat, "PING_SECONDS", 0.3)
    bob.link.connection.ping_at += 100_000  # nothing gets out
    while bob.link.state == "in":
        eve.say("are you there?")
        eve.settle()
    helpers.wait_for(lambda: bob.link.state == "in", "the return")
    bob.link.leave()


def test_a_server_notices_a_dead_link_too(server, eve, monkeypatch):
    monkeypatch.setattr(chat, "SILENCE_SECONDS", 0.3)
    with helpers.Peer(server) as bob:
        bob.send(do="hello", name="bob", back=True)
        bob.settle()
        helpers.wait_for(lambda: server.room.people["bob"].away is not None, "its silence is noticed")
        assert bob.rest() == []


# --- recording what one sees ---


def test_join_records_what_it_was_given(server, eve, tmp_path):
    eve.say("before")
    eve.expect(text="before")
    code, out, err = piped(server, "mine\n/tell eve psst\n", "--name", "bob", "--log", "mine.jsonl", cwd=tmp_path)
    assert (code, err) == (0, "")
    lines = (tmp_path / "mine.jsonl").read_bytes().splitlines(True)
    events = [chat.decode_event(line.decode()) for line in lines]
    assert [event.get("ev") or event["re"] for event in events] == [
        "welcome", "session", "say", "join", "say", "tell", "leave"]
    assert "token" not in events[0] and events[0]["run"]
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
