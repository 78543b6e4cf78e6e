"""LoRA adapters: what may be asked of a model's worker, and what it answers.

Both travel in messages of `wire.py`, matched by RequestID and never by order of arrival.

Source: `max.interfaces.lora` (26.3), `max.pipelines.lora.lora_types` (26.7).
"""

from __future__ import annotations

from enum import Enum

import msgspec

from ..errors import InvalidRequest

#: Endpoint names: where requests go and where answers come from.
LORA_REQUEST_ENDPOINT = "lora_request"
LORA_RESPONSE_ENDPOINT = "lora_response"

#: Adapters of one model, whatever its pipeline allows: with the longest names and paths, READY tells them all.
MAX_LORAS = 512
#: Characters of a name, and of a path.
MAX_LORA_NAME_CHARS = 256
MAX_LORA_PATH_CHARS = 4096


class LoRAType(Enum):
    """The parts of an adapter; each value is found in the checkpoint's keys."""

    A = "lora_A"
    B = "lora_B"
    #: K and V up-projections in one.
    B_KV = "lora_B_kv"
    BIAS = "lora.bias"


class LoRAOperation(Enum):
    """What to do with an adapter."""

    LOAD = "load"
    UNLOAD = "unload"


class LoRAStatus(Enum):
    """How an operation ended; loading the same name from the same path again is a success."""

    SUCCESS = "success"
    LOAD_NAME_EXISTS = "load_name_exists"
    UNLOAD_NAME_NONEXISTENT = "unload_name_nonexistent"
    LOAD_ERROR = "load_error"
    UNLOAD_ERROR = "unload_error"
    LOAD_INVALID_PATH = "load_invalid_path"
    LOAD_INVALID_ADAPTER = "load_invalid_adapter"
    UNSPECIFIED_ERROR = "unspecified_error"


class LoRARequest(msgspec.Struct, omit_defaults=True):
    """Load an adapter under a name from a path, or unload it.

    Raises InvalidRequest (a ValueError), also when decoded, for an empty or endless name, or a load without a path.
    """

    operation: LoRAOperation
    lora_name: str
    lora_path: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.operation, LoRAOperation):
            raise InvalidRequest(f"`operation` is a LoRAOperation, not {self.operation!r}")
        if not isinstance(self.lora_name, str) or not self.lora_name:
            raise InvalidRequest(f"`lora_name` is the name of an adapter, not {self.lora_name!r}")
        if len(self.lora_name) > MAX_LORA_NAME_CHARS or len(self.lora_path or "") > MAX_LORA_PATH_CHARS:
            raise InvalidRequest(
                f"a `lora_name` has at most {MAX_LORA_NAME_CHARS} characters, a `lora_path` {MAX_LORA_PATH_CHARS}"
            )
        if self.operation is LoRAOperation.LOAD and not self.lora_path:
            raise InvalidRequest(f"to load the adapter {self.lora_name!r}, `lora_path` must say from where")


class LoRAResponse(msgspec.Struct):
    """How the operation ended, and a text, or several, for people."""

    status: LoRAStatus
    message: str | list[str]
