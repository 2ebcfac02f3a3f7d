"""chat: a room for people on one network, in one file.

    python chat.pyz serve                       open a room on this computer
    python chat.pyz serve --lan                 ... for people with the code; with --open for everyone on this network
    python chat.pyz join 192.168.1.5 --name bob take part
    python chat.pyz replay FILE                 watch a recorded session again

The one idea: a room is an append-only log, and everything else reads it. Whoever speaks appends a
line to the log under one lock; whoever appended also flushes: one write to the session file, then
one send to each member, of everything new. The lines on the wire are the lines of the file, so
recording is keeping the bytes and replay is reading them.

The words used throughout, here as in the help and on the wire:
    line      one JSON object and a newline; the only thing that travels or is recorded
    request   a line with which a client asks ("do"); event: one that the room tells everyone ("ev");
              reply: one for a single person ("re")
    log       all events of a session, numbered by n from 0; t is the seconds since its start
    member    a person in the room; seat: the n of their join event, never reused as names are
    chunk     the events of one round, as one bytes object
    round     one pass of the fan-out: take what is new, write it, send it to everyone
    in step   a member that was sent every chunk; lag: what the others still have to be sent
    letter    a reply on its way to one member, outside the log
    code      what lets one into a private room: it names the certificate of its server and the key of the room
    view      what one person knows: who they are, who is here, what is history
    recording the session file while it is written; tape: the same while it is played or made a report of
    scene     an event with the moment at which it was seen and the name of who saw it

The rules of the house:
    1. A section names only what stands above it.
    2. The lock guards log and people, and is never held over a disk, a socket, a terminal, a sleep.
    3. The baton goes to one thread at a time. Its holder alone writes the recording and sends on or
       closes a member's socket. Readers only try for it, and wait for it only before they say more
       than memory should hold; nobody takes it while holding the lock.
    4. A socket has one reader thread, and only that thread receives from it.
    5. Only the log gives events their number and time, and only `decide` lets it. Input is checked once, at
       the door; inside everything is trusted.
    6. `render` is the only road from an event to a screen.
    7. Requests, decisions, commands, events and styles are tables. Nothing at module level changes, but for
       caches of pure functions.

The map:
    limits, lines, rendering, session file, secrets, log, fan-out, room, view, doors, screen, server, client, replay,
    report, menu, command line
"""

import _thread
import argparse
import array
import bisect
import collections
import contextlib
import datetime
import difflib
import errno
import functools
import getpass
import io
import itertools
import json
import os
import queue
import re
import selectors
import shlex
import signal
import socket
import sys
import threading
import time
import unicodedata
import zlib
from json.encoder import encode_basestring as quote

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # everything else
    msvcrt = None
try:
    import resource
except ImportError:  # Windows
    resource = None

__version__ = "1.0"


# === limits =======================================================================================
# Every limit and default in one place, with its reason where that is not plain; the one error meant for
# people; and how this program is called, since its file may bear any name.

PORT = 7011  # nobody needs to be root for it, and no known service has it
VERSION = 1  # of the lines on the wire and in session files; a reader refuses a higher one

LINE_BYTES = 64 << 10  # what a client may send in one line: 4,000 emoji, escaped, fit
REPLY_BYTES = 8 << 20  # what a server may: a welcome names everybody present
TEXT_POINTS = 4000  # a page of text; more belongs in a file
TEXT_ROWS = 60  # so that one message cannot scroll everything else away
NAME_POINTS = 32  # so that a name leaves room for what is said behind it
NESTING = 32  # brackets in a line; thousands would overflow a small thread stack inside json
REFUSED_LINES = 20  # after so many lines that made no sense, the other side speaks something else

HISTORY = 50  # say and me lines that a newcomer is given, with all that happened between them
HISTORY_BYTES = 256 << 10  # ... and at most so much, since everybody who comes is sent it; less than KEEP_BYTES
KEEP_BYTES = 1 << 20  # of the log kept in memory, for newcomers and the console
LAG_BYTES = 8 << 20  # what may wait for one member; more means that it has stopped reading
PENDING_BYTES = 1 << 20  # what may wait for the next round, as it does while a disk stalls
PARDON_SECONDS = 60.0  # after that, in which twice as much may wait for a member: nobody could be sent anything
FAREWELL_SECONDS = 5.0  # for what a leaving member is still to be sent
ENDING_SECONDS = 1.4  # the same when the whole room ends: within two seconds all is over
ROUNDS = 50  # that one reader may carry out in a row, before its own socket waits too long
PIECE_BYTES = 64 << 10  # small chunks are sent together to a member that lags
HELLO_SECONDS = 10.0  # to say who one is, in all, and again after each of NAME_TRIES names that were refused
HELLO_BYTES = 4 << 10  # in a line until then
STRANGERS = 512  # who have not said it; when there are more, somebody goes
STRANGERS_SEEN = 8  # that are looked at for that: of nearly all who have been here longest, nothing has come
READ_BYTES = 1024, 64 << 10  # recv takes the first even while it waits; it grows while it is filled
IDLE_SECONDS = 2e6  # three weeks: the longest time-out that every system can count

AGAIN_SECONDS = 0.05  # between attempts of the caretaker
CROWD = 300  # times a second that somebody has something new: by RATE, that many talk, or arrive, at once
CROWD_SECONDS = 0.1  # between two looks at that
RATE = 50  # requests per second and person: nobody types so fast, scripts may
RATE_BURST = 4  # seconds' worth that may come at once: a paste
RATE_AHEAD = 60.0  # seconds; whoever sent more than that beyond the limit is cut
REQUEST_BYTES = 1000  # cost one request more
WHO_PEOPLE = 100  # a `who` costs one request more for each so many people that it lists
NICK_COST = 25  # requests: a rename is a line on every screen that says nothing, so two in a second are enough
JOINS = 100, 10  # a second from one address, and seconds' worth that may come at once: a school behind one router
JOINS_KNOWN = 4096  # addresses of which that is remembered

RECALL = 10, 60.0  # lines and seconds that are shown again from another seat
FOLLOW_SECONDS = 0.1  # between looks at a file that grows
INDEX_BYTES = 256 << 10  # of a recording that are looked through at a time: a few milliseconds of work
PAUSE_SECONDS = 0.001  # behind each, so that keys get in between
SEARCH_LINES = 500  # that are searched at a time, which takes about as long
TICK_SECONDS = 0.25  # between two drawings of a player's status
SKIP_SECONDS = 5.0  # an arrow key goes so far
SPEEDS = 0.25, 128.0  # that keys can reach
PICTURE = 80, 24  # columns and rows of a window in a picture
LASTING_SECONDS = 15.0  # how long a picture of somebody's leaving waits for what the others say
PICTURE_PEOPLE = 4  # windows of people beside the server's, at one moment of a report
SAMPLES = {"demo": ("sample-lab.jsonl", "a lab on sockets, in Russian"),  # sessions that come with the program
           "demo-en": ("sample-class.jsonl", "a class in three parts, in English")}
LISTED_SEATS = 30  # in an error message, which is to be one sentence
LISTED_BYTES = 8 << 20  # of a recording that is read whole to be listed: a fraction of a second
LAST_N, LAST_T = 1 << 52, 9e10  # of a session that may go on: half of the numbers that fit, and nearly all seconds
OPENING_LINES = 100  # of a file, among which its session line must be
RETRY_SECONDS = 1.0  # between attempts to record again
RUNS = 100  # of a server, in one session, that are told apart
HOLD_SECONDS = 60.0  # that a seat waits for somebody whose link was lost
PING_SECONDS = 8.0  # between two signs of life of our own clients
QUIET_SECONDS = 10.0  # without an answer, after which one should know
RETRY_PAUSES = 0.5, 10.0  # seconds between attempts to connect again, at first and at most
PATIENCE_SECONDS = 60.0  # for which a script goes on with that; a person at a terminal decides alone
NAME_TRIES = 5  # until a server that refuses every name is left alone
SILENCE_SECONDS = 24.0  # without any, after which a link is dead: both ends are to know within 30
STRETCH = 100_000  # rounds of hashing: what a code says of a certificate is so much dearer to forge
GUESSES = 5, 30  # wrong keys, from one address and in all, that are answered
GUESS_SECONDS = 60.0  # ... in such a time
RECORD_BYTES = 16 << 10  # what TLS encrypts at a time
SEALED_BYTES = 8 << 10, 32 << 10  # that may come without a word: in a handshake, and behind it, such as new keys
KEPT_BYTES = 1 << 20  # of replies that wait for somebody, until they are known to have come
BACKLOG_BYTES = 1 << 20  # of lines kept for the recording while it fails: minutes of talk
SYNC_SECONDS = 1.0  # until what is recorded survives a power cut, too
STALL_SECONDS = 0.1  # a write that takes longer is that of a disk that stalls

FAULT_SECONDS = 1.0  # between two lines on the console about what went wrong in this program
CONSOLE_LINES = 100  # shown per batch; the rest of a flood is counted
CONSOLE_SECONDS = 0.1  # between batches
SCREEN_SECONDS = 0.04  # between batches above an input line: fewer are choppy, more cost keys
SCREEN_BATCH = 8 << 10, 32 << 10  # characters in the first batch, and in the largest: over 5,000 lines a second
BATCH_SECONDS = 0.005  # what writing one may take; more, and the next is half as large
NARROWEST = 18  # columns of a window in which rows are broken: a bar and as much text
SCREEN_LINES = 1000  # waiting for a terminal; what is beyond is counted, not shown
SCREEN_CHARACTERS = 256 << 10  # the same
DEAR_LINES = 20  # shown even when the rest of a flood is skipped
TWICE_SECONDS = 0.1  # some programs send a signal twice; a person who insists takes longer
KICK_MINUTES = MUTE_MINUTES = 5  # unless the host says how many
GATHER_SECONDS = 0.01  # between two looks at what has come, while much comes
UNSENT_SECONDS = 1.0  # after which a line without its echo counts as still on its way
CONNECT_SECONDS = 10.0  # and for the first lines of what answers
RECENT = 5  # addresses that the menu remembers
AHEAD = 50  # lines that a script may be ahead of the server's confirmation: less than SILENCE_SECONDS' worth of them
ACKNOWLEDGE_SECONDS = 2.0  # how long a leaving client waits for the server's last line


FINAL = "kicked", "elsewhere", "no-key"  # after such an error it is of no use to try again


class ChatError(Exception):
    """Something a person should read: one plain sentence, and for the wire a code, a free name, an id."""

    def __init__(self, text, code="bad-line", name=None):
        super().__init__(text)
        self.code, self.name, self.id = code, name, None


class NoRequest(ChatError):
    """What was sent asks nothing at all: whoever sent it may speak something else."""


def program():
    """What this program is called here."""
    return os.path.basename(sys.argv[0]) or "chat.pyz"


def command_line(words):
    """What one types here, or beside a copy of this file, to start the program with these words."""
    return f"{'py' if sys.platform == 'win32' else 'python3'} {program()} {words}"


# === lines ========================================================================================
# One JSON object per line, UTF-8, compact, keys in a fixed order. This is the only place that
# touches JSON and the only judge of input: what it has let in is trusted from there on, by the
# room as by whoever reads a session file.

RESERVED = frozenset("server system admin all here everyone me you chat".split())
UNSEEN = ("\xad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
          "\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\U00013430-\U00013442\U00016fe4\U0001bca0-\U0001bca3"
          "\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff")  # or turning the direction of text
JOINERS = "\u200c\u200d\ufe0e\ufe0f"  # of emoji and of Persian: needed inside a word, hidden elsewhere
ACCENTS = ("\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u06d6-\u06dc\u0e31\u0e34-\u0e3a"
         "\u0e47-\u0e4e\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f")  # that pile up on one letter


def _unpack(words):
    # The ranges that tests/tables.py packs: how far behind the last one each begins, and by how much it is longer.
    last, ranges = 0, []
    for gap, _, more in (word.partition("-") for word in words.split()):
        first = last + int(gap, 36)
        last = first + int(more or "0", 36)
        ranges.append(f"{chr(first)}-{chr(last)}")
    return "".join(ranges)


# Marks of all scripts, and what else takes no column of its own, in the order of their numbers.
MARKS = ACCENTS + _unpack(
    "14v 2-1 2-1 2 1l-5 2z 31 2-5 3-1 2-3 y 2 v-q 2k-a 1n-8 a p-3 2-8 2-2 2-4 18-2 1h-1 6-8 17-1l 1j-2 2-h 2-6 "
    "b-1 u-2 1l 2-6 3-1 3-2 a b-1 r 3-2 1l 2-4 5-1 3-2 4 v-1 4 c-2 1l 2-7 2-2 2-2 l-1 n-5 2-2 1l 2-6 3-1 3-2 "
    "8-2 b-1 v 1o-4 4-2 2-3 a 15-4 1k 2-6 2-2 2-3 8-1 c-1 u-2 1l 2-6 2-2 2-3 8-1 c-1 g d-3 1k-1 2-6 2-2 2-3 a "
    "b-1 u-2 1z 5-5 2 2-7 j-1 5a 3-8 c-6 22-1 s 2 2 5-1 1e-j 2-1 6-a 2-z a 2t-j o-3 5-2 2-2 3-6 4-3 e-b 2 b-3 "
    "5g-4e 9q-2 qb-3 t-2 u-1 v-1 1v-t a 4o-1 z 3b-b 5-b 64-4 1m-9 2-s 3 3l-4 1c-g 13-8 d-2 v-c 1l-d 1d-j 49-2 "
    "2-k 5 7 3-2 35i-2 3y 2p-v ff-5 2y-1 n9x-3 2-9 x-1 29-1 7l 4 5 o-4 5 2c-1 1f-h r-h e 13-7 q-c 19-3 1c-d 11 "
    "1w-d d 9-1 1a-2 1f 2-2 3-1 6-1 2 16-4 6-1 6l-7 2-1 8n7-27 6xr 1cv 6b 46-4 1af-2 2-1 6-3 15-2 5 4m-1 fy-3 "
    "1u-4 8u-1 26-5 1z-a 1e-3 3f-2 1i-e 16 3-1 b-3 1a-a 3 5 b 1f-2 11-d h-1 19 d-2 1d-d 9-3 2-1 2l-b 7 3 4e-b "
    "m-3 1k-1 2-6 3-1 3-2 a b-1 3-6 4-4 1w-8 2 3 2-3 2-4 2 f-1 2b-h o 2a-j 6k-6 3-8 s-1 2b-g 2z-c 2u-e 75-e "
    "6u-5 2-1 3-3 2 2-1 3y-6 3-6 4 t-9 15-6 2-3 9 a-a 1b-f 5j-7 5k-7 2-7 2b-l 2-d 3f-5 4 2-1 2-6 2 1v-4 2-1 "
    "2-4 9o-3 a-1 2 1d-6 4-4 o 44t-e 8uh-h 1xd-4 1o-6 t5 2-1i 8-3 2m-1 f58-1 3mq-19 3-m f3-4 4-5 9-7 3-6 v-3 "
    "45-2 1j0-1i 5-1d 9 f n-4 2-e 11t-6 2-g 3-6 2-1 2-4 2t 4h-6 ag 1q-3 e5-3 73-1 6s 3 8-1 6 d7-6 32-6")
# Letters of scripts that have shapes in common, of which a word of a name may use one; and what they look like.
SCRIPTS = tuple(map(re.compile, (
    "[A-Za-z\xaa\xba\xc0-\xd6\xd8-\xf6\xf8-\u02af\u1d00-\u1d25\u1e00-\u1eff"
    "\u2c60-\u2c7f\ua722-\ua7ff\uab30-\uab64]",
    "[\u0370-\u03ff\u1f00-\u1fff]", "[\u0400-\u052f\u1c80-\u1c8a\u2de0-\u2dff\ua640-\ua69f]")))
LOOKS = str.maketrans("01ıАВЕКМНОРСТУХІЈЅЗҺԚԜԌѴӀавекмнорстухіјѕзһԛԝԁѵӏΑΒΕΖΗΙΚΜΝΟΡΤΥΧαεηικνορτυχγ",
                      "oiiabekmhopctyxijs3hqwgviabekmhopctyxijs3hqwdviabezhikmnoptyxaenikvoptuxy")
_marks = re.compile("[\u0300-\u036f\u0483-\u0487]+")  # over letters of these scripts
_dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_scan = json.JSONDecoder().scan_once  # one C call per line; json.loads would double its cost
_string = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?')  # an unfinished one too, or it would try again at each quote
_hidden = re.compile(f"[{UNSEEN}{JOINERS}\u034f]")
_blank = re.compile(f"[\\s{UNSEEN}{JOINERS}\u034f\u2800]+")
_moment = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}|\.\d{6})?[+-]\d\d:\d\d", re.ASCII)


def encode(fields):
    """The line for these fields; those that are None are left out."""
    present = {key: value for key, value in fields.items() if value is not None}
    return (_dump(present) + "\n").encode()


def describe(event):
    """The JSON of an event, which may hold what could not be encoded, for people to look at."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))


def encode_talk(n, t, who, requests):
    """The events for one member's say and me requests, numbered from n; `who` is already quoted."""
    # Written out because a busy room spends its time here: a fifth of the price of `encode`.
    stamp = ',"t":%r,"who":%s,"text":' % (t, who)
    lines = []
    for n, request in enumerate(requests, n):
        text, id = quote(request["text"]), request.get("id")
        end = "}\n" if id is None else ',"id":%d}\n' % id
        lines.append('{"ev":"%s","n":%d%s%s%s' % (request["do"], n, stamp, text, end))
    return "".join(lines).encode()


def decode(line):
    """The object that a line holds, not yet checked any further."""
    if line.count("[") + line.count("{") > NESTING:
        outside = _string.sub("", line)
        if outside.count("[") + outside.count("{") > NESTING:
            raise NoRequest("this line is nested too deeply")
    line = line.strip(" \t\r\n")
    try:
        value, end = _scan(line, 0)
    except (ValueError, StopIteration, RecursionError):
        end = -1
    if end != len(line) or type(value) is not dict:
        raise NoRequest("this is not a line of this chat, which are JSON objects such as "
                        '{"do":"say","text":"hello"}')
    return value


def encode_welcome(t, you, n, people, more):
    """The welcome, with more fields; the names are quoted already, since a crowd brings many of them."""
    rest = "".join([f',"{field}":{_dump(value)}' for field, value in more.items() if value is not None])
    return ('{"re":"welcome","t":%r,"you":%s,"n":%d,"people":[%s]%s}\n' % (t, you, n, people, rest)).encode()


def check_text(text):
    """Refuse what is not something that a person could say; returns True."""
    if type(text) is not str:
        raise ChatError('a message needs a "text" that is a string')
    if not text or text.isspace() or not (text.isascii() or _blank.sub("", text)):
        raise ChatError("there is nothing in this message")
    if len(text) > TEXT_POINTS:
        raise ChatError(f"a message has at most {TEXT_POINTS:,} characters, this one has {len(text):,}",
                        "too-long")
    if text.count("\n") >= TEXT_ROWS:
        raise ChatError(f"a message has at most {TEXT_ROWS} lines", "too-long")
    if "\0" in text or not (text.isascii() or is_utf8(text)):
        raise ChatError("this message is not text: it holds a NUL character or half a character")
    return True


def check_name(name):
    """The name as it will be shown, or the ChatError that says why it cannot be one."""
    if type(name) is not str:
        raise ChatError("a name must be a string", "bad-name")
    name = unicodedata.normalize("NFC", name[:8 * NAME_POINTS])
    if not name or name.isspace():
        raise ChatError("a name must not be empty", "bad-name")
    if len(name) > NAME_POINTS:
        raise ChatError(f"a name has at most {NAME_POINTS} characters", "bad-name", suggest_name(name))
    # One letter for each character: L letter, N digit, M mark, the rest as it is.
    kinds = "".join(point if point in "_.-" else unicodedata.category(point)[0] for point in name)
    if not re.match(r"[LN][LNM_.-]*\Z", kinds):
        raise ChatError("a name is made of letters, digits and _ . - and begins with a letter or digit",
                        "bad-name", suggest_name(name))
    if _hidden.search(name):
        raise ChatError("a name must not hold characters that nobody sees", "bad-name")
    if "MMM" in kinds:
        raise ChatError("a name has at most two marks on one letter", "bad-name")
    if looks_of(name) in _reserved:
        raise ChatError(f"the name {name} is reserved", "bad-name")
    if any(len(_scripts_of(word)) > 1 for word in re.split("[_.-]", name)):
        raise ChatError("a word of a name has letters of one script only: Latin, Cyrillic or Greek", "bad-name",
                        suggest_name(name))
    return name


def _scripts_of(text):
    text = unicodedata.normalize("NFKC", text)
    return {script for script in SCRIPTS if script.search(text)}


def _unmixed(match):
    # A word in the script that most of it is in: other letters become what they look like there, or are left out.
    word = match.group()
    most = {max(SCRIPTS, key=lambda script: len(script.findall(word)))}
    points = [point if _scripts_of(point) <= most else point.translate(LOOKS) for point in word]
    return "".join([point for point in points if _scripts_of(point) <= most])


def suggest_name(name):
    """A name as near to this one as the rules allow; None when there is none."""
    kept = [point for point in unicodedata.normalize("NFC", name[:8 * NAME_POINTS].replace(" ", "_"))
            if point in "_.-" or unicodedata.category(point)[0] in "LN" and not _hidden.match(point)]
    near = re.sub("[^_.-]+", _unmixed, "".join(kept)).lstrip("_.-")[:NAME_POINTS]
    return near if near and looks_of(near) not in _reserved else None


def name_key(name):
    """What makes two names the same: Bob is bob, and a wide letter is a letter."""
    name = name[:8 * NAME_POINTS]  # no name is longer, and what is takes long to normalize
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def looks_of(name):
    """What names have in common that people may take for one another."""
    plain = _marks.sub("", unicodedata.normalize("NFKD", name[:8 * NAME_POINTS]))
    return name_key(plain.translate(LOOKS)).replace("l", "i").rstrip("_.-")  # as a large I is taken for a small l


_reserved = frozenset(map(looks_of, RESERVED))


def is_utf8(text):
    """Whether this text has no half characters (lone surrogates), so that it can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_start(value):
    # By a pattern first, since newer Pythons take more forms than older ones.
    with contextlib.suppress(ValueError):
        return type(value) is str and bool(_moment.fullmatch(value) and datetime.datetime.fromisoformat(value))
    return False


Kind = collections.namedtuple("Kind", "fits words")  # what a field may be: a test, and the words for it
STRING = Kind(lambda value: type(value) is str and (value.isascii() or is_utf8(value)), "a string of whole characters")
COUNT = Kind(lambda value: type(value) is int and 0 <= value < 1 << 53, "a whole number from 0 to 2^53-1")
SECONDS = Kind(lambda value: type(value) in (int, float) and 0 <= value < 1e11, "a number of seconds")
PEOPLE = Kind(lambda value: type(value) is list and all(map(STRING.fits, value)), "a list of names")
START = Kind(_is_start, "a time with its zone")
AWAY = Kind(lambda value: type(value) is dict and all(map(COUNT.fits, value.values())) and PEOPLE.fits([*value]),
            "names, and for how many seconds they have had no link")
TRUE = Kind(lambda value: value is True, "true, or left out")
TALK = Kind(check_text, "a string")

# What a client asks, and the fields each request must have, besides an id if it likes.
REQUESTS = {
    "hello": {"name": STRING},
    "say": {"text": TALK},
    "me": {"text": TALK},
    "tell": {"to": STRING, "text": TALK},
    "nick": {"name": STRING},
    "who": {},
    "ping": {},
    "bye": {},
}
# What a server says, to everyone and to one person, with the fields that `render` and clients rely on.
_stamp = {"n": COUNT, "t": SECONDS}
EVENTS = {
    "session": {**_stamp, "v": COUNT, "id": STRING, "start": START, "room": STRING},
    "join": {**_stamp, "who": STRING, "from": COUNT},
    "leave": {**_stamp, "who": STRING, "why": STRING},
    "nick": {**_stamp, "who": STRING, "name": STRING},
    "say": {**_stamp, "who": STRING, "text": STRING},
    "me": {**_stamp, "who": STRING, "text": STRING},
    "notice": {**_stamp, "text": STRING},
    "mark": {**_stamp, "text": STRING},
    "end": _stamp,
}
REPLIES = {
    "welcome": {"t": SECONDS, "you": STRING, "n": COUNT, "people": PEOPLE},
    "tell": {"t": SECONDS, "who": STRING, "to": STRING, "text": STRING},
    "who": {"t": SECONDS, "people": PEOPLE},
    "error": {"t": SECONDS, "code": STRING, "text": STRING},
    "pong": {"t": SECONDS},
}
# What any of these may have besides: whoever comes back tells what they have had so far, and is told where they are.
OPTIONAL = {
    "hello": {"back": TRUE, "token": STRING, "session": STRING, "run": STRING, "last": COUNT, "had": COUNT,
              "proof": STRING},
    "ping": {"had": COUNT},
    "welcome": {"seat": COUNT, "token": STRING, "run": STRING, "since": COUNT},
    "who": {"away": AWAY},
}
ANYWHERE = {"id": COUNT, "k": COUNT, "name": STRING}  # wherever a server says it


def decode_request(line):
    """The request that a line makes, checked; extra fields are ignored."""
    if line is None or len(line) > LINE_BYTES >> 2 and len(line.encode(errors="surrogateescape")) > LINE_BYTES:
        raise NoRequest(f"a line has at most {LINE_BYTES:,} bytes", "too-long")
    request = decode(line)
    do, id = request.get("do"), request.get("id")
    if id is not None and not COUNT.fits(id):
        raise ChatError(f'"id" must be {COUNT.words}')
    try:
        if type(do) is not str or do not in REQUESTS:
            kind = ChatError if type(do) is str else NoRequest  # the first may be from a client that can do more
            raise kind(f'"do" must be one of: {" ".join(REQUESTS)}')
        check_fields(do, REQUESTS[do], request)
    except ChatError as error:
        error.id = id
        raise
    return request


def decode_event(line):
    """The event or reply that a line holds, checked; unknown ones pass, with a time."""
    event = decode(line)
    if "ev" in event:
        event.pop("re", None)  # a line is one or the other
    known, word = (EVENTS, event["ev"]) if "ev" in event else (REPLIES, event.get("re"))
    if not STRING.fits(word):
        raise ChatError("this line is neither an event nor a reply")
    fields = known.get(word, REPLIES["pong"])
    check_fields(word, fields, event)
    for field, kind in ANYWHERE.items():
        if field in event and field not in fields and not kind.fits(event[field]):
            raise ChatError(f'"{field}" must be {kind.words}')
    return event


def check_version(session):
    """Refuse a session whose lines may mean something that this program does not know."""
    if session["v"] > VERSION:
        raise ChatError("this session was made by a newer chat, which can also read it")


def check_fields(word, fields, given):
    """Refuse a request, event or reply that lacks one of these fields, or has it or another known one wrong."""
    for field, kind in fields.items():
        if not kind.fits(given.get(field)):
            raise ChatError(f'{word} needs "{field}": {kind.words}')
    for field, kind in OPTIONAL[word].items() if word in OPTIONAL else ():
        if field in given and not kind.fits(given[field]):
            raise ChatError(f'the "{field}" of {word} must be {kind.words}')


def blocks(receive, limit, first=b""):
    """Yield what arrives, behind this first, as blocks of whole lines; None stands for a line over the limit."""
    # Many lines that arrived together are judged and appended together. The read size grows while it
    # is filled, because recv allocates all of it before it waits, in every thread.
    size, rest, skipping = READ_BYTES[0], b"", False
    while True:
        data, first = first or receive(size), b""
        if not data:
            return
        if len(data) > size >> 1 and size < READ_BYTES[1]:  # half, since TLS brings less than it has read
            size *= 2
        elif len(data) < size >> 3 and size > READ_BYTES[0]:
            size >>= 1
        cut = data.rfind(b"\n") + 1
        if skipping and cut:
            data, skipping = data[data.find(b"\n") + 1:], False
            cut = data.rfind(b"\n") + 1
        elif skipping:
            continue
        if cut:
            yield rest + data[:cut] if rest else data[:cut]
            rest = data[cut:]
        else:
            rest += data
        if len(rest) > limit:
            rest, skipping = b"", True
            yield None


def lines_of(block):
    """The lines of a block as text; what is not UTF-8 becomes lone surrogates, which checks refuse."""
    return [None] if block is None else block[:-1].decode(errors="surrogateescape").split("\n")


_number = re.compile(rb'"n":(\d+)')


def number_of(lines, at=0):
    """The n of the first of these encoded events, or of the first behind this place."""
    return int(_number.search(lines, at).group(1))


def lines_after(lines, n):
    """The place in these encoded events where those after n begin."""
    at = 0
    while at < len(lines) and number_of(lines, at) <= n:
        at = lines.find(b"\n", at) + 1
    return at


# === rendering ====================================================================================
# `render` turns an event or reply into pieces of text, each with the name of a style. It is the only road from
# what people wrote to a screen; only the page that plays a session in a browser draws by itself, from the same
# table of words and texts that `clean` has made harmless. What is harmful is told by code points that are fixed:
# Python's own tables differ between versions, and the same session must always give the same bytes.

# Styles and their terminal colours; the names' colours can be read on dark and on light ground.
STYLES = {"text": "", "time": "2", "system": "2", "history": "2", "me": "3", "private": "35", "mention": "1;7",
          "error": "31", "mark": "1;7", "bar": "7",
          **{f"name{number}": f"1;{colour}" for number, colour in
             enumerate("31 32 33 34 35 36 91 92 94 95".split())}}
NAME_STYLES = 10
CONTINUED = "      │ "  # before each further row of a message: no text can begin left of it

# What a text must not bring to a terminal, as character classes, and what stands there instead.
BREAKS = "\r\v\f\x85\u2028\u2029"  # only \n begins a row
CONTROLS = "\0-\x08\x0e-\x1f"  # among them what begins every escape sequence
NOT_CHARACTERS = ("\x7f-\x84\x86-\x9f\ud800-\uf8ff\ufdd0-\ufdef\ufffe\uffff"
                  "\U000f0000-\U0010ffff")  # C1 controls, surrogates, private use
HARMLESS = tuple((re.compile(pattern), instead) for pattern, instead in (
    ("\r\n", "\n"),
    ("\t", "    "),
    (f"[{BREAKS}]", " "),
    (f"[{CONTROLS}]", lambda match: chr(0x2400 + ord(match.group()))),  # its picture
    (f"[{NOT_CHARACTERS}]", "\ufffd"),
    (f"[{UNSEEN}]+", ""),
    (f"([{JOINERS}]{{2}})[{JOINERS}]+", r"\1"),
    (f"([{MARKS}{JOINERS}]{{6}})[{MARKS}{JOINERS}]+", r"\1"),  # as many as a syllable of Burmese has
    (f"(?:^|(?<=\\s))[{JOINERS}]+|[\u200c\u200d]+(?=\\s|$)", ""),
    (f"(?<=[{ACCENTS}])[{JOINERS}]+(?=[{ACCENTS}])", ""),
    (f"([{ACCENTS}]{{3}})[{ACCENTS}]+", r"\1"),
))
# Of the code points beyond 65,535 `re` tries one range after the other: there all is suspect that is no emoji.
_suspect = re.compile(f"[\t{BREAKS}{CONTROLS}{NOT_CHARACTERS}{UNSEEN}{JOINERS}\U00010000-\U0001efff" +
                      re.sub("[\U00010000-\U0001efff](-.)?", "", MARKS) + "]")


def clean(text):
    """The text made harmless: nothing left that a terminal obeys, that hides or that turns around."""
    if _suspect.search(text):
        for pattern, instead in HARMLESS:
            text = pattern.sub(instead, text)
    return text


def clean_row(text):
    """The text made harmless and kept to one row, as names, reasons and rooms are shown."""
    return clean(text).replace("\n", " ")


def name_style(name):
    """The style of a name: the same for the same name everywhere and always."""
    return f"name{zlib.crc32(name.encode()) % NAME_STYLES}"


TIMES = "short", "long", "off"  # how the time of a line is shown


def clock(session, t, times=TIMES[0]):
    """The time of day in the session's own zone, t seconds after its start."""
    minute, second = divmod(int(_second_of_day(session["start"]) + t), 60)
    return f"{_time_of_day(minute)}:{second:02}" if times == "long" else _time_of_day(minute)


