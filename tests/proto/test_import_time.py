"""What an import loads; how long it takes is measured by `benchmarks/import_time.py`, for no test asserts a time."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Libraries that cost tens of milliseconds or more, none of which the contracts need.
HEAVY = {"PIL", "av", "cupy", "httpx", "ml_dtypes", "pydantic", "ray", "scipy", "sklearn", "torch", "zmq"}
#: Modules of the standard library and of ours that cost milliseconds and are needed later, if at all.
LATE = {
    "asyncio",
    "importlib.metadata",
    "tensoryard.proto.open_responses",
    "tensoryard.proto.open_responses_body",
    "tensoryard.proto.open_responses_output",
}


def loaded_by(code):
    """The modules that a fresh Python has after some code, and those it has without it."""
    names = []
    for run in (code, ""):
        done = subprocess.run(
            [sys.executable, "-c", f"{run}\nimport sys\nprint(*sys.modules)"],
            capture_output=True,
            text=True,
            check=True,
        )
        names.append(set(done.stdout.split()))
    return names[0] - names[1]


def packages(modules):
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize(
    "code",
    ["import tensoryard.proto", "from tensoryard.proto import *", "import tensoryard.proto.open_responses_convert"],
)
def test_weakness_43_the_contracts_load_nothing_heavy(code):
    """No image library, pydantic, torch, ray, zmq or scipy comes with the contracts, not even with all their names."""
    assert not HEAVY & packages(loaded_by(code))


def test_what_is_needed_later_is_loaded_later():
    """The package's metadata and the structs of the HTTP gateway are not read for a name of another module."""
    loaded = loaded_by("import tensoryard.proto")
    assert "tensoryard.proto.text_context" in loaded
    assert not LATE & loaded


def test_the_top_of_the_package_loads_next_to_nothing():
    """`import tensoryard` alone brings neither numpy nor msgspec."""
    assert not {"numpy", "msgspec", *HEAVY} & packages(loaded_by("import tensoryard"))


def test_names_that_are_loaded_late_are_there():
    """Each is found when asked for, is listed, and is then an ordinary name of the module."""
    code = """
import tensoryard, tensoryard.proto as proto
late = set(proto._LAZY)
assert late and not late & set(vars(proto)) and late <= set(dir(proto))
for name in late:
    assert getattr(proto, name).__name__ == name
assert late <= set(vars(proto))
assert tensoryard.__version__ == tensoryard.__version__ and "__version__" in vars(tensoryard)
"""
    assert "tensoryard.proto.open_responses" in loaded_by(code)


def test_a_name_that_is_not_there():
    """An unknown name is an AttributeError that says so, as of any module."""
    import tensoryard.proto
    import tensoryard.version

    for module in (tensoryard.proto, tensoryard.version):
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = module.nothing
