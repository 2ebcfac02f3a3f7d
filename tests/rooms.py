"""What tests of log, fan-out and room share: a room without a network, and members on wires."""
import json

import chat
from helpers import Tape, Wire, ask

SESSION = {"ev": "session", "n": 0, "t": 0.0, "v": 1, "id": "s1", "start": "2100-01-01T00:00:00.000+00:00",
           "room": "lab"}  # in the future, so that every time is 0.0


def taped_room(**options):
    room = chat.Room("lab", **options)
    room.fanout.recording = Tape()
    return room


def newcomer(room, name, space=None, id=None):
    """A member on a wire of its own, let in with the next round."""
    member = chat.Member(Wire(space))
    ask(room, member, "hello", name=name, id=id)
    return member


def enter(room, name, space=None):
    """A member who is inside."""
    member = newcomer(room, name, space)
    room.flush()
    return member


def say(room, member, *texts):
    """One batch of talk, and the round that carries it out."""
    talk(room, member, *texts)
    room.flush()


def talk(room, member, *texts):
    ask(room, member, "talk", said=[{"do": "say", "text": text} for text in texts])


def open_up(room, member, space=None):
    """The wire of a member takes more again, and the room is told, as by the caretaker."""
    member.out.space = space
    with room.fanout.baton:
        member.watched = False
        room.fanout.stuck = [other for other in room.fanout.stuck if other is not member]
        room.fanout.push(member)
    room.flush()


def after_join(member):
    """The encoded events that a member was given since its own join, with it."""
    lines = member.out.data.splitlines(True)
    return lines[next(i for i, line in enumerate(lines) if own_join(line, member)):]


def own_join(line, member):
    event = json.loads(line)
    return event.get("ev") == "join" and event["n"] == member.seat


def words(lines):
    """What lines are, in short: their first value, and what was said."""
    return [line["text"] if line.get("ev") in ("say", "me") else line.get("ev", line.get("re"))
            for line in lines]


def texts(lines):
    return [line["text"] for line in lines if line.get("ev") in ("say", "me")]


def numbers(lines):
    return [line["n"] for line in lines if "ev" in line]
