"""`tensoryard lora`: adapters of a running cluster's models, loaded, unloaded, listed.

`cli.py` reads the arguments; the client's verbs do the work (`client/lora.py`).
"""

from __future__ import annotations

import msgspec

from ..client import Client
from ..proto.lora import LoRAResponse, LoRAStatus
from ..proto.status import ModelStatus
from .text import say, table

_HEAD = ("ADAPTER", "MODEL", "STATE", ">WORKERS", ">LIVE", "PATH")


def load(client: Client, name: str, path: str, *, model: str, within_s: float) -> int:
    """Load a folder as an adapter; 1 when that did not succeed."""
    return _tell(client.load_lora(name, path, model=model, timeout_s=within_s))


def unload(client: Client, name: str, *, model: str, within_s: float) -> int:
    """Unload an adapter; 1 when that did not succeed."""
    return _tell(client.unload_lora(name, model=model, timeout_s=within_s))


def ls(client: Client, *, model: str, as_json: bool) -> int:
    """Print the adapters of a model, or of all."""
    found = [each for each in client.status().models if model in ("", each.model)]
    if as_json:
        adapters = {each.model: each.adapters for each in found}
        say(msgspec.json.format(msgspec.json.encode(adapters), indent=2).decode())
        return 0
    rows = _rows(found)
    say(table(_HEAD, rows) if rows else "no adapter is loaded")
    for each in found:
        for adapter in each.adapters:
            for worker, text in adapter.failures.items():
                say(f"{adapter.name}: {worker} could not load it: {text}")
    return 0


def _tell(response: LoRAResponse) -> int:
    done = response.status is LoRAStatus.SUCCESS
    texts = [response.message] if isinstance(response.message, str) else response.message
    for text in texts:
        say(text if done else f"tensoryard: error: {response.status.value}: {text}", error=not done)
    return 0 if done else 1


def adapter_table(models: list[ModelStatus]) -> list[str]:
    """The adapters of models as a part of a cluster's status; nothing where there are none."""
    rows = _rows(models)
    return ["\n" + table(_HEAD, rows)] if rows else []


def _rows(models: list[ModelStatus]) -> list[tuple[object, ...]]:
    return [(a.name, each.model, a.state, a.workers, a.live, a.path) for each in models for a in each.adapters]
