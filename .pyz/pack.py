"""Pack chat.py, the packages it runs with and sessions/ into one file, with shiv.

usage: pack.py OUTPUT PACKAGE==VERSION...     (called by build.sh, with a Python that has the packages and shiv)

Two things in shiv's archive are then changed:
- The start becomes our own, __main__.py beside this file. shiv's bootstrap is slower, ends in a traceback under an old
  Python or with an unwritable home, and waits for ever where files cannot be locked.
- What is in site-packages/ moves to the top, so that chat can run straight from the zip, too: prompt_toolkit asks for
  its own metadata, and Python finds that nowhere else in a zip.

The same content always gives the same bytes: no time, order, file mode or path of the machine gets in.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parent
UNUSED = "prompt_toolkit/contrib/"  # servers and grammars, which nothing else in the package imports
INSTALLER_NOTES = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}  # different on each machine


def stage_package(name, stage):
    """Copy an installed package as it was in its wheel, licence and metadata included, but for what nobody uses."""
    for file in distribution(name).files:
        if file.name not in INSTALLER_NOTES and file.suffix != ".pyc" and not file.as_posix().startswith(UNUSED):
            copy(file.locate(), stage / file)


def stage_sessions(stage):
    """Copy what belongs to the program; recordings made here are private, only samples are handed round."""
    for file in (TOP / "sessions").rglob("*"):
        private = ".jsonl" in file.name and not file.name.startswith("sample")
        if file.is_file() and not private and not file.name.startswith("."):
            copy(file, stage / file.relative_to(TOP))


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def change(shivs, output):
    """Write shiv's archive again with the two changes."""
    with shivs.open("rb") as file:
        first_line = file.readline()
    with zipfile.ZipFile(shivs) as archive:
        entries = {name.replace("site-packages/", "", 1): archive.read(name)
                   for name in archive.namelist() if not name.startswith("_bootstrap/")}
    entries["__main__.py"] = (HERE / "__main__.py").read_bytes()
    with output.open("wb") as file:
        file.write(first_line)
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(entries):
                entry = zipfile.ZipInfo(name)
                entry.create_system = 3
                entry.external_attr = 0o100644 << 16
                archive.writestr(entry, entries[name], zipfile.ZIP_DEFLATED, compresslevel=9)
    output.chmod(0o755)


def pack(output, requirements):
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder, "stage")
        for requirement in requirements:
            stage_package(requirement.split("==")[0], stage)
        stage_sessions(stage)
        copy(TOP / "chat.py", stage / "chat.py")
        shivs = Path(folder, "shiv.pyz")
        subprocess.run([sys.executable, "-m", "shiv", "--site-packages", stage, "--entry-point", "chat:main",
                        "--reproducible", "--python", "/usr/bin/env python3", "--output-file", shivs], check=True)
        # Written beside the target, then renamed: nobody ever sees half a file.
        unfinished = output.with_name("." + output.name + ".unfinished")
        change(shivs, unfinished)
        os.replace(unfinished, output)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), sys.argv[2:])
