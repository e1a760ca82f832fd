"""What the router takes: sizes first, then the fields, then the tokens. Only what has passed all of it counts as an
arrival."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.domain import InputClass, RequestSlo, Slo
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.settings import Settings
from serve_apps.api_errors import ApiError, declared_bytes
from serve_apps.engines.factory import ReadExtensions, extensions_of, make_tokenizer
from serve_apps.engines.protocol import GenerateRequest, Tokenizer
from serve_apps.openai_api import DEFAULT_MAX_TOKENS, ChatRequest, CompletionRequest, refuse_unsupported
from serve_apps.request_hints import RequestHints
from serve_apps.token_counter import TokenCounter

NO_HINTS = RequestHints()


@dataclass(frozen=True, slots=True)
class Limits:
    """``context_tokens``: prompt and answer together; every replica can hold this many, whichever is chosen."""

    prompt_tokens: int
    output_tokens: int
    context_tokens: int

    @classmethod
    def of(cls, settings: Settings, profile: MachineProfile) -> Self:
        smallest_kv = min(profile.limits(tp).kv_tokens for tp in profile.tps)
        return cls(settings.serve.max_prompt_tokens, settings.serve.max_output_tokens, smallest_kv)


class Admission:
    """Turns a checked body into a request for an engine."""

    def __init__(
        self, model_name: str, slo: Slo, limits: Limits, tokenizer: Tokenizer, read_extensions: ReadExtensions
    ) -> None:
        self.model_name, self.limits = model_name, limits
        self._slo, self._counter, self._read_extensions = slo, TokenCounter(tokenizer), read_extensions

    @classmethod
    def of(cls, settings: Settings, profile: MachineProfile) -> Self:
        return cls(
            settings.serve.model_name,
            settings.slo.slo(),
            Limits.of(settings, profile),
            make_tokenizer(settings),
            extensions_of(settings),
        )

    async def completion(self, body: CompletionRequest, hints: RequestHints = NO_HINTS) -> GenerateRequest:
        """Raises ApiError for what cannot be served."""
        self._check(body)
        prompt = body.text_or_ids()
        if isinstance(prompt, str):
            return await self._request(body, hints, prompt, None, body.max_tokens)
        return await self._request(body, hints, "", tuple(prompt), body.max_tokens)

    async def chat(self, body: ChatRequest, hints: RequestHints = NO_HINTS) -> GenerateRequest:
        """Raises ApiError for what cannot be served."""
        self._check(body)
        text = "\n".join(message.text() for message in body.messages)
        return await self._request(body, hints, text, None, body.max_completion_tokens or body.max_tokens)

    def _check(self, body: CompletionRequest | ChatRequest) -> None:
        if body.model != self.model_name:
            message = f"model: {body.model[:100]!r} is not served here; {self.model_name!r} is"
            raise ApiError(404, message, "model_not_found", "model")
        refuse_unsupported(body.model_extra or {})
        if body.stream_options is not None and not body.streams:
            raise ApiError(400, "stream_options: only for a request with stream true", param="stream_options")

    async def _request(
        self,
        body: CompletionRequest | ChatRequest,
        hints: RequestHints,
        prompt: str,
        token_ids: tuple[int, ...] | None,
        asked_tokens: int | None,
    ) -> GenerateRequest:
        try:
            extensions = self._read_extensions(body.model_extra or {})
        except ValueError as error:
            raise ApiError(400, str(error), param=str(error).partition(":")[0]) from None
        limits = self.limits
        if asked_tokens is not None and asked_tokens > limits.output_tokens:
            message = f"max_tokens: {asked_tokens} is more than the {limits.output_tokens} tokens an answer may have"
            raise ApiError(400, message, "max_tokens_too_large", "max_tokens")
        input_tokens = await self._counter.count(prompt) if token_ids is None else len(token_ids)
        room = limits.context_tokens - input_tokens
        max_tokens = (
            min(DEFAULT_MAX_TOKENS, limits.output_tokens, max(1, room)) if asked_tokens is None else asked_tokens
        )
        if input_tokens > limits.prompt_tokens or max_tokens > room:
            most = min(limits.prompt_tokens, limits.context_tokens - max_tokens)
            message = f"the prompt has {input_tokens} tokens; at most {most} fit with an answer of {max_tokens}"
            raise ApiError(400, message, "context_length_exceeded", "prompt")
        own = hints.limits or RequestSlo()
        return GenerateRequest(
            uuid.uuid4().hex,
            prompt,
            input_tokens,
            max_tokens,
            token_ids,
            body.sampling(),
            self._slo.ttft_s(InputClass.of(input_tokens)) if own.ttft_s is None else own.ttft_s,
            tbt_limit_s=self._slo.tbt_s if own.tbt_s is None else own.tbt_s,
            own_limits=hints.limits,
            tenant=hints.tenant,
            app=hints.app,
            hinted_tokens=hints.output_tokens,
            extensions=extensions,
        )


class BodyLimit:
    """Refuses a large body before it is read: by its declared length, or as soon as more than that has come.

    A pure ASGI layer around the app, so that the app's own reading of the body is what it counts.
    """

    def __init__(self, app: ASGIApp, limit: int, refused: Callable[[int], None]) -> None:
        self._app, self._limit, self._refused = app, limit, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise HTTPException(413, self._told())
            return message

        if scope["type"] == "http" and declared_bytes(scope) > self._limit:
            self._refused(413)
            await ApiError(413, self._told(), "body_too_large").response()(scope, receive, send)
            return
        await self._app(scope, counted, send)

    def _told(self) -> str:
        return f"the body is larger than {self._limit} bytes"
