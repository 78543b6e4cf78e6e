"""The pure machines, measured small: each stage of a token and of a small request has its cost."""

from __future__ import annotations

from tensoryard.benchmarks import stages


def test_each_stage_of_a_token_has_its_cost(monkeypatch):
    """A run through worker, coordinator, client and reader brings every token of every stream, and times each."""
    monkeypatch.setattr(stages, "STREAMS", 3)
    monkeypatch.setattr(stages, "TOKENS", 4)
    found = stages.tokens()
    assert set(found) == {"worker", "coordinator", "client", "reading"}
    assert all(cost > 0 for cost in found.values())


def test_each_stage_of_a_small_request_has_its_cost(monkeypatch):
    """Every request is handed out and answered, and both are timed."""
    monkeypatch.setattr(stages, "REQUESTS", 3)
    monkeypatch.setattr(stages, "TOKENS", 2)
    found = stages.requests()
    assert set(found) == {"coordinator, submit", "coordinator, answer"}
    assert all(cost > 0 for cost in found.values())


def test_the_least_of_some_rounds_is_told(monkeypatch, capsys):
    """What is printed names every stage."""
    monkeypatch.setattr(stages, "STREAMS", 2)
    monkeypatch.setattr(stages, "REQUESTS", 2)
    monkeypatch.setattr(stages, "TOKENS", 2)
    monkeypatch.setattr("sys.argv", ["stages", "--rounds", "1"])
    stages.main()
    text = capsys.readouterr().out
    assert "token of 2 streams" in text
    assert "coordinator, answer" in text
