"""Profiles built from the database against measured end-to-end rows, as a closed loop through our replica model.

    python benchmarks/profiles/silicon.py [--backend vllm] [--system …] [--model …] [--every N] [-o rows.json]

The rows are the package's own ``silicon_sample.csv``: TTFT and TPOT of aggregated serving. Each is played with as many
requests in flight as it says, lengths between .8 and 1.0 of the stated ones (fixed ones in the rows of NVIDIA's own
runs, whose generator is not known: no TTFT is compared there), the opening burst included. Half of a cell's rows (by
id) fit one constant of host time per iteration; the table speaks of the other half alone.

Apart, and counted: rows in which requests queued for seconds, because the KV cache or a batch limit that the row does
not tell was full; rows with data-parallel attention, whose labels fit no node; deployments of several workers.
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
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]


from control_plane.hardware.closed_loop import served  # noqa: E402
from control_plane.hardware.gpu_power import gpu_power  # noqa: E402
from control_plane.hardware.machine_profile import MachineProfile  # noqa: E402
from control_plane.hardware.profile_build import Build, build_profile  # noqa: E402
from control_plane.hardware.profile_file import ProfileError, dump_profile, parse_profile  # noqa: E402
from wattray.step_database import EngineSpec, folder, step_times, system_spec  # noqa: E402

BATCH_TOKENS = {"vllm": 8192, "trtllm": 8192, "sglang": 8192}
BATCH_REQUESTS = 512
QUEUED_S = 5.0
"""A longer mean time to first token is a queue."""
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
BLACKWELL = {("MiniMaxAI/MiniMax-M2.5", "fp8"): ("MiniMaxAI/MiniMax-M2.5", "fp8", None)}
"""There the database's block-wise fp8 products take longer than whole measured iterations (170 µs at 4 tokens): the
rows that may fit the constant say that the plain fp8 table, as the rows label it, is nearer."""


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
    spread: float
    """Lengths lie between this share of the stated ones and the stated ones."""

    @property
    def known(self) -> bool:
        """Whether the load generator's settings are known."""
        return self.spread < 1.0

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
    constant_ms: float = 0.0


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
            if "gtl_job_id" in line["silicon_data_source"]:
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
                    1.0 if "auto-gap-analysis" in line["silicon_data_source"] else 0.8,
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
    stands = {**MODELS, **(BLACKWELL if system.startswith(("b", "gb")) else {})}
    name, dtype, kv = stands.get((model, precision), (model, None, None))
    moe_dtype = None if (model, precision) in BLACKWELL else dtype
    spec = EngineSpec(name, system, backend, None, dtype, moe_dtype, kv, *moe, attention_dp=dp)
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
        row.spread,
    )
    return found.mean_tpot_s, found.mean_ttft_s, found.kv_bound


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def told(errors: Sequence[float]) -> str:
    if not errors:
        return "–"
    size = [abs(error) for error in errors]
    return f"{statistics.median(size):.1%} / {quantile(size, 0.9):.1%} ({statistics.median(errors):+.1%})"


def host_ms(found: Sequence[Played]) -> float:
    """The constant per iteration, in steps of .1 ms up to 5, of the least median error of TPOT on the rows that may
    fit it: every token takes one iteration."""
    fitting = [one for one in found if one.row.fits]
    if not fitting:
        return 0.0

    def error(ms: float) -> float:
        return statistics.median(abs((one.tpot_s + ms / 1e3) / one.row.tpot_s - 1) for one in fitting)

    return min((step / 10 for step in range(51)), key=error)


