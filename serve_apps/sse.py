"""A generation as OpenAI's server-sent events."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from serve_apps.api_errors import ApiError, error_body
from serve_apps.engines.protocol import Chunk
from serve_apps.openai_api import AnswerShape

DONE = "data: [DONE]\n\n"
_encode = json.JSONEncoder(separators=(",", ":")).encode


async def stream_events(
    shape: AnswerShape,
    first: Chunk,
    rest: AsyncGenerator[Chunk, None],
    usage: Callable[[], dict[str, Any]] | None,
) -> AsyncIterator[str]:
    """The events of one answer, with its usage at the end where that was asked for. What breaks it off comes as an
    error event, and no usage then."""
    opening = shape.opening()
    try:
        yield (event(opening) if opening else "") + event(shape.chunk(first.text, first.finish_reason))
        async for chunk in rest:
            yield event(shape.chunk(chunk.text, chunk.finish_reason))
    except ApiError as error:
        yield event(error.body()) + DONE
        return
    except Exception as error:
        # The status line is out: what the client can still be told is that the answer is not whole.
        yield event(error_body(f"unexpected {type(error).__name__}", "server_error")) + DONE
        raise
    finally:
        await rest.aclose()
    yield ("" if usage is None else event(shape.usage_chunk(usage()))) + DONE


def event(body: dict[str, Any]) -> str:
    return f"data: {_encode(body)}\n\n"
