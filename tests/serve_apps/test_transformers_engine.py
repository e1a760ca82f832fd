"""The transformers engine against ``generate()`` and against the model itself: the small one with random weights."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from serve_apps.engines.admission_queue import BatchLimits
from serve_apps.engines.causal_model import SMALL_LLAMA, small_llama
from serve_apps.engines.charged_activity import RealGpus
from serve_apps.engines.model_tokenizer import tokenizer_of
from serve_apps.engines.protocol import (
    Chunk,
    EngineError,
    EngineStoppedError,
    GenerateRequest,
    RequestRefusedError,
    SamplingParameters,
)
from serve_apps.engines.transformers_engine import ModelSite, TransformersEngine

pytestmark = pytest.mark.usefixtures("small_heap")

LIMITS = BatchLimits(kv_tokens=2048, page_tokens=16, batch_tokens=64, batch_requests=16)
PROMPTS = [tuple((7 * number + 3 * at) % 256 for at in range(5 + 23 * number)) for number in range(8)]
ANSWER = 24
NETWORK = small_llama()


def generated(prompt: tuple[int, ...], tokens: int = ANSWER) -> list[int]:
    """What ``generate()`` says alone, greedily."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    whole = NETWORK.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    return [int(token) for token in whole[0, len(prompt) :]]


EXPECTED = [generated(prompt) for prompt in PROMPTS]


class Known(TransformersEngine):
    """Keeps the tokens of every stream that has ended, which text does not show."""

    def __init__(self, limits: BatchLimits, folder: Path | None = None) -> None:
        site = ModelSite(folder, "cpu", limits, 0.0, 1)
        super().__init__(site, tokenizer_of(None if folder is None else str(folder)), RealGpus())


@asynccontextmanager
async def running(limits: BatchLimits = LIMITS, folder: Path | None = None) -> AsyncIterator[Known]:
    engine = Known(limits, folder)
    await engine.load()
    try:
        yield engine
    finally:
        await engine.shutdown()


def using(use: Callable[[Known], Awaitable[None]], limits: BatchLimits = LIMITS, folder: Path | None = None) -> None:
    async def run() -> None:
        async with running(limits, folder) as engine:
            await use(engine)

    asyncio.run(run())


def asked(name: str, prompt: tuple[int, ...], tokens: int = ANSWER, **sampling: object) -> GenerateRequest:
    return GenerateRequest(name, "", len(prompt), tokens, prompt, SamplingParameters(**sampling))  # type: ignore[arg-type]


async def collect(engine: TransformersEngine, request: GenerateRequest) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request)]


async def text_of(engine: TransformersEngine, request: GenerateRequest) -> str:
    return "".join([chunk.text for chunk in await collect(engine, request)])


def decoded(token_ids: list[int]) -> str:
    return tokenizer_of(None).decode(token_ids)


async def until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not claim():
            await asyncio.sleep(0.002)


def test_greedy_answers_are_those_of_generate() -> None:
    async def use(engine: Known) -> None:
        texts = await asyncio.gather(*(text_of(engine, asked(str(n), p)) for n, p in enumerate(PROMPTS)))
        assert texts == [decoded(tokens) for tokens in EXPECTED]

    using(use)


@hypothesis_settings(max_examples=5)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 8), st.one_of(st.none(), st.integers(1, 6))), max_size=14),
    st.sampled_from([LIMITS, replace(LIMITS, kv_tokens=272), replace(LIMITS, batch_tokens=32, batch_requests=3)]),
)
def test_answers_are_those_of_generate_however_requests_come_and_are_cancelled(
    arrivals: list[tuple[int, int, int | None]], limits: BatchLimits
) -> None:
    """An arrival is a prompt, milliseconds before it, and after how many tokens the client leaves, if it does."""

    async def one(engine: Known, name: str, number: int, leaves: int | None) -> None:
        text, tokens = "", 0
        stream = engine.generate(asked(name, PROMPTS[number]))
        async for chunk in stream:
            text, tokens = text + chunk.text, tokens + chunk.tokens
            if leaves is not None and tokens >= leaves:
                await stream.aclose()
                return
        assert (text, tokens) == (decoded(EXPECTED[number]), ANSWER)

    async def use(engine: Known) -> None:
        tasks = []
        for at, (number, wait_ms, leaves) in enumerate(arrivals):
            await asyncio.sleep(wait_ms / 1000)
            tasks.append(asyncio.create_task(one(engine, f"r{at}", number, leaves)))
        await asyncio.gather(*tasks)
        batch = engine._batch
        assert batch is not None
        await until(lambda: batch.kv_free_ratio == 1.0)
        assert batch.handlers == 0
        assert engine.stats().kv_used_ratio == 0.0

    using(use, limits)


