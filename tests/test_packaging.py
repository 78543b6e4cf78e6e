"""What gets installed is what is there."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_SHIPPED = {"tests", "docs", "examples", "benchmarks", "scripts", "build", "demo-output"}


def test_every_subpackage_is_listed() -> None:
    """pyproject.toml lists every folder that is a package, and no other."""
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(configured["tool"]["setuptools"]["packages"])
    found = {"tensoryard"}
    for init in ROOT.rglob("__init__.py"):
        parts = init.parent.relative_to(ROOT).parts
        if parts and parts[0] not in NOT_SHIPPED and not parts[0].startswith("."):
            found.add(".".join(("tensoryard", *parts)))
    assert listed == found


def test_every_entry_point_resolves() -> None:
    """Each pipeline that pyproject.toml names can be imported and called."""
    import importlib

    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())
    entries = {**configured["project"]["scripts"], **configured["project"]["entry-points"]["tensoryard.pipelines"]}
    assert len(entries) >= 4
    for place in entries.values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name)), place
