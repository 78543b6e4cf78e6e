"""The contracts, name by name: what each is must be what the table says, and the page about them must be current."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import typing
from collections import Counter
from pathlib import Path

import pytest

import tensoryard.proto as proto

from .contract_facts import facts_of
from .contract_table import CONTRACTS, SECTIONS, SOURCES, Contract, Differs, facts
from .conversion_table import CONVERSIONS

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = {contract.name: contract for contract in CONTRACTS}
#: Kinds of which there is no class of that name in ours, so that a difference must say what stands in its place.
FOREIGN = {"pydantic model", "frozen pydantic model"}


def wrong(contract, found):
    """The facts in which what is differs from what ought to be."""
    expected = contract.ours
    return {
        key: (expected.get(key), found.get(key)) for key in {*expected, *found} if expected.get(key) != found.get(key)
    }


def test_the_table_is_whole():
    """79 names, each once, so many in each section, and no name is left out of the package's public names."""
    assert len(CONTRACTS) == len(BY_NAME) == 79
    assert Counter(contract.section for contract in CONTRACTS) == SECTIONS
    assert set(BY_NAME) <= set(proto.__all__)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_a_name_is_what_the_table_says(contract):
    """Kind, fields, types, defaults, enum values, members and signatures, with the differences exactly as listed."""
    value = getattr(proto, contract.name)
    found = facts_of(value)
    assert wrong(contract, found) == {}
    if contract.ours["kind"] in ("dataclass", "frozen dataclass", "struct", "str enum", "enum"):
        ordered = [key for key in contract.ours if key.startswith(("field ", "value "))]
        assert [key for key in found if key.startswith(("field ", "value "))] == ordered, "the order is part of it"


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_differences_are_real_and_have_reasons(contract):
    """A difference changes, adds or takes away what it says, adds no field that must be given, and says why."""
    for difference in contract.differs:
        assert difference.why
        assert not difference.why.endswith(".")
        for key in difference.lacks:
            assert key in contract.reference, f"{contract.name} never had {key}"
        for key, text in difference.has.items():
            assert contract.reference.get(key) != text, f"{contract.name} has {key} as the reference does"
            if key.startswith("field ") and key not in contract.reference and contract.reference["kind"] != "class":
                assert " = " in text, f"{contract.name}: the added {key} has no default"
    if contract.reference["kind"] in FOREIGN:
        assert contract.ours["kind"] not in FOREIGN


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_every_name_is_documented(contract):
    """A class or a function has a docstring, and so has each method and property of its own; others have a line."""
    value = getattr(proto, contract.name)
    if not isinstance(value, type) and not inspect.isfunction(value):
        assert contract.line
        return
    assert inspect.getdoc(value)
    for key in contract.ours:
        word, _, name = key.partition(" ")
        member = vars(value).get(name)
        if word in ("data", "method", "classmethod") and not name.startswith("__") and callable_or_property(member):
            assert inspect.getdoc(member), f"{contract.name}.{name} has no docstring"


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_every_name_has_its_source(contract):
    """The docstring of the module that defines a name says where the reference has it."""
    module = sys.modules[generator().module_of(contract.name, getattr(proto, contract.name))]
    said = " ".join(module.__doc__.partition("Source: ")[2].replace("` and `.", "`, `.").split())
    old, _ = SOURCES[contract.section]
    assert any(f"`max.interfaces.{name}`" in said or f"`.{name}`" in said for name in old), f"{module.__name__}: {said}"
    assert "(26.3)" in said


def callable_or_property(member):
    return isinstance(member, property | classmethod) or inspect.isfunction(member)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_no_name_is_a_stub(contract):
    """No method of a class that can be made is an empty body or raises NotImplementedError."""
    value = getattr(proto, contract.name)
    if not isinstance(value, type) or getattr(value, "_is_protocol", False):
        return
    for name, member in vars(value).items():
        function = inspect.unwrap(getattr(member, "fget", None) or getattr(member, "__func__", None) or member)
        if not inspect.isfunction(function) or getattr(function, "__isabstractmethod__", False):
            continue
        if function.__code__.co_filename.startswith(str(ROOT)):  # and not made by dataclasses
            assert "NotImplementedError" not in inspect.getsource(function), f"{contract.name}.{name}"


