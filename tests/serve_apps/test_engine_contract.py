"""What every installed engine owes a replica. A new engine is one more entry of ``ENGINES``."""

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_vllm import ScriptedVllm

from actors.gpu.simulated import SimulatedNode
from control_plane.domain import Role
from control_plane.hardware.profiles import DEFAULT_PROFILE, load_profile
from control_plane.settings import parse_settings
from serve_apps.engines.charged_activity import ChargedGpus
from serve_apps.engines.factory import make_engine, make_tokenizer
from serve_apps.engines.model_tokenizer import tokenizer_of
from serve_apps.engines.protocol import (
    Chunk,
    Engine,
    EngineError,
    EngineStoppedError,
    GenerateRequest,
    KvHandover,
    RequestRefusedError,
)
from serve_apps.engines.vllm_engine import VllmEngine

pytestmark = pytest.mark.usefixtures("small_heap")

PROFILE = load_profile(DEFAULT_PROFILE)
SCRIPTED = "vllm, scripted"
"""The vllm engine on a library that scripts what vLLM does."""
NEEDS = {"simulated": "asyncio", "transformers": "transformers", SCRIPTED: "asyncio", "vllm": "vllm"}
"""The library that each engine needs."""
ENGINES = tuple(
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"no {library} here"))
    for name, library in NEEDS.items()
)
KV_TOKENS = 16_384
"""Of an engine whose cache is the settings' and not the profile's."""

Use = Callable[[Engine], Awaitable[None]]


@pytest.fixture(scope="module", params=ENGINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def using(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Use], None]]:
    """Runs what a test does with an engine that is there already; the test leaves it as it was."""
    with asyncio.Runner() as runner:
        node = SimulatedNode.create(tmp_path_factory.mktemp("engine") / "gpus.bin", 8, PROFILE.gpu)
        engine = runner.run(loaded(name, node))
        yield lambda use: runner.run(use(engine))
        runner.run(engine.shutdown())


async def loaded(name: str, node: SimulatedNode) -> Engine:
    engine = make(name, node)
    await engine.load()
    return engine


def make(name: str, node: SimulatedNode) -> Engine:
    if name == SCRIPTED:
        charge = ChargedGpus(node, range(8), PROFILE.times(8), 2048)
        return VllmEngine(ScriptedVllm(KV_TOKENS), tokenizer_of(None), charge, 0.02, 8)
    serve: dict[str, object] = {"engine": name, "stream_interval_s": 0.02, "kv_cache_tokens": KV_TOKENS}
    if name == "vllm":
        pages = {"block_size": 32, "num_gpu_blocks_override": KV_TOKENS // 32 + 1}
        serve["vllm_args"] = {**pages, "enforce_eager": True, "gpu_memory_utilization": 0.3}
    return make_engine(parse_settings({"serve": serve}), PROFILE, 8, Role.COMBINED, node, range(8))


def using_own(name: str, folder: Path, use: Use) -> None:
    """With an engine of the test's own, which it may end."""

    async def run() -> None:
        engine = await loaded(name, SimulatedNode.create(folder / "gpus.bin", 8, PROFILE.gpu))
        try:
            await use(engine)
        finally:
            await engine.shutdown()

    asyncio.run(run())


def asked(request_id: str = "a", max_tokens: int = 6, input_tokens: int = 3) -> GenerateRequest:
    return GenerateRequest(request_id, "", input_tokens, max_tokens, (7,) * input_tokens)


async def collect(engine: Engine, request: GenerateRequest) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request)]


async def until_running(engine: Engine, count: int) -> None:
    while engine.stats().running + engine.stats().waiting < count:
        await asyncio.sleep(0.005)


