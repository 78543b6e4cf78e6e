"""The router that each of its tests has to itself."""

from __future__ import annotations

import pytest

from .yard import Yard


@pytest.fixture
def yard():
    return Yard()
