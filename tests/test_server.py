"""`serve`: from its command line to the last line of its file, as a process and within this one."""
import _thread
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import chat
from helpers import BARE_SYSTEM, HANGING_DISK, SECONDS, Output, Peer, Served, Tape, ask, joined, serving, wait_for
from test_pyz import every_python

try:
    import resource
except ImportError:  # Windows
    resource = None

needs_resource = pytest.mark.skipif(not resource, reason="needs limits on what a process may use")
needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs the signals of Unix")


@pytest.fixture
def serve(tmp_path):
    """A function that starts `serve` in a process of its own, in a folder of its own."""
    with contextlib.ExitStack() as stack:
        yield lambda *options, **settings: stack.enter_context(Served(*options, cwd=tmp_path, **settings))


@pytest.fixture(params=[False, True], ids=["this system", "a bare system"])
def serve_anywhere(request, serve):
    """The same, here and where nothing is that some systems lack."""
    return lambda *options, **settings: serve(*options, bare=request.param, **settings)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.jsonl"


def run(*options, **settings):
    """`serve` with options that end it at once: (exit code, what it printed, what it complained about)."""
    done = subprocess.run([sys.executable, chat.__file__, "serve", *map(str, options)],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          encoding="utf-8", timeout=30, **settings)
    return done.returncode, done.stdout, done.stderr


def events_of(path):
    """The events of a file, which has nothing else and ends with a whole line."""
    data = path.read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


# --- people talk ---


def test_three_see_the_same_lines_once_in_the_order_of_the_file(serve_anywhere, log):
    server = serve_anywhere("--log", log)
    with joined(server, "ann") as ann, joined(server, "bob") as bob, joined(server, "eve") as eve:
        peers = [ann, bob, eve]
        for peer in peers:
            threading.Thread(target=peer.say, args=[str(number) for number in range(30)]).start()
        for peer in peers:
            said = []
            while len(said) < 90:
                line = peer.hear()
                said += [line["text"]] if line.get("ev") == "say" else []
        recorded = log.read_bytes().splitlines(True)
        for peer in peers:
            given = [line for line in peer.heard if line.startswith(b'{"ev":"say"')]
            assert given == [line for line in recorded if line.startswith(b'{"ev":"say"')]
        assert [line["n"] for line in events_of(log)] == list(range(94))


@pytest.mark.parametrize("text", ["привет, мир " * 333 + "всё!", "😀" * 4000, "\\\"\n" * 59 + "ж" * 3000],
                         ids=["Cyrillic", "emoji", "escapes"])
@pytest.mark.parametrize("ascii", [False, True], ids=["as it is", "escaped"])
def test_the_longest_messages_arrive_whole(serve_anywhere, log, text, ascii):
    server = serve_anywhere("--log", log)
    with joined(server, "ann") as ann, joined(server, "bob") as bob:
        bob.send_bytes(json.dumps({"do": "say", "text": text}, ensure_ascii=ascii).encode() + b"\n")
        ann.expect(ev="say", text=text)
        assert events_of(log)[-1]["text"] == text


def test_a_newcomer_is_given_the_last_lines(serve_anywhere):
    server = serve_anywhere("--history", 2)
    with joined(server, "ann") as ann:
        ann.say("one", "two", "three")
        ann.expect(text="three")
        with joined(server, "bob") as bob:
            assert [line.get("text") for line in bob.history] == [None, "two", "three"]
            assert bob.welcome["people"] == ["ann", "bob"]


def test_history_0_gives_none(serve):
    server = serve("--history", 0)
    with joined(server, "ann") as ann:
        ann.say("one")
        ann.expect(text="one")
        with joined(server, "bob") as bob:
            assert [line["ev"] for line in bob.history] == ["session"]


def test_one_who_reads_late_is_given_everything(serve_anywhere):
    server = serve_anywhere("--rate", 0)
    with joined(server, "ann") as ann, joined(server, "bob", receive_buffer=4096) as bob:
        for number in range(300):
            ann.say("ж" * 3990 + str(number))
            ann.expect(ev="say")
        said = [line["text"][3990:] for line in bob.until(text="ж" * 3990 + "299")]
        assert said == [str(number) for number in range(300)]


def test_the_room_has_the_name_that_was_given(serve):
    server = serve("--room", "Лаборатория 7")
    assert server.console.expect("room Лаборатория 7 listens")
    with joined(server, "ann") as ann:
        assert ann.history[0]["room"] == "Лаборатория 7"


def test_no_more_people_than_that(serve):
    server = serve("--max-people", 1)
    with joined(server, "ann"), Peer(server) as bob:
        bob.send(do="hello", name="bob")
        bob.expect_next(re="error", code="full")


def test_the_rate_is_the_one_that_was_given(serve):
    server = serve("--rate", 1)
    with joined(server, "ann") as ann:
        ann.send_bytes(b'{"do":"ping"}\n' * 100)
        assert ann.rest()[-1]["code"] == "kicked"


