"""Every error answer in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}`` with its HTTP status."""

import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

RETRY_AFTER_S = 5
"""What a client is told to wait where no replica could serve it: Ray Serve replaces one in about 3 s."""


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        return error_body(self.message, _kind(self.status), self.code, self.param)

    def response(self) -> JSONResponse:
        headers = {"retry-after": str(RETRY_AFTER_S)} if self.status in (429, 503) else None
        return JSONResponse(self.body(), self.status, headers)


class AdmittedError(ApiError):
    """What became of a request that had been admitted: accounted for where it was served, so nobody counts it again."""


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def declared_bytes(scope: Scope) -> int:
    """The length of the body as the request declares it; 0 where it does not."""
    value = dict(scope["headers"]).get(b"content-length", b"")
    return int(value) if value.isdigit() else 0


def add_handlers(api: FastAPI, refused: Callable[[int], None]) -> None:
    """Give the app's own errors OpenAI's shape too: unknown paths and methods, bad JSON, fields that do not fit, and
    whatever nobody expected. ``refused`` is told the status of every request that was not admitted."""

    @api.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        del request
        if not isinstance(error, AdmittedError):
            refused(error.status)
        return error.response()

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        del request
        refused(400)
        return _of_validation(error).response()

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        told = {
            404: f"there is no {request.url.path} here; see /docs for what there is",
            405: f"{request.method} is not allowed for {request.url.path}",
            400: "the body is not JSON in UTF-8",
        }
        refused(error.status_code)
        response = ApiError(error.status_code, told.get(error.status_code, str(error.detail))).response()
        response.headers.update(error.headers or {})
        return response

    @api.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises the error again after this answer, and Ray Serve logs it with its traceback.
        return ApiError(500, f"unexpected {type(error).__name__}; the router's log says more").response()


def _of_validation(error: RequestValidationError) -> ApiError:
    # A union tells one error for each of its members: the one that is not about the type is about the value.
    errors = error.errors()
    of_first = [told for told in errors if told["loc"][:2] == errors[0]["loc"][:2]]
    first = next((told for told in of_first if not told["type"].endswith("_type")), errors[0])
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']}")
    field = _field(first["loc"])
    got = "" if first["type"] == "missing" else f" (got {_short(first.get('input'))})"
    return ApiError(400, f"{field}: {first['msg']}{got}" if field else f"{first['msg']}{got}", param=field or None)


def _field(loc: tuple[str | int, ...]) -> str:
    """The field's path without "body" and without pydantic's names for the members of a union, of which no field of
    ours has the name."""
    parts = []
    for part in loc[1:]:
        if isinstance(part, str) and (part in ("str", "int") or "[" in part):
            break
        parts.append(str(part))
    return ".".join(parts)


def _short(value: Any) -> str:
    """At most 100 characters of the value, without writing all of a large one down first."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, str):
        return json.dumps(value[:100])
    return f"{value!r:.100}"


def _kind(status: int) -> str:
    return {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
