"""What tool parsers are built from: markers, text in pieces, JSON and Python literals as they arrive, schemas."""

from __future__ import annotations

import ast
import json
import re
import warnings
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.proto.tool_parsers import json_text, python_text
from tensoryard.proto.tool_parsers.markers import Markers
from tensoryard.proto.tool_parsers.schema import json_of, parameter_types
from tensoryard.proto.tool_parsers.source import CutOff, Malformed, Pump, Source


def read(grammar, pieces, *, end=True):
    """What a grammar writes of the pieces, and what it says at the end: None when it came to its end."""
    source, written = Source(), []
    reading = grammar(source, written.append)
    try:
        for piece in pieces:
            source.give(piece)
            next(reading)
        if end:
            source.end()
            next(reading)
    except StopIteration:
        return "".join(written), None
    except Malformed as problem:
        return "".join(written), problem
    return "".join(written), "waits"


def cut(text, at):
    """`text` in pieces that end at each of the positions."""
    edges = [0, *sorted({position % (len(text) + 1) for position in at}), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


# --- markers


@given(
    st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=5, unique=True),
    st.text("ab<", max_size=40),
)
def test_markers_know_every_beginning(markers, text):
    """After each symbol the depth is the longest end that begins a marker; found is a marker that ends there."""
    automaton = Markers(markers)
    node = 0
    for position, symbol in enumerate(text, 1):
        node = automaton.step(node, symbol)
        seen = text[:position]
        longest = max(
            (size for marker in markers for size in range(1, len(marker) + 1) if seen.endswith(marker[:size])),
            default=0,
        )
        assert automaton.depth[node] == longest
        found = automaton.found[node]
        assert (found is None) == (not any(seen.endswith(marker) for marker in markers))
        assert found is None or seen.endswith(found)


def test_markers_take_any_symbols():
    """Token ids are markers as well; an empty marker is refused."""
    automaton = Markers([(1, 2), (2, 3)])
    node = automaton.step(automaton.step(0, 1), 2)
    assert automaton.found[node] == (1, 2)
    assert automaton.found[automaton.step(node, 3)] == (2, 3)
    assert automaton.plain.match("abc")[0] == "abc"
    with pytest.raises(ValueError, match="at least one"):
        Markers([()])


# --- text in pieces


def test_a_word_has_a_longest_length():
    """What goes on without end is refused, not gathered."""

    def word(source, _write):
        return source.word(re.compile("a+"), 12)

    assert read(word, ["a" * 5] * 2) == ("", None)
    assert "12" in str(read(word, ["a" * 5] * 3)[1])


def test_a_pump_may_be_finished_twice():
    """A grammar at its end takes no more."""
    source, written = Source(), []
    pump = Pump(source, json_text.value(source, written.append))
    pump.push("[]")
    pump.finish()
    pump.finish()
    assert "".join(written) == "[]"


def test_expect_says_what_is_missing():
    """An end and a wrong character are told apart."""
    assert "the text ends where 'null'" in str(read(json_text.arguments, ["nu"])[1])
    assert "'x' stands where 'null'" in str(read(json_text.arguments, ["nux"])[1])


# --- JSON

SOUP = st.lists(
    st.sampled_from(
        [
            *r"""" \ { } [ ] : , a é 😀 \u00e9 \ud83d \ude00 \n \" \u \x 1 0 - . e "k": "v" </tool_call>""".split(),
            *("true", "false", "null", "NaN", " ", "\n", "\x00", "\ud800"),
        ],
    ),
    max_size=14,
).map("".join)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(SOUP, st.lists(st.integers(0, 60), max_size=4))
def test_json_is_taken_exactly_where_json_is_valid(soup, at):
    """Python's own reader and ours agree on what is JSON, whole or in pieces; what is written is always valid."""
    text = f"[{soup}]"
    written, problem = read(json_text.value, [text])
    assert (written, str(problem)) == tuple(map(str, read(json_text.value, list(text))))
    assert (written, str(problem)) == tuple(map(str, read(json_text.value, cut(text, at))))
    expected = parsed(text)
    if isinstance(expected, json.JSONDecodeError):
        # Python looks behind the value too, which is not this grammar's matter.
        assert (problem is None) == ("Extra data" in str(expected)), (problem, expected)
    else:
        assert problem is None, problem
        assert json.loads(written) == expected
        assert written.encode()


def parsed(text):
    """What Python reads of a JSON text, or its error."""
    try:
        return json.loads(text, strict=False, parse_constant=lambda word: json.loads("no number"))
    except json.JSONDecodeError as error:
        return error