def test_it_takes_nothing_before_it_is_loaded_and_after_it_has_stopped(name: str, tmp_path: Path) -> None:
    async def run() -> None:
        node = SimulatedNode.create(tmp_path / "gpus.bin", 8, PROFILE.gpu)
        engine = make(name, node)
        assert not engine.alive()
        with pytest.raises(EngineStoppedError, match="not loaded"):
            await collect(engine, asked())
        await engine.load()
        assert engine.alive()
        await engine.shutdown()
        assert not engine.alive()
        with pytest.raises(EngineStoppedError, match="stopped"):
            await collect(engine, asked())
        assert engine.failure() is None

    asyncio.run(run())


def test_chunks_come_in_order_and_the_last_one_has_the_reason(using: Callable[[Use], None]) -> None:
    async def use(engine: Engine) -> None:
        chunks = await collect(engine, asked(max_tokens=9))
        assert sum(chunk.tokens for chunk in chunks) == 9
        assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
        assert "".join(chunk.text for chunk in chunks)

    using(use)


def test_requests_run_beside_each_other(using: Callable[[Use], None]) -> None:
    async def use(engine: Engine) -> None:
        answers = await asyncio.gather(*(collect(engine, asked(f"r{i}", 5 + i)) for i in range(4)))
        assert [sum(chunk.tokens for chunk in chunks) for chunks in answers] == [5, 6, 7, 8]

    using(use)


def test_closing_a_stream_frees_its_kv(using: Callable[[Use], None]) -> None:
    async def use(engine: Engine) -> None:
        stream = engine.generate(asked(max_tokens=4000))
        await anext(stream)
        assert engine.stats().kv_used_ratio > 0
        await stream.aclose()
        assert (engine.stats().running, engine.stats().kv_used_ratio) == (0, 0.0)

    using(use)


def test_cancel_ends_the_stream_and_frees_its_kv(using: Callable[[Use], None]) -> None:
    async def use(engine: Engine) -> None:
        generation = asyncio.create_task(collect(engine, asked(max_tokens=4000)))
        await until_running(engine, 1)
        assert engine.cancel("a")
        with pytest.raises(EngineError, match="cancelled"):
            await asyncio.wait_for(generation, 2.0)
        assert (engine.stats().running, engine.stats().kv_used_ratio) == (0, 0.0)
        assert not engine.cancel("a")
        assert not engine.cancel("unknown")

    using(use)


def test_the_id_of_a_cancelled_request_can_come_again_at_once(using: Callable[[Use], None]) -> None:
    async def use(engine: Engine) -> None:
        first = asyncio.create_task(collect(engine, asked(max_tokens=4000)))
        await until_running(engine, 1)
        assert engine.cancel("a")
        again = await asyncio.wait_for(collect(engine, asked(max_tokens=5)), 5.0)
        assert sum(chunk.tokens for chunk in again) == 5
        with pytest.raises(EngineError, match="cancelled"):
            await first

    using(use)


def test_work_is_charged_to_simulated_gpus_and_ends_with_it(name: str, tmp_path: Path) -> None:
    async def run() -> None:
        node = SimulatedNode.create(tmp_path / "gpus.bin", 8, PROFILE.gpu)
        engine = make(name, node)
        [gpu, *_] = node.gpus()
        assert gpu.power_w() == PROFILE.gpu.idle_w
        await engine.load()
        assert gpu.power_w() == PROFILE.gpu.context_w
        stream = engine.generate(asked(max_tokens=4000))
        await anext(stream)
        assert gpu.power_w() > PROFILE.gpu.context_w
        await stream.aclose()
        while gpu.power_w() > PROFILE.gpu.context_w:
            await asyncio.sleep(0.005)
        await engine.shutdown()
        assert gpu.power_w() == PROFILE.gpu.idle_w

    asyncio.run(run())


def test_a_request_that_can_never_run_is_refused(using: Callable[[Use], None]) -> None:
    async def use(engine: Engine) -> None:
        with pytest.raises(RequestRefusedError, match="KV cache"):
            await collect(engine, asked(input_tokens=2_000_000))
        assert engine.alive()
        assert sum(chunk.tokens for chunk in await collect(engine, asked("b"))) == 6

    using(use)


