"""Reads what ray.serve.llm's ingress and servers tell each other, by the names of OpenAI's fields: how large a request
is, how far an answer has come, what its usage says. Needs none of ray.serve.llm's classes."""

import json
import uuid
from collections.abc import Callable, Mapping
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
    return usage_tokens(item)


def carries_usage(item: Any) -> bool:
    """Whether a client reads the request's usage here."""
    if isinstance(item, list):
        return any(carries_usage(part) for part in item)
    if isinstance(item, str):
        return '"usage"' in item and any(_body(event).get("usage") for event in _events(item))
    return getattr(item, "usage", None) is not None


def usage_tokens(item: Any) -> int:
    """Output tokens by the usage that is told here; 0 where none is."""
    if isinstance(item, list):
        return max(map(usage_tokens, item), default=0)
    if isinstance(item, str):
        usages = [_body(event).get("usage") or {} for event in _events(item)] if '"usage"' in item else []
        return max((int(each.get("completion_tokens") or 0) for each in usages), default=0)
    return int(getattr(getattr(item, "usage", None), "completion_tokens", 0) or 0)


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
