"""`ray up`, `ray submit`, `ray job submit`, `ray down`, for real: over ssh, on a machine beside this one."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tensoryard as ty

from . import ray_machine
from .conftest import PIPELINES
from .load import Load
from .ray_head import LAUNCH
from .ray_machine import PYTHON_FOLDER, Machine, run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

#: Ray's dashboard, to which jobs are submitted, is not in every install of Ray.
HAS_JOBS = importlib.util.find_spec("aiohttp_cors") is not None

CLUSTER = """
cluster_name: submitted
provider: {{type: local, head_ip: 127.0.0.1, worker_ips: []}}
auth:
  ssh_user: root
  ssh_private_key: {folder}/id
  ssh_proxy_command: "{proxy}"
max_workers: 0
file_mounts: {{ "{folder}/there": "{folder}/here" }}
setup_commands:
  - echo 'export {variables}' >> ~/.bashrc
head_start_ray_commands:
  - {variables} ray start --head --port=6379 --num-cpus=2 --object-store-memory=100000000
    --include-dashboard={dashboard} --disable-usage-stats --autoscaling-config=~/ray_bootstrap_config.yaml
"""

YARD = """
[[deployment]]
model = "moody"
task = "embeddings_generation"
pipeline = "{pipeline}"
replicas = {replicas}
num_cpus = 0.1
"""


@pytest.fixture(scope="module")
def there() -> Iterator[Machine]:
    """A machine to submit to; nothing of it is left at the end."""
    if reason := ray_machine.missing():
        pytest.skip(reason)
    with ray_machine.machine() as made:
        (made.folder / "here").mkdir()
        (made.folder / "run").mkdir(mode=0o700)
        variables = {
            "PATH": f"{PYTHON_FOLDER}:$PATH",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "PYTHONSAFEPATH": "1",
            "TENSORYARD_RUNTIME_DIR": f"{made.folder}/run",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        cluster = CLUSTER.format(
            folder=made.folder,
            proxy=made.ssh_proxy_command,
            variables=" ".join(f"{key}={value}" for key, value in variables.items() if value),
            dashboard=str(HAS_JOBS).lower(),
        )
        (made.folder / "cluster.yaml").write_text(cluster)
        yield made


def ray(there: Machine, *arguments: str) -> str:
    """One command of Ray on this machine, the one that submits."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"RAY_UP_enable_autoscaler_v2": "0", "PYTHONSAFEPATH": "1"}
    code, said = run(str(PYTHON_FOLDER / "ray"), *arguments, environment=environment, cwd=there.folder)
    assert code == 0, said
    return said


def write_yard(folder: Path, pipeline: str, replicas: int = 1) -> None:
    (folder / "yard.toml").write_text(YARD.format(pipeline=pipeline, replicas=replicas))


def names(client: ty.Client) -> set[str]:
    return {worker.name for model in client.status().models for worker in model.workers}


def test_a_cluster_is_brought_up_submitted_to_and_taken_down(there: Machine, eventually: Callable[..., None]) -> None:
    """The launch script goes to the head node alone; work is done through the client library; a job changes the
    cluster under load; the script ends it, and Ray is taken down."""
    cluster = str(there.folder / "cluster.yaml")
    write_yard(there.folder / "here", f"{PIPELINES}:moody")
    ray(there, "up", "-y", "--no-config-cache", cluster)
    said = ray(there, "submit", cluster, str(LAUNCH), "--", f"{there.folder}/there/yard.toml")
    assert "starting cluster 'default' on Ray: moody x 1" in said
    assert f"ready at unix://{there.folder}/run/default.hub" in said
    with ty.connect(f"unix://{there.folder}/run/default.hub") as client, Load(client) as load:
        assert names(client) == {"moody-1"}
        if HAS_JOBS:
            submit_a_job(there)
            assert names(client).isdisjoint({"moody-1"})
        else:  # without ray[default]; with it, which the tests' extra has, the same by a job
            write_yard(there.folder / "here", f"{PIPELINES}:moody", replicas=2)
            ray(there, "rsync-up", cluster, f"{there.folder}/here/", f"{there.folder}/there/")
            ray(there, "submit", cluster, str(LAUNCH), "--", f"{there.folder}/there/yard.toml")
            assert names(client) == {"moody-1", "moody-2"}
        answered = load.answered
        eventually(lambda: load.answered > answered + 10, "requests are answered by the changed cluster")
    assert "cluster 'default' has ended" in ray(there, "submit", cluster, str(LAUNCH), "--", "down")
    assert list((there.folder / "run").glob("default*")) == []
    ray(there, "down", "-y", cluster)
    code, left = run(*there.inside, "ps", "-eo", "args")
    assert code == 0
    assert [line for line in left.splitlines() if "raylet" in line or "gcs_server" in line or "ray::" in line] == []


def submit_a_job(there: Machine) -> None:
    """`ray job submit` with a working folder that holds the script, the deployments and a pipeline."""
    folder = there.folder / "job"
    folder.mkdir()
    (folder / "launch.py").write_bytes(LAUNCH.read_bytes())
    (folder / "mine.py").write_bytes(PIPELINES.read_bytes())
    write_yard(folder, "mine.py:moody", replicas=2)
    environment = {**os.environ, "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265", "RAY_AUTH_MODE": "disabled"}
    submit = [str(PYTHON_FOLDER / "ray"), "job", "submit", "--working-dir", str(folder)]
    code, said = run(*there.inside, *submit, "--", "python", "launch.py", "yard.toml", environment=environment)
    assert code == 0, said
    assert "changing cluster 'default' on Ray: moody x 2" in said
