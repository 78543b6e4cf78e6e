"""Device selection, with broken drivers in real child processes; and array code kept apart from host memory."""

import logging
import sys
import types

import numpy as np
import pytest
import scipy.ndimage
import scipy.special

from tensoryard.errors import ConfigError
from tensoryard.workers import device as module
from tensoryard.workers.device import Device, gpu_problem, probe, select_device
from tensoryard.workers.pipelines import minilm, photo_edit
from tensoryard.workers.pipelines._photo_operations import Studio


@pytest.fixture(autouse=True)
def _forget():
    gpu_problem.cache_clear()
    yield
    gpu_problem.cache_clear()


@pytest.fixture
def broken_cupy(tmp_path, monkeypatch):
    """Put a package `cupy` with the given code, and a device node, before this process and its children."""

    def install(code):
        (tmp_path / "cupy.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(module, "DEVICE_NODES", ("/dev/null",))

    return install


def test_the_cpu_computes_with_numpy():
    """Asked for the CPU, nothing is tried and nothing copied."""
    cpu = select_device("cpu")
    array = np.arange(3)
    assert (cpu.name, cpu.is_gpu, cpu.xp) == ("cpu", False, np)
    assert (cpu.ndimage, cpu.special) == (scipy.ndimage, scipy.special)
    assert cpu.to_device(array) is array
    assert cpu.to_host(array) is array
    assert cpu.mirror(array) is array
    assert cpu.to_host(array, out=array) is array


def test_results_go_into_the_given_array():
    """`to_host` with `out` writes there, and gives it back."""
    out = np.zeros((2, 2))
    assert select_device("cpu").to_host(np.ones((2, 2)), out=out) is out
    assert (out == 1).all()


def test_an_unknown_preference_is_named():
    """The error says what was asked for and what there is."""
    with pytest.raises(ConfigError, match="one of auto, cpu, gpu, not 'cuda:1'"):
        select_device("cuda:1")


def test_a_machine_without_a_driver_computes_on_the_cpu_and_says_so_once(monkeypatch, caplog):
    """However often it is asked, there is one line in the log."""
    monkeypatch.setattr(module, "DEVICE_NODES", ("/dev/no-such-device",))
    caplog.set_level(logging.INFO, logger=module.__name__)
    assert [select_device().name for _ in range(3)] == ["cpu"] * 3
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert "no CUDA driver (none of /dev/no-such-device exists)" in record.getMessage()


def test_a_gpu_that_is_asked_for_and_absent_is_an_error(monkeypatch):
    """Never silently something slower than what was asked for."""
    monkeypatch.setattr(module, "DEVICE_NODES", ())
    with pytest.raises(ConfigError, match="`device` is 'gpu', but this machine has no CUDA driver"):
        select_device("gpu")


def test_a_gpu_without_cupy_says_what_to_install(monkeypatch, caplog):
    """A driver is there and CuPy is not: a warning with the command."""
    monkeypatch.setattr(module, "DEVICE_NODES", ("/dev/null",))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert select_device().name == "cpu"
    assert "pip install 'tensoryard[gpu]'" in caplog.text


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('cudaErrorInsufficientDriver')", "failed with status 1: RuntimeError: cudaErrorInsuff"),
        ("import os; os.abort()", "failed with status -6: no message"),
        ("import sys; sys.exit(3)", "failed with status 3: no message"),
    ],
    ids=["error", "crash", "exit"],
)
def test_a_broken_driver_breaks_a_child_only(broken_cupy, caplog, code, words):
    """A driver that raises, crashes or ends the process leaves this process on NumPy, warned."""
    broken_cupy(code)
    assert select_device().name == "cpu"
    assert words in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_a_hanging_driver_is_given_up(broken_cupy, monkeypatch):
    """After the timeout the child is killed and the reason says so."""
    broken_cupy("import time; time.sleep(1000)")
    monkeypatch.setattr(module, "PROBE_TIMEOUT_S", 0.5)
    assert gpu_problem() == "a trial of the GPU gave no answer in 0.5 s: the driver hangs"


def test_a_working_trial_has_no_problem():
    """A child that ends well is no problem, whatever it prints."""
    assert probe("print('fine')", timeout_s=60) is None


class DeviceArray(np.ndarray):
    """An array as CuPy's are: it refuses to meet host arrays, and leaves the device by `get` alone."""

    def get(self, out=None):
        if out is None:
            return np.array(self.view(np.ndarray))
        assert out.flags.c_contiguous
        out[...] = self.view(np.ndarray)
        return out

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        return on_device(getattr(ufunc, method))(*inputs, **keywords)

    def __array_function__(self, function, kinds, arguments, keywords):
        return on_device(function)(*arguments, **keywords)

    def __setitem__(self, key, value):
        self.view(np.ndarray)[plain(key)] = plain(value)


