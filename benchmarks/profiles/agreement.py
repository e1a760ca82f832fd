"""How well the closed forms describe the machine: against ``ReplicaModel`` under Poisson arrivals, and how fast.

    python benchmarks/profiles/agreement.py [--requests N] [--profile NAME …]

For every shape and type: at 90 % and 150 % of the highest load the largest share of a limit that was used up, at
90 % the errors of power, TBT and P99 TTFT. P99s of 4,000 requests are themselves uncertain by 10-30 %.
"""

import argparse
import statistics
import sys
import timeit
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from poisson_replica import drive, mix

from control_plane.domain import Load, Shape
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profiles import PROFILE_NAMES, load_profile

KINDS = ("SS", "SL", "MS", "MM", "ML", "LS", "LM", "LL", "conversation", "short-medium")


def compare(profile: MachineProfile, requests: int) -> None:
    powers, tbts, ttfts, below, above = [], [], [], [], []
    for tp in profile.tps:
        for freq_mhz in (profile.freqs_mhz[0], profile.freqs_mhz[2], profile.freqs_mhz[-1]):
            for kind in KINDS:
                shape = Shape(tp, freq_mhz)
                most = profile.max_load(shape, mix(kind))
                if most == 0:
                    print(f"{kind:13s} {shape!s:9s} breaks the SLO at any load")
                    continue
                load = mix(kind).scaled(0.9 * most)
                point, measured = profile.operating_point(shape, load), drive(profile, shape, load, requests, seed=5)
                over = drive(profile, shape, mix(kind).scaled(1.5 * most), requests // 2, seed=5)
                powers.append(point.power_w / measured.power_w - 1)
                tbts.append(point.tbt_s / measured.tbt_s - 1)
                ttft = [point.ttft_p99_s[name] / found - 1 for name, found in measured.ttft_p99_s.items()]
                ttfts += ttft
                below.append(measured.use(profile.slo))
                above.append(over.use(profile.slo))
                print(
                    f"{kind:13s} {shape!s:9s} {most * mix(kind).rps:7.2f}/s  use at 90 % {below[-1]:5.2f}, at 150 % "
                    f"{above[-1]:5.2f}  power {powers[-1]:+.1%} TBT {tbts[-1]:+.1%} TTFT P99 "
                    + " ".join(f"{error:+.0%}" for error in ttft),
                    flush=True,
                )
    print(
        f"{profile.name}: {len(powers)} cells; SLO held at 90 % in {sum(use <= 1 for use in below)}, broken at 150 % "
        f"in {sum(use > 1 for use in above)}; power off by {statistics.mean(map(abs, powers)):.1%} in the mean, "
        f"{max(map(abs, powers)):.1%} at most; TBT {statistics.mean(map(abs, tbts)):.1%}, {max(map(abs, tbts)):.1%}; "
        f"TTFT P99 {statistics.median(ttfts):+.0%} in the middle"
    )


def speed(profile: MachineProfile) -> None:
    shape = Shape(profile.tps[-1], profile.freqs_mhz[2])
    profile.machine(shape)
    for kind in ("MM", "conversation"):
        count = 20
        loads = [mix(kind).scaled(1 + number * 1e-4) for number in range(300 * count)]
        mixes = iter([with_prompts(mix(kind), number * 1e-3) for number in range(1, 301)])
        fresh, again, capacity = iter(loads), iter(loads), iter(loads)

        fresh_us = best(count, lambda source=fresh: profile.operating_point(shape, next(source)))
        again_us = best(count, lambda source=again: profile.operating_point(shape, next(source)))
        asked_us = best(count, lambda source=capacity: profile.max_load(shape, next(source)))
        new_us = best(1, lambda source=mixes: profile.max_load(shape, next(source)))
        print(
            f"{kind}: operating point {fresh_us:.1f} us, again {again_us:.1f} us; "
            f"highest load {new_us:.0f} us, of a mix seen before {asked_us:.1f} us"
        )


def best(calls: int, call: Callable[[], object]) -> float:
    """Microseconds a call, in the least disturbed of many short rounds."""
    return min(timeit.repeat(call, number=calls, repeat=300)) / calls * 1e6


def with_prompts(load: Load, longer: float) -> Load:
    return Load({name: replace(part, input_tokens=part.input_tokens + longer) for name, part in load.by_class.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--profile", nargs="*", default=PROFILE_NAMES)
    arguments = parser.parse_args()
    for name in arguments.profile:
        speed(load_profile(name))
        compare(load_profile(name), arguments.requests)


if __name__ == "__main__":
    main()
