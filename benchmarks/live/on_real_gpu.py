"""Engines on this host's GPUs, alone and behind the stack: tokens a second, joules, equality, TP change. Sets nothing.

    python benchmarks/live/on_real_gpu.py equality|stack|transformers|reshard|killed --json OUT [--dry-run] [--rounds 4]

* equality: greedy answers of the vllm engine against transformers' ``generate()`` on the same small random weights, in
  float32 and bfloat16; what a cancelled request leaves in the KV cache; memory and time of sleep and wake.
* stack: 64 concurrent streams through HTTP, router, Ray Serve and replica (gpu.driver nvml, which only recommends),
  against bare AsyncLLM with the same arguments, in rounds that alternate; joules in the answers against NVML's total
  energy counter, read at most 10 times a second. Dimensions of Llama 3 8B, random weights.
* transformers: the same with the transformers engine and a model of 1 billion random weights.
* reshard: streams run while a TP2 engine is started beside a TP1 engine on the same GPUs, new requests go to it, and
  the TP1 engine is drained and stopped. Before that, joules told to 64 streams against NVML's counter.
* killed: whether vLLM's engine process ends when the engine's own is killed.

``--dry-run`` takes tiny dimensions, no NVML and a simulated GPU, for a machine without one.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import string
import subprocess
import sys
import tempfile
import threading
import time
from itertools import islice, product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
LLAMA_1B = {**LLAMA_8B, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
TINY = {**LLAMA_8B, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "vocab_size": 2048}
STREAMS = 64
PROMPT_TOKENS = 512
NO_ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
PORT = 9_431


def model_folder(folder: Path, dimensions: dict[str, Any], weights: bool) -> Path:
    """A model of random weights with a tokenizer of as many tokens: bytes, then pieces of ASCII letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig

    config = LlamaConfig(**dimensions, **NO_ENDS, max_position_embeddings=8192, tie_word_embeddings=False)
    config.architectures, config.torch_dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(folder)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ("".join(letters) for letters in product(string.ascii_letters, repeat=3))
    symbols += islice(pieces, dimensions["vocab_size"] - len(symbols))
    tokenizer = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    if weights:
        import torch
        from transformers import LlamaForCausalLM

        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            network = LlamaForCausalLM(config)
        network.save_pretrained(folder)
        del network
        torch.set_default_dtype(torch.float32)
    return folder


def prompts_of(seed: int, vocabulary: int) -> list[list[int]]:
    """Never the same twice, so that no prefix is in the cache."""
    draw = random.Random(seed)
    return [draw.choices(range(vocabulary), k=PROMPT_TOKENS) for _ in range(STREAMS)]


class Counter:
    """NVML's total energy of one GPU, joules, read by a thread every 0.1 s."""

    def __init__(self, index: int) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._nvml, self._gpu = pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)
        self.readings: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.wait(0.1):
            joules = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) / 1e3
            self.readings.append((time.monotonic(), joules))

    def between(self, began_s: float, ended_s: float) -> float:
        """Linear between readings."""
        while self.readings[-1][0] < ended_s:
            time.sleep(0.05)

        def at(moment_s: float) -> float:
            after = next(n for n, (when_s, _) in enumerate(self.readings) if when_s >= moment_s)
            (t0, j0), (t1, j1) = self.readings[max(0, after - 1)], self.readings[after]
            return j1 if t1 == t0 else j0 + (j1 - j0) * (moment_s - t0) / (t1 - t0)

        return at(ended_s) - at(began_s)


# Children: the bare library and the client of the stack, each in a process of its own.