def first_token_ms(found: Sequence[Played]) -> float:
    """What network, tokenizer and launches add to a first token: likewise, up to 100 ms."""
    fitting = [one for one in found if one.row.fits and one.row.known and one.kv_bound < 0.02]
    if not fitting:
        return 0.0

    def error(ms: float) -> float:
        return statistics.median(abs((one.ttft_s + ms / 1e3) / one.row.ttft_s - 1) for one in fitting)

    return float(min(range(101), key=error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="vllm")
    parser.add_argument("--system")
    parser.add_argument("--model")
    parser.add_argument("--every", type=int, default=1, help="play every n-th row")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--show", type=Path, nargs="+", help="print the tables of results written before")
    arguments = parser.parse_args()
    if arguments.show:
        contents = [json.loads(path.read_text()) for path in arguments.show]
        played = [Played(Row(**one.pop("row")), **one) for content in contents for one in content["rows"]]
        reasons = [content["left_out"] for content in contents]
        report(played, {why: sum(one.get(why, 0) for one in reasons) for one in reasons for why in one})
        return
    chosen = sorted(rows(arguments.backend, arguments.system, arguments.model), key=lambda one: one.key)
    found, left_out = played_rows(chosen[:: arguments.every])
    report(found, left_out)
    if arguments.out:
        content = {"rows": [asdict(one) for one in found], "left_out": left_out}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


def played_rows(chosen: Sequence[Row]) -> tuple[list[Played], dict[str, int]]:
    """Every row without the host's constant, the tested half with its cell's; and why others were left out."""
    cells: dict[tuple[str, ...], list[Played]] = defaultdict(list)
    left_out: dict[str, int] = defaultdict(int)
    for row in chosen:
        if row.attention_dp > 1:
            left_out["data-parallel attention"] += 1
            continue
        if row.ttft_s > QUEUED_S:
            left_out[f"requests queued for more than {QUEUED_S:g} s"] += 1
            continue
        try:
            cells[row.cell].append(Played(row, *play(row, 0.0)))
        except ProfileError as error:
            left_out[re.sub(r"[0-9_]{3,}\S*", "…", str(error))[:110]] += 1
    found = []
    for ones in cells.values():
        constant = host_ms(ones)
        for one in ones:
            if one.row.fits:
                found.append(replace(one, constant_ms=constant))
                continue
            tpot_s, ttft_s, _ = play(one.row, constant)
            found.append(replace(one, with_tpot_s=tpot_s, with_ttft_s=ttft_s, constant_ms=constant))
    return found, dict(left_out)


def report(played: Sequence[Played], left_out: dict[str, int]) -> None:
    """By cell, of the rows that fitted nothing: median and 90th percentile of the errors, and their median with its
    sign."""
    cells: dict[tuple[str, ...], list[Played]] = defaultdict(list)
    first_ms: dict[tuple[str, ...], float] = {}
    for one in played:
        if one.row.cell not in first_ms:
            first_ms[one.row.cell] = first_token_ms([other for other in played if other.row.cell == one.row.cell])
        if not one.row.fits:
            cells[one.row.cell].append(one)
            cells[("all",)].append(one)
    print("errors of rows that fitted nothing: median / 90th percentile (median with its sign)")
    print(
        "| engine, GPU, model, weights | rows | TPOT, no host time | host ms | TPOT with it "
        "| TTFT | first ms | TTFT with it | KV-bound |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for cell, ones in sorted(cells.items()):
        free = [one for one in ones if one.kv_bound < 0.02]
        tpots = [one.tpot_s / one.row.tpot_s - 1 for one in ones]
        with_tpots = [one.with_tpot_s / one.row.tpot_s - 1 for one in ones]
        ttfts = [one.with_ttft_s / one.row.ttft_s - 1 for one in free if one.row.known]
        with_ttfts = [
            (one.with_ttft_s + first_ms[one.row.cell] / 1e3) / one.row.ttft_s - 1 for one in free if one.row.known
        ]
        constants = {one.constant_ms for one in ones}
        first = f"{first_ms[cell]:.0f}" if cell in first_ms and ttfts else ""
        host = f"{constants.pop():.1f}" if len(constants) == 1 else ""
        print(
            f"| {' '.join(cell)} | {len(ones)} | {told(tpots)} | {host} | {told(with_tpots)} | {told(ttfts)} "
            f"| {first} | {told(with_ttfts)} | {len(ones) - len(free)} |"
        )
    for why, count in left_out.items():
        print(f"left out, {count} rows: {why}")


if __name__ == "__main__":
    main()
