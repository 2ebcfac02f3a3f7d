"""What several test files need."""
import os
import pathlib
import zipfile

import pytest

import helpers

TOP = pathlib.Path(__file__).resolve().parent.parent
os.environ["XDG_STATE_HOME"] = os.devnull  # what the program remembers of a person is not for tests to change


@pytest.fixture(scope="session")
def pyz():
    """The chat.pyz made by build.sh; an old one would test yesterday's code."""
    path = TOP / "chat.pyz"
    if not path.exists():
        pytest.fail("there is no chat.pyz: run ./build.sh first, or ./build.sh test")
    with zipfile.ZipFile(path) as archive:
        if archive.read("chat.py") != (TOP / "chat.py").read_bytes():
            pytest.fail("chat.pyz was made from another chat.py: run ./build.sh first, or ./build.sh test")
    return path


@pytest.fixture
def server():
    """A server in this process, on a free port."""
    with helpers.serving() as server:
        yield server


@pytest.fixture
def eve(server):
    """Somebody else in the room."""
    with helpers.joined(server, "eve") as eve:
        yield eve