def test_join_talks_to_serve(serve):
    server = serve()
    done = subprocess.run([sys.executable, chat.__file__, "join", "%s:%d" % server.address, "--name", "bob"],
                          input="hello\n", stdout=subprocess.PIPE, encoding="utf-8", timeout=30)
    assert done.returncode == 0 and "bob: hello" in done.stdout
    server.console.expect("bob: hello")


# --- the end ---


@needs_signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl+C", "SIGTERM"])
def test_the_end_is_told_to_everyone_and_recorded(serve_anywhere, log, number):
    server = serve_anywhere("--log", log)
    with joined(server, "ann") as ann, joined(server, "bob") as bob, Peer(server):
        ann.expect(ev="join", who="bob")
        server.interrupt(number)
        for peer in (ann, bob):
            assert [line["ev"] for line in peer.rest()] == ["end"]
    assert server.process.wait(SECONDS) == 0
    assert [line["ev"] for line in events_of(log)] == ["session", "join", "join", "end"]
    assert "the room is closed" in server.console.text()
    assert server.errors.text() == ""


@needs_signals
def test_the_end_comes_within_two_seconds_whatever_clients_do(serve):
    def seconds_to_the_end():
        server = serve("--rate", 0)
        with joined(server, "ann") as ann, joined(server, "bob", receive_buffer=4096), Peer(server) as silent:
            for number in range(250):  # 3 MB that bob does not read
                ann.say("ж" * 4000)
                ann.expect(ev="say")
            began = time.monotonic()
            assert server.end() == 0  # nobody closes before
            took = time.monotonic() - began
            assert ann.rest()[-1]["ev"] == "end"
            with contextlib.suppress(ConnectionResetError):
                assert silent.rest() == []
        return took

    assert any(seconds_to_the_end() < 2 for _ in range(3)), "a busy machine may need a second try"


@needs_signals
def test_everyone_is_told_the_end_in_the_middle_of_a_flood(serve, log):
    server = serve("--rate", 0, "--log", log)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(joined(server, f"m{number}")) for number in range(20)]
        last = [None] * len(peers)

        def flood(number):
            with contextlib.suppress(OSError):
                while True:
                    peers[number].sock.sendall(b'{"do":"say","text":"flood"}\n' * 20)

        def read(number):
            with contextlib.suppress(OSError):
                for line in peers[number].file:
                    last[number] = line

        threads = [threading.Thread(target=read, args=(number,)) for number in range(len(peers))]
        floods = [threading.Thread(target=flood, args=(number,)) for number in range(3)]
        for thread in threads + floods:
            thread.start()
        wait_for(lambda: log.stat().st_size > 1_000_000, "a flood")
        server.interrupt()
        for thread in threads:
            thread.join()
        for peer in peers:
            peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in floods:
            thread.join()
        assert server.process.wait(SECONDS) == 0
        assert [json.loads(line)["ev"] for line in last] == ["end"] * len(peers)
        assert log.read_bytes().splitlines(True)[-1] == last[0]


def test_a_server_that_ended_leaves_no_thread_behind():
    before, count = set(threading.enumerate()), _thread._count()
    with serving() as server, joined(server, "ann"), Peer(server):
        assert _thread._count() > count
        server.stop()  # though the clients stay
        wait_for(lambda: _thread._count() <= count and set(threading.enumerate()) <= before, "no thread")


def test_a_server_can_be_stopped_twice():
    with serving() as server, joined(server, "ann") as ann:
        server.stop()
        server.stop()
        assert [line["ev"] for line in ann.rest()] == ["end"]


def test_a_new_server_finds_the_port_free_at_once():
    with serving() as server, joined(server, "ann") as ann:
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        ann.rest()  # the server closes first, and its system remembers the connection for a while
    stopping.join()
    chat.listen(*server.address).close()


def test_a_slow_disk_does_not_cost_anyone_the_end():
    class SlowTape(Tape):
        began = threading.Event()

        def write(self, lines):
            if b"say" in lines:
                self.began.set()
                time.sleep(0.3)

    with serving() as server, joined(server, "ann") as ann, joined(server, "bob") as bob:
        server.room.fanout.recording = SlowTape()
        ann.say("hi")
        assert SlowTape.began.wait(SECONDS)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        for peer in (ann, bob):
            assert peer.rest()[-1]["ev"] == "end"
            peer.close()
        stopping.join()


# Runs serve, and has a signal come at the worst of moments: when the main thread, about to wait, holds the
# lock of what it waits for. A handler that wants that lock too would wait for ever.
SIGNAL_AT_THE_WORST_MOMENT = """
import signal, sys, threading
import chat

def calls(frame, event, arg):
    event_wait = frame.f_back
    if (frame.f_code.co_filename == event_wait.f_code.co_filename == threading.__file__
            and frame.f_code.co_name == event_wait.f_code.co_name == "wait"
            and event_wait.f_back.f_code.co_filename == chat.__file__):
        return in_wait

def in_wait(frame, event, arg):
    sys.settrace(None)
    signal.raise_signal(signal.SIGTERM)

sys.settrace(calls)
code = chat.main(["serve", "--port", "0"])
sys.settrace(None)
sys.exit(code)
"""


