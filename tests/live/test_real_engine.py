"""A real model on Ray Serve: the router's own endpoints in this process, and a replica that Serve started."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests_support import QUICK

pytest.importorskip("transformers")

import torch
from ray import serve

from actors.runtime import Installation
from control_plane.domain import PoolName, Role
from control_plane.serving.hosting import RouterHost
from control_plane.settings import parse_settings
from serve_apps.admission import Admission
from serve_apps.app import deploy_pool
from serve_apps.dispatch import Counts, Dispatcher
from serve_apps.engines.causal_model import small_llama
from serve_apps.engines.model_tokenizer import tokenizer_of
from serve_apps.naming import pool_app
from serve_apps.replica_calls import ServeCalls
from serve_apps.replica_directory import ReplicaDirectory, speeds
from serve_apps.router import Desk, make_api

pytestmark = pytest.mark.ray

POOL, TP = PoolName("real"), 2
PROMPTS = ["one two three", "Grüße aus 東京", "x" * 300, "a b c d"]
ANSWER = 20


@pytest.fixture
def installation(live) -> Iterator[Installation]:  # type: ignore[no-untyped-def]
    """One replica with a real engine on the GPUs of the session's Ray, beside its control plane."""
    settings = parse_settings(
        {
            **QUICK,
            "pools": [{"name": str(POOL), "input_classes": ["S", "M", "L"]}],
            "serve": {"engine": "transformers", "kv_cache_tokens": 8192},
        }
    )
    running = live.client.running
    made = Installation(settings, running.run_dir, running.dashboard_url)
    deploy_pool(made, POOL, TP, Role.COMBINED, 1)
    yield made
    serve.delete(pool_app(POOL, TP, Role.COMBINED))


def router_of(installation: Installation) -> Any:
    settings, profile, policy = installation.settings, installation.profile, installation.policy()
    by_app = speeds(policy, profile)
    directory, counts = ReplicaDirectory(by_app), Counts()
    dispatcher = Dispatcher(RouterHost(policy), directory, ServeCalls(by_app), counts, no_replica_wait_s=90.0)
    return make_api(
        Desk(Admission.of(settings, profile), dispatcher, directory, counts, 1_000_000, settings.serve.engine)
    )


def generated(prompt: str) -> str:
    tokenizer = tokenizer_of(None)
    ids = torch.tensor([tokenizer.encode(prompt)])
    mask = torch.ones_like(ids)
    whole = small_llama().generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=ANSWER, pad_token_id=0)
    return tokenizer.decode(whole[0, ids.shape[1] :].tolist())


def test_answers_through_router_and_serve_are_those_of_generate(installation: Installation) -> None:
    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=router_of(installation))
        async with httpx.AsyncClient(transport=transport, base_url="http://router", timeout=120) as client:
            bodies = [{"model": "llama2-70b", "prompt": prompt, "max_tokens": ANSWER} for prompt in PROMPTS]
            refused = {**bodies[0], "frequency_penalty": 1.0}
            return await asyncio.gather(
                *(client.post("/v1/completions", json=body) for body in [*bodies, refused]),
            )

    *answers, refused = asyncio.run(ask())
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert told["choices"][0]["text"] == generated(prompt)
        assert told["choices"][0]["finish_reason"] == "length"
        assert told["usage"]["prompt_tokens"] == len(prompt.encode())
        assert told["usage"]["completion_tokens"] == ANSWER
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "engine_refused"
    assert "frequency_penalty" in refused.json()["error"]["message"]
