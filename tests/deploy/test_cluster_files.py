"""The files of `deploy/cluster` are what Ray and Kubernetes take, and every file, extra and command in them exists."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from tensoryard.deploy import cli
from tensoryard.deploy.config import load
from tensoryard.workers.factory import ENTRY_POINT_GROUP

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RAY_FILES = ["local.yaml", "aws.yaml"]
KUBERNETES_FILES = ["raycluster.yaml", "rayjob.yaml"]


def documents(name):
    return [document for document in yaml.safe_load_all((FILES / name).read_text()) if document]


def test_every_file_is_tested():
    """A new one is not forgotten."""
    assert sorted(path.name for path in FILES.iterdir()) == sorted(["Dockerfile", *RAY_FILES, *KUBERNETES_FILES])


# -- for Ray's cluster launcher ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAY_FILES)
def test_ray_takes_its_cluster_files(name, monkeypatch):
    """By Ray's own schema and its own completion of what is left out."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(ROOT)
    [config] = documents(name)
    validate_config(prepare_config(config))


@pytest.mark.parametrize("change", [{"provider": {"kind": "local"}}, {"max_workers": "many"}, {"colour": "red"}])
def test_ray_refuses_what_is_wrong(change):
    """The schema that the files are checked by finds mistakes."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    [config] = documents("aws.yaml")
    with pytest.raises(Exception):
        validate_config(prepare_config({**config, **change}))


@pytest.mark.parametrize("name", RAY_FILES)
def test_what_is_sent_and_installed_exists(name):
    """Files to copy, extras of the package, and the ports of head and workers."""
    [config] = documents(name)
    for source in config["file_mounts"].values():
        assert (ROOT / source).exists(), source
        assert load(ROOT / source)
    commands = "\n".join(config["setup_commands"])
    [extras] = re.findall(r"tensoryard\[([\w,]+)\]", commands)
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert "ray[default]" in commands
    assert "PYTHONSAFEPATH=1" in commands
    starts = {"head": config["head_start_ray_commands"], "worker": config["worker_start_ray_commands"]}
    assert "--port=6379" in starts["head"][-1]
    assert "--address=$RAY_HEAD_IP:6379" in starts["worker"][-1]


# -- for Kubernetes ---------------------------------------------------------------------------------------------------


def pod_templates(document):
    """The pod templates inside a RayCluster or RayJob."""
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


@pytest.mark.parametrize("name", KUBERNETES_FILES)
def test_kubernetes_takes_what_is_its_own(name):
    """ConfigMaps, and the pods inside Ray's own resources, by Kubernetes' published schemas, unknown keys refused."""
    validator = pytest.importorskip("kubernetes_validate")
    for document in documents(name):
        if document["apiVersion"] == "v1":
            validator.validate(document, "1.30", strict=True)
        else:
            for template in pod_templates(document):
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
                validator.validate(pod, "1.30", strict=True)


#: The keys of KubeRay's resources that our files use. Its definitions come with its operator, in no Python package.
_CLUSTER_KEYS = {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
_HEAD_KEYS = {"rayStartParams", "template"}
_WORKER_KEYS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


@pytest.mark.parametrize("name", KUBERNETES_FILES)
def test_rays_resources_have_the_keys_that_kuberay_knows(name):
    """Names, required keys, sizes in order, and start parameters as texts."""
    [resource] = [document for document in documents(name) if document["apiVersion"] == "ray.io/v1"]
    assert set(resource) == {"apiVersion", "kind", "metadata", "spec"}
    cluster = resource["spec"]
    if resource["kind"] == "RayJob":
        assert set(cluster) == {"entrypoint", "shutdownAfterJobFinishes", "rayClusterSpec"}
        cluster = cluster["rayClusterSpec"]
    assert set(cluster) == _CLUSTER_KEYS
    assert set(cluster["headGroupSpec"]) == _HEAD_KEYS
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == _WORKER_KEYS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        for container in group["template"]["spec"]["containers"]:
            assert {"name": "PYTHONSAFEPATH", "value": "1"} in container["env"]
            assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_deployments_in_the_config_map_can_be_loaded(tmp_path):
    """What the head finds under /etc/tensoryard is a deployment file."""
    [config_map] = [document for document in documents("raycluster.yaml") if document["kind"] == "ConfigMap"]
    for name, text in config_map["data"].items():
        (tmp_path / name).write_text(text)
        assert load(tmp_path / name)


# -- the image --------------------------------------------------------------------------------------------------------

#: Instructions with one line each; comments and continued lines are taken out before.
_INSTRUCTIONS = {"ARG", "FROM", "ENV", "COPY", "RUN"}


def instructions():
    """(instruction, rest) of the Dockerfile, in order."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", (FILES / "Dockerfile").read_text()))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_the_dockerfile_copies_what_exists_and_all_of_it():
    """Every source of a COPY is there, every subpackage and top-level module is copied, arguments are declared."""
    parsed = instructions()
    assert {name for name, _ in parsed} <= _INSTRUCTIONS
    assert "FROM" in [name for name, _ in parsed][:3]
    copied = set()
    for name, rest in parsed:
        if name == "COPY":
            sources = [word for word in shlex.split(rest) if not word.startswith("--")][:-1]
            assert all((ROOT / source).exists() for source in sources), rest
            copied |= set(sources)
    packages = {package.split(".")[1] for package in PROJECT["tool"]["setuptools"]["packages"] if "." in package}
    assert packages <= copied
    assert {path.name for path in ROOT.glob("*.py")} <= copied
    assert {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]} <= copied
    declared = {rest.split("=")[0] for name, rest in parsed if name == "ARG"}
    used = {word for _, rest in parsed for word in re.findall(r"\$\{(\w+)\}", rest)}
    assert used <= declared


def test_the_dockerfile_installs_extras_that_exist():
    """By their default, and by what its comment proposes."""
    text = (FILES / "Dockerfile").read_text()
    for extras in re.findall(r"EXTRAS=([\w,]+)", text):
        assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


# -- what they say is to be run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*FILES.iterdir(), ROOT / "docs" / "cluster.md"], ids=lambda path: path.name)
def test_commands_of_ours_in_them_are_commands(path):
    """Each `tensoryard …` and `launch.py …` that a file tells to run is understood by the command line."""
    found = re.findall(
        r"(?:tensoryard|launch\.py) ((?:--\s)?(?:up|down|status|address)\b[^'\"`\n#]*)", path.read_text()
    )
    found += [
        f"up {rest}" for rest in re.findall(r"launch\.py (?:-- )?('?[~\w./-]*\.toml'?[^'\"`\n#]*)", path.read_text())
    ]
    for command in found:
        cli._parse(shlex.split(command.removeprefix("-- ")))


def test_pipelines_of_the_examples_are_installed():
    """Names that stand for a pipeline are entry points of the package."""
    names = PROJECT["project"]["entry-points"][ENTRY_POINT_GROUP]
    [config_map] = [document for document in documents("raycluster.yaml") if document["kind"] == "ConfigMap"]
    assert set(re.findall(r'pipeline = "(\w+)"', config_map["data"]["yard.toml"])) <= set(names)
