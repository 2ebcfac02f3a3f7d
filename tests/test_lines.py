"""Lines: what is encoded comes back, what is no line of a chat is refused, and names are what they seem."""
import json
import random
import subprocess
import sys
import time
import tracemalloc

import pytest

import chat

TOO_BIG = 1 << 53

# One of everything that travels, with all of its fields, in the order of the contract.
REQUESTS = {
    "hello": {"do": "hello", "name": "Юля", "id": 1},
    "say": {"do": "say", "text": "привет\nмир", "id": 0},
    "me": {"do": "me", "text": "машет 👋", "id": TOO_BIG - 1},
    "tell": {"do": "tell", "to": "bob", "text": "psst", "id": 4},
    "nick": {"do": "nick", "name": "bob-2", "id": 5},
    "who": {"do": "who", "id": 6},
    "ping": {"do": "ping", "id": 7},
    "bye": {"do": "bye"},
}
EVENTS = {
    "session": {"ev": "session", "n": 0, "t": 0.0, "v": 1, "id": "s1",
                "start": "2026-11-20T12:00:00.000+03:00", "room": "лаб"},
    "join": {"ev": "join", "n": 1, "t": 0.5, "who": "юля", "from": 0},
    "leave": {"ev": "leave", "n": 2, "t": 1.0, "who": "юля", "why": "kicked", "text": "too loud"},
    "nick": {"ev": "nick", "n": 3, "t": 61.0, "who": "юля", "name": "ann", "id": 1},
    "say": {"ev": "say", "n": 4, "t": 61.25, "who": "ann", "text": "hello", "id": 2},
    "me": {"ev": "me", "n": 5, "t": 62, "who": "ann", "text": "waves"},
    "notice": {"ev": "notice", "n": 6, "t": 63.0, "text": "recording failed"},
    "mark": {"ev": "mark", "n": 7, "t": 64.0, "text": "task 2"},
    "end": {"ev": "end", "n": 8, "t": 65.001},
}
REPLIES = {
    "welcome": {"re": "welcome", "t": 2.0, "you": "ann", "n": 8, "people": ["юля", "ann"], "id": 3},
    "tell": {"re": "tell", "t": 3.0, "who": "юля", "to": "ann", "text": "тише", "id": 4},
    "who": {"re": "who", "t": 4.0, "people": ["ann"], "id": 5},
    "error": {"re": "error", "t": 5.0, "code": "name-taken", "text": "the name ann is taken", "id": 6,
              "name": "ann-2"},
    "pong": {"re": "pong", "t": 6.0, "id": 7},
}

EVENT_LIKE = [*EVENTS.values(), *REPLIES.values()]
NEEDED = [(sample, field) for samples, table in ((EVENTS, chat.EVENTS), (REPLIES, chat.REPLIES))
          for word, sample in samples.items() for field in table[word]]


def word_of(sample):
    return " ".join(map(str, list(sample.items())[0])) if type(sample) is dict else None


def line_of(fields):
    return chat.encode(fields).decode()


def say(text):
    """The line of a say request, escaped as far as JSON can, so that it may hold half characters."""
    return json.dumps({"do": "say", "text": text})


def refusal_of(line):
    """The error with which a request is refused."""
    with pytest.raises(chat.ChatError) as caught:
        chat.decode_request(line)
    return caught.value


def code_of(line):
    """The code with which a request is refused; "ok" if it is not."""
    try:
        chat.decode_request(line)
    except chat.ChatError as error:
        return error.code
    return "ok"


def cheap(function, *arguments):
    """Call this, which must cost a few milliseconds, not seconds in which a whole room stands still."""
    before = time.thread_time()  # of the processor, for this thread alone: no other program counts
    try:
        return function(*arguments)
    finally:
        assert time.thread_time() - before < 1


# --- encode and decode ---


def test_there_is_a_sample_of_everything_that_travels():
    assert (list(REQUESTS), list(EVENTS), list(REPLIES)) == (
        list(chat.REQUESTS), list(chat.EVENTS), list(chat.REPLIES))


@pytest.mark.parametrize("sample", EVENT_LIKE, ids=word_of)
def test_an_event_or_reply_comes_back_as_it_was(sample):
    assert list(chat.decode_event(line_of(sample)).items()) == list(sample.items())


@pytest.mark.parametrize("sample", REQUESTS.values(), ids=word_of)
def test_a_request_comes_back_as_it_was(sample):
    assert list(chat.decode_request(line_of(sample)).items()) == list(sample.items())


def test_a_line_is_compact_and_keeps_the_order_of_its_keys():
    assert chat.encode(EVENTS["join"]) == '{"ev":"join","n":1,"t":0.5,"who":"юля","from":0}\n'.encode()


