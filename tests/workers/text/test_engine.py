"""The loop over a real decoder: streams do not depend on their neighbours, on preemption, or on who else leaves."""

import numpy as np
import pytest

from tensoryard.errors import InvalidRequest, PipelineError
from tensoryard.proto import EOSTracker, GenerationStatus, SamplingParams, TextContext, TokenBuffer
from tensoryard.workers.device import select_device
from tensoryard.workers.text.blocks import BlockManager
from tensoryard.workers.text.draft_model import DraftModel
from tensoryard.workers.text.engine import TextEngine
from tensoryard.workers.text.models.cache import KVCache
from tensoryard.workers.text.models.decoder import Decoder
from tensoryard.workers.text.sampling import Sampler
from tensoryard.workers.text.scheduler import Scheduler
from tensoryard.workers.text.speculation import MAX_DRAFTS, DraftModelProposer, NGramProposer, Speculation

from .tiny import CONFIG, write_model

BLOCK = 8


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return Decoder.load(write_model(tmp_path_factory.mktemp("model")), select_device("cpu"))


def make(decoder, *, blocks=400, max_tokens=64, max_chunk=32, max_running=64, caching=True, speculation=None):
    cache = KVCache(decoder.config, blocks=blocks, block_size=BLOCK, device=decoder.device)
    manager = BlockManager(blocks=blocks, block_size=BLOCK, caching=caching)
    scheduler = Scheduler(manager, max_tokens=max_tokens, max_chunk=max_chunk, max_running=max_running)
    return TextEngine(decoder, cache, scheduler, None, speculation=speculation), scheduler


def ask(prompt, new, *, logprobs=0, echo=False, salt=None, **params):
    params = {"temperature": 0.9, "seed": 1} | params
    return TextContext(
        tokens=TokenBuffer(np.array(prompt, np.int64)),
        max_length=len(prompt) + new,
        eos_tracker=EOSTracker(eos_token_ids=[CONFIG["eos_token_id"]]),
        sampling_params=SamplingParams(**params),
        log_probabilities=logprobs,
        log_probabilities_echo=echo,
        vocab_size=CONFIG["vocab_size"],
        cache_salt=salt,
    )


def run(engine, contexts, got=None):
    """Steps until all have ended; tokens of each, and all outputs."""
    got = {} if got is None else got
    live = list(contexts)
    while live:
        for key, output in engine.step(live).items():
            assert not isinstance(output, Exception), output
            got.setdefault(key, []).extend(output if isinstance(output, list) else [output])
        for context in [context for context in live if context.is_done]:
            engine.release(context.request_id)
            live.remove(context)
    return {key: [token for output in outputs for token in output.tokens] for key, outputs in got.items()}, got


def alone(decoder, prompt, new, **how):
    engine, _ = make(decoder, max_tokens=1024, max_chunk=1024, caching=False)
    context = ask(prompt, new, **how)
    tokens, _ = run(engine, [context])
    return tokens[context.request_id]


def guesses(decoder, kind, *, blocks=400):
    """Who guesses: nobody, n-grams, the model itself, or itself with room for a few requests and short chunks."""
    if kind is None:
        return None
    if kind == "ngram":
        return Speculation(NGramProposer(), most=6)
    cache = KVCache(decoder.config, blocks=60 if kind == "scarce" else blocks, block_size=BLOCK, device=decoder.device)
    model = DraftModel(decoder, cache, ahead=MAX_DRAFTS, max_chunk=16 if kind == "scarce" else 256)
    sampler = Sampler(decoder.device, vocabulary=decoder.config.vocabulary)
    return Speculation(DraftModelProposer(sampler, model.step, model.forget, model.ready), most=5)


