"""Profiles built from the database against measured end-to-end rows, as a closed loop through our replica model.

    python benchmarks/profiles/silicon.py [--backend vllm] [--system …] [--model …] [--every N] [-o rows.json]

The rows are the package's own ``silicon_sample.csv``: TTFT and TPOT of aggregated serving. Each is played with as many
requests in flight as it says, lengths between .8 and 1.0 of the stated ones, the opening burst included. Half of the
rows (by id) fit one constant of host time per iteration; the table speaks of the other half.
"""

import argparse
import csv
import json
import re
import statistics
import sys
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from closed_loop import served  # noqa: E402

from control_plane.hardware.gpu_power import gpu_power  # noqa: E402
from control_plane.hardware.machine_profile import MachineProfile  # noqa: E402
from control_plane.hardware.profile_build import Build, build_profile  # noqa: E402
from control_plane.hardware.profile_file import ProfileError, dump_profile, parse_profile  # noqa: E402
from wattray.step_database import EngineSpec, folder, step_times, system_spec  # noqa: E402

BATCH_TOKENS = {"vllm": 8192, "trtllm": 8192, "sglang": 8192}
BATCH_REQUESTS = 512
ROUNDS = 10
"""Requests sent, in multiples of the concurrency as the benchmark sends."""
MODELS = {
    ("meta-llama/Llama-3.1-70B", "fp8"): ("meta-llama/Meta-Llama-3.1-70B", "fp8", "bfloat16"),
    ("meta-llama/Llama-3.1-70B", "fp4"): ("meta-llama/Meta-Llama-3.1-70B", "nvfp4", "bfloat16"),
    ("nvidia/Llama-3.1-8B-Instruct-FP8", "fp8"): ("meta-llama/Meta-Llama-3.1-8B", "fp8", None),
    ("meta-llama/Llama-3.1-8B-Instruct", "fp8"): ("meta-llama/Meta-Llama-3.1-8B", "fp8", None),
    ("Qwen/Qwen3-32B", "fp8"): ("Qwen/Qwen3-32B-FP8", None, None),
    ("MiniMaxAI/MiniMax-M2.5", "fp4"): ("nvidia/MiniMax-M2.5-NVFP4", None, None),
    ("moonshotai/Kimi-K2.5", "fp4"): ("nvidia/Kimi-K2.5-NVFP4", None, None),
}
"""Which configuration of the package stands for a row's model and precision, with types where it does not say."""


@dataclass(frozen=True)
class Row:
    """A measured row; times in seconds."""

    key: str
    backend: str
    version: str
    system: str
    model: str
    precision: str
    prompt: int
    answer: int
    concurrency: int
    tp: int
    moe_tp: int | None
    moe_ep: int | None
    attention_dp: int
    ttft_s: float
    tpot_s: float

    @property
    def cell(self) -> tuple[str, str, str, str]:
        return self.backend, self.system, self.model, self.precision

    @property
    def fits(self) -> bool:
        """Whether it is of the half that fits the constant."""
        return zlib.crc32(self.key.encode()) % 2 == 0


@dataclass(frozen=True)
class Played:
    """A row and what the profile makes of it: without the host's constant, and with one."""

    row: Row
    tpot_s: float
    ttft_s: float
    kv_bound: float
    with_tpot_s: float = 0.0
    with_ttft_s: float = 0.0


def rows(backend: str, system: str | None, model: str | None) -> list[Row]:
    found = []
    with (folder() / "systems" / "silicon_sample.csv").open() as text:
        for line in csv.DictReader(text):
            if line["mode"] != "agg" or line["backend"] != backend or not line["silicon_tpot_ms"]:
                continue
            if (system and line["system"] != system) or (model and model not in line["model_path"]):
                continue
            if not line["silicon_ttft_ms"] or int(float(line["pp_size"] or 1)) != 1:
                continue
            found.append(
                Row(
                    line["id"],
                    backend,
                    line["backend_version"],
                    line["system"],
                    line["model_path"],
                    line["precision"],
                    int(float(line["isl"])),
                    int(float(line["osl"])),
                    int(float(line["batch_size"])),
                    int(float(line["tp_size"])),
                    _count(line["moe_tp_size"]),
                    _count(line["moe_ep_size"]),
                    _count(line["attention_dp_size"]) or 1,
                    float(line["silicon_ttft_ms"]) / 1e3,
                    float(line["silicon_tpot_ms"]) / 1e3,
                )
            )
    return found


def _count(text: str) -> int | None:
    return int(float(text)) if text and float(text) > 0 else None


