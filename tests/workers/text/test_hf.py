"""Models of transformers behind our loop: the library's own text, whatever runs beside; others are refused."""

import json
import shutil

import numpy as np
import pytest

from tensoryard.errors import ConfigError
from tensoryard.proto import GenerationStatus, SamplingParams, TextGenerationRequest, TextGenerationResponseFormat
from tensoryard.workers.device import select_device

from .hf_tiny import ARCHITECTURES, END, VOCABULARY, libraries, write_text_model

torch, transformers = libraries()

from tensoryard.workers.pipelines import hf, llama  # noqa: E402 - only where they are installed
from tensoryard.workers.text.models.hf import HfModel  # noqa: E402
from tensoryard.workers.text.models.hf_check import require_same  # noqa: E402

LONG = {"max_length": 256}


def pipeline(folder, **options):
    return hf.create(model_dir=str(folder), device="cpu", threads=1, **LONG, **options)


def ask(prompt, new=24, **params):
    params = {"temperature": 0, "max_new_tokens": new} | params
    return TextGenerationRequest(model_name="m", prompt=list(prompt), sampling_params=SamplingParams(**params))


def run(served, requests):
    """The tokens of each, all at once."""
    contexts = [served.new_context(request) for request in requests]
    live, got = list(contexts), {context.request_id: [] for context in contexts}
    while live:
        for key, output in served.engine.step(live).items():
            assert not isinstance(output, Exception), output
            got[key].extend(output.tokens)
        served.scheduler.check_invariants()
        for context in [context for context in live if context.is_done]:
            served.release(context.request_id)
            live.remove(context)
    return [got[context.request_id] for context in contexts]


def prompts(count, seed=0, longest=70):
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, random.integers(1, longest)).tolist() for _ in range(count)]


def generated(model, prompt, new):
    """What the library generates by itself, greedily."""
    with torch.no_grad():
        found = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=END,
        )
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_librarys_own_text(tmp_path, name, together):
    """Several prompts at once, in chunks, have the greedy text that the library generates for each."""
    model = write_text_model(tmp_path, name)
    served = pipeline(tmp_path, together=together, max_chunk_tokens=32)
    asked = prompts(5)
    answers = run(served, [ask(prompt) for prompt in asked])
    assert answers == [generated(model, prompt, 24) for prompt in asked]
    assert len({tuple(answer) for answer in answers}) > 1


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    return write_text_model(folder, "gpt2"), folder


def test_many_streams_each_as_if_alone(gpt2):
    """64 streams with random arrivals, shared beginnings, aborts and preemption: each has its solo run's tokens."""
    _, folder = gpt2
    random = np.random.default_rng(5)
    block = 4 * 2 * 2 * 32 * 16
    tight = {"cache_bytes": 14 * block, "max_batch_size": 12, "max_step_tokens": 64, "max_chunk_tokens": 32}
    served = pipeline(folder, **tight)
    alone = pipeline(folder, prefix_cache=False)
    common = random.integers(0, 256, 40).tolist()
    kinds = [{}, {"temperature": 1.1, "top_p": 0.9}, {"temperature": 0.9, "top_k": 20, "repetition_penalty": 1.2}]
    requests = [
        ask(common[: random.integers(0, 41)] + prompt, int(random.integers(1, 60)), seed=n, **kinds[n % 3])
        for n, prompt in enumerate(prompts(64, 6, 50))
    ]
    contexts = [served.new_context(request) for request in requests]
    arrivals, live, got, aborted = list(range(64)), [], {}, set()
    while arrivals or live:
        if arrivals and random.random() < 0.7:
            live.append(arrivals.pop(0))
        active = [number for number in live if random.random() < 0.9]
        for key, output in served.engine.step([contexts[number] for number in active]).items():
            got.setdefault(key, []).extend(output.tokens)
        served.scheduler.check_invariants()
        if live and random.random() < 0.02:
            aborted.add(live[0])
            served.release(contexts[live.pop(0)].request_id)
        for number in [number for number in live if contexts[number].is_done]:
            served.release(contexts[number].request_id)
            live.remove(number)
    folded = [c for n, c in enumerate(contexts) if n not in aborted and c.tokens.prompt_length > c.first_generated]
    assert folded, "nobody was put out"
    assert aborted
    assert any(context.cached_prefix_length for context in contexts), "nothing was found"
    for number, request in enumerate(requests):
        (solo,) = run(alone, [request])
        tokens = got.get(request.request_id, [])
        assert tokens == (solo[: len(tokens)] if number in aborted else solo)


