"""Tool parsers of the formats that models write, by name; docs/parsers.md tells what each takes and passes through.

Layers: `markers` and `source` (text in pieces), `json_text`, `python_text` and `schema` (values), `answer` (what is
held and what goes out), `base` and `json_call`, then one module per format. Nothing here does I/O or imports numpy.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .base import StreamingToolParser
from .deepseek import DeepSeekToolParser
from .harmony import HarmonyToolParser
from .hermes import HermesToolParser
from .llama import LlamaJsonToolParser
from .mistral import MistralToolParser
from .pythonic import PythonicToolParser
from .qwen_coder import QwenCoderToolParser

__all__ = [
    "TOOL_PARSERS",
    "DeepSeekToolParser",
    "HarmonyToolParser",
    "HermesToolParser",
    "LlamaJsonToolParser",
    "MistralToolParser",
    "PythonicToolParser",
    "QwenCoderToolParser",
    "StreamingToolParser",
    "tool_parser",
]

#: The parser of each format, by the name that settings use.
TOOL_PARSERS: Mapping[str, type[StreamingToolParser]] = MappingProxyType(
    {
        "deepseek": DeepSeekToolParser,
        "harmony": HarmonyToolParser,
        "hermes": HermesToolParser,
        "llama_json": LlamaJsonToolParser,
        "mistral": MistralToolParser,
        "pythonic": PythonicToolParser,
        "qwen_coder": QwenCoderToolParser,
    },
)


def tool_parser(name: str, *, make_id: Callable[[], str] | None = None) -> StreamingToolParser:
    """A new parser of a format, for one stream. ValueError for an unknown name, which lists the known ones."""
    if name not in TOOL_PARSERS:
        raise ValueError(f"no tool parser is called {name!r}; there are {', '.join(TOOL_PARSERS)}")
    return TOOL_PARSERS[name](make_id=make_id)