@functools.lru_cache(maxsize=64)  # in a flood many lines share one
def _time_of_day(minute):
    return "%02d:%02d" % (minute // 60 % 24, minute % 60)


@functools.lru_cache(maxsize=4)  # a session has one start
def _second_of_day(start):
    start = datetime.datetime.fromisoformat(start)
    return (start.hour * 60 + start.minute) * 60 + start.second + start.microsecond / 1e6


def find_mentions(text, name):
    """Where a name stands in a text as a word of its own, in capitals or not: (start, end) pairs."""
    if name.lower() not in text.lower():
        return []
    return [match.span() for match in re.finditer(rf"(?<![\w.-]){re.escape(name)}(?![\w-]|\.\w)", text, re.IGNORECASE)]


LEFT = {"left": "left", "lost": "lost the connection", "kicked": "was removed", "slow": "was too slow, and was cut"}

# What people see of each event and reply: its style, and its words with the fields among them.
RENDERINGS = {
    "ev": {
        "session": ("system", "-- room {room}, open since {start}"),
        "join": ("system", "-- {who} joined"),
        "leave": ("system", "-- {who} {why}{reason}"),
        "nick": ("system", "-- {who} is now {name}"),
        "say": ("text", "{who}: {text}"),
        "me": ("me", "* {who} {text}"),
        "notice": ("system", "-- {text}"),
        "mark": ("mark", "== {text}"),
        "end": ("system", "-- the room is closed"),
    },
    "re": {
        "welcome": ("system", "-- you are {you}; {people}{recorded}"),
        "tell": ("private", "{who} → {to} (private): {text}"),
        "who": ("system", "-- {people}"),
        "error": ("error", "!! {text}"),
        "pong": ("system", ""),
    },
    "here": {"remark": ("system", "-- {text}")},
}
_templates = {(kind, word): (style, re.findall(r"\{(\w+)\}|([^{]+)", words))
              for kind, table in RENDERINGS.items() for word, (style, words) in table.items()}


@functools.lru_cache(maxsize=1024)  # few people say much
def _name_piece(name):
    return name_style(name), clean_row(name)


def _field(event, field, style, viewer):
    # The pieces for one field of an event, whose own style is this one.
    value = event.get(field)
    if style == "private" and value == viewer and field != "text":
        return [(style, "you")]
    if field in ("who", "to", "name", "you"):
        return [_name_piece(value)]
    if field == "people":
        away, pieces = event.get("away", {}), []
        for name in value:
            pieces += [(style, ", "), _name_piece(name)]
            pieces += [(style, f" (no link for {away[name]} s)")] if name in away else []
        return [(style, f"{len(value)} here: ")] + pieces[1:]
    if field == "text":
        text, start, pieces = clean(value).replace("\n", "\n" + CONTINUED), 0, []
        called = find_mentions(text, viewer) if viewer and event.get("who") not in (None, viewer) else ()
        for begin, end in called:
            pieces += [(style, text[start:begin]), ("mention", text[begin:end])]
            start = end
        return pieces + [(style, text[start:])]
    if field == "recorded":
        return [(style, "; this session is recorded")] if event.get(field) is True else []
    if field == "reason":  # of a leave; may be absent
        return [(style, f": {clean_row(event['text'])}")] if type(event.get("text")) is str else []
    words = {"why": LEFT.get(value, "left"), "start": str(value)[:16].replace("T", " ")}
    return [(style, clean_row(words.get(field, value)))]


def render(event, session, viewer=None, times=TIMES[0]):
    """An event or reply as (style, text) pieces, as `viewer` sees it; none if there is nothing to see."""
    kind = "ev" if "ev" in event else "re" if "re" in event else "here"
    style, parts = _templates.get((kind, event[kind])) or ("system", [("", "-- " + clean_row(describe(event)[:200]))])
    pieces = [("time", clock(session, event["t"], times) + " ")] if times != "off" else []
    for field, words in parts:
        pieces += [(style, words)] if words else _field(event, field, style, viewer)
    return pieces if parts else []


def plain(pieces):
    """The pieces as text without styles."""
    return "".join([text for style, text in pieces])


_cluster = re.compile("[\U0001f1e6-\U0001f1ff]{2}"  # a flag; or a character with what belongs to it:
                      f"|.(?:[{ACCENTS}{JOINERS}\U0001f3fb-\U0001f3ff]|(?<=\u200d).)*", re.DOTALL)
_words = re.compile(r"\n| +|[^ \n]+")
_narrow = re.compile("[\x20-\x7e\xa0-\u02ff\u0370-\u0482\u048a-\u0590]*")  # as many columns as characters
_address = re.compile("https?://[!-~]+")


@functools.lru_cache(maxsize=4096)
def _columns_of(point):
    # The most that a character takes on any terminal: not all know which emoji belong together.
    from wcwidth import wcwidth  # prompt_toolkit brings it along

    return 2 if "\U0001f3fb" <= point <= "\U0001f3ff" else 1 if point == "\ufe0f" else abs(wcwidth(point))


def width_of(text):
    """How many columns a text in one row takes at most."""
    return len(text) if _narrow.fullmatch(text) else sum(map(_columns_of, text))


def break_rows(pieces, columns):
    """The pieces with an end of row, and CONTINUED, wherever a row would be longer than so many columns."""
    # Left to itself a terminal breaks a row anywhere, and who pads a message with spaces has what follows begin at the
    # left edge, like a line of its own. Broken at words; only an address that fits in no row is left to the terminal,
    # which then knows it as one, to be clicked. A window too narrow for this is left alone.
    if columns < NARROWEST or sum([width_of(text) for style, text in pieces]) <= columns:
        return pieces
    column, broken = 0, []
    for style, text in pieces:
        parts = []
        for word in _words.findall(text):
            if word == "\n":
                parts.append(word)
                column = 0
            elif column + width_of(word) <= columns:
                parts.append(word)
                column += width_of(word)
            elif word[0] == " ":
                column = columns  # nobody misses it at the end of a row
            else:
                column = _break_word(word, column, columns, parts)
        broken.append((style, "".join(parts)))
    return broken


def _break_word(word, column, columns, parts):
    # A word that does not fit into the rest of this row; returns the column behind it.
    whole = _address.fullmatch(word)
    if width_of(word) <= columns - len(CONTINUED) or whole:
        parts.append("\n" + CONTINUED)
        column = len(CONTINUED)
    if whole:
        parts.append(word)
        return min(column + len(word), columns)
    for cluster in _cluster.findall(word):
        if column + width_of(cluster) > columns:
            parts.append("\n" + CONTINUED)
            column = len(CONTINUED)
        parts.append(cluster)
        column += width_of(cluster)
    return column


def coloured(pieces):
    """The pieces as text with the escape sequences of their colours; the text itself holds none."""
    parts, before = [], ""
    for style, text in [*pieces, ("text", "")]:
        code = STYLES[style]
        if code != before:
            parts.append(f"\x1b[{'0;' if before else ''}{code}m" if code else "\x1b[0m")
            before = code
        parts.append(text)
    return "".join(parts)


# === session file =================================================================================
# A session file is the log, byte for byte, as JSON Lines. The writer is strict: whole lines only, each
# or a reason. The reader forgives: what is torn, damaged or missing is named and passed over.


def default_path(*names):
    """A new file name in sessions/ under the current folder: the time, then these names, made safe."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    safe = [re.sub(r"[^\w.-]+", "_", name).strip("._").encode()[:80].decode(errors="ignore") or "room"
            for name in names]  # 255 bytes are the longest name of a file
    base = os.path.join("sessions", "-".join([stamp] + safe))
    path, number = base + ".jsonl", 2
    while os.path.exists(path):
        path, number = f"{base}-{number}.jsonl", number + 1
    return path


def make_folder(path):
    """Make the folder that this file is to be in."""
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    except OSError as error:
        raise ChatError(f"cannot make the folder of {path}: {error.strerror}") from None


def _lock_file(descriptor):
    # Two servers on one file would mix their numbers. Where a system or a network drive has no locks,
    # the file is used without.
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt:
            os.lseek(descriptor, 1 << 40, os.SEEK_SET)  # a byte that no one will ever read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            raise ChatError("another server is recording into this file") from None


def reason_of(error):
    """What the system calls this error, else its type: never what it was about, which may be somebody's words."""
    return getattr(error, "strerror", None) or type(error).__name__


class Recording:
    """The one writer of a session file: it holds whole lines at every moment, even on a full disk."""

    # Nobody is shown a line before it is here, so writing is part of every round, and a failure must cost no more
    # than a moment: what could not be written is kept, up to a limit, and tried again each second, as much of it as
    # fits. What had to be let go shows as a jump in n.
    #
    # A file that somebody removes is said to be gone, and closed, which is what gives the disk its space back; nobody
    # is put off with one that nobody will find. A file that somebody else writes into, cuts or empties is theirs, too:
    # that is told, once, nothing of it is overwritten or taken away, and the recording goes on behind it, on a line of
    # its own and after its head if nothing else is there.
    #
    # `write` and `close` are called only by the holder of the baton, or by a client's one receiver thread. A thread of
    # its own waits until the disk has made lines last, which may take seconds, and alone closes the file.

    def __init__(self, path, head=b"", new=True):
        self.path, self.head = path, head
        self.backlog = b""  # what is not in the file yet
        self.failing, self.retry_at = False, 0.0
        self.stalled = float("-inf")  # when the last write was over that took long
        self.gone = self.shared = self.closed = False
        self.called, self.unsynced = threading.Event(), None  # to sync now; what is to be told about that
        self.thread = threading.Thread(target=self._keep_synced, name="sync", daemon=True)
        try:
            with contextlib.ExitStack() as undo:
                flags = os.O_CREAT | os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0)
                self.descriptor = os.open(path, flags | (os.O_EXCL if new else 0), 0o600)
                undo.callback(os.close, self.descriptor)
                _lock_file(self.descriptor)
                self.size = self.end = os.fstat(self.descriptor).st_size  # of whole lines; with what is half written
                if not self.size:
                    self.backlog = head
                    self._append()
                self.thread.start()
                undo.pop_all()
        except FileExistsError:
            raise ChatError(f"{path} exists already; choose another name") from None
        except (OSError, RuntimeError) as error:
            raise ChatError(f"cannot record into {path}: {reason_of(error)}") from None

    def go_on(self, size, head):
        """Go on behind so many bytes of whole lines, in a file that had this head."""
        # What a server that died could not finish writing is no line, but may be somebody's words. There may be more of
        # it than memory should hold.
        if os.fstat(self.descriptor).st_size > size:
            os.lseek(self.descriptor, size, os.SEEK_SET)
            with open(self.path + ".torn", "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as aside:
                for piece in iter(lambda: os.read(self.descriptor, INDEX_BYTES), b""):
                    aside.write(piece)
                aside.flush()
                os.fsync(aside.fileno())
            os.ftruncate(self.descriptor, size)
        self.head, self.size, self.end = head, size, size

    def _append(self):
        # As much as the disk takes, in whole lines; half a one is taken back, at once or by the next attempt.
        data, done = self.backlog, 0
        try:
            while done < len(data):
                done += os.write(self.descriptor, data[done:] if done else data)
        finally:
            whole = done if done == len(data) else data.rfind(b"\n", 0, done) + 1
            self.size, self.end, self.backlog = self.size + whole, self.end + done, data[whole:]
            if whole < done:
                with contextlib.suppress(OSError):
                    self._take_back()

    def _take_back(self):
        if self.end > self.size:
            os.ftruncate(self.descriptor, self.size)
            self.end = self.size

    def _look(self):
        # Whether the file is still as we left it; returns what is to be told about that.
        found = os.fstat(self.descriptor)
        self.gone = not found.st_nlink
        if self.gone:
            return "the file of the recording is gone, and nothing is recorded any more"
        if found.st_size == self.end:
            return self._take_back()
        self.size = self.end = found.st_size
        os.lseek(self.descriptor, max(0, self.end - 1), os.SEEK_SET)
        last = os.read(self.descriptor, 1)
        if last != b"\n":
            self.backlog = (b"\n" if last else self.head) + self.backlog
        told, self.shared = self.shared, True
        return None if told else "somebody else changed the file of the recording, which goes on behind what is there"

    def write(self, lines):
        """Append whole lines; returns a sentence when recording begins to fail, works again, is over or not alone."""
        began, was, news = time.monotonic(), self.failing, []
        self.backlog += lines
        if self.closed or was and began < self.retry_at:
            return self._let_go()
        try:
            news.append(self._look())
            if not self.gone:
                self._append()
                self.failing = False
                news.append("recording works again" if was else None)
        except Exception as error:  # whatever it is, it must not keep the lines from those who wait for them
            self.failing = True
            news.append(None if was else f"recording failed ({reason_of(error)}); it is tried again each second")
            self._let_go()
        now = time.monotonic()
        self.retry_at, self.stalled = now + RETRY_SECONDS, now if now - began > STALL_SECONDS else self.stalled
        if b'{"ev":"mark"' in lines:
            self.called.set()
        news.append(self.unsynced)
        self.unsynced = None
        return "; ".join(filter(None, news)) or None

    def _let_go(self):
        excess = len(self.backlog) - BACKLOG_BYTES
        if excess > 0:  # of the oldest lines, as many as are too many
            self.backlog = self.backlog[self.backlog.find(b"\n", excess - 1) + 1:]

    def _keep_synced(self):
        synced, failing, over = 0, False, False
        while not over:
            self.called.wait(SYNC_SECONDS)
            self.called.clear()
            over = self.closed
            if synced == self.end or self.gone:
                continue
            synced, before = self.end, failing
            try:
                os.fsync(self.descriptor)
                failing = False
            except Exception as error:  # after which a system may forget these lines, and call the next try a success
                failing = True
                if not before:
                    self.unsynced = f"what was recorded last may not survive a power cut ({reason_of(error)})"
        os.close(self.descriptor)

    def close(self):
        """Write what still can be, and have it made last and closed, which is waited for if it does not take long."""
        if self.failing and not self.gone:
            self.retry_at = 0.0
            self.write(b"")
        self.closed = True
        self.called.set()
        self.thread.join(SYNC_SECONDS)


def remark(t, text):
    """A line that is in no file: what a reader has to say about it."""
    return {"here": "remark", "t": t, "text": text}


def event_of(line):
    """The event or reply of a line read from a file; None if it is damaged."""
    try:
        return decode_event(line.decode()) if line else None
    except (ChatError, UnicodeDecodeError):
        return None


def find_after(path, n):
    """Where what followed event n begins in a server's file: (the offset, the n there), or None if there is nothing."""
    with open(path, "rb") as file:
        low, high, found = 0, file.seek(0, os.SEEK_END), None
        while low < high:
            middle = (low + high) // 2
            file.seek(max(0, middle - 1))
            offset = middle and file.tell() + len(file.readline())  # of the first line that begins here or later
            line = file.readline()
            number = number_of(line) if line.endswith(b"\n") else None
            if number is None:  # the end; or what is damaged, which hides what is behind it
                high = middle
            elif number > n:
                high, found = middle, (offset, number)
            else:
                low = offset + len(line)
        return found


def read_between(path, offset, n):
    """Yield the lines of a server's file from this offset up to event n, which is left out, in pieces."""
    with open(path, "rb") as file:
        file.seek(offset)
        for lines in iter(lambda: file.read(PIECE_BYTES) + file.readline(), b""):
            at = lines_after(lines, n - 1)
            yield lines[:at]
            if at < len(lines):
                return


# How `encode_talk` begins a line, with its n and t; or any other line.
_talk_or_other = re.compile(rb'(?:\{"ev":"(?:say|me)","n":(\d{1,15}),"t":(\d{1,10}(?:\.\d{1,3})?),"who":"[^\n]*'
                            rb'|[^\n]*)\n')


class Lines:
    """A session file as an index: where each line begins, its n and its moment; the rest is read when it is wanted."""

    # A million lines are known within a second or so, in 24 bytes each: nearly all are talk, whose beginning a
    # pattern takes apart; whatever else there is is decoded. A line that bears no n of its own, such as a reply, is
    # given that of the line before. The moment of a line is its time, or an earlier line's if that is later: what
    # people see comes one after the other, so moments never fall, and any is found by halving.
    #
    # Whole lines only: what is torn at the end is left alone, and looked at again when `grow` is called again, since
    # somebody may still be writing it.

    def __init__(self, file, begin=0):
        self.file = file if file.seekable() else io.BytesIO(file.read())
        self.broken = False  # cannot be read any more, which is told once
        self.end = begin or 3 * (self._read(0, 3) == b"\xef\xbb\xbf")  # of what is known; 3 after an editor's mark
        self.offsets, self.numbers, self.moments = array.array("q"), array.array("q"), array.array("d")
        self.private = sys.maxsize  # from which line on it is what one person was given, where numbers may jump

    def __len__(self):
        return len(self.offsets)

    def _read(self, offset, size, how="read"):
        try:
            self.file.seek(offset)
            return getattr(self.file, how)(size)
        except OSError as error:
            self.broken = True
            raise ChatError(f"cannot read {self.file.name}: {error.strerror}") from None

    def grow(self):
        """Take in the next stretch of lines; returns the (place, event) of those that are no talk, None at the end."""
        block, others = self._read(self.end, INDEX_BYTES) if not self.broken else b"", []
        cut = block.rfind(b"\n") + 1
        if not cut and len(block) == INDEX_BYTES:
            block = self._read(self.end, REPLY_BYTES, "readline")
            cut = len(block) if block.endswith(b"\n") else 0
            if not cut and len(block) == REPLY_BYTES:
                return self._pass_over()
        begin, moment = self.end, self.moments[-1] if self.moments else 0.0
        offsets, numbers, moments = self.offsets.append, self.numbers.append, self.moments.append
        for match in _talk_or_other.finditer(block, 0, cut):
            number, t = match.groups()
            if number:  # the same as `_append`, and half as dear
                t = float(t)
                moment = t if t > moment else moment
                offsets(begin + match.start())
                numbers(int(number))
                moments(moment)
            else:
                others += self._take_other(match)
                moment = self.moments[-1]
        self.end += cut
        return others if cut else None

    def _pass_over(self):
        # A line that is far too long to be one, and never in memory as a whole.
        end, piece = self.end, b"..."
        while piece and not piece.endswith(b"\n"):
            piece = self._read(end, INDEX_BYTES, "readline")
            end += len(piece)
        if not piece:
            return None
        self._append(0, self.numbers[-1] + 1 if self.numbers else -1, 0.0)
        self.end = end
        return []

    def _take_other(self, match):
        line, n = match.group(), self.numbers[-1] if self.numbers else -1
        event = event_of(line)
        if not event:
            self._append(match.start(), n + (n >= 0 and line.strip() != b""), 0.0)
            return []
        if event.get("re") == "welcome":
            self.private = min(self.private, len(self))
        self._append(match.start(), event["n"] if "ev" in event and COUNT.fits(event.get("n")) else n, event["t"])
        return [(len(self) - 1, event)]

    def _append(self, start, n, t):
        self.offsets.append(self.end + start)
        self.numbers.append(n)
        self.moments.append(max(t, self.moments[-1]) if self.moments else t)

    def read(self, i):
        """What stands in this line: one event or reply, or none; and what there is to remark on, before it."""
        line = self._read(self.offsets[i], REPLY_BYTES, "readline")
        event, t = event_of(line) if line.endswith(b"\n") else None, self.moments[i]
        if not event:
            return [remark(t, f"line {i + 1} is damaged and was passed over")] if line.strip() else []
        if event.get("ev") == "session":
            check_version(event)
        before = self.numbers[i - 1] if i else -1
        missing = self.numbers[i] - before - 1 if before >= 0 and i < self.private else 0
        if missing <= 0:
            return [event]
        return [remark(t, f"{missing:,} {'line was' if missing == 1 else 'lines were'} not recorded here"), event]


# === secrets ======================================================================================
# What a room knows and tells nobody: the key that lets people in, and the secret behind the tokens with which they
# come back. They never stand in a session file, since that is handed round. Where a session can be gone on in, they
# wait beside it in the state folder, so that a server that was killed is the same room to everyone afterwards.


def state_folder():
    """Where this system keeps what a program remembers for a person."""
    home = os.path.expanduser("~")
    if sys.platform == "win32":
        return os.path.join(os.environ.get("LOCALAPPDATA") or home, "chat")
    if sys.platform == "darwin":
        return os.path.join(home, "Library", "Application Support", "chat")
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.join(home, ".local", "state"), "chat")


def keep_private(path, data):
    """Put this into a file that only its owner can read, entirely or not at all."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    unfinished = f"{path}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):  # of a process of the same number that was killed
        os.unlink(unfinished)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    os.replace(unfinished, path)


class Secrets:
    """What lets people into a room, and back to their seats, for one session."""

    # A token needs no table: it is a seat with what only the secret's owner can make of it, so it holds as long as the
    # secret does. `runs` are the runs of the server in this session, each with the n behind which it began: what an
    # earlier run said stands up to where the next one began, since a file may have lost its end in between.

    def __init__(self, session):
        self.session, self.path = session, None  # the path, once they are kept
        self.secret, self.run = os.urandom(32).hex(), os.urandom(8).hex()
        self.runs = {self.run: 0}
        self.new_key()

    def new_key(self):
        """Let a new key be needed by whoever comes in from now on."""
        self.key = int.from_bytes(os.urandom(5), "big") >> 5
        self._save()

    def keep(self, n=0):
        """Go on from what an earlier run has kept, behind event n, and keep it; returns whether there was one."""
        import hashlib

        name = hashlib.sha256(self.session.encode()).hexdigest()[:32] + ".json"  # an id may hold anything
        self.path, known = os.path.join(state_folder(), "rooms", name), False
        try:
            with open(self.path, encoding="utf-8") as file:
                kept = decode(file.read())
            key, secret, runs = kept["key"], bytes.fromhex(kept["secret"]).hex(), dict(kept["runs"])
            known = COUNT.fits(key) and len(secret) == len(self.secret) and all(map(COUNT.fits, runs.values()))
        except (OSError, ChatError, ValueError, KeyError, TypeError):
            pass  # there is none, or it is damaged
        if known:
            self.key, self.secret, self.runs = key, secret, dict([*runs.items()][1 - RUNS:])
        self.runs[self.run] = n
        self._save()
        return known

    def _save(self):
        if self.path:
            try:
                keep_private(self.path, encode({"key": self.key, "secret": self.secret, "runs": self.runs}))
            except OSError:
                self.path = None  # no folder: then they live as long as this process

    def since(self, run):
        """Up to which n what this run of the server has said still stands."""
        runs = [*self.runs]
        following = runs[runs.index(run) + 1:] if run in runs else [self.run]
        return min((self.runs[later] for later in following), default=1 << 53)

    def token(self, seat, run=None):
        """The token with which the owner of this seat comes back to it."""
        import hmac

        # With the run that gave it, since a seat behind a lost end of the file is somebody else's by now.
        run = run or self.run
        mac = hmac.new(bytes.fromhex(self.secret), f"{self.session} {run} {seat}".encode(), "sha256")
        return f"{seat}.{run}.{mac.hexdigest()[:32]}"

    def seat_of(self, token):
        """The seat that this token is for; None if it was never given out, or its seat is lost."""
        import hmac

        match = re.fullmatch(r"([0-9]{1,16})\.([0-9a-f]{16})\.[0-9a-f]{32}", token)
        if not match or not hmac.compare_digest(token, self.token(*match.groups())):
            return None
        seat, run = int(match.group(1)), match.group(2)
        return seat if seat <= self.since(run) else None


# --- the certificate ---

# The curve P-256, on which a key is a number and what the world sees of it a point: the base, added up so many times.
PRIME = 2**256 - 2**224 + 2**192 + 2**96 - 1
ORDER = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551
BASE = (0x6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296,
        0x4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5)
EC_KEY, CURVE, SIGNED, NAMED = map(bytes.fromhex, (  # how certificates name these things
    "06072a8648ce3d0201", "06082a8648ce3d030107", "06082a8648ce3d040302", "0603550403"))


def _add_points(one, other):
    (x, y), (u, v) = one, other
    slope = 3 * (x * x - 1) * pow(2 * y, -1, PRIME) if one == other else (v - y) * pow(u - x, -1, PRIME)
    w = (slope * slope - x - u) % PRIME
    return w, (slope * (x - w) - y) % PRIME


def _point(number):
    total, power = None, BASE
    while number:
        if number & 1:
            total = _add_points(total, power) if total else power
        power = _add_points(power, power)
        number >>= 1
    return total


def _der(tag, *parts):
    # One value as certificates write it: what it is, how long, and its parts.
    body = b"".join(parts)
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, len(body)] if len(body) < 128 else [tag, 128 + len(size), *size]) + body


def _der_number(number):
    return _der(2, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def make_certificate():
    """A certificate that vouches for itself, with its key, as the bytes of a PEM file."""
    import base64
    import hashlib

    # Valid for all times, since clocks are wrong; nobody trusts it for what it says, only for its hash in a code. That
    # this arithmetic takes longer for some numbers tells nobody anything: each key signs once, before anybody knows it.
    key, nonce = (int.from_bytes(os.urandom(48), "big") % (ORDER - 1) + 1 for _ in range(2))
    public = _der(3, b"\0\4", *[part.to_bytes(32, "big") for part in _point(key)])
    name, signed = _der(0x30, _der(0x31, _der(0x30, NAMED, _der(12, b"chat")))), _der(0x30, SIGNED)
    times = _der(0x30, _der(23, b"700101000000Z"), _der(24, b"99991231235959Z"))
    serial = _der_number(int.from_bytes(os.urandom(8), "big"))
    body = _der(0x30, serial, signed, name, times, name, _der(0x30, _der(0x30, EC_KEY, CURVE), public))
    r = _point(nonce)[0] % ORDER
    s = pow(nonce, -1, ORDER) * (int(hashlib.sha256(body).hexdigest(), 16) + r * key) % ORDER
    signature = _der(3, b"\0", _der(0x30, _der_number(r), _der_number(s)))
    private = _der(0x30, _der_number(1), _der(4, key.to_bytes(32, "big")), _der(0xa0, CURVE), _der(0xa1, public))
    parts = (b"CERTIFICATE", _der(0x30, body, signed, signature)), (b"EC PRIVATE KEY", private)
    return b"".join([b"-----BEGIN %b-----\n%b-----END %b-----\n" % (kind, base64.encodebytes(part), kind)
                     for kind, part in parts])


def open_context(end):
    """What TLS is to be like here, for the "SERVER" or the "CLIENT" end."""
    try:
        import ssl
    except ImportError:
        raise ChatError("this Python lacks the module ssl, without which nothing can be encrypted; an open room needs "
                        "none") from None
    context = ssl.SSLContext(getattr(ssl, f"PROTOCOL_TLS_{end}"))
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the code says whom to trust
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET | getattr(ssl, "OP_NO_RENEGOTIATION", 0)
    return context


def _use_certificate(path):
    # What encrypts with the certificate in this file, and the certificate itself, as the other end of a link sees it.
    context = open_context("SERVER")
    import ssl  # so it is there

    context.num_tickets = 0  # nobody resumes, and each would cost a send
    context.load_cert_chain(path, password="")  # without one it would ask for it
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server, client = context.wrap_bio(there, back, True), open_context("CLIENT").wrap_bio(back, there)
    for end in (client, server, client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return context, client.getpeercert(True)


class Identity:
    """The certificate by which people know that they have reached this computer, and what encrypts with it."""

    def __init__(self):
        import hashlib
        import tempfile

        path = os.path.join(state_folder(), "identity.pem")
        try:
            self.context, certificate = _use_certificate(path)
        except (OSError, ValueError):  # there is none, or it is damaged
            pem = make_certificate()
            # Only a file can be used, and where it is to stay may be no place, or another server's that begins now.
            with tempfile.TemporaryDirectory() as folder:
                keep_private(os.path.join(folder, "new.pem"), pem)
                self.context, certificate = _use_certificate(os.path.join(folder, "new.pem"))
            with contextlib.suppress(OSError):  # then it lives as long as this process
                keep_private(path, pem)
        self.digest = hashlib.sha256(certificate).digest()
        self.pin = stretch(self.digest)


# --- the code ---

LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # none that is easily taken for another
DIGITS = str.maketrans(LETTERS, "0123456789ABCDEFGHIJKLMNOPQRSTUV")  # as int reads them
ALIKE = str.maketrans("OILoil", "011011", "- ")


def spell(number, count):
    """A number as so many letters of a code, 5 bits each."""
    return "".join([LETTERS[number >> 5 * place & 31] for place in reversed(range(count))])


def check_letter(letters):
    """The letter that makes a code complete: no single wrong letter and no two swapped ones leave it right."""
    values = [LETTERS.index(letter) * (2 - place % 2) for place, letter in enumerate(reversed(letters))]
    return LETTERS[-sum(value // 32 + value % 32 for value in values) % 32]


def stretch(digest):
    """What a code says of the certificate with this hash: 50 bits, made dear, since a forger must make very many."""
    import hashlib

    stretched = hashlib.pbkdf2_hmac("sha256", digest, b"chat certificate", STRETCH)
    return spell(int.from_bytes(stretched, "big") >> 256 - 50, 10)


def prove(key, digest):
    """The proof that one knows the key of a room, of use only to the server with the certificate of this hash."""
    import hmac

    return hmac.new(key.to_bytes(5, "big"), b"chat proof" + digest, "sha256").hexdigest()


class Code(collections.namedtuple("Code", "pin key")):
    """What one must know to come into a private room: the certificate's stretched hash, in letters, and the key."""

    def __str__(self):
        letters = self.pin + spell(self.key, 7)
        letters += check_letter(letters)
        return "-".join([letters[:6], letters[6:12], letters[12:]])

    @classmethod
    def read(cls, text):
        """The code that somebody has typed; raises a ChatError if it is none."""
        letters = text.translate(ALIKE).upper()
        if len(letters) != 18 or not set(letters) <= set(LETTERS):
            raise ChatError("a code is 18 letters and digits, such as K7Q2MX-9D3FTA-XW4P0K")
        if check_letter(letters[:-1]) != letters[-1]:
            raise ChatError("this code has a mistyped letter")
        return cls(letters[:10], int(letters[10:17].translate(DIGITS), 32))


# === log ==========================================================================================
# The one idea as a class. Events get their number, time and place here and nowhere else. The events of a
# round are one chunk, and the chunks hang on one another like a chain: whoever is not up to date holds a
# link and finds all that follows; what nobody holds any more is gone by itself. So nobody has a queue.