def test_a_cancelled_request_leaves_nothing_in_the_library() -> None:
    async def use(engine: Known) -> None:
        batch = engine._batch
        assert batch is not None
        reading = asyncio.create_task(collect(engine, asked("a", PROMPTS[3], 1500)))
        await until(lambda: batch.kv_free_ratio < 1.0)
        assert engine.cancel("a")
        with pytest.raises(EngineError, match="cancelled"):
            await reading
        assert batch.handlers == 0
        await until(lambda: batch.kv_free_ratio == 1.0)

    using(use)


def test_the_prompt_whose_first_token_is_due_first_is_begun_first() -> None:
    async def use(engine: Known) -> None:
        order = []

        async def first(name: str, prompt: tuple[int, ...], limit_s: float) -> None:
            await collect(engine, replace(asked(name, prompt, 1), ttft_limit_s=limit_s))
            order.append(name)

        long = tuple(range(256)) * 2
        asks = [("long", long, 60.0), ("third", PROMPTS[0], 9.0), ("second", PROMPTS[1], 5.0), ("first", PROMPTS[2], 2)]
        tasks = []
        for name, prompt, limit_s in asks:
            tasks.append(asyncio.create_task(first(name, prompt, limit_s)))
            await asyncio.sleep(0)
        assert (engine.stats().waiting, engine.stats().running) == (3, 1)
        assert [prompt.ttft_limit_s for prompt in engine.queue(1000).queued] == [2.0, 5.0, 9.0, 60.0]
        await asyncio.gather(*tasks)
        assert order == ["long", "first", "second", "third"]

    using(use, replace(LIMITS, batch_requests=1, batch_tokens=64))


def sampled(prompt: tuple[int, ...], tokens: int, seed: int, temperature: float, top_p: float, top_k: int) -> list[int]:
    """The definition, one token at a time: softmax of the logits over the temperature, the ``top_k`` likeliest, then
    the fewest likeliest that make up ``top_p``; one draw of the request's own generator a token."""
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    for _ in range(tokens):
        with torch.no_grad():
            logits = NETWORK(torch.tensor([ids])).logits[0, -1].float() / temperature
        ranked = torch.argsort(logits, descending=True)
        kept = ranked[: top_k or len(ranked)]
        shares = torch.softmax(logits[kept], dim=-1)
        before = torch.cumsum(shares, dim=-1) - shares
        kept = kept[before < top_p]
        likely = torch.zeros_like(logits)
        likely[kept] = torch.softmax(logits[kept], dim=-1)
        ids.append(int(torch.multinomial(likely, 1, generator=generator)))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.7, 1.0, 5), (1.5, 0.8, 0), (2.0, 0.9, 40)]
)
def test_a_sampled_answer_is_its_seeds_alone(temperature: float, top_p: float, top_k: int) -> None:
    async def use(engine: Known) -> None:
        fields = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
        together = await asyncio.gather(
            text_of(engine, asked("a", PROMPTS[2], seed=5, **fields)),
            text_of(engine, asked("b", PROMPTS[2], seed=6, **fields)),
            text_of(engine, asked("c", PROMPTS[4])),
            text_of(engine, asked("d", PROMPTS[5], **fields)),
        )
        assert together[0] == decoded(sampled(PROMPTS[2], ANSWER, 5, temperature, top_p, top_k))
        assert together[1] == decoded(sampled(PROMPTS[2], ANSWER, 6, temperature, top_p, top_k)) != together[0]
        assert together[2] == decoded(EXPECTED[4]), "a greedy neighbour stays greedy"
        assert engine._batch is not None
        assert not engine._batch._sampling._samplers

    using(use)


