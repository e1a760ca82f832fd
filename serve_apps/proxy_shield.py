"""What Ray Serve's HTTP proxy does for a request whose router died: send it again while nothing was delivered, else a
typed error. Serve itself would answer with a plain-text 500, or cut the stream off without a word. It also stops
bodies that no setting allows: Serve would read them whole and copy them to the router first.

Serve loads it where the environment of the Ray head names it (``naming.PROXY_ENVIRONMENT``).
"""

import asyncio
import logging

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.settings import LARGEST_BODY_BYTES
from serve_apps.api_errors import ApiError, declared_bytes
from serve_apps.sse import DONE, event

log = logging.getLogger(__name__)

WAITS_S = (0.5, 2.0)
"""Before the second and the third attempt: Serve notices a dead router at once and replaces it in about 3 s."""
TOO_LARGE = ApiError(413, f"the body is larger than {LARGEST_BODY_BYTES} bytes", "body_too_large")


def middlewares() -> list[Middleware]:
    return [Middleware(ProxyShield)]


class ProxyShield:
    """Covers OpenAI's paths alone: other applications behind the same proxy are none of its business."""

    def __init__(self, app: ASGIApp, waits_s: tuple[float, ...] = WAITS_S) -> None:
        self._app, self._waits_s = app, waits_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        if declared_bytes(scope) > LARGEST_BODY_BYTES:
            await TOO_LARGE.response()(scope, receive, send)
            return
        body = _KeptBody(receive)
        for wait_s in (*self._waits_s, None):
            answer = _Answer(send)
            # The proxy writes into the scope, so every attempt gets a copy.
            await self._app(dict(scope), body.from_the_start(), answer.send)
            if answer.finished or body.client_left:
                return
            if body.too_large and not answer.begun:
                await TOO_LARGE.response()(scope, receive, send)
                return
            if answer.begun:
                await answer.break_off()
                return
            if wait_s is None:
                break
            log.warning("the router died under a request, which is sent again in %.1f s", wait_s)
            await asyncio.sleep(wait_s)
        await ApiError(503, "the router died under this request; send it again", "router_lost").response()(
            scope, receive, send
        )


class _KeptBody:
    """The request's body as it comes, kept for another attempt."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] = []
        self._bytes = 0
        self.client_left = self.too_large = False

    def from_the_start(self) -> Receive:
        position = 0

        async def receive() -> Message:
            nonlocal position
            if position < len(self._kept):
                position += 1
                return self._kept[position - 1]
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.client_left = True
                return message
            self._bytes += len(message.get("body", b""))
            if self._bytes > LARGEST_BODY_BYTES:
                self.too_large = True
                return {"type": "http.disconnect"}
            self._kept.append(message)
            position += 1
            return message

        return receive


class _Answer:
    """One attempt's answer. The status line is held back until a body comes with it; a plain-text answer of the proxy
    itself (no route to the router yet, no replica, a timeout) is dropped."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._streams = self._dropped = False
        self.begun = self.finished = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            content_type = dict(message.get("headers", ())).get(b"content-type", b"")
            self._streams = content_type.startswith(b"text/event-stream")
            self._dropped = message["status"] >= 400 and content_type.startswith(b"text/plain")
            self._start = message
            return
        if self._dropped:
            return
        if self._start is not None:
            self.begun = True
            await self._send(self._start)
            self._start = None
        self.finished = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def break_off(self) -> None:
        """A stream's client is told; any other answer ends short of its declared length, which clients notice."""
        if self._streams:
            error = ApiError(503, "the router failed in the middle of the answer", "router_lost")
            end = (event(error.body()) + DONE).encode()
            await self._send({"type": "http.response.body", "body": end, "more_body": False})
