"""The Python client: `connect()` and the verbs people use, in synchronous form.

`aio.py` has the same verbs to await; both stand on `connection.py`.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from ..proto import wire
from ..proto.audio import AudioGenerationOutput, AudioGenerationRequest
from ..proto.embeddings import EmbeddingsRequest, input_kind
from ..proto.generation import GenerationOutput
from ..proto.lora import LoRAOperation, LoRARequest, LoRAResponse
from ..proto.pixels import PixelGenerationRequest
from ..proto.request import RequestID
from ..proto.status import ClusterStatus
from ..proto.text_output import TextGenerationOutput
from ..settings import Settings, from_environment
from . import lora
from .connection import Connection
from .reply import Reply
from .retry import Retry
from .text import text_request

#: A map of a list sends this part of what may be under way at once.
_GROUPS = 4


def connect(
    address: str | None = None,
    *,
    timeout_s: float = 10.0,
    settings: Settings | None = None,
    retry: Retry | bool = False,
) -> Client:
    """A client of the coordinator at `address`; None: $TENSORYARD_ADDRESS, else the one that runs on this host.

    `retry`: whether requests that were refused or lost are tried again by themselves; True for `Retry()`.

    Raises NotConnected when nobody answers within `timeout_s` seconds, VersionMismatch for another version.
    """
    policy = Retry() if retry is True else retry or None
    connection = Connection(address, settings or from_environment(), policy)
    connection.open(timeout_s)
    return Client(connection)


class Client:
    """Sends work to a cluster. Thread-safe; use as a context manager, or call `close`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def address(self) -> str:
        """Where the coordinator is."""
        return self._connection.address

    def submit(
        self,
        request: Any,
        *,
        deadline_s: float | None = None,
        priority: int = 0,
        retry: Retry | bool | None = None,
    ) -> Reply:
        """Send a request and return its reply at once.

        Arrays of 64 KiB and more go by shared-memory handle: copied once into this client's pool, or not at all when
        they come from `empty`; they must not be written to until the reply is done. `deadline_s`: seconds from now
        after which nobody wants the answer. `priority`: higher goes first, -1000 to 1000. `retry`: a policy for this
        request, or False for none; None: the client's.

        What would be refused (`Overloaded`) is not even copied: the reply says so at once, or, with a policy, this call
        waits first.

        Raises InvalidRequest, UnsupportedArray, MessageTooLarge, PoolExhausted or NotConnected at once; everything
        else comes out of the reply.
        """
        return self._connection.submit(request, deadline_s=deadline_s, priority=priority, retry=retry)

    def map(
        self,
        requests: Iterable[Any],
        *,
        max_in_flight: int = 64,
        progress: bool = False,
        **how: Any,
    ) -> Iterator[Any]:
        """The results of many requests, in order, with at most `max_in_flight` under way; requests are taken lazily.

        `progress` shows a bar (needs the extra `progress`), `how` is as for `submit`. The first error ends it; what is
        under way is cancelled. Of a list or a tuple several are sent as one message, which costs less.
        """
        if max_in_flight < 1:
            raise InvalidRequest(f"`max_in_flight` is at least 1, not {max_in_flight}")
        # Where the next request may be slow to come, none may wait for it.
        together = max(1, max_in_flight // _GROUPS) if isinstance(requests, list | tuple) else 1
        results = self._map(iter(requests), max_in_flight, together, how)
        return _with_bar(results, requests) if progress else results

    def _map(self, requests: Iterator[Any], max_in_flight: int, together: int, how: dict[str, Any]) -> Iterator[Any]:
        under_way: deque[Reply] = deque()
        try:
            for first in requests:
                self._submit_together([first, *itertools.islice(requests, together - 1)], under_way, how)
                while len(under_way) > max_in_flight - together:
                    yield _first(under_way)
            while under_way:
                yield _first(under_way)
        finally:
            for reply in under_way:
                reply.cancel()

    def _submit_together(self, requests: list[Any], under_way: deque[Reply], how: dict[str, Any]) -> None:
        """Small ones of them leave as one message: to send alone costs as much as all the rest."""
        with self._connection.together():
            for request in requests:
                under_way.append(self.submit(request, **how))
                under_way[-1].collect()  # what waits for its turn here must not wait at its worker

    def embed(self, inputs: Any, *, model: str, **options: Any) -> npt.NDArray[Any]:
        """Embeddings as one array.

        One input (a text, a list of token ids, an array): the pipeline's output as it is, often `(1, width)`. A list of
        inputs: one request each, the outputs joined along axis 0 (those of rank 1 stacked).
        """
        if input_kind(inputs) in ("text", "tokens", "array"):
            one: npt.NDArray[Any] = self.submit(_embedding(inputs, model, options)).result().embeddings
            return one
        found = [output.embeddings for output in self.map(_embedding(item, model, options) for item in inputs)]
        return np.stack(found) if found[0].ndim < 2 else np.concatenate(found, axis=0)

    def generate_pixels(self, source: Any, *, model: str, **fields: Any) -> GenerationOutput:
        """Images from a prompt (a text), an image or a list of images. `fields`: those of PixelGenerationRequest."""
        output: GenerationOutput = self.submit(pixel_request(source, model, fields)).result()
        return output

    def generate_audio(self, text: str, *, model: str, **fields: Any) -> AudioGenerationOutput:
        """Speech for a text, whole. `fields`: those of AudioGenerationRequest. To stream, submit one and iterate."""
        output: AudioGenerationOutput = self.submit(AudioGenerationRequest(model=model, input=text, **fields)).result()
        return output

    def generate(self, source: Any, *, model: str, **sampling: Any) -> TextGenerationOutput:
        """Text for a prompt (a text or token ids) or for messages, whole.

        `sampling`: fields of SamplingParams, and of TextGenerationRequest (`tools`, `logprobs`, `cache_salt`, …).
        """
        output: TextGenerationOutput = self.submit(text_request(source, model, sampling)).result()
        return output

    def stream(self, source: Any, *, model: str, **sampling: Any) -> Iterator[TextGenerationOutput]:
        """See `generate`: piece by piece, as the tokens come. Left early, the request is cancelled."""
        return _until_left(self.submit(text_request(source, model, sampling)))

    def empty(self, shape: tuple[int, ...] | int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """A writable array in shared memory: fill it, submit it, and no copy is made.

        May be filled again once the reply is done. Raises PoolExhausted when the pool stays full, NotConnected when the
        client is closed.
        """
        wanted = (shape,) if isinstance(shape, int) else tuple(shape)
        return self._connection.pool.empty(wanted, dtype, timeout_s=self._connection.settings.allocate_timeout_s)

    def status(self, *, timeout_s: float = 10.0) -> ClusterStatus:
        """What the cluster looks like now."""
        status: ClusterStatus = self._connection.ask(wire.AskStatus, ClusterStatus, timeout_s)
        return status

    def story(self, request_id: RequestID | str, *, timeout_s: float = 10.0) -> tuple[str, ...]:
        """What the coordinator saw of a request, oldest first; empty when it does not remember it."""
        question = functools.partial(wire.AskStory, request_id=str(RequestID(str(request_id))))
        story: tuple[str, ...] = self._connection.ask(question, tuple[str, ...], timeout_s)
        return story

    def load_lora(
        self, lora_name: str, lora_path: str | os.PathLike[str], *, model: str, timeout_s: float = 30.0
    ) -> LoRAResponse:
        """Load a PEFT folder as an adapter of a model, on all its workers; requests then name it as their model.

        The path is the workers' own. The answer's status says how it ended; one that is no success leaves nothing
        behind, and a worker that comes later loads it too. Again with the same path is a success.
        """
        return lora.change(self._connection, lora.load_request(lora_name, lora_path), model=model, timeout_s=timeout_s)

    def unload_lora(self, lora_name: str, *, model: str = "", timeout_s: float = 30.0) -> LoRAResponse:
        """Unload an adapter: it takes no new requests at once, and goes when those that it has have ended.

        With `model`, only if it is that model's.
        """
        request = LoRARequest(LoRAOperation.UNLOAD, lora_name)
        return lora.change(self._connection, request, model=model, timeout_s=timeout_s)

    def shutdown(self) -> None:
        """End the whole cluster: nothing new is accepted, workers finish what they hold."""
        self._connection.shutdown()

    def close(self) -> None:
        """Leave. Requests under way are cancelled; arrays already received stay good."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _first(under_way: deque[Reply]) -> Any:
    """The result of the first, which stays among them while it is waited for: a wait that is broken off cancels it."""
    result = under_way[0].result()
    under_way.popleft()
    return result


def _until_left(reply: Reply) -> Iterator[TextGenerationOutput]:
    """The outputs of a reply, which is cancelled when nobody goes on asking for them."""
    try:
        yield from reply
    finally:
        reply.cancel()


def _embedding(item: Any, model: str, options: dict[str, Any]) -> EmbeddingsRequest:
    return EmbeddingsRequest(model=model, input=item, options=options)


def pixel_request(source: Any, model: str, fields: dict[str, Any]) -> PixelGenerationRequest:
    """The request for a prompt, an image, or a list of images."""
    if isinstance(source, str):
        return PixelGenerationRequest(model=model, prompt=source, **fields)
    images = [source] if isinstance(source, np.ndarray) else list(source)
    return PixelGenerationRequest(model=model, images=images, **fields)


def _with_bar(results: Iterator[Any], requests: Iterable[Any]) -> Iterator[Any]:
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("progress=True needs tqdm: pip install 'tensoryard[progress]'") from None
    total = len(requests) if isinstance(requests, Sized) else None
    return iter(tqdm(results, total=total, unit="request"))
