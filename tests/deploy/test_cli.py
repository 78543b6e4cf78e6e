"""The command line: arguments, errors and exit codes without a cluster; then each command on a real one."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import wave
from pathlib import Path

import msgspec
import numpy as np
import pytest

import tensoryard as ty
from tensoryard.deploy import cli, running, submit, text
from tensoryard.proto.status import ClusterStatus, ModelStatus, WorkerStatus
from tensoryard.workers.pipelines.espeak import speak
from tensoryard.workers.pipelines.photo_edit import edit

from .conftest import CommandLine, ended, read_until

EXAMPLES = Path(__file__).parents[2] / "examples"
MEAN = ["--model", "mean", "--task", "embeddings_generation", "--pipeline", f"{EXAMPLES}/channel_mean.py:create"]

BROKEN = """
def create(**options):
    raise RuntimeError("the weights are on another disk")
"""


# -- without a cluster ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "COMMAND"),
        (["fly"], 2, "invalid choice: 'fly'"),
        (["up"], 2, "name a deployment file, or give --model, --task, --pipeline"),
        (["up", "--model", "m"], 2, "give --task, --pipeline"),
        (["up", "none.toml"], 2, "none.toml: cannot be read"),
        (["up", "none.toml", "--model", "m"], 2, "--model cannot be given here"),
        (["up", "none.toml", "--option", "a=1"], 2, "--option cannot be given here"),
        (["up", "a.toml", "b.toml"], 2, "unrecognized arguments: b.toml"),
        (["up", *MEAN, "--replicas", "two"], 2, "'two' is no number of workers, nor MIN-MAX"),
        (["up", *MEAN, "--replicas", "-2"], 2, "at least 0, not -2"),
        (["up", *MEAN, "--option", "device"], 2, "--option takes KEY=VALUE, not 'device'"),
        (["up", *MEAN, "--name", "no/name"], 2, "a cluster's name is"),
        (["up", *MEAN, "--runtime", "threads"], 2, "invalid choice: 'threads'"),
        (["up", *MEAN[:4], "--pipeline", "no_file.py:create"], 2, "there is no file"),
        (["up", *MEAN[:2], "--task", "pixels", *MEAN[4:]], 2, "did you mean 'pixel_generation'?"),
        (["up", "--ready-timeout", "0", *MEAN], 2, "'0' is no number of seconds above 0"),
        (["status"], 1, "no coordinator named 'default' runs on this host"),
        (["status", "--name", "no name"], 2, "a cluster's name is"),
        (["status", "--name", "a", "--address", "ipc:///b"], 2, "give --address or --name, not both"),
        (["status", "--address", "somewhere"], 2, "'somewhere' is no address"),
        (
            ["status", "--address", "ipc:///nowhere/at/all", "--timeout", "0.1"],
            1,
            "no coordinator answered at ipc:///no",
        ),
        (["status", "--json", "x"], 2, "unrecognized arguments: x"),
        (["submit"], 2, "the following arguments are required: MODEL"),
        (["submit", "m", "hello"], 1, "no coordinator named 'default'"),
        (["submit", "m", "--operations", "[{"], 2, "--operations takes JSON, or @FILE with JSON"),
        (["submit", "m", "--operations", "@/no/file"], 2, "No such file"),
        (["submit", "m", "--deadline", "-1"], 2, "'-1' is no number of seconds above 0"),
        (["submit", "m", "--priority", "high"], 2, "invalid int value: 'high'"),
        (["submit", "m", "hello", "--fast", "there"], 2, "unrecognized arguments: --fast"),
        (["worker"], 2, "name a deployment file, or give --model, --task, --pipeline"),
        (["worker", *MEAN], 1, "no coordinator named 'default'"),
        (["worker", "--config", f"{EXAMPLES}/yard.toml"], 2, "say which with --model; its models are all-MiniLM-L6-v2"),
        (["worker", "--config", f"{EXAMPLES}/yard.toml", "--model", "x"], 2, "has no model 'x'"),
        (
            ["worker", "--config", f"{EXAMPLES}/yard.toml", "--model", "espeak", "--task", "x"],
            2,
            "--task cannot be given",
        ),
        (["demo", "--clients", "0"], 2, "'0' is no whole number above 0"),
        (["demo", "--output", "/dev/null/x"], 2, "--output /dev/null/x"),
        (["lora"], 2, "the following arguments are required: VERB"),
        (["lora", "load", "tone", "/tone"], 2, "the following arguments are required: --model"),
        (["lora", "load", "tone", "/tone", "--model", "m"], 1, "no coordinator named 'default'"),
        (["lora", "unload", "tone", "--within", "0"], 2, "'0' is no number of seconds above 0"),
        (["shm"], 2, "the following arguments are required: VIEW"),
        (["shm", "ls", "--sort", "colour"], 2, "invalid choice: 'colour'"),
        (["shm", "ls", "--older-than", "old"], 2, "'old' is no number of seconds above 0"),
        (["shm", "top", "--count", "0"], 2, "'0' is no whole number above 0"),
        (["down", "--timeout", "soon"], 2, "'soon' is no number of seconds above 0"),
    ],
)
def test_a_wrong_use_is_one_clear_error(arguments, code, words, capsys):
    """Every mistake: its exit code, the words that name it, and no traceback."""
    assert cli.main(arguments) == code
    seen = capsys.readouterr()
    assert words in seen.err
    assert seen.out == ""
    assert "Traceback" not in seen.err


def test_help_and_version_are_no_errors(capsys):
    """`--help` lists every command; `--version` is one line."""
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("demo", "up", "down", "status", "submit", "worker", "lora", "doctor", "shm", "chaos"):
        assert f"\n    {command} " in out
        assert cli.main([command, "--help"]) == 0
    capsys.readouterr()
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tensoryard {ty.__version__}\n"


def test_help_imports_nothing_heavy():
    """`tensoryard --help` loads neither numpy nor ray."""
    code = (
        "import sys; from tensoryard.deploy.cli import main; main(['--help']);"
        "assert not {'numpy', 'ray', 'zmq'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_down_without_a_cluster_says_so(capsys):
    """What is asked for is the case already: not an error."""
    assert cli.main(["down"]) == 0
    assert "no cluster named 'default' runs on this host" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(monkeypatch, capsys):
    """Ctrl-C in any command: one word, exit code 130."""

    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tensoryard.deploy.doctor.main", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_an_unforeseen_error_is_one_line_unless_debug_asks(monkeypatch, capsys):
    """A bug of ours: its type and text in one line; with --debug the traceback."""

    def broken(**_):
        raise KeyError("oops")

    monkeypatch.setattr("tensoryard.deploy.doctor.main", broken)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "tensoryard: error: KeyError: 'oops' (--debug shows where)\n"
    assert cli.main(["doctor", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_traceback():
    """`tensoryard doctor | head -1` ends quietly."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tensoryard.deploy.cli", "doctor"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 1