@given(VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_json_passes_character_for_character(value, ascii_only, indent):
    """Valid text goes out as it came, spaces and escapes and all."""
    text = json.dumps([value], ensure_ascii=ascii_only, indent=indent)
    assert read(json_text.value, list(text)) == (text, None)


def test_json_repairs_control_characters_and_surrogates():
    """Raw line ends, zeros and lone surrogates in a string become escapes."""
    written, problem = read(json_text.value, ['["a\nb\tc\x00\ud800"]'])
    assert (written, problem) == ('["a\\nb\\tc\\u0000\\ud800"]', None)
    assert json_text.escaped('"\ud800é\n') == '\\"\\ud800é\\n'


def test_json_is_bounded():
    """Nesting and the length of numbers have limits."""
    deep = json_text.MAX_DEPTH
    assert read(json_text.value, ["[" * deep + "]" * deep])[1] is None
    assert "deeper than 100" in str(read(json_text.value, ["[" * (deep + 1)])[1])
    assert "longer than 1000" in str(read(json_text.value, ["[" + "1" * 1001])[1])


@pytest.mark.parametrize(
    ("text", "written", "missing"),
    [
        ('{"a": 12', '{"a": ', "the rest of a value"),
        ('{"a": "x', '{"a": "x', "the end of a string"),
        ('{"a": "x\\', '{"a": "x', "the rest of an escape"),
        ('{"a": "x\\u00', '{"a": "x', "the rest of an escape"),
        ('{"a"', '{"a"', "':'"),
        ('{"a":', '{"a":', "a value"),
        ('{"a":1,', '{"a":1,', "a key"),
        ('{"a":[1 ', '{"a":[1 ', "',' or ']'"),
        ("{", "{", "a value or '}'"),
    ],
)
def test_cut_off_json_says_what_is_missing(text, written, missing):
    """What was certain is written, and the problem names what should come."""
    got, problem = read(json_text.value, [text])
    assert got == written
    assert isinstance(problem, CutOff)
    assert missing in str(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{a: 1}", "a key of a JSON object is a string"),
        ('{"a" 1}', "followed by ':'"),
        ("[1 2]", "'2' stands where ',' or ']'"),
        ("[tru]", "'tru' is no JSON value"),
        ("[;]", "';' is no JSON value"),
        ('["\\x"]', "no escape"),
        ('["\\u12g4"]', "\\u escape"),
    ],
)
def test_malformed_json_says_what_is_wrong(text, problem):
    """The problem names the place."""
    assert problem in str(read(json_text.value, [text])[1])


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('"{\\"a\\": \\"x\\\\n\\\\u00e9\\"}"', '{"a": "x\\n\\u00e9"}'),
        ('" {} "', "{}"),
        ('""', ""),
        ("null", ""),
        ('{"a":1}', '{"a":1}'),
        ('"{\\"a\\": \\"\\ud83d\\ude00\\"}"', '{"a": "\\ud83d\\ude00"}'),
    ],
)
def test_arguments_may_be_a_string_that_holds_them(text, written):
    """An object, the same once more encoded, or nothing."""
    assert read(json_text.arguments, [text]) == (written, None)
    assert read(json_text.arguments, list(text)) == (written, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('"{\\"a\\": "', "no whole object"),
        ('"[1]"', "hold no object"),
        ('"{} x"', "follows the arguments"),
        ("[1]", "'[' stands where"),
        ('"{', "the end of a string"),
        ("", "arguments"),
    ],
)
def test_arguments_are_an_object(text, problem):
    """Anything else is refused."""
    assert problem in str(read(json_text.arguments, [text])[1])


# --- Python literals

PYTHON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None, exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans() | st.none(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(PYTHON_VALUES, st.lists(st.integers(0, 200), max_size=4))
def test_python_literals_become_the_json_that_python_writes(value, at):
    """`repr` in, what `json.dumps` says of it out, wherever the text is cut."""
    text = repr([value])
    written, problem = read(python_text.value, [text])
    assert problem is None
    # The same text, but for characters beyond ASCII; a key may come twice, as 1 and "1".
    assert json.loads(written, object_pairs_hook=list) == json.loads(json.dumps([value]), object_pairs_hook=list)
    assert written.encode()
    assert read(python_text.value, list(text)) == (written, None)
    assert read(python_text.value, cut(text, at)) == (written, None)


def literal(text):
    """What Python says of a literal; None where it says nothing that JSON could say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = ast.literal_eval(text)
            return json.dumps(value, allow_nan=False)
        except (SyntaxError, ValueError, TypeError, MemoryError):
            return None


STRING_PARTS = st.lists(
    st.sampled_from(
        [
            *r"""a é 😀 ' " \ \n \' \" \\ \x41 \x4 \u00e9 \ud83d \U0001f600 \U00110000 \7 \101 \777 \8 \d {""".split(),
            *(" ", "\\N{BULLET}", "\\N{nothing}", "\\N", '"""', "'''"),
        ],
    ),
    max_size=6,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["", "r", "R", "u", "b", "f", "rb"]), st.sampled_from(["'", '"', "'''", '"""']), STRING_PARTS)
def test_strings_mean_what_they_mean_in_python(prefix, quote, body):
    """Every prefix, quote and escape, against Python's own reader."""
    text = f"[{prefix}{quote}{body}{quote}]"
    written, problem = read(python_text.value, list(text))
    expected = literal(text)
    if prefix in ("b", "f", "rb") or expected is None:
        assert problem is not None
    else:
        assert problem is None, (text, problem)
        assert json.loads(written) == json.loads(expected)
        assert written.encode()