def test_fields_that_are_none_are_left_out():
    assert chat.encode({"re": "pong", "t": 1.0, "id": None}) == b'{"re":"pong","t":1.0}\n'


def test_an_id_of_0_is_not_left_out():
    assert chat.encode({"re": "pong", "t": 1.0, "id": 0}) == b'{"re":"pong","t":1.0,"id":0}\n'


def test_cyrillic_and_emoji_are_not_escaped():
    assert "юля: у меня 😀 ё".encode() in chat.encode({"text": "юля: у меня 😀 ё"})


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\rb", "a\u2028b", "a\x85b", "\x0b\x0c\x1c\x1d\x1ea"],
                         ids=ascii)
def test_a_line_is_one_line_whatever_the_text_holds(text):
    line = chat.encode({"do": "say", "text": text})
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert chat.decode_request(line.decode())["text"] == text


TEXTS = ["hello", "привет 😀", 'quote " and \\ backslash', "two\nrows\tand\ttabs", "\x01\x1b[31m\x7f\x9b",
         "\u2028\u2029", "</script>&/", "%s %d {text}", "e\u0301", "\U0010ffff"]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
@pytest.mark.parametrize("do", ["say", "me"])
@pytest.mark.parametrize("id", [None, 0, TOO_BIG - 1])
def test_encode_talk_gives_what_encode_gives(text, do, id):
    request = {"do": do, "text": text, "id": id}
    expected = chat.encode({"ev": do, "n": 12, "t": 3.25, "who": "юля", "text": text, "id": id})
    assert chat.encode_talk(12, 3.25, chat.quote("юля"), [request]) == expected


@pytest.mark.parametrize("t", [0.0, 0.001, 0.1, 1.0, 59.999, 12345.678, 1e7, 3e9 + 0.125])
def test_encode_talk_writes_times_as_encode_does(t):
    expected = chat.encode({"ev": "say", "n": 1, "t": t, "who": "a", "text": "b"})
    assert chat.encode_talk(1, t, chat.quote("a"), [{"do": "say", "text": "b"}]) == expected


def test_encode_talk_numbers_its_lines_from_n():
    lines = chat.encode_talk(5, 1.0, chat.quote("a"), [REQUESTS["say"], REQUESTS["me"], REQUESTS["say"]])
    assert [json.loads(line)["n"] for line in lines.splitlines()] == [5, 6, 7]
    assert [json.loads(line)["ev"] for line in lines.splitlines()] == ["say", "me", "say"]


@pytest.mark.parametrize("people", [["юля"], ["a", "b", "李"]], ids=len)
@pytest.mark.parametrize("id", [None, 0, TOO_BIG - 1])
@pytest.mark.parametrize("recorded", [None, True])
def test_encode_welcome_gives_what_encode_gives(people, id, recorded):
    expected = chat.encode({"re": "welcome", "t": 7.5, "you": "юля", "n": 3, "people": people,
                            "recorded": recorded, "id": id})
    quoted = ",".join(map(chat.quote, people))
    assert chat.encode_welcome(7.5, chat.quote("юля"), 3, quoted, {"recorded": recorded, "id": id}) == expected


@pytest.mark.parametrize("sample", [*EVENTS.values()], ids=word_of)
def test_the_number_of_an_event_is_found_in_its_line(sample):
    assert chat.number_of(chat.encode(sample)) == sample["n"]


def test_the_number_of_an_event_is_not_looked_for_in_its_text():
    line = chat.encode_talk(7, 1.0, chat.quote("a"), [{"do": "say", "text": '"n":5'}])
    assert chat.number_of(line) == 7


# --- what is no request ---


@pytest.mark.parametrize("line", [
    "", " ", "hello", "GET / HTTP/1.1", "[]", "5", "null", "true", '"say"', "{", '{"do":"ping"',
    '{"do":"ping",}', "{'do':'ping'}", '{"do":"ping"} x', '{"do":"ping"}{"do":"ping"}', '[{"do":"ping"}]',
    '\ufeff{"do":"ping"}', '{"do":"say","text":"a\tb"}', '{"do":"say","text":"\\x"}', '{do:"ping"}',
    "\0" * 10, "NaN", "\udcff\udcfe"],
    ids=ascii)
def test_what_is_not_a_json_object_is_refused(line):
    error = refusal_of(line)
    assert error.code == "bad-line" and "JSON" in str(error)


@pytest.mark.parametrize("line", ["{}", '{"do":null}', '{"do":5}', '{"do":true}', '{"do":["say"]}',
                                  '{"do":{}}', '{"do":"dance"}', '{"do":"SAY","text":"a"}',
                                  '{"ev":"say","text":"a"}', '{"DO":"ping"}'])
