"""Deployment files: what is read, and that each mistake is named with its file, place, key and value."""

import builtins
import textwrap

import pytest

from tensoryard import Autoscale
from tensoryard.deploy.config import MAX_FILE_BYTES, find_pipeline, installed_pipelines, load, parse_deployment
from tensoryard.errors import ConfigError
from tensoryard.proto.pipeline import PipelineTask

MINIMAL = {"model": "m", "task": "embeddings_generation", "pipeline": "minilm"}

TOML = """
    [[deployment]]
    model = "words"
    task = "embeddings_generation"
    pipeline = "minilm"
    replicas = 2
    options = { device = "cpu", max_batch_size = 16 }

    [[deployment]]
    model = "photos"
    task = "pixel_generation"
    pipeline = "package.module:Factory.make"
    num_gpus = 0.5
    resources = { camera = 1 }
"""

YAML = """
    deployments:
      - model: words
        task: embeddings_generation
        pipeline: minilm
        replicas: 2
        options: {device: cpu, max_batch_size: 16}
      - model: photos
        task: pixel_generation
        pipeline: package.module:Factory.make
        num_gpus: 0.5
        resources: {camera: 1}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="yard.toml"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def failure(path):
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


def test_a_toml_file_gives_its_deployments_in_order(write):
    """Every key given in TOML arrives in the deployment, in the order of the file."""
    words, photos = load(write(TOML))
    assert (words.model, words.task, words.pipeline) == ("words", PipelineTask.EMBEDDINGS_GENERATION, "minilm")
    assert (words.replicas, words.options) == (2, {"device": "cpu", "max_batch_size": 16})
    assert (photos.model, photos.num_gpus, photos.resources) == ("photos", 0.5, {"camera": 1.0})


def test_yaml_and_toml_say_the_same(write):
    """The same deployments written in YAML and in TOML are equal, and `.yml` is YAML too."""
    assert load(write(YAML, "yard.yaml")) == load(write(TOML)) == load(write(YAML, "yard.yml"))


def test_both_spellings_of_the_list_are_read(write):
    """`deployment` and `deployments` are the same key."""
    assert load(write(TOML.replace("[[deployment]]", "[[deployments]]"))) == load(write(TOML, "again.toml"))


def test_a_byte_order_mark_is_no_part_of_the_file(write):
    """A file saved by an editor that marks UTF-8 is read."""
    assert len(load(write("\N{ZERO WIDTH NO-BREAK SPACE}" + textwrap.dedent(TOML)))) == 2


def test_a_pipeline_file_is_found_beside_the_deployment_file(write, tmp_path, monkeypatch):
    """`file.py:factory` is relative to the deployment file, wherever the process stands."""
    own = tmp_path / "own.py"
    own.write_text("def create(): ...")
    path = write(
        """
        [[deployment]]
        model = "m"
        task = "embeddings_generation"
        pipeline = "./own.py:create"
        """,
    )
    monkeypatch.chdir("/")
    assert load(path)[0].pipeline == f"{own}:create"


def test_a_mapping_makes_a_deployment():
    """`parse_deployment` takes what a file's table would hold, whole floats as numbers included."""
    deployment = parse_deployment({**MINIMAL, "replicas": 3, "num_cpus": 1, "max_batch_size": None})
    assert (deployment.replicas, deployment.num_cpus, deployment.max_batch_size) == (3, 1.0, None)


def test_the_number_of_workers_may_follow_the_load():
    """A table in the place of the number."""
    deployment = parse_deployment({**MINIMAL, "replicas": {"min": 0, "max": 8, "downscale_delay_s": 5}})
    assert deployment.replicas == Autoscale(min=0, max=8, downscale_delay_s=5)
    assert (deployment.least_replicas, deployment.most_replicas) == (0, 8)


