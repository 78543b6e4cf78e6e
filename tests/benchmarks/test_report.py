"""Tables and picture say what the results say; documents get them between their markers."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tensoryard.benchmarks import goals, plot, report, results
from tensoryard.benchmarks.contenders import TITLES

ROOT = Path(__file__).parents[2]
FIGURES = {
    "small": {"tensoryard": 0.2, "mosec": 0.1, "seqpacket": 0.02},
    "flight": {"tensoryard": 20_000, "mosec": 40_000},
    "read-64MiB": {"tensoryard": 9.0, "tensoryard-lent": 0.5, "memcpy": 8.0, "zeromq-direct": 180.0},
}


def test_the_table_has_a_row_for_each_and_ratios_to_ours(made_up):
    """Medians with units; in brackets how many times ours it is, round by round."""
    table = report.as_markdown(made_up(FIGURES))
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    assert {TITLES[name] for name in ("tensoryard", "tensoryard-lent", "mosec", "memcpy")} <= set(rows)
    assert "0.10 ms (0.5 x)" in rows[TITLES["mosec"]]
    assert "40k/s (2 x)" in rows[TITLES["mosec"]]
    assert "180 ms (20 x)" in rows[TITLES["zeromq-direct"]]
    assert " x)" not in rows[TITLES["tensoryard-lent"]]


def test_the_table_says_who_is_not_here(made_up):
    """An absent peer is never silently missing."""
    assert "ray-serve (not installed)" in report.as_markdown(made_up(FIGURES, absent={"ray-serve": "not installed"}))
    text = report.as_text(made_up(FIGURES, absent={"ray-serve": "not installed"}))
    assert "not here: ray-serve: not installed" in text


def test_the_text_tells_of_failures_and_not_of_what_was_known(made_up):
    """A work that a contender failed at is named with its reason; one that it never does is not."""
    cannot = {"small": {"litserve": "OSError: it broke", "segments": "nothing it does"}}
    text = report.as_text(made_up(FIGURES, cannot=cannot))
    assert "OSError: it broke" in text
    assert "nothing it does" not in text


def test_a_table_replaces_what_is_between_its_markers():
    """All else stays, and again is harmless."""
    text = "above\n<!-- benchmark: begin -->\nold\n<!-- benchmark: end -->\nbelow\n"
    once = report.insert(text, "new\n", "benchmark")
    assert once == "above\n<!-- benchmark: begin -->\nnew\n<!-- benchmark: end -->\nbelow\n"
    assert report.insert(once, "new\n", "benchmark") == once


def test_a_document_without_markers_is_left_alone():
    """There is an error, not a guess."""
    with pytest.raises(ValueError, match="no place for goals"):
        report.insert("nothing here", "table", "goals")


def test_the_documents_have_the_table_of_the_kept_run():
    """README.md and docs/performance.md show what docs/benchmarks/results.json holds: nobody writes figures by hand."""
    found = results.read(ROOT / "docs/benchmarks/results.json")
    for document, tables in report.published(found, goals.as_markdown(goals.goals(found))).items():
        text = (ROOT / document).read_text()
        for name, table in tables.items():
            assert report.insert(text, table, name) == text
    assert (ROOT / "docs/benchmarks/plot.svg").read_text() == plot.svg(found)


def test_the_picture_has_a_bar_for_each(made_up):
    """It is well-formed, and a longer bar is a larger figure."""
    root = ET.fromstring(plot.svg(made_up(FIGURES)))
    bars = [bar for bar in root.iter("{http://www.w3.org/2000/svg}rect") if bar.get("height") == "16"]
    assert len(bars) == sum(map(len, FIGURES.values()))
    lent, plain = float(bars[6].get("width")), float(bars[5].get("width"))
    assert 0 < lent < plain


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "ms", "12 µs"),
        (0.00123, "ms", "1.2 µs"),
        (0.123, "ms", "0.12 ms"),
        (12.34, "ms", "12.3 ms"),
        (123.4, "ms", "123 ms"),
        (6789, "/s", "6.8k/s"),
        (65432, "/s", "65k/s"),
    ],
)
def test_quantities_have_few_digits(value, unit, text):
    """No more than are known."""
    assert report.quantity(value, unit) == text
