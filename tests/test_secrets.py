"""Secrets: what a room keeps to itself, across the runs of its server."""
import contextlib
import itertools
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile

import pytest

import chat
from test_pyz import every_python


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


# --- the certificate ---


def identity_file(folder):
    return folder / "chat" / "identity.pem"


def test_the_certificate_is_kept_for_its_owner_and_found_again(folder):
    first, second = chat.Identity(), chat.Identity()
    assert first.digest == second.digest and first.pin == second.pin
    if os.name == "posix":
        assert stat.S_IMODE(os.stat(identity_file(folder)).st_mode) == 0o600
    assert os.listdir(folder / "chat") == ["identity.pem"]


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_the_certificate_vouches_for_itself_and_is_good_for_all_times(folder):
    chat.Identity()
    file = str(identity_file(folder))
    verified = subprocess.run(["openssl", "verify", "-check_ss_sig", "-CAfile", file, file], stdout=subprocess.PIPE)
    assert verified.stdout.endswith(b": OK\n")
    text = subprocess.run(["openssl", "x509", "-in", file, "-noout", "-text"], stdout=subprocess.PIPE).stdout.decode()
    assert "Jan  1 00:00:00 1970" in text and "Dec 31 23:59:59 9999" in text and "P-256" in text


@every_python
def test_every_python_makes_it_and_talks_with_it(python, tmp_path):
    script = ("import sys; sys.path.insert(0, sys.argv[1]); import chat; one, other = chat.Identity(), chat.Identity(); "
              "assert one.digest == other.digest; print(one.pin)")
    done = subprocess.run([python, "-W", "error", "-c", script, os.path.dirname(chat.__file__)], stdout=subprocess.PIPE,
                          env={**os.environ, "XDG_STATE_HOME": str(tmp_path)}, encoding="utf-8", timeout=30)
    assert done.returncode == 0 and len(done.stdout) == 11


def test_a_damaged_one_is_made_again_and_one_that_is_not_damaged_enough_is_what_it_is(folder, monkeypatch):
    monkeypatch.setattr(chat, "stretch", lambda digest: "0" * 10)
    before, file = chat.Identity(), identity_file(folder)
    good = file.read_bytes()
    for at in range(0, len(good), 29):
        file.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1:])
        assert len({chat.Identity().digest, chat.Identity().digest}) == 1, f"damaged at {at}"
    for wrong in (b"", good[:300], good[500:], good.replace(b"BEGIN EC", b"BEGIN"), b"\0" * 99,
                  good.replace(b"KEY-----\n", b"KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n", 1)):
        file.write_bytes(wrong)
        assert chat.Identity().digest != before.digest
        assert chat.Identity().digest == chat.Identity().digest


def test_without_a_folder_it_lives_as_long_as_the_process_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", os.devnull)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert chat.Identity().digest != chat.Identity().digest
    assert not os.listdir(tmp_path)


def test_without_the_module_ssl_it_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ssl", None)
    with pytest.raises(chat.ChatError, match="lacks the module ssl"):
        chat.Identity()


# --- the code ---


def some_code(seed):
    chance = random.Random(seed)
    return chat.Code(chat.spell(chance.getrandbits(50), 10), chance.getrandbits(35))


@pytest.mark.parametrize("code", [some_code(1), chat.Code("0" * 10, 0), chat.Code("Z" * 10, 2**35 - 1)], ids=str)
def test_a_code_is_read_as_people_write_it(code):
    text = str(code)
    assert len(text) == 20 and [len(group) for group in text.split("-")] == [6, 6, 6]
    for written in (text, text.lower(), text.replace("-", ""), f" {text.replace('-', ' ')} ",
                    text.replace("0", "O").replace("1", "l"), text.replace("1", "I").replace("0", "o")):
        assert chat.Code.read(written) == code


def test_every_mistyped_letter_is_told():
    for seed in range(20):
        letters = str(some_code(seed)).replace("-", "")
        for place, letter in itertools.product(range(18), chat.LETTERS):
            if letter != letters[place]:
                with pytest.raises(chat.ChatError, match="this code has a mistyped letter"):
                    chat.Code.read(letters[:place] + letter + letters[place + 1:])


def test_nearly_all_swapped_letters_are_told():
    missed = tried = 0
    for seed in range(1000):
        letters = str(some_code(seed)).replace("-", "")
        place = seed % 17
        if letters[place] != letters[place + 1]:
            tried += 1
            with contextlib.suppress(chat.ChatError):
                missed += bool(chat.Code.read(letters[:place] + letters[place + 1] + letters[place] + letters[place + 2:]))
    assert missed < tried / 100


@pytest.mark.parametrize("text", ["", "K7Q2MX", "K7Q2MX-9D3FTA-XW4P0", "K7Q2MX-9D3FTA-XW4P0KC", "U" * 18, "é" * 18,
                                  "٧" * 18, "\x1b[2J" + "0" * 14])
def test_what_is_no_code_is_told_what_one_is(text):
    with pytest.raises(chat.ChatError, match="^a code is 18 letters and digits, such as K7Q2MX-9D3FTA-XW4P0K$"):
        chat.Code.read(text)
