"""Scaling by Ray's dashboard, against a small real HTTP server that notes what it is asked."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from control_plane.domain import PoolName, Role
from serve_apps import scaling
from serve_apps.naming import pool_app


@pytest.fixture
def dashboard() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.asked.append((self.path, body, self.headers.get("authorization")))  # type: ignore[attr-defined]
            status = 404 if "unknown" in self.path else 409 if "busy" in self.path else 200
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"told")

        def log_message(self, *args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_every_role_has_an_application_of_its_own() -> None:
    pool = PoolName("long")
    names = [pool_app(pool, 4, role) for role in Role]
    assert names == ["long-tp4", "long-prefill-tp4", "long-decode-tp4"]
    assert pool_app(pool, 4) == "long-tp4"


def test_counts_go_to_the_application_of_the_role_and_past_any_proxy(
    dashboard: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(scaling, "ray_token_headers", dict)
    url = f"http://127.0.0.1:{dashboard.server_port}"
    assert scaling._scale(url, pool_app(PoolName("long"), 4, Role.DECODE), 3)
    [(path, body, token)] = dashboard.asked  # type: ignore[attr-defined]
    assert path == "/api/v1/applications/long-decode-tp4/deployments/ModelReplica/scale"
    assert body == {"target_num_replicas": 3}
    assert token is None


def test_the_call_carries_rays_token(dashboard: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "ray_token_headers", lambda: {"authorization": "Bearer secret"})
    assert scaling._scale(f"http://127.0.0.1:{dashboard.server_port}", "long-tp4", 1)
    assert dashboard.asked[0][2] == "Bearer secret"  # type: ignore[attr-defined]


def test_an_unknown_application_is_told_apart_from_a_refusal(dashboard: HTTPServer) -> None:
    url = f"http://127.0.0.1:{dashboard.server_port}"
    assert not scaling._scale(url, "unknown", 1)
    with pytest.raises(RuntimeError, match=r"Serve refused 2 replicas of busy: told"):
        scaling._scale(url, "busy", 2)
