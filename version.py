"""The version of this package, as its installed metadata has it.

Looked up when first asked for: reading the metadata takes longer than the rest of `import tensoryard`.
"""

from __future__ import annotations

__version__: str


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("tensoryard")
    except PackageNotFoundError:  # a checkout that is not installed
        found = "0+unknown"
    globals()["__version__"] = found
    return found