class Chunk:
    """The events of one round: a link in the chain that is the log."""

    __slots__ = "data", "start", "end", "last", "next"

    def __init__(self, data, start, last):
        self.data, self.start, self.end = data, start, start + len(data)
        self.last = last  # the n of its last event
        self.next = None


class Log:
    """The events of a session, in their one order."""

    # For every method the lock of the room is held; `seal` is called only by the holder of the baton. It knows
    # no people and no sockets, only lines: what they mean is the room's business.

    def __init__(self, room):
        now = datetime.datetime.now().astimezone()
        self.resume({"ev": "session", "n": 0, "t": 0.0, "v": VERSION, "id": os.urandom(8).hex(),
                     "start": now.isoformat(timespec="milliseconds"), "room": room})

    def resume(self, session, n=0, t=0.0, tail=b""):
        """Go on in this session after event n at time t, which ended with these lines."""
        self.session, self.session_line = session, encode(session)
        self.n = n
        self.pending = []  # encoded events since the last chunk
        self.tail = Chunk(tail, 0, n)
        self.end = self.tail.end  # the size of the log, with what is pending
        self.kept = collections.deque([self.tail])  # the newest chunks, for newcomers and the console
        self.talk = collections.deque()  # (place, lines) of the newest say and me lines, by which history is found
        place = 0
        for line in tail.split(b"\n")[:-1]:
            if line.startswith((b'{"ev":"say"', b'{"ev":"me"')):
                self.talk.append((place, line + b"\n"))
            place += len(line) + 1
        start = datetime.datetime.fromisoformat(session["start"])
        self.t = max(t, (datetime.datetime.now().astimezone() - start).total_seconds())
        self.ticks = time.monotonic(), time.time()

    def seconds(self):
        """The time of the session; it never falls, whatever the clocks do."""
        # A laptop that slept shows in the wall clock only, a clock that was set back in the monotonic
        # one. Less than a second between them is just the two calls, and would add up.
        before, (steady, wall) = self.ticks, (time.monotonic(), time.time())
        self.ticks = steady, wall
        step, jump = steady - before[0], wall - before[1]
        step = max(step, 0.0)
        self.t += jump if jump > step + 1 else step
        return round(self.t, 3)

    def append(self, word, **fields):
        """Put one event at the end, stamped; returns its line."""
        line = encode({"ev": word, "n": self.n + 1, "t": self.seconds(), **fields})
        self._add(line, 1)
        return line

    def append_talk(self, who, requests):
        """Put one member's say and me requests at the end, as one batch; `who` is already quoted."""
        lines = encode_talk(self.n + 1, self.seconds(), who, requests)
        self.talk.append((self.end, lines))
        self._add(lines, len(requests))
        while self.talk[0][0] + len(self.talk[0][1]) + HISTORY_BYTES <= self.end:
            self.talk.popleft()

    def _add(self, lines, count):
        # Last of all, so that whatever could not be encoded has left no trace.
        self.pending.append(lines)
        self.end += len(lines)
        self.n += count

    def history(self, most):
        """Where a newcomer starts to read: (the place, the n of the first line there)."""
        # At the oldest of the last lines of talk, however many came and went in between; where nobody has said
        # anything, at the end. This looks at no other lines, since whole crowds may come at once.
        place, first = self.end, None
        for at, lines in reversed(self.talk):
            at += len(lines)
            for line in reversed(lines[:-1].rsplit(b"\n", most)):
                at -= len(line) + 1
                if not most or self.end - at > HISTORY_BYTES:
                    return place, number_of(first) if first else self.n + 1
                place, first, most = at, line, most - 1
        return place, number_of(first) if first else self.n + 1

    def after(self, n):
        """Where what followed event n begins, as far as it is still here: (the place, the n of its first line)."""
        place, first = self.end, self.n + 1
        for data in itertools.chain(reversed(self.pending), (chunk.data for chunk in reversed(self.kept))):
            if first <= n + 1:
                break
            if data:
                at = lines_after(data, n)
                place -= len(data) - at
                first = number_of(data, at)
        return place, first

    def seal(self):
        """Make a chunk of what is pending, and let go of the oldest; returns it, or None if nothing is new."""
        # The oldest go by what came before this chunk: a newcomer whose history begins back there may be in
        # the same round, and no history is as long as what is kept.
        if not self.pending:
            return None
        while self.tail.end - self.kept[0].end > KEEP_BYTES:
            self.kept.popleft()
        self.tail.next = Chunk(b"".join(self.pending), self.tail.end, self.n)
        self.tail = self.tail.next
        self.kept.append(self.tail)
        self.pending.clear()
        return self.tail

    def since(self, n):
        """The chunks in memory that hold events after n; the first may begin earlier."""
        return list(itertools.takewhile(lambda chunk: chunk.last > n, reversed(self.kept)))[::-1]


# === fan-out ======================================================================================
# How what is new reaches everyone. Many threads append under the lock; one at a time, the holder of the
# baton, carries out a round. A member in step has no state: all are sent the same bytes object. Only a
# short send makes a Lag, a place further back in the chain; a newcomer is just a member that lags,
# beginning with its welcome, and a leaver one whose log ends early.
#
# Nothing here knows names, rules or sockets. What is sent on is anything with `send`, `shutdown` and `close`
# like those of a non-blocking socket.


class Lag:
    """What a member that is not in step still has to be sent."""

    __slots__ = "piece", "missed", "pieces", "chunk", "letters", "last", "leaving"

    def __init__(self, chunk, *pieces, missed=()):
        self.piece = memoryview(b"")  # what is being sent,
        self.missed = iter(missed)  # then what is read from the file only when its turn has come,
        self.pieces = collections.deque(map(memoryview, pieces))  # then these,
        self.chunk = chunk  # then all that follows this one in the chain,
        self.letters = []  # then these,
        self.last = b""  # and at the very end, if it is leaving, the line with which it left
        self.leaving = False

    def next_piece(self):
        """The next bytes to send; None when nothing is left."""
        if not self.piece:
            following = list(itertools.islice(filter(None, itertools.chain(self.missed, self._taken())), 1))
            following = following or self._following()
            if not following:
                following, self.letters = self.letters, []
            if not following:
                following, self.last = [self.last], b""
            self.piece = memoryview(following[0] if len(following) == 1 else b"".join(following))
        return self.piece or None

    def _taken(self):
        while self.pieces:
            yield self.pieces.popleft()

    def _following(self):
        # Small chunks together, so that a newcomer's history is a few sends, not hundreds.
        parts, size = [], 0
        while self.chunk.next and size < PIECE_BYTES:
            self.chunk = self.chunk.next
            parts.append(self.chunk.data)
            size += len(self.chunk.data)
        return parts

    def sent(self, count):
        """Count off what has been sent of the next piece."""
        self.piece = self.piece[count:]

    def size(self, end):
        """How many bytes wait in all, in a log that ends there."""
        waiting = len(self.piece) + sum(map(len, self.pieces)) + sum(map(len, self.letters))
        return waiting if self.leaving else waiting + end - self.chunk.end

    def end_at(self, place, last):
        """Let the log end at this place in its newest chunk, and then this be the last."""
        while self.chunk.next:
            self.chunk = self.chunk.next
            self.pieces.append(memoryview(self.chunk.data))
        if self.chunk.end > place:
            self.pieces[-1] = self.pieces[-1][:place - self.chunk.end]
        self._leave_chain(last)

    def cut(self, last):
        """Leave nothing but the rest of the current line and this last one."""
        rest = bytes(self.piece or (self.pieces[0] if self.pieces else b""))
        self.piece, self.missed = memoryview(rest[:rest.find(b"\n") + 1] + last), iter(())
        self.pieces.clear()
        self.letters.clear()
        self._leave_chain(b"")

    def _leave_chain(self, last):
        # So that nothing of what the others still say is kept for it.
        self.chunk, self.last, self.leaving = Chunk(b"", self.chunk.end, 0), last, True


class Member:
    """A person in the room, and the way there."""

    # A member's life, and who turns the page. The room decides under the lock, the next round carries it out:
    #
    #   coming    its hello was taken: it has a name and a seat. The round makes it
    #   lagging   it has a Lag, first of all its welcome. When that is empty, `push` makes it
    #   in step   `instep` has its send, and there is nothing else to know. A short send, or a letter that finds
    #             its socket full, makes it lag again
    #   held      its link is lost, and it can come back: it is still among the people, but nothing is sent to it. A new
    #             member with its token takes its seat and its place; after HOLD_SECONDS it has left
    #   leaving   its leave was decided, by itself, the host or the fan-out: it is no longer among the people, no
    #             letter reaches it, its Lag ends with its own leave. Sent to the end, its sending side is shut;
    #             when its farewell is over, or its socket breaks, both sides are
    #   buried    nothing is owed to it and its reader thread is gone: its socket is closed, once and never
    #             earlier, since the system gives a closed socket's number to the next who comes
    #
    # Who breaks in the middle has neither Lag nor place in step, and waits for its reader to notice.

    __slots__ = ("address", "name", "quoted", "key", "seat", "left", "muted", "back", "kept", "away",  # the room's
                 "out", "lag", "watched", "reader_gone")  # the fan-out's, with the baton; the others under the lock

    def __init__(self, out, address=""):
        self.out, self.address = out, address
        self.name = self.quoted = self.key = self.seat = self.lag = None
        self.left = False
        self.muted = 0.0  # until this time of the session
        self.back, self.kept = False, None  # whether it can come back, and then the Kept replies
        self.away = None  # since this time of the session, without a link
        self.watched = False  # by the caretaker, until its socket takes more
        self.reader_gone = False


class Kept:
    """The replies to somebody who can come back, until it is known that they have come."""

    # Each bears a number k, and whoever comes back tells the newest that they have had. What is too much is let go,
    # the oldest first: while a link stands, those have come long ago; without one, no more is taken.

    __slots__ = "sure", "last", "lines", "size"

    def __init__(self):
        self.sure = False  # whether they have answered the welcome, and so have the token
        self.last, self.lines, self.size = 0, [], 0  # the newest k; (k, line, seat of who told it)

    def add(self, fields, teller=None):
        """Number and keep a reply; returns its line."""
        self.last += 1
        line = encode({**fields, "k": self.last})
        self.lines.append((self.last, line, teller))
        self.size += len(line)
        while self.size > KEPT_BYTES:
            self.let_go(self.lines[0][0])
        return line

    def let_go(self, had):
        """Forget what has come, up to this number."""
        count = sum(k <= had for k, line, teller in self.lines)
        self.size -= sum(len(line) for k, line, teller in self.lines[:count])
        del self.lines[:count]


class Work(collections.namedtuple("Work", "coming parting letters gone")):
    """What the next round has to do besides sending what is new, in this order."""

    # (newcomer, its first lines, what then comes from the file, the place in the log from which on it is sent all);
    # (leaver, the place where its log ends or None for where it is, its last line); (member, a line for it alone, after
    # all that is in the log by now); members that have left and whose reader is gone.

    def size(self):
        """How many bytes it holds, about; newcomers count less, or a crowd of them would wait for itself."""
        return sum(len(line) for _, line in self.letters) + sum(len(line) for _, line, *_ in self.coming) // 32


class Bell(threading.Event):
    """What wakes the console: something was said, or something went wrong, of which nobody else is told."""

    def __init__(self):
        super().__init__()
        self.faults, self.told = collections.deque(), float("-inf")

    def fail(self, error):
        """Have the host told what kind of thing went wrong, nothing of what it was about, and not too often."""
        now = time.monotonic()
        if now - self.told >= FAULT_SECONDS:
            self.told = now
            self.tell(f"something went wrong ({type(error).__name__}): it cost one connection or line, and the rest "
                      "goes on")

    def tell(self, text):
        """Have the host told this."""
        self.faults.append(text)
        self.set()


class Fanout:
    """Carries what is new in the log to everyone, round by round."""

    # With the lock held the room leaves word in `work` of what the next round is to do. Without lock and baton
    # anybody calls `flush`. All the rest is done with the baton, also by the caretaker, which waits where a round
    # must not: for full sockets and for farewells.
    #
    # `ask` is how it tells the room what it found: that somebody is lost or too slow, or the recording fails.

    def __init__(self, lock, log, ask):
        self.lock, self.log, self.ask = lock, log, ask
        self.wake = lambda: None  # calls the caretaker, if there is one
        self.spoken = Bell()  # set after each round with something new, for the console
        self.baton = threading.Lock()
        # Under the lock:
        self.work = Work([], [], [], [])
        self.unsent = False  # whether a round has something to do; read without the lock
        self.calls = 0  # how often somebody had something new, which tells how many talk at once; without the lock
        self.patience = FAREWELL_SECONDS
        # With the baton:
        self.recording = None
        self.instep = {}  # member: the send of its socket
        self.lagging = {}  # member: None, in the order of their falling behind
        self.farewells = {}  # member: when its socket is shut, whatever is left to send
        self.stuck, self.graves = [], []  # for the caretaker: to be watched, and to be closed

    # --- a round ---

    def flush(self):
        """Carry out what is new, unless another thread is doing so: then that one takes it along."""
        # Everyone sets `unsent` and then tries the baton; its holder lets go of it and then looks at
        # `unsent` again. So nothing new can be left behind by both.
        for _ in range(ROUNDS):
            if not self.unsent:
                return
            self.calls += 1  # a few get lost where two do this at once, which does not matter
            if not self.calls % CROWD:
                self.wake()
            if not self.baton.acquire(False):
                return
            try:
                self._round()
            except Exception as error:  # before anything was taken on: there was no memory for the chunk
                self.spoken.fail(error)
                time.sleep(PAUSE_SECONDS)
            finally:
                self.baton.release()
        if self.unsent:
            self.wake()  # a reader has a socket of its own to read; the caretaker goes on

    def spare(self, member, step, *arguments):
        """Take a step that is about one member, or none, so that whatever it raises costs nobody else anything."""
        # For in a round that stopped halfway, those whom it had not come to would be in step, with a gap.
        try:
            step(*arguments)
        except Exception as error:
            if not isinstance(error, OSError):  # that a connection breaks is no fault
                self.spoken.fail(error)
            with contextlib.suppress(Exception):  # its reader, or its next turn, sees to the rest
                if member:
                    self._break(member)

    def _round(self):
        with self.lock:
            before, chunk = self.log.tail, self.log.seal()
            work, self.work, self.unsent = self.work, Work([], [], [], []), False
        for member, *arriving in work.coming:
            self.spare(member, self._welcome, member, *arriving)
        if chunk:
            self.spare(None, self._record, chunk.data)
        for member, place, last in work.parting:
            self.spare(member, self._part, member, before, place, last)
        if chunk:
            self._fan_out(chunk)
        for member, letter in work.letters:
            self.spare(member, self._post, member, letter)
        for member, *_ in work.coming + work.parting:
            self.spare(member, self.push, member)
        for member in work.gone:
            self.spare(member, self._bury, member)
        if self.lagging:
            self._cut_slow()
        if chunk:
            self.spoken.set()

    def _cut_slow(self):
        pardoned = self.recording and time.monotonic() - self.recording.stalled < PARDON_SECONDS
        end, most = self.log.tail.end, LAG_BYTES * (2 if pardoned else 1)
        for member in [member for member in self.lagging if member.lag.size(end) > most]:
            self.spare(member, self.ask, member, {
                "do": "lose", "why": "slow", "text": "you were too slow to take what was said here, and were cut"})

    def _welcome(self, member, opening, missed, place):
        # The chain is left where the history begins; only a round's beginning changes what is kept of it.
        chunk = next(chunk for chunk in reversed(self.log.kept) if chunk.start <= place)
        self._start_lag(member, chunk, memoryview(chunk.data)[place - chunk.start:],
                        missed=itertools.chain([opening], missed))

    def _start_lag(self, member, chunk, *pieces, missed=()):
        self.instep.pop(member, None)
        member.lag = Lag(chunk, *pieces, missed=missed)
        self.lagging[member] = None

    def _record(self, data):
        recording = self.recording
        trouble = recording.write(data) if recording else None
        if trouble and recording.gone:
            recording.close()
            self.recording = None
        if trouble:
            self.ask(None, {"do": "notice", "text": trouble, "recorded": False if recording.gone else None})

    def _part(self, member, before, place, last):
        if member in self.instep:
            self._start_lag(member, before)
        elif not member.lag:
            return  # its socket is broken
        if place is None:
            member.lag.cut(last)
        else:
            member.lag.end_at(place, last)
        self.farewells[member] = time.monotonic() + self.patience
        self.wake()

    def _fan_out(self, chunk):
        # The loop in which a busy room spends its time: nothing per member but the send.
        late, data, size = [], chunk.data, len(chunk.data)
        for member, send in self.instep.items():
            try:
                sent = send(data)
            except BlockingIOError:
                sent = 0
            except Exception as error:
                sent = error
            if sent != size:
                late.append((member, sent))
        for member, sent in late:
            self.spare(member, self._fall_behind, member, chunk, sent)

    def _fall_behind(self, member, chunk, sent):
        if isinstance(sent, Exception):
            raise sent
        self._start_lag(member, chunk, memoryview(chunk.data)[sent:])
        self._watch(member)

    def _post(self, member, letter):
        if member.lag:
            member.lag.letters.append(letter)
        elif member in self.instep:
            self._start_lag(member, self.log.tail, letter)
            self.push(member)

    # --- one member: the baton is held ---

    def push(self, member):
        """Send a lagging member what it lacks, until its socket is full or nothing is left."""
        lag = member.lag
        try:
            while lag and lag.next_piece():
                lag.sent(member.out.send(lag.piece))
        except BlockingIOError:
            return self._watch(member)
        except OSError:
            return self._break(member)
        if lag:
            member.lag = None
            del self.lagging[member]
            if not lag.leaving:
                self.instep[member] = member.out.send
            elif member.reader_gone:
                self._bury(member)
            else:
                self._shut(member, socket.SHUT_WR)

    def _watch(self, member):
        if not member.watched:
            member.watched = True
            self.stuck.append(member)
            self.wake()

    def _break(self, member):
        self.instep.pop(member, None)
        self.lagging.pop(member, None)
        member.lag = None
        try:
            self.ask(member, {"do": "lose", "why": "lost"})
        finally:
            if member.reader_gone:
                self._bury(member)
            else:
                self._shut(member, socket.SHUT_RDWR)  # wakes its reader, who sees to the rest

    def _shut(self, member, how):
        with contextlib.suppress(OSError):  # the other side may have been faster
            member.out.shutdown(how)

    def _bury(self, member):
        member.reader_gone = True
        if member.lag:
            return  # it only stopped sending; what it is still owed goes out first
        self.instep.pop(member, None)
        self.farewells.pop(member, None)
        if member.watched:
            self.graves.append(member)
        else:
            member.out.close()
        self.wake()  # its seat may be held, which the caretaker has to end in time

    def look_after(self):
        """Do what is due by the clock; returns the seconds until something is due again, or None."""
        now = time.monotonic()
        for member in [member for member, until in self.farewells.items() if until <= now]:
            del self.farewells[member]
            self.spare(member, self._break, member)
        dues = [min(self.farewells.values()) - now] if self.farewells else []
        if self.recording:
            if self.recording.failing or self.recording.unsynced:
                self.spare(None, self._record, b"")
            dues.append(RETRY_SECONDS)
        return min(dues) if dues else None


# === room =========================================================================================
# The people and the rules. Whatever is asked of the room, by a person, by the host or by the fan-out, comes
# as a request and is decided in one place, one after the other: a table says which function turns it into
# events and letters, or refuses it. Those functions look at nothing but the request, the people and the
# log, so the same requests in the same order at the same times give the same bytes.


REMOVED = "the host removed you"
FOR_EVER = float("inf")


class Ban(collections.namedtuple("Ban", "name looks seat address until mute")):
    """Somebody whom the host keeps out, or mute, until this time of the session."""

    def is_for(self, name, seat, address):
        """Whether this is the same person: by a name that looks alike, a seat of theirs, or their own address."""
        neighbour = bool(address) and address == self.address
        return neighbour or looks_of(name) == self.looks or seat is not None and seat == self.seat


def time_left(wait, more=""):
    """In words, how long to wait."""
    return f"{wait / 60:.0f}{more} minutes" if wait > 90 else f"{wait + 1:.0f}{more} seconds"


class Room:
    """Who is here, and what becomes of what they ask."""

    # `ask` and the few methods behind it may be called by any thread; each takes the lock for a moment. With the lock
    # held what stands in DECISIONS is called. To carry out what was decided is up to whoever asked: `flush`.

    def __init__(self, name="chat", history=HISTORY, max_people=0):
        self.history, self.max_people = history, max_people
        self.lock = threading.Lock()
        self.log = Log(name)
        self.fanout = Fanout(self.lock, self.log, self.ask)
        self.flush, self.fail = self.fanout.flush, self.fanout.spoken.fail
        self.people = {}  # name key: member, in the order of their coming
        self.alike = {}  # what the name looks like: member
        self.seats = {}  # seat: member, of those who can come back
        self.held = {}  # the same, of those whose link is lost, in the order of their losing it
        self.bans = []
        self.secrets = Secrets(self.log.session["id"])
        self.gate = None  # keeps out who has no key, where the room is private
        self.host = Member(None)  # speaks and acts, but is not among the people
        self.host.name, self.host.quoted = "server", quote("server")

    @property
    def private(self):
        """Whether it is only for people with its code, and encrypted."""
        return self.gate is not None

    @property
    def closed(self):
        """Whether the session has ended, and nobody can come in or do anything."""
        return self.host.left

    def ask(self, member, request):
        """Decide a request, of a member or of the fan-out itself; raises the ChatError that refuses it."""
        with self.lock:
            self.decide(member or self.host, request)

    def decide(self, member, request):
        """Turn a request into what becomes of it, by the table; the lock is held."""
        if not member.left:  # nothing follows one's own leave
            self.fanout.unsent = True
            DECISIONS[request["do"]](self, member, request)

    def refuse(self, member, error, id=None):
        """Tell a member why its request came to nothing."""
        with self.lock:
            self.post(member, self.error(error, id))

    def error(self, error, id=None):
        """The reply that carries a ChatError."""
        return {"re": "error", "t": round(self.log.t, 3), "code": error.code, "text": str(error), "id": id,
                "name": error.name}

    def bury(self, member):
        """Have the socket of a member closed that has left and whose reader is gone."""
        with self.lock:
            self.fanout.work.gone.append(member)
            self.fanout.unsent = True

    def since(self, n):
        """The chunks in memory that hold events after n; the first may begin earlier."""
        with self.lock:
            return self.log.since(n)

    def record(self, recording):
        """Begin or, with None, stop to write the log into a file, and tell everyone."""
        if not self.fanout.baton.acquire(timeout=SYNC_SECONDS):  # its holder alone writes; not for ever, since the
            raise ChatError("the disk of the recording does not answer")  # main thread has signals to hear
        before, self.fanout.recording = self.fanout.recording, recording
        self.fanout.baton.release()
        if before:
            before.close()
        if recording:  # then another run may go on in the session
            self.secrets.keep(self.secrets.runs[self.secrets.run])
        # Only from here on: what was said before was said by people who had not been told.
        text = "this session is recorded from here on" if recording else "this session is no longer recorded"
        self.ask(self.host, {"do": "notice", "text": text, "recorded": bool(recording)})

    def find_missed(self, request):
        """Where in the file what its sender has missed begins, as far as it is not in memory: (path, (offset, n))."""
        # The disk may be slow, so this is done by the one thread that needs it, before the room decides; and read
        # only piece by piece, when it can be sent.
        if self.seat_of(request) is None:
            return None
        last, recording = self.last_of(request), self.fanout.recording
        with self.lock:
            place, first = self.log.after(last)
        with contextlib.suppress(OSError):
            found = find_after(recording.path, last) if first > last + 1 and recording else None
            return (recording.path, found) if found and found[1] < first else None

    def seat_of(self, request):
        """The seat whose owner this hello comes from, by its token; None if it is not told, or not true."""
        return self.secrets.seat_of(request["token"]) if "token" in request else None

    def last_of(self, request):
        """Up to which n somebody who comes back has all that still stands."""
        return min(request.get("last", 0), self.secrets.since(request.get("run", "")), self.log.n)

    def release(self):
        """Let those leave who have not come back in time; returns the seconds until somebody is due, or None."""
        with self.lock:
            for member in list(self.held.values()):
                due = member.away + HOLD_SECONDS - self.log.seconds()
                if due > 0:
                    return due
                self.decide(member, {"do": "leave", "why": "lost"})
        return None

    # --- what the decisions stand on: the lock is held ---

    def post(self, member, fields, teller=None):
        """Have a reply sent to one member; it is kept until it has come if they can come back."""
        if member.left or member is self.host:
            return
        line = member.kept.add(fields, teller) if member.back and fields["re"] != "pong" else encode(fields)
        if member.away is None:
            self.fanout.work.letters.append((member, line))
            self.fanout.unsent = True

    def find(self, name):
        """The member of this name, or the ChatError that says that there is none."""
        member = self.people.get(name_key(name))
        if not member:
            raise ChatError(f"nobody here is called {clean_row(name)[:NAME_POINTS]}", "nobody")
        return member

    def check_free(self, name, member=None):
        """Refuse a name that somebody else has, or may be taken for them by, with one that is free."""
        if self._is_free(name, member):
            return
        # By doubling and halving, since a thousand guests may have come.
        stem, taken, free = name[:NAME_POINTS - 6], 1, 2
        while not self._is_free(f"{stem}-{free}"):
            taken, free = free, 2 * free
        while free - taken > 1:
            middle = (taken + free) // 2
            taken, free = (taken, middle) if self._is_free(f"{stem}-{middle}") else (middle, free)
        how = "is taken" if name_key(name) in self.people else "looks like one that is taken"
        raise ChatError(f"the name {name} {how}; {stem}-{free} is free", "name-taken", f"{stem}-{free}")

    def _is_free(self, name, member=None):
        return self.people.get(name_key(name), member) is member and self.alike.get(looks_of(name), member) is member

    def add(self, member):
        """Put a member among the people, under its name."""
        self.people[member.key] = self.alike[looks_of(member.name)] = member

    def remove(self, member):
        """Take a member from among the people, or from under its name."""
        del self.people[member.key]
        self.alike.pop(looks_of(member.name), None)

    def is_muted(self, member, id):
        """Whether a member must not speak now; if so, it is told."""
        wait = member.muted - self.log.seconds() if member.muted else 0.0
        if wait > 0:
            self.post(member, self.error(ChatError(f"you are muted for {time_left(wait, ' more')}", "muted"), id))
        return wait > 0

    def part(self, member, why, text=None, id=None, told=None):
        """Take a member out of the room; one who was removed is told the reason, or that, as its last line."""
        reason = encode(self.error(ChatError(told or text, why))) if why in ("slow", "kicked") else b""
        place, last = self.log.end, self.log.append("leave", who=member.name, why=why, text=text, id=id) + reason
        if why == "slow":
            place, last = None, reason
        self.fanout.work.parting.append((member, place, last))
        member.left = True
        self.remove(member)
        self.seats.pop(member.seat, None)
        self.held.pop(member.seat, None)
        if member.back and why == "lost" or member.away is not None:
            self._tell_tellers(member)

    def _tell_tellers(self, member):
        # What waited for somebody who does not come back has waited in vain.
        told = collections.Counter(teller for k, line, teller in member.kept.lines if teller)
        for other in [other for other in self.people.values() if other.seat in told]:
            lines = "a private line" if told[other.seat] == 1 else f"{told[other.seat]} private lines"
            self.post(other, self.error(ChatError(f"{member.name} has gone without {lines} of yours", "nobody")))


# --- the decisions: what each request becomes; the lock is held ---
# Each refuses, or appends to the log, and only then changes who is here.


def _decide_hello(room, member, request):
    if member.seat is not None:
        raise ChatError("you are in the room already")
    if room.closed:
        raise ChatError("this room is closed", "full")
    seat = room.seat_of(request)
    _check_welcome(room, request["name"], seat, member.address)
    if seat in room.seats:
        _come_back(room, member, request, room.seats[seat])
    else:
        _come_in(room, member, request, seat)


def _check_welcome(room, name, seat, address):
    wait = _ban_until(room, False, name, seat, address) - room.log.seconds()
    if wait > 0:
        until = "for as long as this room is open" if wait == FOR_EVER else f"come back in {time_left(wait)}"
        raise ChatError(f"{REMOVED}; {until}", "kicked")


def _ban_until(room, mute, name, seat, address):
    # Until when the host does not want to see this person, or to hear them; 0.0 if never.
    return max((ban.until for ban in room.bans if ban.mute is mute and ban.is_for(name, seat, address)), default=0.0)


def _come_in(room, member, request, before):
    # `before` is the seat that they have had, if they come again after a while: then they are told what they missed.
    name = check_name(request["name"])
    if room.max_people and len(room.people) >= room.max_people:
        raise ChatError(f"this room is full: {room.max_people} people", "full")
    room.check_free(name)
    if before is None:
        missed, (place, first) = (), room.log.history(room.history)
    else:
        missed, place, first = _missed(room, request)
    member.name, member.quoted, member.key, member.back = name, quote(name), name_key(name), request.get("back") is True
    opening = _opening(room, member, request, [*room.people.values(), member], room.log.n + 1)
    room.log.append("join", who=name, **{"from": first, "back": member.back or None})
    member.seat, member.muted = room.log.n, _ban_until(room, True, name, before, member.address)
    room.add(member)
    if member.back:
        member.kept = Kept()
        room.seats[member.seat] = member
    room.fanout.work.coming.append((member, opening, missed, place))


def _come_back(room, member, request, other):
    # Somebody takes their seat again, and nobody is told, since nothing has happened. Both ends know by numbers what
    # has come: all that the old link still carries is from now on refused.
    missed, place, first = _missed(room, request)
    if other.away is None:
        moved = ChatError("you have come in from elsewhere, and this link is closed", "elsewhere")
        room.fanout.work.parting.append((other, None, encode(room.error(moved))))
    for field in ("name", "quoted", "key", "seat", "muted", "back", "kept"):
        setattr(member, field, getattr(other, field))
    other.left = True
    room.seats[member.seat] = member
    room.add(member)
    room.held.pop(member.seat, None)
    if request.get("run") == room.secrets.run:  # else these are numbers of replies that no one has any more
        member.kept.let_go(request.get("had", 0))
    opening = _opening(room, member, request, room.people.values(), member.seat)
    room.fanout.work.coming.append((member, opening, missed, place))
    room.fanout.work.letters.extend([(member, line) for k, line, teller in member.kept.lines])


def _missed(room, request):
    # What somebody has missed: the lines that are only in the file, the place in the log where the others begin, and
    # the first n of all that. Where it jumps, lines are gone for good.
    place, first = room.log.after(room.last_of(request))
    if not request.get("missed"):
        return (), place, first
    path, (offset, n) = request["missed"]
    return read_between(path, offset, first), place, n


def _opening(room, member, request, people, seat):
    # The first two lines for somebody who comes, to this seat.
    more = {"recorded": True if room.fanout.recording else None}
    if member.back:
        since = room.secrets.since(request.get("run", ""))
        more.update(seat=seat, token=room.secrets.token(seat), run=room.secrets.run, since=min(since, room.log.n))
    more["id"] = request.get("id")
    quoted = ",".join([other.quoted for other in people])
    return encode_welcome(room.log.seconds(), member.quoted, room.log.n, quoted, more) + room.log.session_line


