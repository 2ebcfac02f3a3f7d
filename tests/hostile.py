"""A server that means harm: the client lives through everything that it says, and shows what makes sense."""
import contextlib
import json
import random
import re
import socket
import threading

import chat
import people
from helpers import EVIL, ODD, SESSION, join, leave, mark, nick, say, tell, wait_for, welcome
from people import Witness
from strangers import TOKENS

OPENING = [{**welcome(1, "bob", "eve"), "token": "1.0", "run": "r", "since": 1}, SESSION, join(2, "bob")]
VALID = [say(3, "eve", "hi bob"), {**say(4, "bob", "mine"), "id": 1}, join(5, "юля"), nick(6, "юля", "ann"),
         leave(7, "ann", "kicked", text="loud"), mark(8), tell(8.5, "eve", "bob"), {**mark(9), "ev": "notice"},
         {"re": "error", "t": 9.0, "code": "muted", "text": "no", "id": 2, "name": "b"},
         {"re": "pong", "t": 9.0, "k": 3}, {"re": "who", "t": 9.0, "people": ["eve", "bob"], "away": {"eve": 3}},
         OPENING[0], SESSION,
         {"ev": "later", "n": 10, "t": 9.0, "x": [1, {"y": EVIL}]}]
UNWANTED = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def mutated(chance):
    """A line of a server with something wrong: an odd value, or odd bytes."""
    event = dict(chance.choice(VALID))
    if chance.random() < 0.5:
        event[chance.choice([*event, "id", "name", "you", "k", "n", "seat", "since", "gone"])] = chance.choice(ODD)
        event.pop("end", None)
        return (json.dumps(event) + "\n").encode()
    line = bytearray(chat.encode(event))
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(line))
        line[at:at + chance.randrange(6)] = chance.choice(TOKENS)
    return bytes(line)


def hostile(seed=1, lines=200_000, links=20):
    """So many malformed lines of a server, over several links; then one that makes sense, which is shown."""
    chance = random.Random(seed)
    with people.hurried(), socket.create_server(("127.0.0.1", 0)) as listener:
        bob, shown = Witness(listener.getsockname()), 0
        entering = threading.Thread(target=bob.enter, args=("bob",), daemon=True)
        entering.start()
        for link in range(links):
            sock, _ = listener.accept()
            with sock:
                _attack(sock, chance, lines // links, link)
                entering.join()
                wait_for(lambda: any(f"alive {link}" in row for row in bob.screen.rows[-200:]), f"alive {link}")
                wrong = [row for row in bob.screen.rows if UNWANTED.search(row)]
                assert not wrong, f"on the screen: {ascii(wrong[0])}"
                shown += len(bob.screen.rows)
                bob.screen.rows, bob.taken, bob.screen.given = [], [], []
                sock.shutdown(socket.SHUT_RDWR)
        bob.link.parting = True
        bob.leave()
    return (f"{lines:,} malformed lines of a server over {links} links: {shown:,} rows shown, all harmless; "
            f"the client lives")


def _attack(sock, chance, count, link):
    # Each session is another one, or its numbers would all have been seen.
    sock.recv(1000)
    threading.Thread(target=_pass_over, args=(sock,), daemon=True).start()
    opening = [OPENING[0], {**SESSION, "id": f"s{link}"}, OPENING[2]]
    sock.sendall(b"".join(map(chat.encode, opening)))
    while count > 0:
        part = [mutated(chance) for _ in range(min(count, 100))]
        part = [line for line in part if not ENDING.search(line)]
        sock.sendall(b"".join(part))
        count -= 100
    sock.sendall(b"\n" + chat.encode({"re": "error", "t": 9.0, "code": "x", "text": f"alive {link}"}))


ENDING = re.compile(rb'"code":\s*"(kicked|elsewhere|no-key)"|"ev":\s*"end"')  # after which it has a right to go


def _pass_over(sock):
    with contextlib.suppress(OSError):
        while sock.recv(1 << 16):
            pass
