"""Fit `llama2-70b-h100` to the measured points of one H100 and print the errors on points held out.

    python benchmarks/profiles/fit_h100.py [--data DIR] [--write] [--points]

``--write`` renews control_plane/hardware/h100_fit.json, ``--points`` prints every point. A fifth of the points is left
out of each of 20 random splits. Beside them: what the older profile says of the same points.
"""

import argparse
import importlib.util
import json
import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyarrow import parquet

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from fit import mean_error, rounded, show, solve  # noqa: E402

from control_plane.domain import Shape  # noqa: E402
from control_plane.hardware.gpu_model import GpuSpec  # noqa: E402
from control_plane.hardware.h100_profile import h100_fit, share_gpu  # noqa: E402
from control_plane.hardware.profiles import load_profile  # noqa: E402
from control_plane.hardware.share_fit import AllReduceFit, ShareFit, activities  # noqa: E402

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
SPLITS, HELD_OUT = 20, 24
LARGEST_PASS = 2048
"""The profile prefills longer prompts in passes of this many tokens."""
POWER_CAP = 4
"""NVML's clock-event reason."""
FILES = ("h100_llama70b_shards_default_clocks.json", "h100_llama70b_mixed_default_clocks.json")
OLD = "llama2-70b-h100-current"

START = {
    "launch_ms": 4.3, "weights_ms": 45.0, "token_ms": 0.16, "activation_ms": 0.007, "exponent": 2.3,
    "context_ms": 1e-4, "attention_ms": 6e-6, "busy_w": 90.0, "memory_w": 280.0, "compute_w": 1000.0,
}  # fmt: skip

ALL_REDUCE_FILE = "systems/data/h100_sxm/comm/vllm/0.24.0/custom_allreduce_perf.parquet"
"""In aiconfigurator-core 0.12: vLLM's all-reduce inside CUDA graphs on 2, 4 and 8 H100s, by elements of bf16."""
HIDDEN, MOST_TOKENS = 8192, 4096


@dataclass(frozen=True)
class Points:
    """Measured iterations of one GPU's share: what was in them, how long they took, mean watts, the SM clock, and
    whether the power limit held it."""

    kind: NDArray[np.str_]
    tp: Rows
    tokens: Floats
    decoders: Floats
    contexts: Floats
    pairs: Floats
    time_s: Floats
    power_w: Floats
    clock_mhz: Floats
    capped: NDArray[np.bool_]


def read_points(folder: Path) -> Points:
    rows = []
    for name in FILES:
        for point in json.loads((folder / name).read_text())["points"]:
            chunk = point.get("tokens") or point.get("chunk") or 0
            batch = point.get("batch", 0)
            rows.append(
                (
                    point["kind"],
                    point["tp"],
                    chunk + batch,
                    batch,
                    batch * point.get("context", 0),
                    chunk * (chunk + 1) / 2,
                    point["ms"] / 1e3,
                    point["w"],
                    point["sm_mhz"],
                    bool(point["reasons"] & POWER_CAP),
                )
            )
    kind, tp, *columns, capped = (np.array(column) for column in zip(*rows, strict=True))
    return Points(kind, tp, *(column.astype(np.float64) for column in columns), capped.astype(bool))


def predicted(fit: ShareFit, points: Points, rows: Rows) -> tuple[Floats, Floats, Floats]:
    """(seconds, watts, clock) of these points as the profile runs them: at the clock that the power limit allows."""
    gpu = share_gpu()
    found = np.zeros((3, len(rows)))
    for tp in np.unique(points.tp[rows]).tolist():
        own = points.tp[rows] == tp
        at = rows[own]
        passes = np.where(points.kind[at] == "prefill", np.ceil(points.tokens[at] / LARGEST_PASS), 1.0)
        tokens = points.tokens[at] / passes
        clock_mhz, watts = held(gpu, fit, tp, tokens)
        ratio = gpu.max_freq_mhz / clock_mhz
        seconds = passes * fit.share_s(tp, tokens, ratio) + fit.context_s(tp) * points.contexts[at]
        found[:, own] = seconds + fit.attention_s(tp) * ratio * points.pairs[at], watts, clock_mhz
    return found[0], found[1], found[2]


def held(gpu: GpuSpec, fit: ShareFit, tp: int, tokens: Floats) -> tuple[Floats, Floats]:
    """The clock of iterations over this many tokens, and their power."""
    work = activities(gpu, *fit.draws(tp, tokens))
    clocks = np.array([gpu.held_mhz(activity) for activity in work])
    return clocks, np.array([gpu.power_w(gpu.max_freq_mhz, 1, activity) for activity in work])


def fit_points(points: Points, rows: Rows) -> ShareFit:
    def apart(values: dict[str, float]) -> Floats:
        seconds, watts, clock_mhz = predicted(ShareFit(**values), points, rows)
        return np.concatenate(
            [
                np.log(seconds / points.time_s[rows]),
                0.7 * (watts / points.power_w[rows] - 1),
                1.5 * (clock_mhz - points.clock_mhz[rows]) / 1600,
            ]
        )

    values = solve(START, apart, loss_at=0.04)
    return ShareFit(**{name: float(f"{value:.5g}") for name, value in values.items()})


