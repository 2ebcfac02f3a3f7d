"""The command line of serve and join: what the options mean is tested with what they change, here how they are told."""
import os
import subprocess
import sys

import pytest

import chat
from terminal import CHAT


def run(tmp_path, words):
    """Run these words of a command line in an empty folder: (exit code, what it printed, what it complained about)."""
    done = subprocess.run([*CHAT, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          encoding="utf-8", timeout=30, cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert not os.listdir(tmp_path)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words, correction", [
    (["serve", "--open"], "--open goes with --lan or --host"),
    (["serve", "--lan", "--open", "--host", "127.0.0.1"], "--lan listens on all addresses and --host on one; choose"),
    (["serve", "--log", "x.txt"], "write  chat.py serve --log x.txt.jsonl\n"),
    (["serve", "--log", "192.168.1.5"], "write  chat.py serve --log 192.168.1.5.jsonl\n"),
    (["serve", "--port", "65536"], "a port is a number from 0 to 65535"),
    (["serve", "--port", "-1"], "a port is a number from 0 to 65535"),
    (["serve", "--port", "many"], "many"),
    (["serve", "--history", "-1"], "'-1' is not a whole number from 0 up"),
    (["serve", "--history", "²"], "²"),
    (["serve", "--max-people", "x"], "'x' is not a whole number"),
    (["serve", "--room", " "], "nothing in this message"),
    (["serve", "127.0.0.1"], "127.0.0.1"),
    (["join", "--log", "192.168.1.5"],
     "write  chat.py join 192.168.1.5 --log  or  chat.py join --log 192.168.1.5.jsonl\n"),
    (["join", "--times", "never"], "never"),
    (["join", "--port", "7012"], "--port"),
    (["jion"], "jion"),
], ids=" ".join)
def test_wrong_usage_is_told_with_what_is_right(tmp_path, words, correction):
    code, out, err = run(tmp_path, words)
    assert (code, out) == (2, "")
    assert correction in err and "Traceback" not in err


@pytest.mark.parametrize("words, told", [
    (["serve"], "--host --port --lan --open --room --log --history --rate --max-people --no-color"),
    (["join"], "ADDRESS --name --log --times --no-color"),
    ([], "serve join replay --version"),
], ids=["serve", "join", "chat"])
def test_the_help_tells_every_option_and_what_to_type(tmp_path, words, told):
    code, out, err = run(tmp_path, [*words, "--help"])
    assert (code, err) == (0, "")
    assert all(word in out for word in told.split())
    assert "\nexamples:\n  chat.py " + " ".join(words) in out or not words


@pytest.mark.parametrize("words, sentence", [
    (["join", "http://box"], "chat.py: http://box is no address; write host, host:port or [v6-address]:port.\n"),
    (["join", "127.0.0.1:1"], "chat.py: no chat answers at 127.0.0.1:1 ("),
    (["serve", "--port", "0", "--host", "no such host"], "chat.py: no such host is no address that this computer can find.\n"),
], ids=["no address", "no server", "no host"])
def test_what_fails_is_told_in_one_sentence(tmp_path, words, sentence):
    code, out, err = run(tmp_path, words)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(sentence)


@pytest.mark.parametrize("platform, python", [("linux", "python3"), ("darwin", "python3"), ("win32", "py")])
@pytest.mark.parametrize("file, name", [("/home/ann/chat (1).pyz", "chat (1).pyz"), ("", "chat.pyz")])
def test_what_to_type_is_told_as_it_works_here(monkeypatch, platform, python, file, name):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(sys, "argv", [file])
    assert chat.program() == name
    assert chat.command_line("join") == f"{python} {name} join"