def test_positional_arguments_may_follow_options():
    """`submit MODEL --option a=1 TEXT` and `up --runtime process FILE` are understood."""
    args = cli._parse(["submit", "m", "--option", "a=1", "one", "two"])
    assert (args.model, args.inputs) == ("m", ["one", "two"])
    assert cli._parse(["up", "--runtime", "process", "yard.toml"]).config == "yard.toml"


def test_options_are_json_where_they_can_be():
    """Numbers, truth and lists are read as such, the rest is text; a value may contain '='."""
    given = ["n=3", "x=0.5", "yes=true", 'list=["a"]', "text=en-us", "formula=a=b", "empty="]
    wanted = {"n": 3, "x": 0.5, "yes": True, "list": ["a"], "text": "en-us", "formula": "a=b", "empty": ""}
    assert cli._options(given) == wanted


def test_flags_declare_a_deployment():
    """All flags of a deployment arrive in it, the pipeline's path made absolute."""
    args = cli._parse(["up", *MEAN, "--option", "k=1", "--replicas", "3", "--max-wait-ms", "0.5", "--num-cpus", "0.25"])
    (deployment,) = cli._deployments(args)
    assert (deployment.model, deployment.replicas, deployment.options) == ("mean", 3, {"k": 1})
    assert (deployment.max_wait_ms, deployment.num_cpus) == (0.5, 0.25)
    assert deployment.pipeline == f"{EXAMPLES}/channel_mean.py:create"


def test_a_worker_takes_its_deployment_from_the_file():
    """--model chooses; a file with a single deployment needs no choice."""
    args = cli._parse(["worker", "--config", f"{EXAMPLES}/yard.toml", "--model", "espeak"])
    assert cli._one_deployment(args).pipeline == "espeak"