def test_what_asks_for_nothing_known_is_refused(line):
    error = refusal_of(line)
    assert error.code == "bad-line" and '"do"' in str(error)


@pytest.mark.parametrize("word, field", [(word, field) for word, needed in chat.REQUESTS.items()
                                         for field in needed])
@pytest.mark.parametrize("value", ["", "5", "1.5", "true", "null", "[]", '["a"]', "{}", "NaN"])
def test_a_request_with_a_field_missing_or_of_the_wrong_type_is_refused(word, field, value):
    fields = {key: json.dumps(other) for key, other in REQUESTS[word].items() if key != field}
    if value:
        fields[field] = value
    error = refusal_of("{%s}" % ",".join(f'"{key}":{other}' for key, other in fields.items()))
    assert error.code == "bad-line" and f'"{field}"' in str(error)


@pytest.mark.parametrize("id", ["true", "false", "-1", str(TOO_BIG), "1.0", "1e3", '"1"', "[1]", "{}", "NaN",
                                "Infinity", "-Infinity", "1e999", "9" * 4000, "9" * 10000],
                         ids=lambda id: id[:12])
def test_an_id_that_is_no_whole_number_from_0_to_2_53_is_refused(id):
    error = refusal_of('{"do":"ping","id":%s}' % id)
    assert (error.code, error.id) == ("bad-line", None)


@pytest.mark.parametrize("id", [0, 1, TOO_BIG - 1])
def test_an_id_may_be_any_number_from_0_to_2_53(id):
    assert chat.decode_request('{"do":"ping","id":%d}' % id)["id"] == id


def test_an_id_of_null_is_as_good_as_none():
    assert chat.decode_request('{"do":"ping","id":null}').get("id") is None


def test_fields_that_nobody_knows_are_ignored():
    request = chat.decode_request('{"x":NaN,"do":"say","y":{"z":[1e999]},"text":"hello","colour":"red"}')
    assert (request["do"], request["text"]) == ("say", "hello")


def test_half_characters_in_a_field_that_nobody_knows_are_ignored():
    assert chat.decode_request('{"do":"say","text":"hello","x":"\\ud800\udcff"}')["text"] == "hello"


@pytest.mark.parametrize("line, text", [('{"do":"say","text":"","text":"second"}', "second"),
                                        ('{"do":"say","text":"first","text":"second"}', "second")])
def test_of_a_key_given_twice_the_last_counts(line, text):
    assert chat.decode_request(line)["text"] == text


@pytest.mark.parametrize("line", ['{"do":"say","text":"good","text":""}', '{"do":"ping","id":1,"id":-1}',
                                  '{"do":"ping","do":"dance"}',
                                  '{"do":"say","text":"good","text":"\\u0000"}'])
def test_a_key_given_twice_smuggles_nothing_in(line):
    assert code_of(line) == "bad-line"


def test_spaces_and_a_carriage_return_around_a_line_do_no_harm():
    assert chat.decode_request(' \t{ "do" : "ping" , "id" : 3 } \r') == {"do": "ping", "id": 3}


@pytest.mark.parametrize("fields", ['"do":"say","text":""', '"do":"say"', '"do":"hello"',
                                    '"do":"tell","text":"a"', '"do":"nick","name":5',
                                    '"do":"me","text":"%s"' % ("a" * 4001), '"do":"dance"', '"do":5',
                                    '"text":"a"'], ids=lambda fields: fields[:24])
def test_a_refusal_carries_the_id_of_its_request(fields):
    assert refusal_of('{%s,"id":77}' % fields).id == 77


# --- brackets ---


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a":' * 100_000, '[{"a":' * 50_000,
                                  '{"do":"ping","x":' + "[" * 50_000 + "]" * 50_000 + "}"],
                         ids=["lists", "objects", "both", "closed"])
@pytest.mark.parametrize("decode", [chat.decode, chat.decode_event])
def test_a_hundred_thousand_brackets_are_refused(line, decode):
    with pytest.raises(chat.ChatError, match="nested"):
        decode(line)


