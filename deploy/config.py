"""Deployments from TOML and YAML files, or from any mapping; every mistake is a ConfigError that names where it is.

`proto/deployment.py` says what a deployment is and checks its values; this module reads files and knows no cluster.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ConfigError
from ..proto.autoscale import Autoscale
from ..proto.deployment import Deployment
from ..proto.outputs import served_tasks
from ..proto.pipeline import PipelineTask
from ..workers.factory import ENTRY_POINT_GROUP

#: The keys a file may hold its deployments under: `[[deployment]]` reads well in TOML, `deployments:` in YAML.
LIST_KEYS = ("deployment", "deployments")

#: Larger files are no deployment files; a device or a pipe named by mistake is not read for ever.
MAX_FILE_BYTES = 4 << 20

_FIELDS = {field.name: field for field in msgspec.structs.fields(Deployment)}
_REQUIRED = tuple(name for name, field in _FIELDS.items() if field.required)
_SCALE_FIELDS = {field.name: field for field in msgspec.structs.fields(Autoscale)}
_WORDS: dict[Any, str] = {
    int | Autoscale: "a whole number, or a table with `max` and perhaps `min`",
    str: "a text",
    int: "a whole number",
    int | None: "a whole number",
    float: "a number",
    dict[str, Any]: "a table of names and values",
    dict[str, float]: "a table of names and numbers",
    dict[str, str]: "a table of names and texts",
}
_MODULE_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_FILE_FACTORY = re.compile(r"(?P<file>.+\.py):(?P<factory>[^\W\d]\w*(\.[^\W\d]\w*)*)", re.DOTALL)


def load(path: str | Path) -> list[Deployment]:
    """The deployments of a TOML or YAML file, in order; ConfigError naming file, deployment, key and value."""
    path = Path(path)
    try:
        table = _READERS[_kind(path)](_text(path))
        return _deployments({} if table is None else table, path.absolute().parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.text}") from error


def parse_deployment(mapping: Mapping[str, Any], *, folder: str | Path = ".", where: str = "deployment") -> Deployment:
    """One deployment from a mapping; a `file.py:factory` in it is found from `folder`, `where` begins each message."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where} must be a table of keys and values, not {_shown(mapping)}")
    model = mapping.get("model")
    where = f"{where} (model {model!r})" if isinstance(model, str) and model else where
    try:
        _check_keys(mapping, _FIELDS, "key")
        _check_present(mapping)
        values = {key: _value(key, value) for key, value in mapping.items()}
        values["pipeline"] = find_pipeline(values["pipeline"], folder=folder)
        return Deployment(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.text}") from error


def find_pipeline(reference: str, *, folder: str | Path = ".") -> str:
    """`reference`, checked as far as that goes without importing it; the path of a file made absolute from `folder`.

    Taken are "file.py:factory", "package.module:factory" and the name of an entry point (group `tensoryard.pipelines`).
    """
    if match := _FILE_FACTORY.fullmatch(reference):
        file = (Path(folder) / Path(match["file"]).expanduser()).resolve()
        if not file.is_file():
            raise ConfigError(f"`pipeline` is {reference!r}, but there is no file {file}")
        return f"{file}:{match['factory']}"
    if _MODULE_FACTORY.fullmatch(reference):
        return reference
    known = installed_pipelines()
    if reference in known:
        return reference
    if reference.endswith(".py"):
        raise ConfigError(f"`pipeline` is {reference!r}; name the factory in it too, for example '{reference}:create'")
    raise ConfigError(
        f"`pipeline` must be 'file.py:factory', 'package.module:factory' or an installed pipeline's name "
        f"({_listed(known)}), not {reference!r}{_did_you_mean(reference, known)}",
    )


def installed_pipelines() -> list[str]:
    """The names under which installed packages offer pipelines."""
    return sorted({point.name for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)})


def _kind(path: Path) -> str:
    kind = path.suffix.lower().removeprefix(".")
    if kind not in _READERS:
        raise ConfigError(f"a deployment file ends in {_listed('.' + known for known in _READERS)}")
    return kind


def _text(path: Path) -> str:
    try:
        if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"the file has {path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise ConfigError(f"the file is empty; {_HOW_TO_DECLARE}")
    return text


def _read_toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is not TOML: {error}") from error


def _read_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError("reading YAML needs PyYAML: pip install 'tensoryard[yaml]', or write TOML") from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"is not YAML: {' '.join(str(error).split())}") from error