def test_the_pipelines_of_the_package_are_known_by_name():
    """The three pipelines that come with the package can be named in a deployment."""
    assert {"minilm", "photo-edit", "espeak"} <= set(installed_pipelines())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"replicas": "two"},
            ["`replicas` must be a whole number, or a table with `max` and perhaps `min`, not 'two' (a text)"],
        ),
        (
            {"replicas": 1.5},
            ["`replicas` must be a whole number, or a table with `max` and perhaps `min`, not 1.5 (a number)"],
        ),
        (
            {"replicas": True},
            ["`replicas` must be a whole number, or a table with `max` and perhaps `min`, not True (true or false)"],
        ),
        ({"replicas": {"min": 1}}, ["`replicas.max` is missing"]),
        ({"replicas": {"max": 3, "maximum": 4}}, ["unknown key of `replicas` 'maximum' (did you mean 'max'?)"]),
        ({"replicas": {"max": 0}}, ["`replicas.max` must be at least 1"]),
        ({"replicas": -1}, ["`replicas`", "at least 0, not -1"]),
        ({"max_batch_size": 0}, ["`max_batch_size`", "at least 1, not 0"]),
        ({"num_cpus": False}, ["`num_cpus` must be a number, not False"]),
        ({"num_gpus": "half"}, ["`num_gpus` must be a number, not 'half'"]),
        ({"max_wait_ms": float("inf")}, ["`max_wait_ms` must be finite, not inf"]),
        ({"hang_limit_s": float("nan")}, ["`hang_limit_s` must be finite, not nan"]),
        ({"resources": {"camera": "yes"}}, ["`resources` must be a table of names and numbers", "'camera'"]),
        ({"resources": {"camera": float("inf")}}, ["`resources.camera` must be finite"]),
        ({"options": ["cpu"]}, ["`options` must be a table of names and values, not ['cpu'] (a list)"]),
        ({"options": {"when": [{1, 2}]}}, ["`options.when[0]` must be a text, a number", "{1, 2} (set)"]),
        ({"model": ""}, ["`model` must be a name of 1 to 128 characters"]),
        ({"model": "m" * 129}, ["`model` must be a name of 1 to 128 characters"]),
        ({"model": 7}, ["`model` must be a text, not 7 (a whole number)"]),
        ({"task": "embedding"}, ["`task` must be one of audio_generation", "did you mean 'embeddings_generation'?"]),
        ({"task": "pixels"}, ["not 'pixels' (a text)", "did you mean 'pixel_generation'?"]),
        ({"task": 5}, ["`task` must be one of", "not 5 (a whole number)"]),
        ({"task": ["audio_generation"]}, ["`task` must be one of", "(a list)"]),
        ({"task": "undefined"}, ["`task` must be one of", "not 'undefined'"]),
        ({"pipeline": "minilmm"}, ["installed pipeline's name", "photo-edit", "did you mean 'minilm'?"]),
        ({"pipeline": ""}, ["`pipeline` must be 'file.py:factory'", "not ''"]),
        ({"pipeline": 3}, ["`pipeline` must be a text, not 3"]),
        ({"pipeline": "own.py"}, ["name the factory in it too, for example 'own.py:create'"]),
        ({"pipeline": "own.py:"}, ["`pipeline` must be 'file.py:factory'", "not 'own.py:'"]),
        ({"pipeline": "a-module:create"}, ["`pipeline` must be", "not 'a-module:create'"]),
        ({"replcas": 2}, ["unknown key 'replcas' (did you mean 'replicas'?)", "allowed are model, task"]),
        ({"max-batch-size": 2}, ["unknown key 'max-batch-size' (did you mean 'max_batch_size'?)"]),
        ({"colour": 2}, ["unknown key 'colour'; allowed are model, task"]),
        ({5: 2}, ["unknown key 5; allowed are"]),
    ],
)
def test_a_wrong_key_or_value_is_named(change, words):
    """The message names the deployment, the key and the value, and what would be right."""
    with pytest.raises(ConfigError) as caught:
        parse_deployment({**MINIMAL, **change}, where="deployment 2")
    text = str(caught.value)
    assert text.startswith("deployment 2")
    assert len(text) < 700
    for expected in words:
        assert expected in text


def test_a_long_value_is_shown_in_part():
    """A value of a thousand characters does not fill the screen."""
    with pytest.raises(ConfigError) as caught:
        parse_deployment({**MINIMAL, "replicas": "x" * 1000})
    assert "..." in str(caught.value)
    assert len(str(caught.value)) < 200


def test_missing_keys_are_all_named():
    """One message lists every key that must be given."""
    with pytest.raises(ConfigError, match="`task`, `pipeline` are missing"):
        parse_deployment({"model": "m"})
    with pytest.raises(ConfigError, match="`model` is missing"):
        parse_deployment({"task": "audio_generation", "pipeline": "espeak"})


