"""The pipeline for text: its options, the contexts it makes, and the small model that comes with the package."""

import json

import numpy as np
import pytest

import tensoryard as ty
from tensoryard.errors import ConfigError, InvalidRequest
from tensoryard.proto import TextGenerationInputs
from tensoryard.workers.pipelines.llama import SMALL_MODEL, Llama, create
from tensoryard.workers.text.blocks import BlockManager

from .text.test_lora_model import write_adapter


@pytest.fixture(scope="module")
def llama() -> Llama:
    return create(device="cpu", max_batch_size=8)


def generate(llama, prompt, **params):
    context = llama.new_context(
        ty.TextGenerationRequest(model_name="m", prompt=prompt, sampling_params=ty.SamplingParams(**params))
    )
    outputs = []
    while not context.is_done:
        outputs += llama.execute(TextGenerationInputs(batches=[[context]])).values()
    llama.release(context.request_id)
    return ty.TextGenerationOutput.merge(outputs)


def test_the_small_model_is_small_and_says_where_it_is_from():
    """At most 4 MB of weights; command, data and loss lie beside them."""
    assert (SMALL_MODEL / "model.safetensors").stat().st_size <= 4_000_000
    told = json.loads((SMALL_MODEL / "training.json").read_text())
    assert told["options"]["seed"]
    assert told["held_out_loss_nats_per_token"] < 3.5
    assert (SMALL_MODEL / "README.md").is_file()


def test_the_small_model_knows_its_texts(llama):
    """It finds its own kind of text much more likely than the same letters shuffled."""
    text = "Return True if the file exists. Raise an error when the name of the class is not a string."
    letters = np.random.default_rng(0).permutation(list(text))

    def surprise(prompt):
        request = ty.TextGenerationRequest(
            model_name="m",
            prompt=prompt,
            logprobs=1,
            echo=True,
            sampling_params=ty.SamplingParams(max_new_tokens=1),
        )
        context = llama.new_context(request)
        output = llama.execute(TextGenerationInputs(batches=[[context]]))[context.request_id]
        llama.release(context.request_id)
        return -sum(output.log_probabilities[0].token_log_probabilities[:-1])

    assert 3 * surprise(text) < surprise("".join(letters))


def test_text_is_made_of_tokens(llama):
    """What the pieces join to is what the tokenizer makes of all tokens, without the one that ends."""
    output = generate(llama, "# os.path.exists(path)\n", temperature=0, max_new_tokens=40)
    assert output.text == llama.tokenizer.decode(output.tokens)
    plain = generate(llama, "# os.path.exists(path)\n", temperature=0, max_new_tokens=40, detokenize=False)
    assert (plain.tokens, plain.text) == (output.tokens, None)


def test_an_answer_ends_where_the_model_does(llama):
    """A prompt as long as the model takes leaves room for what is left, and no more."""
    output = generate(llama, [5] * 500, ignore_eos=True)
    assert len(output.tokens) == 12
    assert output.final_status is ty.GenerationStatus.MAXIMUM_LENGTH
    with pytest.raises(InvalidRequest, match="512"):
        generate(llama, [5] * 512)


def test_it_streams_as_it_reads(llama):
    """While a long prompt is read in, a step answers nothing for it, and goes on for others."""
    long = llama.new_context(ty.TextGenerationRequest(model_name="m", prompt=list(range(2, 400))))
    inputs = TextGenerationInputs(batches=[[long]])
    assert llama.execute(inputs) == {}
    assert long.request_id in llama.execute(inputs)
    llama.release(long.request_id)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": "x"}, "model"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"max_step_tokens": 10}, "max_step_tokens"),
        ({"block_size": 12}, "block_size"),
        ({"cache_bytes": 1000}, "one block takes"),
        ({"model_dir": "/nowhere/at/all"}, "no file 'tokenizer.json'"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_wrong_options_are_named(options, named):
    """When the deployment starts."""
    with pytest.raises(ConfigError, match=named):
        create(**{"device": "cpu"} | options)


def test_the_cache_has_the_size_that_is_asked_for():
    """In bytes, and never more than the requests that may run can use."""
    small = create(device="cpu", cache_bytes=2_000_000)
    assert small.scheduler.blocks.blocks == 2_000_000 // (4 * 2 * 5 * 2 * 16 * 32)
    assert small.max_length == 512
    assert create(device="cpu", max_batch_size=2).scheduler.blocks.blocks == 2 * 512 // 16
    assert isinstance(small.scheduler.blocks, BlockManager)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    """One that has ids which the model has not."""
    for path in SMALL_MODEL.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tokens = json.loads((tmp_path / "tokenizer.json").read_text())
    tokens["added_tokens"].append({**tokens["added_tokens"][0], "id": 2048, "content": "<more>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ConfigError, match="do not belong together"):
        create(device="cpu", model_dir=str(tmp_path))


def test_adapters_may_be_there_from_the_start(tmp_path, llama):
    """A deployment names them; requests that name one are answered with it, and others as ever."""
    write_adapter(tmp_path / "tone", llama.decoder.adaptable, seed=3)
    made = create(device="cpu", adapters={"tone": str(tmp_path / "tone")}, max_adapters=1)
    assert made.lora.loaded == {"tone": str(tmp_path / "tone")}

    def first(pipeline, model):
        params = ty.SamplingParams(temperature=0, max_new_tokens=8, ignore_eos=True)
        request = ty.TextGenerationRequest(model_name=model, prompt="# os.path\n", sampling_params=params)
        context = pipeline.new_context(request)
        found = []
        while not context.is_done:
            found += pipeline.execute(TextGenerationInputs(batches=[[context]]))[context.request_id].tokens
        pipeline.release(context.request_id)
        return found

    assert first(made, "tone") != first(made, "m") == first(llama, "m")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            {"adapters": {"tone": "/nowhere"}},
            "`adapters`: 'tone' cannot be loaded .load_invalid_path.: /nowhere has no",
        ),
        ({"adapters": ["tone"]}, "adapters"),
        ({"max_adapters": 0}, "max_adapters"),
        ({"max_adapters": 2000}, "max_adapters"),
        ({"adapter_bytes": 0}, "adapter_bytes"),
    ],
)
def test_wrong_adapters_keep_a_worker_from_starting(options, named):
    """By the name of the option."""
    with pytest.raises(ConfigError, match=named):
        create(device="cpu", **options)
