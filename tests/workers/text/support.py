"""What the tests of text generation share: contexts, logits, and a sampler written a second time, plainly."""

from __future__ import annotations

import numpy as np

from tensoryard.proto import EOSTracker, SamplingParams, TextContext, TokenBuffer
from tensoryard.workers.device import select_device
from tensoryard.workers.text.sampling import Sampler, SamplingState

CPU = select_device("cpu")


def context(prompt=(1, 2, 3), *, generated=(), max_length=100_000, eos=(), log_probabilities=0, **params):
    """A request as a worker holds it."""
    made = TextContext(
        tokens=TokenBuffer(np.array(prompt, np.int64)),
        max_length=max_length,
        eos_tracker=EOSTracker(eos_token_ids=eos),
        sampling_params=SamplingParams(**params),
        log_probabilities=log_probabilities,
    )
    for token in generated:
        made.update(token)
    return made


def state(vocabulary=64, **wanted):
    return SamplingState(context(**wanted), vocab_size=vocabulary)


def sampler(vocabulary, **more):
    return Sampler(CPU, vocabulary=vocabulary, **more)


def random_logits(seed, rows, vocabulary, *, spread=3.0):
    return (np.random.default_rng(seed).standard_normal((rows, vocabulary)) * spread).astype(np.float32)


def plain_distribution(logits, *, temperature=1.0, top_k=-1, top_p=1.0, min_p=0.0):
    """Probabilities of one row in float64, one rule after the other."""
    row = logits.astype(np.float64) / temperature
    order = np.lexsort((np.arange(len(row)), -row))
    kept = order[: top_k if top_k > 0 else None]
    p = np.exp(row[kept] - row.max())
    p /= p.sum()
    before = np.cumsum(p) - p
    keep = before < top_p
    keep[0] = True
    keep &= p >= min_p * p[0]
    full = np.zeros(len(row))
    full[kept[keep]] = p[keep] / p[keep].sum()
    return full, kept[keep]
