"""Profiles against LLM-Inference-Bench (argonne-lcf), engines of 2024, fixed batches: Llama-2/3-70B on 4 x H100, and
the mean power of Llama-3-8B on an A100 and an H100.

    python benchmarks/profiles/inference_bench.py [--data FOLDER]

A row is a batch that starts at once, prompts and answers of one length, and how long the whole batch took. It is
played through our replica model with the profile built from the database (current vLLM and TensorRT-LLM, with the
host's time that `profile build` adds) and with embedded ones.
"""

import argparse
import csv
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from control_plane.domain import Shape  # noqa: E402
from control_plane.hardware.closed_loop import Served, served  # noqa: E402
from control_plane.hardware.gpu_power import gpu_power  # noqa: E402
from control_plane.hardware.machine_profile import MachineProfile  # noqa: E402
from control_plane.hardware.profile_build import Build, build_profile  # noqa: E402
from control_plane.hardware.profile_file import dump_profile, parse_profile  # noqa: E402
from control_plane.hardware.profiles import load_profile  # noqa: E402
from wattray.cli_profile_build import OVERHEAD_MS  # noqa: E402
from wattray.step_database import EngineSpec, step_times, system_spec  # noqa: E402

TP = 4


@dataclass(frozen=True)
class Row:
    framework: str
    model: str
    tokens: int
    batch: int
    latency_s: float


def read(path: Path) -> list[Row]:
    with path.open() as text:
        return [
            Row(
                line["framework"],
                line["model"].rsplit("/", 1)[-1],
                int(line["input_output_tokens"]),
                int(line["batch"]),
                float(line["latency_s"]),
            )
            for line in csv.DictReader(text)
            if int(line["gpus"]) == TP
        ]


@cache
def built(engine: str, model: str = "meta-llama/Meta-Llama-3.1-70B", system: str = "h100_sxm", tp: int = TP) -> Any:
    power = gpu_power(system, float(system_spec(system)["gpu"]["power"]))
    build = Build("x", power, "database", "", (), 2048, 256, OVERHEAD_MS[engine], (power.freqs_mhz[-1],))
    spec = EngineSpec(model, system, engine, None, "bfloat16", None, "bfloat16")
    return parse_profile(dump_profile(build_profile(build, {tp: step_times(spec, tp, 2048, 256)})))


def played(profile: MachineProfile, tp: int, tokens: int, batch: int) -> Served:
    watts = profile.machine(Shape(tp, profile.max_freq_mhz)).power_w
    lengths = tokens, tokens
    return served(
        profile.times(tp), profile.limits(tp), profile.max_freq_mhz, batch, batch, lengths, spread=1.0, watts=watts
    )


def latency_s(profile: MachineProfile, row: Row) -> float:
    return played(profile, TP, row.tokens, row.batch).duration_s


def powers(path: Path) -> None:
    """Mean watts of a GPU by batch: the profile built for today's engine beside what was measured in 2024."""
    systems = {"A100": "a100_sxm", "H100": "h100_sxm"}
    engines = {"vLLM": "vllm", "TensorRT-LLM": "trtllm"}
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    with path.open() as text:
        for line in csv.DictReader(text):
            if line["hardware"] not in systems or line["framework"] not in engines or "3-8B" not in line["model"]:
                continue
            engine, system = engines[line["framework"]], systems[line["hardware"]]
            profile = built(engine, "meta-llama/Meta-Llama-3.1-8B", system, 1)
            found = played(profile, 1, int(line["input_output_tokens"]), int(line["batch"]))
            cells[line["hardware"], line["framework"]].append(found.mean_power_w / float(line["avg_power_w"]) - 1)
    print("mean power, modelled over measured, less 1, Llama-3-8B at batch 1, 16, 32, 64")
    for (hardware, framework), errors in cells.items():
        print(f"| {hardware}, {framework} | " + " | ".join(f"{error:+.0%}" for error in errors) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    rows = read(arguments.data / "llm_inference_bench_h100.csv")
    profiles = {
        "built, vllm": built("vllm"),
        "built, trtllm": built("trtllm"),
        "llama2-70b-h100": load_profile("llama2-70b-h100"),
        "llama2-70b-h100-current": load_profile("llama2-70b-h100-current"),
    }
    print("modelled latency over measured, less 1: median (10th to 90th percentile), and mean size")
    print("| engine of 2024, model | rows | " + " | ".join(profiles) + " |")
    print("|---|---|" + "---|" * len(profiles))
    cells: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row.framework, row.model].append(row)
    for (framework, model), some in sorted(cells.items()):
        told = []
        for profile in profiles.values():
            errors = sorted(latency_s(profile, row) / row.latency_s - 1 for row in some)
            low, high = errors[len(errors) // 10], errors[(9 * len(errors)) // 10]
            size = statistics.mean(map(abs, errors))
            told.append(f"{statistics.median(errors):+.0%} ({low:+.0%} to {high:+.0%}), {size:.0%}")
        print(f"| {framework}, {model} | {len(some)} | " + " | ".join(told) + " |")
    powers(arguments.data / "power" / "llm_inference_bench_power.csv")


if __name__ == "__main__":
    main()
