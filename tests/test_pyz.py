"""chat.pyz as its users meet it: run under every Python of this machine, in good homes and bad ones."""
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile

import pytest

import chat
from conftest import TOP

SESSION = [
    {"ev": "session", "n": 0, "t": 0.0, "v": 1, "id": "s1", "start": "2026-11-20T12:00:00.000+03:00", "room": "lab"},
    {"ev": "join", "n": 1, "t": 0.0, "who": "боб", "from": 0},
    {"ev": "say", "n": 2, "t": 0.01, "who": "боб", "text": "привет"},
    {"ev": "leave", "n": 3, "t": 0.02, "who": "боб", "why": "left"},
    {"ev": "end", "n": 4, "t": 0.02},
]


def pythons_here():
    """{version: path} of the Pythons on this machine, one for each minor version."""
    candidates = [shutil.which(name) for name in ["python2.7"] + ["python3.%d" % minor for minor in range(6, 20)]]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], stdout=subprocess.PIPE, universal_newlines=True).stdout.strip()
        candidates += sorted(glob.glob(os.path.join(root, "versions", "*", "bin", "python")))
    found = {}
    for path in filter(None, candidates + [sys.executable]):
        said = subprocess.run([path, "-c", "import sys; print(list(sys.version_info[:2]))"],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if said.returncode == 0:
            found.setdefault(tuple(json.loads(said.stdout)), path)
    return found


PYTHONS = pythons_here()


def each(versions, missing):
    """One test for each Python, by version; one skipped test that says what is missing if there is none."""
    params = [pytest.param(PYTHONS[version], id="%d.%d" % version) for version in sorted(versions)]
    skipped = pytest.param(None, id="none", marks=pytest.mark.skip(reason=missing))
    return pytest.mark.parametrize("python", params or [skipped])


every_python = each([v for v in PYTHONS if v >= (3, 8)], "no Python 3.8 or newer")
every_old_python = each([v for v in PYTHONS if v < (3, 8)], "no Python older than 3.8 on this machine")


def environment(home, **more):
    """This machine's environment with another home and without what would change how Python starts."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith("PYTHON") and name not in ("XDG_CACHE_HOME", "LOCALAPPDATA")}
    return dict(kept, HOME=str(home), PYTHONIOENCODING="utf-8", **more)


def run(python, pyz, *arguments, home, cwd=None, options=(), **more):
    """Run chat.pyz to its end, with no terminal."""
    return subprocess.run([python, *options, str(pyz), *map(str, arguments)], env=environment(home, **more), cwd=cwd,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          encoding="utf-8", timeout=30)


def works(python, pyz, home, **more):
    said = run(python, pyz, "--version", home=home, **more)
    assert (said.returncode, said.stderr) == (0, "")
    assert chat.__version__ in said.stdout


def copies(home):
    return sorted(home.glob(".cache/chat.pyz/*"))


class Served:
    """A running `chat.pyz serve`; its `port` is read from what it prints."""

    LISTENS = re.compile(r"listen\w* on \S*?:(\d+)")

    def __init__(self, python, pyz, home, options=()):
        self.process = subprocess.Popen([python, *options, str(pyz), "serve", "--port", "0"], env=environment(home),
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        encoding="utf-8")

    def __enter__(self):
        self.too_slow = threading.Timer(30, self.process.kill)
        self.too_slow.start()
        for line in self.process.stdout:
            listens = self.LISTENS.search(line)
            if listens:
                self.port = int(listens.group(1))
                return self
        self.__exit__()
        pytest.fail("serve ended without saying where it listens: " + self.stderr)

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)
        self.stderr = self.process.communicate()[1]

    def __exit__(self, *error):
        self.too_slow.cancel()
        if self.process.returncode is None:
            self.process.kill()
            self.stderr = self.process.communicate()[1]


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def session(tmp_path):
    path = tmp_path / "session.jsonl"
    lines = [json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n" for event in SESSION]
    path.write_bytes("".join(lines).encode("utf-8"))
    return path


# Every Python

@every_python
def test_version_and_help(python, pyz, home):
    works(python, pyz, home)
    said = run(python, pyz, "--help", home=home)
    assert (said.returncode, said.stderr) == (0, "")
    assert "serve" in said.stdout and "Traceback" not in said.stdout


@every_python
def test_serve_takes_guests_until_interrupted(python, pyz, home):
    with Served(python, pyz, home) as served:
        socket.create_connection(("127.0.0.1", served.port), timeout=10).close()
        served.interrupt()
    assert (served.process.returncode, served.stderr) == (0, "")


@every_python
def test_replay_prints_the_session(python, pyz, home, session):
    said = run(python, pyz, "replay", session, home=home)
    assert (said.returncode, said.stderr) == (0, "")
    assert "привет" in said.stdout


EXPORT_ALL = """
import hashlib, os, sys
import chat
os.chdir(sys.argv[1])
for sample in chat.SAMPLES:
    for kind in chat.EXPORTS:
        chat.export(sample, kind, f"{sample}.{kind}")
    for language in ("en", "ru"):
        chat.write_report(sample, f"report-{sample}-{language}", language)
for folder, folders, names in sorted(os.walk(".")):
    for name in sorted(names):
        with open(os.path.join(folder, name), "rb") as file:
            print(folder, name, hashlib.sha256(file.read()).hexdigest())
"""


@every_python
def test_what_is_made_of_the_samples_is_the_same_on_every_python(python, pyz, home, tmp_path):
    made = []
    for number, one in enumerate((sys.executable, python)):
        (tmp_path / str(number)).mkdir()
        said = subprocess.run([one, "-c", EXPORT_ALL, tmp_path / str(number)], stdout=subprocess.PIPE, check=True,
                              encoding="utf-8", cwd=tmp_path,
                              env=environment(home, PYTHONPATH=str(pyz), TZ=f"XYZ{number * 5}"))
        made.append(said.stdout)
    assert made[0] == made[1]
    assert made[0].count(" report.md ") == 2 * len(chat.SAMPLES)


@every_python
def test_packages_load_from_the_copy_and_from_the_zip(python, pyz, home):
    works(python, pyz, home)
    for folder in (copies(home)[0], pyz):
        code = "import prompt_toolkit.shortcuts as s, wcwidth, sys; print(s.__file__); print(wcwidth.__file__)"
        said = subprocess.run([python, "-c", code], env=environment(home, PYTHONPATH=str(folder)),
                              stdout=subprocess.PIPE, encoding="utf-8")
        assert [line.startswith(str(folder)) for line in said.stdout.splitlines()] == [True, True]


@every_old_python
def test_old_python_is_told_so_in_one_sentence(python, pyz, home):
    said = run(python, pyz, "serve", home=home)
    assert said.returncode == 1 and said.stdout == ""
    assert re.fullmatch(r"chat\.pyz needs Python 3\.8 or newer; this is [\d.]+ \(.+\)\n", said.stderr)


# What a start costs

@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["replay", "FILE"]], ids=lambda a: a[0])
def test_small_commands_leave_prompt_toolkit_alone(pyz, home, session, arguments):
    arguments = [session if word == "FILE" else word for word in arguments]
    said = run(sys.executable, pyz, *arguments, home=home, options=["-X", "importtime"])
    assert said.returncode == 0 and re.search(r"\| +chat$", said.stderr, re.M)
    assert "prompt_toolkit" not in said.stderr


def test_serve_without_a_terminal_leaves_prompt_toolkit_alone(pyz, home):
    with Served(sys.executable, pyz, home, options=["-X", "importtime"]) as served:
        served.interrupt()
    assert re.search(r"\| +chat$", served.stderr, re.M)
    assert "prompt_toolkit" not in served.stderr


def test_second_start_uses_the_compiled_copy_of_the_first(pyz, home):
    works(sys.executable, pyz, home, PYTHONDONTWRITEBYTECODE="1")
    compiled, = copies(home)[0].glob("__pycache__/chat.*.pyc")
    before = compiled.stat()
    works(sys.executable, pyz, home)
    after = compiled.stat()  # reading it changes when it was read last
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(copies(home)) == 1


# Homes

@pytest.mark.parametrize("bad_home", ["/dev/null", "/proc/1", "nowhere"])
def test_home_that_cannot_be_written(pyz, bad_home, tmp_path):
    works(sys.executable, pyz, bad_home, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_home_that_may_only_be_read(pyz, home):
    home.chmod(0o500)
    works(sys.executable, pyz, home)


def faulty_python(tmp_path, fault):
    """A folder for PYTHONPATH with which Python starts with something broken."""
    folder = tmp_path / "faulty"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(fault)
    return str(folder)


def test_disk_full_while_unpacking(pyz, home, tmp_path):
    pytest.importorskip("resource", reason="no such limits on Windows")
    fault = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    works(sys.executable, pyz, home, PYTHONPATH=faulty_python(tmp_path, fault))
    assert copies(home) == []


def test_home_that_cannot_lock(pyz, home, tmp_path):
    fault = """
import errno, fcntl
def refused(*arguments):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = fcntl.lockf = refused
"""
    pytest.importorskip("fcntl", reason="no locks of this kind on Windows")
    works(sys.executable, pyz, home, PYTHONPATH=faulty_python(tmp_path, fault))
    assert len(copies(home)) == 1


def test_first_starts_at_once(pyz, home):
    starts = [subprocess.Popen([sys.executable, str(pyz), "--version"], env=environment(home),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8") for _ in range(4)]
    for start in starts:
        stdout, stderr = start.communicate(timeout=30)
        assert (start.returncode, stderr) == (0, "") and chat.__version__ in stdout
    assert len(copies(home)) == 1


def test_copies_unused_for_a_month_are_removed(pyz, home):
    old, recent = home / ".cache/chat.pyz/old", home / ".cache/chat.pyz/recent"
    for copy, days in ((old, 31), (recent, 29)):
        copy.mkdir(parents=True)
        then = time.time() - days * 24 * 3600
        os.utime(str(copy), (then, then))
    works(sys.executable, pyz, home)
    assert not old.exists() and recent.exists() and len(copies(home)) == 2


def planted(folder):
    """Put a module there that must not be imported."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "chat.py").write_text("raise SystemExit('somebody else was imported')")


needs_rights = pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has other rights")


@needs_rights
@pytest.mark.parametrize("which", ["", "chat.pyz", "chat.pyz/BUILD"], ids=["the cache", "all copies", "the copy"])
@pytest.mark.parametrize("how", ["everybody may write", "the group may write", "somebody else's", "a link"])
def test_a_copy_into_which_somebody_else_may_put_something_is_not_used(pyz, home, tmp_path, which, how):
    works(sys.executable, pyz, home)
    copy, = copies(home)
    planted(copy)
    shutil.rmtree(str(copy / "__pycache__"))
    folder = home / ".cache" / which.replace("BUILD", copy.name)
    if how == "a link":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    elif how != "somebody else's":
        folder.chmod(0o777 if how.startswith("every") else 0o770)
    elif os.getuid() == 0:
        os.chown(str(folder), 12345, 12345)
    else:
        pytest.skip("only root may give a folder away")
    works(sys.executable, pyz, home)


@needs_rights
def test_a_planted_module_would_be_noticed(pyz, home):
    works(sys.executable, pyz, home)
    copy, = copies(home)
    planted(copy)
    shutil.rmtree(str(copy / "__pycache__"))
    assert "somebody else was imported" in run(sys.executable, pyz, "--version", home=home).stderr


@needs_rights
@pytest.mark.parametrize("umask", [0o002, 0o000, 0o077])
def test_a_home_without_a_cache_gets_one_that_is_used(pyz, home, umask):
    before = os.umask(umask)
    try:
        works(sys.executable, pyz, home)
    finally:
        os.umask(before)
    assert len(copies(home)) == 1 and list(copies(home)[0].glob("__pycache__/chat.*.pyc"))


@needs_rights
def test_nothing_is_removed_through_a_link(pyz, home, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("three years")
    old = home / ".cache/chat.pyz/old"
    old.parent.mkdir(parents=True, mode=0o700)
    old.symlink_to(precious)
    for path in (precious, old):
        os.utime(str(path), (0, 0), follow_symlinks=False)
    works(sys.executable, pyz, home)
    assert (precious / "thesis.txt").exists()


def test_half_deleted_copy_is_completed_from_the_zip(pyz, home):
    works(sys.executable, pyz, home)
    for path in copies(home)[0].iterdir():
        shutil.rmtree(str(path)) if path.is_dir() else path.unlink()
    works(sys.executable, pyz, home)


@pytest.mark.parametrize("name", ["chat (1).pyz", "Мой чат/чат 1.pyz"])
def test_other_names_and_folders(pyz, home, tmp_path, name):
    renamed = tmp_path / name
    renamed.parent.mkdir(exist_ok=True)
    shutil.copy(str(pyz), str(renamed))
    works(sys.executable, renamed, home)
    works(sys.executable, renamed.name, home, cwd=str(renamed.parent))
    assert len(copies(home)) == 1


# The file

def test_small_enough_to_hand_round(pyz):
    assert pyz.stat().st_size <= 512 << 10


def test_licences_of_what_is_bundled_are_inside(pyz):
    with zipfile.ZipFile(str(pyz)) as archive:
        names = archive.namelist()
    packages = {name.split("/")[0] for name in names if name.endswith("/__init__.py") and name.count("/") == 1}
    licensed = {name.split("-")[0] for name in names if name.endswith("/LICENSE")}
    assert packages == licensed == {"prompt_toolkit", "wcwidth"}


def test_no_path_of_this_machine_inside(pyz):
    here = [os.fsencode(path) for path in (str(TOP), sys.prefix, sys.base_prefix, os.path.expanduser("~") + os.sep)
            if path != "/usr"]  # /usr/bin/env is in the first line
    with zipfile.ZipFile(str(pyz)) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not [path for path in here if path in content], name


# build.sh

def checkout(folder):
    """Copy what a build needs, and nothing that an earlier one left."""
    folder.mkdir()
    for name in ("chat.py", "pyproject.toml", "build.sh"):
        shutil.copy(str(TOP / name), str(folder / name))
    for name in (".pyz", "sessions"):
        if (TOP / name).is_dir():
            shutil.copytree(str(TOP / name), str(folder / name))
    return folder


OTHER_PYTHONS = [version for version in sorted(PYTHONS) if version >= (3, 8) and version != sys.version_info[:2]]


@each({*OTHER_PYTHONS[:1], *OTHER_PYTHONS[-1:]}, "no second Python to build with")
def test_bare_machine_builds_the_same_bytes(python, pyz, home, tmp_path):
    """Another Python, a strange folder, a strict umask, an empty home, and no tools but the few that build.sh names."""
    here = checkout(tmp_path / "Мой чат")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cat", "dirname", "find", "rm", "sed", "wc"):
        (tools / name).symlink_to(shutil.which(name))
    env = dict(environment(home, PYTHONDONTWRITEBYTECODE="1", PYTHON=python), PATH=str(tools))
    script = 'umask 077 && exec /bin/sh "$0"'
    said = subprocess.run(["/bin/sh", "-c", script, "../Мой чат/build.sh"], env=env, cwd=str(tools),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith("made chat.pyz") and len(said.stdout.splitlines()) == 1
    assert (here / "chat.pyz").read_bytes() == pyz.read_bytes()
    assert list(home.iterdir()) == []


def test_private_recordings_are_not_handed_round(tmp_path):
    here = checkout(tmp_path / "chat")
    (here / "sessions").mkdir(exist_ok=True)
    for name in ("2026-11-20-lab.jsonl", "2026-11-20-lab.jsonl.torn", ".hidden", "sample-lab.jsonl", "page.html"):
        (here / "sessions" / name).write_text("{}")
    made = here / "chat.pyz"
    subprocess.run([sys.executable, str(here / ".pyz/pack.py"), str(made)], check=True)
    with zipfile.ZipFile(str(made)) as archive:
        names = {name for name in archive.namelist() if name.startswith("sessions/")}
    assert {"sessions/sample-lab.jsonl", "sessions/page.html"} <= names
    assert not [name for name in names if "2026" in name or "hidden" in name]


def test_run_builds_again_what_has_changed(home, tmp_path):
    here = checkout(tmp_path / "chat")
    (here / "chat.pyz").write_text("of yesterday")
    os.utime(str(here / "chat.pyz"), (0, 0))
    said = subprocess.run(["/bin/sh", str(here / "build.sh"), "run", "--version"], env=environment(home),
                          stdout=subprocess.PIPE, encoding="utf-8")
    assert said.returncode == 0 and chat.__version__ in said.stdout


def test_run_passes_arguments_and_exit_code_and_stays_in_its_folder(pyz, home, session):
    said = subprocess.run(["/bin/sh", str(TOP / "build.sh"), "run", "replay", session.name], env=environment(home),
                          cwd=str(session.parent), stdout=subprocess.PIPE, encoding="utf-8")
    assert said.returncode == 0 and "привет" in said.stdout
    said = subprocess.run(["/bin/sh", str(TOP / "build.sh"), "run", "no-such-command"], env=environment(home),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert said.returncode == 2


@pytest.mark.parametrize("versions, sentence", [
    ({"python3": "exit 1"}, "no Python 3.8 or newer found"),
    ({"python3": 'case "$2" in *ensurepip*) exit 1;; esac'}, "apt install python3-venv"),
], ids=["no python", "no venv"])
def test_what_is_missing_is_said_in_one_sentence(tmp_path, versions, sentence):
    here = checkout(tmp_path / "chat")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cat", "dirname"):
        (tools / name).symlink_to(shutil.which(name))
    for name, script in versions.items():
        (tools / name).write_text("#!/bin/sh\n" + script + "\n")
        (tools / name).chmod(0o755)
    said = subprocess.run(["/bin/sh", str(here / "build.sh")], env={"PATH": str(tools)},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    assert said.returncode == 1 and said.stdout == ""
    assert sentence in said.stderr and len(said.stderr.splitlines()) == 1