def _decide_talk(room, member, request):
    # say and me requests come as many as arrived together, and become one batch: a busy room is made of these.
    said = request["said"]
    if member.muted:
        said = [one for one in said if not room.is_muted(member, one.get("id"))]
    if said:
        room.log.append_talk(member.quoted, said)


def _decide_tell(room, member, request):
    if room.is_muted(member, request.get("id")):
        return
    other = room.find(request["to"])
    letter = {"re": "tell", "t": room.log.seconds(), "who": member.name, "to": other.name, "text": request["text"]}
    if other.away is not None and other.kept.size + len(encode(letter)) > KEPT_BYTES:
        raise ChatError(f"{other.name} has no link, and so much waits for them already", "nobody")
    room.post(member, {**letter, "id": request.get("id")})
    if other is not member:
        room.post(other, letter, member.seat)


def _decide_nick(room, member, request):
    name = check_name(request["name"])
    if name == member.name:
        raise ChatError(f"your name is {name} already", "bad-name")
    room.check_free(name, member)
    if _ban_until(room, False, name, None, None) > room.log.seconds():
        raise ChatError(f"the host has banned the name {name}", "bad-name")
    room.log.append("nick", who=member.name, name=name, id=request.get("id"))
    room.remove(member)
    member.name, member.quoted, member.key = name, quote(name), name_key(name)
    room.add(member)


def _decide_who(room, member, request):
    people, t = [other.name for other in room.people.values()], room.log.seconds()
    away = {other.name: int(t - other.away) for other in room.held.values()} or None
    room.post(member, {"re": "who", "t": t, "people": people, "away": away, "id": request.get("id")})


def _decide_ping(room, member, request):
    if member.back:
        member.kept.sure = True
        member.kept.let_go(request.get("had", 0))
    room.post(member, {"re": "pong", "t": room.log.seconds(), "id": request.get("id")})


def _decide_bye(room, member, request):
    room.part(member, "left", id=request.get("id"))


def _decide_leave(room, member, request):
    room.part(member, request["why"], request.get("text"))


def _decide_lose(room, member, request):
    # A link is lost. Who can come back keeps the seat for a while, as if nothing had happened.
    if not (member.back and member.kept.sure):
        room.part(member, request["why"], request.get("text"))
    elif member.away is None:
        member.away = room.log.seconds()
        room.held[member.seat] = member
        if request["why"] == "slow":
            room.fanout.work.parting.append((member, None, encode(room.error(ChatError(request["text"], "slow")))))


def _decide_gone(room, host, request):
    # Somebody who was inside when an earlier run of this server died.
    if not request["back"]:
        return room.log.append("leave", who=request["who"], why="lost")
    member, name = Member(None), request["who"]
    member.name, member.quoted, member.key, member.seat = name, quote(name), name_key(name), request["seat"]
    member.back, member.kept, member.away = True, Kept(), room.log.seconds()
    member.kept.sure = True
    room.seats[member.seat] = room.held[member.seat] = member
    room.add(member)


def _decide_kick(room, host, request):
    member, minutes, reason = room.find(request["to"]), request.get("minutes", 0), request.get("text")
    room.part(member, "kicked", reason, told=f"{REMOVED}: {reason}" if reason else REMOVED)
    if minutes:
        _ban(room, member.name, member, room.log.t + 60 * minutes)


def _decide_ban(room, host, request):
    # Also somebody who has fled already: then it is for the name alone.
    name = check_name(request["to"])
    member = room.people.get(name_key(name))
    if member:
        _decide_kick(room, host, request)
    _ban(room, member.name if member else name, member, FOR_EVER)


def _ban(room, name, member, until, mute=False):
    # Whoever shares an address with others, as all do behind one router and on one computer, must not take them along.
    address, seat = (member.address, member.seat) if member else ("", None)
    if address.startswith("127.") or address in ["::1", *(other.address for other in room.people.values()
                                                          if other is not member)]:
        address = ""
    _lift(room, name, mute)
    room.bans.append(Ban(name, looks_of(name), seat, address, until, mute))


def _lift(room, name, mute):
    # Returns whether there was something to lift; what is over is forgotten as well.
    before, now = len(room.bans), room.log.seconds()
    room.bans = [ban for ban in room.bans if ban.until > now and (ban.mute, ban.looks) != (mute, looks_of(name))]
    return len(room.bans) < before


def _decide_unban(room, host, request):
    lifted = [_lift(room, request["to"], mute) for mute in (False, True)]
    if not any(lifted):
        raise ChatError(f"nobody is banned by the name {clean_row(request['to'])[:NAME_POINTS]}", "nobody")


def _decide_mute(room, host, request):
    member, minutes = room.find(request["to"]), request["minutes"]
    text = f"is muted for {minutes} min" if minutes else "is no longer muted"
    room.log.append("notice", text=f"{member.name} {text}")
    member.muted = room.log.t + 60 * minutes if minutes else 0.0
    room.bans = [ban for ban in room.bans if not (ban.mute and ban.is_for(member.name, member.seat, member.address))]
    if minutes:
        _ban(room, member.name, member, member.muted, mute=True)


def _decide_announce(room, host, request):
    room.log.append(request["do"], text=request["text"], recorded=request.get("recorded"))


def _decide_end(room, host, request):
    place, last = room.log.end, room.log.append("end")
    for member in room.people.values():
        room.fanout.work.parting.append((member, place, last))
        member.left = True
    room.people.clear()
    room.alike.clear()
    room.seats.clear()
    room.held.clear()
    room.fanout.patience, host.left = ENDING_SECONDS, True


# What a person can ask stands in REQUESTS, of which say and me come as talk; the door lets nothing else in.
# A member's thread and the fan-out ask lose, the fan-out and the host notice, only the host the rest.
DECISIONS = {
    "hello": _decide_hello, "talk": _decide_talk, "tell": _decide_tell, "nick": _decide_nick, "who": _decide_who,
    "ping": _decide_ping, "bye": _decide_bye, "leave": _decide_leave, "lose": _decide_lose, "gone": _decide_gone,
    "kick": _decide_kick, "ban": _decide_ban, "unban": _decide_unban, "mute": _decide_mute, "notice": _decide_announce,
    "mark": _decide_announce, "end": _decide_end}


# === view =========================================================================================
# What one person knows of a room, built up event by event: a client is one of these with a connection, a
# seat in a recording is one that is fed from a file. Presence is nothing else than this sum. And the
# commands, the lines that begin with a slash: tables, from which help and completion come.


class View:
    """What one person knows of a room: who they are, who is here, what was said before they came."""

    # Without a name it is nobody's in particular: all that was said to everyone.

    def __init__(self, session=None, name=None, heard=-1):
        self.session, self.name = session, name
        self.heard = heard  # the newest n when they came: up to there it is history
        self.mine = name  # the name under which they speak in the lines that come just now; None before their join
        self.people = {}  # name: seat, or None where that was not told
        self.recorded = self.over = False

    def take(self, event):
        """Keep up with one more event or reply; returns the seats that it ended."""
        word, ended = event.get("ev"), []
        if word in ("say", "me"):  # nearly all are, and change nothing
            return ended
        if event.get("re") == "welcome":
            # Whoever comes back to their seat is sent what happened meanwhile, which changes nothing about the list.
            self.name, self.over = event["you"], False
            self.heard = min(event.get("seat", event["n"] + 1) - 1, event["n"])
            self.people, self.recorded = dict.fromkeys(event["people"]), event.get("recorded") is True
        elif word == "session":
            self.mine = self.mine if self.session and self.session["id"] == event["id"] else None
            self.session = event
        elif word == "notice" and type(event.get("recorded")) is bool:
            self.recorded = event["recorded"]
        elif word in ("join", "leave", "nick"):
            self._follow_mine(word, event)
            ended = [] if self.is_history(event) else self._move(word, event)
        elif word == "end" and not self.is_history(event):
            ended, self.people, self.over = list(self.people.values()), {}, True
        return ended

    def _follow_mine(self, word, event):
        if word == "join" and event["n"] == self.heard + 1:
            self.mine = event["who"]
        elif event["who"] == self.mine:
            self.mine = {"leave": None, "nick": event.get("name")}.get(word, self.mine)
            self.name = self.mine or self.name

    def _move(self, word, event):
        who, ended = event["who"], []
        if word == "nick":
            if who in self.people:
                self.people[event["name"]] = self.people.pop(who)
            return ended
        if who in self.people:  # else its leave, or the join before this one, is missing
            ended = [self.people.pop(who)] if word == "leave" else [self.people[who]]
        if word == "join":
            self.people[who] = event["n"]
        return ended

    def skip(self):
        """Go on behind lines that are gone, in which anything may have happened."""
        self.mine = self.name

    def is_history(self, event):
        """Whether this event was over when they came, and they were told of it afterwards."""
        return "ev" in event and type(event.get("n")) is int and 0 < event["n"] <= self.heard

    def render(self, event, times=TIMES[0]):
        """The event as pieces, as this person sees it; history is not to catch the eye."""
        pieces = render(event, self.session, self.name, times)
        return [("history", text) for style, text in pieces] if self.is_history(event) else pieces

    def bar(self, recorded):
        """The text of the bar below the input line: the room, whether it is recorded, and who is here."""
        people = ", ".join(map(clean_row, list(self.people)))  # another thread may be changing it
        return f" {clean_row(self.session['room'])} | {recorded} | {len(self.people)} here: {people}"


class Command(collections.namedtuple("Command", "usage help run")):
    """What a line that begins with a slash does: run(subject, *the words that its usage names)."""


def run_command(commands, subject, line):
    """Run the slash command that this line is; raises a ChatError if there is none such."""
    word, _, rest = line[1:].partition(" ")
    command = commands.get(word)
    if not command:
        near = difflib.get_close_matches(word, commands, 1, 0.5)
        hint = f"did you mean /{near[0]}?" if near else "/help lists what there is"
        raise ChatError(f"there is no command /{clean_row(word)[:20]}; {hint}")
    wanted = command.usage.split()
    given = rest.split(None, len(wanted) - 1) if wanted else []
    if len(given) < sum(not name.startswith("[") for name in wanted):
        raise ChatError(f"usage: /{word} {command.usage}")
    command.run(subject, *given)


def one_of(words, word):
    """The word, if a command takes it; raises a ChatError that lists those that it takes."""
    if word not in words:
        raise ChatError(f"it can be: {' '.join(words)}")
    return word


def help_lines(commands):
    """The list of these commands, as lines of pieces."""
    width = max(len(name) + len(command.usage) for name, command in commands.items()) + 3
    return [[("system", f"-- {f'/{name} {command.usage}'.ljust(width)} {command.help}")]
            for name, command in commands.items()]


def complete(before, commands, names):
    """What Tab makes of the text before the cursor: (how much of it, the words that may stand there)."""
    head, _, word = before.rpartition(" ")
    if not head and before.startswith("/"):
        words = [f"/{name} " for name in commands]
    elif word.startswith("@"):
        words = [f"@{name} " for name in names]
    else:
        words = [f"{name} " if " " in before or before.startswith("/") else f"{name}: " for name in names]
    return len(word), sorted(found for found in words if name_key(found).startswith(name_key(word)))


# === doors ========================================================================================
# How a socket becomes a member. Each has a thread here that alone receives from it; sending is the
# fan-out's. Two socket objects stand on one descriptor, both non-blocking for the system: one with a
# time-out for the reader, one without for the fan-out; so there is one way of sending on every system.
#
# A thread per person costs some 20 KiB and tells one person's evening from top to bottom. What it keeps in its
# locals every person pays for, which is why waiting for the hello is a function of its own.


class Refusals:
    """How many lines of one person came to nothing: too many, and the other side speaks something else."""

    # Mistakes between good lines may go on for ever, but not what is no request at all.

    __slots__ = "row", "senseless"

    def __init__(self):
        self.row = self.senseless = 0

    def count(self, error):
        """Count one more; returns why its writer has to go, if it is one too many."""
        self.row += 1
        self.senseless += isinstance(error, NoRequest)
        if self.senseless == REFUSED_LINES:
            return f"{REFUSED_LINES} of your lines could not be understood"
        return f"{REFUSED_LINES} of your requests in a row were refused" if self.row == REFUSED_LINES else None


def act(room, member, lines, refusals):
    """Carry out what a member's lines ask, in order; returns what that costs, in requests."""
    talk, cost, reason = [], len(lines), None
    for line in lines:
        if member.left or reason:
            break
        request = {}
        try:
            request = decode_request(line)
            if request["do"] in ("say", "me"):
                talk.append(request)
            else:
                if talk:
                    room.ask(member, {"do": "talk", "said": talk})
                    talk = []
                cost += _surcharge(room, request)
                room.ask(member, request)
            refusals.row = 0
        except ChatError as error:
            room.refuse(member, error, request.get("id", error.id))
            reason = refusals.count(error)
    if talk:
        room.ask(member, {"do": "talk", "said": talk})
    if reason:
        _remove(room, member, reason)
    return cost


def _surcharge(room, request):
    # Before it is carried out, since one refusal of a name is as dear as a rename.
    if request["do"] == "nick":
        return NICK_COST - 1
    return len(room.people) // WHO_PEOPLE if request["do"] == "who" else 0


class Tls:
    """One end of an encrypted link: makes of what is said what is sent, and the other way round; knows no socket."""

    # OpenSSL does not bear two threads in one link. So whoever reads or sends takes this lock, and never waits with it.
    # What TLS has to say by itself goes out before the next that is said.

    __slots__ = "lock", "end", "incoming", "outgoing", "idle", "over", "ended"

    def __init__(self, context, server):
        import ssl

        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.end = context.wrap_bio(self.incoming, self.outgoing, server)
        self.lock, self.idle = threading.Lock(), 0  # how many bytes came without a word in them
        self.over = self.ended = False  # whether the other side has said that nothing follows, and whether this one has

    def shake_hands(self, sock, until):
        """Agree with the other side on how to encrypt, until this time; raises an OSError if they do not."""
        import ssl

        while True:
            left = until - time.monotonic()
            if left <= 0:  # else one byte a millisecond would go on for ever
                raise socket.timeout
            sock.settimeout(left)
            try:
                self.end.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
            finally:  # the last word is to go out, too, or the complaint
                sock.sendall(self.outgoing.read())
            data = sock.recv(READ_BYTES[0])
            self.incoming.write(data)
            self._count(len(data), SEALED_BYTES[0])
        self.idle = 0
        if self.end.version() not in ("TLSv1.2", "TLSv1.3"):
            raise ConnectionAbortedError("an old kind of encryption")

    def _count(self, size, most):
        # Whoever keeps this end busy without a word, or lets answers pile up, is cut.
        self.idle += size
        if not size or self.idle > most or self.outgoing.pending > RECORD_BYTES:
            raise ConnectionAbortedError("nothing was said")

    def encrypt(self, data):
        """What is to be sent for this, with all that waits to be sent before it."""
        with self.lock:
            if data:  # some versions do not take nothing
                self.end.write(data)
            return self.outgoing.read()

    def decrypt(self, data):
        """What was said, now that these bytes have come; nothing if it is not whole yet, or `over`."""
        import ssl

        with self.lock:
            if self.ended:
                return data  # nobody listens any more, it only has to be taken off the wire
            self.incoming.write(data)
            words = []
            try:
                for word in iter(lambda: self.end.read(RECORD_BYTES), b""):
                    words.append(word)
                self.over = True
            except ssl.SSLWantReadError:
                pass
            if words:
                self.idle = 0
            elif data:
                self._count(len(data), SEALED_BYTES[1])
        return b"".join(words)

    def finish(self):
        """What tells the other side that nothing follows."""
        with self.lock:
            self.ended = True
            with contextlib.suppress(OSError):
                self.end.unwrap()
            return self.outgoing.read()


class Sealed:
    """A socket that encrypts: neither the fan-out nor who reads can tell it from a plain one."""

    # While anything of what was taken waits here to be sent, its last byte counts as not taken. So whoever has sent all
    # knows that nothing waits, and whoever has not comes again, beginning with that byte. `send` does not wait, for the
    # holder of the baton; `sendall` does, for the sender of a client. `recv` is the reader's, who has a Sealed of its
    # own with the same Tls, as it has a socket of its own.

    __slots__ = "sock", "tls", "rest"

    def __init__(self, sock, tls):
        self.sock, self.tls, self.rest = sock, tls, b""

    def __getattr__(self, name):
        return getattr(self.sock, name)  # all else is as it is there

    def dup(self):
        """One more for the same link, as sockets do."""
        return Sealed(self.sock.dup(), self.tls)

    def send(self, data):
        """Send what the system takes without waiting; returns how much of it that is."""
        data, taken = memoryview(data), 0
        try:
            if self.rest:
                self._push()
                taken = 1  # this byte was in what waited
            while taken < len(data):
                piece = data[taken:taken + RECORD_BYTES]
                self.rest = self.tls.encrypt(piece)
                taken += len(piece)
                self._push()
        except BlockingIOError:
            if taken < 2:
                raise
            taken -= 1
        return taken

    def _push(self):
        while self.rest:
            self.rest = self.rest[self.sock.send(self.rest):]

    def sendall(self, data):
        """Send all of this, and wait for it."""
        self.sock.sendall(self.tls.encrypt(data))

    def recv(self, size):
        """Wait for something to be said; returns it, or nothing at the end."""
        data = b""  # something may have come behind the handshake
        while True:
            words = self.tls.decrypt(data)
            if words or self.tls.over:
                return words
            data = self.sock.recv(size)
            if not data:
                return b""

    def shutdown(self, how):
        """End one direction or both; the other side is told, if it still takes something."""
        if how == socket.SHUT_WR:
            with contextlib.suppress(OSError):
                self.rest += self.tls.finish()
                self._push()
        self.sock.shutdown(how)


class Gate:
    """What a private room has before its door: who shows no key does not get as far as the room."""

    # Every proof is looked at, however many are wrong, so that a right one always lets in. Guessing the key takes years
    # all the same; answers, by which one notices mistakes, are for people, who make few.

    def __init__(self, identity):
        self.identity = identity
        self.lock, self.wrong = threading.Lock(), collections.deque()  # (when, from which network), of those answered
        self.told = float("-inf")  # when the host was last told

    def code(self, room):
        """The code that lets in at the moment."""
        return Code(self.identity.pin, room.secrets.key)

    def check(self, room, network, request):
        """Refuse what neither proves that its writer knows the key nor has a token of this room."""
        import hmac

        right, given = prove(room.secrets.key, self.identity.digest), request.get("proof", "")
        if request["do"] == "hello" and (hmac.compare_digest(given.encode(), right.encode()) or
                                         room.secrets.seat_of(request.get("token", "")) is not None):
            return
        now = time.monotonic()
        if self._may_answer(network, now):
            raise ChatError("this room lets in only people with its code, and this is not it, or no longer", "no-key")
        if now - self.told > GUESS_SECONDS:
            room.fanout.spoken.tell("somebody tries many wrong keys; those get no answer now, and a right one lets in")
        self.told = now
        raise ConnectionAbortedError("one wrong key too many")

    def _may_answer(self, network, now):
        with self.lock:
            while self.wrong and self.wrong[0][0] < now - GUESS_SECONDS:
                self.wrong.popleft()
            some, all = GUESSES
            answer = len(self.wrong) < all and sum(other == network for when, other in self.wrong) < some
            if answer:
                self.wrong.append((now, network))
            return answer


def wait_for_rounds(fanout):
    """Wait while more is waiting for a round than memory should hold: before a reader appends to it."""
    # A disk stalls. Nobody's lines are lost by it: their sockets fill up, and whoever sends to them waits, too.
    while fanout.log.end - fanout.log.tail.end + fanout.work.size() > PENDING_BYTES:
        if fanout.baton.acquire(timeout=FAULT_SECONDS):
            fanout.baton.release()
            fanout.flush()


class Allowance:
    """How much one person may still ask for at the moment."""

    # A bucket that fills at the rate and holds a few seconds' worth. It may be overdrawn, since what was read is
    # carried out; the debt is waited for.

    __slots__ = "rate", "most", "left", "at"

    def __init__(self, rate, seconds=RATE_BURST):
        self.rate, self.most, self.left, self.at = rate, rate * seconds, rate * seconds, time.monotonic()

    def spend(self, requests):
        """Count these requests; returns the seconds until their writer is heard again."""
        now = time.monotonic()
        self.left = min(self.left + (now - self.at) * self.rate, self.most) - requests
        self.at = now
        return max(0.0, -self.left / self.rate)


def network_of(address):
    """What an address has in common with its neighbours: nothing, but for IPv6, where each may have half a network."""
    if ":" not in address:
        return address
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:8]


def _is_whole(data):
    # Whether a line has come, or a record of TLS, whose first byte begins no line.
    is_record = len(data) > 4 and 0x14 <= data[0] <= 0x17
    return b"\n" in data or is_record and len(data) >= 5 + int.from_bytes(data[3:5], "big")


class Strangers:
    """Who has connected and not said hello: there is place for so many, and who comes does not wait for it."""

    # Only who waits for the other side stands here. A stranger's thread takes it out as soon as a whole line has come,
    # even before it is read, and puts it back if that was no hello. So whoever has said hello never has to go; and
    # since the oldest goes of those whose address has most, a flood from one address makes place for itself.
    #
    # Any thread may call these. The lock is not the room's, and is held over nothing that waits.

    def __init__(self, limited=True):
        self.lock = threading.Lock()
        self.count, self.waiting = 0, {}  # network: {stranger: None}, the oldest first
        self.joins = {} if limited else None  # network: the Allowance of those who come in from there

    def add(self, stranger):
        """Take one up who waits for the other side."""
        with self.lock:
            neighbours = self.waiting.setdefault(stranger.network, {})
            self.count += stranger not in neighbours
            neighbours.setdefault(stranger)
            while self.count > STRANGERS and self._dismiss_one():
                pass

    def remove(self, stranger):
        """Strike one out who is served, or gone."""
        with self.lock:
            self._remove(stranger)

    def _remove(self, stranger):
        neighbours = self.waiting.get(stranger.network, ())
        if stranger in neighbours:
            del neighbours[stranger]
            self.count -= 1
            if not neighbours:
                del self.waiting[stranger.network]

    def dismiss_one(self):
        """Let one go, if there is anybody who may have to; returns whether there was."""
        with self.lock:
            return self._dismiss_one()

    def _dismiss_one(self):
        most = max(self.waiting.values(), key=len, default=())
        for stranger in itertools.islice(most, STRANGERS_SEEN):
            if not stranger.is_heard():
                self._remove(stranger)
                stranger.dismiss()
                return True
        return False

    def wait_for_turn(self, network):
        """Let somebody come in from there, a little later if many do; raises a ChatError if it is far too many."""
        if self.joins is None:
            return
        with self.lock:
            allowance = self.joins[network] = self.joins.pop(network, None) or Allowance(*JOINS)
            if len(self.joins) > JOINS_KNOWN:
                del self.joins[next(iter(self.joins))]
            wait = allowance.spend(1)
            if wait > RATE_AHEAD:
                allowance.spend(-1)
                raise ChatError("too many come in from your address at once; try again in a minute", "full")
        time.sleep(wait)


class Stranger:
    """A connection whose hello has not come, and the time that it has for it."""

    __slots__ = "out", "network", "others", "reader", "until", "names"

    def __init__(self, out, address, others):
        self.out, self.network, self.others = out, network_of(address), others
        self.reader = None  # the socket that its thread receives from
        self.until, self.names = time.monotonic() + HELLO_SECONDS, 0  # how many names were refused
        others.add(self)

    def recv(self, size):
        """What the other side sends, as a socket returns it, now and when the hello has come."""
        if self.until is None:
            return self.reader.recv(size)
        self.others.add(self)
        self.reader.settimeout(self.left())
        seen = self.reader.recv(size, socket.MSG_PEEK)
        if _is_whole(seen):
            self.others.remove(self)
        return seen and self.reader.recv(len(seen))

    def left(self):
        """The seconds that it still has; raises an OSError if there are none."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise socket.timeout
        return left

    def try_again(self):
        """Give it time to think of another name, though not for ever."""
        self.names += 1
        if self.names <= NAME_TRIES:
            self.until = time.monotonic() + HELLO_SECONDS

    def come_in(self):
        """It is none any more."""
        self.others.remove(self)
        self.until = None

    def is_heard(self):
        """Whether a line of it has come that its thread has not got round to."""
        try:
            return _is_whole(self.out.recv(HELLO_BYTES, socket.MSG_PEEK))
        except OSError:
            return False

    def dismiss(self):
        """Break it off, which wakes its thread; for others than that."""
        with contextlib.suppress(OSError):
            self.out.shutdown(socket.SHUT_RDWR)

    def linger(self, out):
        """End it, slowly: closing on unread lines would take the last answer from the other side."""
        until = time.monotonic() + ENDING_SECONDS / 2
        with contextlib.suppress(Exception):
            self.others.add(self)
            out.shutdown(socket.SHUT_WR)
            for _ in range(64):
                self.reader.settimeout(max(0.01, until - time.monotonic()))
                if not self.reader.recv(READ_BYTES[1]) or time.monotonic() > until:
                    break
        self.others.remove(self)


def open_door(room, member, stranger):
    """Wait for a first byte, and for a handshake; returns what to receive with, None if that is all."""
    # What is not meant for this room hears one line that tells nothing of it. Silence stays silence.
    reader = stranger.reader
    reader.settimeout(stranger.left())
    first = reader.recv(1, socket.MSG_PEEK)
    encrypted = first == b"\x16"  # how the first message of TLS begins
    if encrypted and room.private:
        tls = Tls(room.gate.identity.context, True)
        tls.shake_hands(reader, stranger.until)
        member.out = Sealed(member.out, tls)
        return Sealed(stranger, tls).recv
    if first and encrypted == room.private:
        return stranger.recv
    if first:
        error = (ChatError("this room is private: python3 chat.pyz join CODE@ADDRESS", "no-key") if room.private else
                 ChatError("this room is open, and nothing in it is encrypted: join without a code"))
        member.out.send(encode({**room.error(error), "t": 0.0}))
    return None


def await_hello(room, member, stranger, receive):
    """Wait for the hello that makes a member; returns what came behind it, None if it left or has to."""
    # Whatever may speak something else, as a browser does on behalf of any page that is open in it, has told so with
    # its first line, and nothing that follows is looked at: some of it might be what a page would like to have said.
    refused, rest = 0, b""
    while True:
        data = receive(HELLO_BYTES + 1 - len(rest))
        if not data:
            return None
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > HELLO_BYTES or not (refused or lines) and rest.strip()[:1] not in (b"", b"{"):
            lines.append(rest)  # though it has no end; there is none to wait for
        for number, line in enumerate(lines, 1):
            error = _introduce(room, member, stranger, line.decode(errors="surrogateescape"))
            if not error:
                return b"\n".join([*lines[number:], rest])
            refused += 1
            senseless = refused == 1 and isinstance(error, NoRequest) or len(line) > HELLO_BYTES
            if senseless or refused == REFUSED_LINES or error.code in FINAL:
                return None
            if error.code in ("bad-name", "name-taken"):
                stranger.try_again()


def _introduce(room, member, stranger, line):
    # Returns the ChatError that was sent back, None if this line has made a member.
    request = {}
    try:
        if len(line) > HELLO_BYTES:
            raise NoRequest(f"a line before the hello has at most {HELLO_BYTES:,} bytes", "too-long")
        request = decode_request(line)
        if room.private:
            room.gate.check(room, stranger.network, request)
        if request["do"] != "hello":
            raise ChatError('say who you are first: {"do":"hello","name":"bob"}', "not-yet")
        if room.seat_of(request) is None:
            stranger.others.wait_for_turn(stranger.network)
        request["missed"] = room.find_missed(request)  # whatever a client may have called so
        wait_for_rounds(room.fanout)
        room.ask(member, request)
    except ChatError as error:
        # Nobody else sends to it yet, and a socket that is full already hears nothing. How old the session is, only
        # people inside need to know.
        reply = encode({**room.error(error, request.get("id", error.id)), "t": 0.0})
        if member.out.send(reply) < len(reply):
            raise ConnectionAbortedError("it does not listen") from None
        return error
    stranger.come_in()
    return None


def serve_member(room, member, receive, rest, rate):
    """Carry out the requests of a member until it leaves; this rest of what came with its hello is the first."""
    allowance, refusals = Allowance(rate) if rate else None, Refusals()
    for block in map(lines_of, blocks(_metered(room, member, receive, allowance), LINE_BYTES, rest)):
        if member.left:
            continue  # but read on, as a stranger lingers
        step = rate or len(block)
        for start in range(0, len(block), step):
            part = block[start:start + step]
            wait_for_rounds(room.fanout)
            cost = act(room, member, part, refusals)
            room.flush()
            if allowance:
                ahead = len(block) - start - len(part)
                _hold_back(room, member, allowance.spend(cost), ahead / rate)


def _metered(room, member, receive, allowance):
    # What receives for somebody who has only so much of an allowance: bytes that never become a line cost as well.
    def receive_slowly(size):
        data = receive(size)
        _hold_back(room, member, allowance.spend(len(data) / REQUEST_BYTES), 0)
        return data

    return receive_slowly if allowance else receive


def _hold_back(room, member, wait, ahead):
    # Whoever asks too much is read later, and nothing else: its own system's buffers fill up and make it wait.
    if wait + ahead > RATE_AHEAD:
        _remove(room, member, f"you sent more than {RATE_AHEAD:.0f} seconds ahead of the limit")
        room.flush()
    while wait > 0 and not member.left:
        time.sleep(min(wait, 0.5))
        wait -= 0.5


def _remove(room, member, reason):
    room.ask(member, {"do": "leave", "why": "kicked", "text": reason})


def read_guest(room, member, stranger, rate):
    """The thread of one connection, from its first byte to its last."""
    why, stranger.reader = "lost", socket.socket(member.out.family, member.out.type, member.out.proto,
                                                 fileno=member.out.fileno())
    try:
        receive = open_door(room, member, stranger)
        rest = await_hello(room, member, stranger, receive) if receive else None
        if rest is not None:
            stranger.reader.settimeout(SILENCE_SECONDS if member.back else IDLE_SECONDS)
            room.flush()
            serve_member(room, member, receive, rest, rate)
        why = "left"
    except OSError:
        pass  # the connection broke, or said nothing for too long: "lost" says so
    except Exception as error:
        room.fail(error)
    finally:
        if member.seat is None:
            stranger.linger(member.out)
        stranger.reader.detach()
        if member.seat is None:
            member.out.close()
        else:
            try:
                room.ask(member, {"do": "lose", "why": why})
            finally:
                room.bury(member)
                room.flush()


class Huddle:
    """Keeps all threads on one processor while many people talk at once."""

    # Threads of one interpreter take turns anyway, and on one processor they hand over for half the price. But
    # there they also wait for whatever else runs on it, so it is done only while it pays, where the scheduler has
    # just put this thread, and for less than a second beyond. Where threads do run at once they stay apart.

    def __init__(self):
        self.calls, self.at = 0, time.monotonic()
        self.before = None  # the processors that the threads are given back, while they huddle
        self.able = hasattr(os, "sched_setaffinity") and getattr(sys, "_is_gil_enabled", lambda: True)()

    def look(self, calls):
        """Huddle or spread, by how often somebody had something new so far; returns when to look again."""
        now = time.monotonic()
        if self.able and now - self.at >= CROWD_SECONDS:
            crowded, self.calls, self.at = calls - self.calls > CROWD * (now - self.at), calls, now
            if crowded != bool(self.before):
                with contextlib.suppress(OSError):
                    self._change(crowded)
        return CROWD_SECONDS if self.before else None

    def _change(self, crowded):
        processors, self.before = self.before, None
        if crowded:
            with open("/proc/thread-self/stat") as file:
                processors = {int(file.read().rpartition(")")[2].split()[36])}
            self.before = os.sched_getaffinity(0)
        # Twice, since threads are born where their maker is, which may not have been reached yet.
        for thread in itertools.chain.from_iterable(os.listdir("/proc/self/task") for _ in range(2)):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), processors)


class Caretaker:
    """The one thread that waits: for full sockets, for farewells to end, to record again."""

    # Of the fan-out it touches anything only with the baton. A socket that it watches is closed by nobody else, or
    # the system might give its number to another while the selector still waits: such members come to `graves`.

    def __init__(self, room):
        self.room, self.fanout, self.stopped = room, room.fanout, False
        self.selector = selectors.DefaultSelector()
        # Windows' select takes 512 sockets; who finds no place is tried again at short intervals.
        self.places = 500 if isinstance(self.selector, selectors.SelectSelector) else 1 << 20
        self.unplaced = []
        self.bell, self.ear = socket.socketpair()
        self.bell.setblocking(False)
        self.ear.setblocking(False)
        self.selector.register(self.ear, selectors.EVENT_READ)
        self.huddle = Huddle()
        self.thread = threading.Thread(target=self._run, name="caretaker", daemon=True)
        self.fanout.wake = self.wake

    def wake(self):
        """Have the caretaker look at the room; may be called by any thread."""
        with contextlib.suppress(OSError):  # full of calls already, or closed at the end
            self.bell.send(b"!")

    def stop(self, seconds):
        """Have the thread close the recording and end, and wait for it, but no longer than this."""
        self.stopped = True
        self.wake()
        self.thread.join(seconds)

    def _run(self):
        wait = 0.0
        while not self.stopped:
            try:
                wait = self._turn(wait)
            except Exception as error:
                self.fanout.spoken.fail(error)
                time.sleep(AGAIN_SECONDS)
                wait = 0.0
        with self.fanout.baton:
            if self.fanout.recording:
                self.fanout.recording.close()
        for thing in (self.selector, self.bell, self.ear):
            thing.close()

    def _turn(self, wait):
        ready = [key.data for key, _ in self.selector.select(wait)]
        with contextlib.suppress(BlockingIOError):  # the bell has been heard
            while self.ear.recv(4096):
                pass
        with self.fanout.baton:
            for member in filter(None, ready + self.unplaced):
                self.fanout.spare(member, self.fanout.push, member)
            self._watch()
            due = self.fanout.look_after()
        held = self.room.release()
        self.fanout.flush()
        waits = [due, held, self.huddle.look(self.fanout.calls), AGAIN_SECONDS if self.unplaced else None]
        return min((seconds for seconds in waits if seconds is not None), default=None)

    def _watch(self):
        fanout = self.fanout
        for member in [key.data for key in self.selector.get_map().values() if key.data and not key.data.lag]:
            member.watched = False
            fanout.spare(member, self.selector.unregister, member.out)
        waiting, self.unplaced, fanout.stuck = self.unplaced + fanout.stuck, [], []
        for member in waiting:
            fanout.spare(member, self._place, member)
        graves, fanout.graves = fanout.graves, []
        for member in graves:
            fanout.spare(member, member.out.close)

    def _place(self, member):
        if not member.lag:
            member.watched = False
        elif len(self.selector.get_map()) < self.places:
            self.selector.register(member.out, selectors.EVENT_WRITE, member)
        else:
            self.unplaced.append(member)


# === screen =======================================================================================
# How lines get to a terminal or into a pipe, and what is typed there to whom it concerns. Pipe and Screen
# have the same methods: whoever has one of them as its `screen` need not know which. A line is pieces, or
# an Unrendered. Colours are written only where a person looks, and has not asked for none.


def is_terminal(*streams):
    """Whether a person sits at these streams, with a terminal that can do more than print."""
    return all(stream and stream.isatty() for stream in streams) and os.environ.get("TERM") != "dumb"


def wants_colour(stream):
    """Whether to write colours to this stream."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and _windows_understands_escapes()