# The walk itself


def sample(**changes):
    """A contract of `Range`, with some of its facts changed."""
    found = dict(BY_NAME["Range"].reference)
    found.update(changes)
    return Contract("Tokens", "Range", {key: text for key, text in found.items() if text is not None}, [])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"kind": "frozen dataclass"}, "kind"),
        ({"field start": "int = 0"}, "field start"),
        ({"field end": "float"}, "field end"),
        ({"field end": None}, "field end"),
        ({"method bump_start": "(n=1)"}, "method bump_start"),
        ({"method advance": None}, "method advance"),
        ({"data is_empty": "bool"}, "data is_empty"),
    ],
)
def test_the_walk_sees_every_kind_of_change(changes, key):
    """A kind, type, default, signature, lack or addition that the table does not have is found."""
    assert list(wrong(sample(**changes), facts_of(proto.Range))) == [key]


def test_differences_are_applied_in_turn():
    """A difference takes away, changes and adds facts, and leaves the rest."""
    contract = Contract("s", "n", facts("kind: class\ndata a: int\ndata b: int"), [])
    contract.differs = [Differs("why", "-data a\ndata b: str\ndata c: int")]
    assert contract.ours == {"kind": "class", "data b": "str", "data c": "int"}


def test_protocols_are_satisfied_by_classes_of_ours():
    """Each context protocol that can be told by `isinstance` has a class of ours whose objects pass."""
    import numpy as np

    buffer = proto.TokenBuffer(np.arange(3, dtype=np.int64))
    text = proto.TextContext(tokens=buffer, max_length=9)
    vision = proto.TextAndVisionContext(tokens=buffer, max_length=9)
    embeddings = proto.EmbeddingsRequestContext(
        token_ids=((1, 2),), request_id=proto.RequestID(), model_name="m", arrays=()
    )
    assert isinstance(text, proto.TextGenerationContext)
    assert isinstance(vision, proto.VLMTextGenerationContext)
    assert not isinstance(text, proto.VLMTextGenerationContext)
    assert isinstance(embeddings, proto.EmbeddingsContext)
    for context in (text, vision, embeddings):
        assert isinstance(context, proto.BaseContext)


# The page


@functools.cache
def generator():
    """The module of scripts/generate_contracts.py."""
    spec = importlib.util.spec_from_file_location("generate_contracts", ROOT / "scripts" / "generate_contracts.py")
    module = importlib.util.module_from_spec(typing.cast("typing.Any", spec))
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current():
    """docs/contracts.md is what `python scripts/generate_contracts.py` writes."""
    assert (ROOT / "docs" / "contracts.md").read_text() == generator().page(), "run scripts/generate_contracts.py"


def test_the_page_names_everything():
    """Every name has its row, with its kind and a line, and every difference its reason."""
    page = (ROOT / "docs" / "contracts.md").read_text()
    rows = [line for line in page.splitlines() if line.count("|") >= 5 and line.startswith("| `")]
    assert sorted(row.split("`")[1] for row in rows) == sorted(proto.__all__)
    assert all(cell.strip() for row in rows for cell in row.replace("\\|", "").strip("|").split("|"))
    for contract in CONTRACTS:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{contract.name}` |")]
        assert f"| {contract.ours['kind']} |" in row
        for difference in contract.differs:
            assert difference.why in page


def test_the_page_tells_what_can_be_said():
    """Each field of a request that has an Open Responses form is on the page, under its class."""
    page = (ROOT / "docs" / "contracts.md").read_text()
    for conversion in CONVERSIONS:
        table = page.partition(f"### From `{conversion.kind.__name__}`\n")[2].partition("###")[0]
        for name, place in conversion.said.items():
            assert f"| `{name}` | {place} |" in table
        for name, value in conversion.unsaid.items():
            assert f"| `{name}` | not there: only {value!r} |" in table
