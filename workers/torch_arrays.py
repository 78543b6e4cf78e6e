"""Arrays of ours as torch's and back, by DLPack: the same memory, uncopied, wherever both sides compute on one device.

Only adapters of models that torch computes come here; torch is imported when they do.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .device import PREFERENCES, PROBE_TIMEOUT_S, Device, driver_problem, probe, select_device

logger = logging.getLogger(__name__)

# A first kernel and a first matrix product: what a broken driver, or a build for other GPUs, fails in.
_PROBE = """
import torch
a = torch.ones(64, 64, device="cuda")
assert float((a @ a).sum()) == 64.0 ** 3
"""


def library(name: str) -> Any:
    """torch, transformers or a part of them; ConfigError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{error}; pip install 'tensoryard[hf]'") from error


def select_devices(preference: str) -> tuple[str, Device]:
    """Torch's name of the device that `preference` ("auto", "cpu" or "gpu") means, and the device of our own arrays.

    They are the same where torch and CuPy both have the GPU; with torch alone logits are brought to the host. Raises
    ConfigError for another preference, and for "gpu" when torch has none that works.
    """
    if preference not in PREFERENCES:
        raise ConfigError(f"`device` must be one of {', '.join(PREFERENCES)}, not {preference!r}")
    problem = None if preference == "cpu" else _cuda_problem()
    if preference == "gpu" and problem is not None:
        raise ConfigError(f"`device` is 'gpu', but {problem}")
    if preference == "cpu" or problem is not None:
        return "cpu", select_device("cpu")
    return "cuda", select_device("auto")


@functools.cache
def _cuda_problem() -> str | None:
    """Why torch cannot compute on a GPU; None where it can. The first CUDA call is made by a child process."""
    problem = driver_problem()
    if problem is not None:
        return problem
    if library("torch").version.cuda is None:
        return "this build of torch has no CUDA"
    problem = probe(_PROBE, timeout_s=PROBE_TIMEOUT_S)
    if problem is not None:
        logger.warning("torch computes on the CPU: %s", problem)
    return problem


def to_torch(array: npt.NDArray[Any], device: str) -> Any:
    """A host array as a tensor on torch's `device`: on the CPU the very same memory, so never write to it."""
    tensor = library("torch").from_dlpack(np.ascontiguousarray(array))
    return tensor if device == "cpu" else tensor.to(device)


def to_ours(tensor: Any, device: Device) -> Any:
    """A tensor as an array of our `device`: the same memory where the tensor lies there, else a copy."""
    if not device.is_gpu:
        return np.from_dlpack(tensor.detach().cpu())
    return device.xp.from_dlpack(tensor.detach())