def test_a_second_request_of_the_same_id_is_refused_and_harms_the_first_one_not(using: Callable[[Use], None]) -> None:
    async def use(engine: Engine) -> None:
        first = asyncio.create_task(collect(engine, asked(max_tokens=8)))
        await until_running(engine, 1)
        with pytest.raises(RequestRefusedError, match="here already"):
            await collect(engine, asked(max_tokens=8))
        assert sum(chunk.tokens for chunk in await first) == 8

    using(use)


def test_the_queue_shows_what_waits_and_how_long_it_may(name: str, using: Callable[[Use], None]) -> None:
    async def use(engine: Engine) -> None:
        long = replace(asked("long", 50, 3000), ttft_limit_s=2.0, waited_s=0.5)
        generation = asyncio.create_task(collect(engine, long))
        await until_running(engine, 1)
        stats, queue = engine.stats(), engine.queue(1200)
        assert 0 < stats.queued_tokens <= 3000
        assert stats.tightest_slack_s is not None
        assert 1.0 < stats.tightest_slack_s <= 1.5
        [waiting] = queue.queued
        assert (waiting.input_tokens, waiting.left_tokens, waiting.ttft_limit_s) == (3000, stats.queued_tokens, 2.0)
        assert (queue.tp, queue.role, queue.freq_mhz, queue.decoding) == (8, Role.COMBINED, 1200, 0)
        assert queue.kv_tokens == (PROFILE.limits(8).kv_tokens if name == "simulated" else KV_TOKENS)
        while engine.queue(1200).decoding == 0:
            await asyncio.sleep(0.01)
        decoding = engine.queue(1200)
        assert decoding.queued == ()
        assert decoding.context_tokens >= 3000
        assert engine.stats().tightest_slack_s is None
        engine.cancel("long")
        with pytest.raises(EngineError):
            await generation

    using(use)


def test_a_drained_engine_has_lost_nothing_and_takes_nothing_more(name: str, tmp_path: Path) -> None:
    async def use(engine: Engine) -> None:
        generation = asyncio.create_task(collect(engine, asked(max_tokens=20)))
        await until_running(engine, 1)
        assert not await engine.drain(0.0)
        with pytest.raises(EngineStoppedError, match="draining"):
            await collect(engine, asked("late"))
        assert await engine.drain(5.0)
        assert sum(chunk.tokens for chunk in await generation) == 20

    using_own(name, tmp_path, use)


def test_an_engine_that_stops_says_so_to_open_streams(name: str, tmp_path: Path) -> None:
    async def use(engine: Engine) -> None:
        generation = asyncio.create_task(collect(engine, asked(max_tokens=4000)))
        await until_running(engine, 1)
        await asyncio.sleep(0.05)
        await engine.shutdown()
        with pytest.raises(EngineStoppedError):
            await asyncio.wait_for(generation, 2.0)

    using_own(name, tmp_path, use)


def test_the_tokenizer_counts_what_it_encodes(name: str) -> None:
    tokenizer = make_tokenizer(parse_settings({"serve": {"engine": name.split(",")[0]}}))
    for text in ("", " ", "one", "one two  three\nfour", "äöü 漢字"):
        assert tokenizer.count_tokens(text) == len(tokenizer.encode(text)) >= 1


def test_kv_hand_over_continues_what_another_engine_began(name: str, tmp_path: Path) -> None:
    async def use(engine: Engine) -> None:
        if not isinstance(engine, KvHandover):
            pytest.skip(f"the {name} engine hands no KV caches over")
        handover = await engine.prefill(asked(max_tokens=5))
        assert (handover.first.tokens, handover.first.finish_reason) == (1, None)
        assert engine.stats().kv_used_ratio == 0.0
        rest = [chunk async for chunk in engine.decode(asked("b", max_tokens=5), handover)]
        assert sum(chunk.tokens for chunk in rest) == 4
        assert rest[-1].finish_reason == "length"
        alone = await engine.prefill(asked("c", max_tokens=1))
        assert alone.first.finish_reason == "length"

    using_own(name, tmp_path, use)