def _windows_understands_escapes():
    if sys.platform == "win32":
        import ctypes

        console, mode = ctypes.windll.kernel32, ctypes.c_ulong()
        handle = console.GetStdHandle(-11)
        return bool(console.GetConsoleMode(handle, ctypes.byref(mode))
                    and console.SetConsoleMode(handle, mode.value | 4))
    return True


def silence(stream):
    """Lead what is still written to a closed pipe, even by Python at its end, to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Unrendered(collections.namedtuple("Unrendered", "size render dear", defaults=(False,))):
    """A line that is turned into pieces, by calling `render`, only if it is printed: a flood mostly is not."""

    # Dear are the lines that somebody waits for, such as their own: of these the newest are not skipped.

    @classmethod
    def of(cls, line):
        """The same line, which may consist of pieces already."""
        return line if type(line) is cls else cls(len(plain(line)), line.copy)


class Pipe:
    """What there is instead of a Screen where nobody sits at a terminal: plain lines in, plain lines out."""

    # `run` calls `take`, in the main thread, with each line that comes in, and with None at their end; without
    # `take` nothing is read. `show` and `end` may be called by any thread, `end` by a signal handler, too.

    attended = False  # nobody can be asked here

    def __init__(self, stream, take=None):
        self.stream, self.take, self.over = stream, take, False
        self.paint = coloured if wants_colour(stream) else plain
        self.typed, self.space = queue.SimpleQueue(), threading.Semaphore(AHEAD)

    def run(self):
        """Hand on what comes in until `end` is called."""
        if self.take:
            threading.Thread(target=self._read, name="stdin", daemon=True).start()
        while not self.over:
            # No lock to wait for: a signal may come, and call `end`, while this thread holds it. A SimpleQueue
            # is made for that. In slices, since some systems do not interrupt a longer wait.
            with contextlib.suppress(queue.Empty):
                line = self.typed.get(timeout=0.2)
                self.space.release()
                if not self.over:
                    self.take(line)

    def _read(self):
        # Not through sys.stdin, whose lock a thread that never returns would hold at the end of the program.
        raw = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        pieces = itertools.chain(iter(lambda: raw.read(READ_BYTES[1]) or b"", b""), [b"\n"])  # may lack at the end
        for block in blocks(lambda size: next(pieces, b""), LINE_BYTES):
            if block is None:
                self.show([[("error", f"!! a line of the input has more than {LINE_BYTES:,} bytes, and was left out")]])
            for line in (block or b"").split(b"\n")[:-1]:
                self.space.acquire()  # or a large file would be in memory before it is said
                self.typed.put(line.decode("utf-8-sig", "replace").rstrip("\r"))
        self.typed.put(None)

    def show(self, lines, bell=False):
        """Print these lines as one write, as long as somebody takes them; a bell is for people."""
        pieces_of_lines = [Unrendered.of(line).render() for line in lines]
        try:
            if self.stream:  # else this process was given nothing to print to
                self.stream.write("".join([self.paint(pieces) + "\n" for pieces in pieces_of_lines if pieces]))
                self.stream.flush()
        except OSError:
            silence(self.stream)
            if self.take:  # whoever read the answers has enough; a room goes on, though nobody watches
                self.end()

    def refresh(self, seconds=0.0):
        """Draw prompt and status again: there are none."""

    def give_back(self, text):
        """Give a line back that was refused: the lines around it have said so."""

    def end(self):
        """Let `run` return."""
        self.over = True
        self.typed.put(None)


class Backlog:
    """The lines that wait for a terminal: no more than a person may want to see, the rest is counted."""

    # A terminal is slower than a room can be. It is given batches, each as large as it takes without
    # holding up a key. Between it and us the system keeps some kilobytes, so a write that has to wait at
    # all means that a key would wait much longer: then batches halve, and as the terminal's speed is about
    # known from then on, grow only slowly towards it. A Screen calls all this, holding its lock.

    def __init__(self, skip_note=""):
        self.waiting, self.size = collections.deque(), 0
        self.skipped, self.skip_note = 0, skip_note  # lines since the last batch; what is said behind their count
        self.kept = collections.deque([], DEAR_LINES)  # the newest dear lines among them
        self.bell, self.columns = False, 0  # the columns of the terminal just now
        self.batch, self.growth = SCREEN_BATCH[0], 4  # characters; it may grow by one part in so many
        self.paint = plain if os.environ.get("NO_COLOR") else coloured

    def put(self, lines, bell=False):
        """Take these lines in, and let go of the oldest where it gets too much."""
        for line in map(Unrendered.of, lines):
            self.waiting.append(line)
            self.size += line.size
        self.bell = self.bell or bell
        while len(self.waiting) > SCREEN_LINES or self.size > SCREEN_CHARACTERS:
            line = self._next()
            self.skipped += 1
            if line.dear and line.size < SCREEN_CHARACTERS // DEAR_LINES:
                self.kept.append(line)

    def _next(self):
        line = self.waiting.popleft()
        self.size -= line.size
        return line

    def take(self, columns=sys.maxsize):
        """The next batch: one text, for a terminal of so many columns that does nothing at the end of a row."""
        self.columns = columns
        texts, size, skipped = [], 0, self.skipped - len(self.kept)
        if skipped:
            texts.append(self._text([("system", f"… {skipped:,} lines skipped{self.skip_note}")]))
        texts += [self._text(line.render()) for line in self.kept]
        while self.waiting and size < self.batch:
            texts.append(self._text(self._next().render()))
            size += len(texts[-1])
        texts.append("\a" * self.bell)
        self.skipped, self.bell = 0, False
        self.kept.clear()
        return "".join(texts)

    def _text(self, pieces):
        return self.paint(break_rows(pieces, self.columns)).replace("\n", "\r\n") + "\r\n" if pieces else ""

    def adapt(self, size, seconds):
        """Make the next batch fit what writing one of this size has taken."""
        if seconds > BATCH_SECONDS:
            self.batch, self.growth = max(self.batch // 2, SCREEN_BATCH[0] // 8), 32
        elif size >= self.batch:
            self.batch = min(self.batch + self.batch // self.growth, SCREEN_BATCH[1])


class Screen:
    """A terminal: an input line that is never broken, and above it what arrives, in batches."""

    # One prompt for the whole session: each new one would start and end an event loop, and lose what is
    # printed in between. Enter therefore takes the text and leaves the prompt standing.
    #
    # The functions it is given are called in the main thread: `take` with each entered line, which stays
    # if it returns False; `prompt` and `status` for the texts before and below the line; `complete` with
    # what stands before the cursor, for (how much of it is completed, by which words). `show`, `refresh`,
    # `give_back` and `end` may be called by any thread, and never wait. Without `take` nothing can be typed
    # and keys act by themselves, until `ask` opens the line.
    #
    # What it knows of prompt_toolkit beyond its documentation; to be looked at with each new version:
    #   PROMPT_TOOLKIT_NO_CPR      not to ask the terminal for the cursor's position at each batch: slow ones
    #                              answer late, and some into the input line
    #   layout.container.children  our bar is put behind them: the library's own toolbar needs that position
    #   app.input.cooked_mode      replaced: run_in_terminal would switch to it, and the terminal then shows keys
    #                              by itself, in the middle of what is printed
    #   default_buffer.read_only, app.future, pre_run (within the loop), output.write_raw, and the name of
    #   NoConsoleScreenBufferError in `on_terminal`

    attended = True  # there is somebody who can be asked

    def __init__(self, take, prompt, status, complete, keys, skip_note=""):
        # Imported here, since serve, replay and help start without it.
        os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")
        import asyncio
        from prompt_toolkit import PromptSession
        from prompt_toolkit.application import run_in_terminal
        from prompt_toolkit.completion import Completer, Completion
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.layout import FormattedTextControl, Window
        from prompt_toolkit.shortcuts import CompleteStyle

        class WordCompleter(Completer):
            def get_completions(self, document, event):
                start, words = complete(document.text_before_cursor)
                return [Completion(clean_row(word), -start) for word in words]

        self.take, self.asyncio, self.run_in_terminal = take, asyncio, run_in_terminal
        self.lock, self.backlog = threading.Lock(), Backlog(skip_note)
        self.loop, self.printing = None, False  # the loop of the prompt, and whether it is printing; under the lock
        self.ending, self.over = False, False  # asked to end; the input line is gone
        self.question, self.answer = "", None  # what is asked just now, and who is given the answer
        self.typing = Condition(lambda: bool(take or self.question))
        self.session = PromptSession(
            lambda: f"{self.question}: " if self.question else prompt(), multiline=True,
            key_bindings=self._bindings(keys), completer=WordCompleter(),
            complete_style=CompleteStyle.READLINE_LIKE, complete_while_typing=False, reserve_space_for_menu=0,
            prompt_continuation=lambda width, row, wrapped: "" if wrapped else "... ", erase_when_done=True)
        self.session.default_buffer.read_only = ~self.typing
        self.session.layout.container.children.append(Window(
            FormattedTextControl(status), dont_extend_height=True, style="class:bottom-toolbar",
            always_hide_cursor=True))
        self.session.app.input.cooked_mode = contextlib.nullcontext

    def _bindings(self, keys):
        from prompt_toolkit.filters import Condition, is_searching
        from prompt_toolkit.key_binding import KeyBindings

        bindings, asked = KeyBindings(), Condition(lambda: bool(self.question))
        for idle in (["<any>"], ["c-r"], ["c-s"], ["c-q"], ["c-v"], ["escape", "enter"]):  # else it would be typed
            bindings.add(*idle, filter=~self.typing)(lambda event: None)
        bindings.add("c-o")(lambda event: None)  # would take the input line away
        bindings.add("enter", filter=self.typing & ~is_searching)(self._enter)
        bindings.add("escape", "enter", filter=self.typing & ~asked)(
            lambda event: event.current_buffer.insert_text("\n"))
        bindings.add("c-c", filter=asked)(self._answer)
        bindings.add("escape", filter=asked, eager=True)(self._answer)  # it may begin no other key here
        for key, function in keys.items():
            bindings.add(key, filter=~asked)(lambda event, function=function: function())
        return bindings

    def run(self):
        """Keep the input line up until `end` is called, or Ctrl+C or Ctrl+D pressed."""
        self._print_rest()  # what is here by now needs no input line to be drawn around it
        with contextlib.suppress(KeyboardInterrupt, EOFError):
            self.session.prompt(pre_run=self._started)
        self.over = True
        self._print_rest()

    def _started(self):
        with self.lock:
            self.loop, self.printing = self.asyncio.get_running_loop(), True
        if self.ending:
            self._exit()
        self._start_printing()

    def _enter(self, event):
        buffer = event.current_buffer
        text = buffer.text.rstrip("\n")
        if self.question:
            self._answer(event, text)
        elif self.take(text) is not False:
            buffer.append_to_history()
            buffer.reset()

    def ask(self, question, answer):
        """Have a line typed, and call `answer` with it unless the person thinks better of it."""
        self.answer, self.question = answer, question
        self.refresh()

    def _answer(self, event, text=None):
        self.question = ""
        event.current_buffer.reset()
        if text is not None:
            self.answer(text)

    def _call(self, function, *arguments):
        # The loop may end at any moment; then there is no input line left to change.
        if self.loop:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(function, *arguments)

    def refresh(self, seconds=0.0):
        """Draw the prompt and the status again, now or so much later."""
        app = self.session.app
        if seconds:
            self._call(lambda: self.loop.call_later(seconds, app.invalidate))
        else:
            self._call(app.invalidate)

    def columns(self):
        """How wide the terminal is."""
        return self.session.app.output.get_size().columns

    def give_back(self, text):
        """Put a text into the input line if that is empty, else where arrow-up finds it."""
        self._call(self._give_back, text)

    def _give_back(self, text):
        buffer = self.session.default_buffer
        if buffer.text:
            buffer.history.append_string(text)
        else:
            buffer.insert_text(text)

    def end(self):
        """Take the input line away and let `run` return."""
        self.ending = True
        self._call(self._exit)

    def _exit(self):
        app = self.session.app
        if app.future and not app.future.done():
            app.exit(result="")

    def show(self, lines, bell=False):
        """Have these lines printed above the input line."""
        with self.lock:
            self.backlog.put(lines, bell)
            begin = bool(self.loop) and not self.printing  # waking the loop for each line would cost most
            self.printing = self.printing or begin
        if self.over:
            self._print_rest()
        elif begin:
            self._call(self._start_printing)

    def show_all(self, lines):
        """The same, for a thread that can wait while so much is waiting that something would be skipped."""
        waiting = self.backlog
        while not self.over and (len(waiting.waiting) > SCREEN_LINES // 2 or waiting.size > SCREEN_CHARACTERS // 2):
            time.sleep(SCREEN_SECONDS)
        self.show(lines)

    def _start_printing(self):
        if not self.session.app.is_done:
            self.session.app.create_background_task(self._keep_printing())

    async def _keep_printing(self):
        while self.printing:
            await self.run_in_terminal(self._print)
            await self.asyncio.sleep(SCREEN_SECONDS)
            with self.lock:
                self.printing = bool(self.backlog.waiting)

    def _print_rest(self):
        while self.backlog.waiting:
            self._print()

    def _print(self):
        with self.lock:
            text = self.backlog.take(self.columns())
        output, start = self.session.app.output, time.monotonic()
        output.write_raw(text)
        output.flush()
        self.backlog.adapt(len(text), time.monotonic() - start)


def on_terminal(make, *arguments):
    """What this makes on a terminal, with prompt_toolkit; the ChatError says why it cannot."""
    try:
        return make(*arguments)
    except ImportError:
        raise ChatError("the package prompt_toolkit is missing") from None
    except Exception as error:  # a class that exists on Windows only, so it is told by its name
        if type(error).__name__ != "NoConsoleScreenBufferError":
            raise
        raise ChatError("this is no terminal window") from None


def open_screen(*arguments):
    """A Screen that is given these; None where there cannot be one, with a hint if one might expect it."""
    if not is_terminal(sys.stdin, sys.stdout):
        return None
    try:
        return on_terminal(Screen, *arguments)
    except ChatError as error:
        print(f"({error}, so the input line is a plain one)")
        return None


def obey(commands, subject, text):
    """Do what an entered line asks: a command, or something to say; returns False if it is refused here."""
    # Where there is a /say, that says what begins with a slash; elsewhere a second slash does.
    doubled = text.startswith("//") and "say" not in commands
    try:
        if not is_utf8(text):
            raise ChatError("this is not text: it holds half a character")
        if text.startswith("/") and not doubled:
            run_command(commands, subject, text)
        elif text and not text.isspace():
            subject.say(text[1:] if doubled else text)
    except ChatError as error:
        subject.screen.show([[("error", f"!! {error}")]])
        return False
    return None


def ask(question, default=""):
    """Ask in a terminal; Enter takes the default."""
    try:
        return input(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
    except EOFError:
        raise ChatError("there was no answer", "no-answer") from None


# === server =======================================================================================
# `serve`: sockets that listen, an accept loop that reads nothing, a thread per connection, and the
# console, which is one more reader of the log: it takes what came in batches, and in a flood counts
# what it does not show, since printing in the path of the messages would halve their speed.


def listen(host, port):
    """A listening socket on this address; an empty host means all addresses of this computer."""
    if not host and socket.has_dualstack_ipv6():
        family, address = socket.AF_INET6, ("", port)
    else:
        family, _, _, _, address = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if not host and family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # On Windows SO_REUSEADDR would share the port.
        listener.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR), 1)
        listener.bind(address)
        listener.listen(1024)  # a whole class that arrives at once must not wait for a second SYN
    except OSError:
        listener.close()
        raise
    return listener


def open_listener(host, port):
    """A listening socket, or the ChatError that tells how to get one."""
    try:
        return listen(host, port)
    except (socket.gaierror, UnicodeError):
        raise ChatError(f"{host} is no address that this computer can find") from None
    except OSError as error:
        what = {errno.EADDRINUSE: "is taken", errno.EACCES: "is not for everyone"}.get(error.errno)
        if not what:
            raise ChatError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        free = _free_port(host, port)
        raise ChatError(f"port {port} {what}; port {free} is free: add --port {free}") from None


def _free_port(host, port):
    for other in [*range(max(port + 1, 1024), min(port + 20, 65536)), 0]:
        with contextlib.suppress(OSError), listen(host, other) as listener:
            return listener.getsockname()[1]
    return PORT


def tune(sock):
    """Set what every connection needs: lines leave at once, and a dead peer is noticed within half a minute."""
    with contextlib.suppress(OSError):  # none of it is vital
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPALIVE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3),
                              ("TCP_USER_TIMEOUT", int(1000 * SILENCE_SECONDS))):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


class Server:
    """A room that listens: the accept loop, the threads of the connections, the caretaker."""

    def __init__(self, room, listener, rate=RATE):
        self.room, self.listener, self.rate = room, listener, rate
        self.address = listener.getsockname()[:2]
        self.caretaker = Caretaker(room)
        self.strangers = Strangers(bool(rate))
        self.guests = set()  # members, and who may become one, whose threads run
        self.warned = -60.0  # when the console was last told that there is no room for more

    def start(self):
        """Begin to serve; returns at once."""
        self.caretaker.thread.start()
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def _accept(self):
        while not self.room.closed:
            try:
                self._accept_one()
            except Exception as error:
                self.room.fail(error)
                time.sleep(AGAIN_SECONDS)

    def _accept_one(self):
        try:
            out, address = self.listener.accept()
        except OSError as error:
            if not self.room.closed and error.errno != errno.ECONNABORTED:
                self._too_many(error.strerror)
            return
        out.setblocking(False)
        tune(out)
        guest = Member(out, re.sub(r"^::ffff:(?=[0-9.]+$)", "", address[0]))
        stranger = Stranger(out, guest.address, self.strangers)
        self.guests.add(guest)
        try:
            # Without a Thread object, which would cost each person a quarter more memory.
            _thread.start_new_thread(self._run_guest, (guest, stranger))
        except (RuntimeError, MemoryError):
            self.guests.discard(guest)
            self.strangers.remove(stranger)
            out.close()
            self._too_many("no more threads")

    def _too_many(self, reason):
        # Who is inside stays served; the pause keeps the loop from spinning, and gives who has to go the time for it.
        now = time.monotonic()
        if now - self.warned >= 60:
            self.warned = now
            self.room.ask(self.room.host, {"do": "notice", "text": "this computer cannot take more connections at "
                                                                   f"the moment ({reason})"})
            self.room.flush()
        time.sleep(0.005 if self.strangers.dismiss_one() else 0.2)

    def _run_guest(self, guest, stranger):
        try:
            read_guest(self.room, guest, stranger, self.rate)
        except Exception as error:
            self.room.fail(error)
        finally:
            self.strangers.remove(stranger)
            self.guests.discard(guest)

    def stop(self):
        """End the room for everyone: their last line, the recording closed, the threads gone."""
        # This is the main thread, which hears the signals: it must not wait for a disk, so others carry out the end.
        if self.room.closed:
            return
        self.room.ask(self.room.host, {"do": "end"})
        self.caretaker.wake()
        with contextlib.suppress(OSError):  # wakes accept; where it does not, the thread is a daemon
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        deadline = time.monotonic() + ENDING_SECONDS + 0.2
        self._wait_for_guests(deadline - 0.3)
        self._call_out()
        self._wait_for_guests(deadline, late=True)
        self.caretaker.stop(deadline + 0.2 - time.monotonic())

    def _wait_for_guests(self, until, late=False):
        fanout = self.room.fanout
        while (self.guests or fanout.farewells or fanout.unsent) and time.monotonic() < until:
            self._hurry(late)
            time.sleep(0.01)

    def _call_out(self):
        # Who is in step still has not been sent the end, since somebody with the baton waits for a disk that hangs, and
        # before that goes on we are gone.
        log = self.room.log
        lines = b"".join(log.pending) or log.tail.data
        for send in list(self.room.fanout.instep.values()):
            with contextlib.suppress(OSError):
                send(lines[lines.rfind(b"\n", 0, -1) + 1:])

    def unrecorded(self):
        """How many lines the recording still lacks."""
        log, recording = self.room.log, self.room.fanout.recording
        return log.n - log.tail.last + recording.backlog.count(b"\n") if recording else 0

    def _hurry(self, late):
        # Who never said hello has no farewell to wait for; at the end nobody has.
        for guest in self.guests.copy():
            if late or guest.seat is None:
                with contextlib.suppress(OSError):
                    guest.out.shutdown(socket.SHUT_RDWR)


def new_recording(path, head):
    """A recording into a new file, in a folder that is made for it."""
    make_folder(path)
    return Recording(path, head)


def _encode_again(event):
    # Another program may have saved the file, in its own way; what is sent looks as if it had been written here.
    try:
        return encode(event)
    except ValueError:  # a field that nobody knows holds what is no text or no number
        return b""


def recover(path):
    """What a server needs to go on in its own session file: its session, n and t, people, end, size."""
    # The whole file is looked through once, which also finds who was in the room when a server died. Its end, for
    # the history of newcomers, is whole events only.
    view, back = View(), set()
    with open(path, "rb") as file:
        lines = Lines(file)
        others = itertools.chain.from_iterable(iter(lines.grow, None))
        i, session = next(others, (0, {}))
        if i or session.get("ev") != "session":
            raise ChatError(f"{path} is not a session that a server recorded; choose another name")
        check_version(session)
        for i, event in others:
            view.take(event)
            if event.get("ev") == "join" and event.get("back") is True:
                back.add(event["n"])
        first = max(1, bisect.bisect_left(lines.offsets, lines.end - HISTORY_BYTES))
        file.seek(lines.offsets[first] if first < len(lines) else lines.end)
        tail = file.read(lines.end - file.tell()).split(b"\n")[:-1]
    events = [event for event in map(event_of, tail) if event and "ev" in event and COUNT.fits(event.get("n"))]
    last = events[-1] if events else {"n": lines.numbers[-1], "t": lines.moments[-1]}
    if last["n"] > LAST_N or last["t"] > LAST_T:
        raise ChatError(f"the numbers in {path} are too high to go on from; choose another name")
    people = [(who, seat, seat in back) for who, seat in view.people.items()]
    return session, last["n"], last["t"], people, b"".join(map(_encode_again, events)), lines.end


def open_room(name, log, history, max_people):
    """A room, recorded if `log` names a file: a new one, or its own session to go on in."""
    room = Room(name, history, max_people)
    if log is None:
        return room
    make_folder(log)
    recording = Recording(log, room.log.session_line, new=False)
    try:  # nobody else writes to it from here on; a file that was empty has its head by now, and is read like any other
        session, n, t, people, tail, size = recover(log)
        room.log.resume(session, n, t, tail)
        recording.go_on(size, room.log.session_line)
    except (ChatError, OSError) as error:
        recording.close()
        raise error if type(error) is ChatError else ChatError(f"cannot go on in {log}: {error.strerror}") from None
    room.fanout.recording = recording
    room.secrets = Secrets(session["id"])
    known = room.secrets.keep(n)
    for who, seat, back in people:  # the server died with them inside
        room.ask(room.host, {"do": "gone", "who": who, "seat": seat, "back": back and known})
    room.flush()
    return room


def lan_addresses():
    """The addresses under which other machines on the networks around reach this one."""
    # Asking the system which of its addresses it would use to get there sends nothing.
    found = []
    for target in ("192.0.2.1", "192.168.254.254", "10.254.254.254", "172.31.254.254", "169.254.254.254"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            found.append(probe.getsockname()[0])
    if sys.platform == "win32":  # knows all of them without asking a name server
        with contextlib.suppress(OSError):
            found += socket.gethostbyname_ex(socket.gethostname())[2]
    return [address for address in dict.fromkeys(found) if not address.startswith(("127.", "0."))]


def ways_in(room, address):
    """What others type to come into this room, one line for each address of this computer that may be the right one."""
    host, port = address
    hosts = [f"[{host}]" if ":" in host else host]
    if host in ("::", "0.0.0.0"):
        hosts = lan_addresses() or ["ADDRESS-OF-THIS-COMPUTER"]
    code = f"{room.gate.code(room)}@" if room.private else ""
    return [f"{command_line('join')} {code}{host}{'' if port == PORT else f':{port}'}" for host in hosts]


def banner(room, address, everyone):
    """The lines with which a server introduces itself."""
    host, port = address
    name, shown = clean_row(room.log.session["room"]), f"[{host}]" if ":" in host else host
    yield f"chat {__version__}: room {name} listens on {'all addresses' if everyone else shown}:{port}"
    if host in ("127.0.0.1", "::1"):
        yield f"  here type:      {command_line('join')}{'' if port == PORT else f' {shown}:{port}'}"
        yield f"  for others open it to this network:  {command_line('serve --lan')}"
    else:
        yield from (f"  others type:    {line}" for line in ways_in(room, address))
        yield ("  private: encrypted, and only for people with this code; /code new makes another one" if room.private
               else "  open: everybody on this network can come in, and everything can be read on its way")
        yield "  it hangs there? A firewall, or Wi-Fi that keeps machines apart."
    if room.fanout.recording:
        yield f"  recording into  {room.fanout.recording.path}"
    yield "  Ctrl+C ends the room."


_minutes = re.compile("[0-9]{1,4}")


class Console:
    """The server's own view of the room, printed in batches by a thread, and its keyboard if it has one."""

    # `run` is the main thread's. `end` may be called by a signal handler, hence at any moment of it; `insist` only by
    # one. What is asked here is carried out by the caretaker: who waits for a disk hears no signals.

    def __init__(self, room, screen, address=("", PORT)):
        self.room, self.n, self.screen, self.address = room, room.log.n, screen, address
        self.ended, self.stopped = 0.0, False  # when it was asked to end
        self.thread = threading.Thread(target=self._follow, name="console", daemon=True)

    def run(self):
        """Show and obey until `end` is called or the person at the keyboard leaves."""
        # The server accepts by now: loading an input line takes longer than all else.
        self.screen = open_screen(self.take_line, lambda: "> ", self.status, self.complete, {}) or self.screen
        if self.ended:  # meanwhile
            self.screen.end()
        self.thread.start()
        self.screen.run()
        self.ended = self.ended or time.monotonic()

    def end(self):
        """Let `run` return."""
        self.ended = self.ended or time.monotonic()
        self.screen.end()

    def insist(self):
        """Let `run` return; the second time, end at once, whatever is still waited for."""
        if self.ended and time.monotonic() - self.ended > TWICE_SECONDS:
            os._exit(1)
        self.end()

    def stop(self, seconds):
        """Print what is left, once the room is closed, and end the thread, unless the terminal is held back."""
        self.stopped = True
        self.room.fanout.spoken.set()
        self.thread.join(seconds)

    def _follow(self):
        last = False
        while not last:
            self.room.fanout.spoken.wait()
            time.sleep(0 if self.stopped else CONSOLE_SECONDS)
            self.room.fanout.spoken.clear()
            last = self.stopped  # read after the clear, or a stop in between would be slept through
            self._show()

    def _show(self):
        faults, lines = self.room.fanout.spoken.faults, []
        while faults:
            self.say_here(faults.popleft(), "error")
        for chunk in reversed(self.room.since(self.n)):
            lines = chunk.data[:-1].rsplit(b"\n", CONSOLE_LINES)[-CONSOLE_LINES:] + lines
            if len(lines) >= CONSOLE_LINES:
                break
        events = [decode_event(line.decode()) for line in lines[-CONSOLE_LINES:]]
        events = [event for event in events if event["n"] > self.n]
        if events:
            skipped, self.n = events[0]["n"] - self.n - 1, events[-1]["n"]
            texts = [[("system", f"… {skipped:,} lines not shown")]] if skipped else []
            self.screen.show(texts + [render(event, self.room.log.session) for event in events])
            self.screen.refresh()

    # --- the keyboard ---

    def status(self):
        """The text of the bar below the input line."""
        recording = self.room.fanout.recording
        into = f"recording into {recording.path}" if recording else "not recorded"
        return f" {clean_row(self.room.log.session['room'])} | {into} | {len(self.room.people)} here"

    def complete(self, before):
        """What Tab makes of the text before the cursor."""
        return complete(before, CONSOLE_COMMANDS, [member.name for member in list(self.room.people.values())])

    def say_here(self, text, style="system"):
        """Print a line on the console only."""
        self.screen.show([[(style, f"-- {text}")]])

    def ask(self, do, **fields):
        """Ask the room for something, as the host."""
        self.room.ask(self.room.host, {"do": do, **fields})

    def take_line(self, text):
        """Do what an entered line asks; returns False if it must stay in the input line."""
        done = obey(CONSOLE_COMMANDS, self, text)
        self.room.fanout.wake()
        return done

    # --- the commands ---

    def say(self, text):
        """Say something to the room, as the server."""
        text = text.lstrip()
        check_text(text)
        self.ask("talk", said=[{"do": "say", "text": text}])

    def _help(self):
        self.screen.show(help_lines(CONSOLE_COMMANDS))

    def _who(self):
        with self.room.lock:
            people, now = list(self.room.people.values()), self.room.log.seconds()
        self.say_here(f"{len(people)} here")
        for member in people:
            where = f" from {member.address}" if member.away is None else f" (no link for {now - member.away:.0f} s)"
            self.screen.show([[(name_style(member.name), f"   {clean_row(member.name)}"), ("time", where)]])

    def _kick(self, name, minutes="", reason=""):
        if not _minutes.fullmatch(minutes):
            minutes, reason = str(KICK_MINUTES), f"{minutes} {reason}".strip()
        self.ask("kick", to=name, minutes=int(minutes), text=reason if reason and check_text(reason) else None)

    def _mute(self, name, minutes=str(MUTE_MINUTES)):
        if not _minutes.fullmatch(minutes):
            raise ChatError("minutes are a whole number; 0 ends it")
        self.ask("mute", to=name, minutes=int(minutes))

    def _ban(self, name):
        self.ask("ban", to=name)
        self.say_here(f"{clean_row(name)} is banned")

    def _unban(self, name):
        self.ask("unban", to=name)
        self.say_here(f"{clean_row(name)} may come back")

    def _bans(self):
        with self.room.lock:
            now = self.room.log.seconds()
            bans = [ban for ban in self.room.bans if ban.until > now]
        self.say_here(f"{len(bans)} banned or muted")
        for ban in bans:
            left = "until the room ends" if ban.until == FOR_EVER else f"for {time_left(ban.until - now)}"
            where = f", with {ban.address}" if ban.address else ""
            self.screen.show([[(name_style(ban.name), f"   {clean_row(ban.name)}"),
                               ("time", f"{' muted' if ban.mute else ''} {left}{where}")]])

    def _mark(self, text):
        check_text(text)
        self.ask("mark", text=text)

    def _code(self, new=None):
        if not self.room.private:
            raise ChatError("this room is open, and needs no code")
        if new and one_of(["new"], new):
            self.room.secrets.new_key()
            self.say_here("from now on one comes in with this code only; whoever is in stays in")
        for line in ways_in(self.room, self.address):
            self.say_here(line)

    def _log(self, switch):
        room = self.room
        if (one_of(("on", "off"), switch) == "on") == bool(room.fanout.recording):
            raise ChatError(f"recording is {switch} already")
        path = default_path(room.log.session["room"])
        room.record(new_recording(path, room.log.session_line) if switch == "on" else None)
        if room.fanout.recording:
            self.say_here(f"recording into {path}")