def child(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def ask(process: subprocess.Popen[str], line: str) -> dict[str, Any]:
    """A line that begins with @ is the answer; libraries print what they like."""
    assert process.stdin is not None
    assert process.stdout is not None
    if line:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    while told := process.stdout.readline():
        if told.startswith("@"):
            answer: dict[str, Any] = json.loads(told[1:])
            return answer
    raise RuntimeError(f"a child has ended: {process.wait()}")


def say(answer: dict[str, Any]) -> None:
    print("@" + json.dumps(answer), flush=True)


async def bare_vllm(asked: argparse.Namespace) -> None:
    from vllm import SamplingParams, TokensPrompt
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=asked.model, skip_tokenizer_init=True, disable_log_stats=True, **json.loads(asked.arguments)
    )
    llm = AsyncLLM.from_engine_args(arguments)
    vocabulary = llm.model_config.get_vocab_size()

    async def one(key: str, prompt: list[int]) -> tuple[int, float, float]:
        params = SamplingParams(
            temperature=0.0, max_tokens=asked.answer, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        tokens, first_s = 0, 0.0
        async for output in llm.generate(TokensPrompt(prompt_token_ids=prompt), params, key):
            tokens += len(output.outputs[0].token_ids)
            first_s = first_s or time.monotonic()
        return tokens, first_s, time.monotonic()

    say({"ready": True})
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        began_s = time.monotonic()
        every = await asyncio.gather(
            *(one(f"{line}-{n}", prompt) for n, prompt in enumerate(prompts_of(int(line), vocabulary)))
        )
        say(summary(began_s, every))
    llm.shutdown()


async def bare_transformers(asked: argparse.Namespace) -> None:
    from serve_apps.engines.admission_queue import BatchLimits
    from serve_apps.engines.causal_model import load_model
    from serve_apps.engines.paged_batch import Answered, PagedBatch
    from serve_apps.engines.transformers_site import BATCH_REQUESTS, BATCH_TOKENS, PAGE_TOKENS

    model = load_model(Path(asked.model), "cuda" if not asked.dry_run else "cpu")
    batch = PagedBatch(model, BatchLimits(asked.kv_tokens, PAGE_TOKENS, BATCH_TOKENS, BATCH_REQUESTS))
    batch.start()
    say({"ready": True})
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        done: asyncio.Queue[tuple[int, float, float]] = asyncio.Queue()
        began_s = time.monotonic()
        firsts: dict[int, float] = {}
        for number, prompt in enumerate(prompts_of(int(line), model.vocabulary_size)):

            def told(answered: Answered, number: int = number, done: Any = done, firsts: Any = firsts) -> None:
                first_s = firsts.setdefault(number, time.monotonic())
                if answered.finished:
                    done.put_nowait((len(answered.tokens), first_s, time.monotonic()))

            batch.submit(f"{line}-{number}", prompt, asked.answer, None, told)
        every = [await done.get() for _ in range(STREAMS)]
        say(summary(began_s, every))
    batch.stop()


def summary(began_s: float, every: list[tuple[int, float, float]]) -> dict[str, Any]:
    """``every``: tokens, time of the first one and of the last one."""
    ended_s = max(last_s for _, _, last_s in every)
    gaps = [(last_s - first_s) / max(1, tokens - 1) for tokens, first_s, last_s in every]
    return {
        "tokens": sum(tokens for tokens, _, _ in every),
        "tokens_per_s": sum(tokens for tokens, _, _ in every) / (ended_s - began_s),
        "ttft_p50_s": statistics.median(first_s - began_s for _, first_s, _ in every),
        "tbt_mean_ms": statistics.mean(gaps) * 1e3,
        "began_s": began_s,
        "ended_s": ended_s,
    }


async def client_of(asked: argparse.Namespace) -> None:
    """Tokens, joules and times of the streams through the router."""
    import aiohttp

    async def one(session: aiohttp.ClientSession, prompt: list[int]) -> tuple[tuple[int, float, float], float | None]:
        body = {
            "model": "llama2-70b",
            "prompt": prompt,
            "max_tokens": asked.answer,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        tokens, first_s, joules = 0, 0.0, None
        async with session.post(f"{asked.url}/v1/completions", json=body) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    first_s = first_s or time.monotonic()
                    usage = json.loads(line[6:]).get("usage") or {}
                    tokens, joules = usage.get("completion_tokens", tokens), usage.get("energy_j", joules)
        if tokens != asked.answer:
            raise RuntimeError(f"{tokens} tokens of {asked.answer}: {response.status}")
        return (tokens, first_s, time.monotonic()), joules

    say({"ready": True})
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 20) as session:
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            began_s = time.monotonic()
            found = await asyncio.gather(*(one(session, p) for p in prompts_of(int(line), asked.vocabulary)))
            joules = [joules for _, joules in found]
            told = None if None in joules else sum(joules)  # type: ignore[arg-type]
            say({**summary(began_s, [times for times, _ in found]), "told_j": told})


# Parts.


def behind_the_stack(asked: argparse.Namespace, engine: str, folder: Path) -> dict[str, Any]:
    dimensions = TINY if asked.dry_run else LLAMA_8B if engine == "vllm" else LLAMA_1B
    model_folder(folder, dimensions, weights=engine == "transformers")
    arguments: dict[str, Any] = {"load_format": "dummy", "max_model_len": 8192}
    arguments |= {"enforce_eager": True} if asked.dry_run else {"gpu_memory_utilization": 0.42}
    kv_tokens = 131_072
    serve: dict[str, Any] = {"engine": engine, "port": PORT, "model_path": str(folder)}
    serve |= {"vllm_args": arguments} if engine == "vllm" else {"kv_cache_tokens": kv_tokens}
    gpu: dict[str, Any] = {"count": 1} if asked.dry_run else {"count": 1, "driver": "nvml"}

    from control_plane.domain import Load
    from control_plane.settings import parse_settings
    from wattray import lifecycle
    from wattray.ray_head import Ports
    from wattray.take_down import take_down

    settings = parse_settings({"policy": "single-pool", "profile": "llama8b-h200", "gpu": gpu, "serve": serve})
    assert asked.dry_run or settings.gpu.control == "recommend"
    common = ("--model", str(folder), "--answer", str(asked.answer), *(["--dry-run"] if asked.dry_run else []))
    bare = child("bare-" + engine, *common, "--arguments", json.dumps(arguments), "--kv-tokens", str(kv_tokens))
    ask(bare, "")
    began_s = time.monotonic()
    ports = Ports(PORT + 1, PORT + 2, PORT + 3)
    try:
        running = lifecycle.up(settings, ports, Load(), None, print, own_head=True)
    finally:
        keep_logs(asked.logs)
    up_s = time.monotonic() - began_s
    try:
        vocabulary = str(dimensions["vocab_size"])
        client = child("client", *common, "--url", running.router_url, "--vocabulary", vocabulary)
        ask(client, "")
        counter = None if asked.dry_run else Counter(0)
        pairs = []
        for number in range(asked.rounds + 1):
            first, second = (bare, client) if number % 2 else (client, bare)
            found = {id(first): ask(first, str(2 * number))}
            time.sleep(0.5)
            found[id(second)] = ask(second, str(2 * number + 1))
            alone, stack = found[id(bare)], found[id(client)]
            if counter is not None:
                for one in (alone, stack):
                    one["metered_j"] = counter.between(one["began_s"], one["ended_s"])
            if number > 0:  # the first one warms both up
                pairs.append({"bare": alone, "stack": stack})
            print(json.dumps({"bare": alone, "stack": stack}), flush=True)
            time.sleep(0.5)
    finally:
        keep_logs(asked.logs)
        take_down(running, print)
        # Killed, it would leave its engine process on the GPU.
        bare.communicate("\n", timeout=60)
    ratios = [pair["stack"]["tokens_per_s"] / pair["bare"]["tokens_per_s"] for pair in pairs]
    known = [pair["stack"] for pair in pairs if pair["stack"]["told_j"] and "metered_j" in pair["stack"]]
    energy = [one["told_j"] / one["metered_j"] for one in known]
    return {
        "up_s": up_s,
        "streams": STREAMS,
        "prompt_tokens": PROMPT_TOKENS,
        "answer_tokens": asked.answer,
        "dimensions": dimensions,
        "bare_tokens_per_s": statistics.median(pair["bare"]["tokens_per_s"] for pair in pairs),
        "stack_tokens_per_s": statistics.median(pair["stack"]["tokens_per_s"] for pair in pairs),
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "told_of_metered_j": energy,
        "told_j_per_token": [one["told_j"] / one["tokens"] for one in known],
        "pairs": pairs,
    }


def keep_logs(into: Path | None) -> None:
    """The ends of Ray Serve's logs."""
    if into is not None:
        files = sorted(Path(tempfile.gettempdir()).glob("**/session_latest/logs/serve/*.log"))
        into.write_text("\n".join(f"== {file.name}\n{file.read_text()[-6000:]}" for file in files))


def vllm_engine_of(tp: int, folder: Path | None, arguments: dict[str, Any]) -> Any:
    from serve_apps.engines.charged_activity import RealGpus
    from serve_apps.engines.model_tokenizer import tokenizer_of
    from serve_apps.engines.vllm_engine import VllmEngine
    from serve_apps.engines.vllm_library import VllmLibrary

    library = VllmLibrary(folder, tp, 0.25, arguments)
    return VllmEngine(library, tokenizer_of(None if folder is None else str(folder)), RealGpus(), 0.25, tp)


async def equality(asked: argparse.Namespace) -> dict[str, Any]:
    import torch

    from serve_apps.engines.causal_model import small_llama
    from serve_apps.engines.protocol import GenerateRequest

    device = "cpu" if asked.dry_run else "cuda"
    prompts = [tuple((7 * n + 3 * at) % 256 for at in range(5 + 23 * n)) for n in range(16)]
    answer = 64
    found: dict[str, Any] = {"prompts": len(prompts), "answer_tokens": answer}
    for dtype in ("float32",) if asked.dry_run else ("float32", "bfloat16"):
        arguments = {"dtype": dtype, "max_model_len": 8192, "gpu_memory_utilization": 0.3}
        engine = vllm_engine_of(1, None, {**arguments, **({"enforce_eager": True} if asked.dry_run else {})})
        began_s = time.monotonic()
        await engine.load()
        load_s = time.monotonic() - began_s

        async def tokens_of(name: str, prompt: tuple[int, ...], engine: Any = engine) -> list[int]:
            stream = engine._submit(GenerateRequest(name, "", len(prompt), answer, prompt))
            while not stream.finished:
                stream.changed.clear()
                await stream.changed.wait()
            engine._streams.pop(name)
            return list(stream.tokens)

        got = await asyncio.gather(*(tokens_of(str(n), prompt) for n, prompt in enumerate(prompts)))
        network = small_llama().to(device=device, dtype=getattr(torch, dtype))
        same, agree = 0, []
        for prompt, tokens in zip(prompts, got, strict=True):
            ids = torch.tensor([prompt], device=device)
            mask = torch.ones_like(ids)
            whole = network.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=answer, pad_token_id=0)
            expected = whole[0, len(prompt) :].tolist()
            begins = next((n for n, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b), None)
            same += begins is None
            if begins is not None:  # how near the two candidates were for the model itself
                before = torch.tensor([list(prompt) + expected[:begins]], device=device)
                with torch.no_grad():
                    logits = network(before).logits[0, -1].float()
                apart = float(logits[expected[begins]] - logits[tokens[begins]])
                agree.append({"from": begins, "logits_apart": apart, "spread": float(logits.std())})
        found[dtype] = {"load_s": load_s, "equal": same, "differ": agree}

        reading = asyncio.ensure_future(anext(engine.generate(GenerateRequest("x", "", 512, 4000, (7,) * 512))))
        await reading
        held = engine._library.kv_used_ratio()
        engine.cancel("x")
        await tokens_of("after", prompts[0])
        found[dtype]["kv_used_ratio"] = {"before_cancel": held, "after_the_next": engine._library.kv_used_ratio()}
        if not asked.dry_run:
            await engine.drain(5.0)
            before = torch.cuda.mem_get_info()[0]
            began_s = time.monotonic()
            await engine.sleep(1)
            asleep_s, asleep = time.monotonic() - began_s, torch.cuda.mem_get_info()[0]
            began_s = time.monotonic()
            await engine.wake()
            found[dtype]["sleep"] = {
                "freed_gib": (asleep - before) / 2**30,
                "sleep_s": asleep_s,
                "wake_s": time.monotonic() - began_s,
                "same_answer_after": await tokens_of("woken", prompts[3]) == got[3],
            }
        await engine.shutdown()
        del network
    return found


