"""Chooses the next tokens of a batch: `Sampler` for the step, one `SamplingState` per request.

Layers: `uniforms` and `weights` (exact numbers), `choice`, `penalties` and `log_probabilities` (functions of logits),
then `state` (a request), `plan` (a batch) and `sampler` (a step). Nothing here knows a model, a tokenizer or a clock.
"""

from .log_probabilities import prompt_log_probabilities
from .sampler import Sampled, Sampler
from .state import SamplingState

__all__ = ["Sampled", "Sampler", "SamplingState", "prompt_log_probabilities"]