@needs_signals
def test_a_signal_may_come_at_any_moment():
    process = subprocess.Popen([sys.executable, "-c", SIGNAL_AT_THE_WORST_MOMENT], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                               env={**os.environ, "PYTHONPATH": os.path.dirname(chat.__file__)})
    output, errors = Output(process.stdout), Output(process.stderr)
    try:
        output.expect("Ctrl.C ends the room")
        process.send_signal(signal.SIGINT)  # ends it where no moment is that bad
        assert process.wait(SECONDS) == 0
        assert errors.text() == ""
    finally:
        process.kill()
        process.wait()
        for said in (output, errors):
            said.thread.join(SECONDS)
            said.stream.close()


@needs_signals
def test_nohup_is_respected(serve):
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    server = serve(**ignoring)
    server.process.send_signal(signal.SIGHUP)
    with joined(server, "ann") as ann:
        ann.settle()
        assert server.process.poll() is None


@needs_signals
def test_a_terminal_that_is_closed_ends_the_room_in_order(serve, log):
    server = serve("--log", log)
    server.process.send_signal(signal.SIGHUP)
    assert server.process.wait(SECONDS) == 0
    assert events_of(log)[-1]["ev"] == "end"


@pytest.fixture
def hanging(serve, log, tmp_path):
    """A server, and ann inside, whose last line waits for a disk that hangs."""
    server = serve("--log", log, script=HANGING_DISK)
    with joined(server, "ann") as ann:
        (tmp_path / "hang").touch()
        ann.say("into the void", "and this")
        time.sleep(0.2)
        yield server, ann


@needs_signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["Ctrl+C", "SIGTERM", "SIGHUP"])
def test_while_the_disk_hangs_the_end_comes_all_the_same_and_what_is_lost_is_told(hanging, log, number):
    server, ann = hanging
    began = time.monotonic()
    server.interrupt(number)
    assert server.process.wait(SECONDS) == 1
    assert time.monotonic() - began < 2.5, "on a busy machine"
    assert [line["ev"] for line in ann.rest()] == ["end"]
    assert server.errors.text() == "chat.py: 3 lines could not be recorded.\n"
    assert [line["ev"] for line in events_of(log)] == ["session", "join"]


@needs_signals
def test_who_insists_is_not_made_to_wait(hanging):
    server, ann = hanging
    server.interrupt()
    time.sleep(2 * chat.TWICE_SECONDS)
    began = time.monotonic()
    server.interrupt(signal.SIGTERM)
    assert server.process.wait(SECONDS) == 1
    assert time.monotonic() - began < 1


@needs_signals
@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGHUP, signal.SIGCONT)])
def test_a_signal_that_a_program_sends_twice_is_one(serve, log, numbers):
    server = serve("--log", log)
    with joined(server, "ann") as ann:
        for number in numbers:
            server.interrupt(number)
        assert ann.rest()[-1]["ev"] == "end"
    assert server.process.wait(SECONDS) == 0
    assert events_of(log)[-1]["ev"] == "end"


@needs_signals
def test_a_window_that_is_closed_again_and_again_ends_the_room_in_order(serve, log):
    server = serve("--log", log)
    with joined(server, "ann") as ann:
        server.interrupt(signal.SIGHUP)
        ann.expect(ev="end")
        time.sleep(2 * chat.TWICE_SECONDS)
        server.interrupt(signal.SIGHUP)
    assert server.process.wait(SECONDS) == 0


# --- the command line ---


def test_a_port_that_is_taken_is_told_with_one_that_is_free():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = run("--port", port)
        assert (code, out) == (1, "")
        free = int(err.rsplit(" ", 1)[1].rstrip(".\n"))
        assert err == f"chat.py: port {port} is taken; port {free} is free: add --port {free}.\n"
        socket.create_server(("127.0.0.1", free)).close()


def test_of_a_row_of_taken_ports_none_is_called_free():
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        for port in range(first + 1, min(first + 25, 65536)):
            with contextlib.suppress(OSError):  # taken by somebody else
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        with pytest.raises(chat.ChatError, match=f"port {first} is taken") as trouble:
            chat.open_listener("127.0.0.1", first)
        free = int(str(trouble.value).rsplit(" ", 1)[1])
        chat.listen("127.0.0.1", free).close()


@pytest.mark.parametrize("host", ["no such host", "a..b", "x" * 70, "300.1.1.1", "192.0.2.1"])
def test_an_address_that_is_not_here_is_told_in_one_sentence(host):
    code, out, err = run("--port", 0, "--host", host)
    assert (code, out) == (1, "")
    assert err.startswith("chat.py: ") and host in err and err.count("\n") == 1 and err.endswith(".\n")


