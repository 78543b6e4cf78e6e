"""What /proc tells of a process: our own, a child's, and that of one which is gone."""

import os
import signal
import subprocess
import sys

import pytest

from tensoryard.deploy.vitals import command_of, started_ticks, state_of, user_of, vitals


@pytest.fixture
def child():
    """A process that waits for its end."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "an argument"])
    yield process
    process.kill()
    process.wait(30)


HOLDING = """
import os
from tensoryard.deploy.vitals import vitals
from tensoryard.shm import Pool, Reader

before = vitals(os.getpid())
pool = Pool(budget_bytes=64 << 20)
array = pool.empty(32 << 20, "u1")
array[:] = 1
reader, loan = Reader(), pool.lend(array)
view = reader.open(loan.handle)
after = vitals(os.getpid())
# Segment and lease table are mapped by owner and reader; a mapping keeps no descriptor, but the segment's owner does.
assert (before.memory_descriptors, before.memory_mappings) == (0, 0), before
assert (after.memory_descriptors, after.memory_mappings) == (1, 4), after
assert after.descriptors >= before.descriptors + 1
assert after.mappings >= before.mappings + 4
assert after.threads == before.threads + 1
assert after.private_bytes < before.private_bytes + (16 << 20), "shared memory is not private"
held = b"x" * (32 << 20)
assert vitals(os.getpid()).private_bytes > after.private_bytes + (16 << 20)
"""


def test_what_is_open_and_mapped_is_counted():
    """Descriptors, mappings, and those of shared memory of ours among them; more memory is more memory."""
    subprocess.run([sys.executable, "-P", "-c", HOLDING], check=True, timeout=60)


def test_a_process_is_named_for_ever(child):
    """Its start is the same whenever it is asked for; its user is ours; its command can be read."""
    assert started_ticks(child.pid) == started_ticks(child.pid) > started_ticks(os.getpid())
    assert user_of(child.pid) == os.geteuid()
    assert command_of(child.pid).startswith("python")
    assert len(command_of(child.pid)) <= 60


def test_a_stopped_process_is_known(child, eventually):
    """T while it is stopped, and not before or after."""
    assert state_of(child.pid) != "T"
    child.send_signal(signal.SIGSTOP)
    eventually(lambda: state_of(child.pid) == "T", "it stops")
    child.send_signal(signal.SIGCONT)
    eventually(lambda: state_of(child.pid) != "T", "it goes on")


def test_a_process_that_is_gone_has_nothing(child):
    """Empty values, no errors."""
    child.kill()
    child.wait(30)
    pid = child.pid
    found = (vitals(pid), started_ticks(pid), state_of(pid), user_of(pid), command_of(pid))
    assert found == (None, 0, "", -1, "")
