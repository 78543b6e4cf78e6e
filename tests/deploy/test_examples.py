"""The examples and the README: what they show runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import tensoryard as ty
from tensoryard.deploy.config import load
from tensoryard.proto.outputs import served_tasks

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text()
#: In their order: an embedded cluster, a pipeline of one's own, and asking it.
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
#: Examples that ask a cluster of yard.toml, with what each prints.
CLIENTS = {
    "search.py": "How do I bake?",
    "photo.py": "(1200, 1600, 3) -> (600, 800, 3)",
    "stream_speech.py": "chunk 2:",
    "many_at_once.py": "100 sentences embedded",
    "stream_text.py": " tokens)",
}


def run(path, *, address="", cwd=None):
    """Run a file as a user would; its output."""
    environment = {**os.environ, "TENSORYARD_ADDRESS": address} if address else dict(os.environ)
    command = [sys.executable, "-P", str(path)]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_two_sample_files_are_the_same():
    """yard.toml and yard.yaml declare equal deployments: the four real pipelines, two workers each."""
    pytest.importorskip("yaml")
    deployments = load(EXAMPLES / "yard.toml")
    assert deployments == load(EXAMPLES / "yard.yaml")
    assert sorted(deployment.task.value for deployment in deployments) == served_tasks()
    assert {deployment.replicas for deployment in deployments} == {2}


def test_every_example_is_in_the_table():
    """examples/README.md names each file."""
    listed = set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text()))
    there = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    assert listed == there
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*CLIENTS, "channel_mean.py", "embedded.py"}


def test_the_readme_lists_every_key_of_a_deployment():
    """The table has each field once, and no other."""
    table = README[README.index("| key | default | meaning |") :].split("\n\n")[0]
    keys = [key for row in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(keys) == sorted(field.name for field in msgspec.structs.fields(ty.Deployment))


def test_every_link_of_the_documents_leads_somewhere():
    """Relative links in README.md, examples/README.md and the documents beside these tests' owner exist."""
    for name in ("README.md", "CHANGELOG.md", "docs/dependencies.md", "docs/refusals.md", "docs/glossary.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text()):
            assert ((ROOT / name).parent / link).exists(), f"{name} links to {link}"


def test_the_readme_pipeline_is_short_and_the_example():
    """A pipeline of one's own takes under 20 lines, and is the one in examples/."""
    assert len(BLOCKS) == 3
    assert len(BLOCKS[0].splitlines()) <= 15
    assert len(BLOCKS[1].splitlines()) < 20
    example = (EXAMPLES / "channel_mean.py").read_text().partition('"""\n')[2]
    assert BLOCKS[1].split() == example.split()


@pytest.mark.process
def test_the_readme_example_runs(tmp_path):
    """The first block, as it stands: an image half the size, and no copies."""
    (tmp_path / "example.py").write_text(BLOCKS[0])
    out = run(tmp_path / "example.py")
    assert out.startswith("(750, 1000, 3) ")
    assert "copies_in=0, copies_out=0" in out
    assert int(re.search(r"socket_bytes=(\d+)", out)[1]) < 2048


@pytest.mark.process
def test_the_readme_pipeline_serves(tmp_path):
    """The second block as a file, asked by the third."""
    (tmp_path / "channel_mean.py").write_text(BLOCKS[1])
    mean = ty.Deployment(
        model="mean",
        task=ty.PipelineTask.EMBEDDINGS_GENERATION,
        pipeline=f"{tmp_path}/channel_mean.py:create",
    )
    photo = np.arange(300 * 200 * 3, dtype=np.uint8).reshape(300, 200, 3)
    np.save(tmp_path / "photo.npy", photo)
    preamble = "import numpy as np, tensoryard as ty\nphoto = np.load('photo.npy')\n"
    (tmp_path / "ask.py").write_text(preamble + BLOCKS[2])
    with ty.local([mean], runtime="process") as yard:
        out = run(tmp_path / "ask.py", address=yard.address, cwd=tmp_path)
    assert np.allclose(
        np.array(out.replace("[", "").replace("]", "").split(), float), photo.mean(axis=(0, 1)), atol=0.01
    )


@pytest.mark.process
def test_the_embedded_example_runs():
    """A cluster in a script: the right means, no copy."""
    out = run(EXAMPLES / "embedded.py")
    assert "[[10. 20. 30.]]" in out
    assert "copied 0 times" in out


@pytest.mark.process
def test_the_client_examples_run(tmp_path):
    """Each against a cluster of yard.toml."""
    with ty.local(load(EXAMPLES / "yard.toml"), runtime="process") as yard:
        yard.wait_ready()
        for name, words in CLIENTS.items():
            assert words in run(EXAMPLES / name, address=yard.address, cwd=tmp_path), name
    assert (tmp_path / "speech.wav").exists()
