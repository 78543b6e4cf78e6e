"""Reasoning parsers by name, on token ids; docs/parsers.md tells what each takes for reasoning.

Layers: `labels` and `tokens`, then one module per format, and `stream`, which drives any of them over an answer.
Nothing here does I/O or imports numpy.
"""

from collections.abc import Mapping
from types import MappingProxyType

from ..reasoning import ReasoningParser
from .delimited import (
    DelimitedReasoningParser,
    MistralReasoningParser,
    ThinkFirstReasoningParser,
    ThinkReasoningParser,
)
from .harmony import HarmonyReasoningParser, HarmonyTokens
from .stream import ReasoningStream, SplitTokens

__all__ = [
    "REASONING_PARSERS",
    "DelimitedReasoningParser",
    "HarmonyReasoningParser",
    "HarmonyTokens",
    "MistralReasoningParser",
    "ReasoningStream",
    "SplitTokens",
    "ThinkFirstReasoningParser",
    "ThinkReasoningParser",
    "reasoning_parser",
]

#: The parser of each format, by the name that settings use.
REASONING_PARSERS: Mapping[str, type[ReasoningParser]] = MappingProxyType(
    {
        "harmony": HarmonyReasoningParser,
        "mistral": MistralReasoningParser,
        "think": ThinkReasoningParser,
        "think_first": ThinkFirstReasoningParser,
    },
)


def reasoning_parser(name: str) -> type[ReasoningParser]:
    """The class of a format; `await …from_tokenizer(tokenizer)` makes the parser of a model.

    ValueError for an unknown name, which lists the known ones.
    """
    if name not in REASONING_PARSERS:
        raise ValueError(f"no reasoning parser is called {name!r}; there are {', '.join(REASONING_PARSERS)}")
    return REASONING_PARSERS[name]