def test_the_port_that_0_found_is_printed(serve):
    server = serve()
    assert server.address[1] > 0
    joined(server, "ann").close()


def test_the_banner_tells_how_to_come_in_from_here_and_how_to_open_it_to_others(serve):
    server = serve()
    banner = "".join(server.console.lines)
    assert f"join 127.0.0.1:{server.address[1]}\n" in banner
    assert "serve --lan\n" in banner
    assert "recording" not in banner


def test_the_banner_tells_where_it_records(serve):
    assert serve("--log", "mine.jsonl").console.expect("recording into +mine.jsonl$")


def banner_of(monkeypatch, host, everyone, port=chat.PORT):
    monkeypatch.setattr(chat, "lan_addresses", lambda: ["192.168.1.5", "10.0.0.7"])
    return "\n".join(chat.banner(chat.Room(), (host, port), everyone))


def test_the_banner_of_an_open_room_tells_others_what_to_type(monkeypatch):
    banner = banner_of(monkeypatch, "::", True)
    assert "listens on all addresses:7011" in banner
    assert "join 192.168.1.5\n" in banner and "join 10.0.0.7\n" in banner
    assert "Firewall" in banner or "firewall" in banner
    assert "--lan" not in banner


def test_the_banner_names_a_port_that_is_not_the_usual_one(monkeypatch):
    assert "join 192.168.1.5:9000\n" in banner_of(monkeypatch, "::", True, 9000)


def test_the_banner_of_one_address_names_it(monkeypatch):
    banner = banner_of(monkeypatch, "192.168.1.5", False)
    assert "listens on 192.168.1.5:7011" in banner and "join 192.168.1.5\n" in banner
    assert "10.0.0.7" not in banner


def test_a_room_for_everyone_is_reached_here_too(serve_anywhere):
    server = serve_anywhere("--lan", "--open")
    assert server.console.expect("listens on all addresses")
    with joined(server, "ann"):
        assert server.console.expect("-- ann joined$")


def test_where_one_socket_cannot_take_both_kinds_of_address_it_takes_the_common_one(monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with chat.listen("", 0) as listener:
        assert listener.family == socket.AF_INET and listener.getsockname()[0] == "0.0.0.0"


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_a_room_on_an_ipv6_address(serve):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("needs IPv6")
    server = serve("--host", "::1")
    assert server.console.expect(rf"join \[::1\]:{server.address[1]}$")
    with joined(server, "ann") as ann:
        ann.settle()


def test_log_without_a_file_makes_one_named_after_time_and_room(serve, tmp_path):
    server = serve("--log", "--room", "a/b: лаб")
    with joined(server, "ann"):
        pass
    (made,) = (tmp_path / "sessions").iterdir()
    assert made.name.endswith("-a_b_лаб.jsonl")
    server.console.expect(made.name)
    assert events_of(made)[0]["room"] == "a/b: лаб"


# --- the recording ---


@needs_signals
def test_a_session_goes_on_in_its_file(serve_anywhere, log):
    first = serve_anywhere("--log", log)
    with joined(first, "ann") as ann:
        ann.say("before")
        ann.expect(text="before")
    first.end()
    before = events_of(log)
    second = serve_anywhere("--log", log, "--room", "another name")
    with joined(second, "bob") as bob:
        assert bob.history[0] == before[0]
        assert [line.get("text") for line in bob.history if line["ev"] == "say"] == ["before"]
        assert bob.welcome["n"] == before[-1]["n"]
    second.end()
    events = events_of(log)
    assert events[:len(before)] == before
    assert [line["n"] for line in events] == list(range(len(events)))
    assert [line["t"] for line in events] == sorted(line["t"] for line in events)


def killed_under_load(serve, log, seconds):
    """What three clients saw of a server that was killed; each line once."""
    server = serve("--rate", 0, "--log", log)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(joined(server, name)) for name in ("ann", "bob", "eve")]

        def talk(peer):
            with contextlib.suppress(OSError):
                while True:
                    peer.sock.sendall(b'{"do":"say","text":"load load load"}\n' * 10)

        def read(peer, seen):
            with contextlib.suppress(OSError):
                for line in peer.file:
                    seen.append(line)

        seen = [[] for _ in peers]
        threads = [threading.Thread(target=talk, args=(peer,)) for peer in peers]
        threads += [threading.Thread(target=read, args=pair) for pair in zip(peers, seen)]
        for thread in threads:
            thread.start()
        wait_for(lambda: all(len(lines) > 100 for lines in seen), "everyone hears")
        time.sleep(seconds)
        server.process.kill()
        for thread in threads:
            thread.join()
    return {line for lines in seen for line in lines if line.endswith(b"\n") and line.startswith(b'{"ev"')}


