"""Settings: every one has a reason, a bad one is named, the environment is read in one place, the docs are current."""

from __future__ import annotations

import ast
import dataclasses
import os
import pickle
import re
from pathlib import Path

import msgspec
import pytest

from tensoryard.errors import ConfigError
from tensoryard.settings import OTHER_VARIABLES, Settings, from_environment, settings_table

ROOT = Path(__file__).parents[1]
FIELDS = dataclasses.fields(Settings)
NAMES = [field.name for field in FIELDS]


def variable(name):
    return f"TENSORYARD_{name.upper()}"


def test_the_documented_table_is_current():
    """docs/settings.md is what `settings_table()` says."""
    assert (ROOT / "docs" / "settings.md").read_text() == settings_table()


def test_the_table_has_every_setting():
    """Each setting has one row with its variable, its default and its reason."""
    rows = settings_table().splitlines()[2:]
    assert len(rows) == len(FIELDS)
    for field, row in zip(FIELDS, rows, strict=True):
        assert row.startswith(f"| `{field.name}` | `{variable(field.name)}` |")
        assert f"| {field.default} | {field.metadata['reason']} |" in row


def test_the_table_is_a_table():
    """Every row has as many cells as the head."""
    assert {len(re.split(r"(?<!\\)\|", row)) for row in settings_table().splitlines()} == {7}


@pytest.mark.parametrize("field", FIELDS, ids=NAMES)
def test_every_setting_has_a_reason_and_a_unit(field):
    """A reason says why; the name ends in its unit, or counts things."""
    assert len(field.metadata["reason"]) > 20
    counts = {"max_in_flight", "max_clients", "peer_backlog", "stream_window_parts"}
    assert field.name.endswith(("_s", "_bytes")) or field.name in counts
    assert field.kw_only


def test_the_defaults_hold_together():
    """Settings without arguments are valid, cannot be changed, and are compared by value."""
    settings = Settings()
    assert settings == Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.heartbeat_s = 2.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_nothing_is_zero_or_less(name, value):
    """A value that is not above 0, NaN included, is a ConfigError that names the setting."""
    with pytest.raises(ConfigError, match=f"`{name}` must be above 0"):
        Settings(**{name: value})


@pytest.mark.parametrize("value", [float("inf"), "5", [1], True, None])
def test_nothing_is_endless_or_of_another_type(value):
    """A value that is no finite number is a ConfigError that names the setting."""
    with pytest.raises(ConfigError, match="reconnect_s"):
        Settings(reconnect_s=value)


def test_one_late_beat_ends_no_peer():
    """`liveness_s` below two heartbeats is refused; exactly two are enough."""
    with pytest.raises(ConfigError, match="at least twice `heartbeat_s`"):
        Settings(heartbeat_s=1.0, liveness_s=1.9)
    assert Settings(heartbeat_s=1.0, liveness_s=2.0).liveness_s == 2.0


@pytest.mark.parametrize("field", FIELDS, ids=NAMES)
def test_every_setting_can_come_from_the_environment(field):
    """TENSORYARD_<NAME> sets the one setting and leaves the others at their defaults."""
    value = 77 if "int" in str(field.type) else 77.5
    expected = dataclasses.replace(Settings(), **{"liveness_s": 1000.0, field.name: value})
    found = from_environment({"TENSORYARD_LIVENESS_S": "1000", variable(field.name): str(value)})
    assert found == expected
    assert type(getattr(found, field.name)) is type(value)


@pytest.mark.parametrize("text", ["", "soon", "1s", "1,5", "0x10", "None"])
@pytest.mark.parametrize("name", ["heartbeat_s", "pool_budget_bytes"])
def test_a_bad_value_in_the_environment_is_named(name, text):
    """What is no number is a ConfigError that quotes variable and value."""
    with pytest.raises(ConfigError) as raised:
        from_environment({variable(name): text})
    assert variable(name) in str(raised.value)
    assert repr(text) in str(raised.value)


