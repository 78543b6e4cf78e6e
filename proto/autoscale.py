"""How the number of a deployment's workers follows its load: what a user says of it.

A part of `deployment.py`; `workers/autoscale.py` decides by it.
"""

from __future__ import annotations

import msgspec

from ..errors import ConfigError

_MOST_S = 1e6
_MOST_WORKERS = 100_000


class Autoscale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """So many workers that each has `target_ongoing_requests`, within bounds. Raises ConfigError, naming the key."""

    #: Fewest workers; with 0, none runs while nothing is asked, and the first request waits until one has started.
    min: int = 1
    #: Most workers.
    max: int
    #: Requests of the model, waiting and running, for each worker.
    target_ongoing_requests: float = 2.0
    #: How long the load must have asked for more workers before there are more. From none to one goes at once.
    upscale_delay_s: float = 3.0
    #: How long it must have asked for fewer before there are fewer.
    downscale_delay_s: float = 60.0
    #: Deviations of the load per worker up to this share of the target change nothing.
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        for key in ("min", "max"):
            value = getattr(self, key)
            if type(value) is not int or not 0 <= value <= _MOST_WORKERS:
                raise ConfigError(f"`replicas.{key}` must be a whole number from 0 to {_MOST_WORKERS}, not {value!r}")
        if not 1 <= self.max >= self.min:
            raise ConfigError(f"`replicas.max` must be at least 1 and at least `min` ({self.min}), not {self.max}")
        for key, least, most in _SPANS:
            value = getattr(self, key)
            if type(value) not in (int, float) or not least <= value <= most:
                raise ConfigError(f"`replicas.{key}` must be a number from {least:g} to {most:g}, not {value!r}")


_SPANS = (
    ("target_ongoing_requests", 0.01, 1e6),
    ("upscale_delay_s", 0.0, _MOST_S),
    ("downscale_delay_s", 0.0, _MOST_S),
    ("tolerance", 0.0, 0.9),
)
