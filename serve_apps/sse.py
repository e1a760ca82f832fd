"""A generation as OpenAI's server-sent events."""

import json
from collections.abc import AsyncIterator
from typing import Any

import ray

from serve_apps.engines.protocol import Chunk, EngineError, GenerateRequest
from serve_apps.openai_api import AnswerShape, error_body


async def stream_events(
    shape: AnswerShape, request: GenerateRequest, first: Chunk, rest: AsyncIterator[Chunk], include_usage: bool
) -> AsyncIterator[str]:
    tokens = first.tokens
    yield _event(shape.chunk(first.text, first.finish_reason))
    try:
        async for chunk in rest:
            tokens += chunk.tokens
            yield _event(shape.chunk(chunk.text, chunk.finish_reason))
    except (EngineError, ray.exceptions.RayError) as error:
        yield _event(error_body(f"the replica failed in the middle of the answer: {error}", "server_error"))
    if include_usage:
        yield _event(shape.usage_chunk(request.input_tokens, tokens))
    yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"
