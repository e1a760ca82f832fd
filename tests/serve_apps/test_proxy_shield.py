"""Ray Serve's proxy in front of a router that dies: every kind of death, played by a small ASGI app."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from serve_apps import proxy_shield
from serve_apps.naming import PROXY_ENVIRONMENT
from serve_apps.proxy_shield import ProxyShield

JSON = [(b"content-type", b"application/json")]
PLAIN = [(b"content-type", b"text/plain")]
SSE = [(b"content-type", b"text/event-stream")]


def start(status: int, headers: list[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def part(text: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": text, "more_body": more}


class Proxy:
    """One list of messages an attempt; it reads the whole body first, as a router does."""

    def __init__(self, *attempts: list[Message]) -> None:
        self.attempts = list(attempts)
        self.bodies: list[bytes] = []
        self.read_body = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", self.read_body
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        assert scope["path"] == "/v1/completions"
        scope["path"] = "changed by the proxy"
        for message in self.attempts.pop(0):
            await send(message)


def post(proxy: Callable[..., Awaitable[None]], content: Any = b'{"a": 1}', path: str = "/v1/completions") -> Any:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(ProxyShield(proxy, (0.0, 0.0)))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
            return await client.post(path, content=content)

    return asyncio.run(run())


GOOD = [start(200, JSON), part(b'{"ok": true}')]


@pytest.mark.parametrize(
    "death",
    [
        [],
        [start(503, PLAIN), part(b"no replica")],
        [start(404, PLAIN), part(b"no route")],
        [start(200, JSON)],
    ],
)
def test_a_request_is_sent_again_while_nothing_was_delivered(death: list[Message]) -> None:
    proxy = Proxy(death, death, GOOD)
    answer = post(proxy)
    assert (answer.status_code, answer.json()) == (200, {"ok": True})
    assert proxy.bodies == [b'{"a": 1}'] * 3


def test_a_router_that_stays_away_is_a_typed_503() -> None:
    answer = post(Proxy([], [], []))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "router_lost"
    assert "retry-after" in answer.headers


def test_the_routers_own_errors_pass() -> None:
    told = [start(503, JSON), part(b'{"error": {"code": "no_replica"}}')]
    proxy = Proxy(told)
    assert post(proxy).json()["error"]["code"] == "no_replica"
    assert len(proxy.bodies) == 1


def test_a_stream_that_is_cut_off_ends_with_a_typed_error() -> None:
    proxy = Proxy([start(200, SSE), part(b"data: {}\n\n", more=True)])
    lines = [line for line in post(proxy).text.split("\n") if line]
    assert lines[0] == "data: {}"
    assert json.loads(lines[1].removeprefix("data: "))["error"]["code"] == "router_lost"
    assert lines[2] == "data: [DONE]"
    assert len(proxy.bodies) == 1


def test_a_body_that_no_setting_allows_is_stopped_by_its_declared_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_shield, "LARGEST_BODY_BYTES", 5)
    proxy = Proxy(GOOD)
    answer = post(proxy, b"123456")
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert proxy.bodies == []


def test_a_body_without_a_length_is_stopped_where_it_grows_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_shield, "LARGEST_BODY_BYTES", 5)
    read = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"ab"

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue

    answer = post(proxy, parts())
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert read == 3


def test_a_client_that_left_gets_no_second_attempt() -> None:
    attempts = 0

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal attempts
        attempts += 1
        while (await receive())["type"] != "http.disconnect":
            continue

    async def run() -> list[Message]:
        coming: list[Message] = [{"type": "http.request", "body": b"x"}, {"type": "http.disconnect"}]
        sent: list[Message] = []

        async def receive() -> Message:
            return coming.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        await ProxyShield(proxy)({"type": "http", "path": "/v1/models", "headers": []}, receive, send)
        return sent

    assert asyncio.run(run()) == []
    assert attempts == 1


def test_other_paths_are_left_alone() -> None:
    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(500, PLAIN))
        await send(part(b"theirs"))

    answer = post(proxy, path="/other")
    assert (answer.status_code, answer.text) == (500, "theirs")


def test_serve_finds_it_by_its_name_and_takes_it() -> None:
    from ray.serve._private.http_util import validate_http_proxy_callback_return
    from ray.serve._private.utils import call_function_from_import_path

    [path] = PROXY_ENVIRONMENT.values()
    [middleware] = validate_http_proxy_callback_return(call_function_from_import_path(path))
    assert middleware.cls is ProxyShield
