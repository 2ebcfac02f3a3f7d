"""The start of chat.pyz: check the Python, make the modules importable, run chat.

Python compiles everything that it imports from a zip again at every start, which takes longer than all the rest.
So the first start unpacks the zip into the user's cache folder, where Python keeps the compiled modules, and later
starts import from there. That copy is only for speed: whenever it cannot be had (home not writable, disk full, ...)
chat runs straight from the zip. So it does where somebody else may have put something into the copy, since what is
imported from there runs in the user's name.

There is no lock to wait for: a copy is made under a name of its own and then renamed, which happens entirely or not
at all. Of several first starts at once one wins and all use its copy.

All of this file has to be valid Python 2, or an old Python would stop with a syntax error before the version check.
"""
import sys

if sys.version_info < (3, 8):
    sys.exit("chat.pyz needs Python 3.8 or newer; this is %d.%d.%d (%s)" % (sys.version_info[:3] + (sys.executable,)))

import json
import os

SECONDS_UNUSED_COPIES_STAY = 30 * 24 * 3600


def folder_of_copies():
    """Where copies live, one per build: each system's usual place for files that may be deleted at any time."""
    cache = (os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
             or os.path.join(os.path.expanduser("~"), ".cache"))
    if not os.path.isabs(cache):
        raise OSError("no home folder")
    return os.path.join(cache, "chat.pyz")


def check_own(folder):
    """Refuse a folder that somebody else owns or may write, or that is a link to one; Windows has other rights."""
    import stat
    found = os.lstat(folder)
    if hasattr(os, "getuid") and (not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid()
                                  or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise OSError("not one's own folder: " + folder)


def remove_unused(copies):
    """Remove what no start has used for long: copies of other builds, unfinished ones of starts that were killed."""
    import shutil
    import time
    for name in os.listdir(copies):
        path = os.path.join(copies, name)
        try:
            unused = time.time() - os.lstat(path).st_mtime
            check_own(path)  # through a link nothing is removed
        except OSError:  # or another start has just renamed or removed it
            continue
        if unused > SECONDS_UNUSED_COPIES_STAY:
            shutil.rmtree(path, ignore_errors=True)


def unpack(archive, copy):
    """Make the copy, unless another start is quicker."""
    import shutil
    import tempfile
    import zipfile
    copies = os.path.dirname(copy)
    for folder in (os.path.dirname(copies), copies):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        check_own(folder)
    remove_unused(copies)
    unfinished = tempfile.mkdtemp(dir=copies)
    try:
        with zipfile.ZipFile(archive) as pyz:
            pyz.extractall(unfinished)
        os.rename(unfinished, copy)
    except OSError:
        if not os.path.isdir(copy):
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def copy_of(archive):
    """The folder with this build's unpacked modules, made if it is not there yet."""
    build = json.loads(__loader__.get_data("environment.json"))["build_id"]
    copy = os.path.join(folder_of_copies(), build[:12])  # short, because Windows allows 260 characters for a path
    if not os.path.lexists(copy):
        unpack(archive, copy)
    copies = os.path.dirname(copy)
    for folder in (os.path.dirname(copies), copies, copy):
        check_own(folder)
    os.utime(copy)  # the time of its last use
    return copy


def start():
    # Absolute, because the current folder may change before the last import. The zip stays on the path behind the
    # copy: what somebody deleted from the copy must not be looked for among the other packages of this machine.
    archive = os.path.abspath(__loader__.archive)
    sys.path[0] = archive
    try:
        sys.path.insert(0, copy_of(archive))
        # Who switches this off wants no compiled files among sources. Our copy is there for nothing else.
        sys.dont_write_bytecode = False
    except OSError:
        pass
    from chat import main
    return main()


try:
    sys.exit(start())
except KeyboardInterrupt:  # before chat is there to handle it
    sys.exit(1)