CONSOLE_COMMANDS = {
    "help": Command("", "this list; what is no command is said to the room", Console._help),
    "say": Command("TEXT", "say something to the room, as the server", Console.say),
    "who": Command("", "who is here, and from where", Console._who),
    "kick": Command("NAME [minutes] [reason]", f"remove somebody, who may come back after {KICK_MINUTES} minutes "
                                               "or so many", Console._kick),
    "mute": Command("NAME [minutes]", f"refuse what somebody says, for {MUTE_MINUTES} minutes or so many",
                    Console._mute),
    "ban": Command("NAME", "remove somebody until the room ends", Console._ban),
    "unban": Command("NAME", "let somebody come back, or speak again", Console._unban),
    "bans": Command("", "who may not come in or not speak, and for how long", Console._bans),
    "code": Command("[new]", "what others type to come in; with new by a new code, and no longer by the old one",
                    Console._code),
    "mark": Command("TEXT", "put a chapter mark into the log", Console._mark),
    "log": Command("on|off", "record, into a new file in sessions/, or stop recording", Console._log),
    "quit": Command("", "end the room", Console.end),
}


def raise_limits():
    """Let this process have as many sockets as the system gives without asking."""
    if resource:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for limit in (hard, 10240):  # macOS calls its hard limit endless and means the second
            with contextlib.suppress(OSError, ValueError):
                if limit == resource.RLIM_INFINITY or limit > soft != resource.RLIM_INFINITY:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                    return


@contextlib.contextmanager
def signals_caught(names, function):
    """Within, each of these signals calls this function and does nothing else."""
    with contextlib.ExitStack() as stack:
        for name in names:
            number = getattr(signal, name, None)
            if number and (name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN):  # nohup wants that
                before = signal.signal(number, lambda number, frame: function())
                stack.callback(signal.signal, number, before)
        yield


def serve(host="127.0.0.1", port=PORT, room="chat", log=None, history=HISTORY, rate=RATE, max_people=0,
          for_all=False):
    """Open a room and serve it until a signal or its keyboard ends it; an empty host means every address."""
    # Whatever others can reach is private, unless it is said in so many words that it is not.
    raise_limits()
    with open_listener(host, port) as listener:
        private = not for_all and not re.match(r"127\.|::1$", listener.getsockname()[0])
        gate = Gate(Identity()) if private else None
        server = Server(open_room(room, log, history, max_people), listener, rate)
        server.room.gate = gate
        console = Console(server.room, Pipe(sys.stdout), server.address)
        # A terminal window that is closed may say so more than once.
        with signals_caught(("SIGHUP",), console.end), \
                signals_caught(("SIGINT", "SIGTERM", "SIGBREAK"), console.insist):
            server.start()
            try:
                console.screen.show([[("text", line)] for line in banner(server.room, server.address, not host)])
                console.run()
            except OSError:  # its terminal window was closed
                silence(sys.stdout)
            finally:
                until = time.monotonic() + ENDING_SECONDS + 0.5
                server.stop()
                console.stop(max(0.1, until - time.monotonic()))
    lost = server.unrecorded()
    trouble = ChatError(f"{lost:,} {'line' if lost == 1 else 'lines'} could not be recorded") if lost else None
    if console.thread.is_alive():  # stdout is held back, and Python's own last flush would wait for it, too
        if trouble:
            print(f"{program()}: {trouble}.", file=sys.stderr)
        os._exit(bool(trouble))
    if trouble:
        raise trouble


# === client =======================================================================================
# `join`: a Link is one person's tie to a room, a Client the person. What is typed comes in the main
# thread; each connection has a receiver thread that reads the wire and a sender thread that writes it, so
# that neither a slow network nor a stopped server ever holds up a key.


def parse_address(address):
    """(host, port) of `host`, `host:port` or `[v6]:port`."""
    match = re.match(r"\[?(?:(?<=\[)([^\]]+)\]|([^\[\]:]*))(?::(\d{1,5}))?\Z", address)
    bare_v6 = address.count(":") > 1 and "[" not in address
    port = int(match.group(3) or PORT) if match else PORT
    if not bare_v6 and (not match or not 0 < port < 65536):
        raise ChatError(f"{clean_row(address)} is no address; write host, host:port or [v6-address]:port")
    return (address, PORT) if bare_v6 else (match.group(1) or match.group(2) or "127.0.0.1", port)


def recent_addresses():
    """The addresses that were joined last, newest first."""
    try:
        with open(os.path.join(state_folder(), "recent.txt"), encoding="utf-8") as file:
            lines = [clean_row(line.strip()) for line in file]
    except (OSError, ValueError):
        return []
    return [line for line in lines if line][:RECENT]


def remember_address(address):
    """Put an address in front of those that were joined last; a home that cannot be written has none."""
    addresses = [address] + [other for other in recent_addresses() if other != address]
    with contextlib.suppress(OSError):
        os.makedirs(state_folder(), exist_ok=True)
        with open(os.path.join(state_folder(), "recent.txt"), "w", encoding="utf-8") as file:
            file.write("\n".join(addresses[:RECENT]) + "\n")


def _is_code(text):
    # Written in groups also with a mistake in it; but a computer may well be called something of 18 letters.
    with contextlib.suppress(ChatError):
        return bool(Code.read(text))
    return bool(re.fullmatch("[0-9a-z]{6}([ -])[0-9a-z]{6}\\1[0-9a-z]{6}", text, re.IGNORECASE | re.ASCII))


def find_invite(address):
    """(the Code or None, the address without it), of CODE@ADDRESS or of an address for which CHAT_INVITE has a code."""
    code, _, place = address.rpartition("@")
    if _is_code(place):  # never to be looked up as a name: whoever is asked would know it
        raise ChatError("a code alone does not say where the room is; write CODE@ADDRESS")
    invite = os.environ.get("CHAT_INVITE", "")
    if invite and not code:
        code, _, known = invite.rpartition("@") if "@" in invite else (invite, "", "")
        if known and place and parse_address(known) != parse_address(place):
            code = ""  # it is for another room
        place = place or known
    return Code.read(code) if code else None, place


def ask_code():
    """Ask in a terminal for the code of a private room, without showing it."""
    while True:
        try:
            return Code.read(getpass.getpass("Its code, which is not shown here: ").partition("@")[0])
        except EOFError:
            raise ChatError("there was no answer", "no-answer") from None
        except ChatError as error:
            print(f"{error}.")


def seal(sock, code, until):
    """Encrypt a connection until this time; returns (what is like a socket, the proof that one knows the key)."""
    # Not a word is said before it is sure to whom.
    import hashlib
    import hmac

    tls = Tls(open_context("CLIENT"), False)
    try:
        tls.shake_hands(sock, until)
        digest = hashlib.sha256(tls.end.getpeercert(True) or b"").digest()
        if hmac.compare_digest(stretch(digest), code.pin):
            return Sealed(sock, tls), prove(code.key, digest)
        reason = "what answers is not the server of this code: it is another one, or somebody is in between"
    except OSError:
        reason = "what answers is no private room; an open one is joined without a code"
    sock.close()
    raise ChatError(reason)


def login_name():
    """The name under which a person is logged in, made into one that a room may accept."""
    try:
        name = suggest_name(getpass.getuser())
    except (ImportError, KeyError, OSError):  # no such user, which containers are fond of
        name = None
    return name or "guest"


class Connection:
    """A client's end of the wire, from its connecting to its breaking or closing."""

    # Any thread may send, since a queue takes the lines to the sender thread; only one may read `batches`. As on the
    # server two socket objects stand on one descriptor, since the one that receives looks up each second: a link that
    # brings nothing for long is dead, though its system may not know. The sender sees to it that something comes.

    def __init__(self, host, port, code=None):
        self.until = time.monotonic() + CONNECT_SECONDS  # until the welcome has come
        try:
            self.sock = socket.create_connection((host, port), CONNECT_SECONDS)
        except (socket.gaierror, UnicodeError):
            raise ChatError(f"{host} is no address that this computer can find") from None
        except OSError as error:
            reason = error.strerror or "no answer"
            raise ChatError(f"no chat answers at {host}:{port} ({reason}); check the address, and whether "
                            f"the server runs") from None
        tune(self.sock)
        self.proof = None
        if code:
            self.sock, self.proof = seal(self.sock, code, self.until)
        self.sock.settimeout(SILENCE_SECONDS)
        self.reader = self.sock.dup()
        self.reader.settimeout(1.0)
        # When an answer came last, since what the others say may come though nothing gets there; and what is called
        # while there is none.
        self.heard, self.idle = time.monotonic(), lambda: None
        self.had, self.ping_at = 0, time.monotonic() + PING_SECONDS  # the newest number of a reply
        self.outbox = queue.Queue()
        threading.Thread(target=self._write_lines, name="sender", daemon=True).start()

    def send(self, do, **fields):
        """Have a request sent; never waits."""
        self.outbox.put(encode({"do": do, **fields}))

    def _write_lines(self):
        with contextlib.suppress(OSError):  # the receiver sees the same and tells it
            for line in iter(self._next_line, None):
                self.sock.sendall(line)
        self.end()

    def _next_line(self):
        wait = self.ping_at - time.monotonic()
        if wait > 0:
            with contextlib.suppress(queue.Empty):
                return self.outbox.get(timeout=wait)
        self.ping_at = time.monotonic() + PING_SECONDS
        return encode({"do": "ping", "had": self.had})

    def _receive(self, size):
        while True:
            try:
                data = self.reader.recv(size)
            except socket.timeout:
                data = None
            if time.monotonic() > (self.until or self.heard + SILENCE_SECONDS):
                raise socket.timeout
            if self.quiet() > QUIET_SECONDS:
                self.idle()
            if data is not None:
                return data

    def quiet(self):
        """For how many seconds no answer has come."""
        return time.monotonic() - self.heard

    def batches(self):
        """Yield what arrives, as lists of (line, event), until the connection ends."""
        with contextlib.suppress(OSError):  # a broken connection ends like a closed one
            for block in blocks(self._receive, REPLY_BYTES):
                yield [_line_and_event(line) for line in (block or b"\n").split(b"\n")[:-1]]

    def end(self):
        """Let nothing come or go any more, which wakes whoever waits for it."""
        self.outbox.put(None)
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        """End the connection, for the thread that reads it."""
        self.end()
        self.reader.close()
        self.sock.close()


def _line_and_event(line):
    # Nobody gains by leaving a room over one bad line: it is told, and is not recorded.
    try:
        return line + b"\n", decode_event(line.decode(errors="replace"))
    except ChatError as error:
        return b"", remark(0.0, f"a line of the server made no sense: {error}")


def enter(host, port, hello, code=None):
    """Connect and say hello; returns the connection, its batches, and the lines that opened them."""
    # One time-out holds for all until the welcome: what is no chat may say nothing at all, or go on for ever.
    connection = Connection(host, port, code)
    batches, opening = connection.batches(), []
    connection.send("hello", **hello, proof=connection.proof)
    try:
        for batch in batches:
            opening += itertools.dropwhile(lambda pair: not opening and "here" in pair[1], batch)  # it may greet first
            words = [event.get("re", event.get("ev")) for line, event in opening[:2]]
            if words[:1] == ["error"]:
                error = opening[0][1]
                raise ChatError(clean_row(error["text"]), error["code"], error.get("name"))
            if words == ["welcome", "session"]:
                check_version(opening[1][1])
                connection.until = None
                return connection, batches, opening
            if words not in ([], ["welcome"]):
                break
        raise ChatError(f"what answers at {host}:{port} is not a chat")
    except BaseException:
        connection.close()
        raise


def take_free(error):
    """Whoever gave no name, or comes back when somebody has theirs, takes what the server offers."""
    if not error.name or type(error.name) is not str:
        raise error
    return error.name


def ask_again(error):
    """Whoever sits at a terminal is asked, and may just press Enter for what the server offers."""
    print(f"{error}.")
    return ask("Another name", clean_row(error.name) if type(error.name) is str else "")


def pauses():
    """Yield the seconds to wait before each next attempt to connect again: longer and longer, and never just alike."""
    longest = RETRY_PAUSES[0]
    while True:
        yield longest * (1 + int.from_bytes(os.urandom(2), "big") / 65536) / 2
        longest = min(2 * longest, RETRY_PAUSES[1])


class Progress:
    """How far somebody has come in a session, by its numbers."""

    # `whole` is whether all is known that happened since they were in last: no event is missing; `told` whether all
    # replies are known as well, which a server keeps for the same seat in the same run only. Both count until they
    # have caught up, however often the link is lost meanwhile.

    def __init__(self):
        self.token = self.session = self.run = self.seat = None
        self.last, self.had = -1, 0  # the newest n, and the newest number of a reply
        self.expected, self.missing = None, 0  # the first n after coming back, and how many were missing before it
        self.whole = self.told = True

    def hello(self):
        """What a hello tells of it."""
        known = {"token": self.token, "session": self.session, "run": self.run, "last": self.last, "had": self.had}
        return known if self.token else {}

    def begin(self, welcome, session):
        """Go on with what these two open; returns how many events that were seen are no longer true."""
        same, before = session["id"] == self.session, self.last
        run, seat = welcome.get("run"), welcome.get("seat")
        if not same or (run, seat) != (self.run, self.seat):
            self.told, self.had = False, 0
        self.whole = self.whole and same
        self.last = min(before, welcome.get("since", before)) if same else -1
        self.expected = self.last + 1 if same else None
        self.token, self.session, self.run, self.seat = welcome.get("token"), session["id"], run, seat
        return before - self.last if same else 0

    def is_new(self, event):
        """Whether this event or reply has not come before; it has now."""
        number, field = (event.get("n"), "last") if "ev" in event else (event.get("k"), "had")
        if not COUNT.fits(number):
            return True
        before = getattr(self, field)
        if number <= before:
            return False
        setattr(self, field, number)
        if field == "last" and self.expected is not None:
            self.missing, self.expected = number - self.expected, None
            self.whole = self.whole and not self.missing
        return True


class Asked:
    """A request of which it is not known yet what became of it."""

    __slots__ = "line", "request", "when", "sent"

    def __init__(self, line, request):
        self.line, self.request = line, request  # what was entered for it, and what it asks
        self.when, self.sent = time.monotonic(), False

    def is_doubtful(self, progress):
        """Whether nobody can tell any more what became of it, though all that can come has come."""
        do = self.request["do"]
        return self.sent and do != "who" and not (progress.whole and (progress.told or do != "tell"))


class Link:
    """One person's tie to a room, which outlives the connections that carry it."""

    # It knows nothing of commands, of screens, or of what an event means: to whoever is its `person` it
    # hands what arrives, and tells what becomes of it, by calling
    #
    #     person.arrive(welcome, session)   when a room has let them in, before anything else of it
    #     person.take(batch)                with a list of (line, event), each event and each reply once
    #     person.skip(count, seen)          where so many lines are gone for good: that were seen, or never will be
    #     person.give_back(lines)           with entered lines of which nobody can tell what became of them
    #     person.lose(error)                when the connection is lost; with an error, for good
    #     person.changed()                  when another thread than the person's has changed `state`, or time passes
    #
    # Its life; all but the first of these changes are the receiver's, a thread that lives as long:
    #
    #     out       there was no connection yet            -> in: `join`, the main thread
    #     in        requests go out                        -> lost, over
    #     lost      a pause before the next attempt        -> trying: when it is over, or by `retry`
    #     trying    it connects once more                  -> catching, lost, over
    #     catching  what was missed comes in               -> in: when all of it has come; lost, over
    #     over      it has ended as it was meant to, or it is of no use to go on
    #
    # `parting` is set, and never taken back, by whoever knows that the room is left or over. `state` and
    # `unconfirmed` change with `wakeup` held, and whoever waits for something is woken by it; all else belongs to
    # the one thread that connects or receives.
    #
    # Ids go on rising through all connections. A request is unconfirmed until its id comes back, on the event that it
    # became or on the reply to it. Whoever comes back is sent all that their seat said and was told meanwhile, and
    # then the answer to a ping: what is unconfirmed by then was never carried out, and is sent again. Only where
    # lines are gone for good, or a server died that had private lines on their way, can nobody tell.

    def __init__(self, host, port, person, patience=float("inf")):
        self.host, self.port, self.person, self.patience = host, port, person, patience
        self.code = None  # of a private room
        self.state, self.parting = "out", False
        self.wakeup, self.nudge = threading.Condition(), threading.Event()
        self.ids, self.unconfirmed = itertools.count(1), {}  # id: Asked
        self.progress = Progress()
        self.mark = None  # the id of the ping that ends the catching up
        self.try_at = 0.0  # when it connects again
        self.connection = self.receiver = None

    def join(self, name, choose_name):
        """Enter the room, under a name that `choose_name` chooses, if it is given, where this one is refused."""
        batches, opening = self._enter(name, choose_name)
        self._settle()
        self.connection.send("ping")  # which tells that the welcome has come
        self.receiver = threading.Thread(target=self._live, args=(batches, opening), name="receiver", daemon=True)
        self.receiver.start()

    def _enter(self, name, choose_name):
        for attempt in range(NAME_TRIES):
            try:
                hello = {"name": name, "back": True, **self.progress.hello()}
                entered = enter(self.host, self.port, hello, self.code)
                break
            except ChatError as error:
                if not choose_name or error.code not in ("bad-name", "name-taken") or attempt == NAME_TRIES - 1:
                    raise
                name = choose_name(error)
        self.connection, batches, opening = entered
        (_, welcome), (_, session) = opening[:2]
        gone = self.progress.begin(welcome, session)
        self.connection.had, self.connection.idle = self.progress.had, self.person.changed
        self.person.arrive(welcome, session)
        if gone:
            self.person.skip(gone, True)
        return batches, opening

    def _change(self, state):
        with self.wakeup:
            self.state = state
            self.wakeup.notify_all()
        self.person.changed()

    # --- the receiver thread ---

    def _live(self, batches, opening):
        while batches:
            try:
                self._receive(batches, opening)
            finally:
                self.connection.close()
            batches, opening = self._come_back()

    def _receive(self, batches, opening):
        busy = 0.0  # when something came last
        for batch in itertools.chain([opening], batches):
            before = time.monotonic()
            news = [(line, event) for line, event in batch if self.progress.is_new(event)]
            if self.progress.missing:
                self.person.skip(self.progress.missing, False)
                self.progress.missing = 0
            self.person.take(news)
            self.connection.had = self.progress.had
            pongs = [event.get("id") for line, event in news if event.get("re") == "pong"]
            if pongs:
                self.connection.heard = time.monotonic()
            if self.mark in pongs and self.mark:
                self._settle()
            if busy > before - 2 * GATHER_SECONDS:
                time.sleep(GATHER_SECONDS)  # what comes so fast is cheaper taken many at a time
            busy = before

    def _come_back(self):
        # Connect again until it works or is of no use any more; returns what `_receive` needs.
        until, error = time.monotonic() + self.patience, None
        if not self.parting:
            self.person.lose(None)
        for pause in pauses():
            self._pause(pause)
            if self.parting or error and (error.code in FINAL or time.monotonic() >= until):
                break
            try:
                self._change("trying")
                entered = self._enter(self.person.name, take_free)
                self._change("catching")
                self.mark = self._next_id()
                self.connection.send("ping", id=self.mark, had=self.progress.had)
                return entered
            except ChatError as trouble:
                error = trouble
                self.connection.close()  # a new one may be there, and only its recording have failed
        self._change("over")
        if not self.parting:
            self.person.lose(error)
        return None, None

    def _pause(self, seconds):
        self.try_at = time.monotonic() + seconds
        self._change("over" if self.parting else "lost")
        while not (self.parting or self.nudge.wait(min(1.0, max(0.0, self.try_at - time.monotonic())))
                   or time.monotonic() >= self.try_at):
            self.person.changed()
        self.nudge.clear()

    def _settle(self):
        # All that can be known of what was asked before is known now.
        with self.wakeup:
            doubtful = [number for number, asked in self.unconfirmed.items() if asked.is_doubtful(self.progress)]
            lines = [self.unconfirmed.pop(number).line for number in doubtful]
            for asked in self.unconfirmed.values():
                self._send(asked)
            self.progress.whole = self.progress.told = True
            self.mark, self.state = None, "in"
        self.person.give_back(lines)
        self.person.changed()

    # --- what the person asks; any thread ---

    def _next_id(self):
        with self.wakeup:
            return next(self.ids)

    def _send(self, asked):
        asked.sent, asked.when = True, time.monotonic()
        self.connection.send(**asked.request)

    def request(self, line, do, **fields):
        """Send a request, now or when there is a link; `line` is what was entered for it, until the answer is there."""
        with self.wakeup:
            number = next(self.ids)
            asked = self.unconfirmed[number] = Asked(line, {"do": do, **fields, "id": number})
            if self.state == "in":
                self._send(asked)

    def confirm(self, number):
        """Note that this id has come back; returns the line that was entered for it, if it is one of ours."""
        with self.wakeup:
            self.wakeup.notify_all()
            asked = self.unconfirmed.pop(number, None)
            return asked.line if asked else ""

    def unsent(self):
        """How many requests have waited so long for an answer that one should know."""
        late = time.monotonic() - UNSENT_SECONDS
        return sum(asked.when <= late for asked in list(self.unconfirmed.values()))

    def trouble(self):
        """What is not as it should be, for people; empty if all is well."""
        wait, quiet = max(0.0, self.try_at - time.monotonic()), self.connection.quiet()
        return {"in": f"no answer for {quiet:.0f} s" if quiet > QUIET_SECONDS else "",
                "lost": f"no link, next try in {wait:.0f} s", "trying": "connecting", "catching": "catching up",
                }.get(self.state, "leaving")

    def retry(self):
        """Connect again at once, if there is no link."""
        if self.state == "lost":
            self.nudge.set()

    def wait_for(self, condition, seconds=float("inf")):
        """Wait until this holds, the link has ended or the time is over."""
        until = time.monotonic() + seconds
        with self.wakeup:
            while self.state != "over" and not condition() and time.monotonic() < until:
                self.wakeup.wait(0.2)  # in slices: some systems do not interrupt a longer wait

    def leave(self):
        """Say goodbye, wait for the server's last line, and close the connection."""
        self.parting = True
        self.nudge.set()
        if self.state in ("in", "catching"):
            self.connection.send("bye")
            self.wait_for(lambda: False, ACKNOWLEDGE_SECONDS)
        if self.connection:
            self.connection.end()
        if self.receiver:
            self.receiver.join(1.0)


_token = re.compile(rb',"token":"[^"]*"')  # a recording is handed round, and this opens a seat


def is_talk(event):
    """Whether this is something that a person says, to all or to one."""
    return event.get("ev") in ("say", "me") or event.get("re") == "tell"


class Client:
    """The person at a link: what they enter, what they know, and what they like to be shown."""

    # Two threads come by. The main thread enters lines and asks for prompt and status; the receiver, or
    # one that joins again, calls what a Link calls, which must not make it wait. What one of them writes
    # the other only reads, and to be a moment behind does no harm; so there is no lock.
    #
    # The same commands hold on a terminal and through a pipe, but only a person can be asked whether a bare
    # "quit" is meant, and waits for a lost link as long as they like; a script's lines wait for the server instead.

    def __init__(self, host, port, log=None, times=TIMES[0]):
        self.view = View()
        self.log, self.recording = log, None  # the file to record into; "" stands for a new one
        self.lost = False  # whether there is no connection
        self.failure = None  # the sentence that a script should hear at the end
        self.line, self.asked = "", False  # entered last; whether it was the bare "quit" that is asked about
        # What the person likes:
        self.times, self.quiet, self.bell, self.ignored = times, False, "on", set()
        self.last_teller = None  # whom /r answers
        self.screen = open_screen(
            self.take_line, self.prompt, self.status, self.complete, {"f2": self.change_times},
            " (they are in the recording)" if log is not None else "",
        ) or Pipe(sys.stdout, self.take_script_line)
        self.link = Link(host, port, self, float("inf") if self.screen.attended else PATIENCE_SECONDS)

    # --- what the link calls ---

    @property
    def name(self):
        """Who they are in the room."""
        return self.view.name

    def arrive(self, welcome, session):
        """Begin with what a room tells first of all; another session is recorded into another file."""
        self.lost = False
        before = self.view.session
        self.view.take(welcome)
        self.view.take(session)
        if self.log is not None and (before is None or before["id"] != session["id"]):
            self._end_recording()
            path = self.log or default_path(session["room"], self.view.name)
            make_folder(path)
            self.recording, self.log = Recording(path), ""

    def _end_recording(self):
        if self.recording:
            self.recording.close()
            self.recording = None

    def take(self, batch):
        """Record, understand and show what arrived."""
        self._record(batch)
        lines, bell = [], False
        for line, event in batch:
            self._notice(event)
            if not self._is_hidden(event):
                rings = self._rings(event)
                bell = bell or rings
                lines.append(Unrendered(len(line), functools.partial(self.view.render, event, self.times),
                                        rings or self._is_mine(event)))
        self.screen.show(lines, bell)

    def _record(self, batch):
        # What was said to this person; a pong or a broken line says nothing.
        if self.recording:
            words = ("welcome", "tell", "who", "error")
            lines = [_token.sub(b"", line) for line, event in batch if "ev" in event or event.get("re") in words]
            trouble = self.recording.write(b"".join(lines))
            if trouble:
                self.say_here(trouble)
            if self.recording.gone:
                self._end_recording()

    def _is_mine(self, event):
        return "ev" not in event or event.get("who") == self.view.mine

    def _is_hidden(self, event):
        if is_talk(event):
            return name_key(event["who"]) in self.ignored
        return self.quiet and event.get("ev") in ("join", "leave", "nick")

    def _rings(self, event):
        if self.bell == "off" or not is_talk(event) or event["who"] == self.view.name or self.view.is_history(event):
            return False
        return "re" in event or self.bell == "all" or bool(find_mentions(clean(event["text"]), self.view.name))

    def _notice(self, event):
        # Keep up with what an event means for this person; most lines are just somebody else's words.
        if event.get("ev") in ("say", "me") and event["who"] != self.view.mine:
            return
        word, answer, mine = event.get("ev"), event.get("re"), self._is_mine(event)
        self.view.take(event)
        if answer == "tell" and event["who"] != self.view.name:
            self.last_teller = event["who"]
        elif answer == "error" and event["code"] in FINAL:
            self.failure = clean_row(event["text"])
        if self.view.over or self.failure:
            self.link.parting = True
        line = self.link.confirm(event.get("id")) if mine else ""  # others count for themselves
        if answer == "error" and line:
            self.screen.give_back(line)
        if line or word in ("join", "leave", "nick", "notice"):
            self.changed()

    def skip(self, count, seen):
        """Tell the person that so many lines are gone for good."""
        self.view.skip()
        lines = "1 line" if count == 1 else f"{count:,} lines"
        self.say_here(f"{lines} that you saw are gone: the server has lost the end of its file" if seen else
                      f"{lines} that you missed are gone for good", "error")

    def give_back(self, lines):
        """Tell the person of which lines nobody can tell whether they arrived."""
        for line in filter(None, lines):
            self.say_here(f"this may not have arrived: {clean_row(line)}", "error")
            self.screen.give_back(line)

    def lose(self, error):
        """Tell the person that there is no connection; with an error, that there will be none."""
        self.lost = True
        if error:
            self.failure = f"the connection was lost: {error}"
            self.link.parting = True
            self.changed()
        elif self.screen.attended:
            self.say_here("the connection is lost; what you enter waits for it, Enter tries at once", "error")

    def changed(self, seconds=0.0):
        """Have the screen show, now or so much later, what has become of the link; or end it."""
        if self.link.parting:
            self.screen.end()
        else:
            self.screen.refresh(seconds)

    # --- what the person does ---

    def take_line(self, text):
        """Do what a line from a terminal asks; returns False if it must stay in the input line."""
        word = text.strip().lower()
        if not word:
            return self.link.retry()
        asked, self.asked = self.asked, word in ("quit", "exit") and not self.asked
        if self.asked:
            return self.say_here("leave the room? y leaves, anything else stays")
        if asked and word in ("y", "yes", "quit", "exit"):
            text = "/quit"
        elif asked and word in ("n", "no"):
            return None
        return self.enter_line(text)

    def take_script_line(self, text):
        """Do what a line from a pipe asks, once the server has caught up; None is the end of the input."""
        most = AHEAD if text is not None else 1
        self.link.wait_for(lambda: self.screen.over or len(self.link.unconfirmed) < most)
        if text is not None:
            self.enter_line(text)
        else:
            self.screen.end()

    def enter_line(self, text):
        """Do what a line asks; returns False if it is refused here."""
        self.line = text  # which a request remembers, in case it has to come back
        return obey(COMMANDS, self, text)

    def say(self, text):
        """Say something to the room."""
        self.request("say", text=text)

    def request(self, do, **fields):
        """Send a request, after the checks that the server makes too."""
        check_fields(do, REQUESTS[do], fields)
        self.link.request(self.line, do, **fields)
        self.changed(UNSENT_SECONDS)

    def say_here(self, text, style="system"):
        """Show the person here, and nobody else, a line."""
        self.screen.show([[(style, f"-- {text}")]])

    def set_times(self, form):
        """Show the times of lines in this form from now on."""
        self.times = one_of(TIMES, form)
        self.say_here(f"times: {form}")

    def change_times(self):
        """Show the times in the next form, round and round."""
        self.set_times(TIMES[(TIMES.index(self.times) + 1) % len(TIMES)])

    def leave(self):
        """Leave the room and close everything; what was entered and is still on its way is told."""
        self.link.leave()
        lines = [asked.line for asked in self.link.unconfirmed.values() if asked.line]
        for line in lines:
            self.say_here(f"this may not have arrived: {clean_row(line)}", "error")
        if lines or self.lost:
            self.failure = self.failure or ("the connection was lost" if self.lost else
                                            "not all that was entered is known to have arrived")
        self._end_recording()

    # --- what the input line shows ---

    def prompt(self):
        """The text before the input line: who one is, and what is not as it should be."""
        unsent = self.link.unsent()
        state = ", ".join(filter(None, (self.link.trouble(), f"{unsent} unsent" if unsent else "")))
        return f"{clean_row(self.view.name)[:NAME_POINTS]}{f' ({state})' if state else ''}> "

    def status(self):
        """The text of the bar below: the room, who is here, and whether it is recorded."""
        recorded = "recorded" if self.view.recorded else "not recorded"
        own = ", by you too" if self.recording and self.view.recorded else " but by you" if self.recording else ""
        return self.view.bar(recorded + own)

    def complete(self, before):
        """What Tab makes of the text before the cursor."""
        return complete(before, COMMANDS, list(self.view.people))


