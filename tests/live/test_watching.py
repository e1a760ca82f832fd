"""The status page of a control plane that is up."""

import time
from typing import Any

import httpx
import pytest
import ray

from actors import runtime

pytestmark = pytest.mark.ray


def test_the_status_page_shows_what_is_up_and_is_not_on_the_public_port(live: Any) -> None:
    url = live.client.running.status_url
    body = {"model": "llama2-70b", "prompt": "one two three", "max_tokens": 5}
    asked = httpx.post(f"{live.url}/v1/completions", json=body, headers={"x-wattray-tenant": "watched"}, timeout=60)
    assert asked.status_code == 200
    deadline_s = time.monotonic() + 30
    told: dict[str, Any] = {}
    while "watched" not in {used["tenant"] for used in told.get("usage", ())}:
        assert time.monotonic() < deadline_s, told
        time.sleep(0.5)
        told = httpx.get(f"{url}/status.json", timeout=10).json()
    assert told["away"] is None
    assert told["seen"]["control"] == "act"
    assert {pool["pool"] for pool in told["seen"]["pools"]} == {str(pool.pool) for pool in live.settings.pools}
    assert len(told["seen"]["gpus"]) == live.settings.gpu.count
    assert told["requests"]["slo_met"] + told["requests"]["slo_missed"] >= 1
    assert told["history"][-1]["power_w"] > 0
    assert "<title>wattray</title>" in httpx.get(url, timeout=10).text
    for path in ("/status.json", "/"):
        assert httpx.get(live.url + path, timeout=10).status_code == 404


def test_a_status_page_that_is_killed_comes_back_at_its_address(live: Any) -> None:
    url = live.client.running.status_url
    ray.kill(runtime.actor(runtime.STATUS_PAGE), no_restart=False)
    deadline_s = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"{url}/status.json", timeout=5).json()["seen"] is not None:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline_s
        time.sleep(0.5)
