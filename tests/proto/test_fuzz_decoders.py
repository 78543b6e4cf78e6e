"""A short run of scripts/fuzz_decoders.py over every decoder, and proof that it would notice what it looks for."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import tensoryard.proto as proto
from tensoryard.errors import DecodeError
from tensoryard.proto import wire

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz_decoders.py"


@pytest.fixture(scope="module")
def fuzz():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("fuzz_decoders", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by its name.
    sys.modules["fuzz_decoders"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzz_decoders"]


@pytest.fixture
def decoders(fuzz):
    """Every target, by name."""
    with fuzz.Pool(budget_bytes=64 << 20) as pool:
        reader = fuzz.Reader()
        yield {target.name: target for target in fuzz.targets(pool, reader)}
        reader.close()


def test_20_000_inputs(fuzz):
    """Broken bytes raise what they may raise, and nothing else; what still decodes can be written and read again."""
    report = fuzz.run(20_000, seed=11)
    assert report.findings == []
    assert report.inputs == 20_000
    assert report.decoded > 500, "inputs that are all refused at once test little"
    assert {"DecodeError", "ProtocolError", "InvalidRequest", "StaleHandle"} <= set(report.refused)


def test_a_run_ends_with_what_it_found():
    """As a program, under its memory limit: figures on standard output, and success."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--inputs", "2000", "--seed", "5"], capture_output=True, text=True, check=True
    )
    assert "2000 inputs" in done.stdout
    assert "0 findings" in done.stdout


def test_the_same_seed_makes_the_same_inputs(fuzz):
    """A finding can be seen again."""
    seeds = [[b"\x93\x01\x02\x03" * 9, b"buffer"], [b"other" * 9]]
    made = [
        [fuzz.mutated(chance, seeds[0], seeds[1]) for _ in range(200)]
        for chance in (random.Random(1), random.Random(1), random.Random(2))
    ]
    assert made[0] == made[1] != made[2]


def test_every_message_is_broken_by_every_way(fuzz, decoders):
    """No public message is left out; arrays are inline, out-of-band and by handle in the seeds; all seeds decode."""
    kinds = {type(message) for message in fuzz.messages()}
    assert {
        proto.EmbeddingsRequest,
        proto.PixelGenerationRequest,
        proto.AudioGenerationRequest,
        proto.TextGenerationRequest,
        proto.OpenResponsesRequest,
        proto.LoRARequest,
        proto.LoRAResponse,
        proto.EmbeddingsGenerationOutput,
        proto.GenerationOutput,
        proto.AudioGenerationOutput,
        proto.TextGenerationOutput,
        proto.TextContext,
        proto.TextAndVisionContext,
        proto.TokenBuffer,
        proto.EOSTracker,
        proto.SamplingParams,
        proto.RequestID,
    } <= kinds
    for target in decoders.values():
        if target.name not in ("body of dict", "body of ndarray", "body of list"):
            assert all(fuzz.feed(target, seed, fuzz.Report()) == "" for seed in target.seeds)
            report = fuzz.Report()
            for seed in target.seeds:
                fuzz.feed(target, seed, report)
            assert report.decoded == len(target.seeds), target.name
    image = decoders["body of PixelGenerationRequest"].seeds
    assert [len(seed) for seed in image] == [1, 2, 1]
    assert len(image[2][0]) < len(image[0][0])


def test_every_direction_of_the_wire_is_broken(decoders):
    """Each typed decoder of the wire is a target."""
    found = [name for name in decoders if name.startswith("wire ")]
    directions = [value for value in vars(wire).values() if isinstance(value, msgspec.msgpack.Decoder)]
    assert len(found) == len(directions)


def broken_by(fuzz, decode, encode=lambda value: [value]):
    """What the script says of a decoder that has a fault."""
    target = fuzz.Target("t", decode, encode, [[b"\x01"]], (DecodeError,))
    return fuzz.feed(target, [b"\x01"], fuzz.Report())


def raising(error):
    def decode(_frames):
        raise error

    return decode


@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError(), MemoryError(), ValueError("x"), SystemExit(), OverflowError()]
)
def test_an_error_outside_the_family_is_found(fuzz, error):
    """Whatever is not of the family is a finding that names it, exits and exhausted memory included."""
    assert type(error).__name__ in broken_by(fuzz, raising(error))
    assert broken_by(fuzz, raising(DecodeError("x"))) == ""


def test_what_cannot_be_written_again_is_found(fuzz):
    """So is a value that decodes and then fails, or drifts."""
    assert broken_by(fuzz, lambda frames: frames[0]) == ""
    assert "TypeError" in broken_by(fuzz, lambda frames: frames[0], raising(TypeError("x")))
    too_deep = TypeError("nested too deeply")
    too_deep.__cause__ = RecursionError()
    assert broken_by(fuzz, lambda frames: frames[0], raising(too_deep)) == ""
    count = iter(range(99))
    assert "stay the same" in broken_by(fuzz, lambda frames: frames[0], lambda value: [bytes([next(count)])])


def test_memory_beyond_the_limit_is_found():
    """Under the script's limit an allocation that is far too large fails, and is then a finding."""
    code = f"""
import runpy
fuzz = runpy.run_path({str(SCRIPT)!r}, run_name="fuzz_decoders")
fuzz["limit_memory"](64 << 20)
try:
    bytearray(1 << 30)
except MemoryError:
    print("refused")
bytearray(1 << 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr
