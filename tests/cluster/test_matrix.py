"""`kill -9` and `SIGSTOP` of every role at every step: each request has one right answer, and nothing is left.

Whoever asked and lives has exactly one right answer; shared memory, descriptors and requests are as before; and a
request of each kind that comes later is answered.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tensoryard.deploy import local
from tensoryard.workers import fleet

from .matrix import Cell, Matrix, cells

pytestmark = pytest.mark.process

#: As many as keep two cores busy while others wait.
CLUSTERS = 4


@pytest.fixture(scope="module")
def matrix(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """Begins with all cells that are asked for."""
    asked = [item.callspec.params["cell"] for item in request.session.items if item.module is request.module]
    with pytest.MonkeyPatch.context() as patch:
        # Here processes die young all the time, and of nothing that a pause would mend.
        patch.setattr(fleet, "QUICK_DEATH_S", 0.0)
        patch.setattr(local, "_QUICK_DEATH_S", 0.0)
        matrix = Matrix(asked, tmp_path_factory.mktemp("orders"), CLUSTERS)
        yield matrix
        matrix.close()


@pytest.mark.case(2, 3, 5, 15, 17)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("cell", cells(), ids=str)
def test_every_request_survives(matrix: Matrix, cell: Cell) -> None:
    """One fault at one step of one kind of request."""
    matrix.outcome(cell)