@cache
def profile_of(
    cell: tuple[str, str, str, str], tp: int, moe: tuple[int | None, int | None], dp: int, overhead_ms: float
) -> MachineProfile:
    backend, system, model, precision = cell
    name, dtype, kv = MODELS.get((model, precision), (model, None, None))
    spec = EngineSpec(name, system, backend, None, dtype, dtype, kv, *moe, attention_dp=dp)
    times = step_times(spec, tp, BATCH_TOKENS[backend], BATCH_REQUESTS)
    power = gpu_power(system, float(system_spec(system)["gpu"]["power"]))
    build = Build(
        "row", power, "database", "", (), BATCH_TOKENS[backend], BATCH_REQUESTS, overhead_ms, (power.freqs_mhz[-1],)
    )
    return parse_profile(dump_profile(build_profile(build, {tp: times})))


def play(row: Row, overhead_ms: float) -> tuple[float, float, float]:
    """(TPOT, TTFT, share of iterations that leave somebody waiting)."""
    experts = row.model.startswith(
        ("MiniMax", "moonshot", "openai", "Qwen/Qwen3-235B", "deepseek", "zhipu", "Qwen/Qwen3.5")
    )
    moe = (row.moe_tp, row.moe_ep) if experts else (None, None)
    profile = profile_of(row.cell, row.tp, moe, row.attention_dp, overhead_ms)
    limits = profile.limits(row.tp)
    if row.prompt + row.answer > limits.kv_tokens:
        raise ProfileError(f"{row.key}: one request exceeds the KV cache of {limits.kv_tokens} tokens")
    found = served(
        profile.times(row.tp),
        limits,
        profile.max_freq_mhz,
        row.concurrency,
        ROUNDS * row.concurrency,
        (row.prompt, row.answer),
    )
    return found.mean_tpot_s, found.mean_ttft_s, found.kv_bound


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def told(errors: Sequence[float]) -> str:
    if not errors:
        return "      -      "
    size = [abs(error) for error in errors]
    return f"{statistics.median(size):5.1%}/{quantile(size, 0.9):6.1%} ({statistics.median(errors):+5.1%})"


def host_ms(found: Sequence[Played]) -> float:
    """The constant per iteration, in steps of .1 ms up to 5, of the least median error of TPOT on the rows that may
    fit it: every token takes one iteration."""
    fitting = [one for one in found if one.row.fits]
    if not fitting:
        return 0.0

    def error(ms: float) -> float:
        return statistics.median(abs((one.tpot_s + ms / 1e3) / one.row.tpot_s - 1) for one in fitting)

    return min((step / 10 for step in range(51)), key=error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="vllm")
    parser.add_argument("--system")
    parser.add_argument("--model")
    parser.add_argument("--every", type=int, default=1, help="play every n-th row")
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    found: list[Played] = []
    left_out: dict[str, int] = defaultdict(int)
    for row in sorted(rows(arguments.backend, arguments.system, arguments.model), key=lambda one: one.key)[
        :: arguments.every
    ]:
        try:
            found.append(Played(row, *play(row, 0.0)))
        except ProfileError as error:
            left_out[re.sub(r"[0-9_]{3,}\S*", "…", str(error))[:110]] += 1
    constant = host_ms(found)
    tested = [one for one in found if not one.row.fits]
    done = []
    for one in tested:
        tpot_s, ttft_s, _ = play(one.row, constant)
        done.append(Played(one.row, one.tpot_s, one.ttft_s, one.kv_bound, tpot_s, ttft_s))
    report(done, constant, left_out)
    if arguments.out:
        content = {"constant_ms": constant, "rows": [asdict(one) for one in done], "left_out": left_out}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


def report(found: Sequence[Played], constant: float, left_out: dict[str, int]) -> None:
    """By cell: median and 90th percentile of the errors, and their median with its sign."""
    print(f"host time {constant:.1f} ms per iteration, fitted on the other half; errors: median/90th percentile (sign)")
    print(f"{'cell':52s} {'rows':>4s} {'TPOT without':>22s} {'TPOT with':>22s} {'TTFT with':>22s} {'KV-bound':>8s}")
    cells: dict[tuple[str, ...], list[Played]] = defaultdict(list)
    for one in found:
        cells[one.row.cell].append(one)
        cells[("all",)].append(one)
    for cell, ones in sorted(cells.items()):
        free = [one for one in ones if one.kv_bound < 0.02]
        print(
            f"{' '.join(cell):52s} {len(ones):4d} {told([one.tpot_s / one.row.tpot_s - 1 for one in ones]):>22s} "
            f"{told([one.with_tpot_s / one.row.tpot_s - 1 for one in ones]):>22s} "
            f"{told([one.with_ttft_s / one.row.ttft_s - 1 for one in free]):>22s} {len(ones) - len(free):8d}"
        )
    for why, count in left_out.items():
        print(f"left out, {count} rows: {why}")


if __name__ == "__main__":
    main()