@pytest.mark.parametrize("seconds", [0, 0.05])
def test_after_kill_9_under_load_the_session_goes_on_and_nothing_seen_is_missing(serve, log, seconds):
    seen = killed_under_load(serve, log, seconds)
    server = serve("--log", log)
    lines = log.read_bytes().splitlines(True)
    assert seen <= set(lines)
    with joined(server, "newcomer") as peer:
        assert peer.history[0] == json.loads(lines[0])
        assert peer.welcome["people"] == ["newcomer"]
        assert len([line for line in peer.history if line["ev"] == "say"]) == 50
    events = events_of(log)
    assert [line["n"] for line in events] == list(range(len(events)))
    lost = [line["who"] for line in events if line["ev"] == "leave" and line["why"] == "lost"]
    assert sorted(lost) == ["ann", "bob", "eve"]
    replayed = subprocess.run([sys.executable, chat.__file__, "replay", "--instant", log],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    assert (replayed.returncode, replayed.stderr) == (0, "")
    assert replayed.stdout.count("load load load") == sum(line["ev"] == "say" for line in events)
    assert replayed.stdout.count("lost the connection") == 3


def test_a_torn_last_line_is_set_aside(serve, log):
    server = serve("--log", log)
    with joined(server, "ann") as ann:
        ann.say("whole")
        ann.expect(text="whole")
        server.process.kill()
        server.process.wait()
    with log.open("ab") as file:
        file.write('{"ev":"say","n":3,"t":1.0,"who":"ann","text":"полови'.encode()[:-1])
    serve("--log", log)
    assert [(line["ev"], line["n"]) for line in events_of(log)][-2:] == [("say", 2), ("leave", 3)]
    assert b'{"ev":"say","n":3' in (log.parent / "log.jsonl.torn").read_bytes()


@pytest.mark.parametrize("damage", [
    b"nonsense\n", b"\n", b"\xff\xfe\n", b'{"ev":"say","n":4}\n', b'{"re":"pong","t":1}\n', b'"a string"\n'])
def test_a_damaged_line_in_its_file_is_not_handed_to_newcomers(serve, log, damage):
    log.write_bytes(chat.encode({"ev": "session", "n": 0, "t": 0.0, "v": 1, "id": "s1", "room": "lab",
                                 "start": "2026-11-20T12:00:00.000+03:00"})
                    + damage + chat.encode({"ev": "say", "n": 5, "t": 1.0, "who": "ann", "text": "whole"}))
    server = serve("--log", log)
    with joined(server, "bob") as bob:
        assert [line["ev"] for line in bob.history] == ["session", "say"]
        assert bob.welcome["n"] == 5
        join = json.loads(bob.heard[-1])
        assert join["n"] == 6 and join["from"] == 5


FOREIGN = {
    "text": b"dear diary\n", "text without an end": b"dear diary", "bytes": b"\x89PNG\r\n\x1a\n\0\0",
    "JSON": b'{"a": 1}\n',
    "a person's own recording": b'{"re":"welcome","t":0,"you":"bob","n":0,"people":["bob"]}\n',
    "half a session": b'{"ev":"session","n":0,"t":0.0,"v":1',
    "a newer session": chat.encode({"ev": "session", "n": 0, "t": 0.0, "v": 2, "id": "s1",
                                    "start": "2026-11-20T12:00:00.000+03:00", "room": "lab"}),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_file_that_is_something_else_is_refused_and_left_alone(log, content):
    log.write_bytes(content)
    code, out, err = run("--port", 0, "--log", log)
    assert (code, out) == (1, "")
    assert err.startswith("chat.py: ") and err.count("\n") == 1
    assert log.read_bytes() == content and os.listdir(log.parent) == [log.name]


def test_an_empty_file_is_a_new_session(serve, log):
    log.touch()
    with joined(serve("--log", log), "ann"):
        assert [line["ev"] for line in events_of(log)] == ["session", "join"]


@pytest.mark.skipif(not chat.fcntl and not chat.msvcrt, reason="needs locks on files")
def test_a_second_server_is_refused_the_file_of_the_first(serve, log):
    first = serve("--log", log)
    code, out, err = run("--port", 0, "--log", log)
    assert (code, out) == (1, "")
    assert err == "chat.py: another server is recording into this file.\n"
    with joined(first, "ann") as ann:
        ann.settle()
        assert [line["ev"] for line in events_of(log)] == ["session", "join"]


@pytest.mark.skipif(not chat.fcntl and not chat.msvcrt, reason="needs locks on files")
@pytest.mark.parametrize("begun", [b"", b'{"ev":"session","n":0,"t":0.0,"v":1,"id":"s1","room":"lab",'
                                   b'"start":"2026-11-20T12:00:00.000+03:00"}\n{"ev":"say","n":1,"t'])
def test_of_two_servers_that_start_at_once_one_is_refused_and_the_file_is_whole(log, begun):
    log.write_bytes(begun)
    starts = [subprocess.Popen([sys.executable, chat.__file__, "serve", "--port", "0", "--log", log], encoding="utf-8",
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
              for _ in range(2)]
    wait_for(lambda: any(start.poll() is not None for start in starts), "one of them gives up")
    (refused, server) = sorted(starts, key=lambda start: start.poll() is None)
    assert refused.communicate()[1] == "chat.py: another server is recording into this file.\n"
    for line in server.stdout:
        if "Ctrl+C ends the room" in line:
            break
    server.terminate()
    server.communicate()
    assert [event["n"] for event in events_of(log)] == [0, 1]
    assert begun == b"" or (log.parent / "log.jsonl.torn").read_bytes() == b'{"ev":"say","n":1,"t'


def test_a_folder_that_cannot_be_made_is_told_in_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    code, out, err = run("--port", 0, "--log", tmp_path / "file" / "x.jsonl")
    assert (code, out) == (1, "")
    assert err.startswith("chat.py: cannot ") and err.count("\n") == 1


@needs_resource
def test_on_a_full_disk_everyone_is_told_once_and_the_chat_goes_on(serve, log):
    server = serve("--log", log, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)))
    with joined(server, "ann") as ann, joined(server, "bob") as bob:
        told = []
        for number in range(60):
            ann.say(f"line {number} " + "x" * 700)
            told += ann.until(text=f"line {number} " + "x" * 700)
        for peer, lines in ((ann, told), (bob, bob.until(text="line 59 " + "x" * 700))):
            assert [line["text"] for line in lines if line["ev"] == "say"] == [
                f"line {number} " + "x" * 700 for number in range(60)]
            (notice,) = [line for line in lines + peer.settle() if line["ev"] == "notice"]
            assert notice["text"].startswith("recording failed (")
            assert notice["text"].endswith("it is tried again each second")
        events = events_of(log)
        assert [line["n"] for line in events] == list(range(len(events)))
        assert 8000 < log.stat().st_size < 9000
    assert server.end() == 1
    (lost,) = re.fullmatch(r"chat\.py: (\d+) lines could not be recorded\.\n", server.errors.text()).groups()
    assert len(events_of(log)) == len(events)
    assert 1 + 2 + 60 + 1 + 1 <= len(events) + int(lost) <= 1 + 2 + 60 + 1 + 2 + 1, "what came, and who left in time"


def test_recording_goes_on_when_the_disk_has_space_again(log, monkeypatch):
    monkeypatch.setattr(chat, "RETRY_SECONDS", 0.05)
    full, failures, write = threading.Event(), [], os.write

    def write_unless_full(descriptor, data):
        if full.is_set() and data.startswith(b'{"ev"'):
            failures.append(data)
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_unless_full)
    with serving(chat.open_room("lab", str(log), 50, 0)) as server, joined(server, "ann") as ann:
        full.set()
        ann.say("kept in memory")
        assert ann.expect(ev="notice")["text"].startswith("recording failed (No space left on device)")
        wait_for(lambda: len(failures) >= 5, "it is tried again and again")
        full.clear()
        ann.expect(ev="notice", text="recording works again")  # the caretaker tries, though nobody speaks
        ann.send(do="bye")
        ann.rest()
    with pytest.raises(OSError):
        os.fstat(server.room.fanout.recording.descriptor)  # it is closed
    events = events_of(log)
    assert [line["ev"] for line in events] == ["session", "join", "say", "notice", "notice", "leave", "end"]
    assert [line["n"] for line in events] == list(range(7))


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be removed here")
def test_a_recording_that_somebody_removes_is_over_and_another_can_begin(log, tmp_path):
    with serving(chat.open_room("lab", str(log), 50, 0)) as server, joined(server, "ann") as ann:
        log.unlink()
        ann.say("into the void")
        notice = ann.expect(ev="notice")
        assert "is gone, and nothing is recorded" in notice["text"] and notice["recorded"] is False
        ann.say("the chat goes on")
        ann.expect(ev="say", text="the chat goes on")
        server.room.record(chat.new_recording(str(tmp_path / "new.jsonl"), server.room.log.session_line))
        server.room.flush()
        assert ann.expect(ev="notice")["recorded"] is True
    assert not log.exists()
    words = [line["ev"] for line in events_of(tmp_path / "new.jsonl")]
    assert words[:2] == ["session", "notice"] and words[-1] == "end"


