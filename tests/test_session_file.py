"""The session file: whole lines or none, whatever the disk does, and a reader that forgives."""
import datetime
import errno
import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import types

import pytest

import chat
import helpers
from helpers import SESSION, ask, read_file, wait_for
from rooms import enter, numbers as numbers_of

HEAD = chat.encode(SESSION)
HERE = os.path.dirname(chat.__file__)


def say(n, text="привет", t=None):
    return chat.encode({"ev": "say", "n": n, "t": n / 4 if t is None else t, "who": "юля", "text": text})


def join(n, who, **more):
    return chat.encode({"ev": "join", "n": n, "t": n / 4, "who": who, "from": 0, **more})


def leave(n, who):
    return chat.encode({"ev": "leave", "n": n, "t": n / 4, "who": who, "why": "left"})


def nick(n, who, name):
    return chat.encode({"ev": "nick", "n": n, "t": n / 4, "who": who, "name": name})


def end(n):
    return chat.encode({"ev": "end", "n": n, "t": n / 4})


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "lab.jsonl")


def content(path):
    with open(path, "rb") as file:
        return file.read()


def put(path, *lines):
    with open(path, "wb") as file:
        file.write(b"".join(lines))


@pytest.fixture
def begun(path):
    """A new recording into that path, closed at the end."""
    recording = chat.Recording(path, HEAD)
    yield recording
    recording.close()


class Disk:
    """The os module, but with a disk that has only so many bytes left and takes so many at once."""

    def __init__(self, left, at_once=1 << 30):
        self.left, self.at_once = left, at_once
        self.cuts = True  # whether it can shorten a file

    def __getattr__(self, name):
        return getattr(os, name)

    def write(self, descriptor, data):
        if not self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.write(descriptor, data[:min(self.left, self.at_once)])
        self.left -= written
        return written


    def ftruncate(self, descriptor, size):
        if not self.cuts:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.ftruncate(descriptor, size)


@pytest.fixture
def disk(monkeypatch):
    """A large disk, tried again at once when it failed."""
    disk = Disk(1 << 30)
    monkeypatch.setattr(chat, "os", disk)
    monkeypatch.setattr(chat, "RETRY_SECONDS", 0)
    return disk


# --- recording ---


def test_a_recording_begins_with_its_head(begun, path):
    assert content(path) == HEAD


def test_lines_are_in_the_file_as_soon_as_they_are_written(begun, path):
    begun.write(say(1))
    assert content(path) == HEAD + say(1)
    begun.write(say(2) + say(3))
    assert content(path) == HEAD + say(1) + say(2) + say(3)


def test_nothing_is_said_while_all_goes_well(begun):
    assert [begun.write(say(1)), begun.write(say(2))] == [None, None]


def test_a_recording_without_a_head_begins_empty(path):
    recording = chat.Recording(path)
    recording.write(say(1))
    recording.close()
    assert content(path) == say(1)


def test_an_existing_file_is_refused_and_stays_as_it_was(path):
    put(path, b"my homework")
    with pytest.raises(chat.ChatError, match="exists already"):
        chat.Recording(path, HEAD)
    assert content(path) == b"my homework"


def test_an_empty_file_is_refused_as_well(path):
    put(path)
    with pytest.raises(chat.ChatError, match="exists already"):
        chat.Recording(path, HEAD)


def test_a_file_in_no_folder_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(chat.ChatError, match="cannot record into .*: No such file"):
        chat.Recording(str(tmp_path / "nowhere" / "lab.jsonl"), HEAD)


@pytest.mark.skipif(os.name != "posix", reason="needs the permissions of POSIX")
def test_only_the_one_who_records_may_read_what_was_said(begun, path):
    assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0


@pytest.mark.parametrize("at_once", [1, 2, 7, 100])
def test_a_disk_that_takes_a_little_at_a_time_gets_it_all(disk, path, at_once):
    disk.at_once = at_once
    recording = chat.Recording(path, HEAD)
    recording.write(say(1) + say(2))
    recording.close()
    assert content(path) == HEAD + say(1) + say(2)


needs_locks = pytest.mark.skipif(not (chat.fcntl or chat.msvcrt), reason="this system has no file locks")


@needs_locks
def test_of_two_recordings_into_one_file_the_second_is_refused(begun, path):
    begun.write(say(1))
    with pytest.raises(chat.ChatError, match="another server"):
        chat.Recording(path, HEAD, new=False)
    assert content(path) == HEAD + say(1)


@needs_locks
def test_another_process_is_refused_as_well(begun, path):
    script = f"import chat; chat.Recording({path!r}, new=False)"
    done = subprocess.run([sys.executable, "-c", script], cwd=HERE, stderr=subprocess.PIPE, timeout=60)
    assert b"another server is recording into this file" in done.stderr


def test_a_file_is_free_again_when_its_recording_is_closed(path):
    chat.Recording(path, HEAD).close()
    recording = chat.Recording(path, HEAD, new=False)
    recording.write(say(1))
    recording.close()
    assert content(path) == HEAD + say(1)


# --- a disk that fails ---


ROUND = say(2) + say(3, "друг 😀")


def whole(data, size):
    """The whole lines in so many bytes of these."""
    return data[:data.rfind(b"\n", 0, size) + 1]


