"""The part of OpenAI's HTTP interface that wattray speaks: request checks and answer shapes. docs/api.md lists which
fields are used, refused and passed over."""

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from serve_apps.api_errors import ApiError
from serve_apps.engines.protocol import SamplingParameters

DEFAULT_MAX_TOKENS = 1024
"""For a request that sets no limit, where `serve.max_output_tokens` and the context allow it."""
MAX_MESSAGES = 4096
MAX_STOPS = 16


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class _Generation(BaseModel):
    """Fields both endpoints share. Others are kept: some are refused, some belong to the engine."""

    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self) -> SamplingParameters:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParameters(
            self.temperature,
            self.top_p,
            self.top_k,
            self.seed,
            stop,
            self.presence_penalty,
            self.frequency_penalty,
        )


class CompletionRequest(_Generation):
    prompt: str | list[int] | list[str] | list[list[int]]

    def text_or_ids(self) -> str | list[int]:
        """The one prompt. Raises ApiError where there are several."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return prompt
        if not prompt:
            raise ApiError(400, "prompt: an empty list; give a text or token ids", param="prompt")
        first = prompt[0]
        if isinstance(first, int):
            return prompt  # type: ignore[return-value]
        if len(prompt) > 1:
            raise ApiError(400, f"prompt: {len(prompt)} prompts in one request; send them one by one", param="prompt")
        if not first:
            raise ApiError(400, "prompt: an empty list; give a text or token ids", param="prompt")
        return first


class ContentPart(BaseModel):
    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[ContentPart] | None = None

    def text(self) -> str:
        """Raises ApiError for content that is not text."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        for part in self.content:
            if part.type not in ("text", "refusal"):
                message = f"messages: content of type {part.type!r} is not supported; the model reads text"
                raise ApiError(400, message, "unsupported_content", "messages")
        return "".join(part.text or "" for part in self.content)


class ChatRequest(_Generation):
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)


Unsupported = Callable[[Any, Mapping[str, Any]], bool]


def _set(value: Any, fields: Mapping[str, Any]) -> bool:
    del fields
    return bool(value)


def _several(value: Any, fields: Mapping[str, Any]) -> bool:
    del fields
    return value is not None and value != 1


def _not_none(value: Any, fields: Mapping[str, Any]) -> bool:
    del fields
    return value is not None and value is not False


def _tools(value: Any, fields: Mapping[str, Any]) -> bool:
    return bool(value) and fields.get("tool_choice") != "none"


def _not_text(value: Any, fields: Mapping[str, Any]) -> bool:
    del fields
    return value is not None and (not isinstance(value, dict) or value.get("type") != "text")


def _sound(value: Any, fields: Mapping[str, Any]) -> bool:
    del fields
    return value is not None and value != ["text"]


REFUSED: Mapping[str, tuple[Unsupported, str]] = {
    "n": (_several, "one answer a request: send it several times"),
    "best_of": (_several, "one answer a request"),
    "use_beam_search": (_set, "answers are sampled"),
    "logprobs": (_not_none, "token probabilities are not returned"),
    "top_logprobs": (_not_none, "token probabilities are not returned"),
    "prompt_logprobs": (_not_none, "token probabilities are not returned"),
    "echo": (_set, "the answer does not repeat the prompt"),
    "suffix": (_set, "text is not inserted before a suffix"),
    "tools": (_tools, 'tools are not called; set tool_choice to "none" or leave them out'),
    "functions": (_set, "functions are not called"),
    "response_format": (_not_text, "answers are plain text"),
    "logit_bias": (_set, "token probabilities are not changed"),
    "modalities": (_sound, "answers are text"),
    "audio": (_not_none, "answers are text"),
}
"""Fields that would change the answer and that no engine here honours: asked for, they are an error. With the value
that changes nothing (null, false, n=1, an empty list) they are passed over."""


def refuse_unsupported(fields: Mapping[str, Any]) -> None:
    """Raises ApiError for the first field of ``REFUSED`` that asks for something."""
    for name in fields.keys() & REFUSED.keys():
        asks, told = REFUSED[name]
        if asks(fields[name], fields):
            raise ApiError(400, f"{name}: not supported, {told}", "unsupported_parameter", name)


def model_list(name: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "wattray"}]}


class AnswerShape:
    """Builds the chunks and the final body of one answer, for completions or for chat."""

    def __init__(self, request_id: str, model: str, chat: bool) -> None:
        self._chat = chat
        prefix = "chatcmpl" if chat else "cmpl"
        self._head = {"id": f"{prefix}-{request_id}", "created": int(time.time()), "model": model}
        self._chunk_head = {**self._head, "object": "chat.completion.chunk" if chat else "text_completion"}

    def opening(self) -> dict[str, Any] | None:
        """What a stream begins with before its first text: the role in a chat, nothing in a completion."""
        if not self._chat:
            return None
        delta = {"role": "assistant", "content": ""}
        return {**self._chunk_head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}

    def chunk(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason}
        choice |= {"delta": {"content": text}} if self._chat else {"text": text, "logprobs": None}
        return {**self._chunk_head, "choices": [choice]}

    def usage_chunk(self, used: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._chunk_head, "choices": [], "usage": used}

    def whole(self, text: str, finish_reason: str, used: Mapping[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice], "usage": used}


def usage(input_tokens: int, output_tokens: int, expected_tokens: float, energy_j: float | None) -> dict[str, Any]:
    """OpenAI's fields, and two of ours: the tokens that were planned for, and the request's share of the replica's
    metered energy (null where that is not known)."""
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "predicted_completion_tokens": round(expected_tokens),
        "energy_j": None if energy_j is None else round(energy_j, 3),
    }