def plain(value):
    """`value` with its device arrays opened; TypeError for a host array, which has no business on the device."""
    if isinstance(value, DeviceArray):
        return value.view(np.ndarray)
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("a host array meets the device")
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return {key: plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def on_device(function):
    """`function` between device arrays."""

    def call(*arguments, **keywords):
        result = function(*plain(arguments), **plain(keywords))
        return result.view(DeviceArray) if isinstance(result, np.ndarray) else result

    return call


class OnDevice(types.ModuleType):
    """A module of NumPy or SciPy, its functions between device arrays."""

    def __init__(self, original):
        super().__init__(original.__name__)
        self._original = original

    def __getattr__(self, name):
        value = getattr(self._original, name)
        return on_device(value) if callable(value) and not isinstance(value, type) else value


@pytest.fixture
def separate_device(monkeypatch):
    """A device of its own memory: what CuPy would refuse to mix is refused, on any machine."""
    library = OnDevice(np)
    library.asarray = lambda array: np.array(array).view(DeviceArray)
    modules = {"cupy": library, "cupyx": types.ModuleType("cupyx"), "cupyx.scipy": types.ModuleType("cupyx.scipy")}
    modules |= {"cupyx.scipy.ndimage": OnDevice(scipy.ndimage), "cupyx.scipy.special": OnDevice(scipy.special)}
    for name, each in modules.items():
        monkeypatch.setitem(sys.modules, name, each)
    monkeypatch.setattr(module, "gpu_problem", lambda: None)
    return select_device("gpu")


def test_a_separate_device_refuses_host_arrays(separate_device):
    """The stand-in is strict, or the tests below would show nothing."""
    there = separate_device.to_device(np.ones((2, 3)))
    assert isinstance(separate_device.xp.exp(there) + 1, DeviceArray)
    with pytest.raises(TypeError, match="host array"):
        there + np.ones((2, 3))
    with pytest.raises(TypeError, match="host array"):
        separate_device.xp.exp(np.ones(3))


def test_arrays_come_back_from_a_separate_device(separate_device):
    """Into new memory, into given memory, and into memory with gaps."""
    array = np.arange(6.0).reshape(2, 3)
    there = separate_device.to_device(array)
    assert type(separate_device.to_host(there)) is np.ndarray
    for out in (np.zeros((2, 3)), np.zeros((2, 6))[:, ::2]):
        assert separate_device.to_host(there, out=out) is out
        assert (out == array).all()
    mirror = separate_device.mirror(array)
    assert isinstance(mirror, DeviceArray)
    assert mirror.shape == array.shape


def test_embeddings_keep_to_the_device(separate_device):
    """The encoder, with padding and masks as on a GPU, mixes no host array in and gives the CPU's vectors."""
    assert separate_device.is_gpu
    texts = ["", "a short text", "another one", "something rather longer than the others " * 5]
    folder = minilm.model_folder()
    here, there = (minilm.MiniLM(folder, each).embed(texts) for each in (Device("cpu", np), separate_device))
    np.testing.assert_allclose(there, here, rtol=0, atol=2e-6)


def test_photo_editing_keeps_to_the_device(separate_device):
    """Every operation, on colour and on grey, mixes no host array in and gives the CPU's pixels."""
    operations = [
        photo_edit.Resize(scale=1.5),
        photo_edit.Denoise(),
        photo_edit.Denoise(method="gaussian"),
        photo_edit.Sharpen(),
        photo_edit.Colour(saturation=0.5, brightness=1.1, contrast=1.2, gamma=1.3),
        photo_edit.Blur(sigma=0.5),
        photo_edit.Rotate(degrees=10),
        photo_edit.Rotate(degrees=90),
        photo_edit.Flip(),
        photo_edit.Crop(top=1, left=2, height=9, width=8),
    ]
    noise = np.random.default_rng(1).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    for image in (noise, noise[:, :, 0]):
        there = photo_edit._edited(image, operations, Studio(separate_device, 10**6), np.empty)
        assert type(there) is np.ndarray
        assert (there == photo_edit.edit(image, operations)).all()


@pytest.mark.gpu
def test_a_real_gpu_is_found_and_computes():
    """Where a GPU works, "auto" takes it."""
    if gpu_problem():
        pytest.skip(gpu_problem())
    device = select_device()
    assert device.is_gpu
    assert device.to_host(device.xp.arange(4) * 2).tolist() == [0, 2, 4, 6]


def test_a_gpu_can_be_forbidden(monkeypatch, broken_cupy):
    """With TENSORYARD_GPU=0 no GPU is looked for, and asking for one is an error that says why."""
    broken_cupy("raise RuntimeError('looked for')")
    monkeypatch.setenv("TENSORYARD_GPU", "0")
    assert gpu_problem() == "TENSORYARD_GPU=0 forbids it"
    assert select_device("auto").name == "cpu"
    with pytest.raises(ConfigError, match="TENSORYARD_GPU=0"):
        select_device("gpu")
