"""A page that shows what the control plane does, on a port of its own on loopback: the admin port.

It reads and never steers. What it shows is the last that the cluster's manager told: when that is away, the page stays
and says since when.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import re
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from actors.messages import ControlPlaneStatus, Decision, TenantUsage
from actors.peers import PeerAwayError
from actors.runtime import CLUSTER_MANAGER, STATUS_PAGE, Installation, actor, start_here
from serve_apps.api_key import read_key
from serve_apps.control_actors import ControlActors

log = logging.getLogger(__name__)

LOOK_S = 2.0
KEPT = 450
"""Points of the plots: the last quarter of an hour."""
DECISIONS = 40
TENANTS = 50
"""Those that used the most energy."""
PAGE = (Path(__file__).with_name("status_page.html")).read_text()
_SCRIPT = re.search(r"<script>(.*?)</script>", PAGE, re.DOTALL)
_STYLE = re.search(r"<style>(.*?)</style>", PAGE, re.DOTALL)


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at everything."""

    status: ControlPlaneStatus
    decisions: tuple[Decision, ...] = ()
    usage: Mapping[str, TenantUsage] = field(default_factory=dict)
    requests: Mapping[str, int] = field(default_factory=dict)
    """The router's counts; empty where it does not answer."""


Look = Callable[[], Awaitable[Seen]]
"""Raises PeerAwayError."""


class Watch:
    """Looks every two seconds, and keeps what plots need."""

    def __init__(self, look: Look, settings_shown: Mapping[str, str], epoch_s: Callable[[], float] = time.time) -> None:
        self._look, self._settings_shown, self._epoch_s = look, settings_shown, epoch_s
        self._seen: Seen | None = None
        self._seen_at_s = 0.0
        self._away: str | None = None
        self._history: deque[dict[str, Any]] = deque(maxlen=KEPT)

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("a look failed; the next one follows")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        try:
            seen = await self._look()
        except PeerAwayError as error:
            self._away = str(error)
            return
        self._seen, self._seen_at_s, self._away = seen, self._epoch_s(), None
        load = {str(pool.pool): pool.load_rps for pool in seen.status.pools}
        met, missed = seen.requests.get("slo_met", 0), seen.requests.get("slo_missed", 0)
        point = {"at_s": self._seen_at_s, "power_w": seen.status.power_w, "load": load, "met": met, "missed": missed}
        self._history.append(point)

    def shown(self) -> dict[str, Any]:
        """What the page draws."""
        seen, now_s = self._seen, self._epoch_s()
        told: dict[str, Any] = {"now_s": now_s, "away": self._away, "settings": self._settings_shown, "seen": None}
        if seen is not None:
            most = sorted(seen.usage.items(), key=lambda item: -item[1].energy_j)
            told |= {
                "seen": asdict(seen.status),
                "seen_at_s": self._seen_at_s,
                "decisions": [asdict(decision) for decision in reversed(seen.decisions)],
                "usage": [{"tenant": tenant, **asdict(used)} for tenant, used in most[:TENANTS]],
                "tenants": len(most),
                "requests": dict(seen.requests),
                "history": list(self._history),
            }
        return told


def make_page_app(watch: Watch, key: str | None) -> Starlette:
    """The page and what it draws. With a ``key`` both want it, as a bearer token or as the password that a browser
    asks for. Other host names than loopback's are refused: a page from elsewhere must not read this one by DNS."""

    def refused(request: Request) -> Response | None:
        if key is None or _sent_key(request.headers.get("authorization", ""), key):
            return None
        headers = {"www-authenticate": 'Basic realm="wattray: the API key is the password"'}
        return PlainTextResponse("send the API key as the password, or as Authorization: Bearer KEY\n", 401, headers)

    async def page(request: Request) -> Response:
        return refused(request) or HTMLResponse(PAGE, headers=_HEADERS)

    async def now(request: Request) -> Response:
        return refused(request) or JSONResponse(watch.shown(), headers={"cache-control": "no-store"})

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(routes=[Route("/", page), Route("/status.json", now)], middleware=[hosts])


def _sent_key(header: str, key: str) -> bool:
    scheme, _, given = header.partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.encode(), key.encode())


def _hash_of(part: re.Match[str] | None) -> str:
    assert part is not None
    return base64.b64encode(hashlib.sha256(part[1].encode()).digest()).decode()


_HEADERS = {
    "content-security-policy": f"default-src 'none'; script-src 'sha256-{_hash_of(_SCRIPT)}'; "
    f"style-src 'sha256-{_hash_of(_STYLE)}'; connect-src 'self'; img-src data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""Only the page's own script runs, and it may ask this port alone."""


class StatusPage:
    """The actor that serves the page."""

    async def __init__(self, deployment: Installation, port: int) -> None:  # type: ignore[misc]
        settings = deployment.settings
        serving = settings.serve
        shown = {"policy": settings.policy, "model": serving.model_name, "engine": serving.engine}
        shown |= {"gpu_driver": settings.gpu.driver}
        actors, router = ControlActors(actor), f"http://{serving.host}:{serving.port}/healthz"

        async def look() -> Seen:
            status, decisions, usage, requests = await asyncio.gather(
                actors.call(CLUSTER_MANAGER, "status"),
                actors.call(CLUSTER_MANAGER, "explain", DECISIONS),
                actors.call(CLUSTER_MANAGER, "usage"),
                _counts(router),
            )
            return Seen(status, decisions, usage, requests)

        watch = Watch(look, shown)
        key = None if serving.api_key_file is None else read_key(Path(serving.api_key_file))
        app = make_page_app(watch, key)
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        self._tasks = [asyncio.create_task(watch.run()), asyncio.create_task(self._serve(port))]

    async def _serve(self, port: int) -> None:
        """For ever. A port that somebody else has is tried again: uvicorn itself would end the process."""
        while True:
            try:
                listening = socket.create_server(("127.0.0.1", port))
            except OSError as error:
                log.error("the status page cannot listen on port %d, tried again: %s", port, error)
                await asyncio.sleep(LOOK_S)
                continue
            await self._server.serve(sockets=[listening])

    async def ready(self) -> bool:
        """Returns when it answers."""
        while not self._server.started:
            await asyncio.sleep(0.02)
        return True


async def _counts(url: str) -> dict[str, int]:
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1.5)) as session, session.get(url) as told:
            counts = await told.json()
            return {name: count for name, count in counts.items() if isinstance(count, int)}
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return {}


def start_status_page(deployment: Installation, port: int) -> Any:
    """Start it on this node; returns its handle."""
    return start_here(StatusPage, STATUS_PAGE, deployment, port)