# --- the commands ---


def _help(client):
    client.screen.show(help_lines(COMMANDS))


def _reply(client, text):
    if not client.last_teller:
        raise ChatError("nobody has told you anything yet")
    client.request("tell", to=client.last_teller, text=text)


def _ignore(client, name):
    client.ignored ^= {name_key(name)}
    state = "hidden from you; the same again undoes it" if name_key(name) in client.ignored else "shown again"
    client.say_here(f"{clean_row(name)} is {state}")


def _quiet(client, switch):
    client.quiet = one_of(("on", "off"), switch) == "on"
    client.say_here(f"who comes and goes is {'hidden' if client.quiet else 'shown'}")


def _ring(client, when):
    client.bell = one_of(("on", "off", "all"), when)
    client.say_here(f"bell: {when}")


def _quit(client):
    client.link.parting = True
    client.changed()


def _ask_for(do):
    # A command that is just this request: its words are the fields, in their order.
    return lambda client, *words: client.request(do, **dict(zip(REQUESTS[do], words)))


COMMANDS = {
    "help": Command("", "this list; begin a line with // to say something that begins with /", _help),
    "who": Command("", "who is here", _ask_for("who")),
    "me": Command("TEXT", "say what you do: * bob waves", _ask_for("me")),
    "tell": Command("NAME TEXT", "say something to one person only", _ask_for("tell")),
    "r": Command("TEXT", "answer the last private line", _reply),
    "nick": Command("NAME", "take another name", _ask_for("nick")),
    "ignore": Command("NAME", "hide what this person says, or show it again", _ignore),
    "quiet": Command("on|off", "hide who comes, goes and is renamed", _quiet),
    "bell": Command("on|off|all", "ring when you are called, never, or at every line", _ring),
    "times": Command("short|long|off", "how times are shown; F2 goes round", Client.set_times),
    "quit": Command("", "leave the room", _quit),
}


def _interrupt():
    raise KeyboardInterrupt


def _enter_at_terminal(link, name):
    # At a terminal: a name that is refused can be given anew, and a code that lacks or no longer holds.
    try:
        link.join(name, ask_again)
    except ChatError as error:
        if error.code != "no-key":
            raise
        print(f"{error}.")
        link.code = ask_code()
        link.join(name, ask_again)


def join(address="", name=None, log=None, times=TIMES[0]):
    """Take part in the room at this address until the person leaves or it ends."""
    code, address = find_invite(address)
    host, port = parse_address(address)
    if log and os.path.exists(log):
        raise ChatError(f"{log} exists already; choose another name")
    client = Client(host, port, log, times)
    client.link.code = code
    signals = "SIGHUP", "SIGTERM", "SIGBREAK"
    try:
        with signals_caught(signals, _interrupt):
            if client.screen.attended:
                _enter_at_terminal(client.link, name or ask("Your name", login_name()))
                remember_address(address or "127.0.0.1")
            else:  # a script keeps to its name
                client.link.join(name or login_name(), take_free if name is None else None)
            with signals_caught(signals, client.screen.end):
                client.screen.run()
    except KeyboardInterrupt:
        pass  # leaving is what it means
    finally:
        client.leave()
    if client.failure:
        raise ChatError(client.failure)


# === replay =======================================================================================
# A recorded session, again. A tape is an index of its file, and who sat where; the player is a position in
# it, and so is whatever writes a recording out in another form. What they come upon are scenes: an event
# with the moment at which it was seen and the name of who saw it, (moment, viewer, event). The page that
# plays a session in a browser is made in the same way, of parts with the same names.
#
# Left out on purpose: an index kept beside the file. To make it anew takes less time than to explain a
# stale one.


def name_at(names, i):
    """What somebody was called at this line, by the lines since which they had each of their names."""
    return next((name for since, name in reversed(names) if since <= i), names[0][1] if names else None)


class Seat:
    """One person's stay in a room, which the n of their join tells from all others."""

    def __init__(self, i, join):
        self.n, self.t, self.first = join["n"], join["t"], join["from"]  # first: the n from which on they were told
        self.joined, self.last, self.left = i, None, None  # in lines; and when they left
        self.names = [(i, join["who"])]  # since which line they were called what


class Tape:
    """A recording: the index of its lines, who sat where, and what can be gone to."""

    # What is known goes as far as `grow` has been called: whoever plays a tape can begin before the rest is
    # known, and to follow a file that is still written is to call it again and again. A seat's part of the tape
    # is a stretch of lines: in a server's file from the first that they were told to their leave; in somebody's
    # own, which begins with a welcome, from the beginning, and each line is asked whether it was for them. With
    # another welcome they came again, and what is for one person only is for the new seat.

    def __init__(self, file):
        self.lines, self.view = Lines(file), View()
        self.seats, self.names = {}, {}  # by the n of the join; all who are named anywhere, for Tab
        self.marks = []  # their moments
        self.others = array.array("q")  # the lines that are no talk
        self.session, self.session_at, self.viewer = None, 0, None  # viewer: whose own recording it is
        self.own_names, self.own_seats = [], []  # theirs, each since some line
        while not self.session and len(self.lines) < OPENING_LINES and self.grow():
            pass

    def grow(self):
        """Take in some more of the file; whether there was more."""
        others = self.lines.grow()
        for i, event in others or ():
            self.others.append(i)
            self._take(i, event)
        return others is not None

    def grow_whole(self):
        """Take in all that is in the file by now."""
        while self.grow():
            pass

    def _take(self, i, event):
        word, reply = event.get("ev"), event.get("re")
        if word in ("join", "leave", "nick") or reply == "tell":
            self.names.update((event[field], None) for field in ("who", "to", "name") if type(event.get(field)) is str)
        if reply == "welcome":
            self.names.update(dict.fromkeys(event["people"]))
            self.viewer = self.viewer or (None if self.session else event["you"])
            self.own_names.append((i, event["you"]))
            self.own_seats.append((i, event.get("seat", event["n"] + 1)))
        elif word == "session" and not self.session and i < OPENING_LINES:
            check_version(event)
            self.session, self.session_at = event, i
        elif word == "mark":
            self.marks.append(self.lines.moments[i])
        elif word in ("join", "leave", "nick", "end"):
            self._move(i, event, word)

    def _move(self, i, event, word):
        # Somebody sits down, gets up or is renamed. The new name holds from the next line on.
        if word == "nick":
            if event["who"] in self.view.people:
                self.seats[self.view.people[event["who"]]].names.append((i + 1, event["name"]))
            if self.own_names and event["who"] == self.own_names[-1][1] and event["n"] > self.own_seats[-1][1]:
                self.own_names.append((i + 1, event["name"]))
        for n in self.view.take(event):
            self.seats[n].last, self.seats[n].left = i - (word == "join"), event["t"]  # before a join, unnoticed
        if word == "join":
            self.seats[event["n"]] = Seat(i, event)

    def find_seat(self, who, t=None):
        """The seat of this number, or of this name: the first, or the last one taken up to this time."""
        self.grow_whole()
        seats = list(self.seats.values())
        named = [seat for seat in seats if str(seat.n) == who] or [
            seat for seat in seats for i, name in seat.names
            if name_key(who) in (name_key(name), name_key(clean_row(name)))]
        if named:
            return ([seat for seat in named if t is not None and seat.t <= t] or named[:1])[-1]
        there = ", ".join(f"{clean_row(seat.names[0][1])} ({seat.n})" for seat in seats[:LISTED_SEATS])
        raise ChatError(f"nobody called {clean_row(who)} is in this recording"
                        + (f"; there are {there}{' and more' * (len(seats) > LISTED_SEATS)}" if seats else ""))

    # --- what was seen: of everybody together, or from one seat ---

    def start(self, seat=None):
        """The moment at which there is something to be seen."""
        return seat.t if seat else self.lines.moments[self.session_at]

    def stop(self, seat=None):
        """The line behind the last one, as far as is known."""
        return len(self.lines) if not seat or seat.last is None else seat.last + 1

    def moment(self, i, seat=None):
        """When a line was seen; all history comes at the moment of joining."""
        return max(self.lines.moments[i], seat.t) if seat else self.lines.moments[i]

    def find(self, t, seat=None):
        """The first line that was seen at this moment or later."""
        while t > self.lines.moments[-1] and self.grow():
            pass
        if t <= self.start(seat):
            return self.session_at if seat and not self.viewer else 0
        return max(bisect.bisect_left(self.lines.moments, t), self._first(seat))

    def _first(self, seat):
        return bisect.bisect_left(self.lines.numbers, max(seat.first, 1)) if seat and not self.viewer else 0

    def following(self, i, seat=None):
        """The line that was seen after this one: after the session, the history."""
        return max(i + 1, self._first(seat)) if i == self.session_at else i + 1

    def scenes(self, i, seat=None):
        """Yield the scenes of a line, mostly one."""
        names = seat.names if seat else self.own_names
        for event in self.lines.read(i):
            if not seat or i == self.session_at or self._is_for(seat, i, event):
                yield self.moment(i, seat), name_at(names, i), event

    def _is_for(self, seat, i, event):
        if "ev" in event:
            return self.lines.numbers[i] >= seat.first
        if "re" in event:  # for the one who recorded it, as whom they were there by then
            return next((n for since, n in reversed(self.own_seats) if since <= i), None) == seat.n
        return i >= seat.joined  # a remark

    def between(self, seat=None, start=0.0, end=float("inf"), wait=None):
        """Yield the scenes from one moment to another; with `wait`, what is still being written as well."""
        i = self.find(start, seat)
        while True:
            while i < self.stop(seat):
                if self.moment(i, seat) > end:
                    return
                yield from self.scenes(i, seat)
                i = self.following(i, seat)
            if not self.grow():
                if not wait or seat and seat.last is not None:
                    return
                wait(FOLLOW_SECONDS)

    def search(self, text, i, seat=None, end=float("inf")):
        """Yield None now and then, and at last the line in which this text is to be seen, or -1."""
        # On from this line, and then from the beginning up to it.
        while self.grow():
            yield None
        text = text.casefold()
        places = itertools.chain(range(i, self.stop(seat)), range(self.find(self.start(seat), seat), i))
        for number, i in enumerate(places, 1):
            if number % SEARCH_LINES == 0:
                yield None
            rows = rows_of(self.scenes(i, seat), self.session, times="off")
            if self.moment(i, seat) <= end and text in "\n".join(map(plain, rows)).casefold():
                yield i
        yield -1

    def view_at(self, t):
        """What there was to know of the room after all that happened up to this time, as far as the tape tells."""
        view = View(self.session)
        known = bisect.bisect_right(self.lines.moments, t)
        for i in itertools.takewhile(lambda i: i < known, self.others):
            for event in self.lines.read(i):
                view.take(event)
        return view


def cap_silence(scenes, longest):
    """Yield (seconds to wait, scene), with no silence longer than this; 0 caps nothing."""
    before = None
    for scene in scenes:
        step = 0.0 if before is None else max(0.0, scene[0] - before)
        before = scene[0] if before is None else max(before, scene[0])
        yield min(step, longest) if longest else step, scene


def pace(timed, speed, clock=time.monotonic, sleep=time.sleep):
    """Yield each scene when its time has come; what printing took is made up for."""
    due = clock()
    for step, scene in timed:
        due += step / speed
        wait = due - clock()
        while wait > 0:
            sleep(min(wait, 3600.0))  # systems differ in how long they can
            wait = due - clock()
        yield scene


def rows_of(scenes, session, seat=None, times=TIMES[0]):
    """Yield what is to be seen of these scenes, as lists of pieces; what a seat was told of before is history."""
    view = View(session, heard=seat.n - 1 if seat else -1)
    for moment, view.name, event in scenes:
        pieces = view.render(event, times)
        if pieces:
            yield pieces


def shipped(name):
    """A file of the folder sessions that comes with this program, as bytes; it may lie inside a zip."""
    return __loader__.get_data(os.path.join(os.path.dirname(os.path.abspath(__file__)), "sessions", name))


@contextlib.contextmanager
def open_tape(path):
    """The Tape of a session file, or of a sample that comes with this program, by its name."""
    sample = SAMPLES.get(path) if not os.path.isfile(path) else None
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(io.BytesIO(shipped(sample[0])) if sample else open(path, "rb"))
            tape = Tape(file)
        except OSError as error:
            raise ChatError(f"cannot read {path}: {error.strerror}") from None
        if not tape.session:
            raise ChatError(f"{path} is not a recorded session")
        yield tape


def minutes(t):
    """A time of the session, as people write it: 1:23 or 1:02:03."""
    hours, rest = divmod(int(t), 3600)
    return "%d:%02d:%02d" % (hours, rest // 60, rest % 60) if hours else "%d:%02d" % divmod(rest, 60)


def parse_minutes(text):
    """The seconds of a time such as 83, 1:23 or 1:02:03."""
    match = re.fullmatch(r"(?:(?:(\d{1,5}):(?=\d\d:))?(\d{1,5}):(?=[0-5]\d))?(\d{1,9}(?:\.\d{1,3})?)", text.strip(),
                         re.ASCII)
    if not match or match.group(1) and int(match.group(2)) > 59:
        raise ChatError(f"{clean_row(text)} is no time; write 83 or 1:23 or 1:02:03")
    hour, minute, second = match.groups("0")
    return int(hour) * 3600 + int(minute) * 60 + float(second)


class Tempo:
    """The time of a player: a clock that runs as fast as it is told, and where in the session it is by that."""

    def __init__(self, speed, max_gap, clock):
        self.clock, self.speed, self.max_gap = clock, speed, max_gap
        self.paused = self.stepping = False  # stepping: what comes next is wanted now
        self.ran, self.since = 0.0, clock()  # how far it ran up to a moment of the real clock
        self.moment = self.reached = 0.0  # a moment of the session, and when it was there

    def now(self):
        """The player's own time."""
        return self.ran if self.paused else self.ran + (self.clock() - self.since) * self.speed

    def change(self, **changes):
        """Change the pace; it holds from now on."""
        self.ran, self.since = self.now(), self.clock()
        vars(self).update(changes)

    def due(self, moment):
        """When this moment of the session is to come."""
        step = max(0.0, moment - self.moment)
        return self.reached + (min(step, self.max_gap) if self.max_gap else step)

    def reach(self, moment, when):
        """Be at this moment of the session since then, which can be earlier than it was due."""
        self.ran, self.since = max(self.now(), when), self.clock()
        self.moment, self.reached = moment, when


class Player:
    """A session that plays, pauses and jumps as it is told: a position on a tape."""

    # Keys are pressed in the main thread and act at once, under the lock `news`, which is also the tape's: they
    # change the pace, or the place of the next scene, and what they have to say they add to `notes`. Only the
    # player's thread shows anything, first the notes and then the next scene, so all comes in one order; without
    # the lock, since a terminal may be slow.
    #
    # While nothing is to be shown, that thread gets to know the rest of the file, stretch by stretch, so that the
    # first line of a long one need not wait for the last; and it looks for a text, some lines at a time. So keys
    # get in between, and one that leads elsewhere ends the search.

    def __init__(self, tape, seat=None, speed=1.0, max_gap=2.0, start=0.0, end=float("inf"), follow=False,
                 times=TIMES[0], clock=time.monotonic, screen=None):
        self.tape, self.follow, self.times = tape, follow, times
        self.screen = screen or open_screen(None, str, self.rows_below, self.complete, {
            key: functools.partial(self.press, run) for keys, shown, words, run in PLAYER_KEYS for key in keys})
        self.news, self.notes, self.over, self.known = threading.Condition(), [], False, False
        self.seat, self.at, self.end = seat, 0, end  # at: the line that comes next
        self.searched, self.search = "", None
        self.tempo = Tempo(speed, max_gap, clock)
        self._go(start)

    def _go(self, t, at=None):
        # Be at this moment, or as near to it as there is something to see; in this line, if it is known.
        self.search = None
        self.tape.find(t, self.seat)  # which gets to know so much of the tape
        t = min(max(t, self.tape.start(self.seat)), self.length())
        self.at = self.tape.find(t, self.seat) if at is None else at
        self.tempo.reach(t, self.tempo.now())

    def length(self):
        """Up to which moment there is something to see, as far as is known."""
        last = self.tape.moment(self.tape.stop(self.seat) - 1, self.seat)
        return max(self.tape.start(self.seat), min(last, self.end))

    def _next(self):
        # The moment of the next scene; None where there is none, or none yet.
        moment = self.tape.moment(self.at, self.seat) if self.at < self.tape.stop(self.seat) else None
        return None if moment is None or moment > self.end else moment

    # --- the player's thread ---

    def run(self):
        """Play until `stop` is called."""
        while not self.over:
            with self.news:
                try:
                    rows = self._turn()
                except ChatError as error:  # a line of a later version, or a disk that was taken away
                    self.search, rows = None, self._note(str(error))
            if rows:
                self.screen.show_all(rows)

    def _turn(self):
        # What is to be shown now; after some waiting, or looking about, nothing.
        rows, self.notes = self.notes, []
        moment, tempo = self._next(), self.tempo
        due = tempo.now() if self.follow else tempo.due(moment or 0.0)
        if rows:
            return rows
        if self.search:
            return self._look_on()
        if moment is None or not tempo.stepping and (tempo.paused or tempo.now() < due):
            return self._wait(None if moment is None or tempo.paused else due)
        at, self.at = self.at, self.tape.following(self.at, self.seat)
        tempo.reach(moment, min(due, tempo.now()) if tempo.stepping else due)
        rows = list(rows_of(self.tape.scenes(at, self.seat), self.tape.session, self.seat, self.times))
        tempo.stepping = tempo.stepping and not rows
        return rows

    def _wait(self, due):
        # Until a scene is due, a key was pressed, or it is time to look again.
        if not self.known and self.tape.grow():
            self.news.wait(PAUSE_SECONDS)
            return
        self.known = not self.follow  # what is written later is not looked for, and the end is an end
        seconds = TICK_SECONDS if due is None else max(due - self.tempo.now(), 0.0) / self.tempo.speed
        if self._next() is None:
            self.tempo.stepping = False  # there is nothing to show
            seconds = FOLLOW_SECONDS if self.follow else TICK_SECONDS
        self.news.wait(min(seconds, TICK_SECONDS))
        self.screen.refresh()

    # --- what keys do, under the lock ---

    def press(self, function, *arguments):
        """Do what a key stands for, or note why it cannot be done."""
        with self.news:
            try:
                function(self, *arguments)
            except ChatError as error:
                self._note(str(error))
            self.news.notify_all()
        self.screen.refresh()

    def _note(self, text):
        self.notes.append([("system", f"— {clean_row(text)} —")])

    def change_speed(self, factor):
        """Play so many times as fast, within limits; 0 is the speed of life."""
        speed = self.tempo.speed
        slowest, fastest = min(SPEEDS[0], speed), max(SPEEDS[1], speed)  # --speed may be beyond
        self.tempo.change(speed=min(max(speed * factor, slowest), fastest) if factor else 1.0)

    def jump(self, t, at=None):
        """Go to this moment, and tell so."""
        before = self.position()
        self._go(t, at)
        t = self.tempo.moment
        self._note(f"{'back' if t < before else 'on'} at {minutes(t)}")

    def skip(self, seconds):
        """Go so far on, or back if it is less than 0."""
        before = self.at
        if seconds < 0 or not self._is_ended():
            self.jump(self.position() + seconds)
        if seconds > 0:
            self.at = max(self.at, before)  # what was shown does not come again

    def to_mark(self, forward):
        """Go to the next mark or back to the one before."""
        self.tape.grow_whole()
        here, first, length = self.position(), self.tape.start(self.seat), self.length()
        marks = [t for t in self.tape.marks if first <= t <= length and (t > here if forward else t < here - 1.0)]
        if not marks:
            raise ChatError(f"there is no mark {'after' if forward else 'before'} this")
        self.jump(marks[0 if forward else -1])
        self.tempo.stepping = self.tempo.paused

    def go_to(self):
        """Ask for a time, and go there."""
        self.screen.ask("go to (such as 1:23)",
                 lambda text: text and self.press(lambda player: player.jump(parse_minutes(text))))

    def find(self):
        """Ask for a text, and go to where it is next; nothing means the same as before."""
        question = f"find [{self.searched}]" if self.searched else "find"
        self.screen.ask(question, lambda text: self.press(Player._find, text))

    def _find(self, text):
        self.searched = text or self.searched
        if self.searched:
            self.search = self.tape.search(self.searched, self.at, self.seat, self.end)

    def _look_on(self):
        # For what is searched for: once more, some lines further.
        found = next(self.search)
        if found is None:
            self.news.wait(PAUSE_SECONDS)
        elif found < 0:
            self.search = self._note(f"{self.searched} is nowhere in this session")
        else:
            self.jump(self.tape.moment(found, self.seat), found)
            self.tempo.stepping = self.tempo.paused

    def change_seat(self):
        """Ask for somebody, and show what that person saw."""
        self.screen.ask(SEAT_QUESTION, lambda text: self.press(Player._take_seat, text.strip()))

    def _take_seat(self, who):
        here = self.position()
        self.seat = self.tape.find_seat(who, here) if who else None
        self._go(here)
        t = self.tempo.moment
        whose = f"{clean_row(self.viewer())} ({self.seat.n})" if who else "everybody"
        self._note(f"what {whose} saw, at {minutes(t)}")
        # What had been seen by then is shown again, the last of it.
        recalled = itertools.takewhile(lambda scene: scene[0] < t, self.tape.between(self.seat, t - RECALL[1], t))
        for pieces in rows_of(collections.deque(recalled, RECALL[0]), self.tape.session, times=self.times):
            self.notes.append([("history", text) for style, text in pieces])

    def help(self):
        """List the keys."""
        self.notes += [[("system", f"— {shown.ljust(12)} {words}")] for keys, shown, words, run in PLAYER_KEYS]

    def stop(self):
        """Let `run` return, and the screen go."""
        self.over = True
        self.screen.end()

    # --- what there is to see of it ---

    def _is_ended(self):
        return self._next() is None and not (self.follow and self.end == float("inf"))

    def viewer(self):
        """The name of who sees what is shown; None if it is everybody."""
        return name_at(self.seat.names if self.seat else self.tape.own_names, max(self.at - 1, 0))

    def position(self):
        """The moment of the session at which the player is."""
        still = self.follow or self._is_ended()
        silent = 0.0 if still else max(0.0, self.tempo.now() - self.tempo.reached)
        return min(self.tempo.moment + silent, self.length())

    def status(self, columns):
        """Where the player is and what it does, in one row of so many columns."""
        with self.news:  # all of it from before a key or from after it
            position, length, ended, viewer = self.position(), self.length(), self._is_ended(), self.viewer()
            first = self.tape.start(self.seat)
        state = "paused" if self.tempo.paused else "the end" if ended else "live" if self.follow else "playing"
        head = f"{state}  {minutes(position)} / {minutes(length)}  {self.tempo.speed:g}x "
        tail = f" as {clean_row(viewer)}" if viewer else ""
        head = head[:max(columns - 1, 0)]
        tail = tail[:max(columns - len(head) - 1, 0) // 2]  # wide letters in the name take twice the room
        width = max(columns - len(head) - 2 * len(tail) - 2, 0)
        done = min(max(round(width * (position - first) / (length - first)), 0), width) if length > first else width
        return f"{head}{'━' * done}{'─' * (width - done)}{tail}"

    def rows_below(self):
        """The status and the keys, below the cursor: above it, a terminal that becomes narrower could break them."""
        columns = self.screen.columns()
        return [("noreverse", self.status(columns).ljust(columns) + "\n"), ("", PLAYER_BAR)]

    def complete(self, before):
        """The names that Tab makes of what was typed, while somebody is asked for."""
        names = map(clean_row, list(self.tape.names) if self.screen.question == SEAT_QUESTION else ())
        return len(before), [name for name in names if name_key(name).startswith(name_key(before))]


SEAT_QUESTION = "as whom (nobody: all that was said)"
# The keys of the player, with those in the same place on a Russian keyboard; what the help calls them, and
# what they do.
PLAYER_KEYS = (
    ((" ",), "space", "pause, go on", lambda player: player.tempo.change(paused=not player.tempo.paused)),
    ((".", "ю"), ".", "show the next event now", lambda player: player.tempo.change(stepping=True)),
    (("left",), "left", "5 seconds back", lambda player: player.skip(-SKIP_SECONDS)),
    (("right",), "right", "5 seconds on", lambda player: player.skip(SKIP_SECONDS)),
    (("pageup",), "PgUp", "back to the mark before", lambda player: player.to_mark(False)),
    (("pagedown",), "PgDn", "on to the next mark", lambda player: player.to_mark(True)),
    (("+",), "+", "twice as fast", lambda player: player.change_speed(2.0)),
    (("-",), "-", "half as fast", lambda player: player.change_speed(0.5)),
    (("=",), "=", "as fast as it was", lambda player: player.change_speed(0)),
    (("/",), "/", "find a text, go there", Player.find),
    (("g", "п"), "g", "go to a time", Player.go_to),
    (("a", "ф"), "a", "see it as somebody saw it", Player.change_seat),
    (("?",), "?", "this list", Player.help),
    (("q", "й"), "q", "quit", Player.stop),
)


def play(tape, **options):
    """Play a session on a terminal with keys; returns False where there cannot be such a terminal."""
    player = Player(tape, **options)
    if not player.screen:
        return False
    thread = threading.Thread(target=player.run, name="player", daemon=True)
    thread.start()
    try:
        player.screen.run()
    finally:
        player.press(Player.stop)
        thread.join(ENDING_SECONDS)
    return True


PLAYER_BAR = " space pause  . next  ←→ 5 s  + - speed  / find  g time  a seat  ? keys  q quit"


def _choose_seat(tape, who, end):
    seat = tape.find_seat(who) if who else None
    if seat and end < seat.t:
        raise ChatError(f"{clean_row(seat.names[0][1])} joined at {minutes(seat.t)}, and before that saw nothing")
    return seat


def replay(path, who=None, start=0.0, end=float("inf"), speed=1.0, max_gap=2.0, instant=False, follow=False,
           times=TIMES[0], out=None):
    """Show a recorded session as it happened: on a terminal with keys, else as plain lines."""
    with open_tape(path) as tape:
        seat = _choose_seat(tape, who, end)
        if not (instant or out) and is_terminal(sys.stdin, sys.stdout):
            if play(tape, seat=seat, start=start, end=end, speed=speed, max_gap=max_gap, follow=follow, times=times):
                return
        out = out or sys.stdout
        paint = coloured if wants_colour(out) else plain
        scenes = tape.between(seat, start, end, time.sleep if follow else None)
        if not (instant or follow):
            scenes = pace(cap_silence(scenes, max_gap), speed)
        texts = (paint(pieces) + "\n" for pieces in rows_of(scenes, tape.session, seat, times))
        if instant and not follow:
            out.writelines(texts)
        for text in texts:
            out.write(text)
            out.flush()
        out.flush()


# === report =======================================================================================
# What is handed in or shown: a recorded session as a transcript, a cast, a picture, a page, or a folder
# with a report. Nothing here looks at the clock or depends on the Python, so the same session always
# gives the same bytes. The texts of page and report are files in sessions/.


def _open_output(target):
    # The same bytes in a pipe as in a file, whatever this system writes its texts in.
    if target:
        try:
            return open(target, "w", encoding="utf-8", newline="\n")
        except OSError as error:
            raise ChatError(f"cannot write {target}: {error.strerror}") from None
    if hasattr(sys.stdout, "reconfigure") and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    return contextlib.nullcontext(sys.stdout)


def _tell_if_private(tape):
    # What one person was told alone is theirs to hand round, but they should know that they do.
    if tape.viewer:
        tape.grow_whole()
        if any(event.get("re") == "tell" for i in tape.others for event in tape.lines.read(i)):
            print("(this is somebody's own recording: what was said to them alone is in what you make of it)",
                  file=sys.stderr)


def write_transcript(tape, seat, scenes, out, max_gap):
    """Write what was to be seen, as plain text."""
    out.writelines(plain(pieces) + "\n" for pieces in rows_of(scenes, tape.session, seat))


def write_cast(tape, seat, scenes, out, max_gap):
    """Write an asciicast, version 2, which players of recorded terminals understand."""
    start = datetime.datetime.fromisoformat(tape.session["start"])
    out.write(_dump({"version": 2, "width": PICTURE[0], "height": PICTURE[1], "timestamp": int(start.timestamp()),
                     "title": clean_row(tape.session["room"])}) + "\n")
    due = 0.0
    for step, scene in cap_silence(scenes, max_gap):
        due += step
        for pieces in rows_of([scene], tape.session, seat):
            text = coloured(break_rows(pieces, PICTURE[0])).replace("\n", "\r\n") + "\r\n"
            out.write(_dump([round(due, 3), "o", text]) + "\n")


# What the page is given of each event: the fields that are shown, so that nothing else of a file gets out with it.
_page_fields = {"ev": EVENTS, "re": REPLIES, "here": {"remark": {"t": SECONDS, "text": STRING}}}


def write_page(tape, seat, scenes, out, max_gap):
    """Write the page that plays these scenes in a browser, without a network and without this program."""
    out.writelines(page_parts((event for moment, viewer, event in scenes), tape.session["room"]))


def page_parts(events, title):
    """Yield the text of the page that plays these events, part by part."""
    # It is one file of text, with the lines where a browser finds but does not run them. Its security policy names
    # the page's own script and style by their hashes: whatever somebody said, a browser runs nothing else.
    page = shipped("player.html").decode().replace("\r\n", "\n")  # as a browser reads it, too
    head, tail = page.split("%EVENTS%")
    for tag in ("script", "style"):
        head = head.replace(f"%{tag.upper()}_HASH%", _hash_of(tag, page))
    yield head.replace("%TITLE%", escape(clean_row(title)))
    yield _page_line({"here": "page", "renderings": RENDERINGS, "left": LEFT})
    for event in events:
        if event.get("re") != "pong":  # which nobody is shown
            yield _page_line(_page_event(event))
    yield tail


def _hash_of(tag, page):
    import base64  # what only a page needs is loaded only for one
    import hashlib

    content = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL).group(1)
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _page_line(fields):
    # Nothing in it can end the element that it stands in.
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found.group()):04x}", encode(fields).decode())


