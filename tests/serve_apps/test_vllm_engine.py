"""What the vllm engine adds to the contract of engines, on a library that only scripts what vLLM does."""

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from scripted_vllm import ScriptedVllm

from control_plane.settings import SettingsError, parse_settings
from serve_apps.engines.charged_activity import RealGpus
from serve_apps.engines.factory import EngineMissingError, check_engine
from serve_apps.engines.model_tokenizer import tokenizer_of
from serve_apps.engines.protocol import Chunk, EngineError, EngineStoppedError, GenerateRequest, SamplingParameters
from serve_apps.engines.vllm_engine import VllmEngine

Use = Callable[[VllmEngine, ScriptedVllm], Awaitable[None]]


def using(use: Use, batch: int = 64, interval_s: float = 0.0) -> None:
    async def run() -> None:
        library = ScriptedVllm(16_384, batch)
        engine = VllmEngine(library, tokenizer_of(None), RealGpus(), interval_s, 2)
        await engine.load()
        try:
            await use(engine, library)
        finally:
            await engine.shutdown()

    asyncio.run(run())


def asked(request_id: str, max_tokens: int = 4, token: int = 7, limit_s: float = float("inf")) -> GenerateRequest:
    return GenerateRequest(request_id, "", 3, max_tokens, (token,) * 3, ttft_limit_s=limit_s)


async def collect(engine: VllmEngine, request: GenerateRequest) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request)]


async def until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not claim():
            await asyncio.sleep(0.001)


def test_prompts_are_begun_in_the_order_in_which_their_first_tokens_are_due() -> None:
    async def use(engine: VllmEngine, library: ScriptedVllm) -> None:
        first = asyncio.create_task(collect(engine, asked("running", 30)))
        await until(lambda: bool(library.begun))
        limits = {"none": float("inf"), "late": 60.0, "soon": 1.0, "next": 5.0}
        tasks = [asyncio.create_task(collect(engine, asked(name, limit_s=limit))) for name, limit in limits.items()]
        await asyncio.gather(first, *tasks)
        assert [key.split("#")[0] for key in library.begun] == ["running", "soon", "next", "late", "none"]

    using(use, batch=1)


def test_time_that_a_request_has_waited_elsewhere_counts() -> None:
    async def use(engine: VllmEngine, library: ScriptedVllm) -> None:
        first = asyncio.create_task(collect(engine, asked("running", 30)))
        await until(lambda: bool(library.begun))
        fresh = asyncio.create_task(collect(engine, asked("fresh", limit_s=5.0)))
        waited = asyncio.create_task(collect(engine, replace(asked("waited", limit_s=8.0), waited_s=4.0)))
        await asyncio.gather(first, fresh, waited)
        assert [key.split("#")[0] for key in library.begun] == ["running", "waited", "fresh"]

    using(use, batch=1)


def test_a_request_that_fails_harms_no_other() -> None:
    async def use(engine: VllmEngine, library: ScriptedVllm) -> None:
        good = asyncio.create_task(collect(engine, asked("good", 40)))
        with pytest.raises(EngineError, match="illegal memory access"):
            await collect(engine, asked("bad", token=ScriptedVllm.FAULTY))
        assert sum(chunk.tokens for chunk in await good) == 40
        assert engine.alive()

    using(use)


def test_when_vllm_dies_streams_end_and_the_engine_says_it_is_dead() -> None:
    async def use(engine: VllmEngine, library: ScriptedVllm) -> None:
        begun = asyncio.create_task(collect(engine, asked("begun", 4000)))
        waits = asyncio.create_task(collect(engine, asked("waits", 4000)))
        await until(lambda: len(library.begun) == 1)
        library.dead = True
        for stream in (begun, waits):
            with pytest.raises(EngineStoppedError):
                await asyncio.wait_for(stream, 5)
        assert not engine.alive()
        assert isinstance(engine.failure(), EngineStoppedError)
        assert engine.stats().running == engine.stats().waiting == 0

    using(use, batch=1)


def test_a_stop_string_ends_the_computation_too() -> None:
    async def use(engine: VllmEngine, library: ScriptedVllm) -> None:
        request = replace(asked("a", 4000), sampling=SamplingParameters(stop=("EF",)))
        alone = await collect(engine, asked("b", 100))
        text = "".join(chunk.text for chunk in alone)
        chunks = await collect(engine, request)
        assert "".join(chunk.text for chunk in chunks) == text[: text.index("EF")]
        assert chunks[-1].finish_reason == "stop"
        await until(lambda: not library._running)

    using(use)


def test_it_sleeps_when_nobody_is_served_and_serves_again_when_woken() -> None:
    async def use(engine: VllmEngine, library: ScriptedVllm) -> None:
        busy = asyncio.create_task(collect(engine, asked("busy", 20)))
        await until(lambda: engine.stats().running == 1)
        with pytest.raises(EngineError, match="drain"):
            await engine.sleep()
        await busy
        with pytest.raises(EngineError, match="level"):
            await engine.sleep(7)
        assert engine.alive()
        assert await engine.drain(1.0)
        await engine.sleep()
        assert library.asleep
        with pytest.raises(EngineStoppedError):
            await collect(engine, asked("early"))
        assert engine.failure() is None
        await engine.wake()
        assert sum(chunk.tokens for chunk in await collect(engine, asked("after"))) == 4

    using(use)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_where_vllm_is_missing_it_is_said_before_anything_starts() -> None:
    with pytest.raises(EngineMissingError, match=r"serve\.engine vllm is not installed: pip install 'wattray\[vllm\]'"):
        check_engine(parse_settings({"serve": {"engine": "vllm"}}))


@pytest.mark.parametrize(
    ("serve", "told"),
    [
        ({"engine": "vllm", "vllm_args": {"tensor_parallel_size": 2}}, "tensor_parallel_size"),
        ({"engine": "vllm", "vllm_args": {"model": "x"}}, r"serve\.model_path"),
        ({"vllm_args": {"dtype": "float16"}}, r"set serve\.engine to vllm"),
    ],
)
def test_arguments_that_are_not_passed_on_are_refused(serve: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        parse_settings({"serve": serve})