# --- the console ---


def test_the_console_shows_what_happens(serve):
    server = serve()
    with joined(server, "ann") as ann:
        ann.say("привет 😀")
        server.console.expect(r"^\d\d:\d\d ann: привет 😀$")
        ann.send(do="nick", name="anna")
        ann.send(do="bye")
        server.console.expect(r"-- ann is now anna$")
        server.console.expect(r"-- anna left$")
    assert "\x1b" not in "".join(server.console.lines), "no colours where there is no terminal"


def test_the_console_makes_harmless_what_people_write(serve):
    server = serve()
    with joined(server, "ann") as ann:
        ann.say("\x1b[2J\x9b\u202e\r12:00 bob: hi\n12:00 bob: hi")
        server.console.expect("│ 12:00 bob: hi")
    assert not set("".join(server.console.lines)) & set("\x1b\x9b\u202e\r")


def test_addresses_are_told_to_nobody(serve, log):
    server = serve("--log", log)
    with joined(server, "ann") as ann, joined(server, "bob") as bob:
        server.console.expect("-- ann joined$")
        server.console.expect("-- bob joined$")
        for peer in (ann, bob):
            peer.send(do="who")
            peer.expect(re="who")
            assert b"127.0.0.1" not in b"".join(peer.heard)
    server.console.expect("-- bob left$")
    assert b"127.0.0.1" not in log.read_bytes()
    assert not any("127.0.0.1" in line for line in server.console.lines if " -- " in line)


