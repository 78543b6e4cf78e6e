"""The version of this package, as its installed metadata has it."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tensoryard")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"
