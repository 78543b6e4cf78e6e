"""Open Responses requests: how one is read from HTTP, and what it never fetches."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.open_responses import MAX_FETCHED_IMAGES, OpenResponsesRequest
from tensoryard.proto.open_responses_body import (
    OpenResponsesRequestBody,
)
from tensoryard.proto.request import RequestID

DATA_URI = "data:image/png;base64,AAAA"


def body_of(**fields):
    return OpenResponsesRequestBody(**{"model": "m", "input": "text", **fields})


def test_request():
    """Prints as its id, hashes with a text as input, travels."""
    request = OpenResponsesRequest(request_id=RequestID("r"), body=body_of())
    assert str(request) == "r"
    assert len({request, OpenResponsesRequest(request_id=RequestID("r"), body=body_of())}) == 1
    assert decode_body(encode_body(request).frames, OpenResponsesRequest) == request
    with pytest.raises(TypeError):
        hash(OpenResponsesRequest(request_id=RequestID("r"), body=body_of(input=[])))
    with pytest.raises(AttributeError):
        request.body = None


@pytest.mark.parametrize("fields", [{"request_id": "r"}, {"body": {}}])
def test_request_is_checked(fields):
    """A bare string is no id, a dict no body."""
    with pytest.raises(InvalidRequest):
        OpenResponsesRequest(**{"request_id": RequestID("r"), "body": body_of(), **fields})


def test_weakness_12_client_dictionaries_stay_dictionaries():
    """A tool's schema that looks like an array or a segment is only a dict."""
    parameters = {"__shm__": True, "name": "other", "shape": [1], "dtype": "<f4", "__np__": True, "data": "x"}
    body = body_of(tools=[{"type": "function", "name": "f", "parameters": parameters}])
    assert decode_body(encode_body(body).frames, OpenResponsesRequestBody).tools[0].parameters == parameters


class HTTP:
    """As much of an HTTP request as is looked at."""

    def __init__(self, body, request_id="r", fetcher=None):
        self._body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.state = SimpleNamespace() if request_id is None else SimpleNamespace(request_id=request_id)
        state = SimpleNamespace() if fetcher is None else SimpleNamespace(media_data_uri_fetcher=fetcher)
        self.app = SimpleNamespace(state=state)

    async def body(self):
        return self._body


def read(*args, **kwargs):
    return asyncio.run(OpenResponsesRequest.from_fastapi_request(HTTP(*args, **kwargs)))


def with_images(*urls, role="user"):
    parts = [{"type": "input_image", "image_url": url} for url in urls]
    return {"model": "m", "input": [{"role": role, "content": parts}]}


def test_http_request():
    """The id comes from the middleware, as text or RequestID."""
    assert read({"model": "m", "input": "x"}).request_id == RequestID("r")
    assert read({"model": "m", "input": "x"}, request_id=RequestID("q")).request_id == RequestID("q")
    assert read({"model": "m", "input": "x"}).body == body_of(input="x")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        {"model": "m", "input": [5]},
        {"model": "m", "input": 5},
        {"model": "m", "input": [{"content": [5]}]},
    ],
)
def test_weakness_39_http_bodies_that_are_wrong(body):
    """Each is an InvalidRequest."""
    with pytest.raises(InvalidRequest):
        read(body)


def test_http_request_without_id():
    """An input error that says what is missing."""
    with pytest.raises(InvalidRequest, match="request_id"):
        read({"model": "m", "input": "x"}, request_id=None)


def test_web_images_are_fetched_by_the_application():
    """Web addresses are replaced by what the fetcher makes of them; the rest stays."""
    asked = []

    async def fetch(url):
        asked.append(url)
        return f"data:image/png;base64,{len(asked)}"

    request = read(with_images("https://host/a.png", DATA_URI, "HTTP://host/b.png"), fetcher=fetch)
    assert asked == ["https://host/a.png", "HTTP://host/b.png"]
    urls = [part.image_url for part in request.body.input[0].content]
    assert urls == ["data:image/png;base64,1", DATA_URI, "data:image/png;base64,2"]


def test_weakness_41_nothing_is_downloaded_here():
    """Without a fetcher a web address is refused, and not quoted."""
    with pytest.raises(InvalidRequest, match="not fetched") as caught:
        read(with_images("https://host/secret"))
    assert "secret" not in str(caught.value)


def test_weakness_41_fetches_are_bounded():
    """More images than the bound are refused before the first is fetched."""

    async def fetch(url):
        raise AssertionError

    with pytest.raises(InvalidRequest, match=str(MAX_FETCHED_IMAGES)):
        read(with_images(*["https://host/a.png"] * (MAX_FETCHED_IMAGES + 1)), fetcher=fetch)


def test_a_fetcher_must_answer_with_data():
    """What it returns is checked like a caller's address."""

    async def fetch(url):
        return "file:///etc/passwd"

    with pytest.raises(InvalidRequest):
        read(with_images("https://host/a.png"), fetcher=fetch)


def test_only_user_messages_are_fetched_for():
    """An image in another message is an error of its own."""
    with pytest.raises(InvalidRequest, match="input_text"):
        read(with_images("https://host/a.png", role="system"))
