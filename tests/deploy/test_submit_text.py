"""`tensoryard submit` to a model that generates text: shown as it comes, or whole as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import tensoryard as ty
from tensoryard.deploy import cli

pytestmark = pytest.mark.process

OPTIONS = ["--option", "temperature=0", "--option", "max_new_tokens=12", "--option", "ignore_eos=true"]


@pytest.fixture(scope="module")
def yard(runtime_folder: Path) -> Iterator[ty.Yard]:
    deployment = ty.Deployment(
        model="small",
        task=ty.PipelineTask.TEXT_GENERATION,
        pipeline="tensoryard.workers.pipelines.llama:create",
        options={"device": "cpu", "max_batch_size": 4},
    )
    with ty.local([deployment], runtime="process") as yard:
        yard.wait_ready()
        yield yard


def test_a_prompt_is_answered(yard: ty.Yard, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """From arguments or a file; options are fields of the sampling, and a wrong one is named."""
    (tmp_path / "prompt.txt").write_text("# os.stat(path)")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["submit", "--address", yard.address, "small", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    code, out, err = run("# os.stat(path)", *OPTIONS)
    assert code == 0
    assert "12 tokens, " in err
    assert "by small-" in err
    code, whole, _ = run("--file", str(tmp_path / "prompt.txt"), "--json", *OPTIONS)
    told = json.loads(whole)
    assert f"{told['text']}\n" == out
    assert len(told["tokens"]) == 12
    assert told["status"] == ty.GenerationStatus.MAXIMUM_LENGTH.value
    code, _, err = run("a", "--option", "temprature=1")
    assert (code, "temprature" in err) == (2, True)
    code, _, err = run("a", "--file", str(tmp_path / "prompt.txt"))
    assert (code, "not both" in err) == (2, True)