@pytest.mark.parametrize("left", range(len(ROUND)))
def test_on_a_full_disk_the_file_holds_whole_lines_and_later_all(begun, disk, path, left):
    begun.write(say(1))
    disk.left = left
    assert "No space left" in begun.write(ROUND)
    assert content(path) == HEAD + say(1) + whole(ROUND, left)
    disk.left = 1 << 30
    assert begun.write(say(4)) == "recording works again"
    begun.write(say(5))
    assert content(path) == HEAD + say(1) + ROUND + say(4) + say(5)


@pytest.mark.parametrize("left", range(0, len(ROUND) + 1, 7))
def test_a_disk_that_is_full_again_while_it_recovers_does_no_harm(begun, disk, path, left):
    disk.left = 5
    begun.write(say(1))
    disk.left = left
    begun.write(ROUND)
    assert content(path) == HEAD + whole(say(1) + ROUND, left)
    disk.left = 1 << 30
    begun.write(say(4))
    assert content(path) == HEAD + say(1) + ROUND + say(4)


def test_a_full_disk_that_gets_a_little_space_again_and_again_takes_what_fits(begun, disk, path):
    lines = [say(n) for n in range(1, 200)]
    disk.left = 0
    begun.write(b"".join(lines))
    for tries in range(1, 100):
        disk.left += 300
        begun.write(b"")
        assert content(path).endswith(b"\n") and len(content(path)) > len(HEAD) + 200 * tries or not begun.failing
    assert content(path) == HEAD + b"".join(lines) and begun.backlog.count(b"\n") == 0


def test_how_many_lines_a_failing_disk_has_not_taken_is_known(begun, disk):
    disk.left = len(say(2)) + 5
    begun.write(ROUND)
    assert begun.backlog.count(b"\n") == 1
    begun.write(say(4))
    assert begun.backlog.count(b"\n") == 2
    disk.left = 1 << 30
    begun.write(say(5))
    assert begun.backlog.count(b"\n") == 0


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("secret"), chat.ChatError("secret"),
                                   UnicodeEncodeError("utf-8", "secret", 0, 1, "secret")])
def test_whatever_a_write_raises_is_told_by_its_kind_and_is_not_the_end(begun, disk, path, error):
    disk.write = lambda descriptor, data: (_ for _ in ()).throw(error)
    told = begun.write(say(1))
    assert told.startswith(f"recording failed ({type(error).__name__})") and "secret" not in told
    del disk.write
    assert begun.write(say(2)) == "recording works again"
    assert content(path) == HEAD + say(1) + say(2)


def test_a_disk_that_stalls_is_remembered(begun, disk, monkeypatch):
    begun.write(say(1))
    assert begun.stalled < 0
    monkeypatch.setattr(chat, "STALL_SECONDS", -1)
    begun.write(say(2))
    assert time.monotonic() - begun.stalled < 60


# --- what is to survive a power cut ---


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(chat, "SYNC_SECONDS", 0.01)


def test_what_is_new_is_synced_once_and_then_nothing(disk, quick, path):
    synced = []
    disk.fsync = lambda descriptor: synced.append(content(path))
    recording = chat.Recording(path, HEAD)
    wait_for(lambda: synced == [HEAD], "the head is synced")
    for n in range(1, 4):
        recording.write(say(n))
        wait_for(lambda: synced[-1].endswith(say(n)), "a line is synced")
    count = len(synced)
    time.sleep(0.1)
    assert len(synced) == count, "nothing new, nothing to sync"
    recording.close()


def test_marks_and_the_end_are_synced_at_once(disk, monkeypatch, path):
    monkeypatch.setattr(chat, "SYNC_SECONDS", 30)
    synced, mark = [], chat.encode({"ev": "mark", "n": 2, "t": 2.0, "text": "part"})
    disk.fsync = lambda descriptor: synced.append(content(path))
    recording = chat.Recording(path, HEAD)
    recording.write(say(1))
    recording.write(mark)
    wait_for(lambda: synced == [HEAD + say(1) + mark], "the mark is synced")
    recording.write(end(3))
    recording.close()
    assert synced == [HEAD + say(1) + mark, HEAD + say(1) + mark + end(3)]


def test_a_disk_that_takes_long_to_sync_holds_no_write(disk, quick, path):
    syncing, go_on = threading.Event(), threading.Event()
    disk.fsync = lambda descriptor: syncing.set() or go_on.wait(helpers.SECONDS)
    recording = chat.Recording(path, HEAD)
    recording.write(say(1))
    assert syncing.wait(helpers.SECONDS)
    recording.write(say(2))
    assert content(path) == HEAD + say(1) + say(2)
    recording.close()  # does not wait for ever
    assert recording.thread.is_alive()
    go_on.set()
    recording.thread.join(helpers.SECONDS)
    with pytest.raises(OSError):
        os.fstat(recording.descriptor)


