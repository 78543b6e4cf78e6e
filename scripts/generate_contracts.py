"""Writes docs/contracts.md: every name of the contracts, its kind and module, one line, and where it differs and why.

And which fields of our requests an Open Responses request can say. `python scripts/generate_contracts.py`, after a
change of a contract, of `tests/proto/contract_table.py` or of `tests/proto/conversion_table.py`; a test fails while the
page is not current.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import tensoryard.proto
from tensoryard.proto.open_responses_asked import LEFT_ASIDE

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "contracts.md"

sys.path.append(str(ROOT / "tests" / "proto"))
import contract_facts  # noqa: E402 - they lie beside the tests, which are no package
import contract_table  # noqa: E402
import conversion_table  # noqa: E402

HEAD = """# Contracts

The names that `tensoryard.proto` shares with the interface it follows, the MAX pipeline interfaces. Fields, defaults,
enum values and signatures are matched, so that code written against that interface runs after a change of its import
line; where ours differs, it says how and why. Two versions of that interface are in use: what exists only in the older
one (26.3) follows it, and what the newer one (26.7) fixed or widened follows that.

This page is made by `scripts/generate_contracts.py` from `tests/proto/contract_table.py` and
`tests/proto/conversion_table.py`, which tests hold the code to. Every error is one of `tensoryard.errors`; those for
wrong input are a `ValueError` too.
"""

OTHERS = """## Beside them

What `tensoryard.proto` has besides: classes of ours for the protocols, requests of tasks that had none, and parts of
the above that are needed by name.
"""

CONVERSIONS = """## Open Responses, there and back

`to_native` of proto/open_responses_convert.py reads an `OpenResponsesRequest` as the request of ours that it means for a
model of a given task; `to_open` of proto/open_responses_from_native.py says a request of ours as one. Whatever both can
say comes back the same. What one can say and the other cannot is an InvalidRequest that names the field; nothing is
dropped in silence. `to_response` and `to_failed_response` make a `ResponseResource` of what became of a request.

From a body, fields that change no answer are left aside:
{left_aside}.
Every other field that asks for something is read by the task, or refused.

From ours, a field that no body has must have the one value that asks for nothing. Said in several ways and read back in
one: no tools and no template options, which come back as None; a tool, which comes back with a description (perhaps
None) and parameters (perhaps none); numbers of numpy, which come back as Python's. Decoded images stay behind.
"""  # noqa: E501 - lines of the page


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for section in contract_table.SECTIONS:
        contracts = [contract for contract in contract_table.CONTRACTS if contract.section == section]
        parts.append(f"## {section}\n\n{_source(section)}\n")
        parts.append("| name | kind | module | what it is |\n|---|---|---|---|")
        parts.extend(_row(contract) for contract in contracts)
        differences = [line for contract in contracts for line in _differences(contract)]
        if differences:
            parts.extend(["\nWhere ours differs:\n", *differences])
        parts.append("")
    return "\n".join([*parts, *_others(), *_conversions()])


def _others() -> list[str]:
    """The public names beside the contracts."""
    named = {contract.name for contract in contract_table.CONTRACTS}
    parts = [OTHERS, "| name | kind | module | what it is |\n|---|---|---|---|"]
    for name in sorted(set(tensoryard.proto.__all__) - named, key=str.lower):
        value = getattr(tensoryard.proto, name)
        kind = contract_facts.facts_of(value)["kind"]
        module = module_of(name, value).removeprefix("tensoryard.")
        line = contract_table.OTHER_LINES.get(name) or _first(inspect.getdoc(value) or "")
        parts.append(f"| `{name}` | {kind} | `{module}` | {line} |")
    return [*parts, ""]


def _conversions() -> list[str]:
    left_aside = ", ".join(f"`{name}`" for name in sorted(LEFT_ASIDE))
    parts = [CONVERSIONS.format(left_aside=left_aside)]
    for conversion in conversion_table.CONVERSIONS:
        parts.append(f"### From `{conversion.kind.__name__}`\n\n| field | there |\n|---|---|")
        parts.extend(f"| `{name}` | {place} |" for name, place in conversion.said.items())
        parts.extend(f"| `{name}` | not there: only {value!r} |" for name, value in conversion.unsaid.items())
        parts.append("")
    return parts


def _source(section: str) -> str:
    """Where the section is in the reference."""
    old, new = contract_table.SOURCES[section]
    before = ", ".join(f"`max.interfaces.{name}`" for name in old)
    since = ", ".join(f"`max.pipelines.{name}`" for name in new)
    return f"Source: {before} (26.3); {since} (26.7)."


def _row(contract: Any) -> str:
    value = getattr(tensoryard.proto, contract.name)
    kind = contract.ours["kind"]
    module = module_of(contract.name, value).removeprefix("tensoryard.")
    return f"| `{contract.name}` | {kind} | `{module}` | {_line(contract, value)} |"


def module_of(name: str, value: Any) -> str:
    """The module of ours that a name is defined in."""
    if isinstance(value, type) or inspect.isfunction(value):
        return value.__module__
    # Aliases, type variables and constants do not know: the first module, by name, that binds it and imports it not.
    for module_name, module in sorted(sys.modules.items()):
        if module_name.startswith("tensoryard.proto.") and vars(module).get(name) is value and _binds(module, name):
            return module_name
    raise LookupError(f"no module of the contracts binds {name}")


def _binds(module: Any, name: str) -> bool:
    return any(line.startswith((f"{name} =", f"{name}:")) for line in inspect.getsource(module).splitlines())


def _line(contract: Any, value: Any) -> str:
    return _first(contract.line or inspect.getdoc(value) or "")


def _first(text: str) -> str:
    """The first paragraph of a text, in one line of a table."""
    return " ".join(text.split("\n\n", maxsplit=1)[0].split()).replace("|", "\\|")


def _differences(contract: Any) -> list[str]:
    return [f"- `{contract.name}`: {difference.why}{_how(contract, difference)}." for difference in contract.differs]


def _how(contract: Any, difference: Any) -> str:
    """The facts that differ, in short."""
    still = {_name(key): key for key in difference.has}
    changes = [f"no {_subject(key)}" for key in difference.lacks if _name(key) not in still]
    changes += [f"{_subject(key)} is no {key.partition(' ')[0]}" for key in difference.lacks if _name(key) in still]
    for key, text in difference.has.items():
        if key in contract.reference:
            changes.append(f"{_subject(key)} `{contract.reference[key]}` → `{text}`")
        elif key not in {"call", *(still[_name(lacked)] for lacked in difference.lacks if _name(lacked) in still)}:
            changes.append(f"also {_subject(key)}" if _name(key) != "wire" else f"{_subject(key)} `{text}`")
    return f" ({'; '.join(changes)})" if changes else ""


def _name(key: str) -> str:
    return key.partition(" ")[2] or key


def _subject(key: str) -> str:
    word, _, name = key.partition(" ")
    return f"`{name}`" if name else {"call": "signature", "wire": "wire form"}.get(word, word)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
