"""The asynchronous client: the verbs of `client.py`, to await.

The session's thread does the talking; here its replies become awaitable in the caller's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest, ReplyTimeout
from ..proto.audio import AudioGenerationOutput, AudioGenerationRequest
from ..proto.embeddings import EmbeddingsRequest, input_kind
from ..proto.generation import GenerationOutput
from ..proto.lora import LoRAResponse
from ..proto.request import RequestID
from ..proto.status import ClusterStatus
from ..proto.text_output import TextGenerationOutput
from ..settings import Settings
from .client import Client, connect, pixel_request
from .ledger import CopyLedger
from .reply import Reply
from .retry import Retry
from .text import text_request


async def connect_async(
    address: str | None = None,
    *,
    timeout_s: float = 10.0,
    settings: Settings | None = None,
    retry: Retry | bool = False,
) -> AsyncClient:
    """An `AsyncClient`; see `connect`."""
    client = await asyncio.to_thread(connect, address, timeout_s=timeout_s, settings=settings, retry=retry)
    return AsyncClient(client)


class AsyncReply:
    """A `Reply` to await: `await reply.result()`, or `async for output in reply`."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        reply.add_listener(self._on_change)

    def _on_change(self) -> None:
        """In the session's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody awaits this any more
            self._loop.call_soon_threadsafe(self._changed.set)

    @property
    def request_id(self) -> RequestID:
        """The request this answers."""
        return self._reply.request_id

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self._reply.done

    @property
    def outcome(self) -> str | None:
        """See `Reply.outcome`."""
        return self._reply.outcome

    @property
    def ledger(self) -> CopyLedger:
        """What became of the request's bytes."""
        return self._reply.ledger

    def cancel(self) -> None:
        """Say that the answer is not wanted."""
        self._reply.cancel()

    def collect(self) -> None:
        """See `Reply.collect`."""
        self._reply.collect()

    async def result(self, timeout_s: float | None = None) -> Any:
        """The task's output; see `Reply.result`. Cancelling this await does not cancel the request."""
        self._reply.collect()
        try:
            async with asyncio.timeout(timeout_s):
                while not self._reply.done:
                    await self._next_change()
        except TimeoutError:
            raise ReplyTimeout(
                f"no answer within {timeout_s} s; it still runs", request_id=str(self.request_id)
            ) from None
        return self._reply.result(timeout_s=0)

    async def _next_change(self) -> None:
        self._changed.clear()
        if not self._reply.done:
            await self._changed.wait()

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Each output when it comes, the last one included."""
        position = 0
        while True:
            self._changed.clear()
            outputs, done = self._reply.outputs_from(position, 1)
            for output in outputs:
                position += 1
                yield output
            if done:
                return
            if not outputs:  # else somebody may have cleared it while the caller had them
                await self._changed.wait()


class AsyncClient:
    """Sends work to a cluster from an event loop; use with `async with`, or call `close`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def address(self) -> str:
        """Where the coordinator is."""
        return self._client.address

    async def submit(
        self,
        request: Any,
        *,
        deadline_s: float | None = None,
        priority: int = 0,
        retry: Retry | bool | None = None,
    ) -> AsyncReply:
        """See `Client.submit`; encoding runs in a thread, since it may copy or wait for memory."""
        connection = self._client._connection  # noqa: SLF001 - both stand on it
        wish = connection.wish(request, deadline_s=deadline_s, priority=priority, retry=retry)
        while (wait_s := connection.wait_s(wish)) > 0:  # noqa: ASYNC110 - it waits for a time, not for an event
            await asyncio.sleep(wait_s)
        return AsyncReply(await asyncio.to_thread(connection.send, wish))

    async def map(self, requests: Iterable[Any], *, max_in_flight: int = 64, **how: Any) -> AsyncIterator[Any]:
        """See `Client.map`."""
        if max_in_flight < 1:
            raise InvalidRequest(f"`max_in_flight` is at least 1, not {max_in_flight}")
        under_way: deque[AsyncReply] = deque()
        try:
            for request in requests:
                under_way.append(await self.submit(request, **how))
                under_way[-1].collect()
                if len(under_way) >= max_in_flight:
                    yield await _first(under_way)
            while under_way:
                yield await _first(under_way)
        finally:
            for reply in under_way:
                reply.cancel()

    async def embed(self, inputs: Any, *, model: str, **options: Any) -> npt.NDArray[Any]:
        """See `Client.embed`."""
        single = input_kind(inputs) in ("text", "tokens", "array")
        requests = (EmbeddingsRequest(model=model, input=i, options=options) for i in ([inputs] if single else inputs))
        found = [output.embeddings async for output in self.map(requests)]
        if single:
            one: npt.NDArray[Any] = found[0]
            return one
        return np.stack(found) if found[0].ndim < 2 else np.concatenate(found, axis=0)

    async def generate_pixels(self, source: Any, *, model: str, **fields: Any) -> GenerationOutput:
        """See `Client.generate_pixels`."""
        output: GenerationOutput = await (await self.submit(pixel_request(source, model, fields))).result()
        return output

    async def generate_audio(self, text: str, *, model: str, **fields: Any) -> AudioGenerationOutput:
        """See `Client.generate_audio`."""
        request = AudioGenerationRequest(model=model, input=text, **fields)
        output: AudioGenerationOutput = await (await self.submit(request)).result()
        return output

    async def generate(self, source: Any, *, model: str, **sampling: Any) -> TextGenerationOutput:
        """See `Client.generate`."""
        output: TextGenerationOutput = await (await self.submit(text_request(source, model, sampling))).result()
        return output

    async def stream(self, source: Any, *, model: str, **sampling: Any) -> AsyncIterator[TextGenerationOutput]:
        """See `Client.stream`; `async for output in client.stream(…)`. The request is sent with the first step."""
        reply = await self.submit(text_request(source, model, sampling))
        try:
            async for output in reply:
                yield output
        finally:
            reply.cancel()

    async def empty(self, shape: tuple[int, ...] | int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """See `Client.empty`."""
        return await asyncio.to_thread(self._client.empty, shape, dtype)

    async def status(self, *, timeout_s: float = 10.0) -> ClusterStatus:
        """See `Client.status`."""
        return await asyncio.to_thread(self._client.status, timeout_s=timeout_s)

    async def story(self, request_id: RequestID | str, *, timeout_s: float = 10.0) -> tuple[str, ...]:
        """See `Client.story`."""
        return await asyncio.to_thread(self._client.story, request_id, timeout_s=timeout_s)

    async def load_lora(
        self, lora_name: str, lora_path: str | os.PathLike[str], *, model: str, timeout_s: float = 30.0
    ) -> LoRAResponse:
        """See `Client.load_lora`."""
        return await asyncio.to_thread(self._client.load_lora, lora_name, lora_path, model=model, timeout_s=timeout_s)

    async def unload_lora(self, lora_name: str, *, model: str = "", timeout_s: float = 30.0) -> LoRAResponse:
        """See `Client.unload_lora`."""
        return await asyncio.to_thread(self._client.unload_lora, lora_name, model=model, timeout_s=timeout_s)

    async def shutdown(self) -> None:
        """See `Client.shutdown`."""
        await asyncio.to_thread(self._client.shutdown)

    async def close(self) -> None:
        """See `Client.close`."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()


async def _first(under_way: deque[AsyncReply]) -> Any:
    """The result of the first, which stays among them while it is awaited: a cancelled await cancels it too."""
    result = await under_way[0].result()
    under_way.popleft()
    return result