def errors_of(fit: ShareFit, points: Points, rows: Rows) -> dict[str, float]:
    seconds, watts, clock_mhz = predicted(fit, points, rows)
    capped = points.capped[rows]
    return {
        "time": mean_error(seconds, points.time_s[rows]),
        "power": mean_error(watts, points.power_w[rows]),
        "capped_clock_mhz": float(np.abs(clock_mhz - points.clock_mhz[rows])[capped].mean()),
    }


def old_errors(points: Points) -> dict[str, float]:
    """What the older profile says of the same points. Its times include all-reduces and an engine, which the points
    lack; it knows no clock below the highest."""
    profile = load_profile(OLD)
    times, watts = [], []
    for row in range(len(points.tp)):
        machine = profile.machine(Shape(int(points.tp[row]), profile.max_freq_mhz))
        passes = math.ceil(points.tokens[row] / LARGEST_PASS) if points.kind[row] == "prefill" else 1
        tokens = round(points.tokens[row] / passes)
        seconds = passes * machine.iteration_s[tokens] + machine.context_s * points.contexts[row]
        times.append(seconds + machine.attention_s * points.pairs[row])
        watts.append(machine.power_w[tokens] / int(points.tp[row]))
    return {
        "old_time": mean_error(np.array(times), points.time_s),
        "old_power": mean_error(np.array(watts), points.power_w),
        "old_capped_clock_mhz": float((profile.max_freq_mhz - points.clock_mhz)[points.capped].mean()),
    }


def cross_validated(points: Points) -> dict[str, float]:
    everything = np.arange(len(points.tp))
    found = []
    for seed in range(SPLITS):
        out = np.random.default_rng(seed).choice(len(everything), HELD_OUT, replace=False)
        found.append(errors_of(fit_points(points, np.setdiff1d(everything, out)), points, out))
    return {
        f"{name}_{kind}": value
        for name in found[0]
        for values in ([errors[name] for errors in found],)
        for kind, value in (("held_out", statistics.mean(values)), ("held_out_worst_split", max(values)))
    }


def all_reduces() -> Mapping[int, AllReduceFit]:
    """By GPUs, fitted to the table of the optional extra `profiles`; what the package carries where that is missing."""
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None:
        print("  all-reduces: the extra `profiles` is not installed, so they stay as they are")
        return h100_fit().all_reduce
    table = parquet.read_table(Path(spec.origin).parent / ALL_REDUCE_FILE).to_pydict()
    found: dict[int, list[tuple[float, float]]] = {}
    for backend, gpus, elements, ms in zip(
        table["backend"], table["num_gpus"], table["message_size"], table["latency"], strict=True
    ):
        if backend == "vllm_graph" and HIDDEN <= elements <= HIDDEN * MOST_TOKENS:
            found.setdefault(gpus, []).append((elements / HIDDEN, ms * 1e3))
    return {gpus: fit_all_reduce(*np.array(sorted(rows)).T) for gpus, rows in sorted(found.items())}


def fit_all_reduce(tokens: Floats, us: Floats) -> AllReduceFit:
    start = {"latency_us": float(us[0]), "token_us": float(us[-1] / tokens[-1]), "exponent": 1.0}
    values = solve(start, lambda found: np.log(AllReduceFit(**found).us(tokens) / us))
    fit = AllReduceFit(**{name: float(f"{value:.4g}") for name, value in values.items()})
    apart = np.abs(fit.us(tokens) / us - 1)
    print(f"  all-reduce: {fit}; {apart.mean():.1%} off in the mean, {apart.max():.1%} at most")
    return fit


def print_points(fit: ShareFit, points: Points) -> None:
    everything = np.arange(len(points.tp))
    seconds, watts, clock_mhz = predicted(fit, points, everything)
    order = np.argsort(-np.abs(seconds / points.time_s - 1))
    for row in order.tolist():
        decoders = points.decoders[row]
        context = points.contexts[row] / decoders if decoders else 0
        print(
            f"  TP{points.tp[row]} {points.kind[row]:8s} {points.tokens[row]:5.0f} tokens, {decoders:3.0f} decoders at "
            f"{context:5.0f}: time {seconds[row] / points.time_s[row] - 1:+6.1%}, power "
            f"{watts[row] / points.power_w[row] - 1:+6.1%}, clock {clock_mhz[row] - points.clock_mhz[row]:+5.0f} MHz"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "profiles")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--points", action="store_true")
    arguments = parser.parse_args()
    points = read_points(arguments.data)
    fit = fit_points(points, np.arange(len(points.tp)))
    errors = {f"{name}_in_sample": value for name, value in errors_of(fit, points, np.arange(len(points.tp))).items()}
    errors |= cross_validated(points) | old_errors(points)
    show("Llama2-70B's share of one H100", {name: value for name, value in errors.items() if "mhz" not in name})
    for name, value in errors.items():
        if "mhz" in name:
            print(f"  {name:40s} {value:5.0f} MHz")
    print(f"  {fit}")
    reduces = {str(tp): reduce.model_dump() for tp, reduce in all_reduces().items()}
    if arguments.points:
        print_points(fit, points)
    if arguments.write:
        path = ROOT / "control_plane" / "hardware" / "h100_fit.json"
        content = {"share": fit.model_dump(), "all_reduce": reduces, "errors": rounded(errors)}
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
