"""Reads what ray.serve.llm's ingress and servers tell each other, by the names of OpenAI's fields: how large a request
is, how far an answer has come, what its usage says. Needs none of ray.serve.llm's classes."""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from control_plane.domain import InputClass, RequestSlo, Slo
from serve_apps.engines.protocol import GenerateRequest
from serve_apps.openai_api import DEFAULT_MAX_TOKENS
from serve_apps.request_hints import read_hints

CHARACTERS_PER_TOKEN = 4
"""Of English text, where the model's tokenizer is not at hand."""

CountTokens = Callable[[str], int]


class Body(Protocol):
    """A completion or chat request of the installed engine's own class."""

    model: Any
    stream: Any


def token_counter(model_source: object) -> CountTokens:
    """With the tokenizer in the model's folder where there is one, else four characters a token."""
    if isinstance(model_source, str) and (Path(model_source) / "tokenizer.json").is_file():
        from serve_apps.engines.model_tokenizer import tokenizer_of

        return tokenizer_of(model_source).count_tokens
    return lambda text: len(text) // CHARACTERS_PER_TOKEN + 1


def read_request(body: Body, headers: Mapping[str, str], slo: Slo, count_tokens: CountTokens) -> GenerateRequest:
    """What the policy and the meter need to know of a request; it is never sent to an engine. Raises ApiError for a
    header that cannot be used."""
    hints = read_hints({name.lower(): value for name, value in headers.items()})
    own = hints.limits or RequestSlo()
    input_tokens = _input_tokens(body, count_tokens)
    asked = getattr(body, "max_completion_tokens", None) or getattr(body, "max_tokens", None)
    return GenerateRequest(
        uuid.uuid4().hex,
        "",
        input_tokens,
        asked or DEFAULT_MAX_TOKENS,
        ttft_limit_s=slo.ttft_s(InputClass.of(input_tokens)) if own.ttft_s is None else own.ttft_s,
        tbt_limit_s=slo.tbt_s if own.tbt_s is None else own.tbt_s,
        own_limits=hints.limits,
        tenant=hints.tenant,
    )


def _input_tokens(body: Body, count_tokens: CountTokens) -> int:
    """Several prompts in one request count together."""
    messages = getattr(body, "messages", None)
    if messages is not None:
        return sum(count_tokens(content_text(message.get("content"))) for message in messages) or 1
    return _prompt_tokens(getattr(body, "prompt", None), count_tokens) or 1


def _prompt_tokens(prompt: Any, count_tokens: CountTokens) -> int:
    if isinstance(prompt, str):
        return count_tokens(prompt)
    if isinstance(prompt, list):
        return sum(1 if isinstance(part, int) else _prompt_tokens(part, count_tokens) for part in prompt)
    return 0


def content_text(content: Any) -> str:
    """The text of a message's content; other parts are left out."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or () if isinstance(part, dict))


def streams(body: Body) -> bool:
    return bool(body.stream)


def tokens_of(item: Any) -> int:
    """Tokens that a part of an answer brings: each event of a stream with text counts one, a whole answer says how
    many."""
    if isinstance(item, list):
        return sum(tokens_of(part) for part in item)
    if isinstance(item, str):
        return sum(any(_text(choice) for choice in body.get("choices", ())) for body in map(_body, _events(item)))
    used = usage_of(item)
    return 0 if used is None else used[1]


def usage_of(item: Any) -> tuple[int, int] | None:
    """Prompt and output tokens where this part of an answer tells a request's usage."""
    if isinstance(item, list):
        return next((found for found in map(usage_of, item) if found is not None), None)
    if isinstance(item, str):
        used = next((_body(event)["usage"] for event in _with_usage(item)), None)
        return None if used is None else (int(used["prompt_tokens"]), int(used.get("completion_tokens") or 0))
    used = getattr(item, "usage", None)
    return None if used is None else (int(used.prompt_tokens), int(used.completion_tokens or 0))


def _with_usage(text: str) -> Iterator[str]:
    return (event for event in _events(text) if '"usage"' in event and _body(event).get("usage"))


def with_usage(item: Any, told: Mapping[str, Any]) -> Any:
    """The item with ``told`` added to its usage, where it has one. A response object is changed in place."""
    if isinstance(item, list):
        return [with_usage(part, told) for part in item]
    if isinstance(item, str):
        return "".join(f"{_event_with_usage(event, told)}\n\n" for event in _events(item))
    used = getattr(item, "usage", None)
    if used is not None:
        for name, value in told.items():
            setattr(used, name, value)
    return item


def _events(text: str) -> list[str]:
    return [event for event in text.split("\n\n") if event]


def _body(event: str) -> dict[str, Any]:
    """Of an event; empty for [DONE]."""
    if not event.startswith("data: {"):
        return {}
    body: dict[str, Any] = json.loads(event.removeprefix("data: "))
    return body


def _text(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return any((choice.get("text"), *(value for name, value in delta.items() if name != "role")))


def _event_with_usage(event: str, told: Mapping[str, Any]) -> str:
    body = _body(event)
    if not body.get("usage"):
        return event
    body["usage"] |= told
    return f"data: {json.dumps(body, separators=(',', ':'), ensure_ascii=False)}"
