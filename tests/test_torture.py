"""The short form of every torture; `./build.sh torture` has the long one."""
import os
import sys

import pytest

import torture

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs the signals of Unix")
HERE = [row for row in torture.ROWS if not row.elsewhere]

NEED_PROC = "screens soak stopped-reader malformed silent unfinished flooded few-descriptors never-reading".split()


@pytest.mark.parametrize("row", HERE, ids=lambda row: row.name)
def test_nothing_is_lost_when_it_is_tortured_a_little(row, capsys):
    if row.name in NEED_PROC and sys.platform != "linux":
        pytest.skip("needs /proc")
    passed, figure, _ = torture.run(row, 1, short=True)
    assert passed, figure