def test_that_a_sync_fails_is_told_once_each_time_it_begins(disk, quick, path):
    told, works = [], [False]

    def sync(descriptor):
        if not works[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.fsync = sync
    recording = chat.Recording(path)
    for works[0] in (False, False, True, True, False):
        recording.write(say(1))
        begun = time.monotonic()
        wait_for(lambda: recording.unsynced or time.monotonic() - begun > 0.1, "it is synced or not")
        told.append(recording.write(b""))
    recording.close()
    sentence = "what was recorded last may not survive a power cut (Input/output error)"
    assert told == [sentence, None, None, None, sentence]


# --- a file that somebody else changes ---


CHANGED = "somebody else changed the file of the recording, which goes on behind what is there"


@pytest.mark.parametrize("theirs", [b"theirs\n", b"theirs", b"\0" * 5000, b"\n"], ids=str)
def test_what_somebody_else_puts_into_the_file_stays_and_ours_is_a_line_of_its_own(begun, path, theirs):
    begun.write(say(1))
    with open(path, "ab") as file:
        file.write(theirs)
    assert begun.write(say(2)) == CHANGED
    assert begun.write(say(3)) is None
    assert content(path) == HEAD + say(1) + theirs + b"\n" * (not theirs.endswith(b"\n")) + say(2) + say(3)


@pytest.mark.parametrize("cut", [1, len(say(1)) - 1, len(say(1)), len(say(1)) + 5])
def test_behind_a_file_that_somebody_cut_the_recording_goes_on_with_whole_lines(begun, path, cut):
    begun.write(say(1))
    os.truncate(path, len(HEAD + say(1)) - cut)
    left = content(path)
    assert begun.write(say(2)) == CHANGED
    assert content(path) == left + b"\n" * (not left.endswith(b"\n")) + say(2)


def test_a_file_that_somebody_emptied_is_a_session_again(begun, path):
    begun.write(say(1))
    os.truncate(path, 0)
    assert begun.write(say(2)) == CHANGED
    with open(path, "rb") as file:
        assert [event.get("n") for event in read_file(file)] == [0, None, 2]


def test_others_who_go_on_changing_it_are_told_of_once(begun, path):
    told = []
    for n in range(1, 6):
        with open(path, "ab") as file:
            file.write(b"theirs\n")
        told.append(begun.write(say(n)))
    assert told == [CHANGED, None, None, None, None]
    assert content(path) == HEAD + b"".join(b"theirs\n" + say(n) for n in range(1, 6))


def test_what_somebody_puts_behind_half_a_line_of_ours_is_not_taken_back_with_it(begun, disk, path):
    disk.left, disk.cuts = 5, False
    begun.write(say(1))
    with open(path, "ab") as file:
        file.write(b"theirs\n")
    disk.left, disk.cuts = 1 << 30, True
    assert begun.write(say(2)) == f"{CHANGED}; recording works again"
    assert content(path) == HEAD + say(1)[:5] + b"theirs\n" + say(1) + say(2)


def test_half_a_line_that_could_not_be_taken_back_at_once_is_taken_back_later(begun, disk, path):
    disk.left, disk.cuts = 5, False
    begun.write(say(1))
    assert content(path) == HEAD + say(1)[:5]
    disk.left, disk.cuts = 1 << 30, True
    assert begun.write(say(2)) == "recording works again"
    assert content(path) == HEAD + say(1) + say(2)


def test_a_file_that_cannot_be_begun_is_refused_in_one_sentence(disk, path):
    disk.left = 5
    with pytest.raises(chat.ChatError, match="cannot record into .*: No space left"):
        chat.Recording(path, HEAD)


def test_that_recording_fails_and_works_again_is_said_once_each(begun, disk):
    disk.left = 0
    news = [begun.write(say(n)) for n in range(1, 5)]
    assert news[0].startswith("recording failed") and news[1:] == [None, None, None]
    disk.left = 1 << 30
    assert [begun.write(say(n)) for n in range(5, 8)] == ["recording works again", None, None]


def test_that_recording_fails_again_is_said_again(begun, disk):
    said = []
    for n in range(1, 9):
        disk.left = 0 if n % 2 else 1 << 30
        said.append(begun.write(say(n)).split()[1])
    assert said == ["failed", "works"] * 4


def test_a_failing_disk_is_not_tried_before_its_time(begun, disk, monkeypatch, path):
    monkeypatch.setattr(chat, "RETRY_SECONDS", 1e6)
    disk.left = 0
    begun.write(say(1))
    disk.left = 1 << 30
    assert begun.write(say(2)) is None
    assert content(path) == HEAD
    begun.retry_at = 0.0
    assert begun.write(say(3)) == "recording works again"
    assert content(path) == HEAD + say(1) + say(2) + say(3)


def test_a_failing_disk_is_tried_when_nobody_says_anything(begun, disk, path):
    disk.left = 0
    begun.write(say(1))
    disk.left = 1 << 30
    assert begun.write(b"") == "recording works again"
    assert content(path) == HEAD + say(1)


def test_closing_writes_what_was_kept(disk, monkeypatch, path):
    recording = chat.Recording(path, HEAD)
    monkeypatch.setattr(chat, "RETRY_SECONDS", 1e6)
    disk.left = 0
    recording.write(say(1))
    disk.left = 1 << 30
    recording.close()
    assert content(path) == HEAD + say(1)


def test_closing_on_a_full_disk_leaves_whole_lines(disk, path):
    recording = chat.Recording(path, HEAD)
    disk.left = 5
    recording.write(say(1))
    disk.left = 5
    recording.close()
    assert content(path) == HEAD


def test_what_is_kept_for_a_failing_disk_is_bounded(begun, disk):
    disk.left = 0
    for n in range(3000):
        begun.write(say(n, "x" * 1000))
    assert len(begun.backlog) <= chat.BACKLOG_BYTES


@pytest.mark.parametrize("retry_seconds", [1e6, 0], ids=["untried", "tried again each time"])
def test_the_newest_lines_are_kept_for_a_failing_disk(begun, disk, monkeypatch, path, retry_seconds):
    monkeypatch.setattr(chat, "RETRY_SECONDS", retry_seconds)
    disk.left = 0
    for n in range(1, 3001):
        begun.write(say(n, "x" * 1000))
    disk.left, begun.retry_at = 1 << 30, 0.0
    begun.write(say(3001))
    numbers = [chat.number_of(line) for line in content(path).splitlines()]
    assert numbers == [0, *range(numbers[1], 3002)]  # one gap, after what was safe
    assert len(content(path)) > chat.BACKLOG_BYTES // 2


def test_what_could_not_be_kept_is_a_gap_that_readers_name(begun, disk, path):
    begun.write(say(1))
    disk.left = 0
    begun.write(say(2, "x" * chat.BACKLOG_BYTES))
    begun.write(say(3))
    disk.left = 1 << 30
    begun.write(say(4))
    with open(path, "rb") as file:
        events = read_file(file)
    assert [event.get("n") for event in events] == [0, 1, None, 3, 4]
    assert events[2]["text"].startswith("1 ")


REAL_LIMIT = """if True:
    import chat, resource, sys
    chat.RETRY_SECONDS = 0
    recording = chat.Recording("lab.jsonl", b"head\\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1001, resource.RLIM_INFINITY))
    news = [recording.write(b"line %05d\\n" % n) for n in range(200)]
    size = len(open("lab.jsonl", "rb").read())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    news.append(recording.write(b"last\\n"))
    print(size, *filter(None, news), sep="|", end="")
    """


@pytest.mark.skipif(not chat.resource, reason="this system has no limits for processes")
def test_a_file_that_may_not_grow_is_whole_and_later_complete(tmp_path):
    done = subprocess.run([sys.executable, "-c", REAL_LIMIT], cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": HERE}, stdout=subprocess.PIPE,
                          universal_newlines=True, timeout=60, check=True)
    size, failed, works = done.stdout.split("|")
    assert int(size) == len(b"head\n") + 90 * len(b"line 00000\n")
    assert "too large" in failed and works == "recording works again"
    lines = [b"head\n", *(b"line %05d\n" % n for n in range(200)), b"last\n"]
    assert content(tmp_path / "lab.jsonl") == b"".join(lines)


# --- a file that goes away ---


needs_unlink = pytest.mark.skipif(os.name != "posix", reason="an open file cannot be removed here")


@needs_unlink
@pytest.mark.parametrize("left", [1 << 30, 5, 0], ids=["with room", "nearly full", "full"])
def test_a_file_that_was_removed_is_said_to_be_gone_once_the_next_line_comes(begun, disk, path, left):
    begun.write(say(1))
    disk.left = left
    begun.write(say(2))
    os.unlink(path)
    assert begun.write(say(3)) == "the file of the recording is gone, and nothing is recorded any more"
    assert begun.gone and not os.path.exists(path)


@needs_unlink
def test_a_folder_that_was_removed_takes_its_recording_along(tmp_path):
    (tmp_path / "sessions").mkdir()
    recording = chat.Recording(str(tmp_path / "sessions" / "lab.jsonl"), HEAD)
    shutil.rmtree(tmp_path / "sessions")
    assert "is gone" in recording.write(say(1))
    recording.close()


@needs_unlink
@pytest.mark.parametrize("left", [1 << 30, 0], ids=["with room", "after a full disk"])
def test_another_file_that_took_its_name_is_left_alone(begun, disk, path, tmp_path, left):
    disk.left = left
    begun.write(say(1))
    disk.left = 1 << 30
    os.rename(path, tmp_path / "moved")
    put(path, b"not yours\n")
    begun.write(say(2))
    assert content(path) == b"not yours\n"
    assert content(tmp_path / "moved") == HEAD + say(1) + say(2), "which is the same file still"


# --- going on in a file ---


WHOLE = HEAD + join(1, "юля") + say(2)
LAST = say(3, "не дописано 😀")


def go_on(path):
    """Go on in this file as a server does, with one more line."""
    recording = chat.Recording(path, HEAD, new=False)
    session, n, t, people, tail, size = chat.recover(path)
    recording.go_on(size, chat.encode(session))
    recording.write(say(n + 1))
    recording.close()


@pytest.mark.parametrize("cut", range(1, len(LAST)))
def test_half_a_line_is_set_aside_and_no_whole_one_is_lost(path, cut):
    put(path, WHOLE, LAST[:cut])
    go_on(path)
    assert content(path) == WHOLE + say(3)
    assert content(path + ".torn") == LAST[:cut]


def test_nothing_is_set_aside_where_nothing_is_torn(path):
    put(path, WHOLE, LAST)
    go_on(path)
    assert content(path) == WHOLE + LAST + say(4)
    assert not os.path.exists(path + ".torn")


@pytest.mark.parametrize("line", [b"garbage\n", b"\n", b'{"ev":"say","n":9}\n',
                                  b'{"ev":"say","n":5000,"t":900.0,"who":"bob","te\n'], ids=str)
def test_a_damaged_line_at_the_end_is_whole_and_stays(path, line):
    put(path, WHOLE, line)
    go_on(path)
    assert content(path) == WHOLE + line + say(3)
    assert not os.path.exists(path + ".torn")


def test_what_was_set_aside_before_stays(path):
    for words in (b"first", b"second"):
        put(path, WHOLE, words)
        go_on(path)
    assert content(path + ".torn") == b"firstsecond"


def test_a_long_torn_tail_is_set_aside_in_full(path):
    put(path, WHOLE, b"x" * 3_000_000)
    go_on(path)
    assert content(path) == WHOLE + say(3)
    assert content(path + ".torn") == b"x" * 3_000_000


def test_a_torn_tail_that_memory_should_not_hold_is_set_aside_piece_by_piece(path):
    put(path, WHOLE)
    os.truncate(path, len(WHOLE) + (40 << 20))  # zeros, as a power cut leaves them on some file systems
    tracemalloc.start()
    try:
        go_on(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert content(path) == WHOLE + say(3)
    assert os.path.getsize(path + ".torn") == 40 << 20
    assert peak < 3 * chat.REPLY_BYTES


@pytest.mark.skipif(os.name != "posix", reason="needs the permissions of POSIX")
def test_only_the_one_who_records_may_read_what_was_set_aside(path):
    put(path, WHOLE, LAST[:9])
    go_on(path)
    assert stat.S_IMODE(os.stat(path + ".torn").st_mode) == 0o600


def test_where_it_cannot_be_set_aside_the_server_does_not_begin_and_the_file_stays(path):
    put(path, WHOLE, LAST[:9])
    os.mkdir(path + ".torn")
    with pytest.raises(chat.ChatError, match="cannot go on in .*: Is a directory"):
        chat.open_room("lab", path, 50, 0)
    assert content(path) == WHOLE + LAST[:9]


@needs_locks
def test_a_file_is_read_only_once_nobody_else_can_write_it(path, monkeypatch):
    put(path, WHOLE, LAST[:9])
    read = []
    monkeypatch.setattr(chat, "recover", lambda path: read.append(path))
    first = chat.Recording(path, HEAD, new=False)
    with pytest.raises(chat.ChatError, match="another server"):
        chat.open_room("lab", path, 50, 0)
    first.close()
    assert not read and content(path) == WHOLE + LAST[:9] and not os.path.exists(path + ".torn")


def saved_again(*lines, **how):
    """These lines as another program writes them."""
    return b"".join(json.dumps(json.loads(line), **how).encode() + b"\n" for line in lines)


@pytest.mark.parametrize("how", [{}, {"sort_keys": True}, {"ensure_ascii": False}, {"separators": (" , ", " : ")}],
                         ids=str)
def test_a_session_that_another_program_saved_goes_on(path, how):
    lines = [HEAD, join(1, "юля"), *[say(n) for n in range(2, 90)]]
    put(path, saved_again(*lines, **how).replace(b"\n", b"\r\n"))
    room = chat.open_room("lab", path, 50, 0)
    eve = enter(room, "eve")
    room.fanout.recording.close()
    assert room.log.session == SESSION
    assert numbers_of(eve.out.lines()) == [0, *range(eve.out.lines()[-1]["from"], 92)]
    assert chat.event_of(content(path).splitlines()[-1])["n"] == 91


def test_a_session_that_another_program_saved_gives_as_much_history(path):
    put(path, saved_again(HEAD, *[say(n) for n in range(1, 90)]))
    room = chat.open_room("lab", path, 50, 0)
    room.fanout.recording.close()
    assert numbers_of(enter(room, "eve").out.lines()) == [0, *range(40, 91)]


def test_a_session_with_one_object_over_many_rows_is_refused(path):
    put(path, saved_again(HEAD, say(1), indent=1))
    before = content(path)
    with pytest.raises(chat.ChatError, match="not a session that a server recorded"):
        chat.open_room("lab", path, 50, 0)
    assert content(path) == before


@pytest.mark.parametrize("field", [b'"\\ud800"', b"NaN", b"1e999"])
def test_what_cannot_be_written_again_is_no_history(path, field):
    put(path, WHOLE, b'{"ev":"poll","n":3,"t":1.0,"x":%b}\n' % field)
    room = chat.open_room("lab", path, 50, 0)
    room.fanout.recording.close()
    assert room.log.n == 4 and numbers_of(enter(room, "eve").out.lines()) == [0, 2, 4, 5]


@pytest.mark.parametrize("last", [{"n": (1 << 53) - 1}, {"n": (1 << 52) + 1}, {"t": 9.9e10}], ids=str)
def test_a_session_whose_numbers_run_out_is_refused_in_one_sentence(path, last):
    put(path, WHOLE, chat.encode({**chat.event_of(say(3)), **last}))
    with pytest.raises(chat.ChatError, match="are too high to go on from"):
        chat.open_room("lab", path, 50, 0)


def test_a_session_with_the_highest_numbers_that_may_go_on_is_understood_by_everybody(path):
    put(path, WHOLE, chat.encode({**chat.event_of(say(3)), "n": 1 << 52, "t": 8.9e10}))
    room = chat.open_room("lab", path, 50, 0)
    eve = enter(room, "eve")
    room.fanout.recording.close()
    assert [chat.decode_event(json.dumps(line)) for line in eve.out.lines()]


def test_a_session_is_recovered_with_its_id(path):
    put(path, WHOLE)
    assert chat.recover(path)[0] == SESSION


def test_the_newest_event_is_recovered(path):
    put(path, WHOLE, say(3, t=99.5), LAST[:20])
    assert chat.recover(path)[1:3] == (3, 99.5)


def test_the_newest_event_may_be_one_that_nobody_knows(path):
    put(path, WHOLE, b'{"ev":"poll","n":3,"t":77.0}\n')
    assert chat.recover(path)[1:3] == (3, 77.0)


def test_a_session_without_events_is_recovered(path):
    put(path, HEAD)
    session, n, t, people, tail, size = chat.recover(path)
    assert (session, n, people, tail, size) == (SESSION, 0, [], b"", len(HEAD))


def test_damaged_lines_are_passed_over(path):
    put(path, HEAD, say(1), b"garbage\n", b"\xff\xfe\n", b"\n", say(4), b'{"ev":"say","n":9}\n')
    assert chat.recover(path)[1] == 4


@pytest.mark.parametrize("end", [say(3)[:-1], b'{"ev":"wild","t":2.0}\n', b'{"re":"pong","t":2.0}\n', say(3)[:9]])
def test_what_is_torn_or_bears_no_number_is_no_history(path, end):
    put(path, HEAD, b'{"ev":"wild","t":0.5}\n', join(1, "юля"), say(2), end)
    assert chat.recover(path)[4] == join(1, "юля") + say(2)


def test_people_who_were_inside_are_recovered_with_their_seats(path):
    put(path, HEAD, join(1, "юля"), join(2, "bob"), join(3, "ann", back=True), leave(4, "bob"), nick(5, "ann", "eve"))
    assert chat.recover(path)[3] == [("юля", 1, False), ("eve", 3, True)]


def test_nobody_is_inside_after_the_end(path):
    put(path, HEAD, join(1, "юля"), end(2))
    assert chat.recover(path)[3] == []


@pytest.mark.parametrize("lines, people", [
    ([join(1, "a"), leave(2, "a")], {}), ([join(1, "a"), leave(2, "b")], {"a": 1}),
    ([join(1, "a"), nick(2, "a", "A")], {"A": 1}), ([join(1, "a"), nick(2, "b", "c")], {"a": 1}),
    ([join(1, "a"), leave(2, "a"), join(3, "a")], {"a": 3}), ([join(1, "a"), nick(2, "a", "b"), join(3, "a")],
                                                              {"b": 1, "a": 3}),
    ([join(1, "a"), end(2), join(3, "b")], {"b": 3}), ([join(1, "a"), say(2)], {"a": 1})])
def test_who_is_here_is_what_the_events_add_up_to(lines, people):
    view = chat.View()
    for line in lines:
        view.take(chat.event_of(line))
    assert view.people == people


def test_the_tail_is_every_line_but_the_first_of_a_short_file(path):
    put(path, WHOLE, LAST[:10])
    assert chat.recover(path)[4] == join(1, "юля") + say(2)


def test_the_tail_of_a_long_file_is_its_last_whole_lines(path):
    lines = [say(n, "ж" * 500) for n in range(1, 600)]
    put(path, HEAD, *lines, LAST[:10])
    tail = chat.recover(path)[4]
    assert chat.HISTORY_BYTES - 2 * len(lines[0]) < len(tail) <= chat.HISTORY_BYTES
    assert b"".join(lines).endswith(tail) and tail.startswith(b'{"ev":"say"')


@pytest.mark.parametrize("spare", range(3))
def test_the_tail_never_holds_the_session_line(path, monkeypatch, spare):
    monkeypatch.setattr(chat, "HISTORY_BYTES", len(WHOLE) - len(HEAD) + spare)
    put(path, WHOLE)
    assert chat.recover(path)[4] == WHOLE[len(HEAD):]


WELCOME = chat.encode({"re": "welcome", "t": 9.0, "you": "bob", "n": 40, "people": ["bob"]})
FOREIGN = {
    "notes": b"milk\nbread\n",
    "one line": b"milk\n",
    "half a line": b"milk",
    "half a session line": HEAD[:-1],
    "a client's recording": WELCOME + WHOLE,
    "no session line": say(1),
    "json": b'{"a": 1}\n',
    "a damaged session line": HEAD.replace(b"+03:00", b"") + say(1),
    "blank lines": b"\n\n",
    "zeros": bytes(5000),
    "binary": bytes(range(256)) * 20,
    "a gigantic line": b"x" * (9 << 20) + b"\n" + WHOLE,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_no_server_recorded_is_refused(path, name):
    put(path, FOREIGN[name])
    with pytest.raises(chat.ChatError, match="not a session that a server recorded"):
        chat.recover(path)


@pytest.mark.parametrize("name", ["notes", "half a line", "json", "a client's recording"])
def test_a_server_leaves_a_foreign_file_as_it_was(path, name):
    put(path, FOREIGN[name])
    with pytest.raises(chat.ChatError):
        chat.open_room("lab", path, 50, 0)
    assert content(path) == FOREIGN[name]
    assert not os.path.exists(path + ".torn")


def test_a_session_of_a_newer_chat_is_refused(path):
    put(path, chat.encode({**SESSION, "v": chat.VERSION + 1}), say(1))
    with pytest.raises(chat.ChatError, match="newer chat"):
        chat.recover(path)


def test_a_server_that_goes_on_leaves_no_gap_and_nobody_behind(path):
    put(path, WHOLE, LAST[:9])
    room = chat.open_room("another name", path, 50, 0)
    ask(room, None, "notice", text="here again")
    room.flush()
    room.fanout.recording.close()
    with open(path, "rb") as file:
        events = read_file(file)
    assert [event["n"] for event in events] == [0, 1, 2, 3, 4]
    assert (events[3]["ev"], events[3]["who"], events[3]["why"]) == ("leave", "юля", "lost")
    assert room.log.session == SESSION


def test_time_does_not_fall_when_a_server_goes_on(path):
    put(path, WHOLE, say(3, t=4e9))  # written by a clock far ahead
    room = chat.open_room("lab", path, 50, 0)
    room.fanout.recording.close()
    assert room.log.t >= 4e9


def test_an_empty_file_becomes_a_session(path):
    put(path)
    room = chat.open_room("lab", path, 50, 0)
    room.fanout.recording.close()
    assert content(path) == room.log.session_line


# --- reading ---


def read(*lines):
    return read_file(io.BytesIO(b"".join(lines)))


def in_short(event):
    """The n of an event, the word of a reply, the text of a remark."""
    if event == chat.remark(event["t"], event.get("text")):
        return event["text"]
    return event.get("re") or event["n"]


def numbers(*lines):
    return list(map(in_short, read(*lines)))


def damaged(number):
    return f"line {number} is damaged and was passed over"


def test_a_session_is_read_as_it_was_written():
    first, second = say(1), say(2, "😀\nё")
    assert read(HEAD, first, second) == [SESSION, chat.event_of(first), chat.event_of(second)]


def test_an_empty_file_holds_no_events():
    assert read() == []


def test_a_bom_blank_lines_and_windows_line_ends_do_no_harm():
    windows = [b"\xef\xbb\xbf", HEAD, b"\n", say(1), b"  \n", b"\n", say(2), b"\t\n"]
    assert read(*[line.replace(b"\n", b"\r\n") for line in windows]) == read(HEAD, say(1), say(2))


def test_a_last_line_that_is_not_finished_is_left_alone():
    assert numbers(HEAD, say(1), say(2)[:-1]) == [0, 1]


@pytest.mark.parametrize("line", [b"garbage\n", b"\xff\xfe\x00\n", b"null\n", b"[]\n",
                                  b'{"ev":"say","n":5,"t":1}\n',
                                  say(5).replace(b"0", b"O").replace(b'"n":5', b'"n":-5'),
                                  say(5)[:-9] + b"\n", bytes(4096) + b"\n", b'{"do":"say","text":"a"}\n',
                                  b"[" * 100_000 + b"\n", b'{"ev":"end","n":5,"t":NaN}\n',
                                  b"\xef\xbb\xbf" + say(2), b"9" * 5000 + b"\n"],
                         ids=lambda line: str(line[:24]))
def test_a_damaged_line_is_named_by_its_number_and_passed_over(line):
    assert numbers(HEAD, say(1), line, say(2)) == [0, 1, damaged(3), 2]


def test_lines_are_counted_as_an_editor_counts_them():
    lines = [HEAD, b"\n", b"\r\n", say(1), b"garbage\n", b"\n", b"garbage\n"]
    assert numbers(*lines) == [0, 1, damaged(5), damaged(7)]


@pytest.mark.parametrize("after, before, count", [(1, 3, "1 "), (1, 9, "7 "), (5, 1006, "1,000 ")])
def test_a_gap_is_named_with_the_count_of_what_is_missing(after, before, count):
    head = chat.encode({**SESSION, "n": after - 1})
    first, second, gap, last = numbers(head, say(after), say(before))
    assert gap.startswith(count) and "not recorded" in gap
    assert last == before


def test_where_nothing_is_missing_no_gap_is_named():
    assert numbers(HEAD, *map(say, range(1, 50))) == list(range(50))


def test_the_remark_on_a_gap_has_the_time_of_what_follows():
    head, first, gap, last = read(HEAD, say(1, t=3.0), say(8, t=9.0))
    assert gap["t"] == 9.0  # else a replay would show it, and then wait


def test_the_remark_on_a_damaged_line_has_the_time_of_the_line_before():
    assert read(HEAD, say(1, t=3.0), b"garbage\n")[2]["t"] == 3.0


def test_the_time_of_remarks_does_not_fall_when_that_of_events_does():
    assert read(HEAD, say(1, t=9.0), say(2, t=3.0), b"garbage\n")[3]["t"] == 9.0


def test_a_gap_before_an_event_that_nobody_knows_is_named_too():
    seen = numbers(HEAD, b'{"ev":"poll","n":3,"t":1}\n')
    assert len(seen) == 3 and "2 lines" in seen[1]


def test_what_a_person_was_not_given_is_not_missing():
    assert numbers(WELCOME, HEAD, say(30), join(41, "bob"), say(50)) == ["welcome", 0, 30, 41, 50]


def test_lines_for_one_person_are_read_with_the_others():
    tell = chat.encode({"re": "tell", "t": 1.0, "who": "a", "to": "b", "text": "psst"})
    assert numbers(HEAD, say(1), tell, say(2)) == [0, 1, "tell", 2]


def test_events_that_nobody_knows_are_read():
    poll = {"ev": "poll", "n": 1, "t": 0.5, "votes": [1]}
    assert read(HEAD, chat.encode(poll)) == [SESSION, poll]


def test_a_session_of_a_later_version_is_refused_in_one_sentence():
    with pytest.raises(chat.ChatError, match="^this session was made by a newer chat"):
        read(chat.encode({**SESSION, "v": 2}), say(1))


@pytest.mark.parametrize("text", ["a\u2028b\u2029c", "a\x85b", "a\x0bb\x0cc", "\x1ca\x1db\x1e"], ids=ascii)
def test_only_a_newline_ends_a_line(text):
    assert read(HEAD, say(1, text))[1]["text"] == text


@pytest.mark.parametrize("seed", range(5))
def test_garbage_is_damaged_lines_and_nothing_worse(seed):
    chance = random.Random(seed)
    garbage = bytes(chance.choice(b'\n\r\0\xff\xef\xbb\xbf{}[]",:ev1') for _ in range(20_000)) + b"\n"
    lines = [line for line in garbage.split(b"\n") if line.strip()]
    assert len(read(garbage)) in (len(lines), len(lines) - 1)  # the first may be a BOM and nothing else


# --- gigantic lines ---


def say_bytes(n, size):
    """A line of exactly so many bytes."""
    return say(n, "x" * (size - len(say(n, ""))))


@pytest.mark.parametrize("size", range(295, 301))
def test_a_line_up_to_the_limit_is_read(monkeypatch, size):
    monkeypatch.setattr(chat, "REPLY_BYTES", 300)
    assert numbers(HEAD, say_bytes(1, size), say(2)) == [0, 1, 2]


@pytest.mark.parametrize("size", [*range(301, 306), *range(595, 606), 899, 900, 901, 5000])
def test_a_line_over_the_limit_is_one_damaged_line(monkeypatch, size):
    monkeypatch.setattr(chat, "REPLY_BYTES", 300)
    lines = [HEAD, say(1), say_bytes(2, size), say(2), b"garbage\n"]
    assert numbers(*lines) == [0, 1, damaged(3), 2, damaged(5)]


def test_a_gigantic_line_is_skipped_in_bounded_memory(path):
    put(path, HEAD, say(1))
    os.truncate(path, 80 << 20)  # zeros, which take no room on most disks
    with open(path, "ab") as file:
        file.write(b"\n" + say(2))
    tracemalloc.start()
    try:
        with open(path, "rb") as file:
            seen = list(map(in_short, read_file(file)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == [0, 1, damaged(3), 2]
    assert peak < 4 * chat.REPLY_BYTES


def test_a_gigantic_last_line_does_no_harm():
    assert numbers(HEAD, b"x" * (17 << 20)) in ([0, damaged(2)], [0])


# --- names of files ---


@pytest.fixture
def noon(monkeypatch, tmp_path):
    """An empty current folder, at noon."""
    class Noon(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 20, 12, 0, 5, tzinfo=tz)

    monkeypatch.setattr(chat, "datetime", types.SimpleNamespace(datetime=Noon))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(*names):
    folder, name = os.path.split(chat.default_path(*names))
    assert folder == "sessions"
    return name


def test_a_recording_is_called_after_time_room_and_person(noon):
    assert named("лаб 1", "юля") == "20261120-120005-лаб_1-юля.jsonl"


def test_a_name_that_is_taken_gets_a_number(noon):
    (noon / "sessions").mkdir()
    for name in ("20261120-120005-lab.jsonl", "20261120-120005-lab-2.jsonl", "20261120-120005-lab-3.jsonl"):
        assert named("lab") == name
        (noon / "sessions" / name).touch()


@pytest.mark.parametrize("room", ["../../etc/passwd", "a/b\\c", "C:\\x", "...", "", " ", "\0", "a\nb",
                                  "\x1b[2J", "CON?*|<>", "-rf", "%s", "~"], ids=ascii)
def test_no_room_name_leads_out_of_the_folder_or_breaks_a_name(noon, room):
    name = named(room)
    assert not set(name) & set('/\\:*?"<>|\0\n\x1b ~%')
    assert name.startswith("20261120-120005-") and not name.startswith("20261120-120005-.")


@pytest.mark.parametrize("letter", ["x", "ж", "李", "𠮷"])
def test_the_longest_names_are_names_of_files_still(noon, letter):
    path = chat.default_path(letter * 4000, letter * 32)
    chat.make_folder(path)
    recording = chat.Recording(path, HEAD)
    recording.close()
    assert content(path) == HEAD


def test_the_folder_of_a_recording_is_made(tmp_path):
    chat.make_folder(str(tmp_path / "a" / "b" / "lab.jsonl"))
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_is_there_is_good(tmp_path):
    chat.make_folder(str(tmp_path / "lab.jsonl"))


def test_the_current_folder_needs_no_making(noon):
    chat.make_folder("lab.jsonl")


def test_a_file_in_the_place_of_the_folder_is_told_in_one_sentence(tmp_path):
    (tmp_path / "sessions").touch()
    with pytest.raises(chat.ChatError, match="cannot make the folder"):
        chat.make_folder(str(tmp_path / "sessions" / "lab.jsonl"))
