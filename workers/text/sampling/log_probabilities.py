"""Log probabilities of tokens under the model's own distribution: the logits as the model gave them.

Neither temperature nor penalties, processors or masks take part: what is reported tells about the model, and two
requests that differ only in how they sample can be compared (docs/decisions/0026).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ....errors import InvalidRequest
from ....proto.tokens import LogProbabilities
from ...device import Device
from .weights import most_likely, scale_bits, tiles, weights

#: Most tokens that may be reported on at one position.
MAX_TOP_LOG_PROBABILITIES = 1024


class RowLogProbabilities:
    """The distributions of some rows, kept while their logits are changed for sampling.

    `logits`: float32 `(rows, vocabulary)`, which the caller changes no more; `tops`: for each row how many of the
    likeliest to report on.
    """

    def __init__(self, device: Device, logits: Any, tops: Sequence[int]) -> None:
        xp = device.xp
        self._device = device
        self._logits = logits
        self._tops = tops
        count = min(max(tops, default=0), logits.shape[1])
        parts = tiles(xp, logits)
        self._norm = xp.concatenate([_log_norm(xp, logits[part]) for part in parts])
        self._ids = xp.empty((len(tops), count), np.int64)
        for part in parts if count else ():
            self._ids[part] = most_likely(xp, logits[part], count)

    def of(self, tokens: npt.NDArray[np.int64]) -> list[tuple[float, dict[int, float]]]:
        """For each row the chosen token's log probability, and the likeliest tokens with theirs."""
        xp, to_host = self._device.xp, self._device.to_host
        ids = xp.concatenate([xp.asarray(tokens)[:, None], self._ids], axis=1)
        values = xp.take_along_axis(self._logits, ids, axis=1).astype(np.float64) - self._norm
        ids, values = to_host(ids).tolist(), to_host(values).tolist()
        return [
            (row[0], dict(zip(names[1 : top + 1], row[1 : top + 1], strict=True)))
            for names, row, top in zip(ids, values, self._tops, strict=True)
        ]


def prompt_log_probabilities(device: Device, logits: Any, tokens: Sequence[int], top: int) -> LogProbabilities:
    """Echo: what the model thought of the tokens of a prompt.

    `logits`: float32 `(n, vocabulary)`, of which row `i` predicts `tokens[i]`. A prompt's first token is predicted by
    nothing and is not among them. Long prompts may be given in parts; `join_log_probabilities` puts those together.
    """
    chosen = np.asarray(tokens, np.int64)
    rows = RowLogProbabilities(device, logits, [top] * len(chosen)).of(chosen)
    return LogProbabilities([value for value, _ in rows], [tops for _, tops in rows], chosen.tolist())


def join_log_probabilities(parts: Sequence[LogProbabilities]) -> LogProbabilities:
    """Several positions in a row as one commit: a prompt's echo with the first token, or accepted drafts."""
    return LogProbabilities(
        [value for part in parts for value in part.token_log_probabilities],
        [tops for part in parts for tops in part.top_log_probabilities],
        [token for part in parts for token in part.sampled_token_ids],
        {token: piece for part in parts for token, piece in part.pieces.items()},
    )


def require_top(top: int) -> int:
    """`top` where it is allowed; InvalidRequest beyond the bound."""
    if top > MAX_TOP_LOG_PROBABILITIES:
        raise InvalidRequest(f"`logprobs` is at most {MAX_TOP_LOG_PROBABILITIES}, not {top}")
    return top


def _log_norm(xp: Any, logits: Any) -> Any:
    """The logarithm of each row's sum of exponentials, float64 `(rows, 1)`."""
    bits = scale_bits(logits.shape[1])
    highest = logits.max(axis=1, keepdims=True)
    ones = xp.ones(highest.shape, np.float32)
    mass = weights(xp, logits, highest, ones, bits=bits).sum(axis=1, keepdims=True)
    # Rows of no numbers: their requests fail in the sampler.
    with np.errstate(invalid="ignore", divide="ignore"):
        return highest.astype(np.float64) + xp.log(mass * 2.0**-bits)