def test_brackets_do_no_harm_to_a_thread_with_a_small_stack():
    # In a process of its own, because an overflow would end this one.
    script = """if True:
        import chat, threading
        def decode():
            many, few = "[" * 32_000 + "]" * 32_000, "[" * 31 + "]" * 31
            for line in ("[" * 100_000, '{"a":' * 100_000, '{"do":"ping","x":%s}' % many,
                         '{"do":"ping","x":%s}' % few):
                try:
                    print(chat.decode(line)["do"])
                except chat.ChatError as error:
                    print(error.code)
        threading.stack_size(256 << 10)
        thread = threading.Thread(target=decode)
        thread.start()
        thread.join()
        """
    done = subprocess.run([sys.executable, "-c", script], cwd=chat.os.path.dirname(chat.__file__), timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    assert (done.returncode, done.stdout.split()) == (0, ["bad-line", "bad-line", "bad-line", "ping"])


def nested(depth):
    return '{"do":"ping","x":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


def test_a_few_brackets_are_allowed():
    assert code_of(nested(chat.NESTING)) == "ok"


def test_one_bracket_too_many_is_refused():
    assert "nested" in str(refusal_of(nested(chat.NESTING + 1)))


@pytest.mark.parametrize("text", ["[" * 3000, "{[" * 1000 + 'a "quoted" \\ {[', '"' * 50 + "[" * 50,
                                  "\\[" * 50 + '"'],
                         ids=lambda text: text[-8:])
def test_brackets_inside_a_text_are_only_text(text):
    assert chat.decode_request(line_of({"do": "say", "text": text}))["text"] == text


def test_quotes_inside_a_text_hide_no_brackets():
    line = '{"do":"say","text":"\\"","x":' + "[" * 40 + "]" * 40 + "}"
    assert "nested" in str(refusal_of(line))


@pytest.mark.parametrize("line", ["[" * 40 + '"' + '\\"' * 32_000, "[" * 40 + '"' * 65_000,
                                  "[" * 40 + "\\" * 65_000, "[" * 40 + '"' + "\\" * 65_000, '{"' * 30_000],
                         ids=["escaped quotes", "quotes", "backslashes", "quote and backslashes", "objects"])
def test_no_line_takes_long_to_refuse(line):
    assert cheap(refusal_of, line).code == "bad-line"


# --- texts ---


@pytest.mark.parametrize("text", ["", " ", "\n", " \n\t ", "\r\n" * 5, "\u3000", "\u00a0\u2003", "\u2028",
                                  "\x1c"],
                         ids=ascii)
def test_an_empty_or_blank_text_is_refused(text):
    assert code_of(say(text)) == "bad-line"


@pytest.mark.parametrize("point", ["a", "ж", "😀"])
def test_a_text_may_have_4000_code_points(point):
    assert code_of(say(point * 4000)) == "ok"


@pytest.mark.parametrize("point", ["a", "ж", "😀"])
def test_a_text_of_4001_code_points_is_too_long(point):
    error = refusal_of(say(point * 4001))
    assert error.code == "too-long" and "4,000" in str(error) and "4,001" in str(error)


def test_a_text_may_have_60_lines():
    assert code_of(say("\n".join("a" * 60))) == "ok"


def test_a_text_of_61_lines_is_too_long():
    assert code_of(say("\n".join("a" * 61))) == "too-long"


@pytest.mark.parametrize("text", ["a\0b", "\0", "\ud800", "a\udfff", "\ude00\ud83d", "ok\udc80", "\ud83d 😀"],
                         ids=ascii)
def test_a_text_with_nul_or_half_a_character_is_refused(text):
    error = refusal_of(say(text))
    assert error.code == "bad-line" and "not text" in str(error)


def test_a_character_escaped_as_two_halves_is_whole():
    assert chat.decode_request('{"do":"say","text":"\\ud83d\\ude00"}')["text"] == "😀"


@pytest.mark.parametrize("text", [b"\xff", b"caf\xe9", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80",
                                  b"\xc0\x80"],
                         ids=str)
def test_a_text_that_is_not_utf_8_is_refused(text):
    (line,) = chat.lines_of(b'{"do":"say","text":"a' + text + b'"}\n')
    assert "not text" in str(refusal_of(line))


@pytest.mark.parametrize("line", ['{"do":"hello","name":"a\\ud800"}', '{"do":"nick","name":"\\udfff"}',
                                  '{"do":"tell","to":"\udcff","text":"hi"}'], ids=ascii)
def test_half_a_character_in_a_name_is_refused(line):
    assert code_of(line) == "bad-line"


# --- lines that are too long ---


def ping_of(size, letter="a"):
    """A line of so many bytes, most of them in a field that nobody knows."""
    line = '{"do":"ping","x":"%s"}' % (letter * ((size - 20) // len(letter.encode())))
    return line + " " * (size - len(line.encode()))


def codes_of(data, *more):
    """What becomes of the lines in these pieces when they arrive: "ok" or the code of their refusal."""
    return [code_of(line) for line in arrived(data, *more)]


@pytest.mark.parametrize("letter", ["a", "ж", "😀"])
def test_a_line_may_have_64_kib(letter):
    assert codes_of(ping_of(chat.LINE_BYTES, letter).encode() + b"\n") == ["ok"]


@pytest.mark.parametrize("letter", ["a", "ж", "😀"])
def test_a_line_of_more_than_64_kib_is_too_long(letter):
    assert codes_of(ping_of(chat.LINE_BYTES + 1, letter).encode() + b"\n") == ["too-long"]


def test_the_longest_text_fits_into_a_line_even_when_escaped():
    assert len(say("😀" * 4000)) > 45_000
    assert codes_of(say("😀" * 4000).encode() + b"\n") == ["ok"]


# --- events and replies ---


@pytest.mark.parametrize("sample, field", NEEDED,
                         ids=lambda value: value if type(value) is str else word_of(value))
@pytest.mark.parametrize("value", [..., None, [[]], {}, True, -1.0, "\ud800"], ids=repr)
def test_an_event_with_a_field_missing_or_wrong_is_refused(sample, field, value):
    event = {key: other for key, other in sample.items() if key != field or value is not ...}
    if value is not ...:
        event[field] = value
    with pytest.raises(chat.ChatError, match=f'"{field}"'):
        chat.decode_event(json.dumps(event))


@pytest.mark.parametrize("t", ["NaN", "Infinity", "-Infinity", "1e999", "-0.001", "1e11", "true", '"0"',
                               "null", "9" * 400])
def test_a_time_that_is_no_number_of_seconds_is_refused(t):
    with pytest.raises(chat.ChatError, match='"t"'):
        chat.decode_event('{"ev":"end","n":1,"t":%s}' % t)


@pytest.mark.parametrize("n", ["1.0", str(TOO_BIG), "-1", "true", "1e3"])
def test_a_number_that_is_not_whole_is_refused(n):
    with pytest.raises(chat.ChatError, match='"n"'):
        chat.decode_event('{"ev":"end","n":%s,"t":1.0}' % n)


@pytest.mark.parametrize("start", ["2026-11-20T12:00:00.000", "2026-11-20", "yesterday", "",
                                   "2026-13-20T12:00:00+03:00", "2026-11-20T12:00:00+99:00",
                                   "٢٠٢٦-11-20T12:00:00+03:00", 1700000000])
def test_a_start_without_date_time_and_zone_is_refused(start):
    with pytest.raises(chat.ChatError, match='"start"'):
        chat.decode_event(json.dumps({**EVENTS["session"], "start": start}))


@pytest.mark.parametrize("people", [["a", 5], [None], [["a"]], "ann", ["\ud800"]], ids=ascii)
def test_people_are_a_list_of_names(people):
    with pytest.raises(chat.ChatError, match='"people"'):
        chat.decode_event(json.dumps({**REPLIES["who"], "people": people}))


@pytest.mark.parametrize("line", ['{"t":1}', '{"do":"say","text":"a","t":1}', '{"ev":5,"t":1}',
                                  '{"ev":null,"t":1}', '{"ev":["say"],"t":1}', '{"re":{},"t":1}',
                                  '{"ev":null,"re":"pong","t":1}', '{"ev":"\\ud800","t":1}'])
def test_what_is_neither_event_nor_reply_is_refused(line):
    with pytest.raises(chat.ChatError, match="neither"):
        chat.decode_event(line)


@pytest.mark.parametrize("line", ['{"ev":"file","n":9,"t":1.5,"size":7}', '{"re":"hint","t":0}'])
def test_an_event_of_a_later_version_passes(line):
    assert chat.decode_event(line) == json.loads(line)


@pytest.mark.parametrize("line", ['{"ev":"file","n":9}', '{"re":"hint","t":"soon"}'])
def test_an_event_of_a_later_version_has_a_time_too(line):
    with pytest.raises(chat.ChatError, match='"t"'):
        chat.decode_event(line)


def test_a_session_of_a_later_version_is_refused():
    with pytest.raises(chat.ChatError, match="newer"):
        chat.check_version({**EVENTS["session"], "v": chat.VERSION + 1})


def test_a_session_of_this_version_is_not_refused():
    chat.check_version({**EVENTS["session"], "v": chat.VERSION})


# --- lines that arrive in pieces ---


def receiver(*pieces):
    """Something like recv: it gives one piece after the other, of each no more than it is asked for."""
    waiting = list(reversed(pieces))

    def receive(size):
        if not waiting:
            return b""
        piece = waiting.pop()
        if len(piece) > size:
            waiting.append(piece[size:])
        return piece[:size]

    return receive


def arrived(*pieces, limit=chat.LINE_BYTES):
    return [line for block in chat.blocks(receiver(*pieces), limit) for line in chat.lines_of(block)]


def cut(data, size):
    return [data[place:place + size] for place in range(0, len(data), size)]


LINES = ["one", "", "два 😀", "x" * 99, "\u2028\x85\x0b", "last"]
STREAM = "".join(line + "\n" for line in LINES).encode()


def test_lines_arrive_whole_in_one_piece():
    assert arrived(STREAM) == LINES


def test_lines_arrive_whole_when_every_byte_comes_alone():
    assert arrived(*cut(STREAM, 1)) == LINES


@pytest.mark.parametrize("place", range(1, len(STREAM)))
def test_lines_arrive_whole_wherever_the_stream_is_cut(place):
    assert arrived(STREAM[:place], STREAM[place:]) == LINES


def test_lines_arrive_whole_in_random_pieces():
    chance = random.Random(7011)
    lines = ["ж" * chance.choice([0, 1, 30, 500, 3000, 32_000]) for _ in range(200)]
    rest, pieces = "".join(line + "\n" for line in lines).encode(), []
    while rest:
        size = chance.choice([1, 2, 100, 1023, 1024, 1025, 70_000])
        pieces.append(rest[:size])
        rest = rest[size:]
    assert arrived(*pieces) == lines


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_lines_may_end_as_windows_ends_them(size):
    lines = arrived(*cut(b'{"do":"ping"}\r\n{"do":"who","id":1}\r\n', size))
    assert [chat.decode_request(line)["do"] for line in lines] == ["ping", "who"]


def test_lines_that_came_together_stay_together():
    assert list(chat.blocks(receiver(b"a\nb\nc", b"\nd\n"), 100)) == [b"a\nb\n", b"c\nd\n"]


def test_an_unfinished_last_line_is_no_line():
    assert arrived(b"one\ntw", b"o") == ["one"]


@pytest.mark.parametrize("letter", ["x", "ж"])
@pytest.mark.parametrize("size", [100, 1000, 1024, 4096, 65_535, 65_536, 1 << 20])
def test_a_line_too_long_is_refused_once_and_the_next_is_intact_however_cut(size, letter):
    lines = ['{"do":"ping"}', ping_of(70_000, letter), '{"do":"who"}', ping_of(chat.LINE_BYTES + 1, letter),
             ping_of(300_000, letter), '{"do":"bye"}']
    data = "".join(line + "\n" for line in lines).encode()
    assert codes_of(*cut(data, size)) == ["ok", "too-long", "ok", "too-long", "too-long", "ok"]


@pytest.mark.parametrize("size", [1, 3, 64])
def test_a_line_too_long_is_named_once_by_none(size):
    data = b"one\n" + b"x" * 500 + b"\n" + b"two\n" + b"y" * 500 + b"\nthree\n"
    assert arrived(*cut(data, size), limit=50) == ["one", None, "two", None, "three"]


def test_what_follows_a_line_too_long_in_the_same_piece_is_intact():
    assert arrived(b"x" * 500, b"xx\none\ntwo\nthr", b"ee\n", limit=50) == [None, "one", "two", "three"]


def test_a_line_as_long_as_the_limit_arrives():
    assert arrived(*cut(b"x" * 50 + b"\nnext\n", 1), limit=50) == ["x" * 50, "next"]


def test_an_endless_line_takes_no_memory():
    left = 1000

    def receive(size):
        nonlocal left
        left -= 1
        return b"x" * size if left else b""

    tracemalloc.start()
    try:
        assert list(chat.blocks(receive, chat.LINE_BYTES)) == [None]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def asked_sizes(*pieces):
    """How much was asked for each time while these pieces arrived."""
    receive, sizes = receiver(*pieces), []

    def remember(size):
        sizes.append(size)
        return receive(size)

    for _ in chat.blocks(remember, chat.LINE_BYTES):
        pass
    return sizes


def test_little_is_asked_for_while_little_comes():
    assert set(asked_sizes(*[b"hello\n"] * 50)) == {chat.READ_BYTES[0]}


def test_more_is_asked_for_when_much_comes_but_not_without_end():
    assert max(asked_sizes(b"hello\n" * 100_000)) == chat.READ_BYTES[1]


def test_little_is_asked_for_again_when_a_flood_is_over():
    assert asked_sizes(b"hello\n" * 100_000, *[b"hello\n"] * 50)[-1] == chat.READ_BYTES[0]


# --- names ---


def refused_name(name):
    with pytest.raises(chat.ChatError) as caught:
        chat.check_name(name)
    assert caught.value.code == "bad-name"
    return caught.value


@pytest.mark.parametrize("name", ["a", "bob", "Bob", "Юля", "李雷", "محمد", "प्रिया", "สมชาย", "דוד", "Ünal",
                                  "3com", "٣", "ann-2", "a_b.c-d", "x" * 32, "𠮷" * 32, "servers",
                                  "q\u0301\u0302", "Ⅷ", "meme"])
def test_a_name_in_any_script_is_taken_as_it_is(name):
    assert chat.check_name(name) == name


@pytest.mark.parametrize("typed, name", [("e\u0301va", "éva"), ("И\u0306ося", "Йося"), ("\u212a", "K")],
                         ids=ascii)
def test_a_name_is_composed(typed, name):
    assert chat.check_name(typed) == name


def test_the_length_of_a_name_is_that_of_the_composed_one():
    assert chat.check_name("e\u0301" * 32) == "é" * 32


@pytest.mark.parametrize("name", ["x" * 33, "ж" * 33, "e\u0301" * 33, "e\u0301" * 500,
                                  "α\u0314\u0300\u0345" * 33, "x" * 60_000],
                         ids=lambda name: f"{len(name)} of {ascii(name[:4])}")
def test_a_name_of_more_than_32_code_points_is_refused(name):
    assert "32" in str(refused_name(name))


@pytest.mark.parametrize("name", ["", " ", "\u3000", "a b", " a", "a ", "a\n", "a\r", "\na", "a\tb", "_a",
                                  ".a", "-a", "\u0301a", "a!", "a@b", "a/b", "a:b", '"a"', "<b>", "😀", "a😀",
                                  "a\u200bb", "a\u200db", "a\u202eb", "a\u2066b", "a\0", "\x1b[31mred",
                                  "a\x9b", "a\u00ad", "a\ue000", "a\ufeff", "a\U000e0041", "a\ud800",
                                  "a\u2028b"], ids=ascii)
def test_a_name_of_anything_but_letters_marks_and_digits_is_refused(name):
    refused_name(name)


@pytest.mark.parametrize("name", ["\u3164", "bob\u3164", "b\u115fob", "bob\u1160", "bob\uffa0", "bob\ufe0f",
                                  "bob\ufe00", "bob\u034f", "bob\u17b4", "bob\u17b5", "bob\u180b",
                                  "bob\u180f", "bob\U000e0101"],
                         ids=ascii)
def test_a_name_with_what_nobody_sees_is_refused(name):
    # Else somebody could be called as bob is, for every eye.
    refused_name(name)


@pytest.mark.parametrize("name", [None, 5, True, ["bob"], {}, b"bob"], ids=str)
def test_a_name_that_is_no_string_is_refused(name):
    refused_name(name)


def test_two_marks_in_a_row_are_allowed_in_a_name():
    assert chat.check_name("q\u0301\u0302r\u0301\u0302")


def test_three_marks_in_a_row_are_not():
    assert "marks" in str(refused_name("q\u0301\u0302\u0303"))


@pytest.mark.parametrize("name", ["server", "system", "admin", "all", "here", "everyone", "me", "you", "chat",
                                  "Server", "ALL", "Ｙｏｕ", "𝐦𝐞", "ａdmin"])
def test_a_reserved_name_is_refused_however_written(name):
    assert "reserved" in str(refused_name(name))


@pytest.mark.parametrize("one, other", [("Bob", "bob"), ("ＢＯＢ", "bob"), ("Юля", "ЮЛЯ"), ("Straße", "STRASSE"),
                                        ("ﬁn", "fin"), ("ΣΊΣΥΦΟΣ", "σίσυφος"), ("e\u0301va", "ÉVA"),
                                        ("①", "1"), ("𝐛𝐨𝐛", "bob"), ("K", "k"), ("\u0390", "\u03aa\u0301")])
def test_names_that_differ_in_case_or_width_only_are_the_same(one, other):
    assert chat.name_key(one) == chat.name_key(other)


@pytest.mark.parametrize("one, other", [("bob", "bob-2"), ("bob", "rob"), ("ann", "ánn"), ("a.b", "a_b"),
                                        ("Юля", "Оля")])
def test_names_that_differ_are_different(one, other):
    assert chat.name_key(one) != chat.name_key(other)


def test_the_key_of_a_key_is_that_key():
    for point in map(chr, range(0x110000)):
        key = chat.name_key(point)
        if key != point:
            assert chat.name_key(key) == key, ascii(point)


@pytest.mark.parametrize("name, suggestion", [
    ("Ivan Petrov", "Ivan_Petrov"), ("@bob!", "bob"), (" bob ", "bob_"), ("_.-bob", "bob"),
    ("x" * 40, "x" * 32), ("юля 😀", "юля_"), ("e\u0301va!", "éva"), ("bob\x1b[0m", "bob0m")])
def test_a_suggestion_is_as_near_as_the_rules_allow(name, suggestion):
    assert chat.suggest_name(name) == suggestion


@pytest.mark.parametrize("name", ["", "!!!", "😀", "_._", "\u0301", "\x1b["], ids=ascii)
def test_there_is_no_suggestion_for_what_has_no_letters(name):
    assert chat.suggest_name(name) is None


def test_a_refused_name_comes_with_a_suggestion():
    assert refused_name("Ivan Petrov!").name == "Ivan_Petrov"
    assert refused_name("x" * 40).name == "x" * 32


def test_every_suggestion_is_allowed():
    chance = random.Random(7011)
    alphabet = ["b", "Я", "7", "é", "e", "\u0301", "\u0316", "李", "ᄀ", "ᅡ", "ᆨ", " ", "!", "_", ".", "-",
                "\0", "\x1b", "\u200d", "😀", "\ud800", "ﬁ", "İ", "ß", "٣"]
    for _ in range(5000):
        name = "".join(chance.choice(alphabet) for _ in range(chance.choice([1, 3, 10, 80])))
        suggestion = chat.suggest_name(name)
        if suggestion is not None:
            chat.check_name(suggestion)


@pytest.mark.parametrize("name", ["@all", "me!", "<server>", "Admin?", "#here", "\u0301you"], ids=ascii)
def test_a_reserved_name_is_not_suggested(name):
    suggestion = chat.suggest_name(name)
    assert suggestion is None or chat.check_name(suggestion) == suggestion


@pytest.mark.parametrize("start", ['"do":"hello","name"', '"do":"nick","name"',
                                   '"do":"tell","text":"hi","to"'])
def test_no_name_takes_long_to_judge(start):
    # Marks in the wrong order are sorted by the normalization, in a time that grows with their square.
    room, member = chat.Room(), chat.Member(None)
    if "hello" not in start:
        room.ask(member, {"do": "hello", "name": "bob"})
    line = '{%s:"a%s"}' % (start, "\u0315" * 16_000 + "\u0316" * 16_000)
    refusals = chat.Refusals()
    cheap(chat.act, room, member, [line], refusals)
    assert refusals.row == 1


@pytest.mark.parametrize("text", ["\u200b", "\u2060 \ufeff", "\u200d", "\u3164\n", "\u2800\u2800", "\u034f",
                                  "\U00016fe4", "\U0001bca0 \U0001d173", "\ufff0\U00013430", "\U0001d159"], ids=ascii)
def test_a_text_that_nobody_would_see_is_blank(text):
    with pytest.raises(chat.ChatError, match="nothing in this message"):
        chat.check_text(text)


@pytest.mark.parametrize("name, other", [
    ("alice.", "alice"), ("alice_", "Alice"), ("сос", "coc"), ("Éva", "eva"), ("ВОВА", "BOBA"), ("Ivan", "lvan"),
    ("b0b", "bob"), ("ｂｏｂ", "bob"), ("ADMIN.", "admin"), ("Юлий", "Юлии"), ("ΝΙΚ", "NIK"), ("ёж", "еж")])
def test_names_that_look_alike(name, other):
    assert chat.looks_of(name) == chat.looks_of(other)


@pytest.mark.parametrize("name, other", [("bob-2", "bob-3"), ("ann", "anna"), ("юля", "юра"), ("李雷", "韩梅")])
def test_names_that_do_not(name, other):
    assert chat.looks_of(name) != chat.looks_of(other)


@pytest.mark.parametrize("name, free", [("аlice", "alice"), ("Юлиa", "Юли"), ("Ωmega", "mega"), ("x_Юляz-y", "x_Юля-y")])
def test_a_word_of_a_name_is_of_one_script(name, free):
    with pytest.raises(chat.ChatError) as refusal:
        chat.check_name(name)
    assert refusal.value.name == free and chat.check_name(free) == free


@pytest.mark.parametrize("name", ["Юля_PC", "Юля2", "bob.Ω", "李雷bob", "Éva-й"])
def test_words_of_several_scripts_make_a_name(name):
    assert chat.check_name(name) == name


@pytest.mark.parametrize("name", ["server.", "SÉRVER", "a11", "here_", "АLL", "sеrvеr"])
def test_what_looks_reserved_is_reserved(name):
    with pytest.raises(chat.ChatError, match="reserved"):
        chat.check_name(name)


@pytest.mark.parametrize("field, odd", [(field, odd) for field in ("id", "k", "name") for odd in
                                        (None, True, -1, 1.5, 1 << 60, [], {}, [[1]], "\ud800")
                                        ] + [("id", "1"), ("k", "1"), ("name", 7)])
def test_what_a_server_says_is_judged_wherever_it_stands(field, odd):
    for line in ({"ev": "say", "n": 1, "t": 0.0, "who": "a", "text": "b"}, {"re": "error", "t": 0.0, "code": "x", "text": "y"},
                 {"ev": "poll", "t": 0.0}):
        with pytest.raises(chat.ChatError):
            chat.decode_event(json.dumps({**line, field: odd}))