_READERS: dict[str, Callable[[str], Any]] = {"toml": _read_toml, "yaml": _read_yaml, "yml": _read_yaml}

_HOW_TO_DECLARE = "declare each model in a [[deployment]] table (TOML) or as an entry of `deployments:` (YAML)"


def _deployments(table: object, folder: Path) -> list[Deployment]:
    if not isinstance(table, Mapping):
        raise ConfigError(f"holds {_shown(table)} where keys and values are expected; {_HOW_TO_DECLARE}")
    _check_keys(table, LIST_KEYS, "top-level key")
    if len(table) != 1:
        raise ConfigError(f"no deployment in it; {_HOW_TO_DECLARE}" if not table else _both(table))
    ((key, entries),) = table.items()
    if not isinstance(entries, list):
        hint = "; in TOML the table has two brackets: [[deployment]]" if isinstance(entries, Mapping) else ""
        raise ConfigError(f"`{key}` must be a list of deployments, not {_shown(entries)}{hint}")
    if not entries:
        raise ConfigError(f"no deployment in it; {_HOW_TO_DECLARE}")
    found = [parse_deployment(entry, folder=folder, where=f"deployment {n}") for n, entry in enumerate(entries, 1)]
    check_unique(found)
    return found


def _both(table: Mapping[Any, Any]) -> str:
    return f"has {_listed(f'`{key}`' for key in table)}; keep all deployments under one of them"


def check_unique(deployments: Iterable[Deployment]) -> None:
    """Each model is deployed once; ConfigError naming the model and both places otherwise."""
    seen: dict[str, int] = {}
    for place, deployment in enumerate(deployments, 1):
        first = seen.setdefault(deployment.model, place)
        if first != place:
            raise ConfigError(
                f"model {deployment.model!r} is deployed twice, as deployments {first} and {place}; "
                "keep one, and raise its `replicas` for more workers",
            )


def _check_keys(mapping: Mapping[Any, Any], known: Iterable[str], what: str) -> None:
    known = list(known)
    for key in mapping:
        if key not in known:
            raise ConfigError(f"unknown {what} {key!r}{_did_you_mean(key, known)}; allowed are {_listed(known)}")


def _check_present(mapping: Mapping[str, Any]) -> None:
    missing = [f"`{key}`" for key in _REQUIRED if key not in mapping]
    if missing:
        raise ConfigError(f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing")


def _value(key: str, value: object) -> Any:
    if key == "task":
        return _task(value)
    if key == "replicas" and isinstance(value, Mapping):
        return _autoscale(value)
    kind = _FIELDS[key].type
    try:
        read = msgspec.convert(value, kind)
    except msgspec.ValidationError:
        raise ConfigError(f"`{key}` must be {_WORDS.get(kind, f'a {kind}')}, not {_shown(value)}") from None
    _check_plain(key, read)
    return read


def _autoscale(table: Mapping[Any, Any]) -> Autoscale:
    """The bounds between which the number of workers follows the load."""
    _check_keys(table, _SCALE_FIELDS, "key of `replicas`")
    if "max" not in table:
        raise ConfigError("`replicas.max` is missing: most workers")
    return Autoscale(**table)


def _check_plain(key: str, value: object) -> None:
    """Only what every process and every file format can hold: deployments travel to other machines."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_plain(f"{key}.{name}", item)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _check_plain(f"{key}[{place}]", item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"`{key}` must be finite, not {value}")
    elif not isinstance(value, str | int | float | None):
        raise ConfigError(f"`{key}` must be a text, a number, true or false, a list or a table, not {_shown(value)}")


def _task(value: object) -> PipelineTask:
    if value not in served_tasks():
        hint = _did_you_mean(value, served_tasks())
        raise ConfigError(f"`task` must be one of {_listed(served_tasks())}, not {_shown(value)}{hint}")
    return PipelineTask(value)


def _did_you_mean(value: object, known: Iterable[str]) -> str:
    known = list(known)
    text = str(value).strip().lower().replace("-", "_")
    close = difflib.get_close_matches(text, known, n=1) or [
        name for name in known if text and name.startswith(text[:4])
    ]
    return f" (did you mean {close[0]!r}?)" if close else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


_KINDS = {
    bool: "true or false",
    str: "a text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
    type(None): "nothing",
}


def _shown(value: object) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{text} ({_KINDS.get(type(value), type(value).__name__)})"
