"""The API key that clients must send, as a dependency of the endpoints under /v1."""

import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request

from serve_apps.api_errors import ApiError


def read_key(path: Path) -> str:
    """The content of the file. Raises OSError where it cannot be read and ValueError where it is empty."""
    key = path.read_text().strip()
    if not key:
        raise ValueError(f"serve.api_key_file {path} is empty; write a key into it")
    return key


def key_guard(path: Path) -> Callable[[Request], Awaitable[None]]:
    """Refuses requests without ``Authorization: Bearer KEY``, the key being the content of the file. Raises as
    ``read_key`` does: a router without its key must not start."""
    expected = f"Bearer {read_key(path)}".encode()

    async def guard(request: Request) -> None:
        sent = request.headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(sent, expected):
            raise ApiError(401, "send the API key: Authorization: Bearer KEY", "invalid_api_key")

    return guard