@settings(max_examples=300, deadline=None)
@given(
    st.text("0123456789_.eExXaoOb+-jn", min_size=1, max_size=8)
    | st.sampled_from(["True", "None", "1e999", "nan", "-inf"])
)
def test_numbers_mean_what_they_mean_in_python(text):
    """Every way to write a number, against Python's own reader."""
    written, problem = read(python_text.value, [f"[{text}]"])
    expected = literal(f"[{text}]")
    assert (problem is None) == (expected is not None), (text, problem, expected)
    assert expected is None or written == expected


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("[true, false, null]", "[true, false, null]"),
        ("()", "[]"),
        ("(1,)", "[1]"),
        ("(1, 2)", "[1, 2]"),
        ("[1, ]", "[1]"),
        ("{}", "{}"),
        ("{1: 2, 'a': (), None: 1.5, True: 0x10,}", '{"1": 2, "a": [], "null": 1.5, "true": 16}'),
        ("{r'\\d': u'x'}", '{"\\\\d": "x"}'),
        ("'a' \"b\" r'\\n' u'''c'd'''", '"ab\\\\nc\'d"'),
        ("'two\nlines'", '"two\\nlines"'),
        ("'go\\\non'", '"goon"'),
    ],
)
def test_python_literals_by_hand(text, written):
    """JSON's words too, trailing commas, keys as `json.dumps` writes them, joined strings."""
    assert read(python_text.value, [text + " ,"], end=False) == (written, None)
    assert read(python_text.value, [*text, ","], end=False) == (written, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("(1)", "')' stands where ','"),
        ("{1}", "followed by ':'"),
        ("[,]", "',' is no literal"),
        ("[1 2]", "'2' stands where ','"),
        ("[x]", "'x' is no literal"),
        ("[1+2j]", "is no literal"),
        ("['a' r2]", "behind a string and a prefix"),
        ("['a' u", "the rest of a string"),
        ("['a", "the end of a string"),
        ("['a'", "what follows a string"),
        ("['a\\", "the rest of an escape"),
        ("['a\\x4", "the rest of an escape"),
        (r"['a\x4g']", "escape \\x ends early"),
        (r"['\N{no such thing}']", "no character"),
        ("[r'a\\", "the end of a string"),
        ("[12", "the rest of a value"),
        ("[" * 101, "deeper than 100"),
        ("{1 ", "':'"),
    ],
)
def test_what_is_no_literal_is_refused(text, problem):
    """Sets, names, sums, lone parentheses, cut off texts."""
    assert problem in str(read(python_text.value, [text])[1])
    assert problem in str(read(python_text.value, list(text))[1])


# --- schemas

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "either": {"type": ["number", "null", 7]},
        "any": {"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/Shape~1s"}]},
        "kind": {"enum": ["a", 1, None, 2.5, [], {}, True]},
        "one": {"const": 3},
        "loop": {"$ref": "#/properties/loop"},
        "odd": 5,
        "gone": {"$ref": "#/no/where", "allOf": "nothing"},
        "away": {"$ref": "http://elsewhere"},
    },
    "$defs": {"Shape/s": {"type": "array"}},
}


@pytest.mark.parametrize(
    ("parameter", "types"),
    [
        ("text", {"string"}),
        ("count", {"integer"}),
        ("either", {"number", "null"}),
        ("any", {"boolean", "array"}),
        ("kind", {"string", "integer", "null", "number", "array", "object", "boolean"}),
        ("one", {"integer"}),
        ("loop", set()),
        ("odd", set()),
        ("gone", set()),
        ("away", set()),
        ("unknown", None),
    ],
)
def test_types_of_a_parameter(parameter, types):
    """Stated, as one of several, by its values or elsewhere in the schema; a cycle ends."""
    assert parameter_types(SCHEMA, parameter) == types


@pytest.mark.parametrize("schema", [None, [], {}, {"properties": 3}])
def test_a_schema_may_say_nothing(schema):
    """No parameter is known then."""
    assert parameter_types(schema, "x") is None


@pytest.mark.parametrize(
    ("text", "types", "found"),
    [
        (" 5\n", {"integer"}, "5"),
        ("5", {"number"}, "5"),
        ("5.0", {"integer"}, "5.0"),
        ("5.5", {"integer"}, None),
        ("True", {"boolean"}, "true"),
        ("None", {"null", "string"}, "null"),
        ("true", {"integer"}, None),
        ('{"a": 1}', {"object"}, '{"a": 1}'),
        ("[1]", {"object"}, None),
        ("[1]", set(), "[1]"),
        ('"quoted"', {"string", "null"}, None),
        ("NaN", {"number"}, None),
        ("five", {"integer"}, None),
        ("[" * 5000, {"array"}, None),
        ("", {"integer"}, None),
    ],
)
def test_json_of_untyped_text(text, types, found):
    """Text that fits a type is JSON; what does not is a string."""
    assert json_of(text, frozenset(types)) == found
