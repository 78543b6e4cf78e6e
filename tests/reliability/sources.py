"""What the tables of this folder are held against: the tests that exist, and the containers that the code has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Where every container must be listed.
FOLDERS = ("coordinator", "workers", "client")
#: Types of the standard library, and ours, that hold as much as is put into them.
CONTAINERS = {
    "dict", "list", "deque", "set", "OrderedDict", "defaultdict", "SimpleQueue", "Queue", "Counter", "LazyHeap",
    "RequestQueue", "LeastLoaded", "Stories",
}  # fmt: skip


def tests() -> set[str]:
    """Every test function of this repository, as "file::name"."""
    return {
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def containers() -> set[str]:
    """Every attribute of a class that holds a container for as long as the object lives, as "file:Class.attribute"."""
    found = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    found |= {f"{path.relative_to(ROOT)}:{node.name}.{name}" for name in _attributes(node)}
    return found


def _attributes(cls: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(cls):
        target, kinds = _assignment(node)
        is_field = node in cls.body and isinstance(target, ast.Name)
        of_self = isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
        if (is_field or of_self) and any(_is_container(kind) for kind in kinds):
            yield target.id if isinstance(target, ast.Name) else target.attr  # type: ignore[union-attr]


def _assignment(node: ast.AST) -> tuple[ast.expr | None, list[ast.expr | None]]:
    if isinstance(node, ast.AnnAssign):
        return node.target, [node.annotation, node.value]
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        return node.targets[0], [node.value]
    return None, []


def _is_container(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Dict | ast.List | ast.Set):
        return True
    text = ast.unparse(node) if node is not None else ""
    return text.split("[")[0].split("(")[0].rpartition(".")[2] in CONTAINERS


def cases() -> dict[int, list[str]]:
    """The tests that carry `pytest.mark.case`, by its numbers, as "file::name"."""
    found: dict[int, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for number in _case_numbers(node) if isinstance(node, ast.FunctionDef) else ():
                found.setdefault(number, []).append(f"{path.relative_to(ROOT)}::{node.name}")
    return found


def _case_numbers(test: ast.FunctionDef) -> Iterator[int]:
    for mark in test.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.case":
            yield from (ast.literal_eval(argument) for argument in mark.args)
