"""A real coordinator, for the tests of the two kinds of client."""

from __future__ import annotations

import pytest

from ..scripted import Serving


@pytest.fixture
def serving():
    with Serving() as serving:
        yield serving
