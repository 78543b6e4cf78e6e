"""A process that runs the contenders of one module and times them, as it is told through a pipe. Ends at end of file.

`python -m tensoryard.benchmarks.host MODULE READ_FD WRITE_FD`; `house.py` is at the other end. A message is a line of
JSON: what to do (`start`, `measure`, `notes`) with its arguments.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from .contenders.base import Contender, NotHereError
from .works import (
    FLIGHT_COUNT,
    IN_FLIGHT,
    STREAMS,
    TOKENS,
    WORKS,
    Letter,
    Work,
    is_filled,
    page_sum,
    small_messages,
    token_of,
)


class WrongAnswerError(Exception):
    """A contender answered something else than it was asked for."""


class Timing:
    """The samples of one contender at one work: as many as wanted, as long as there is time; two at least.

    Before them comes one that does not count: after a pause caches are cold, and the first time ever memory is new.
    """

    def __init__(self, samples: int, budget_s: float) -> None:
        self.samples: list[float] = []
        self._cold = True
        self._wanted = samples
        self._until = time.perf_counter() + budget_s

    def goes_on(self) -> bool:
        """Whether another sample is to be taken."""
        if self.samples and self._cold:
            self._cold = False
            self.samples.clear()
        taken = len(self.samples)
        return taken < self._wanted and (taken < min(2, self._wanted) or time.perf_counter() < self._until)

    def take(self, work: Callable[[], Any]) -> Any:
        """Time one call, in milliseconds; its result is the caller's to check."""
        began = time.perf_counter()
        result = work()
        self.samples.append((time.perf_counter() - began) * 1e3)
        return result


class Measure:
    """Does one kind of work with a contender, and checks every answer outside the timed part."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._letters: dict[int, Letter] = {}

    def run(self, work: Work, samples: int, budget_s: float, seed: int) -> list[float]:
        """The samples: milliseconds, or per second for a rate. Raises WrongAnswerError."""
        timing = Timing(samples, budget_s)
        getattr(self, f"_{work.kind}")(work, timing, seed)
        return timing.samples

    def _letter(self, nbytes: int, seed: int) -> Letter:
        if nbytes not in self._letters:
            self._letters[nbytes] = Letter(self._contender.borrow(nbytes), seed)
        return self._letters[nbytes]

    def _echo(self, _work: Work, timing: Timing, seed: int) -> None:
        messages = iter(small_messages(10_000, seed))
        while timing.goes_on():
            message = next(messages)
            answer = timing.take(lambda m=message: self._contender.echo(m))
            _require(answer == message, "echo", answer, message)

    def _flight(self, _work: Work, timing: Timing, seed: int) -> None:
        """The first, which does not count, is small and tells how many requests fill a part of a second."""
        count = 4 * IN_FLIGHT
        while timing.goes_on():
            seed += 1
            messages = small_messages(count, seed)
            answers = timing.take(lambda m=messages: self._contender.flight(m, IN_FLIGHT))
            _require(list(answers) == messages, "flight", len(answers), count)
            rate = timing.samples[-1] = count / timing.samples[-1] * 1e3
            count = max(4 * IN_FLIGHT, min(FLIGHT_COUNT, int(rate * 0.3)))

    def _read(self, work: Work, timing: Timing, seed: int) -> None:
        letter = self._letter(work.nbytes, seed)
        while timing.goes_on():
            letter.change()
            answer = timing.take(lambda: self._contender.read(letter.array))
            found = answer if isinstance(answer, int) else page_sum(answer)
            _require(found == letter.sum, "read", found, letter.sum)

    def _shape(self, work: Work, timing: Timing, seed: int) -> None:
        letter = self._letter(work.nbytes, seed)
        while timing.goes_on():
            answer = timing.take(lambda: self._contender.shape(letter.array))
            _require(answer == work.nbytes, "shape", answer, work.nbytes)

    def _make(self, work: Work, timing: Timing, seed: int) -> None:
        """The caller reads a byte of every page too: what lies in no memory yet has not arrived."""
        while timing.goes_on():
            seed += 1
            made, _ = timing.take(lambda s=seed: _read_whole(self._contender.make(work.nbytes, s)))
            _require(is_filled(made, work.nbytes, seed), "make", made.nbytes, work.nbytes)
            del made

    def _stream(self, _work: Work, timing: Timing, _seed: int) -> None:
        wanted = [[token_of(stream, position) for position in range(TOKENS)] for stream in range(STREAMS)]
        while timing.goes_on():
            came = timing.take(lambda: self._contender.stream(STREAMS, TOKENS))
            _require(came == wanted, "stream", sum(map(len, came)), STREAMS * TOKENS)
            timing.samples[-1] = STREAMS * TOKENS / timing.samples[-1] * 1e3


def _read_whole(made: Any) -> tuple[Any, int]:
    return made, page_sum(made)


def _require(right: bool, kind: str, got: object, wanted: object) -> None:
    if not right:
        raise WrongAnswerError(f"{kind}: {got!r:.80} came where {wanted!r:.80} was due")


class Host:
    """Answers what `house.py` asks."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._started: dict[str, Measure] = {}
        self._contenders: list[Contender] = []

    def start(self, names: list[str]) -> dict[str, Any]:
        """Start these; by name what each cannot do, or why it is not here."""
        try:
            made = importlib.import_module(f"{__package__}.contenders.{self._module}").make()
        except ImportError as error:
            return {name: {"absent": f"not installed: {error}"} for name in names}
        return {contender.name: self._start(contender) for contender in made if contender.name in names}

    def _start(self, contender: Contender) -> dict[str, Any]:
        self._contenders.append(contender)
        try:
            contender.start()
        except (NotHereError, ImportError) as error:
            return {"absent": str(error)}
        except Exception as error:
            traceback.print_exc()
            return {"absent": _told(error)}
        self._started[contender.name] = Measure(contender)
        gc.collect()
        return {"cannot": {work.name: told for work in WORKS.values() if (told := contender.refuses(work))}}

    def measure(self, contender: str, work: str, samples: int, budget_s: float, seed: int) -> dict[str, Any]:
        """The samples, or what went wrong."""
        try:
            return {"samples": self._started[contender].run(WORKS[work], samples, budget_s, seed)}
        except Exception as error:
            traceback.print_exc()
            return {"failed": _told(error)}

    def notes(self, contender: str) -> dict[str, Any]:
        """What the contender knows of its last answer."""
        return self._started[contender]._contender.notes()  # noqa: SLF001 - this module's own class

    def stop(self) -> dict[str, Any]:
        """Stop what was started, the last first."""
        while self._contenders:
            try:
                self._contenders.pop().stop()
            except Exception:
                traceback.print_exc()
        return {}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def main() -> None:
    """Serve the pipe until it ends."""
    module, read_fd, write_fd = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the house's to act on
    os.set_inheritable(read_fd, False)
    os.set_inheritable(write_fd, False)
    host = Host(module)
    with os.fdopen(read_fd) as asked, os.fdopen(write_fd, "w", buffering=1) as answers:
        try:
            for line in asked:
                message = json.loads(line)
                answer = getattr(host, message.pop("do"))(**message)
                answers.write(json.dumps(answer) + "\n")
        finally:
            host.stop()


if __name__ == "__main__":
    main()
