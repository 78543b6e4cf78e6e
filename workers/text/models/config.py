"""What a decoder is, read from its `config.json`: sizes, biases, norms, window, rotation.

`decoder.py` computes what is said here. A key whose value could change the result is read or refused, never passed by;
which keys are which is the tables at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ....errors import ConfigError
from .rope import Rope, read_rope


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of one decoder; what differs between the architectures of the family is a field here."""

    architecture: str
    vocabulary: int
    width: int
    #: Width of the feed-forward part.
    inner: int
    layers: int
    heads: int
    #: Heads of keys and values, of which `heads` is a multiple.
    kv_heads: int
    head_width: int
    #: Longest sequence, in tokens.
    positions: int
    epsilon: float
    rope: Rope
    #: Whether the output's matrix is that of the token embeddings.
    tied: bool
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    #: Whether queries and keys are normalised, head by head.
    qk_norm: bool = False
    #: For each layer how many positions back a token sees, itself included; None: all of them.
    windows: tuple[int | None, ...] = ()

    @classmethod
    def read(cls, folder: Path, *, ignored: Collection[str] = ()) -> DecoderConfig:
        """The config of a model's folder; the keys in `ignored` are passed by, at the caller's own risk.

        ConfigError for an architecture, key or value that is not supported: it names it and says what is.
        """
        path = folder / "config.json"
        return cls.parse(read_json(path), where=str(path), ignored=ignored)

    @classmethod
    def parse(cls, fields: Mapping[str, Any], *, where: str, ignored: Collection[str] = ()) -> DecoderConfig:
        """See `read`; `where` is the file's name for messages."""
        reader = _Reader({key: value for key, value in fields.items() if key not in ignored}, where)
        architecture = reader.architecture()
        kind = _KINDS[architecture]
        reader.refuse_strangers(kind.keys)
        config = cls(
            architecture=architecture,
            vocabulary=reader.count("vocab_size"),
            width=reader.count("hidden_size"),
            inner=reader.count("intermediate_size"),
            layers=reader.count("num_hidden_layers"),
            heads=reader.count("num_attention_heads"),
            kv_heads=reader.count("num_key_value_heads", kind.kv_heads or reader.count("num_attention_heads")),
            head_width=reader.head_width(kind.head_width),
            positions=reader.count("max_position_embeddings"),
            epsilon=reader.number("rms_norm_eps", 1e-6),
            rope=read_rope(fields, where),
            tied=reader.flag("tie_word_embeddings"),
            qkv_bias=kind.qkv_bias or reader.flag("attention_bias"),
            out_bias=reader.flag("attention_bias"),
            mlp_bias=reader.flag("mlp_bias"),
            qk_norm=kind.qk_norm,
            windows=kind.windows(reader),
        )
        if config.heads % config.kv_heads:
            reader.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({config.heads})")
        if config.head_width % 2:
            reader.refuse("head_dim", "even")
        return config

    @property
    def group(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.heads // self.kv_heads


def read_json(path: Path) -> Any:
    """A JSON file's content; ConfigError when it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"the model folder {path.parent} has no file {path.name!r}") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


class _Reader:
    """Fields of a `config.json`, each checked when it is asked for."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self._fields = fields
        self._where = where

    def refuse(self, key: str, allowed: str) -> NoReturn:
        raise ConfigError(f"{self._where}: `{key}` is {self._fields.get(key)!r:.80}, supported is {allowed}")

    def architecture(self) -> str:
        named = self._fields.get("architectures") or [None]
        found = named[0] if isinstance(named, list) else named
        if found is None:
            found = next(
                (name for name, kind in _KINDS.items() if kind.model_type == self._fields.get("model_type")), None
            )
        if found not in _KINDS:
            self.refuse("architectures" if named[0] else "model_type", f"one of {', '.join(_KINDS)}")
        kind = _KINDS[found].model_type
        if self._fields.get("model_type", kind) != kind:
            self.refuse("model_type", f"{kind!r} for {found}")
        return str(found)

    def refuse_strangers(self, own: Collection[str]) -> None:
        """A key not known may change the result; one that is known may have but the value that changes nothing."""
        known = {*_COMMON, *own}
        for key, value in self._fields.items():
            if key in _FIXED:
                if value not in _FIXED[key]:
                    self.refuse(key, " or ".join(repr(allowed) for allowed in _FIXED[key]))
            elif key not in known and key not in _HARMLESS:
                raise ConfigError(
                    f"{self._where}: `{key}` ({value!r:.60}) is not known for this architecture and may change the "
                    f"result; known are {', '.join(sorted({*known, *_FIXED}))}. If it changes nothing, name it in the "
                    "option `ignore_config_keys`",
                )

    def count(self, key: str, default: int | None = None) -> int:
        value = self._fields.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or value < 1:
            self.refuse(key, "a whole number of at least 1")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._fields.get(key, default)
        if type(value) not in (int, float) or not value > 0:
            self.refuse(key, "a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self._fields.get(key, False)
        if type(value) is not bool:
            self.refuse(key, "true or false")
        return value

    def head_width(self, default: int | None) -> int:
        width, heads = self.count("hidden_size"), self.count("num_attention_heads")
        if self._fields.get("head_dim") is None and default is None and width % heads:
            self.refuse("hidden_size", f"a multiple of num_attention_heads ({heads})")
        return self.count("head_dim", default or width // heads)

    def no_windows(self) -> tuple[int | None, ...]:
        return (None,) * self.count("num_hidden_layers")

    def window_everywhere(self) -> tuple[int | None, ...]:
        """Mistral's: one window in all layers; 4096 where the file says nothing."""
        window = None if self._fields.get("sliding_window", 4096) is None else self.count("sliding_window", 4096)
        return (window,) * self.count("num_hidden_layers")

    def windows_by_layer(self) -> tuple[int | None, ...]:
        """Qwen's: off unless asked for, then in the layers that `layer_types` says, or from `max_window_layers` on."""
        layers = self.count("num_hidden_layers")
        used = self.flag("use_sliding_window") and self._fields.get("sliding_window", 4096) is not None
        first = self._fields.get("max_window_layers", 28)
        default = ["sliding_attention" if used and i >= first else "full_attention" for i in range(layers)]
        kinds = self._fields.get("layer_types") or default
        if len(kinds) != layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
            self.refuse("layer_types", f"{layers} of 'sliding_attention' and 'full_attention'")
        if not used and "sliding_attention" in kinds:
            self.refuse("layer_types", "'full_attention' only, while use_sliding_window is off")
        window = self.count("sliding_window", 4096) if used else None
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)


@dataclass(frozen=True)
class _Kind:
    """What an architecture has of its own; the defaults are those of its `transformers` class."""

    model_type: str
    #: Keys beyond `_COMMON`.
    keys: frozenset[str] = frozenset()
    windows: Callable[[_Reader], tuple[int | None, ...]] = _Reader.no_windows
    qkv_bias: bool = False
    qk_norm: bool = False
    #: Where the file says nothing; None: as many as there are query heads, or what the width gives each.
    kv_heads: int | None = None
    head_width: int | None = None


_WINDOW_KEYS = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})

_KINDS = {
    "LlamaForCausalLM": _Kind("llama", frozenset({"attention_bias", "mlp_bias"})),
    "MistralForCausalLM": _Kind("mistral", frozenset({"sliding_window"}), _Reader.window_everywhere, kv_heads=8),
    "Qwen2ForCausalLM": _Kind("qwen2", _WINDOW_KEYS, _Reader.windows_by_layer, qkv_bias=True, kv_heads=32),
    "Qwen3ForCausalLM": _Kind(
        "qwen3",
        _WINDOW_KEYS | {"attention_bias"},
        _Reader.windows_by_layer,
        qk_norm=True,
        kv_heads=32,
        head_width=128,
    ),
}

#: Read for every architecture; end tokens are read by `generation.py`.
_COMMON = frozenset(
    {
        "architectures",
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "tie_word_embeddings",
        "eos_token_id",
    },
)

#: Keys that some file may have, and the values under which they change nothing.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1, None),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False,),
}

#: Keys about training, files or Python's side of things: no result depends on them.
_HARMLESS = frozenset(
    {
        "_attn_implementation_autoset",
        "_name_or_path",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "dtype",
        "finetuning_task",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "use_cache",
    },
)
