"""From a deployment's `pipeline` text to a pipeline: "package.module:factory", "file.py:factory" or an entry point.

Used by `main.py` in the worker's process, the only one that imports a pipeline's code.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ConfigError
from ..proto.deployment import Deployment
from ..proto.pipeline import Pipeline

ENTRY_POINT_GROUP = "tensoryard.pipelines"


def build_pipeline(deployment: Deployment) -> Pipeline[Any, Any]:
    """Call the deployment's factory with its options.

    Raises ConfigError for a text that names no factory or a factory that makes no Pipeline; what the factory raises
    passes through.
    """
    factory = find_factory(deployment.pipeline)
    pipeline = factory(**deployment.options)
    if not isinstance(pipeline, Pipeline):
        raise ConfigError(f"{deployment.pipeline} made a {type(pipeline).__name__}, not a tensoryard.Pipeline")
    return pipeline


def find_factory(text: str) -> Callable[..., Any]:
    """The callable that a `pipeline` text names; behind the colon, dots lead into classes."""
    place, colon, name = text.rpartition(":")
    if not colon:
        return _entry_point(text)
    module = _load_file(Path(place)) if place.endswith(".py") else _import(place, text)
    try:
        factory = functools.reduce(getattr, name.split("."), module)
    except AttributeError as error:
        raise ConfigError(f"pipeline {text!r}: {place} has no function {name!r}") from error
    return _callable(factory, text)


def _callable(factory: Any, text: str) -> Callable[..., Any]:
    if not callable(factory):
        raise ConfigError(f"pipeline {text!r} names a {type(factory).__name__}, which cannot be called")
    return factory  # type: ignore[no-any-return]


def _import(place: str, text: str) -> ModuleType:
    if not all(place.split(".")):
        raise ConfigError(f"pipeline {text!r}: {place!r} is the name of no module, and of no file that ends in .py")
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ConfigError(f"pipeline {text!r}: {error}; install it where the workers run, or name a file.py") from error


def _load_file(path: Path) -> ModuleType:
    """Run a file as a module of its own, under a name that no other module has.

    What lies beside it can be imported, as from a script; installed modules come first. `from . import` works too.
    """
    if not path.is_file():
        raise ConfigError(f"pipeline file {path} does not exist on this host (looked from {Path.cwd()})")
    path = path.resolve()
    stem = path.stem.replace(".", "_")
    name = f"tensoryard_pipeline_{stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[folder])
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None, "and the loader is known"
    module = importlib.util.module_from_spec(spec)
    # Registered first, as importing does: dataclasses and pickle look their module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _entry_point(name: str) -> Callable[..., Any]:
    found = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    if name not in found.names:
        raise ConfigError(
            f"pipeline {name!r} is neither 'module:factory', 'file.py:factory' nor one of the installed "
            f"{sorted(found.names)}",
        )
    try:
        return _callable(found[name].load(), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(f"pipeline {name!r} cannot be loaded: {error}; is all that it needs installed?") from error
