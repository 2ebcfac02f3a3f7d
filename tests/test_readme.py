"""The README says what is true: its client runs, its tables name all that there is."""
import pathlib
import re
import subprocess
import sys

import chat

README = (pathlib.Path(chat.__file__).parent / "README.md").read_text(encoding="utf-8")


def test_the_client_in_the_readme_works(tmp_path):
    (source,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (tmp_path / "client.py").write_text(source)
    server = chat.Server(chat.Room(), chat.listen("127.0.0.1", 0))
    server.start()
    try:
        done = subprocess.run([sys.executable, tmp_path / "client.py", "127.0.0.1", str(server.address[1]), "юля"],
                              input="привет\nhow are you?\n".encode(), stdout=subprocess.PIPE, timeout=20,
                              env={"PYTHONIOENCODING": "utf-8"})
    finally:
        server.stop()
    assert done.stdout.decode() == "юля: привет\nюля: how are you?\n"


def test_every_request_event_and_reply_is_in_the_readme():
    wire = README[README.index("    do   hello"):README.index("* `n` counts")]
    do, ev, re_ = re.split(r"\n    (?:ev|re)   ", wire)
    for text, table in ((do, chat.REQUESTS), (ev, chat.EVENTS), (re_, chat.REPLIES)):
        for word, fields in table.items():
            (given,) = re.findall(rf"\b{word}\{{([^}}]*)\}}", text)
            assert set(fields) <= set(re.split(r"[,?]+", given)), word


def test_every_slash_command_is_in_the_readme():
    for name, command in [*chat.COMMANDS.items(), *chat.CONSOLE_COMMANDS.items()]:
        assert f"`/{name} {command.usage}".rstrip().replace("|", "\\|") + "`" in README


def test_every_option_is_in_the_readme():
    for command in ("serve", "join", "replay"):
        done = subprocess.run([sys.executable, chat.__file__, command, "--help"], stdout=subprocess.PIPE, check=True)
        for option in set(re.findall(r"--[a-z-]+", done.stdout.decode())) - {"--help"}:
            assert option in README, f"{command} {option}"


def test_the_map_in_the_readme_is_the_map_of_the_module():
    source = pathlib.Path(chat.__file__).read_text(encoding="utf-8")
    sections = re.findall(r"^# === (.+?) =+$", source, re.M)
    assert sections == re.split(r",\s+", re.findall(r"The map:\n((?:    .+\n)+)", chat.__doc__)[0].strip())
    assert sections == re.findall(r"^\| ([a-z -]+) \|", README[README.index("| section |"):], re.M)[1:]


def test_what_the_readme_calls_limits_are_the_limits():
    for number in (chat.PORT, chat.HISTORY, chat.RATE, f"{chat.TEXT_POINTS:,}", chat.TEXT_ROWS, chat.NAME_POINTS,
                   f"{chat.LINE_BYTES >> 10} KiB", f"{chat.LAG_BYTES >> 20} MiB", f"{chat.HISTORY_BYTES >> 10} KiB"):
        assert str(number) in README
