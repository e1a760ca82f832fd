"""Iteration times and power of Llama-3.1-8B's dimensions on this machine's GPU, at whatever clock it runs.

    python on_real_gpu.py -o points.json [--seconds 0.8] [--repeats 5] [--dry-run]

It needs torch, numpy and nvidia-ml-py alone, and reads only: no clock, power limit or mode is set. Weights are random.
An iteration is all 32 layers and the output layer, attention through torch's SDPA (FlashAttention), recorded in a
CUDA graph; there is no scheduler, tokenizer or HTTP. Times are between CUDA events, watts are NVML's instantaneous
power while the graph repeats; both with a 95 % confidence interval over the repeats. ``compare_built.py`` sets the
result against `wattray profile build`. ``--dry-run`` runs tiny dimensions on the CPU and measures no power.
"""

import argparse
import json
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Student's t of a 95 % interval by repeats."""
SAMPLE_S = 0.05
WARM_S = 0.25
"""Of every repeat, in which power is not read: NVML's instantaneous power lags by up to 0.1 s."""
RESERVED_BYTES = 6 << 30
"""Left free for activations and graphs."""


@dataclass(frozen=True)
class Dimensions:
    """A dense transformer with grouped-query attention."""

    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head: int = 128
    feed_forward: int = 14336
    vocabulary: int = 128256


LLAMA_8B = Dimensions()
TINY = Dimensions(2, 64, 4, 2, 16, 128, 256)


@dataclass(frozen=True)
class Point:
    """One iteration: ``batch`` decoders of ``context`` tokens each, and ``chunk`` prompt tokens of one request."""

    kind: str
    batch: int
    context: int
    chunk: int


def points(tiny: bool) -> list[Point]:
    if tiny:
        return [Point("decode", 2, 32, 0), Point("prefill", 0, 0, 16), Point("mixed", 2, 32, 16)]
    found = [
        Point("decode", batch, context, 0) for context in (512, 2048, 8192) for batch in (1, 4, 8, 16, 32, 64, 128, 256)
    ]
    found += [Point("prefill", 0, 0, tokens) for tokens in (64, 128, 256, 512, 1024, 2048, 4096, 8192)]
    found += [Point("mixed", batch, 1024, chunk) for chunk in (448, 1024, 1920) for batch in (16, 64, 128)]
    return found


