"""After how many tokens an answer ends where no model decides it: for engines without weights of a real model."""

from collections.abc import Mapping
from typing import Any

from serve_apps.engines.protocol import GenerateRequest, RequestRefusedError

OUTPUT_TOKENS = "simulated_output_tokens"
"""The request extension that says after how many tokens the model would have ended its answer; without it a
generation runs to its ``max_tokens``."""


def read_extensions(fields: Mapping[str, Any]) -> dict[str, int]:
    """What of a request's unknown fields these engines know. Raises ValueError, naming the field."""
    asked = fields.get(OUTPUT_TOKENS)
    if asked is None:
        return {}
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise ValueError(f"{OUTPUT_TOKENS}: {asked!r} is not a whole number of at least 1")
    return {OUTPUT_TOKENS: asked}


def end_of(request: GenerateRequest) -> tuple[int, str]:
    """After how many tokens the answer ends, and why. Raises RequestRefusedError."""
    try:
        wanted = read_extensions(request.extensions).get(OUTPUT_TOKENS)
    except ValueError as error:
        raise RequestRefusedError(str(error)) from None
    if wanted is not None and wanted <= request.max_tokens:
        return wanted, "stop"
    return request.max_tokens, "length"
