"""The decoder over its paged cache: what a token gets depends on its own request alone, to the last bit."""

import numpy as np
import pytest

from tensoryard.workers.device import Device, select_device
from tensoryard.workers.text.models import decoder as decoder_module
from tensoryard.workers.text.models import step as step_module
from tensoryard.workers.text.models.cache import KVCache
from tensoryard.workers.text.models.decoder import Decoder, tile_for, tile_rows, tiled
from tensoryard.workers.text.models.step import Span, lay_out

from .tiny import write_model

BLOCK = 8


@pytest.fixture(params=[{}, {"num_attention_heads": 8, "num_key_value_heads": 1}, {"num_key_value_heads": 4}])
def decoder(request, tmp_path):
    return Decoder.load(write_model(tmp_path, **request.param), select_device("cpu"))


class Requests:
    """Some requests with random tokens and blocks of their own, computed as far as told."""

    def __init__(self, decoder, lengths, seed=0):
        random = np.random.default_rng(seed)
        self.decoder = decoder
        self.tokens = [random.integers(0, decoder.config.vocabulary, length) for length in lengths]
        needed = [-(-length // BLOCK) for length in lengths]
        numbers = random.permutation(sum(needed) + 3)
        self.tables = np.split(numbers[: sum(needed)], np.cumsum(needed)[:-1])
        self.cache = KVCache(decoder.config, blocks=len(numbers), block_size=BLOCK, device=decoder.device)
        self.done = [0] * len(lengths)
        self.logits = [[] for _ in lengths]

    def step(self, amounts):
        """Compute so many more tokens of each request named; all their logits are kept."""
        spans = []
        for i, amount in amounts.items():
            tokens = self.tokens[i][self.done[i] : self.done[i] + amount]
            spans.append(Span(tokens, self.done[i], self.tables[i], logits=len(tokens)))
            self.done[i] += len(tokens)
        rows = self.decoder.forward(lay_out(spans, BLOCK), self.cache)
        ends = np.cumsum([span.logits for span in spans])
        for i, part in zip(amounts, np.split(rows, ends[:-1]), strict=True):
            self.logits[i].append(part)

    def result(self, i):
        return np.concatenate(self.logits[i])


def alone(decoder, lengths, i, seed=0):
    """Logits of one of the requests, computed with no other, token by token."""
    requests = Requests(decoder, lengths, seed)
    for _ in range(lengths[i]):
        requests.step({i: 1})
    return requests.result(i)


def test_any_schedule_gives_the_same_bits(decoder):
    """Chunks of prompts and single tokens, mixed at random, give each request the very bits it has alone."""
    lengths = [3, 60, 17, 290, 33, 8]
    random = np.random.default_rng(5)
    requests = Requests(decoder, lengths)
    while any(done < length for done, length in zip(requests.done, lengths, strict=True)):
        left = [i for i in range(len(lengths)) if requests.done[i] < lengths[i]]
        chosen = random.permutation(left)[: random.integers(1, len(left) + 1)]
        requests.step({int(i): int(random.choice([1, 1, 2, 5, 31])) for i in chosen})
    for i in range(len(lengths)):
        np.testing.assert_array_equal(requests.result(i), alone(decoder, lengths, i))


def test_a_long_prompt_in_parts_gives_the_same_bits(decoder, monkeypatch):
    """Rows computed a few at a time, as memory bounds them, change nothing."""
    whole = Requests(decoder, [600])
    whole.step({0: 600})
    monkeypatch.setattr("tensoryard.workers.text.models.attention.SCORES", 8 * 600 * 7)
    parts = Requests(decoder, [600])
    parts.step({0: 600})
    np.testing.assert_array_equal(parts.result(0), whole.result(0))


def test_groups_follow_the_waste(decoder, monkeypatch):
    """Spans of very different lengths are computed apart, and the results lie in the order asked for."""
    lengths = [9, 600, 10]
    requests = Requests(decoder, lengths)
    for i, length in enumerate(lengths):
        requests.step({i: length - 1})
    spans = [Span(requests.tokens[i][-1:], length - 1, requests.tables[i]) for i, length in enumerate(lengths)]
    monkeypatch.setattr(step_module, "WASTE_BLOCKS", 10)
    step = lay_out(spans, BLOCK)
    assert [group.spans for group in step.groups] == [2, 1]
    together = decoder.forward(step, requests.cache)
    monkeypatch.setattr(step_module, "WASTE_BLOCKS", 10**6)
    step = lay_out(spans, BLOCK)
    assert [group.spans for group in step.groups] == [3]
    np.testing.assert_array_equal(decoder.forward(step, requests.cache), together)


def test_only_wanted_rows_have_logits(decoder):
    """A chunk in the middle of a prompt asks for none; the last tokens' logits are those of the whole."""
    requests = Requests(decoder, [20, 12])
    requests.step({0: 20, 1: 12})
    again = Requests(decoder, [20, 12])
    middle = lay_out([Span(again.tokens[0][:7], 0, again.tables[0], logits=0)], BLOCK)
    assert decoder.forward(middle, again.cache).shape == (0, decoder.config.vocabulary)
    spans = [
        Span(again.tokens[0][7:], 7, again.tables[0], logits=3),
        Span(again.tokens[1], 0, again.tables[1], logits=1),
    ]
    rows = decoder.forward(lay_out(spans, BLOCK), again.cache)
    np.testing.assert_array_equal(rows, np.concatenate([requests.result(0)[-3:], requests.result(1)[-1:]]))


def test_shared_blocks_are_read_by_both(decoder):
    """A request whose table begins with another's blocks sees that one's tokens as its own prefix."""
    first = Requests(decoder, [16])
    first.step({0: 16})
    tail = np.array([5, 6, 7])
    table = np.append(first.tables[0], 2 if 2 not in first.tables[0] else int(first.cache.blocks - 1))
    free = next(block for block in range(first.cache.blocks) if block not in first.tables[0])
    table[-1] = free
    rows = decoder.forward(lay_out([Span(tail, 16, table, logits=3)], BLOCK), first.cache)
    whole = Requests(decoder, [19])
    whole.tokens[0] = np.concatenate([first.tokens[0], tail])
    whole.step({0: 19})
    np.testing.assert_array_equal(rows, whole.result(0)[-3:])


def test_scrubbed_blocks_hold_zeros(decoder):
    """What was not finite does not outlive its request."""
    cache = KVCache(decoder.config, blocks=4, block_size=BLOCK, device=decoder.device)
    for layer in cache.layers:
        layer[:] = np.nan
    cache.scrub(np.array([1, 3]))
    for layer in cache.layers:
        assert not layer[:, :, [1, 3]].any()
        assert np.isnan(layer[:, :, [0, 2]]).all()


def test_a_block_is_copied_whole(decoder):
    """Keys and values of every layer."""
    requests = Requests(decoder, [16])
    requests.step({0: 16})
    source = int(requests.tables[0][0])
    target = next(block for block in range(requests.cache.blocks) if block not in requests.tables[0])
    requests.cache.copy(source, target)
    for layer in requests.cache.layers:
        assert layer[:, :, target].any()
        np.testing.assert_array_equal(layer[:, :, target], layer[:, :, source])


def test_tiles_multiply():
    """The product in tiles is the product, however many rows there are."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((48, 20), np.float32).T
    for rows in (1, 3, 8, 19):
        matrix = random.standard_normal((rows, 20), np.float32)
        np.testing.assert_allclose(tiled(matrix, weight, 8), matrix @ weight, rtol=1e-5, atol=1e-5)
        then = random.standard_normal((48, 5), np.float32)
        np.testing.assert_allclose(tiled(matrix, weight, 8, then), matrix @ weight @ then, rtol=1e-4, atol=1e-4)
    assert tile_rows() in (1, *decoder_module.TILES)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 8, 12, 16, 24, 64])
def test_a_tile_treats_all_places_alike(rank):
    """Whatever the rank, a row's product has the same bits alone, in any place, and beside any others."""
    random = np.random.default_rng(rank)
    down, up = random.standard_normal((rank, 192), np.float32).T, random.standard_normal((512, rank), np.float32).T
    tile = tile_for(192, rank, 512)
    rows = random.standard_normal((21, 192), np.float32)
    whole = tiled(rows, down, tile, up)
    for place in range(21):
        assert np.array_equal(tiled(rows[place : place + 1], down, tile, up)[0], whole[place])
    order = random.permutation(21)
    assert np.array_equal(tiled(rows[order], down, tile, up), whole[order])


def test_without_tiles_the_numbers_are_near(tmp_path, monkeypatch):
    """As on a GPU, where whole matrices are multiplied: the same within float32's rounding."""
    folder = write_model(tmp_path)
    exact = Requests(Decoder.load(folder, select_device("cpu")), [50, 300])
    exact.step({0: 50, 1: 300})
    monkeypatch.setattr(decoder_module, "tile_rows", lambda: 0)
    plain = Requests(Decoder.load(folder, Device("cpu", np)), [50, 300])
    plain.step({0: 50, 1: 299})
    plain.step({1: 1})
    for i in (0, 1):
        np.testing.assert_allclose(plain.result(i), exact.result(i), atol=2e-3, rtol=1e-3)
