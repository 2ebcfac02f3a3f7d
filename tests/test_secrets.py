"""Secrets: what a room keeps to itself, across the runs of its server."""
import os
import stat

import pytest

import chat


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def kept(session="s1", n=0):
    secrets = chat.Secrets(session)
    secrets.known = secrets.keep(n)
    return secrets


def test_a_token_is_good_for_its_seat_only():
    ours, others = chat.Secrets("s1"), chat.Secrets("s1")
    token = ours.token(7)
    assert ours.seat_of(token) == 7 and others.seat_of(token) is None
    for wrong in ("", "7", "7.", token[:-1], token + "0", "8" + token[1:], "07" + token[1:], "٧" + token[1:],
                  "9" * 400 + token[1:], "A" + token[1:], "7.й", " " + token, token + "\n"):
        assert ours.seat_of(wrong) is None, wrong


def test_key_secret_and_runs_are_the_same_in_the_next_run(folder):
    first = kept()
    second = kept(n=5)
    assert not first.known and second.known and second.run != first.run
    assert second.key == first.key and second.seat_of(first.token(3)) == 3
    assert kept("s2").seat_of(first.token(3)) is None


def test_a_new_key_lets_tokens_be(folder):
    secrets = kept()
    key, token = secrets.key, secrets.token(1)
    secrets.new_key()
    assert secrets.key != key and secrets.seat_of(token) == 1 and kept().key == secrets.key


def test_only_their_owner_can_read_them(folder):
    kept()
    (file,) = (folder / "chat" / "rooms").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_any_id_of_a_session_is_a_name_of_a_file(folder):
    for session in ("../../evil", "\0", "x" * 5000, "й", ""):
        kept(session)
    assert len(list((folder / "chat" / "rooms").iterdir())) == 5 and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b"\xff", b'{"key":1,"secret":"zz","runs":{}}',
                                    b'{"key":-1,"secret":"00","runs":{}}', b'{"key":1,"secret":7,"runs":[]}'])
def test_damaged_ones_are_made_again(folder, damage):
    kept()
    (file,) = (folder / "chat" / "rooms").iterdir()
    file.write_bytes(damage)
    again = kept()
    assert not again.known and kept().key == again.key


def test_without_a_folder_they_live_as_long_as_the_process(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", os.devnull)
    secrets = kept()
    secrets.new_key()
    assert not secrets.known and secrets.seat_of(secrets.token(2)) == 2


def test_what_a_run_said_stands_up_to_where_the_next_began(folder):
    runs = []
    for n in (0, 480, 470, 600):
        secrets = kept(n=n)
        runs.append(secrets.run)
    assert [secrets.since(run) for run in runs] == [470, 470, 600, 1 << 53]
    assert secrets.since("unknown") == 600


def test_a_seat_behind_a_lost_end_is_nobodys(folder):
    first = kept()
    token, lost = first.token(3), first.token(9)
    second = kept(n=5)
    assert second.seat_of(token) == 3 and second.seat_of(lost) is None
    assert second.seat_of(second.token(9)) == 9
