"""LoRA requests and responses: their checks and their form on the wire."""

from __future__ import annotations

import msgspec
import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.proto.lora import (
    LORA_REQUEST_ENDPOINT,
    LORA_RESPONSE_ENDPOINT,
    LoRAOperation,
    LoRARequest,
    LoRAResponse,
    LoRAStatus,
    LoRAType,
)

LOAD, UNLOAD = LoRAOperation.LOAD, LoRAOperation.UNLOAD


def test_values():
    """The documented values."""
    assert [kind.value for kind in LoRAType] == ["lora_A", "lora_B", "lora_B_kv", "lora.bias"]
    assert [operation.value for operation in LoRAOperation] == ["load", "unload"]
    assert (LORA_REQUEST_ENDPOINT, LORA_RESPONSE_ENDPOINT) == ("lora_request", "lora_response")
    assert {status.value for status in LoRAStatus} == {
        "success",
        "load_name_exists",
        "unload_name_nonexistent",
        "load_error",
        "unload_error",
        "load_invalid_path",
        "load_invalid_adapter",
        "unspecified_error",
    }


def test_request_travels():
    """Positional; a path that is None is left out."""
    request = LoRARequest(LOAD, "style", "/models/style")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=LoRARequest) == request
    wire = msgspec.msgpack.encode(LoRARequest(UNLOAD, "style"))
    assert msgspec.msgpack.decode(wire) == {"operation": "unload", "lora_name": "style"}


def test_response_travels():
    """With one message or several."""
    for message in ("done", ["a", "b"]):
        response = LoRAResponse(LoRAStatus.SUCCESS, message)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(response), type=LoRAResponse) == response


@pytest.mark.parametrize("fields", [("load", "style", "/p"), (UNLOAD, ""), (UNLOAD, 5), (UNLOAD, None)])
def test_requests_that_are_wrong(fields):
    """An operation that is none, or no name."""
    with pytest.raises(InvalidRequest):
        LoRARequest(*fields)


@pytest.mark.parametrize("path", [None, ""])
def test_weakness_47_load_without_path(path):
    """Refused where it is built, and on arrival."""
    with pytest.raises(InvalidRequest, match="lora_path"):
        LoRARequest(LOAD, "style", path)
    with pytest.raises(msgspec.ValidationError, match="lora_path"):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"operation": "load", "lora_name": "a"}), type=LoRARequest)
