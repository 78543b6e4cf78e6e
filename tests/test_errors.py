"""The tree of errors: what its docstring draws, what crosses the wire and what crosses a pickle."""

from __future__ import annotations

import builtins
import copy
import pickle
import re

import pytest

from tensoryard import errors

TREE = [cls for cls in errors._classes(errors.TensoryardError) if cls.__module__ == errors.__name__]
EVERY = pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)


def drawn_tree():
    """Name to parent, and name to the remark beside it, as the docstring draws them."""
    parents, remarks, above = {}, {}, []
    for line in errors.__doc__.splitlines():
        found = re.match(r"(?P<lead>[│├└─ ]*)(?P<name>[A-Z]\w+)(?P<remark>.*)$", line)
        if found is None or not (found["lead"] or found["name"] == "TensoryardError"):
            continue
        depth = len(found["lead"]) // 4
        del above[depth:]
        parents[found["name"]] = above[-1] if above else None
        remarks[found["name"]] = found["remark"]
        above.append(found["name"])
    return parents, remarks


def made(cls):
    """An error with every field set."""
    extra = {"retry_after_s": 2.5} if issubclass(cls, errors.Overloaded) else {}
    return cls("the text", request_id="r-1", story=("accepted", "sent"), **extra)


def test_the_docstring_draws_the_real_tree():
    """Each class stands in the docstring under its real parent, and nothing else stands there."""
    real = {cls.__name__: cls.__bases__[0].__name__ for cls in TREE[1:]}
    assert drawn_tree()[0] == {"TensoryardError": None, **real}
    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert defined == {cls.__name__ for cls in TREE}


def test_the_docstring_names_the_builtin_bases():
    """ "also a X" in the docstring is true, and every error of ours that is a builtin's says so there or above."""
    found = [
        (getattr(errors, name), getattr(builtins, builtin))
        for name, remark in drawn_tree()[1].items()
        for builtin in re.findall(r"also an? (\w+)", remark, re.IGNORECASE)
    ]
    assert len(found) >= 4
    assert all(issubclass(cls, builtin) for cls, builtin in found), found


def test_codes_are_unique():
    """Each class owns a code of its own, and the table of codes finds it."""
    codes = [cls.__dict__["code"] for cls in TREE]
    assert len(set(codes)) == len(codes)
    assert {code: errors.BY_CODE[code] for code in codes} == dict(zip(codes, TREE, strict=True))
    assert len(errors.BY_CODE) == len(codes)


@EVERY
def test_codes_are_words_that_an_envelope_carries(cls):
    """A code is short, lowercase and without spaces."""
    assert re.fullmatch(r"[a-z_]{1,64}", cls.code)


@EVERY
def test_pickles_whole(cls):
    """Class, text, request, story and what a class adds survive a pickle at every protocol, and a copy."""
    error = made(cls)
    twins = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for twin in [*twins, copy.copy(error), copy.deepcopy(error)]:
        assert type(twin) is cls
        assert (twin.text, twin.request_id, twin.story) == ("the text", "r-1", ("accepted", "sent"))
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert getattr(twin, "retry_after_s", None) == (2.5 if issubclass(cls, errors.Overloaded) else None)


@EVERY
def test_crosses_the_wire(cls):
    """Code and text bring back the class, its code and whether sending again may help."""
    error = made(cls)
    code, text = errors.to_wire(error)
    twin = errors.from_wire(code, text, request_id="r-1", story=("accepted",), retry_after_s=1.5)
    assert type(twin) is cls
    assert (twin.code, twin.retryable, twin.text) == (cls.code, cls.retryable, "the text")
    assert (twin.request_id, twin.story) == ("r-1", ("accepted",))


def test_retry_after_crosses_the_wire():
    """Only Overloaded has a time to try again, and it keeps it."""
    assert errors.from_wire("overloaded", "full", retry_after_s=1.5).retry_after_s == 1.5
    assert not hasattr(errors.from_wire("failed", "x", retry_after_s=1.5), "retry_after_s")
    assert errors.Overloaded("full").retry_after_s == 0.0