def test_a_private_line_is_not_shown_on_the_console(serve):
    server = serve()
    with joined(server, "ann") as ann:
        ann.send(do="tell", to="ann", text="psst")
        ann.say("aloud")
        server.console.expect("aloud")
    assert "psst" not in "".join(server.console.lines)


class Screen:
    """What a console of this process shows, as texts."""

    def __init__(self, room):
        self.lines = []
        self.console = chat.Console(room, self)

    def show(self, lines):
        self.lines += map(chat.plain, lines)

    def refresh(self):
        pass

    def said(self):
        """The numbers that were said, and how many lines were counted instead."""
        shown = [int(line.rsplit(" ", 1)[1]) for line in self.lines if "talker" in line]
        skipped = sum(int(line.split()[1].replace(",", "")) for line in self.lines if line.startswith("…"))
        return shown, skipped


def talked(room, sizes):
    """Rounds with so many lines each, numbered by their n."""
    for size in sizes:
        for _ in range(size):
            ask(room, None, "talk", said=[{"do": "say", "text": f"talker {room.log.n + 1}"}])
        room.flush()


@pytest.mark.parametrize("seed", range(8))
def test_in_a_flood_the_console_shows_the_newest_and_counts_the_rest(seed):
    chance = random.Random(seed)
    room, total = chat.Room(), 0
    screen = Screen(room)
    for _ in range(4):
        sizes = [chance.choice([1, 2, 30, 99, 100, 101, 400]) for _ in range(chance.randint(1, 8))]
        talked(room, sizes)
        total += sum(sizes)
        screen.lines.clear()
        screen.console._show()
        shown, skipped = screen.said()
        assert len(shown) + skipped == sum(sizes)
        assert shown == list(range(total - len(shown) + 1, total + 1))
        assert len(shown) == min(100, sum(sizes))
        assert not skipped or screen.lines[0].startswith("…"), "the gap is told where it is"


def test_the_console_counts_even_what_is_no_longer_in_memory():
    room = chat.Room()
    screen = Screen(room)
    talked(room, [500] * 50)  # about 2 MB
    assert room.log.kept[0].last > 1000
    screen.console._show()
    assert screen.lines[0] == "… 24,900 lines not shown"


def test_the_console_prints_what_is_left_before_it_stops():
    room = chat.Room()
    screen = Screen(room)
    screen.console.thread.start()
    talked(room, [3])
    ask(room, None, "end")
    room.flush()
    screen.console.stop(SECONDS)
    assert screen.lines[-1].endswith("-- the room is closed")
    assert not screen.console.thread.is_alive()


def test_the_console_prints_what_came_while_it_was_printing_before_it_stops():
    room, printing, go_on = chat.Room(), threading.Event(), threading.Event()
    screen = Screen(room)

    def show_slowly(lines):
        printing.set()
        assert go_on.wait(SECONDS)
        Screen.show(screen, lines)

    screen.show = show_slowly
    screen.console.thread.start()
    talked(room, [1])
    assert printing.wait(SECONDS)
    ask(room, None, "end")
    room.flush()
    stopping = threading.Thread(target=screen.console.stop, args=[SECONDS])
    stopping.start()
    wait_for(lambda: screen.console.stopped, "the console is told to stop")
    go_on.set()
    stopping.join()
    screen.console.thread.join(SECONDS)
    assert screen.lines[-1].endswith("-- the room is closed")


class Quiet(Served):
    """`serve` on a known port, since its output goes where nobody can read it."""

    def __init__(self, stdout, *options, **settings):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = free.getsockname()
        self.process = subprocess.Popen(
            [sys.executable, chat.__file__, "serve", "--port", str(self.address[1]), *map(str, options)],
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, encoding="utf-8", **settings)
        self.console = self.errors = Output(self.process.stderr)
        wait_for(self.listens, "the server listens")

    def listens(self):
        assert self.process.poll() is None, self.errors.text()
        with contextlib.suppress(OSError):
            socket.create_connection(self.address).close()
            return True


@contextlib.contextmanager
def a_pipe_that_is_closed():
    read, write = os.pipe()
    os.close(read)
    yield {"stdout": write}
    os.close(write)


@contextlib.contextmanager
def a_full_disk():
    with open("/dev/full", "w") as full:
        yield {"stdout": full}


