"""The part of OpenAI's HTTP interface that wattray speaks: request checks and answer shapes."""

import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_PROMPT_CHARACTERS = 4_000_000
DEFAULT_MAX_TOKENS = 1024


class StreamOptions(BaseModel):
    include_usage: bool = False


class _Generation(BaseModel):
    """Fields both endpoints share. Sampling options are accepted and passed over: the simulated engine has none."""

    model_config = ConfigDict(extra="ignore")

    model: str
    max_tokens: int = Field(DEFAULT_MAX_TOKENS, ge=1, le=131_072)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Literal[1] = 1
    simulated_output_tokens: int | None = Field(None, ge=1)
    """For simulated engines: where the model would have ended its answer. Never read by the router's policies."""


class CompletionRequest(_Generation):
    prompt: str | list[int]


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: str
    content: str = ""


class ChatRequest(_Generation):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=131_072)


def count_tokens(text: str) -> int:
    """Whitespace-separated words: the simulated engine has no vocabulary. At least 1."""
    return max(1, len(text.split()))


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model_list(name: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "wattray"}]}


class AnswerShape:
    """Builds the chunks and the final body of one answer, for completions or for chat."""

    def __init__(self, request_id: str, model: str, chat: bool) -> None:
        self._chat = chat
        prefix = "chatcmpl" if chat else "cmpl"
        self._head = {"id": f"{prefix}-{request_id}", "created": int(time.time()), "model": model}

    def chunk(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason}
        choice |= {"delta": {"content": text}} if self._chat else {"text": text}
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice]}

    def usage_chunk(self, input_tokens: int, output_tokens: int) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [], "usage": usage(input_tokens, output_tokens)}

    def whole(self, text: str, finish_reason: str, input_tokens: int, output_tokens: int) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason}
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice], "usage": usage(input_tokens, output_tokens)}


def usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }
