"""What a model's files propose for generating: end tokens, and defaults of sampling.

Read from `generation_config.json` and `config.json`; the tokenizer and the pipeline look here. A key that would change
the result and has no counterpart in `SamplingParams` is refused by name, as in `models/config.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError, InvalidRequest
from ...proto.sampling import SamplingParams, SamplingParamsGenerationConfigDefaults, SamplingParamsInput
from .models.config import read_json

#: Keys with a counterpart among the defaults of sampling.
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "min_new_tokens", "do_sample")

#: Keys of other ways to generate, and the values under which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "assistant_confidence_threshold": (0.4, None),
    "bad_words_ids": (None,),
    "begin_suppress_tokens": (None,),
    "constraints": (None,),
    "diversity_penalty": (0.0, None),
    "encoder_no_repeat_ngram_size": (0, None),
    "encoder_repetition_penalty": (1.0, None),
    "epsilon_cutoff": (0.0, None),
    "eta_cutoff": (0.0, None),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (1.0, None),
    "min_length": (0, None),
    "min_p": (0.0, None),
    "no_repeat_ngram_size": (0, None),
    "num_beam_groups": (1, None),
    "num_beams": (1, None),
    "penalty_alpha": (0.0, None),
    "renormalize_logits": (False, None),
    "sequence_bias": (None,),
    "stop_strings": (None,),
    "suppress_tokens": (None,),
    "top_h": (None,),
    "typical_p": (1.0, None),
    "watermarking_config": (None,),
}

#: Keys that say how the library is to go about it, or nothing.
_HARMLESS = frozenset(
    {
        "_from_model_config",
        "bos_token_id",
        "cache_implementation",
        "early_stopping",
        "eos_token_id",
        "length_penalty",
        "low_memory",
        "max_length",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "pad_token_id",
        "remove_invalid_values",
        "return_dict_in_generate",
        "transformers_version",
        "use_cache",
    },
)


@dataclass(frozen=True)
class GenerationDefaults:
    """What a model's files propose; what they do not mention is None."""

    sampling: SamplingParamsGenerationConfigDefaults
    #: Every token that ends a text, of both files.
    eos_token_ids: frozenset[int]
    #: Most tokens in all, prompt and answer; None: the model's own limit.
    max_length: int | None = None

    @classmethod
    def read(cls, folder: Path, *, ignored: Collection[str] = ()) -> GenerationDefaults:
        """The defaults of a model's folder, which may have no `generation_config.json`.

        ConfigError for a key that is not supported, unless it is in `ignored`.
        """
        path = folder / "generation_config.json"
        fields = read_json(path) if path.is_file() else {}
        _refuse_strangers({key: value for key, value in fields.items() if key not in ignored}, path)
        ends = {*_ids(fields.get("eos_token_id")), *_ids(read_json(folder / "config.json").get("eos_token_id"))}
        said = {key: fields.get(key) for key in _SAMPLING}
        try:
            sampling = SamplingParamsGenerationConfigDefaults(**said, eos_token_id=list(ends) or None)
        except InvalidRequest as error:
            raise ConfigError(f"{path}: {error}") from error
        return cls(sampling, frozenset(ends), fields.get("max_length"))

    def under(self, params: SamplingParams) -> SamplingParams:
        """What a request asks for, and where it left something open what the files propose; a new object.

        The end tokens of the files are no part of it: they count in any case, see `EOSTracker.from_sampling_params`.
        """
        asked = SamplingParamsInput(**{name: getattr(params, name) for name in params.given})
        defaults = dataclasses.replace(self.sampling, eos_token_id=None)
        return SamplingParams.from_input_and_generation_config(asked, defaults)


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _refuse_strangers(fields: dict[str, Any], path: Path) -> None:
    for key, value in fields.items():
        if key in _SAMPLING or key in _HARMLESS:
            continue
        if value not in _NEUTRAL.get(key, ()):
            raise ConfigError(
                f"{path}: `{key}` ({value!r:.60}) is not supported; supported are {', '.join(_SAMPLING)}, eos_token_id "
                "and max_length. If it may be passed by, name it in the option `ignore_config_keys`",
            )