def status_of(**changes):
    worker = WorkerStatus(name="m-1", host="h", pid=77, state="ready", in_flight=1, credits=3, seen_s=0.25)
    model = ModelStatus(
        model="m",
        task="embeddings_generation",
        deployment="m",
        replicas=1,
        unhealthy="",
        queued=2,
        queued_bytes=3 << 20,
        workers=[worker],
    )
    status = ClusterStatus(
        name="default",
        address="ipc:///x",
        epoch="e",
        version="0.1.0",
        uptime_s=4000.0,
        accepting=True,
        clients=1,
        live_requests=2,
        outcomes={"finished": 5},
        models=[model],
    )
    return msgspec.structs.replace(status, **changes)


def test_a_status_is_shown_whole():
    """Cluster, outcomes, model and worker with their numbers."""
    shown = running.describe(status_of())
    head = "cluster default at ipc:///x, version 0.1.0, up 1 h 6 min, 1 client, 2 live requests"
    assert shown.splitlines()[:2] == [head, "requests so far: 5 finished"]
    assert "m      embeddings_generation  ready      1       1       2       3.0 MiB" in shown
    assert "m-1     m      h      77  ready          1        3  250.0 ms" in shown


def test_an_unhealthy_model_is_shown_with_its_reason():
    """The state says it, and the traceback stands below the tables."""
    model = msgspec.structs.replace(
        status_of().models[0], unhealthy="Traceback ...\nRuntimeError: no weights\n", workers=[]
    )
    shown = running.describe(status_of(models=[model], accepting=False))
    assert "unhealthy" in shown
    assert "shutting down" in shown
    assert shown.endswith("m: Traceback ...\nRuntimeError: no weights")
    assert "no model is deployed" in running.describe(status_of(models=[]))


def test_texts_for_people():
    """Sizes, durations, counts, percentiles and tables."""
    assert [text.size(n) for n in (0, 1023, 1024, 3 << 20, 5 << 30, 7 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3.0 MiB",
        "5.0 GiB",
        "7.0 TiB",
    ]
    assert [text.duration(s) for s in (0.0123, 4.06, 185, 7500)] == ["12.3 ms", "4.1 s", "3 min", "2 h 5 min"]
    assert (text.several(1, "copy", "copies"), text.several(2, "copy", "copies")) == ("1 copy", "2 copies")
    assert [text.percentile(range(1, 101), share) for share in (0, 0.5, 0.99, 1)] == [1, 50, 99, 100]
    assert np.isnan(text.percentile([], 0.5))
    assert text.table(("NAME", ">N"), [("a", 1), ("bcdef", 22)]) == "NAME    N\n-----  --\na       1\nbcdef  22"


def test_images_come_and_go_as_files(tmp_path):
    """.npy keeps every dtype; .png keeps 8 bits, turns 16 bits and floats into 8, and grey into one channel."""
    colour = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    for name, image, expected in (
        ("a.png", colour, colour),
        ("a.npy", colour.astype(np.float32), colour.astype(np.float32)),
        ("b.png", (colour.astype(np.uint16) << 8) + 5, colour),
        ("c.png", colour.astype(np.float32) / 255, colour),
        ("d.png", colour[:, :, :1], colour[:, :, 0]),
        ("e.PNG", colour[:, :, 0], colour[:, :, 0]),
    ):
        submit.write_image(tmp_path / name, image)
        assert np.array_equal(submit.read_image(tmp_path / name), expected), name


def test_a_file_that_is_no_image_is_named(tmp_path):
    """Not there, not an image, a pickle in .npy: each named, none run."""
    (tmp_path / "text.png").write_text("no image")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=np.zeros(1))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    for name, words in (
        ("none.png", "No such file"),
        ("text.png", "cannot identify image file"),
        ("objects.npy", "Object arrays cannot be loaded"),
        ("several.npy", "holds no single array"),
    ):
        with pytest.raises(ty.errors.InvalidRequest, match=words):
            submit.read_image(tmp_path / name)


# -- submit, on a cluster of the three real pipelines -----------------------------------------------------------------


@pytest.fixture(scope="module")
def yard(runtime_folder):
    """Three real models and a pipeline from a file, one plain process each."""
    mean = ty.Deployment(
        model="mean",
        task=ty.PipelineTask.EMBEDDINGS_GENERATION,
        pipeline=f"{EXAMPLES}/channel_mean.py:create",
    )
    real = {"minilm": "EMBEDDINGS_GENERATION", "photo-edit": "PIXEL_GENERATION", "espeak": "AUDIO_GENERATION"}
    deployments = [ty.Deployment(model=name, task=ty.PipelineTask[task], pipeline=name) for name, task in real.items()]
    with ty.local([mean, *deployments], runtime="process") as yard:
        yard.wait_ready()
        yield yard