class Transformer:
    """Random weights, and one iteration over given buffers. Nothing in it allocates what a graph could not hold."""

    def __init__(self, size: Dimensions, device: str, dtype: torch.dtype) -> None:
        self.size, self.device, self.dtype = size, device, dtype
        generator = torch.Generator(device=device).manual_seed(1)

        def weight(rows: int, columns: int) -> torch.Tensor:
            values = torch.randn(rows, columns, device=device, dtype=dtype, generator=generator)
            return values.mul_(1 / math.sqrt(columns))

        width = size.heads * size.head
        narrow = size.kv_heads * size.head
        self.layers = [
            (
                weight(width + 2 * narrow, size.hidden),
                weight(size.hidden, width),
                weight(2 * size.feed_forward, size.hidden),
                weight(size.hidden, size.feed_forward),
            )
            for _ in range(size.layers)
        ]
        self.output = weight(size.vocabulary, size.hidden)
        self.norm = torch.ones(size.hidden, device=device, dtype=dtype)

    def iteration(self, point: Point, cache: torch.Tensor | None) -> Callable[[], torch.Tensor]:
        """One pass over ``point``. ``cache`` is [layers, 2, batch, kv heads, context, head]; a decoder's new entry is
        written at its end."""
        size, batch, chunk = self.size, point.batch, point.chunk
        hidden = torch.randn(batch + chunk, size.hidden, device=self.device, dtype=self.dtype)
        angles = torch.rand(batch + chunk, 1, size.head // 2, device=self.device, dtype=self.dtype)
        cosine, sine = angles.cos(), angles.sin()
        width, narrow = size.heads * size.head, size.kv_heads * size.head
        group = size.heads // size.kv_heads
        last = torch.arange(batch + (1 if chunk else 0), device=self.device)
        if chunk:
            last[-1] = batch + chunk - 1

        def turned(values: torch.Tensor) -> torch.Tensor:
            left, right = values.chunk(2, dim=-1)
            return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)

        def attention(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            parts = []
            if batch:
                assert cache is not None
                keys, values = cache[layer, 0], cache[layer, 1]
                keys[:, :, -1] = key[:batch]
                values[:, :, -1] = value[:batch]
                # The heads that share keys stand as rows of one query: keys are read once.
                packed = query[:batch].view(batch, size.kv_heads, group, size.head)
                parts.append(functional.scaled_dot_product_attention(packed, keys, values).reshape(batch, width))
            if chunk:
                one = [part[batch:].transpose(0, 1).unsqueeze(0) for part in (query, key, value)]
                found = functional.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True)
                parts.append(found.squeeze(0).transpose(0, 1).reshape(chunk, width))
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        def run() -> torch.Tensor:
            state = hidden
            for layer, (projections, mixed, up, down) in enumerate(self.layers):
                normed = functional.rms_norm(state, (size.hidden,), self.norm)
                query, key, value = functional.linear(normed, projections).split((width, narrow, narrow), dim=-1)
                query = turned(query.view(-1, size.heads, size.head))
                key = turned(key.view(-1, size.kv_heads, size.head))
                value = value.view(-1, size.kv_heads, size.head)
                state = state + functional.linear(attention(layer, query, key, value), mixed)
                normed = functional.rms_norm(state, (size.hidden,), self.norm)
                gate, rest = functional.linear(normed, up).chunk(2, dim=-1)
                state = state + functional.linear(functional.silu(gate) * rest, down)
            normed = functional.rms_norm(state.index_select(0, last), (size.hidden,), self.norm)
            return functional.linear(normed, self.output).argmax(dim=-1)

        return run


class Nvml:
    """Readings of one GPU. Nothing is ever set."""

    def __init__(self, index: int) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._gpu = pynvml.nvmlDeviceGetHandleByIndex(index)

    def power_w(self) -> float:
        """Instantaneous power where the GPU tells it, else NVML's mean of the last second."""
        field = self._nvml.nvmlDeviceGetFieldValues(self._gpu, [self._nvml.NVML_FI_DEV_POWER_INSTANT])[0]
        if field.nvmlReturn == self._nvml.NVML_SUCCESS:
            return float(field.value.uiVal) / 1e3
        return float(self._nvml.nvmlDeviceGetPowerUsage(self._gpu)) / 1e3

    def clock_mhz(self) -> int:
        return int(self._nvml.nvmlDeviceGetClockInfo(self._gpu, self._nvml.NVML_CLOCK_SM))

    def reasons(self) -> int:
        return int(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._gpu))

    def told(self) -> dict[str, object]:
        nvml, gpu = self._nvml, self._gpu
        return {
            "name": nvml.nvmlDeviceGetName(gpu),
            "driver": nvml.nvmlSystemGetDriverVersion(),
            "power_limit_w": nvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1e3,
            "max_sm_mhz": nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
            "memory_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
            "temperature_c": nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        }

    def idle(self, seconds: float = 2.0) -> dict[str, float]:
        end, watts = time.monotonic() + seconds, []
        while time.monotonic() < end:
            watts.append(self.power_w())
            time.sleep(SAMPLE_S)
        return {"w": round(statistics.mean(watts), 1), "sm_mhz": self.clock_mhz()}


class Watch:
    """Power, clock and clock-event reasons, read in a thread while work runs."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml, self._stop = nvml, threading.Event()
        self.watts: list[float] = []
        self.clocks: list[int] = []
        self.reasons = 0
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        if self._stop.wait(WARM_S):
            return
        while not self._stop.wait(SAMPLE_S):
            self.watts.append(self._nvml.power_w())
            self.clocks.append(self._nvml.clock_mhz())
            self.reasons |= self._nvml.reasons()


def interval(values: list[float]) -> tuple[float, float]:
    """The mean and the half width of its 95 % confidence interval."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.mean(values), T_95.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values))


