"""The logits processors that come with Tensoryard: bias, bans, allowed tokens, no repeated n-grams.

Each is registered under its name in `processors.py`; a request that asks for none pays nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from ...errors import InvalidRequest
from ...proto.logits import BatchLogitsProcessor, BatchProcessorInputs, LogitsProcessor, ProcessorInputs
from ...proto.text_context import TextContext
from .processors import Setting, batch_logits_processor, logits_processor

#: Most tokens that one processor may name, and the longest sequence and n-gram.
MAX_TOKENS = 65_536
MAX_SEQUENCES = 1_024
MAX_SEQUENCE = 64

Token = Annotated[int, msgspec.Meta(ge=0)]
Tokens = Annotated[list[Token], msgspec.Meta(min_length=1, max_length=MAX_TOKENS)]
Sequence_ = Annotated[list[Token], msgspec.Meta(min_length=1, max_length=MAX_SEQUENCE)]


class LogitBias(msgspec.Struct, frozen=True):
    """`bias`: token id to what is added to its logit, -100 to 100."""

    bias: Annotated[dict[Token, Annotated[float, msgspec.Meta(ge=-100, le=100)]], msgspec.Meta(max_length=MAX_TOKENS)]

    def __post_init__(self) -> None:
        if any(math.isnan(value) for value in self.bias.values()):
            raise ValueError("`bias` holds numbers, not NaN")


class TokenList(msgspec.Struct, frozen=True):
    """`token_ids`: the tokens concerned."""

    token_ids: Tokens


class BannedSequences(msgspec.Struct, frozen=True):
    """`sequences`: token sequences that never come about; the last token of each is forbidden behind the others."""

    sequences: Annotated[list[Sequence_], msgspec.Meta(min_length=1, max_length=MAX_SEQUENCES)]


class NoRepeat(msgspec.Struct, frozen=True):
    """`size`: no n-gram of so many tokens comes twice in prompt and answer."""

    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_SEQUENCE)]


@logits_processor("logit_bias", LogitBias)
def logit_bias(options: LogitBias, setting: Setting, _context: TextContext) -> LogitsProcessor:
    """Adds to the logits of some tokens."""
    ids = _checked(list(options.bias), setting, "bias")
    values = setting.device.xp.asarray(np.array(list(options.bias.values()), np.float32))

    def process(inputs: ProcessorInputs) -> None:
        inputs.logits[:, ids] += values

    return process


@logits_processor("banned_tokens", TokenList)
def banned_tokens(options: TokenList, setting: Setting, _context: TextContext) -> LogitsProcessor:
    """Forbids some tokens."""
    ids = _checked(options.token_ids, setting, "token_ids")

    def process(inputs: ProcessorInputs) -> None:
        inputs.logits[:, ids] = -np.inf

    return process


@logits_processor("allowed_tokens", TokenList)
def allowed_tokens(options: TokenList, setting: Setting, _context: TextContext) -> LogitsProcessor:
    """Forbids all tokens but some."""
    xp = setting.device.xp
    forbidden = xp.ones(setting.vocabulary, bool)
    forbidden[_checked(options.token_ids, setting, "token_ids")] = False

    def process(inputs: ProcessorInputs) -> None:
        inputs.logits[:, forbidden] = -np.inf

    return process


@logits_processor("banned_sequences", BannedSequences)
def banned_sequences(options: BannedSequences, setting: Setting, _context: TextContext) -> LogitsProcessor:
    """Forbids the last token of a sequence where the others stand before it."""
    for sequence in options.sequences:
        _checked(sequence, setting, "sequences")
    longest = max(map(len, options.sequences))
    # By the token before the last, so that a step looks at few of them; None: sequences of one token.
    behind: dict[int | None, list[list[int]]] = {}
    for sequence in options.sequences:
        behind.setdefault(sequence[-2] if len(sequence) > 1 else None, []).append(sequence)

    def process(inputs: ProcessorInputs) -> None:
        for row, before in enumerate(_before_each_row(inputs, longest)):
            candidates = behind.get(None, []) + (behind.get(before[-1], []) if before else [])
            banned = [each[-1] for each in candidates if before[len(before) - len(each) + 1 :] == each[:-1]]
            if banned:
                inputs.logits[row, setting.device.xp.asarray(np.array(banned))] = -np.inf

    return process


@logits_processor("no_repeat_ngram", NoRepeat)
def no_repeat_ngram(options: NoRepeat, setting: Setting, _context: TextContext) -> LogitsProcessor:
    """Forbids tokens that would complete an n-gram seen before."""
    return _NoRepeat(options.size, setting)


class _NoRepeat:
    """The n-grams of one request; each token is read once, wherever the request runs."""

    #: What followed each run of `size - 1` tokens; one entry per token of the request at most.
    _followers: dict[tuple[int, ...], set[int]]
    #: Tokens read so far.
    _read: int

    def __init__(self, size: int, setting: Setting) -> None:
        self._size = size
        self._xp = setting.device.xp
        self._followers, self._read = {}, 0

    def __call__(self, inputs: ProcessorInputs) -> None:
        self._catch_up(inputs.context.tokens.all)
        size = self._size
        for row, before in enumerate(_before_each_row(inputs, size)):
            key = tuple(before[len(before) - size + 1 :])
            banned = set(self._followers.get(key, ()))
            # Drafts are not read: what they repeat among themselves is looked for here.
            banned.update(before[at] for at in range(size - 1, len(before)) if tuple(before[at - size + 1 : at]) == key)
            if len(key) == size - 1 and banned:
                inputs.logits[row, self._xp.asarray(np.array(sorted(banned)))] = -np.inf

    def _catch_up(self, tokens: Any) -> None:
        size = self._size
        recent = tokens[max(self._read - size + 1, 0) :].tolist()
        first = len(recent) - (len(tokens) - self._read)
        for at in range(max(first, size - 1), len(recent)):
            self._followers.setdefault(tuple(recent[at - size + 1 : at]), set()).add(recent[at])
        self._read = len(tokens)


@batch_logits_processor("banned_tokens_of_all", TokenList)
def banned_tokens_of_all(options: TokenList, setting: Setting) -> BatchLogitsProcessor:
    """Forbids some tokens to every request of a deployment."""
    ids = _checked(options.token_ids, setting, "token_ids")

    def process(inputs: BatchProcessorInputs) -> None:
        inputs.logits[:, ids] = -np.inf

    return process


def _checked(ids: Sequence[int], setting: Setting, option: str) -> Any:
    """The ids as an index on the device; InvalidRequest for one that the model does not have."""
    if ids and max(ids) >= setting.vocabulary:
        raise InvalidRequest(f"`{option}` names token {max(ids)}; the model has {setting.vocabulary} tokens")
    return setting.device.xp.asarray(np.array(ids, np.int64))


def _before_each_row(inputs: ProcessorInputs, count: int) -> list[list[int]]:
    """The tokens before the one that each row chooses, `count` at least where there are; drafts included."""
    tokens = inputs.context.tokens
    end = len(tokens) - tokens.has_placeholder
    drafts = inputs.context.spec_decoding_state.draft_tokens_to_verify
    before = tokens.all[max(end - count, 0) : end].tolist()
    return [before + drafts[:row] for row in range(inputs.logits.shape[0])]
