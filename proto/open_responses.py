"""An Open Responses request: a body and the id it is known by, read from an HTTP request.

The HTTP gateway makes these; `open_responses_convert.py` turns them into requests of ours. Nothing here opens a
connection.

Source: `max.interfaces.request.open_responses` (26.3), `max.pipelines.request` (26.7).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from ..errors import InvalidRequest
from .open_responses_body import OpenResponsesRequestBody, read_json
from .open_responses_messages import convert
from .request import RequestID

#: Most images of one request that are fetched from the web.
MAX_FETCHED_IMAGES = 32


class OpenResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A body and the id it is known by. Hashable where the body is: with a text as input."""

    request_id: RequestID
    body: OpenResponsesRequestBody

    def __post_init__(self) -> None:
        if not isinstance(self.request_id, RequestID) or not isinstance(self.body, OpenResponsesRequestBody):
            raise InvalidRequest("an OpenResponsesRequest has a RequestID and an OpenResponsesRequestBody")

    @classmethod
    async def from_fastapi_request(cls, request: Any) -> OpenResponsesRequest:
        """The request behind an HTTP request, whose id the middleware left in `request.state.request_id`.

        Web addresses of images in user messages are replaced by what `request.app.state.media_data_uri_fetcher` makes
        of them (`async (url) -> data URI`): which hosts may be asked, and for how much, is that function's to decide.

        Raises InvalidRequest (a ValueError) without an id, for a body that is none, and for a web address where there
        is no such function.
        """
        request_id = getattr(request.state, "request_id", None)
        if not request_id:
            raise InvalidRequest("the HTTP request has no request id: a middleware must set request.state.request_id")
        body = read_json(await request.body())
        app = getattr(request, "app", None)
        await _fetch_images(body, getattr(getattr(app, "state", None), "media_data_uri_fetcher", None))
        return cls(
            request_id=request_id if isinstance(request_id, RequestID) else RequestID(request_id),
            body=convert(body, OpenResponsesRequestBody, what="the body of the request"),
        )

    def __str__(self) -> str:
        return str(self.request_id)


async def _fetch_images(body: dict[str, Any], fetch: Callable[[str], Awaitable[str]] | None) -> None:
    parts = _web_images(body)
    if not parts:
        return
    # The texts below name no address: it may hold a secret, and errors are logged.
    if fetch is None:
        raise InvalidRequest("an `image_url` is a data: URI here; images are not fetched from the web")
    if len(parts) > MAX_FETCHED_IMAGES:
        raise InvalidRequest(f"at most {MAX_FETCHED_IMAGES} images are fetched from the web, not {len(parts)}")
    for part in parts:
        part["image_url"] = await fetch(part["image_url"])


def _web_images(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The image parts of user messages with a web address; what is no such thing is left for the checks to name."""
    messages = body.get("input")
    contents = (
        message.get("content")
        for message in (messages if isinstance(messages, list) else ())
        if isinstance(message, dict) and message.get("role", "user") == "user"
    )
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return [part for part in parts if isinstance(part, dict) and _is_web_image(part)]


def _is_web_image(part: dict[str, Any]) -> bool:
    url = part.get("image_url")
    is_web = isinstance(url, str) and url[:8].lower().startswith(("http://", "https://"))
    return part.get("type") == "input_image" and is_web
