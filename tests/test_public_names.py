"""The public names, pinned; `import tensoryard` stays light; `import proto` is never ours."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tensoryard

ROOT = Path(__file__).parents[1]

PINNED = {
    "tensoryard": """
        AsyncClient AsyncReply AudioGenerationMetadata AudioGenerationOutput AudioGenerationRequest Autoscale Client
        ClusterStatus CopyLedger Deployment EmbeddingsGenerationOutput EmbeddingsRequest GenerationOutput
        GenerationStatus LoRAResponse LoRAStatus OutputImageContent Pipeline PipelineTask PixelGenerationRequest
        Reply RequestID Retry SamplingParams Settings SharedMemoryArray TensoryardError TextGenerationOutput
        TextGenerationRequest Yard __version__ connect connect_async errors local proto
    """,
    "tensoryard.client": "AsyncClient AsyncReply Client CopyLedger Reply Retry connect connect_async",
    "tensoryard.coordinator": "Connection Coordinator Router connections read_connection",
    "tensoryard.links": """
        Frames HubLink MemoryNetwork Opening PeerLink Poller SeqpacketHub SeqpacketPeer Session ZmqHub ZmqPeer make_hub
        make_peer pid_namespace
    """,
}


@pytest.mark.parametrize("module", PINNED)
def test_the_names_are_these(module):
    """`__all__` is exactly the pinned list, sorted, each once: changing it is a decision."""
    names = importlib.import_module(module).__all__
    assert sorted(names) == sorted(PINNED[module].split())
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("module", PINNED)
def test_every_name_resolves(module):
    """Each public name is there, and `dir` of the package shows it."""
    loaded = importlib.import_module(module)
    for name in loaded.__all__:
        assert getattr(loaded, name) is not None
        assert name in dir(loaded)


def test_an_unknown_name_is_an_attribute_error():
    """What is not public is no attribute, and the error names module and name."""
    with pytest.raises(AttributeError, match="'tensoryard' has no attribute 'conect'"):
        _ = tensoryard.conect


def test_everything_can_be_imported_with_a_star():
    """`from tensoryard import *` brings every public name."""
    scope = {}
    exec("from tensoryard import *", scope)
    assert set(tensoryard.__all__) <= scope.keys()


def run(code, **environment):
    """What a fresh interpreter prints for a piece of code, as JSON; it starts in the repository's root."""
    command = [sys.executable, "-W", "error", "-c", f"import json, sys\n{code}"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", **environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LOADED = "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
HEAVY = {"ray", "cupy", "torch", "scipy", "numpy", "zmq", "msgspec", "msgpack", "PIL", "tokenizers", "yaml", "asyncio"}


def test_import_tensoryard_takes_nothing_heavy():
    """`import tensoryard` alone loads none of the libraries it may later need, nor a layer of its own."""
    assert set(run(f"import tensoryard\n{LOADED}")) & HEAVY == set()
    layers = run("import tensoryard\nprint(json.dumps([m for m in sys.modules if m.startswith('tensoryard')]))")
    assert set(layers) <= {"tensoryard", "tensoryard.version"}


def test_a_client_needs_numpy_pyzmq_and_msgspec_only():
    """Connecting, encoding and decoding load neither ray nor workers, nor any library of a pipeline."""
    code = """
import tensoryard
try:
    tensoryard.connect("garbage")
except tensoryard.errors.ConfigError:
    pass
tensoryard.EmbeddingsRequest(model="m", input="x"), tensoryard.connect_async, tensoryard.proto.wire
"""
    allowed = HEAVY - {"numpy", "zmq", "msgspec", "asyncio"}
    loaded = set(run(code + LOADED))
    assert loaded & allowed == set()
    modules = run(code + "print(json.dumps([m for m in sys.modules if m.startswith('tensoryard.workers')]))")
    assert modules == []


def test_the_coordinator_takes_no_ray_and_no_worker():
    """The coordinator's process loads neither ray nor workers nor a client."""
    code = "import tensoryard.coordinator.__main__\n"
    loaded = run(code + "print(json.dumps(sorted(sys.modules)))")
    assert not [name for name in loaded if name.startswith(("ray", "tensoryard.workers", "tensoryard.client", "cupy"))]


def test_proto_is_never_ours():
    """`import proto` in the root with PYTHONSAFEPATH finds proto-plus or nothing, before and after our import."""
    code = """
def found():
    try:
        import proto
    except ModuleNotFoundError:
        return None
    return getattr(proto, "__file__", None) or list(proto.__path__)[0]
before = found()
sys.modules.pop("proto", None)
import tensoryard
tensoryard.proto, tensoryard.Client
print(json.dumps([before, found()]))
"""
    for where in run(code):
        assert where is None or not Path(where).is_relative_to(ROOT) or ".venv" in Path(where).parts


def test_our_folders_are_no_top_level_modules():
    """None of our folders can be imported by its bare name."""
    code = """
import importlib.util
names = ["shm", "links", "coordinator", "workers", "client", "deploy"]
print(json.dumps([name for name in names if importlib.util.find_spec(name) is not None]))
"""
    assert run(code) == []


def test_the_version_is_the_installed_one():
    """`__version__` is what the package's metadata says."""
    code = "import importlib.metadata, tensoryard\n"
    code += "print(json.dumps([tensoryard.__version__, importlib.metadata.version('tensoryard')]))"
    ours, installed = run(code)
    assert ours == installed


def test_types_are_marked():
    """py.typed lies in the package, so that type checkers read our annotations."""
    assert (Path(tensoryard.__file__).parent / "py.typed").exists()
