"""Probabilities as whole numbers, and the order of tokens by likelihood; exact, so that no batch changes a result.

Sums of floats depend on the order of their terms, which a library may choose by the shape of the batch or the device.
Sums of integers do not. `choice.py` and `log_probabilities.py` build on this module; it knows no request.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_ID_BITS = 0xFFFFFFFF

#: Logits worked on at once: as int64 they are 256 KiB, which a core's cache holds and the allocator keeps at hand.
#: Twice as many take four times as long.
_CACHED = 2**15


def scale_bits(vocabulary: int) -> int:
    """The weight of the likeliest token is 2 to this power: as large as lets a whole row's sum stay below 2**62."""
    return 62 - vocabulary.bit_length()


def tiles(xp: Any, logits: Any) -> list[slice]:
    """The rows in parts that a core's cache holds; on a GPU all at once."""
    rows, vocabulary = logits.shape
    step = max(1, _CACHED // vocabulary if xp is np else rows)
    return [slice(start, start + step) for start in range(0, rows, step)]


def weights(xp: Any, logits: Any, highest: Any, temperature: Any, *, bits: int) -> Any:
    """int64 weights in proportion to the tokens' probabilities; `2**bits` for a logit of `highest`.

    `logits`: float32 `(rows, n)`; `highest` and `temperature`: float32 `(rows, 1)`. What lies below `2**-bits` of the
    likeliest weighs nothing.
    """
    # A temperature close to 0 takes unlikely tokens to -inf, which is right. A row of no numbers weighs anything at
    # all: `sampler.py` finds such rows, and they concern no other.
    with np.errstate(over="ignore", invalid="ignore"):
        return (xp.exp((logits - highest) / temperature) * np.float32(2.0**bits)).astype(np.int64)


def most_likely(xp: Any, logits: Any, count: int) -> Any:
    """Ids of the `count` likeliest tokens, int64 `(rows, count)`, likeliest first; of equals the lower id first."""
    size = logits.shape[1]
    ids = _above_the_rest(xp, logits, count) if count < size else None
    if ids is not None:
        keys = _ordered_keys(xp, xp.take_along_axis(logits, ids, axis=1), size - 1 - ids)
    else:
        keys = _ordered_keys(xp, logits, xp.arange(size - 1, -1, -1))
        if count < size:
            keys = xp.partition(keys, size - count, axis=1)[:, size - count :]
    return size - 1 - (xp.sort(keys, axis=1)[:, ::-1] & _ID_BITS)


def _above_the_rest(xp: Any, logits: Any, count: int) -> Any:
    """The ids of the `count` likeliest in order of id; None where equals at the border leave open which those are.

    Floats alone are compared here, in a fraction of the time that keys for all take; and almost never are two equal.
    """
    rows, size = logits.shape
    least = xp.partition(logits, size - count, axis=1)[:, size - count : size - count + 1]
    # Not "at least": what is no number counts too, as it does for `partition`, so that no row has fewer than `count`.
    at = xp.flatnonzero(~(logits < least))
    return at.reshape(rows, count) - xp.arange(rows)[:, None] * size if at.size == rows * count else None


def _ordered_keys(xp: Any, logits: Any, backwards: Any) -> Any:
    """Distinct int64 keys in the order of likelihood: the float's bits above, the id (counted backwards) below.

    Since no two are equal, every way to sort or to partition them gives the same.
    """
    # Adding 0.0 makes -0.0 the 0.0 that it equals.
    order = (logits + np.float32(0)).view(np.int32)
    # The bits of negative floats grow downwards.
    order ^= (order >> 31) & 0x7FFFFFFF
    keys = xp.empty(logits.shape, np.int64)
    low_high = keys.view(np.int32).reshape(*logits.shape, 2)
    low_high[:, :, 0] = backwards
    low_high[:, :, 1] = order
    return keys
