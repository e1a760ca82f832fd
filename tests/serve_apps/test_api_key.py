"""The API key of the endpoints under /v1."""

import asyncio
from pathlib import Path

import httpx
import pytest
from fastapi import Depends
from router_fakes import ScriptedReplicas, answers, router_of

from serve_apps.api_key import key_guard
from serve_apps.router import make_api


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "sécret".encode("latin-1")}, 401),
        ({"authorization": "s3cret"}, 401),
        ({"authorization": "Bearer s3cret"}, 200),
    ],
)
def test_only_the_key_opens_the_endpoints(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    file = tmp_path / "key"
    file.write_text("s3cret\n")
    parts = router_of(ScriptedReplicas(r0=answers("a")))
    transport = httpx.ASGITransport(make_api(parts.desk, [Depends(key_guard(file))]))

    async def run() -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
            body = {"model": "llama2-70b", "prompt": "x"}
            return await client.post("/v1/completions", json=body, headers=headers), await client.get("/healthz")

    answer, health = asyncio.run(run())
    assert answer.status_code == status
    assert health.status_code == 200
    if status == 401:
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert parts.replicas.sent == []
        assert parts.counts.ended["refused"] == 1


def test_a_router_without_its_key_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        key_guard(tmp_path / "missing")
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(ValueError, match=r"serve.api_key_file .* is empty"):
        key_guard(tmp_path / "empty")
