"""Ray's autoscaler adds nodes for the workers that a load asks for, and takes them away; its machines are pretended."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tensoryard as ty

from . import ray_machine
from .conftest import PIPELINES
from .ray_head import LAUNCH, RAY
from .ray_machine import Machine, run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

#: A head without CPUs, and up to three nodes with two CPUs each, which are raylets of the same machine.
CONFIG = {
    "cluster_name": "pretended",
    "max_workers": 3,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.05,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,  # all of them have one address
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "auth": {"ssh_user": "root", "ssh_private_key": "/dev/null"},
    "docker": {},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "node": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 3},
    },
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}

YARD = """
[[deployment]]
model = "moody"
task = "embeddings_generation"
pipeline = "{pipelines}:moody"
num_cpus = 1.5
replicas = {{ min = 0, max = 3, target_ongoing_requests = 2, upscale_delay_s = 1, downscale_delay_s = 3 }}
"""


@pytest.fixture(scope="module")
def there() -> Iterator[Machine]:
    """A machine with Ray's autoscaler, whose raylets and ports are Ray's usual ones."""
    if reason := ray_machine.missing():
        pytest.skip(reason)
    with ray_machine.machine() as made:
        (made.folder / "run").mkdir(mode=0o700)
        (made.folder / "autoscaling.json").write_text(json.dumps(CONFIG))
        options = ["--head", "--port=6379", "--num-cpus=0", "--object-store-memory=100000000"]
        options += ["--include-dashboard=false", f"--autoscaling-config={made.folder}/autoscaling.json"]
        extra = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "0"}
        inside(made, str(RAY), "start", *options, **extra)
        yield made


def inside(there: Machine, *command: str, **more: str) -> str:
    """What a command on that machine prints; an assertion when it fails."""
    environment = {**os.environ, "TENSORYARD_RUNTIME_DIR": f"{there.folder}/run", "PYTHONSAFEPATH": "1"}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", **more}
    code, said = run(*there.inside, *command, environment=environment, cwd=there.folder)
    assert code == 0, said
    return said


def nodes(there: Machine) -> int:
    """Living nodes, the head among them."""
    script = "import ray; ray.init('auto', log_to_driver=False); print('alive', sum(n['Alive'] for n in ray.nodes()))"
    return int(inside(there, sys.executable, "-c", script).partition("alive ")[2].split()[0])


def test_nodes_come_and_go_with_the_load(there: Machine, tmp_path: Path, eventually: Callable[..., None]) -> None:
    """From none: the first request brings a node and a worker, more that wait bring three; in the end none is left."""
    gate = tmp_path / "gate"
    (there.folder / "yard.toml").write_text(YARD.format(pipelines=PIPELINES))
    inside(there, sys.executable, str(LAUNCH), f"{there.folder}/yard.toml")
    assert nodes(there) == 1
    with ty.connect(f"unix://{there.folder}/run/default.hub") as client:
        serving = lambda: len(client.status().models[0].workers)
        held = [client.submit(ty.EmbeddingsRequest(model="moody", input=f"until:{gate}")) for _ in range(40)]
        eventually(lambda: serving() == 3, "three workers serve", 200)
        assert nodes(there) == 4
        gate.touch()
        assert all(reply.result(100).embeddings.shape == (1, 4) for reply in held)
        eventually(lambda: serving() == 0, "no worker is left", 200)
        eventually(lambda: nodes(there) == 1, "no node is left but the head", 200)
        assert client.status().outcomes == {"finished": 40}
    inside(there, sys.executable, str(LAUNCH), "down")