async def account_of(engine: Any, vocabulary: int, round_number: int, answer: int) -> dict[str, float]:
    """64 streams that end together, told their joules as a replica tells them."""
    from actors.gpu.drivers import measured_gpus
    from actors.gpu.nvml_node import NvmlNode
    from control_plane.hardware.profiles import load_profile
    from control_plane.serving.energy_shares import prompt_token_work
    from serve_apps.engines.protocol import GenerateRequest
    from serve_apps.replica_energy import ReplicaEnergy

    profile = load_profile("llama8b-h200")
    work = prompt_token_work(profile.times(1).alpha_ps(profile.max_freq_mhz))
    energy = ReplicaEnergy(measured_gpus((NvmlNode().uuid_of(0),)), work, time.monotonic)
    energy.look()

    async def one(number: int, prompt: list[int]) -> float:
        request = GenerateRequest(f"a{number}", "", len(prompt), answer, tuple(prompt))
        energy.began(request)
        async for chunk in engine.generate(request):
            energy.progressed(request.request_id, chunk.tokens)
        return energy.ended(request.request_id) or 0.0

    counter = Counter(0)
    await asyncio.sleep(1)
    began_s = time.monotonic()
    prompts = prompts_of(1000 + round_number, vocabulary)
    told = await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))
    ended_s = time.monotonic()
    await asyncio.sleep(0.5)
    metered_j = counter.between(began_s, ended_s)
    return {"told_j": sum(told), "metered_j": metered_j, "ratio": sum(told) / metered_j, "s": ended_s - began_s}