def measured(run: Callable[[], object], nvml: Nvml | None, seconds: float, repeats: int) -> dict[str, object]:
    """Times and watts of ``run``, as a CUDA graph where there is a GPU."""
    on_gpu = nvml is not None
    if on_gpu:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
    once_s = timed(run, 3, on_gpu)
    count = max(5, math.ceil(seconds / once_s)) if on_gpu else 3
    times_ms, watts, clocks, reasons = [], [], [], 0
    for _ in range(repeats):
        with Watch(nvml) if nvml is not None else nullcontext() as watch:
            times_ms.append(timed(run, count, on_gpu) * 1e3)
        if watch is not None and watch.watts:
            watts.append(statistics.mean(watch.watts))
            clocks.append(statistics.median(watch.clocks))
            reasons |= watch.reasons
    ms, ms_apart = interval(times_ms)
    found: dict[str, object] = {"ms": round(ms, 4), "ms_95": round(ms_apart, 4), "repeats": repeats, "each": count}
    if watts:
        w, w_apart = interval(watts)
        found |= {"w": round(w, 1), "w_95": round(w_apart, 1), "sm_mhz": statistics.median(clocks), "reasons": reasons}
    return found


def timed(run: Callable[[], object], count: int, on_gpu: bool) -> float:
    """Seconds of one of ``count`` runs in a row."""
    if not on_gpu:
        start = time.perf_counter()
        for _ in range(count):
            run()
        return (time.perf_counter() - start) / count
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    before.record()
    for _ in range(count):
        run()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / count / 1e3


def cache_for(size: Dimensions, point: Point, device: str, dtype: torch.dtype) -> torch.Tensor | None:
    """A KV cache of its own for every layer; None where nobody decodes. Raises MemoryError where it does not fit."""
    if not point.batch:
        return None
    shape = (size.layers, 2, point.batch, size.kv_heads, point.context, size.head)
    if device == "cuda" and math.prod(shape) * 2 > torch.cuda.mem_get_info()[0] - RESERVED_BYTES:
        raise MemoryError(f"a KV cache of {math.prod(shape) * 2 / 1e9:.0f} GB does not fit")
    cache = torch.empty(shape, device=device, dtype=dtype)
    return cache.normal_(std=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=0.8, help="of each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--index", type=int, default=0, help="of the GPU, as NVML and CUDA count")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    tiny = arguments.dry_run
    nvml = None if tiny else Nvml(arguments.index)
    result: dict[str, object] = {"torch": torch.__version__, "model": asdict(TINY if tiny else LLAMA_8B)}
    device, dtype, size = ("cpu", torch.float32, TINY) if tiny else ("cuda", torch.bfloat16, LLAMA_8B)
    if nvml is not None:
        result["gpu"], result["idle"] = nvml.told(), {"no_context": nvml.idle()}
        torch.cuda.set_device(arguments.index)
        torch.zeros(1, device="cuda")
        result["idle"] = {**result["idle"], "context": nvml.idle()}  # type: ignore[dict-item]
    model, rows, left_out = Transformer(size, device, dtype), [], []
    backend = nullcontext() if tiny else sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    with torch.inference_mode(), backend:
        for point in points(tiny):
            try:
                run = model.iteration(point, cache_for(size, point, device, dtype))
                row = {**asdict(point), **measured(run, nvml, arguments.seconds, arguments.repeats)}
            except (MemoryError, torch.cuda.OutOfMemoryError) as error:
                left_out.append({**asdict(point), "why": str(error).splitlines()[0]})
                print(f"left out: {left_out[-1]}", file=sys.stderr)
                continue
            finally:
                run = None  # type: ignore[assignment]
                if not tiny:
                    torch.cuda.empty_cache()
            rows.append(row)
            print(row, flush=True)
            arguments.out.write_text(json.dumps({**result, "points": rows, "left_out": left_out}, indent=1) + "\n")
    print(f"wrote {arguments.out}: {len(rows)} points")


if __name__ == "__main__":
    main()