@pytest.mark.parametrize("kind", [None, "ngram", "itself", "scarce"])
def test_many_streams_each_as_if_alone(decoder, kind):
    """64 streams with random arrivals and lengths, aborts and preemption: each has, token for token, its solo run."""
    random = np.random.default_rng(11)
    shared = random.integers(2, 97, 40).tolist()
    engine, scheduler = make(decoder, blocks=24, max_running=12, speculation=guesses(decoder, kind))
    wanted = []
    for number in range(64):
        prompt = shared[: random.integers(0, 41)] + random.integers(2, 97, random.integers(1, 60)).tolist()
        how = [{"temperature": 0}, {"temperature": 1.1, "top_p": 0.9}, {"top_k": 20, "repetition_penalty": 1.2}][
            number % 3
        ]
        wanted.append((prompt, int(random.integers(1, 50)), how | {"seed": number}))
    contexts = [ask(prompt, new, **how) for prompt, new, how in wanted]
    arrivals = list(range(64))
    live, got, aborted = [], {}, set()
    while arrivals or live:
        if arrivals and random.random() < 0.7:
            live.append(arrivals.pop(0))
        active = [number for number in live if random.random() < 0.9]  # who is left out stands still
        for key, output in engine.step([contexts[number] for number in active]).items():
            for part in output if isinstance(output, list) else [output]:
                got.setdefault(key, []).extend(part.tokens)
        scheduler.check_invariants()
        if live and random.random() < 0.04:
            aborted.add(live[0])
            engine.release(contexts[live.pop(0)].request_id)
        for number in [number for number in live if contexts[number].is_done]:
            engine.release(contexts[number].request_id)
            live.remove(number)
    # Preemption makes prompt of what was generated.
    assert any(c.tokens.prompt_length > c.first_generated for n, c in enumerate(contexts) if n not in aborted)
    assert aborted
    assert scheduler.blocks.free == 24
    assert len(engine) == 0
    assert bool(engine.acceptance.accepted) == (kind is not None)
    for number, (prompt, new, how) in enumerate(wanted):
        tokens, solo = got.get(contexts[number].request_id, []), alone(decoder, prompt, new, **how)
        assert tokens == (solo[: len(tokens)] if number in aborted else solo)


def test_a_stream_that_moves_goes_on_as_it_was(decoder):
    """What another worker makes of the prompt and the tokens so far, under the same seed, is the rest of the stream."""
    prompt = list(range(2, 30))
    whole = alone(decoder, prompt, 30, ignore_eos=True)
    moved = ask(prompt, 30, ignore_eos=True)
    for token in whole[:11]:
        moved.update(token)
    moved.to_generation_output()
    moved.reset()
    engine, _ = make(decoder)
    tokens, _ = run(engine, [moved])
    assert tokens[moved.request_id] == whole[11:]


def test_a_found_prefix_is_told_and_changes_nothing(decoder):
    """The second of two equal prompts says how many tokens were found, and has the same answer."""
    engine, _ = make(decoder)
    prompt = list(range(2, 60))
    first, _ = run(engine, [ask(prompt, 10)])
    context = ask(prompt, 10)
    second, outputs = run(engine, [context])
    assert [*first.values()] == [*second.values()]
    assert outputs[context.request_id][0].num_cached_tokens == 56
    apart = ask(prompt, 10, salt="mine")
    _, outputs = run(engine, [apart])
    assert outputs[apart.request_id][0].num_cached_tokens == 0


def test_echo_tells_of_every_prompt_token(decoder):
    """Whatever the chunks: log probabilities of the prompt but its first token, then of each one generated."""
    prompt = np.random.default_rng(0).integers(2, 97, 50).tolist()
    told = []
    for chunk, tokens in ((1024, 1024), (7, 16), (1, 64)):
        engine, _ = make(decoder, max_chunk=chunk, max_tokens=tokens, max_running=8)
        run(engine, [ask(prompt, 3)])
        context = ask(prompt, 3, logprobs=2, echo=True, ignore_eos=True)
        _, outputs = run(engine, [context, ask(prompt[:9], 2)])
        found = [entry for output in outputs[context.request_id] for entry in output.log_probabilities]
        assert [len(entry.token_log_probabilities) for entry in found] == [50, 1, 1]
        assert found[0].sampled_token_ids[:49] == prompt[1:]
        told.append(found)
    assert told[0] == told[1] == told[2]