@pytest.fixture
def ask(yard, capsys):
    """Runs `tensoryard submit` here: exit code, stdout, stderr."""

    def ask(*arguments):
        code = cli.main(["submit", "--address", yard.address, *arguments])
        return code, *capsys.readouterr()

    return ask


@pytest.fixture
def photo(tmp_path):
    """An image file of 150 x 200 pixels."""
    path = tmp_path / "photo.png"
    rows, columns = np.mgrid[0:150, 0:200]
    submit.write_image(path, np.stack([rows, columns, rows + columns], axis=2).astype(np.uint8))
    return path


@pytest.mark.process
def test_texts_become_vectors(ask, tmp_path, monkeypatch):
    """From arguments, a file and stdin; for people, as JSON and as .npy: the same vectors."""
    code, out, err = ask("minilm", "tensors stay", "requests move")
    assert code == 0
    assert out.count("(384 numbers)") == 2
    assert out.splitlines()[0].endswith("tensors stay")
    assert "1 request in" in err
    assert "by minilm-" in err
    (tmp_path / "texts.txt").write_text("tensors stay\n\n requests move \n")
    code, out, _ = ask("minilm", "--file", str(tmp_path / "texts.txt"), "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["input"] for line in lines] == ["tensors stay", "requests move"]
    monkeypatch.setattr("sys.stdin", io.StringIO("tensors stay\nrequests move\n"))
    code, out, _ = ask("minilm", "-", "--out", str(tmp_path / "v.npy"))
    saved = np.load(tmp_path / "v.npy")
    assert out.strip().endswith("v.npy: float32 (2, 384)")
    assert np.allclose(saved, [line["embedding"] for line in lines], atol=1e-5)


@pytest.mark.process
def test_many_texts_go_as_several_requests(ask, tmp_path):
    """Seventy lines are two requests, and the vectors keep the order of the lines."""
    (tmp_path / "texts.txt").write_text("\n".join(f"line {n}" for n in range(70)))
    code, _, err = ask("minilm", "--file", str(tmp_path / "texts.txt"), "-o", str(tmp_path / "v.npy"))
    assert (code, err.startswith("2 requests in ")) == (0, True)
    ask("minilm", "line 69", "-o", str(tmp_path / "last.npy"))
    assert np.allclose(np.load(tmp_path / "v.npy")[69], np.load(tmp_path / "last.npy")[0], atol=1e-5)


@pytest.mark.process
def test_an_array_becomes_a_vector(ask, photo):
    """An image, sent as an array by handle to a pipeline from a file: the mean of its channels."""
    code, out, err = ask("mean", "--array", str(photo))
    mean = submit.read_image(photo).mean(axis=(0, 1))
    assert code == 0
    assert out.startswith("[" + " ".join(f"{number:.4f}" for number in mean))
    assert "87.9 KiB in and 0 B out by handle" in err
    assert "copies: 1 in, 0 out" in err


@pytest.mark.process
def test_an_image_becomes_an_image(ask, photo, tmp_path):
    """The file written holds exactly what a local edit gives."""
    operations = [{"op": "resize", "scale": 0.5}]
    (tmp_path / "ops.json").write_text(json.dumps(operations))
    out_path = tmp_path / "small.png"
    code, out, err = ask("photo-edit", str(photo), "--out", str(out_path), "--operations", f"@{tmp_path}/ops.json")
    assert (code, out) == (0, f"{out_path}: uint8 (75, 100, 3)\n")
    assert "by photo-edit-" in err
    assert np.array_equal(submit.read_image(out_path), edit(submit.read_image(photo), operations))


@pytest.mark.process
def test_several_images_are_numbered(ask, photo, tmp_path):
    """Two images in, two files out."""
    code, out, _ = ask("photo-edit", str(photo), str(photo), "--out", str(tmp_path / "x.npy"))
    assert (code, len(out.splitlines())) == (0, 2)
    assert np.array_equal(np.load(tmp_path / "x-1.npy"), np.load(tmp_path / "x-2.npy"))


@pytest.mark.process
def test_a_text_becomes_sound(ask, tmp_path):
    """The WAV holds exactly what a local call speaks."""
    path = tmp_path / "hello.wav"
    code, out, err = ask("espeak", "Hello there.", "And again.", "--out", str(path), "--option", "rate=200")
    samples, rate = speak("Hello there. And again.", rate=200)
    assert code == 0
    assert out == f"{path}: {samples.size / rate:.1f} s of sound at {rate} Hz\n"
    assert "first of 2 chunks after" in err
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnframes()) == (rate, samples.size)
        stored = np.frombuffer(file.readframes(samples.size), "<i2")
    assert np.array_equal(stored, np.rint(samples * 32768).astype(np.int16))


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nobody", "hello"], 2, "no model 'nobody' is served here; served are espeak, mean, minilm, photo-edit"),
        (["minilm", "a", "--file", "x"], 2, "give texts or --file, not both"),
        (["minilm", "--file", "/no/such"], 2, "/no/such cannot be read: No such file"),
        (["minilm", "hello", "-o", "/no/such/v.npy"], 2, "there is no folder /no/such"),
        (["minilm", "hello", "-o", "v.txt"], 2, "--out must end in .npy, not 'v.txt'"),
        (["minilm", "hello", "--prompt", "x"], 2, "model 'minilm' has no use for --prompt"),
        (["minilm", "hello", "--option", "normalise=true"], 2, "normalise"),
        (["minilm", "hello", "--deadline", "0.000001"], 1, "deadline"),
        (["mean", "hello"], 1, "IndexError"),
        (["photo-edit", "-o", "x.png"], 2, "give image files, or --prompt"),
        (["photo-edit", "x.png"], 2, "say where the result goes: --out FILE, ending in .npy, .png"),
        (["photo-edit", "--prompt", "a cat", "-o", "x.png"], 2, "this model edits images and makes none"),
        (["photo-edit", "/no/such.png", "-o", "x.png"], 2, "/no/such.png cannot be read"),
        (["espeak", "hello"], 2, "say where the result goes: --out FILE, ending in .wav"),
        (["espeak", "hello", "-o", "x.wav", "--array", "x.npy"], 2, "model 'espeak' has no use for --array"),
        (["espeak", "hello", "-o", "x.wav", "--option", "voice=nobody's"], 2, 'no voice "nobody\'s"'),
        (["espeak", "hello", "-o", "x.wav", "--file", "y"], 2, "give a text or --file, not both"),
    ],
)
def test_a_wrong_request_is_one_clear_error(ask, arguments, code, words, tmp_path, monkeypatch):
    """Whether found here or by the worker: the exit code, the words that name it, and nothing written."""
    monkeypatch.chdir(tmp_path)
    found, out, err = ask(*arguments)
    assert words in err
    assert (found, out) == (code, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_a_terminal_without_a_text_is_not_waited_for(ask, monkeypatch):
    """No text and nobody piping one: an error, not a prompt that looks like a hang."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    code, _, err = ask("minilm")
    assert (code, "needs a text" in err) == (2, True)


@pytest.mark.process
def test_status_is_text_and_json(yard, capsys):
    """Both tell of every model and worker; the JSON has the fields of ClusterStatus."""
    assert cli.main(["status", "--address", yard.address]) == 0
    out = capsys.readouterr().out
    for model in ("mean", "minilm", "photo-edit", "espeak"):
        assert f"{model}-1" in out
    assert cli.main(["status", "--name", yard.name, "--json"]) == 0
    status = msgspec.json.decode(capsys.readouterr().out, type=ClusterStatus)
    assert {model.model for model in status.models} == {"mean", "minilm", "photo-edit", "espeak"}


# -- up, down and worker, as processes --------------------------------------------------------------------------------


@pytest.mark.process
def test_a_cluster_is_started_used_and_ended(command_line: CommandLine, tmp_path: Path) -> None:
    """`up --detach`, `status`, `submit`, a second `up`, `down`: as a user would, with a pipeline of their own."""
    np.save(tmp_path / "photo.npy", np.full((100, 100, 3), 7, np.uint8))
    code, out = command_line.run("up", "--detach", "--runtime", "process", *MEAN, "--replicas", "2")
    assert code == 0, out
    assert "cluster 'default' is ready" in out
    code, out = command_line.run("submit", "mean", "--array", str(tmp_path / "photo.npy"))
    assert code == 0
    assert out.startswith("[7.0000 7.0000 7.0000]")
    for again in (["up", "--detach", "--runtime", "process", *MEAN], ["up", "--runtime", "process", *MEAN]):
        code, out = command_line.run(*again)
        assert (code, "a cluster named 'default' already runs on this host (process" in out) == (2, True)
    code, out = command_line.run("status")
    assert (code, "mean-2" in out) == (0, True)
    code, out = command_line.run("down", "--name", "other")
    assert (code, "no cluster named 'other' runs on this host; running: 'default'" in out) == (0, True)
    code, out = command_line.run("down")
    assert (code, "cluster 'default' has ended" in out) == (0, True)
    assert command_line.processes() == {}
    code, out = command_line.run("up", "--detach", "--runtime", "process", *MEAN)
    assert code == 0, "the name is free again at once"
    assert command_line.run("down")[0] == 0


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_cluster_in_the_foreground(command_line: CommandLine, number: int) -> None:
    """Ctrl-C and SIGTERM: drained, exit code 0, nothing left."""
    process = command_line.start("up", "--runtime", "process", *MEAN)
    read_until(process, "ready at ")
    process.send_signal(number)
    code, out = ended(process)
    # Between telling that it serves and settling down to wait, it is interrupted like any command.
    assert (code, out.splitlines()[-1]) in ((0, "ended"), (130, "interrupted"))


@pytest.mark.process
def test_a_signal_during_the_start_leaves_nothing(command_line: CommandLine) -> None:
    """Ctrl-C before the cluster is ready: exit code 130, and no process stays (the fixture looks)."""
    process = command_line.start("up", "--runtime", "process", *MEAN)
    read_until(process, "starting cluster")
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130


@pytest.mark.process
@pytest.mark.parametrize("detach", [[], ["--detach"]])
def test_a_factory_that_fails_is_told_with_its_traceback(
    command_line: CommandLine,
    tmp_path: Path,
    detach: list[str],
) -> None:
    """In the foreground and detached: exit code 1, the factory's own words, nothing left running."""
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "yard.toml").write_text(
        '[[deployment]]\nmodel = "m"\ntask = "embeddings_generation"\npipeline = "broken.py:create"\n',
    )
    code, out = command_line.run("up", "--runtime", "process", *detach, "yard.toml", cwd=tmp_path)
    assert code == 1
    assert "model 'm' cannot start" in out
    assert 'raise RuntimeError("the weights are on another disk")' in out
    assert command_line.run("status")[0] == 1