async def reshard(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A request goes to the newest engine that takes it."""
    from serve_apps.engines.protocol import GenerateRequest

    model_folder(folder, TINY if asked.dry_run else LLAMA_8B, weights=False)
    vocabulary = (TINY if asked.dry_run else LLAMA_8B)["vocab_size"]
    arguments: dict[str, Any] = {"load_format": "dummy", "max_model_len": 8192}
    arguments |= {"enforce_eager": True, **({} if asked.dry_run else {"gpu_memory_utilization": 0.42})}
    engines = {1: vllm_engine_of(1, folder, arguments)}
    began_s = time.monotonic()
    await engines[1].load()
    found: dict[str, Any] = {"tp1_load_s": time.monotonic() - began_s}
    if not asked.dry_run:
        found["account"] = [await account_of(engines[1], vocabulary, number, 768) for number in range(asked.rounds)]
    newest, stopping = [1], asyncio.Event()
    ended: list[dict[str, Any]] = []
    draw = random.Random(3)

    async def client(number: int) -> None:
        turn = 0
        while not stopping.is_set():
            prompt = tuple(draw.choices(range(vocabulary), k=PROMPT_TOKENS))
            tp, tokens, widest_s, last_s = newest[0], 0, 0.0, time.monotonic()
            try:
                request = GenerateRequest(f"{number}-{turn}", "", len(prompt), asked.answer, prompt)
                async for chunk in engines[tp].generate(request):
                    tokens += chunk.tokens
                    widest_s, last_s = max(widest_s, time.monotonic() - last_s), time.monotonic()
                whole = tokens == asked.answer
            except Exception as error:  # noqa: BLE001 - whatever it is, the stream is lost
                print(f"lost: {error!r}", flush=True)
                whole = False
            ended.append({"tp": tp, "whole": whole, "widest_gap_s": widest_s, "at_s": time.monotonic() - began_s})
            turn += 1

    clients = [asyncio.ensure_future(client(number)) for number in range(STREAMS)]
    await asyncio.sleep(5)
    second = 1 if asked.dry_run else 2
    engines[2] = vllm_engine_of(second, folder, arguments)
    start_s = time.monotonic()
    await engines[2].load()
    found["tp2_load_s"] = time.monotonic() - start_s
    newest[0] = 2
    switched_s = time.monotonic()
    in_flight = engines[1].stats().running + engines[1].stats().waiting
    drained = await engines[1].drain(120.0)
    found |= {"in_flight_at_switch": in_flight, "drained": drained, "drain_s": time.monotonic() - switched_s}
    await engines[1].shutdown()
    found["old_gone_s"] = time.monotonic() - switched_s
    await asyncio.sleep(5)
    stopping.set()
    await asyncio.gather(*clients)
    await engines[2].shutdown()
    for tp in (1, 2):
        mine = [one for one in ended if one["tp"] == tp]
        found[f"tp{tp}_streams"] = len(mine)
        found[f"tp{tp}_widest_gap_s"] = max((one["widest_gap_s"] for one in mine), default=None)
    return {**found, "lost": sum(1 for one in ended if not one["whole"])}


async def parent_to_kill(asked: argparse.Namespace) -> None:
    arguments = {"enforce_eager": True, "max_model_len": 8192, "gpu_memory_utilization": 0.3}
    engine = vllm_engine_of(1, None, arguments)
    await engine.load()
    await asyncio.sleep(3)
    say({"ready": True})
    await asyncio.sleep(600)


def killed(asked: argparse.Namespace) -> dict[str, Any]:
    import psutil

    parent = child("parent-to-kill", *(["--dry-run"] if asked.dry_run else []))
    ask(parent, "")
    children = psutil.Process(parent.pid).children(recursive=True)
    names = [" ".join(one.cmdline())[:60] for one in children]
    os.kill(parent.pid, signal.SIGKILL)
    began_s = time.monotonic()
    gone, alive = psutil.wait_procs(children, 20)
    return {"children": names, "gone": len(gone), "left": len(alive), "within_s": time.monotonic() - began_s}


def main() -> None:
    asking = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["equality", "stack", "transformers", "reshard", "killed"]
    asking.add_argument("part", choices=[*parts, "bare-vllm", "bare-transformers", "client", "parent-to-kill"])
    asking.add_argument("--json", type=Path)
    asking.add_argument("--logs", type=Path, help="Write the ends of Ray Serve's logs there.")
    asking.add_argument("--rounds", type=int, default=4)
    asking.add_argument("--answer", type=int, default=768)
    asking.add_argument("--dry-run", action="store_true")
    for name in ("--model", "--arguments", "--url"):
        asking.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--vocabulary", "--kv-tokens"):
        asking.add_argument(name, type=int, help=argparse.SUPPRESS)
    asked = asking.parse_args()
    inner = {
        "bare-vllm": bare_vllm,
        "bare-transformers": bare_transformers,
        "client": client_of,
        "parent-to-kill": parent_to_kill,
    }
    if asked.part in inner:
        asyncio.run(inner[asked.part](asked))
        return
    with tempfile.TemporaryDirectory(prefix="wt-", dir="/tmp") as folder:
        os.environ["TMPDIR"] = os.environ["RAY_TMPDIR"] = folder
        os.environ["RAY_AUTH_TOKEN_PATH"] = f"{folder}/auth_token"
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        tempfile.tempdir = None
        model = Path(folder) / "model"
        if asked.part in ("stack", "transformers"):
            found = behind_the_stack(asked, "vllm" if asked.part == "stack" else "transformers", model)
        elif asked.part == "reshard":
            found = asyncio.run(reshard(asked, model))
        else:
            found = asyncio.run(equality(asked)) if asked.part == "equality" else killed(asked)
        shutil.rmtree(model, ignore_errors=True)
    found = {"part": asked.part, "host": host(asked.dry_run), **found}
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "pairs"}, indent=1))


def host(dry: bool) -> dict[str, Any]:
    if dry:
        return {"cores": os.cpu_count()}
    import pynvml
    import torch
    import transformers

    pynvml.nvmlInit()
    gpus = [pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(n)) for n in range(pynvml.nvmlDeviceGetCount())]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"cores": os.cpu_count(), "gpus": gpus, "driver": pynvml.nvmlSystemGetDriverVersion(), **versions}


if __name__ == "__main__":
    main()