def test_extreme_sampling_is_greedy_and_unknown_penalties_are_refused() -> None:
    async def use(engine: Known) -> None:
        for fields in ({"temperature": 0.0, "seed": -(2**70)}, {"temperature": 1.0, "top_k": 1, "seed": 2**70}):
            assert await text_of(engine, asked("a", PROMPTS[1], **fields)) == decoded(EXPECTED[1])
        with pytest.raises(RequestRefusedError, match="presence_penalty"):
            await collect(engine, asked("a", PROMPTS[1], presence_penalty=0.5))

    using(use)


def test_a_stop_string_ends_the_answer_and_frees_its_cache() -> None:
    async def use(engine: Known) -> None:
        alone = decoded(generated(PROMPTS[1], 200))
        stop = next(alone[at : at + 2] for at in range(20, len(alone)) if alone[at : at + 2].isascii())
        chunks = await collect(engine, asked("a", PROMPTS[1], 1500, stop=("never said", stop)))
        assert "".join(chunk.text for chunk in chunks) == alone[: alone.index(stop)]
        assert chunks[-1].finish_reason == "stop"
        assert sum(chunk.tokens for chunk in chunks) < 200
        assert engine._batch is not None
        batch = engine._batch
        await until(lambda: batch.kv_free_ratio == 1.0)

    using(use)


def test_tokens_that_the_model_does_not_have_are_refused_and_harm_nobody() -> None:
    async def use(engine: Known) -> None:
        for token in (256, -1, 2**40):
            with pytest.raises(RequestRefusedError, match=f"{token} is no token"):
                await collect(engine, asked("a", (1, token)))
        assert await text_of(engine, asked("a", PROMPTS[0])) == decoded(EXPECTED[0])

    using(use)


def test_a_batch_whose_thread_dies_ends_every_stream_and_is_known_to_be_dead() -> None:
    async def use(engine: Known) -> None:
        assert engine._batch is not None
        begun = asyncio.create_task(collect(engine, asked("begun", PROMPTS[0], 1000)))
        waits = asyncio.create_task(collect(engine, asked("waits", PROMPTS[0], 1000)))
        await until(lambda: engine.stats().running == 1 and engine.stats().waiting == 1)

        def broken(*args: object) -> None:
            raise RuntimeError("the device is gone")

        engine._batch._manager.batch_processor._generation_step = broken
        for stream in (begun, waits):
            with pytest.raises((EngineStoppedError, EngineError)):
                await asyncio.wait_for(stream, 5)
        await until(lambda: not engine.alive())
        assert "the device is gone" in repr(engine.failure())
        with pytest.raises(EngineStoppedError, match="stopped"):
            await collect(engine, asked("late", PROMPTS[0]))

    using(use, replace(LIMITS, kv_tokens=1040))


def test_a_model_from_a_folder_ends_its_answers_with_its_own_token(tmp_path: Path) -> None:
    end = EXPECTED[2][6]
    network = small_llama()
    network.generation_config.eos_token_id = end
    network.save_pretrained(tmp_path)
    tokenizer_of(None)._tokenizer.save(str(tmp_path / "tokenizer.json"))
    said = EXPECTED[2][: EXPECTED[2].index(end) + 1]

    async def use(engine: Known) -> None:
        chunks = await collect(engine, asked("a", PROMPTS[2], 500))
        assert "".join(chunk.text for chunk in chunks) == decoded(said)
        assert sum(chunk.tokens for chunk in chunks) == len(said)
        assert chunks[-1].finish_reason == "stop"

    using(use, folder=tmp_path)


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    tokenizer_of(None)._tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": SMALL_LLAMA["vocab_size"]}))

    async def run() -> None:
        with pytest.raises(EngineError, match=r"serve\.model_path"):
            await Known(LIMITS, tmp_path).load()

    asyncio.run(run())