def test_logits_have_the_same_bits(gpt2):
    """Whatever the steps: pieces of a prompt end where blocks do, and what was generated comes token by token."""
    _, folder = gpt2
    found = []
    for options in ({}, {"max_chunk_tokens": 16, "max_step_tokens": 32, "max_batch_size": 8}, {"prefix_cache": False}):
        served = pipeline(folder, **options)
        prompt = prompts(1, 9, 70)[0] * 2
        run(served, [ask(prompt[:40])])  # leaves blocks to be found
        told = []
        contexts = [served.new_context(request) for request in [ask(prompt), *map(ask, prompts(3, 2))]]
        contexts[0].log_probabilities = 3
        while not contexts[0].is_done:
            output = served.engine.step([c for c in contexts if not c.is_done]).get(contexts[0].request_id)
            told.extend(output.log_probabilities if output is not None else ())
        found.append(told)
    assert found[0] == found[1] == found[2]


def test_what_was_generated_is_not_shared(gpt2):
    """A prompt that is another request's prompt and answer finds that prompt, and no more of it."""
    _, folder = gpt2
    served = pipeline(folder)
    prompt = prompts(1, 3, 70)[0][:20] + [5] * 20
    (answer,) = run(served, [ask(prompt, 40, ignore_eos=True)])
    context = served.new_context(ask(prompt + answer, 2))
    served.engine.step([context])
    assert context.cached_prefix_length == len(prompt) // 16 * 16


def test_the_shipped_model_says_the_same():
    """Our own decoder and the library's, in the same loop: the same greedy text."""
    ours = llama.create(device="cpu")
    theirs = hf.create(model_dir=str(llama.SMALL_MODEL), device="cpu", threads=1, dtype="float32")
    requests = [ask(ours.tokenizer.encode(text), 40) for text in ("# os.walk(top)\n", "# shelf.find(self)\n")]
    assert run(theirs, requests) == run(ours, requests)


def test_an_answer_is_held_to_a_grammar(gpt2):
    """Structured output is the loop's."""
    pytest.importorskip("llguidance", reason="structured output needs llguidance: pip install 'tensoryard[text]'")
    served = pipeline(gpt2[1])
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    format_ = TextGenerationResponseFormat(type="json_schema", json_schema=schema, grammar_enforced=True)
    params = SamplingParams(temperature=0.8, seed=1, max_new_tokens=100)
    request = TextGenerationRequest(model_name="m", prompt="say", sampling_params=params, response_format=format_)
    (tokens,) = run(served, [request])
    assert json.loads(served.tokenizer.decode(tokens)) in ({"ok": True}, {"ok": False})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(tmp_path, dtype):
    """Weights in halves are computed in halves, or widened where the options say so."""
    model = write_text_model(tmp_path, "gpt_neox", dtype=getattr(torch, dtype))
    served = pipeline(tmp_path)
    assert served.decoder.dtype == model.dtype == getattr(torch, dtype)
    wide = pipeline(tmp_path, dtype="float32")
    assert wide.decoder.dtype == torch.float32
    assert run(wide, [ask([1, 2, 3])]) == [generated(model.float(), [1, 2, 3], 24)]