@contextlib.contextmanager
def nothing_at_all():
    yield {"stdout": None, "preexec_fn": lambda: os.close(1)}


@needs_signals
@pytest.mark.parametrize("output", [
    a_pipe_that_is_closed, nothing_at_all, pytest.param(a_full_disk, marks=needs_dev_full)])
def test_a_room_goes_on_whatever_its_output_goes_to(output):
    with output() as settings, Quiet(**settings) as server, joined(server, "ann") as ann:
        ann.say("does it go on?")
        ann.expect(text="does it go on?")
        ann.close()
        assert server.end() == 0
        assert server.errors.text() == ""


@needs_signals
def test_a_room_goes_on_when_its_console_is_closed():
    read, write = os.pipe()
    with Quiet(write) as server, joined(server, "ann") as ann:
        os.close(write)
        seen = b""
        while b"ann joined" not in seen:
            seen += os.read(read, 1000)
        os.close(read)
        ann.say("does it go on?")
        ann.expect(text="does it go on?")
        joined(server, "bob").close()
        ann.expect(ev="leave", who="bob")
        ann.close()
        assert server.end() == 0
        assert server.errors.text() == ""


@needs_signals
def test_a_terminal_that_is_held_back_does_not_hold_the_end():
    read, write = os.pipe()  # never read, and full before long
    with Quiet(write, "--rate", 0) as server, joined(server, "ann") as ann:
        os.close(write)
        for _ in range(30):
            ann.say(*["x" * 3900] * 50)
            for _ in range(50):
                ann.expect_next(ev="say")
        ann.close()
        assert server.end() == 0
        assert server.errors.text() == ""
    os.close(read)


# --- too many connections ---


@needs_resource
def test_when_connections_run_out_those_inside_are_served(serve):
    server = serve("--rate", 0, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    with contextlib.ExitStack() as stack:
        ann = stack.enter_context(joined(server, "ann"))
        others = [socket.create_connection(server.address) for _ in range(60)]
        notice = ann.expect(ev="notice")
        assert notice["text"].startswith("this computer cannot take more connections at the moment (")
        for number in range(20):
            ann.say(str(number))
            ann.expect_next(ev="say", text=str(number))
        for other in others:
            other.close()
        bob = stack.enter_context(joined(server, "bob"))
        bob.say("there is room again")
        ann.expect(text="there is room again")
    assert server.end() == 0


@needs_resource
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs to see what a process costs")
def test_when_connections_run_out_the_server_does_not_spin(serve):
    def seconds_of_work():
        with open(f"/proc/{server.process.pid}/stat") as file:
            return sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")

    server = serve(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    with joined(server, "ann") as ann, contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(server.address))
        ann.expect(ev="notice")
        before = seconds_of_work()
        time.sleep(1)
        assert seconds_of_work() - before < 0.3
        assert not [line for line in ann.settle() if line["ev"] == "notice"], "told once"


@needs_resource
def test_as_many_may_come_as_the_system_allows_when_asked(serve):
    server = serve(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 200)))
    with contextlib.ExitStack() as stack:
        for number in range(80):
            peer = stack.enter_context(joined(server, f"m{number}"))
        assert len(peer.welcome["people"]) == 80


def test_a_crowd_that_comes_at_once_gets_in(serve):
    server = serve()
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(Peer(server)) for _ in range(200)]
        for number, peer in enumerate(crowd):
            peer.send(do="hello", name=f"m{number}")
        for peer in crowd:
            peer.expect_next(re="welcome")
        crowd[0].say("full house")
        for peer in crowd:
            peer.expect(text="full house")


# --- other Pythons and systems ---


def test_a_bare_system_is_bare(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, selectors, signal, socket\n"
                      "print(selectors.DefaultSelector.__name__, hasattr(signal, 'SIGHUP'),\n"
                      "      hasattr(os, 'sched_setaffinity'), socket.has_dualstack_ipv6())\n"
                      "for name in ('fcntl', 'resource'):\n"
                      "    try:\n        __import__(name)\n"
                      "    except ImportError:\n        print('no', name)\n")
    said = subprocess.run([sys.executable, "-c", BARE_SYSTEM, str(script)], stdout=subprocess.PIPE,
                          encoding="utf-8")
    assert said.stdout.split() == "SelectSelector False False False no fcntl no resource".split()


@needs_signals
@every_python
def test_every_python_serves(serve, log, python):
    server = serve("--log", log, python=python)
    with joined(server, "ann") as ann, joined(server, "bob") as bob:
        ann.say("привет 😀")
        bob.expect(ev="say", who="ann", text="привет 😀")
        bob.send(do="bye")
        ann.expect(ev="leave", who="bob", why="left")
        server.interrupt()
        ann.expect(ev="end")
    assert server.process.wait(SECONDS) == 0
    server.console.expect("ann: привет 😀")
    assert events_of(log)[-1]["ev"] == "end"