def test_a_deployment_that_is_no_table_is_told_so():
    """A list or text in place of a deployment is named."""
    with pytest.raises(ConfigError, match="must be a table of keys and values, not 'minilm'"):
        parse_deployment("minilm")


def test_a_missing_pipeline_file_is_named_with_its_full_path(tmp_path):
    """The message shows where the file was looked for."""
    with pytest.raises(ConfigError) as caught:
        find_pipeline("sub/own.py:create", folder=tmp_path)
    assert f"there is no file {tmp_path}/sub/own.py" in str(caught.value)


def test_a_file_is_named_with_the_place_of_the_mistake(write):
    """File, position, model, key and value are all in the message."""
    text = failure(write(TOML.replace("num_gpus = 0.5", 'num_gpus = "half"')))
    assert text.endswith("yard.toml: deployment 2 (model 'photos'): `num_gpus` must be a number, not 'half' (a text)")


def test_a_model_deployed_twice_is_refused(write):
    """Both places are named."""
    assert "model 'words' is deployed twice, as deployments 1 and 2" in failure(write(TOML.replace("photos", "words")))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("yard.toml", "", ["the file is empty", "[[deployment]]"]),
        ("yard.yaml", "\n\n", ["the file is empty", "`deployments:`"]),
        ("yard.yaml", "# nothing yet\n", ["no deployment in it"]),
        ("yard.toml", "# nothing yet\n", ["no deployment in it"]),
        ("yard.toml", "[[deployment]\n", ["is not TOML", "line 1"]),
        ("yard.yaml", "deployments: [\n", ["is not YAML", "line"]),
        ("yard.yaml", "a: " + "[" * 5000, ["is not YAML"]),
        ("yard.yaml", "- model: m\n", ["(a list) where keys and values are expected"]),
        ("yard.yaml", "deployments:\n", ["`deployments` must be a list of deployments, not None"]),
        ("yard.yaml", "deployments: []\n", ["no deployment in it"]),
        ("yard.toml", '[deployment]\nmodel = "m"\n', ["two brackets: [[deployment]]"]),
        ("yard.toml", '[[deploymnet]]\nmodel = "m"\n', ["'deploymnet' (did you mean 'deployment'?)"]),
        ("yard.toml", "deployment = []\ndeployments = []\n", ["keep all deployments under one of them"]),
        (
            "yard.toml",
            "[[deployment]]\nmodel = 2026-11-02\ntask = 1\npipeline = 1\n",
            ["`model` must be a text", "date"],
        ),
        ("yard.json", "{}", ["a deployment file ends in .toml, .yaml, .yml"]),
        ("yard", "", ["a deployment file ends in"]),
    ],
)
def test_a_file_that_cannot_be_used_is_told_why(write, name, text, words):
    """The message begins with the file's path and says what is wrong with it."""
    path = write(text, name)
    found = failure(path)
    assert found.startswith(f"{path}: ")
    for expected in words:
        assert expected in found


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """Missing file, folder, and text in another encoding."""
    assert "none.toml: cannot be read: No such file" in failure(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    assert "folder.toml: cannot be read: Is a directory" in failure(tmp_path / "folder.toml")
    (tmp_path / "latin.toml").write_bytes(b'model = "caf\xe9"')
    assert "latin.toml: is not UTF-8 text" in failure(tmp_path / "latin.toml")


def test_a_huge_file_is_not_read(tmp_path):
    """A file over the limit is refused by its size."""
    path = tmp_path / "huge.toml"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert f"at most {MAX_FILE_BYTES} are read" in failure(path)


def test_yaml_tags_cannot_run_code(write):
    """A tag that asks for a Python object is refused."""
    assert "is not YAML" in failure(write("deployments: !!python/object/apply:os.system ['true']\n", "yard.yaml"))


def test_without_pyyaml_the_way_to_install_it_is_told(write, monkeypatch):
    """YAML without PyYAML names the extra; TOML needs nothing."""
    real = builtins.__import__

    def without_yaml(name, *args, **kwargs):
        if name == "yaml":
            raise ImportError("No module named 'yaml'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_yaml)
    assert "pip install 'tensoryard[yaml]'" in failure(write(YAML, "yard.yaml"))
    assert len(load(write(TOML))) == 2