def test_an_end_token_ends(decoder):
    """Its request only, with the status that says so, and its blocks are free at once."""
    engine, scheduler = make(decoder)
    prompt = list(range(2, 12))
    tokens = alone(decoder, prompt, 40, ignore_eos=True)
    context = ask(prompt, 40, stop_token_ids=[tokens[5]])
    context.eos_tracker = EOSTracker(eos_token_ids=[tokens[5]])
    engine.step([context])
    while not context.is_done:
        engine.step([context])
    assert context.status is GenerationStatus.END_OF_SEQUENCE
    assert len(context.tokens.generated) == tokens.index(tokens[5]) + 1
    assert len(scheduler) == 0
    engine.release(context.request_id)
    engine.release(context.request_id)


def test_what_can_never_fit_fails_alone(decoder):
    """A request larger than the whole cache is refused, and its neighbour answered."""
    engine, _ = make(decoder, blocks=4)
    large, small = ask(range(2, 40), 10), ask(range(2, 6), 3)
    outputs = engine.step([large, small])
    assert isinstance(outputs[large.request_id], InvalidRequest)
    assert outputs[small.request_id].tokens


def test_numbers_that_are_none_stay_with_their_request(tmp_path):
    """A model that makes NaN of one token fails the requests with that token, and no later one in their blocks."""
    from safetensors.numpy import save_file

    from .tiny import tensors, write_config

    write_config(tmp_path)
    found = tensors()
    found["model.embed_tokens.weight"][50] = np.nan
    save_file(found, tmp_path / "model.safetensors")
    decoder = Decoder.load(tmp_path, select_device("cpu"))
    engine, scheduler = make(decoder, blocks=4)
    bad, good = ask([2, 50, 3], 5), ask([2, 4, 3], 3, temperature=0)
    outputs = engine.step([bad, good])
    assert isinstance(outputs[bad.request_id], PipelineError)
    engine.release(bad.request_id)
    after = ask([5, 6, 7], 12, temperature=0, ignore_eos=True)
    run(engine, [good, after])
    again = ask(list(range(5, 30)), 3, temperature=0)
    tokens, _ = run(engine, [again])
    assert tokens[again.request_id]
    assert scheduler.blocks.free == 4


def test_a_draft_model_reads_long_prompts_in_chunks(decoder):
    """It guesses when it has read all; what was refused is computed again; what it knew goes with its request."""
    caches = [KVCache(decoder.config, blocks=50, block_size=BLOCK, device=decoder.device) for _ in range(2)]
    model, alone = (DraftModel(decoder, cache, ahead=4, max_chunk=n) for cache, n in zip(caches, (16, 99), strict=True))
    long, short = ask(range(2, 72), 10), ask(range(2, 12), 10)
    assert [model.ready([long, short]) for _ in range(4)] == [[False, True]] * 4
    assert model.ready([long, short]) == [True, True]
    assert alone.ready([long]) == [True]
    for drafts in ([], [5], [5, 6], [7], [7, 8, 9]):
        assert np.allclose(model.step([long, short], [drafts, drafts])[0], alone.step([long], [drafts])[0], atol=1e-5)
    model.forget(long)
    model.forget(short)
    model.forget(short)
    assert model.ready([ask([2] * 390, 10), ask([2] * 390, 10)]) == [False, False]
    assert model.ready([ask([2] * 638, 2)]) == [False]


def test_guesses_are_made_while_they_cost_little(decoder):
    """As many as a step has room for below its bound, for the first ones first; at the bound there are none."""
    speculation = guesses(decoder, "itself")
    engine, _ = make(decoder)
    engine = TextEngine(decoder, engine._cache, engine._scheduler, None, speculation=speculation, guessing_tokens=6)
    contexts = [ask(range(2, 12), 200, ignore_eos=True, seed=seed) for seed in range(6)]
    for count, wanted in ((1, [5]), (2, [4, 0]), (4, [2, 0, 0, 0]), (6, [0] * 6)):
        engine.step(contexts[:count])
        outputs = engine.step(contexts[:count])
        made = [outputs[context.request_id] for context in contexts[:count]]
        assert [sum(part.draft_tokens_generated for part in parts(output)) for output in made] == wanted


def parts(output):
    return output if isinstance(output, list) else [output]