@pytest.mark.process
def test_down_ends_a_cluster_whose_coordinator_does_not_answer(
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`down` then turns to the process that keeps the cluster, and waits for its end."""

    def deaf(*_: object, **__: object) -> None:
        raise ty.errors.NotConnected("nobody answered")

    code, out = command_line.run("up", "--detach", "--runtime", "process", *MEAN)
    assert code == 0, out
    monkeypatch.setenv("TENSORYARD_RUNTIME_DIR", str(command_line.folder))
    monkeypatch.setattr(running, "connect", deaf)
    assert running.down("default", timeout_s=60) == 0
    assert command_line.processes() == {}
    assert "the coordinator does not answer: nobody answered" in capsys.readouterr().err


@pytest.mark.process
def test_down_gives_up_in_time(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that does not end: an error that names the process, and the cluster lives on."""
    code, out = command_line.run("up", "--detach", "--runtime", "process", *MEAN)
    assert code == 0, out
    monkeypatch.setenv("TENSORYARD_RUNTIME_DIR", str(command_line.folder))
    with monkeypatch.context() as patch:
        patch.setattr(running, "_ask_to_end", lambda *_: None)
        with pytest.raises(ty.errors.ReplyTimeout, match=r"cluster 'default' still runs after 0\.2 s \(process \d+\)"):
            running.down("default", timeout_s=0.2)
    assert command_line.run("down")[0] == 0


@pytest.mark.process
def test_a_worker_joins_by_hand(command_line: CommandLine) -> None:
    """A deployment without workers of its own is served by `tensoryard worker`, which SIGTERM drains."""
    code, out = command_line.run("up", "--detach", "--runtime", "process", *MEAN, "--replicas", "0")
    assert code == 0, out
    worker = command_line.start("worker", *MEAN, "--worker-name", "by-hand")
    code, out = command_line.run("submit", "mean", "--array", str(EXAMPLES / "none.npy"))
    assert code == 2
    np.save(command_line.folder / "photo.npy", np.full((9, 9, 3), 7, np.uint8))
    code, out = command_line.run(
        "submit", "mean", "--array", str(command_line.folder / "photo.npy"), "--deadline", "30"
    )
    assert (code, "by by-hand" in out) == (0, True), out
    worker.send_signal(signal.SIGTERM)
    assert ended(worker)[0] == 0
    assert command_line.run("down")[0] == 0
