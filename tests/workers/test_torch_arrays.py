"""Arrays of ours and torch's are the same memory where they lie on one device; the device is chosen without harm."""

import numpy as np
import pytest

from tensoryard.errors import ConfigError
from tensoryard.workers import torch_arrays
from tensoryard.workers.device import select_device
from tensoryard.workers.torch_arrays import library, select_devices, to_ours, to_torch

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'tensoryard[hf]'")


@pytest.fixture(autouse=True)
def asked_anew():
    """What was found out about this machine is forgotten."""
    torch_arrays._cuda_problem.cache_clear()
    yield
    torch_arrays._cuda_problem.cache_clear()


def test_arrays_join_without_a_copy():
    """Both ways on the CPU, read-only arrays too."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    array.flags.writeable = False
    tensor = to_torch(array, "cpu")
    assert tensor.data_ptr() == array.ctypes.data
    assert tensor.tolist() == array.tolist()
    made = torch.ones(3, requires_grad=True)
    assert to_ours(made, select_device("cpu")).ctypes.data == made.data_ptr()


def test_what_lies_scattered_is_gathered():
    """A strided array is copied, and keeps its values."""
    array = np.arange(12).reshape(3, 4)[::2, ::3]
    assert to_torch(array, "cpu").tolist() == array.tolist()


def test_a_gpu_that_is_not_there(monkeypatch):
    """Asked for, it is an error that says why; else the CPU computes."""
    monkeypatch.setenv("TENSORYARD_GPU", "0")
    name, device = select_devices("auto")
    assert (name, device.is_gpu) == ("cpu", False)
    with pytest.raises(ConfigError, match="TENSORYARD_GPU=0 forbids it"):
        select_devices("gpu")
    with pytest.raises(ConfigError, match="'tpu'"):
        select_devices("tpu")


def test_a_library_that_is_not_there():
    """What to install is said."""
    with pytest.raises(ConfigError, match="tensoryard\\[hf\\]"):
        library("no_such_library")


@pytest.mark.gpu
def test_arrays_join_on_a_gpu():
    """Torch's tensor and CuPy's array are the same memory there, where both have the device."""
    try:
        name, device = select_devices("gpu")
    except ConfigError as error:
        pytest.skip(error.text)
    tensor = to_torch(np.arange(6, dtype=np.float32), name)
    ours = to_ours(tensor, device)
    assert device.to_host(ours).tolist() == list(range(6))
    if device.is_gpu:
        assert ours.data.ptr == tensor.data_ptr()
