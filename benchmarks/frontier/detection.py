"""How well stragglers are found: `python -m benchmarks.frontier.detection` prints a table over noise and degree.

Ratios are the truth times log-normal noise of the given size, independent for every stage and iteration. A spell is 100
healthy iterations, 100 with one stage slow, and 40 healthy ones again; false alarms are counted without any slow stage.
A drift is 100 healthy iterations and then one stage that becomes slower by as much in each, up to 1.3.
"""

import argparse
from dataclasses import dataclass

import numpy as np

from control_plane.training.straggler import Detector

HEALTHY, SLOW, AFTER = 100, 100, 40


@dataclass(frozen=True, slots=True)
class Spell:
    """One step up and down: reports until it was found and until it was over (None: never), and plan changes."""

    found_after: int | None
    recovered_after: int | None
    plan_changes: int


@dataclass(frozen=True, slots=True)
class Drift:
    """At which true ratio a growing lag was told to be a drift (None: never), and plan changes."""

    told_at: float | None
    plan_changes: int


def false_alarms(noise: float, stages: int, iterations: int, seed: int) -> int:
    """Alarms of a pipeline in which nothing is slow; each is taken back before the next can come."""
    detector, known, alarms = Detector(), (1.0,) * stages, 0
    for ratios in _reports(np.random.default_rng(seed), noise, np.ones((iterations, stages))):
        detector, news = detector.observe(ratios, known)
        if news is not None:
            alarms += sum(now > was for now, was in zip(news, known, strict=True))
            known = news
    return alarms


def spell(noise: float, degree: float, stages: int, seed: int) -> Spell:
    truth = np.ones((HEALTHY + SLOW + AFTER, stages))
    truth[HEALTHY : HEALTHY + SLOW, 0] = degree
    detector, known = Detector(), (1.0,) * stages
    found: int | None = None
    recovered: int | None = None
    changes = 0
    for iteration, ratios in enumerate(_reports(np.random.default_rng(seed), noise, truth)):
        detector, news = detector.observe(ratios, known)
        if news is None:
            continue
        known = news
        changes += 1
        if iteration >= HEALTHY and known[0] > 1 and found is None:
            found = iteration - HEALTHY + 1
        if iteration >= HEALTHY + SLOW and known[0] == 1.0 and recovered is None:
            recovered = iteration - HEALTHY - SLOW + 1
    return Spell(found, recovered, changes)


def drift(noise: float, rate: float, stages: int, seed: int) -> Drift:
    """A stage whose ratio grows by ``rate`` an iteration from 1 to 1.3 (or, with a rate of 0.3, takes one step)."""
    truth = np.ones((HEALTHY + max(SLOW, round(0.3 / rate)), stages))
    truth[HEALTHY:, 0] = np.minimum(1.3, 1 + rate * np.arange(1, len(truth) - HEALTHY + 1))
    detector, known = Detector(), (1.0,) * stages
    told_at: float | None = None
    changes = 0
    for iteration, ratios in enumerate(_reports(np.random.default_rng(seed), noise, truth)):
        detector, news = detector.observe(ratios, known)
        if news is not None:
            known = news
            changes += 1
            if 0 in detector.drifting and told_at is None:
                told_at = float(truth[iteration, 0])
    return Drift(told_at, changes)


def _reports(rng: np.random.Generator, noise: float, truth: np.ndarray) -> list[tuple[float, ...]]:
    return [tuple(row) for row in (truth * np.exp(noise * rng.standard_normal(truth.shape))).tolist()]


def _quantile(values: list[int | None], part: float) -> str:
    ordered = sorted(float("inf") if value is None else value for value in values)
    value = ordered[min(len(ordered) - 1, int(part * len(ordered)))]
    return "–" if value == float("inf") else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=8)
    parser.add_argument("--spells", type=int, default=200)
    parser.add_argument("--healthy-iterations", type=int, default=100_000)
    options = parser.parse_args()
    print("| noise % | false alarms in 10,000 iterations |\n|---|---|")
    for noise in (0.01, 0.03, 0.05):
        alarms = false_alarms(noise, options.stages, options.healthy_iterations, seed=1)
        print(f"| {100 * noise:g} | {alarms * 10_000 / options.healthy_iterations:.2f} |", flush=True)
    print(
        "\n| noise % | degree | found, % | reports until found, median/95 % | until recovered, median/95 % | ", end=""
    )
    print("plan changes per true change, mean |\n|---|---|---|---|---|---|")
    for noise in (0.01, 0.03, 0.05):
        for degree in (1.05, 1.1, 1.2, 1.3):
            spells = [spell(noise, degree, options.stages, seed) for seed in range(options.spells)]
            found = [s.found_after for s in spells]
            back = [s.recovered_after for s in spells if s.found_after is not None]
            share = sum(f is not None for f in found) / len(found)
            changes = np.mean([s.plan_changes for s in spells]) / 2
            print(
                f"| {100 * noise:g} | {degree} | {100 * share:.1f} | {_quantile(found, 0.5)}/{_quantile(found, 0.95)} "
                f"| {_quantile(back, 0.5)}/{_quantile(back, 0.95)} | {changes:.2f} |",
                flush=True,
            )
    print(
        "\n| noise % | growth % an iteration | told as a drift, % | at a true ratio of, median | plan changes, mean |"
    )
    print("|---|---|---|---|---|")
    for noise in (0.01, 0.03, 0.05):
        for rate in (0.3, 0.01, 0.005, 0.002, 0.001):
            drifts = [drift(noise, rate, options.stages, seed) for seed in range(options.spells)]
            told = [d.told_at for d in drifts if d.told_at is not None]
            growth = "one step of 30" if rate == 0.3 else f"{100 * rate:g}"
            at = f"{np.median(told):.2f}" if told else "–"
            changes = np.mean([d.plan_changes for d in drifts])
            share = 100 * len(told) / len(drifts)
            print(f"| {100 * noise:g} | {growth} | {share:.0f} | {at} | {changes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
