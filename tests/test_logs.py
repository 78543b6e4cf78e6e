"""Logs: a flood of one kind is counted rather than written, and everything else is."""

from __future__ import annotations

import logging

import pytest

from tensoryard import logs


@pytest.fixture
def said(caplog):
    """Says a line at a time of the test's; returns what has been written so far."""
    log = logs.logger("tensoryard.test")

    def say(text, *args, at=0.0, level=logging.WARNING):
        record = log.makeRecord(log.name, level, __file__, 1, text, args, None)
        record.created = at
        log.handle(record)
        return [each.getMessage() for each in caplog.records]

    return say


def test_a_flood_is_counted(said):
    """Twenty of a kind a minute; then none, until the next minute's first says how many there were."""
    for number in range(100):
        written = said("trouble %d", number, at=number / 10)
    assert written == [f"trouble {number}" for number in range(logs.LINES)]
    assert said("trouble %d", 7, at=60.0)[-1] == "trouble 7 (and 80 more of these, not written)"
    assert said("trouble %d", 8, at=61.0)[-1] == "trouble 8"


def test_kinds_do_not_hold_each_other_back(said):
    """Another text, another logger, and what is no trouble is written all the same."""
    for _ in range(50):
        said("flood")
    assert said("rare")[-1] == "rare"
    assert said("flood", level=logging.INFO)[-1] == "flood"


def test_a_clock_that_jumps_back_silences_nobody(said):
    """The minute begins anew."""
    for _ in range(50):
        said("flood", at=1000.0)
    assert said("flood", at=10.0)[-1] == "flood (and 30 more of these, not written)"


def test_kinds_are_forgotten_before_they_are_too_many(said):
    """Texts are constants; where one is not, nothing grows without end."""
    for number in range(3000):
        said(f"text {number}")
    assert len(logs._ration._kinds) <= logs._MAX_KINDS


def test_a_logger_has_its_ration_once():
    """Asking for it again adds nothing."""
    assert [logs.logger("tensoryard.test").filters.count(logs._ration) for _ in range(3)] == [1, 1, 1]
