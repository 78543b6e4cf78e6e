"""Device selection: the array module (`xp`) that a pipeline computes with, CuPy on a GPU and NumPy otherwise.

Pipelines ask `select_device` once, when they are created, and write their mathematics against what it returns; nothing
here knows a model. CUDA is never initialised before a child process has shown that it works: the first CUDA call of a
broken driver may hang for ever or end the process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

logger = logging.getLogger(__name__)

#: What `select_device` takes.
PREFERENCES = ("auto", "cpu", "gpu")

#: A CUDA driver shows itself as one of these: on Linux, and under the Windows subsystem for Linux.
DEVICE_NODES = ("/dev/nvidiactl", "/dev/dxg")

#: Longest wait for the child process, in seconds. Importing CuPy and compiling a first kernel takes 1 to 5.
PROBE_TIMEOUT_S = 60.0

#: How long a killed child may take to go, in seconds; one stuck inside the driver never does, and is left behind.
REAP_TIMEOUT_S = 5.0

# A kernel of our own, not only a device count: it also proves the compiler and that it knows this GPU.
_PROBE = """
import cupy
cupy.cuda.runtime.getDeviceCount()
numbers = cupy.arange(8)
assert int((numbers * numbers).sum()) == 140
"""


@dataclass(frozen=True)
class Device:
    """Where a pipeline's arrays live and what computes on them.

    `name` is "cpu" or "gpu"; `xp` is the array module, numpy or cupy.
    """

    name: str
    xp: Any

    @property
    def is_gpu(self) -> bool:
        """Whether arrays must be copied to and from this device."""
        return self.name == "gpu"

    @property
    def ndimage(self) -> Any:
        """`scipy.ndimage`, or CuPy's copy of it."""
        return importlib.import_module("cupyx.scipy.ndimage" if self.is_gpu else "scipy.ndimage")

    @property
    def special(self) -> Any:
        """`scipy.special`, or CuPy's copy of it."""
        return importlib.import_module("cupyx.scipy.special" if self.is_gpu else "scipy.special")

    def to_device(self, array: npt.NDArray[Any]) -> Any:
        """`array` on the device: a copy on a GPU; on the CPU the very same memory, so never write to it."""
        return self.xp.asarray(array) if self.is_gpu else array

    def to_host(self, array: Any, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """`array` in host memory, written into `out` (same shape and dtype) when given; on the CPU else uncopied."""
        if self.is_gpu:
            return self._download(array, out)
        if out is None:
            return np.asarray(array)
        if out is not array:
            np.copyto(out, array)
        return out

    def _download(self, array: Any, out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        # CuPy copies straight into C-contiguous memory only.
        if out is None or out.flags.c_contiguous:
            host: npt.NDArray[Any] = array.get(out=out)
            return host
        np.copyto(out, array.get())
        return out

    def mirror(self, out: npt.NDArray[Any]) -> Any:
        """An array on the device to compute a result for `out` in: `out` itself on the CPU; finish with `to_host`."""
        return self.xp.empty(out.shape, out.dtype) if self.is_gpu else out


def select_device(preference: str = "auto") -> Device:
    """The device that `preference` names: "auto" takes the GPU where one works, and NumPy otherwise.

    Which it is, and why there is no GPU, is logged once per process. Raises ConfigError for another preference, and
    for "gpu" when none works, saying why.
    """
    if preference not in PREFERENCES:
        raise ConfigError(f"`device` must be one of {', '.join(PREFERENCES)}, not {preference!r}")
    if preference == "cpu":
        return Device("cpu", np)
    problem = gpu_problem()
    if problem is None:
        return Device("gpu", importlib.import_module("cupy"))
    if preference == "gpu":
        raise ConfigError(f"`device` is 'gpu', but {problem}")
    return Device("cpu", np)


@functools.cache
def gpu_problem() -> str | None:
    """Why this process cannot compute on a GPU; None where it can. Found out once per process."""
    problem = driver_problem()
    if problem is not None:
        logger.info("computing on the CPU with NumPy: %s", problem)
        return problem
    if importlib.util.find_spec("cupy") is None:
        problem = "CuPy is not installed: pip install 'tensoryard[gpu]' (CUDA 13) or 'tensoryard[gpu12]' (CUDA 12)"
    else:
        problem = probe(_PROBE, timeout_s=PROBE_TIMEOUT_S) or ""
    if problem:
        # A GPU seems to be there and is not used: somebody should look.
        logger.warning("computing on the CPU with NumPy: %s", problem)
        return problem
    logger.info("computing on the GPU with CuPy")
    return None


def driver_problem() -> str | None:
    """Why there is no GPU to be tried, whatever library would use it; None where there may be one."""
    if os.environ.get("TENSORYARD_GPU") == "0":
        return "TENSORYARD_GPU=0 forbids it"
    if not any(Path(node).exists() for node in DEVICE_NODES):
        return f"this machine has no CUDA driver (none of {', '.join(DEVICE_NODES)} exists)"
    return None


def probe(code: str, *, timeout_s: float) -> str | None:
    """Run Python `code` in a child process; None when it ends well, else what went wrong, in a sentence's end."""
    # -P: a folder named `proto` where we happen to stand must not shadow a library of that name.
    command = [sys.executable, "-P", "-c", code]
    # A file, not a pipe: reading a pipe would wait for whatever a hanging child has started.
    with tempfile.TemporaryFile("w+", errors="replace") as complaint:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=complaint)
        try:
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(REAP_TIMEOUT_S)
            return f"a trial of the GPU gave no answer in {timeout_s:g} s: the driver hangs"
        if status == 0:
            return None
        complaint.seek(0)
        last_line = complaint.read().strip().rpartition("\n")[2]
        return f"a trial of the GPU failed with status {status}: {last_line or 'no message'}"