def test_a_fraction_of_a_byte_is_refused():
    """Where a whole number is wanted, the error says so."""
    with pytest.raises(ConfigError, match=r"TENSORYARD_MAX_IN_FLIGHT must be a whole number, not '1\.5'"):
        from_environment({"TENSORYARD_MAX_IN_FLIGHT": "1.5"})


def test_a_value_out_of_range_in_the_environment_is_named():
    """The range holds there too."""
    with pytest.raises(ConfigError, match="`drain_s` must be above 0"):
        from_environment({"TENSORYARD_DRAIN_S": "-3"})


def test_a_misspelt_variable_is_found():
    """An unknown TENSORYARD_ variable is a ConfigError that lists what is known, settings and others."""
    with pytest.raises(ConfigError, match="TENSORYARD_HEARTBEET_S is no setting") as raised:
        from_environment({"TENSORYARD_HEARTBEET_S": "1"})
    assert all(name in str(raised.value) for name in [*map(variable, NAMES), *OTHER_VARIABLES])


def test_other_variables_are_left_alone():
    """Variables of ours that are no settings, and anybody else's, change nothing."""
    others = dict.fromkeys(OTHER_VARIABLES, "anything")
    assert from_environment({**others, "PATH": "/bin", "TENSORYARDS": "x", "tensoryard_heartbeat_s": "x"}) == Settings()
    assert not set(OTHER_VARIABLES) & set(map(variable, NAMES))
    assert all(OTHER_VARIABLES.values())


def test_the_process_environment_is_the_default(monkeypatch):
    """Without an argument the process's own environment is read."""
    monkeypatch.setenv("TENSORYARD_ORPHAN_S", "12.5")
    assert from_environment().orphan_s == 12.5


def test_settings_travel_to_children():
    """As JSON to child processes, and pickled by Ray, settings arrive as they were."""
    settings = Settings(pool_budget_bytes=1 << 30, heartbeat_s=0.25, drain_s=1.0)
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Settings) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings


def sources():
    """Our modules, parsed, by path."""
    for folder in ("", "shm", "proto", "links", "coordinator", "workers", "client", "deploy"):
        pattern = "*.py" if not folder else f"{folder}/**/*.py"
        for path in ROOT.glob(pattern):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def test_no_variable_is_secret():
    """Every TENSORYARD_ name that the code mentions is a setting or among OTHER_VARIABLES."""
    known = {*map(variable, NAMES), *OTHER_VARIABLES}
    found = set()
    for path, tree in sources():
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        found |= {(str(path), name) for text in texts for name in re.findall(r"TENSORYARD_[A-Z]+(?:_[A-Z]+)*\b", text)}
    assert {entry for entry in found if entry[1] not in known} == set()
    assert {name for _, name in found} >= set(OTHER_VARIABLES)


def test_each_other_variable_is_read_in_one_place():
    """Nobody but one module looks up an OTHER_VARIABLE, and nobody but settings.py a setting's."""
    readers = {}
    for path, tree in sources():
        for node in ast.walk(tree):
            key = _looked_up(node)
            if key is not None and key.startswith("TENSORYARD_"):
                readers.setdefault(key, set()).add(str(path))
    assert readers.keys() == OTHER_VARIABLES.keys()
    assert {key: sorted(paths) for key, paths in readers.items() if len(paths) > 1} == {}


def _looked_up(node):
    """The constant key of `os.environ[key]`, `os.environ.get(key)` or `os.getenv(key)`."""
    key = None
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
        key = node.slice
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"os.environ.get", "os.getenv", "environ.get"}:
        key = node.args[0]
    return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else None


def test_this_run_has_a_runtime_folder_of_its_own():
    """The suite never touches the folder of a cluster that somebody else runs here."""
    assert Path(os.environ["TENSORYARD_RUNTIME_DIR"]).name.startswith("ty-")
