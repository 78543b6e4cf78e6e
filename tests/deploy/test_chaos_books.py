"""The books of chaos: whatever is lost, wrong, doubled or unexpected is found, and nothing else is."""

from __future__ import annotations

import random

import pytest

from tensoryard.deploy.chaos_books import EXCUSED, FINISHED, LOST, MAX_TOLD, MAY_END, WRONG, Books


def honest_run(seed: int, requests: int = 300) -> list[tuple]:
    """What clients tell when all goes well: entries of (method, arguments), interleaved."""
    rng = random.Random(seed)
    told, under_way, sent = [], [], dict.fromkeys("abc", 0)
    for _ in range(requests):
        client, manner = rng.choice("abc"), rng.choice(list(MAY_END))
        told.append(("send", (client, sent[client]), {"kind": "k", "manner": manner}))
        under_way.append((client, sent[client], manner))
        sent[client] += 1
        while under_way and (len(under_way) > 8 or rng.random() < 0.4):
            client, number, manner = under_way.pop(rng.randrange(len(under_way)))
            outcome = rng.choice(sorted(MAY_END[manner] | (EXCUSED if rng.random() < 0.1 else set())))
            told.append(("end", (client, number, outcome), {"took_s": rng.random()}))
    told += [("end", (client, number, min(MAY_END[manner])), {}) for client, number, manner in under_way]
    return told


def kept(told) -> Books:
    """Books of what was told, closed."""
    books = Books()
    for method, args, kwargs in told:
        getattr(books, method)(*args, **kwargs)
    for client in "abc":
        books.client_left(client)
    books.check_balance()
    return books


@pytest.mark.parametrize("seed", range(20))
def test_an_honest_run_balances(seed):
    """Every request one answer that it may have: no violation, and sent = answered."""
    books = kept(honest_run(seed))
    assert books.violations == []
    assert (books.sent, books.answered, books.orphaned, books.under_way) == (300, 300, 0, 0)
    assert sum(books.outcomes.values()) == books.kinds["k"] == 300
    assert 0 < books.slowest_s < 1


@pytest.mark.parametrize("seed", range(20))
def test_a_lost_answer_is_found(seed):
    """Any one answer taken away: that request is named, and the run does not balance by accident."""
    told = honest_run(seed)
    ends = [place for place, entry in enumerate(told) if entry[0] == "end"]
    _, (client, number, _), _ = told.pop(random.Random(seed).choice(ends))
    books = kept(told)
    assert books.violations == [f"request {number} of {client} got no answer: its client ended without one"]
    assert (books.sent, books.answered, books.outcomes[LOST]) == (300, 299, 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_doubled_answer_is_found(seed):
    """Any one answer twice, at once or later: that request is named, and it counts once."""
    rng, told = random.Random(seed), honest_run(seed)
    place = rng.choice([place for place, entry in enumerate(told) if entry[0] == "end"])
    told.insert(rng.randint(place + 1, len(told)), told[place])
    client, number, _ = told[place][1]
    books = kept(told)
    assert books.violations == [f"request {number} of {client} was answered twice"]
    assert books.answered == books.sent == 300


@pytest.mark.parametrize("seed", range(20))
def test_a_wrong_answer_is_found(seed):
    """Any one answer wrong: that request is named, with what is wrong."""
    told = honest_run(seed)
    place = random.Random(seed).choice([place for place, entry in enumerate(told) if entry[0] == "end"])
    client, number, _ = told[place][1]
    told[place] = ("end", (client, number, WRONG), {"detail": "two values differ"})
    books = kept(told)
    assert books.violations == [f"request {number} of {client} got a wrong answer: two values differ"]


@pytest.mark.parametrize(
    ("manner", "outcome", "allowed"),
    [
        ("plain", FINISHED, True),
        ("plain", "cancelled", False),
        ("plain", "expired", False),
        ("plain", "worker_lost", True),
        ("plain", "coordinator_lost", True),
        ("plain", "overloaded", True),
        ("plain", "pool_exhausted", True),
        ("plain", "poison_request", True),
        ("plain", "pipeline_error", False),
        ("plain", "stale_handle", False),
        ("plain", "undecodable", False),
        ("plain", "unknown_model", False),
        ("plain", "deployment_unhealthy", False),
        ("plain", "reply_timeout", False),
        ("plain", "a word that there is not", False),
        ("cancel", "cancelled", True),
        ("cancel", FINISHED, True),
        ("cancel", "expired", False),
        ("deadline", "expired", True),
        ("deadline", "cancelled", False),
        ("poison", "poison_request", True),
        ("poison", FINISHED, False),
    ],
)
def test_which_ends_are_allowed(manner, outcome, allowed):
    """What a request may end with depends on what was done with it; silence and reused memory are never excused."""
    books = Books()
    books.send("a", 0, kind="k", manner=manner)
    books.end("a", 0, outcome, detail="why")
    assert books.violations == ([] if allowed else [f"request 0 of a ({manner}) ended as {outcome}: why"])


def test_what_a_killed_client_had_under_way_is_owed_to_nobody():
    """Its requests are orphans, no losses; an answer that it had told before counts."""
    books = Books()
    for number in range(3):
        books.send("a", number, kind="k")
    books.end("a", 1, FINISHED)
    books.client_killed("a")
    books.check_balance()
    assert (books.sent, books.answered, books.orphaned, books.violations) == (3, 1, 2, [])


def test_an_answer_without_a_request_is_found():
    """Of a number that was never sent, or a client that never was."""
    books = Books()
    books.send("a", 0, kind="k")
    for client, number in (("a", 1), ("b", 0), ("a", -1)):
        books.end(client, number, FINISHED)
    assert books.violations == [
        "request 1 of a was answered and never sent",
        "request 0 of b was answered and never sent",
        "request -1 of a was answered and never sent",
    ]


def test_a_second_answer_that_the_client_saw_itself():
    """What the wire brought once more is a violation, though the caller was not told of it."""
    books = Books()
    books.send("a", 0, kind="k")
    books.end("a", 0, FINISHED)
    books.answer_again("a", 0, detail="FINAL 0")
    assert books.violations == ["request 0 of a was answered twice: FINAL 0"]


def test_a_gap_in_the_numbers_is_found():
    """Books that miss an entry of their own do not pass for good ones."""
    books = Books()
    books.send("a", 0, kind="k")
    books.send("a", 2, kind="k")
    assert "sent request 2 where 1 was due" in books.violations[0]


def test_what_does_not_add_up_is_found():
    """Requests under way at the end, or sums that differ."""
    books = Books()
    books.send("a", 0, kind="k")
    books.check_balance()
    assert "1 requests were sent, 0 answered" in books.violations[0]
    books = Books()
    books.sent = 1
    books.check_balance()
    assert "does not add up" in books.violations[0]


def test_violations_are_counted_and_the_first_are_told():
    """However much goes wrong, the books stay small."""
    books = Books()
    for number in range(MAX_TOLD + 50):
        books.violated(str(number))
    assert (len(books.violations), books.violation_count) == (MAX_TOLD, MAX_TOLD + 50)


def test_which_requests_are_under_way():
    """By client, without those that have ended."""
    books = Books()
    for number in range(4):
        books.send("a", number, kind="k")
    books.end("a", 2, FINISHED)
    assert books.numbers_under_way("a") == [0, 1, 3]
    assert books.numbers_under_way("nobody") == []
    assert books.under_way == 3
