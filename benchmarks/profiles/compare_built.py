"""Measured iterations of a real GPU beside `wattray profile build` of the same model and GPU.

    python benchmarks/profiles/compare_built.py points.json [--gpu h100_sxm] [--engine vllm] [--points]

``points.json`` is what ``on_real_gpu.py`` wrote. The comparison is of kernels alone: no overhead of an engine is added.
The database's own time of the very step, which knows no power limit, stands beside the profile's, which does.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from control_plane.domain import Shape  # noqa: E402
from control_plane.hardware.gpu_power import gpu_power  # noqa: E402
from control_plane.hardware.profile_build import Build, build_profile  # noqa: E402
from control_plane.hardware.profile_file import dump_profile, parse_profile  # noqa: E402
from wattray.step_database import EngineSpec, step_times, system_spec  # noqa: E402

MODEL = "meta-llama/Meta-Llama-3.1-8B"
BATCH_TOKENS, BATCH_REQUESTS = 8192, 256


@dataclass(frozen=True)
class Row:
    """A measured point and what was predicted of it; milliseconds and watts."""

    name: str
    kind: str
    ms: float
    ms_95: float
    database_ms: float
    profile_ms: float
    watts: float | None
    profile_w: float
    clock_mhz: float | None
    held_mhz: float


def rows(content: dict[str, object], system: str, engine: str) -> list[Row]:
    times = step_times(EngineSpec(MODEL, system, engine), 1, BATCH_TOKENS, BATCH_REQUESTS)
    power = gpu_power(system, float(system_spec(system)["gpu"]["power"]))
    build = Build("built", power, "database", "", (), BATCH_TOKENS, BATCH_REQUESTS)
    profile = parse_profile(dump_profile(build_profile(build, {1: times})))
    machine = profile.machine(Shape(1, profile.max_freq_mhz))
    tables = profile.times(1)
    found = []
    for point in content["points"]:  # type: ignore[attr-defined]
        batch, context, chunk = point["batch"], point["context"], point["chunk"]
        tokens = batch + chunk
        if tokens > BATCH_TOKENS:
            continue
        modelled_s = machine.iteration_s[tokens] + machine.context_s * batch * context
        modelled_s += machine.attention_s * chunk * (chunk + 1) / 2
        if not chunk:
            database_ms = times.decode_ms(batch, context)
        elif not batch:
            database_ms = times.prefill_ms(chunk, 0)
        else:
            database_ms = times.mixed_ms(chunk, batch, context)
        found.append(
            Row(
                f"{point['kind']} {chunk or ''} {f'{batch} x {context}' if batch else ''}".replace("  ", " ").strip(),
                point["kind"],
                point["ms"],
                point.get("ms_95", 0.0),
                database_ms,
                modelled_s * 1e3,
                point.get("w"),
                machine.power_w[tokens],
                point.get("sm_mhz"),
                power.spec().held_mhz(tables.activity(tokens)),
            )
        )
    return found


def told(errors: Sequence[float]) -> str:
    if not errors:
        return "none"
    size = [abs(error) for error in errors]
    worst = max(errors, key=abs)
    return (
        f"{statistics.mean(size):.1%} in the mean, {statistics.median(errors):+.1%} in the middle, worst {worst:+.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--gpu", help="as the database names it; told by the file's GPU if not given")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--points", action="store_true", help="print every point")
    arguments = parser.parse_args()
    content = json.loads(arguments.measured.read_text())
    name = str(content.get("gpu", {}).get("name", ""))
    system = arguments.gpu or ("h200_sxm" if "H200" in name else "h100_sxm")
    found = rows(content, system, arguments.engine)
    if arguments.points:
        for row in found:
            watts = "" if row.watts is None else f", {row.watts:.0f} W against {row.profile_w:.0f}"
            clock = "" if row.clock_mhz is None else f", {row.clock_mhz:.0f} MHz against {row.held_mhz:.0f}"
            print(
                f"  {row.name:24s} {row.ms:8.3f} ± {row.ms_95:.3f} ms: database {row.database_ms / row.ms - 1:+6.1%}, "
                f"profile {row.profile_ms / row.ms - 1:+6.1%}{watts}{clock}"
            )
    print(f"{name or system}: {len(found)} points against {system}, {arguments.engine}")
    for kind in ("decode", "prefill", "mixed", ""):
        some = [row for row in found if kind in ("", row.kind)]
        if not some:
            continue
        print(f"{kind or 'all'}:")
        print(f"  time, database: {told([row.database_ms / row.ms - 1 for row in some])}")
        print(f"  time, profile:  {told([row.profile_ms / row.ms - 1 for row in some])}")
        print(f"  power, profile: {told([row.profile_w / row.watts - 1 for row in some if row.watts])}")
        capped = [row for row in some if row.clock_mhz is not None and row.clock_mhz < 1965]
        if capped:
            apart = [abs(row.held_mhz - (row.clock_mhz or 0)) for row in capped]
            print(f"  capped clock:   {statistics.mean(apart):.0f} MHz off in the mean of {len(capped)} points")


if __name__ == "__main__":
    main()