@EVERY
def test_each_class_has_an_outcome(cls):
    """One of the words, and it crosses the wire where the coordinator says otherwise, and a pickle."""
    assert cls.outcome in errors.OUTCOMES
    assert cls.outcome != "finished"
    assert errors.outcome_of(cls.code) in set(errors.OUTCOMES) - {"rejected"}
    twin = errors.from_wire(cls.code, "x", outcome="failed")
    assert (twin.outcome, pickle.loads(pickle.dumps(twin)).outcome) == ("failed", "failed")
    for unknown in ("", "melted"):
        assert errors.from_wire(cls.code, "x", outcome=unknown).outcome == cls.outcome


def test_outcomes_are_told_apart():
    """Who was never accepted, who gave up, whose time was over, and what was lost where."""
    found = {cls.__name__: cls.outcome for cls in TREE if cls.outcome != "failed"}
    rejected = ["InvalidRequest", "UnknownModel", "WrongTask", "UnsupportedArray", "MessageTooLarge", "ConfigError"]
    rejected += ["Rejected", "Overloaded", "DuplicateRequest", "ShuttingDown", "NotConnected"]
    assert found == {
        **dict.fromkeys(rejected, "rejected"),
        "RequestCancelled": "cancelled",
        "DeadlineExpired": "expired",
        "WorkerLost": "worker_lost",
        "PoisonRequest": "poison_request",
        "CoordinatorLost": "coordinator_lost",
    }
    assert errors.outcome_of("unknown_model") == errors.outcome_of("unheard_of") == "failed"


@EVERY
def test_str_names_the_request(cls):
    """The text comes with the request's id where there is one, and alone otherwise."""
    assert str(made(cls)) == "request r-1: the text"
    assert str(cls("the text")) == "the text"
    assert cls("the text").story == ()
    assert str(cls()) == ""


def test_the_text_on_the_wire_does_not_repeat_the_id():
    """The request's id travels in the envelope's own field, not inside the text."""
    assert errors.to_wire(made(errors.PipelineError)) == ("pipeline_error", "the text")


def test_foreign_errors_are_named():
    """Any other exception travels as `failed`, with its type in the text."""
    assert errors.to_wire(KeyError("x")) == ("failed", "KeyError: 'x'")
    assert errors.to_wire(ZeroDivisionError("division by zero")) == ("failed", "ZeroDivisionError: division by zero")


def test_unknown_codes_of_a_newer_peer():
    """A code this side does not know is a failure that is not retryable, with its text."""
    error = errors.from_wire("melted", "the worker melted", request_id="r-1")
    assert type(error) is errors.Failed
    assert not error.retryable
    assert str(error) == "request r-1: the worker melted"


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.InvalidRequest, ValueError),
        (errors.UnsupportedArray, TypeError),
        (errors.DeadlineExpired, TimeoutError),
        (errors.ReplyTimeout, TimeoutError),
        (errors.PoolExhausted, MemoryError),
        (errors.ForgedHandle, ValueError),
        (errors.DecodeError, ValueError),
        (errors.NotConnected, ConnectionError),
    ],
)
def test_builtin_families(cls, builtin):
    """Code that catches Python's own error for such a condition catches ours."""
    with pytest.raises(builtin, match="the text"):
        raise made(cls)


@pytest.mark.parametrize(
    ("cls", "retryable"),
    [
        (errors.Overloaded, True),
        (errors.ShuttingDown, True),
        (errors.DuplicateRequest, False),
        (errors.WorkerLost, True),
        (errors.PoisonRequest, False),
        (errors.PipelineError, False),
        (errors.CoordinatorLost, True),
        (errors.DeadlineExpired, False),
        (errors.RequestCancelled, False),
        (errors.StaleHandle, True),
        (errors.ForgedHandle, False),
        (errors.InvalidRequest, False),
        (errors.DecodeError, False),
    ],
)
def test_retryable(cls, retryable):
    """Only what may go better the second time says that it is retryable."""
    assert cls("x").retryable is retryable
