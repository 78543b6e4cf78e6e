"""The alarm: a descriptor that is readable from the time it was set to, until it is cleared."""

from __future__ import annotations

import os
import select
import time

import pytest

from tensoryard.client.alarm import Alarm

from ..scripted import DEADLINE_S


@pytest.fixture
def alarm():
    alarm = Alarm()
    yield alarm
    alarm.close()
    alarm.close()


def rings(alarm, timeout_s=0.0):
    return bool(select.select([alarm.fd], [], [], timeout_s)[0])


def test_it_rings_at_its_time_and_not_before(alarm):
    """Once; cleared, it is silent."""
    assert not rings(alarm)
    at = time.monotonic() + 0.05
    alarm.set(at)
    assert rings(alarm, DEADLINE_S)
    assert time.monotonic() >= at
    alarm.clear()
    alarm.clear()
    assert not rings(alarm)


@pytest.mark.parametrize("at", [0.0, -5.0, 1e-9, 1.0])
def test_a_time_that_has_passed_rings_now(alarm, at):
    """Zero too, which means something else to the kernel."""
    alarm.set(at)
    assert rings(alarm, DEADLINE_S)


def test_the_last_time_counts(alarm):
    """Setting it again moves it, to sooner and to later."""
    alarm.set(time.monotonic() + 1000.0)
    alarm.set(0.0)
    assert rings(alarm, DEADLINE_S)
    alarm.set(time.monotonic() + 1000.0)
    assert not rings(alarm)


def test_its_descriptor_stays_in_its_process(alarm):
    """Children do not inherit it; closed, it can still be set, and nothing happens."""
    assert not os.get_inheritable(alarm.fd)
    alarm.close()
    alarm.set(1.0)