def _page_event(event):
    # The fields that the page knows, made harmless as `render` does it.
    kind = next(kind for kind in _page_fields if kind in event)
    word = event[kind]
    if word not in _page_fields[kind]:
        return remark(event["t"], clean_row(describe(event)[:200]))
    known = {kind: word, **{field: event[field] for field in _page_fields[kind][word]}}
    if word == "welcome":
        known["n"] = min(event["n"], event.get("seat", event["n"] + 1) - 1)  # up to there it is history
    if type(event.get("text")) is str:  # which a leave may have
        known["text"] = event["text"]
    if event.get("recorded") is True:  # and a welcome
        known["recorded"] = True
    return {field: _page_value(word, field, value) for field, value in known.items()}


def _page_value(word, field, value):
    harmless = clean if field == "text" and word != "leave" else clean_row
    return harmless(value) if type(value) is str else list(map(harmless, value)) if type(value) is list else value


# How a window looks in a picture; the colours are those of the terminal's codes in STYLES.
CELL, ROW, EDGE, TITLE = 8.5, 19, 12, 30  # the size of a character, the margin, the height of the title
GROUND, INK = "#1b1e26", "#dfe3ec"
INKS = {"2": "#98a0b3", "31": "#ff8a80", "32": "#86d993", "33": "#e8c872", "34": "#8ab4ff", "35": "#e0a3ff",
        "36": "#78d6df", "91": "#ffa8a0", "92": "#a8ecb2", "94": "#adc8ff", "95": "#eec4ff"}


def cells(pieces, columns):
    """Lay pieces out on rows of so many columns, as [(column, width, cluster, terminal code)] for each."""
    from wcwidth import wcswidth  # prompt_toolkit brings it along

    rows, column = [[]], 0
    for style, text in pieces:
        for cluster in _cluster.findall(text):
            width = wcswidth(cluster)
            if cluster == "\n" or column + width > columns:
                rows.append([])
                column = 0
            if width > 0:
                rows[-1].append((column, width, cluster, STYLES.get(style, style)))
                column += width
            elif cluster != "\n" and rows[-1]:  # a mark of a script whose marks are not known here
                before = rows[-1].pop()
                rows[-1].append((*before[:2], before[2] + cluster, before[3]))
    return rows


def window(rows, title, columns=PICTURE[0]):
    """The SVG of a terminal's window that shows these rows of cells."""
    # Each character has its own x, so that wherever it is opened, whatever font is there, all stays in
    # its column; what is wider or made of several characters is fitted into its cells.
    width, height = columns * CELL + 2 * EDGE, TITLE + len(rows) * ROW + EDGE
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
             f'height="{height:g}" font-family="ui-monospace, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" '
             f'font-size="14" fill="{INK}">',
             f"<title>{escape(title)}</title>",
             f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{GROUND}"/>',
             *(f'<circle cx="{x}" cy="15" r="5" fill="{colour}"/>'
               for x, colour in ((18, "#ff6b60"), (36, "#ffc04a"), (54, "#4fd06a"))),
             f'<text x="{width / 2:g}" y="20" text-anchor="middle" fill="{INKS["2"]}">{escape(title)}</text>']
    for number, row in enumerate(rows):
        y = TITLE + number * ROW
        spans = [_span(list(run), y, parts) for key, run in itertools.groupby(row, _run_key)]
        if spans:
            parts.append(f'<text y="{y + 14}" xml:space="preserve">{"".join(spans)}</text>')
    return "\n".join(parts) + "\n</svg>\n"


def _run_key(cell):
    # Cells that go into one span. A character that the font may lack, and which another font then draws in
    # another width, has one to itself: all but Latin, Greek and Cyrillic letters.
    column, width, cluster, code = cell
    return code, None if len(cluster) == 1 and cluster < "\u0530" else column


def _span(run, y, parts):
    # A run of cells in one style; what lies under it goes to `parts`.
    column, width, cluster, code = run[0]
    codes, alone = code.split(";"), _run_key(run[0])[1] is not None
    ink = next((INKS[part] for part in codes if part in INKS), INK)
    if "7" in codes:
        reach = run[-1][0] + run[-1][1] - column
        parts.append(f'<rect x="{EDGE + column * CELL:g}" y="{y}" width="{reach * CELL:g}" height="{ROW}" '
                     f'fill="{ink}"/>')
        ink = GROUND
    look = f' fill="{ink}"' * (ink != INK)
    look += ' font-weight="bold"' * ("1" in codes) + ' font-style="italic"' * ("3" in codes)
    if alone:
        look += f' textLength="{width * CELL:g}" lengthAdjust="spacingAndGlyphs"'
    xs = " ".join(f"{EDGE + cell[0] * CELL:g}" for cell in run)
    return f'<tspan x="{xs}"{look}>{escape("".join(cell[2] for cell in run))}</tspan>'


def escape(text):
    """The text as it stands in SVG, HTML and Markdown's tables."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def write_picture(tape, seat, scenes, out, max_gap=0.0):
    """Write the picture of a window after these scenes, the server's or a person's; returns its title."""
    columns, height = PICTURE
    newest, scene = collections.deque([], height - 2), (0.0, tape.viewer, {})
    for scene in scenes:
        newest.extend(rows_of([scene], tape.session, seat))
    rows = [row for pieces in newest for row in cells(break_rows(pieces, columns), columns)][2 - height:]
    last, name, event = scene
    title = clean_row(name or (seat.names[0][1] if seat else tape.session["room"]))
    gone = event.get("ev") == "leave" and event["who"] == name and event["n"] > (seat.n if seat else 0)
    if not gone and event.get("ev") != "end":  # else the program has ended, and its input line is gone
        rows += cells([("text", f"{title}> " if name else "> ")], columns)
        rows += cells([("bar", tape.view_at(last).bar("recorded").ljust(columns))], columns)[:1]
    out.write(window(rows, title))
    return title


class Moment:
    """A moment that a report shows: up to when, from which seats, and the text of a mark."""

    def __init__(self, t, seats=(), text="", until=float("inf")):
        self.t, self.seats, self.text = t, list(seats), text
        self.until = until  # how far it may last, while people only talk, so that one sees what came of it


class Survey:
    """What there is to tell of a session: how much was said by whom, what else happened, and what to show of it."""

    # One reading, line by line, with a View that keeps up: who sits where the tape knows, but not what was said.
    #
    # The moments shown are that everybody talks, that somebody leaves, that somebody comes late, and each mark.
    # Everybody talks when more of those in the room have said something than ever before. The newcomer is the last
    # one who was not here before and finds a history.

    def __init__(self, tape):
        tape.grow_whole()
        self.seats, self.view, self.known = tape.seats, View(), set()  # known: the names that were here
        self.said, self.course, self.end = collections.Counter(), [], tape.lines.moments[-1]  # said: by seats' n
        self.moments = {"talk": [], "leave": [], "join": [], "mark": []}
        self.talking, self.lasting = [], None  # the seats of the first; the moment that lasts while people only talk
        for i in range(len(tape.lines)):
            for event in tape.lines.read(i):
                if "ev" in event:
                    self.view.take(event)
                    self._take(i, event)
        self.messages = sum(self.said.values())

    def people(self):
        """How many different people there were, as far as names tell."""
        return len({seat.names[0][1] for seat in self.seats.values()})

    def _here(self):
        return [self.seats[n] for n in self.view.people.values()]

    def _take(self, i, event):
        word, t = event["ev"], event["t"]
        if word in ("say", "me"):
            self.said[self.view.people.get(event["who"])] += 1  # None is the server, by its console
            talking = [seat for seat in self._here() if seat.n in self.said]
            if len(talking) > len(self.talking):
                self.talking, self.lasting = talking, Moment(t, talking)
                self.moments["talk"] = [self.lasting]
            elif self.lasting and t <= self.lasting.until:
                self.lasting.t = t
        elif word in EVENTS and word != "session":
            self.course.append(event)
            self._look_at(i, event)

    def _look_at(self, i, event):
        word, t = event["ev"], event["t"]
        if word != "notice":
            self.lasting = None
        if word == "mark":
            self.lasting = Moment(t, text=event["text"])
            self.moments["mark"].append(self.lasting)
        elif word == "leave" and len(self.talking) > 1 and not self.moments["leave"]:
            gone = [seat for seat in self.talking if seat.last == i]
            self.lasting = Moment(t, self._here()[:1] + gone, until=t + LASTING_SECONDS)
            self.moments["leave"] = [self.lasting]
        elif word == "join" and len(self.said) > 1 and event["who"] not in self.known:
            self.moments["join"] = [Moment(t, [self.seats[event["n"]]])]
        self.known.update(self.view.people)


def write_report(path, folder, language="en"):
    """Make a folder with a report that only lacks its conclusions, and the pictures in it."""
    # The report itself is written last: if anything fails before, the same command can be given again.
    # At the head of its text stand the words of its language, as `name: words`.
    head, body = shipped(f"report-{language}.md").decode().replace("\r\n", "\n").split("\n\n", 1)
    words = dict(line.split(": ", 1) for line in head.split("\n"))
    file = os.path.join(folder, "report.md")
    with open_tape(path) as tape:
        if os.path.exists(file):
            raise ChatError(f"{file} exists already, perhaps with somebody's conclusions; choose another folder")
        _tell_if_private(tape)
        survey, numbers = Survey(tape), itertools.count(1)
        make_folder(file)
        values = _report_values(tape, survey, words)
        for what, moments in survey.moments.items():
            values[what] = "\n\n".join([_draw_moment(tape, folder, numbers, what, one, words) for one in moments])
    # A section whose content there is not, such as the marks of a session without, is left out.
    sections = [section for section in re.split("(?m)^(?=##)", body)
                if all(values[name] for name in re.findall(r"\{(\w+)\}", section))]
    with _open_output(file) as out:
        out.write("".join(sections).format(**values))
    return file


def _report_values(tape, survey, words):
    # What the places in the report's text are filled with, but for the pictures.
    def time_of(t):
        return clock(tape.session, t, "long") if t is not None else "—"

    rows = [(" → ".join(markdown(name) for i, name in seat.names), time_of(seat.t), time_of(seat.left),
             survey.said[seat.n]) for seat in survey.seats.values()]
    rows += [("server", "—", "—", survey.said[None])] * bool(survey.said[None])
    participants = [f"| {' | '.join(map(str, row))} |" for row in rows]
    course = [f"- {time_of(event['t'])} {_event_in_words(event, words)}" for event in survey.course]
    return {"room": markdown(tape.session["room"]), "date": tape.session["start"][:10],
            "time": clock(tape.session, 0.0), "length": _duration(survey.end, words),
            "people": str(survey.people()), "messages": str(survey.messages),
            "recorder": words["own"].format(who=markdown(tape.viewer)) if tape.viewer else words["whole"],
            "participants": "\n".join(participants), "course": "\n".join(course)}


def markdown(text):
    """The text made harmless in one row of Markdown."""
    # Markdown lets HTML through, so that is escaped first; then what Markdown itself would obey.
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escape(clean_row(text)))


def _duration(t, words):
    # In whole units, without those of which there are none.
    parts = zip((int(t) // 3600, int(t) // 60 % 60, int(t) % 60), (words["hours"], words["minutes"], words["seconds"]))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or f"0 {words['seconds']}"


def _event_in_words(event, words):
    # What happened, in the language of the report.
    template = words.get(f"{event['ev']}-{event.get('why')}", words[event["ev"]])
    return re.sub(r"\{(\w+)\}", lambda found: markdown(event[found.group(1)]), template)


def _draw_moment(tape, folder, numbers, what, moment, words):
    # The windows of the server and of those who were there, as Markdown with captions.
    parts, shown = [], moment.seats[:PICTURE_PEOPLE]
    # None is the server's. Of a person's own recording only their own window is told.
    windows = [None] if tape.viewer else [None] * (what != "join") + shown
    for seat, number in zip(windows, numbers):
        whose = f"seat-{seat.n}" if seat else "recording" if tape.viewer else "server"
        name = f"{number:02}-{what}-{whose}.svg"
        with _open_output(os.path.join(folder, name)) as out:
            title = write_picture(tape, seat, tape.between(seat, end=moment.t), out)
        caption = words["window"].format(who=markdown(title)) if seat or tape.viewer else words["server"]
        mark = f" — {markdown(moment.text)}" if moment.text else ""
        parts.append(f"![{caption}]({name})\n\n"
                     f"*{words['picture']} {number}. {caption}, {clock(tape.session, moment.t, 'long')}{mark}*")
    if len(moment.seats) > len(shown) and not tape.viewer:
        parts.append(words["more"].format(count=len(moment.seats) - len(shown)))
    return "\n\n".join(parts)


def list_recordings(folder=None):
    """The recordings in a folder, else those in sessions/ and the samples, newest first: (path, what is known)."""
    # Other files may lie there too: what cannot be read, or is no session, is passed over without a word.
    found, samples = [], [] if folder else [(name, f"a sample: {words}") for name, (file, words) in SAMPLES.items()]
    with contextlib.suppress(OSError):
        for name in os.listdir(folder or "sessions"):
            path = os.path.join(folder or "sessions", name)
            if name.endswith(".jsonl") and os.path.isfile(path):  # a pipe would have to be waited for
                with contextlib.suppress(OSError, ChatError), open(path, "rb") as file:
                    found.append((*_describe_recording(file), path))
    return [(path, label) for start, label, path in sorted(found, reverse=True)] + samples


def _describe_recording(file):
    # When it began, for the order, and its line in a list. Of a large file only both ends are read: who took part
    # stands everywhere in it. How it ended is told by the last line that makes sense, torn or damaged ones behind it.
    tape, size = Tape(file), file.seek(0, os.SEEK_END)
    session, lines = tape.session, tape.lines
    if not session:
        raise ChatError("this is not a recorded session")
    facts = [f"{session['start'][:16].replace('T', ' ')}  {clean_row(session['room'])}"]
    if size <= LISTED_BYTES:
        survey = Survey(tape)
        for number, one, many in ((survey.people(), "person", "people"), (survey.messages, "message", "messages")):
            facts.append(f"{number} {one if number == 1 else many}")
    else:
        lines = Lines(file, size - LISTED_BYTES)
        while lines.grow() is not None:
            pass
    events = (event for i in reversed(range(len(lines))) for event in lines.read(i)[-1:] if "here" not in event)
    last = next(events, {"t": 0.0})
    facts.append(minutes(last["t"]))
    facts.append("torn" if lines.end < size else "complete" if last.get("ev") in ("end", "leave") else "not ended")
    if tape.viewer:
        facts.append(f"as {clean_row(tape.viewer)} saw it")
    return datetime.datetime.fromisoformat(session["start"]).timestamp(), ", ".join(facts)


# By the ending of their files, which is also the name of the option. All but the picture write as they read, so
# that a long session takes no more memory.
EXPORTS = {"txt": write_transcript, "cast": write_cast, "svg": write_picture, "html": write_page}


def print_recordings(folder=None):
    """Print the recordings in a folder, else those in sessions/ and the samples."""
    if folder and not os.path.isdir(folder):
        raise ChatError(f"{folder} is no folder")
    recordings = list_recordings(folder)
    if not recordings:
        raise ChatError(f"there is no recording in {folder}")
    for path, label in recordings:
        print(f"{clean_row(path)}\n    {label}")


def export(path, kind, target, who=None, start=0.0, end=float("inf"), max_gap=2.0):
    """Write a recorded session in another form into a file, or to stdout without one."""
    # All that may be wrong with the question is found before the file is opened, which empties it.
    with open_tape(path) as tape:
        seat = _choose_seat(tape, who, end)
        if target and os.path.exists(target) and os.path.exists(path) and os.path.samefile(target, path):
            raise ChatError(f"{target} is the recording itself; choose another name")
        _tell_if_private(tape)
        with _open_output(target) as out:
            EXPORTS[kind](tape, seat, tape.between(seat, start, end), out, max_gap)


# === menu =========================================================================================
# What somebody meets who starts the program bare, as by a double click: it asks only what is needed, shows
# the command line that the answers stand for, and runs that. So the menu can do nothing that the command
# line cannot, and whoever uses it twice has seen what to type the third time.


def _choose_in_frame(title, labels):
    from prompt_toolkit.shortcuts import choice

    return choice(title, options=list(enumerate(labels)), show_frame=True)  # the keys 1 to 9 choose, too


def choose(title, labels):
    """Have the person choose one of these labels; returns its index."""
    if is_terminal(sys.stdin, sys.stdout):
        with contextlib.suppress(ChatError):  # what follows is the other way to ask
            return on_terminal(_choose_in_frame, title, labels)
    # Numbered lines do for pipes, for the run window of an IDE and for terminals that can only print.
    print(f"\n{title}")
    for number, label in enumerate(labels, 1):
        print(f"  {number}. {label}")
    return ask_until("Number", "1", lambda text: _whole(text, len(labels)) - 1)


def _whole(text, most):
    # By a pattern first, since int takes more than digits, and the digits of every script.
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= most:
        raise ChatError(f"{clean_row(text)} is not a number from 1 to {most}")
    return int(text)


def ask_until(question, default, check):
    """Ask until `check` takes the answer instead of raising a ChatError; returns what it returns."""
    while True:
        try:
            return check(ask(question, default))
        except ChatError as error:
            if error.code == "no-answer":  # nor will there be one to the next question
                raise
            print(f"{error}.")


# Each of these asks what its command needs, with what does least for an answer that is just Enter: nothing is
# recorded and nobody let in by mistake. It returns the words of a command line, or nothing where all is told.


def _menu_host():
    who = choose("Who can come in?", ["this computer only", "people with the code", "everyone on this network"])
    room = ask_until("Room", "chat", lambda text: check_text(text) and text)
    record = choose("Record what is said?", ["no", "yes, into a new file in sessions/"])
    return (["serve"] + ["--lan", "--open"][:who] + ([f"--room={room}"] if room != "chat" else [])
            + ["--log"] * record)


def _take_code(text):
    # An address that was typed, without the code before it: that is not to be seen in a command line.
    code, place = find_invite(text)
    parse_address(place)
    if code:
        os.environ["CHAT_INVITE"] = f"{code}@{place}"
    return place


def _menu_join():
    # Without an address to choose there is no question whether it is to be another one.
    recent = recent_addresses()
    number = choose("Where?", recent + ["another address"]) if recent else 0
    address = (recent + [None])[number] or ask_until("Address, as `serve` prints it", "127.0.0.1", _take_code)
    return ["join", *["--"] * address.startswith("-"), address]  # else it would be taken for an option


def _choose_recording():
    # The samples are always there, so nobody has to record something before they see what a replay is.
    recordings = list_recordings()
    if len(recordings) == len(SAMPLES):
        print("There is no recording in the folder sessions yet: host a chat and have it recorded. Samples:")
    return recordings[choose("Which one?", [label for path, label in recordings])][0]


def _menu_report():
    recording = _choose_recording()
    language = ("en", "ru")[choose("In which language?", ["English", "русский"])]
    # A report is written by hand from where this program ends: none is offered to be written over.
    base = f"report-{os.path.splitext(os.path.basename(recording))[0]}"
    names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
    free = next(name for name in names if not os.path.exists(name))

    def check(folder):
        if os.path.exists(os.path.join(folder, "report.md")):
            raise ChatError(f"there is a report in {folder} already")
        return folder

    folder = ask_until("Folder for the report", free, check)
    # In one word, else a folder that begins with a dash would be taken for an option.
    return ["replay", recording, f"--report={folder}"] + ["--lang", language] * (language != "en")


def _menu_give():
    print("This program is one file:", f"  {os.path.abspath(sys.argv[0])}",
          "Copy it to a USB stick or send it, as any file. Host a chat for people with the code here:",
          f"  {command_line('serve --lan')}",
          "It prints what one types there, with Python 3.8 or newer.", sep="\n")


MENU = (("host a chat", _menu_host), ("join a chat", _menu_join),
        ("replay a recording", lambda: ["replay", _choose_recording()]), ("make a report", _menu_report),
        ("give this program to a classmate", _menu_give), ("quit", None))


def menu(run):
    """Offer what can be done until the person quits; `run` takes the words of a command line."""
    # What fails is told and the menu comes back: a window that was opened by a double click would vanish
    # with the program, and the sentence with it. Ctrl+C ends what runs; where nothing runs, the menu.
    while True:
        try:
            function = MENU[choose("What would you like to do?", [label for label, function in MENU])][1]
            if not function:
                return
            words = function()
            if words:
                print(f"\n{command_line(clean_row(' '.join(map(shlex.quote, words))))}\n", flush=True)
                run(words)
        except ChatError as error:
            if error.code == "no-answer":
                return
            print(f"{error}.")
        except KeyboardInterrupt:
            return


# === command line =================================================================================
# argparse is used nowhere else; the functions above take plain arguments. The exit code is 0 if all went well
# or was ended by Ctrl+C, 1 for what failed, told in one sentence, and 2 for what makes no sense as a command.


def _add_command(commands, name, words, examples, run):
    # One command with its examples; every command may be told to write no colours.
    parser = commands.add_parser(
        name, help=words, description=words[0].upper() + words[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {program()} {name} {example}".rstrip() for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-color", action="store_true", help="write no colours; so does NO_COLOR=1")
    parser.set_defaults(run=run, parser=parser)
    return parser


def _number_option(words, convert, fits, form=".*"):
    # How argparse reads a number for an option; it says these words of one that does not fit.
    def read(text):
        with contextlib.suppress(ValueError):
            value = convert(text)
            if re.fullmatch(form, text) and fits(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {words}")

    return read


_count = _number_option("a whole number from 0 up", int, lambda value: True, "[0-9]{1,9}")
_seconds = _number_option("a number of seconds", float, lambda value: 0 <= value < 1e9)
_speed = _number_option("a speed: 2 is twice as fast", float, lambda value: 0 < value < 1e9)


def _add_serve(commands):
    parser = _add_command(commands, "serve", "open a room on this computer", (
        "", "--lan", "--lan --open --room lab --log", "--log lab.jsonl --port 0"), _run_serve)
    parser.add_argument("--host", help="listen on this address (default: 127.0.0.1, this computer only)")
    parser.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0 takes any free one")
    parser.add_argument("--lan", action="store_true", help="listen on all addresses, for people with the code")
    parser.add_argument("--open", action="store_true", help="let everyone in, and everything be read on its way")
    parser.add_argument("--room", default="chat", metavar="NAME", help="what the room is called")
    parser.add_argument("--log", nargs="?", const="", metavar="FILE.jsonl",
                        help="record the session, without FILE into a new one in sessions/")
    parser.add_argument("--history", type=_count, default=HISTORY, metavar="N",
                        help=f"lines a newcomer is given (default {HISTORY})")
    parser.add_argument("--rate", type=_count, default=RATE, metavar="N",
                        help=f"requests per second and person (default {RATE}; 0: no limit)")
    parser.add_argument("--max-people", type=_count, default=0, metavar="N", help="0 (the default): no limit")


def _run_serve(options):
    # How the options go together. To be reached by a whole network is never a default, and needs two words where
    # nothing keeps strangers out: one for the addresses, and one that says so aloud.
    if options.open and not options.lan and not options.host:
        options.parser.error("--open goes with --lan or --host")
    if options.lan and options.host:
        options.parser.error("--lan listens on all addresses and --host on one; choose")
    _check_log(options)
    if not 0 <= options.port < 65536:
        options.parser.error("a port is a number from 0 to 65535")
    try:
        check_text(options.room)
    except ChatError as error:
        options.parser.error(str(error))
    host = "" if options.lan else options.host or "127.0.0.1"
    log = default_path(options.room) if options.log == "" else options.log
    serve(host, options.port, options.room, log, options.history, options.rate, options.max_people,
          options.open)


def _check_log(options):
    # Else `join --log 192.168.1.5` would record into a file of that name.
    if options.log and not options.log.endswith(".jsonl"):
        command, file = options.parser.prog, options.log
        other = f"{command} {file} --log  or  " if command.endswith("join") else ""
        options.parser.error(f"--log takes a file that ends in .jsonl; write  {other}{command} --log {file}.jsonl")


def _add_join(commands):
    parser = _add_command(commands, "join", "take part in a room", (
        "", "K7Q2MX-9D3FTA-XW4P0K@192.168.1.5", "192.168.1.5:7012 --name bob", "--name bob --log"), _run_join)
    parser.add_argument("address", nargs="?", default="", metavar="[CODE@]ADDRESS",
                        help=f"host, host:port or [v6]:port (default 127.0.0.1:{PORT}); the code of a private room, if "
                             "it is not here, is taken from CHAT_INVITE or asked for")
    parser.add_argument("--name", help="what the others see (default: asked for, or the login name)")
    parser.add_argument("--log", nargs="?", const="", metavar="FILE.jsonl",
                        help="record what you see, without FILE into a new one in sessions/")
    parser.add_argument("--times", choices=TIMES, default=TIMES[0], help="how the time of a line is shown")


def _run_join(options):
    _check_log(options)
    join(options.address, options.name, options.log, options.times)


def _add_replay(commands):
    parser = _add_command(commands, "replay", "watch a recorded session again, or make a report of it", (
        "demo", "lab.jsonl --speed 4 --as bob", "lab.jsonl --follow", "lab.jsonl --report report --lang ru",
        "lab.jsonl --html lab.html", "lab.jsonl --svg bob.svg --as bob --at 1:23", "--list"), _run_replay)
    parser.add_argument("file", nargs="?", metavar="FILE", help=f"a recording; a sample: {', '.join(SAMPLES)}")
    parser.add_argument("--list", action="store_true", help="list the recordings in sessions/, or in the folder FILE")
    parser.add_argument("--as", dest="who", metavar="NAME",
                        help="only what this person saw; 57: who joined as line 57")
    parser.add_argument("--from", dest="start", type=_moment_of, default=0.0, metavar="T",
                        help="begin at this time, such as 1:23")
    parser.add_argument("--to", "--at", dest="end", type=_moment_of, default=float("inf"), metavar="T",
                        help="end at this time")
    parser.add_argument("--speed", type=_speed, default=1.0, metavar="X", help="2 is twice as fast")
    parser.add_argument("--max-gap", type=_seconds, default=2.0, metavar="S",
                        help="no silence longer than this (default 2; 0: as it was)")
    parser.add_argument("--instant", action="store_true", help="print everything at once")
    parser.add_argument("--follow", action="store_true", help="go on while the file grows")
    parser.add_argument("--times", choices=TIMES, default=TIMES[0], help="how the time of a line is shown")
    outputs = parser.add_mutually_exclusive_group()
    for kind, words in (("html", "one page that plays it in a browser"), ("svg", "a picture of the window at the end"),
                        ("cast", "for players of recorded terminals"), ("txt", "plain text")):
        outputs.add_argument(f"--{kind}", nargs="?", const="", metavar=f"OUT.{kind}", help=words)
    outputs.add_argument("--report", metavar="DIR", help="a folder with a report and its pictures")
    parser.add_argument("--lang", choices=("en", "ru"), help="of the report (default en)")


def _moment_of(text):
    try:
        return parse_minutes(text)
    except ChatError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _run_replay(options):
    if options.list:
        return print_recordings(options.file)
    if not options.file:
        options.parser.error("which FILE? --list lists what there is, demo is a sample")
    kinds = [kind for kind in EXPORTS if getattr(options, kind) is not None]
    if options.end < options.start:
        options.parser.error("--to is before --from")
    if options.times != TIMES[0] and (kinds or options.report):
        options.parser.error("--times is for what is shown, not for what is written")
    if options.lang and not options.report:
        options.parser.error("--lang goes with --report; a page asks the browser for its language")
    for kind in kinds:
        target = getattr(options, kind)
        if target and not target.endswith("." + kind):
            options.parser.error(f"--{kind} takes a file that ends in .{kind}")
        return export(options.file, kind, target, options.who, options.start, options.end, options.max_gap)
    if options.report:
        if options.who or options.start or options.end < float("inf"):
            options.parser.error("--report tells of the whole session, from every seat; leave out --as, --from "
                                 "and --to")
        return print(write_report(options.file, options.report, options.lang or "en"))
    return replay(options.file, options.who, options.start, options.end, options.speed, options.max_gap,
                  options.instant, options.follow, options.times)


def main(argv=None):
    """The command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that a terminal lacks must not end the program
            stream.reconfigure(errors="replace")
    words = sys.argv[1:] if argv is None else argv
    # The menu runs the command lines that it shows by the same function, so nothing is told in two ways.
    return _run(words) if words else _guarded(menu, _run)


def _run(words):
    parser = argparse.ArgumentParser(
        prog=program(), description="A chat for people on one network, in one file. Without a command: a menu.")
    parser.add_argument("--version", action="version", version=f"chat {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_serve, _add_join, _add_replay):
        add(commands)
    options = parser.parse_args(words)
    # Told to everything at once by what it means anywhere: prompt_toolkit and other programs know it as well.
    if options.no_color:
        os.environ["NO_COLOR"] = "1"
    return _guarded(options.run, options)


def _guarded(function, *arguments):
    # Everything that may go wrong, told in one sentence; returns the exit code. A traceback is for what is
    # wrong in this program itself. The sentence goes to stderr, so that stdout holds what was asked for only.
    try:
        function(*arguments)
    except ChatError as error:
        print(f"{program()}: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass  # it is what was asked for
    except BrokenPipeError:
        silence(sys.stdout)  # whoever read it has enough
    except OSError as error:
        silence(sys.stdout)  # which may be what failed
        print(f"{program()}: the system says: {error.strerror or error}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
