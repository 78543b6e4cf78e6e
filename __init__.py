"""Tensoryard: a multi-process shared-memory worker cluster for inference. Requests move, tensors stay.

The public names, loaded when first used so that `import tensoryard` stays light. Layers, each importing only from those
before it: errors, settings, shm, proto, links, coordinator, workers, client, deploy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import AsyncClient, AsyncReply, Client, CopyLedger, Reply, Retry, connect, connect_async
    from .deploy.local import Yard, local
    from .errors import TensoryardError
    from .proto import (
        AudioGenerationMetadata,
        AudioGenerationOutput,
        AudioGenerationRequest,
        Autoscale,
        ClusterStatus,
        Deployment,
        EmbeddingsGenerationOutput,
        EmbeddingsRequest,
        GenerationOutput,
        GenerationStatus,
        LoRAResponse,
        LoRAStatus,
        OutputImageContent,
        Pipeline,
        PipelineTask,
        PixelGenerationRequest,
        RequestID,
        SamplingParams,
        TextGenerationOutput,
        TextGenerationRequest,
    )
    from .settings import Settings
    from .shm import SharedMemoryArray
    from .version import __version__

_HOMES = {
    ".client": ("AsyncClient", "AsyncReply", "Client", "CopyLedger", "Reply", "Retry", "connect", "connect_async"),
    ".deploy.local": ("Yard", "local"),
    ".errors": ("TensoryardError",),
    ".proto": (
        "AudioGenerationMetadata",
        "AudioGenerationOutput",
        "AudioGenerationRequest",
        "Autoscale",
        "ClusterStatus",
        "Deployment",
        "EmbeddingsGenerationOutput",
        "EmbeddingsRequest",
        "GenerationOutput",
        "GenerationStatus",
        "LoRAResponse",
        "LoRAStatus",
        "OutputImageContent",
        "Pipeline",
        "PipelineTask",
        "PixelGenerationRequest",
        "RequestID",
        "SamplingParams",
        "TextGenerationOutput",
        "TextGenerationRequest",
    ),
    ".settings": ("Settings",),
    ".shm": ("SharedMemoryArray",),
    ".version": ("__version__",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncClient",
    "AsyncReply",
    "AudioGenerationMetadata",
    "AudioGenerationOutput",
    "AudioGenerationRequest",
    "Autoscale",
    "Client",
    "ClusterStatus",
    "CopyLedger",
    "Deployment",
    "EmbeddingsGenerationOutput",
    "EmbeddingsRequest",
    "GenerationOutput",
    "GenerationStatus",
    "LoRAResponse",
    "LoRAStatus",
    "OutputImageContent",
    "Pipeline",
    "PipelineTask",
    "PixelGenerationRequest",
    "Reply",
    "RequestID",
    "Retry",
    "SamplingParams",
    "Settings",
    "SharedMemoryArray",
    "TensoryardError",
    "TextGenerationOutput",
    "TextGenerationRequest",
    "Yard",
    "__version__",
    "connect",
    "connect_async",
    "errors",
    "local",
    "proto",
]


def __getattr__(name: str) -> Any:
    if name in ("errors", "proto"):
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