def test_the_rest_of_the_contracts(gpt2):
    """Stop strings, log probabilities of a prompt and end tokens are the loop's, so they are there."""
    _, folder = gpt2
    served = pipeline(folder)
    assert END in served.defaults.eos_token_ids
    prompt = [72, 73, 74]
    (tokens,) = run(served, [ask(prompt, 30, ignore_eos=True)])
    context = served.new_context(ask(prompt, 30, stop_token_ids=[tokens[4]]))
    while not context.is_done:
        served.engine.step([context])
    assert context.status is GenerationStatus.END_OF_SEQUENCE
    assert context.tokens.generated.tolist() == tokens[: tokens.index(tokens[4]) + 1]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
        ("JambaConfig", {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
                         "num_key_value_heads": 2, "use_mamba_kernels": False}),
    ],
)  # fmt: skip
def test_models_that_keep_something_else_are_refused(kind, fields):
    """A model whose memory is no list of keys and values is told apart at start, not by its texts."""
    config = getattr(transformers, kind)(vocab_size=VOCABULARY, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ConfigError, match=f"{type(model).__name__} cannot be served"):
        require_same(HfModel(model, torch_device="cpu", device=select_device("cpu"), positions=64, together=False))


def test_a_model_that_looks_ahead_is_refused():
    """A model whose logits depend on tokens to come would give others in steps."""
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(30)
    table = model.transformer.wpe

    class Ahead(torch.nn.Module):
        def forward(self, positions):
            return table(positions) * positions.shape[-1]

    model.transformer.wpe = Ahead()
    with pytest.raises(ConfigError, match="apart from those of transformers"):
        require_same(HfModel(model, torch_device="cpu", device=select_device("cpu"), positions=64, together=False))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model_dir": None}, "model_dir"),
        ({"dtype": "int8"}, "dtype"),
        ({"device": "tpu"}, "device"),
        ({"max_chunk_tokens": 8}, "max_chunk_tokens"),
        ({"max_step_tokens": 64}, "max_step_tokens"),
        ({"model_path": "x"}, "model_path"),
        ({"model_dir": "/nowhere"}, "nowhere"),
    ],
)
def test_wrong_options_are_named(gpt2, options, named):
    """A value that cannot be is an error with its name."""
    with pytest.raises(ConfigError, match=named):
        hf.create(**{"model_dir": str(gpt2[1]), "device": "cpu"} | options)


def test_a_model_that_does_not_say_its_length(tmp_path):
    """One without a bound of its own needs one."""
    write_text_model(tmp_path, "bloom-no-positions")
    with pytest.raises(ConfigError, match="max_length"):
        hf.create(model_dir=str(tmp_path), device="cpu")


def test_pickled_weights_and_code_stay_unread(gpt2, tmp_path):
    """A folder with weights as pickles only, or that wants its own Python code run, is refused."""
    model, folder = gpt2
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(folder / name, tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        hf.create(model_dir=str(tmp_path), device="cpu")
    assert not hf.HfOptions(model_dir="x").trust_remote_code


def test_guesses_change_no_text(gpt2):
    """N-grams guessed ahead, over prompts that repeat themselves, and what is accepted is told."""
    served, plain = pipeline(gpt2[1], speculation="ngram", guessing_tokens=64), pipeline(gpt2[1])
    requests = [
        ask(prompt[:12] * 4, 40, ignore_eos=True, seed=n, temperature=n % 2) for n, prompt in enumerate(prompts(6))
    ]
    contexts = [served.new_context(request) for request in requests]
    got = {c.request_id: [] for c in contexts}
    live = list(contexts)
    while live:
        for key, output in served.engine.step(live).items():
            for part in output if isinstance(output, list) else [output]:
                assert not isinstance(part, Exception), part
                got[key].extend(part.tokens)
        for context in [c for c in live if c.is_done]:
            served.release(context.request_id)
            live.remove(context)
    assert [got[c.request_id] for c in contexts] == run(plain, requests)
    assert served.engine.acceptance.accepted
