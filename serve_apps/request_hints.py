"""What a request's headers ask for beside its body: limits of its own, who pays, and how
long an answer it expects."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from control_plane.domain import RequestSlo
from serve_apps.api_errors import ApiError

TTFT_HEADER = "x-slo-ttft-ms"
TPOT_HEADER = "x-slo-tpot-ms"
TENANT_HEADER = "x-wattray-tenant"
APP_HEADER = "x-wattray-app"
TOKENS_HEADER = "x-wattray-output-tokens"
MOST_HINTED_TOKENS = 1_000_000
NO_TENANT = "default"
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,63}")


@dataclass(frozen=True, slots=True)
class RequestHints:
    """``limits`` is None where the deployment's own hold."""

    limits: RequestSlo | None = None
    tenant: str = NO_TENANT
    app: str = ""
    """Which of the tenant's applications asks: its answers are about as long."""
    output_tokens: int | None = None
    """How long an answer the client expects."""


def read_hints(headers: Mapping[str, str]) -> RequestHints:
    """Raises ApiError for a header that cannot be used, naming it."""
    ttft_s, tbt_s = _seconds(headers, TTFT_HEADER), _seconds(headers, TPOT_HEADER)
    limits = RequestSlo(ttft_s, tbt_s) if ttft_s is not None or tbt_s is not None else None
    tenant = headers.get(TENANT_HEADER, NO_TENANT)
    if not _TENANT.fullmatch(tenant):
        message = f"{TENANT_HEADER}: {tenant[:70]!r} is no tenant's name; use up to 64 letters, digits and . _ @ : -"
        raise ApiError(400, message, "invalid_header", TENANT_HEADER)
    app = headers.get(APP_HEADER, "")
    if app and not _TENANT.fullmatch(app):
        message = f"{APP_HEADER}: {app[:70]!r} is no application's name; use up to 64 letters, digits and . _ @ : -"
        raise ApiError(400, message, "invalid_header", APP_HEADER)
    return RequestHints(limits, tenant, app, _tokens(headers, TOKENS_HEADER))


def _tokens(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    tokens = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
    if not 0 < tokens <= MOST_HINTED_TOKENS:
        message = f"{name}: {text[:50]!r} is not a number of tokens, from 1 to {MOST_HINTED_TOKENS:,}"
        raise ApiError(400, message, "invalid_header", name)
    return tokens


def _seconds(headers: Mapping[str, str], name: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds <= 3_600_000:
        message = f"{name}: {text[:50]!r} is not a limit in milliseconds, above 0 and at most an hour"
        raise ApiError(400, message, "invalid_header", name)
    return milliseconds / 1000
