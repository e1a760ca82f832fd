"""A fleet in words, read from the samples of a run: what a policy used by night and by day, and at which clocks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from control_plane.simulation.outcome import Sample

NIGHT_H, DAY_H = (22, 6), (8, 20)
_SHORTEST_DAY_S = 20 * 3600.0
"""A shorter run has no night and day; it is told by its least and its most."""


def fleet_in_words(samples: Sequence[Sample], starts_s: float = 0.0) -> str:
    """Such as "6 x TP4 at night, 11 x TP4 by day; clocks 990-1590 MHz". ``starts_s``: seconds after midnight UTC."""
    samples = samples[1:]
    if not samples:
        return "nothing ran"
    at_s = np.array([sample.at_s for sample in samples])
    gpus = np.array([sample.gpus for sample in samples])
    replicas = np.array([sample.replicas for sample in samples])
    clocks = np.array([sample.mean_freq_mhz for sample in samples])
    hours = (starts_s + at_s) / 3600 % 24
    night = (hours >= NIGHT_H[0]) | (hours < NIGHT_H[1])
    day = (hours >= DAY_H[0]) & (hours < DAY_H[1])
    if at_s[-1] - at_s[0] >= _SHORTEST_DAY_S and night.any() and day.any():
        parts = [(_typical(gpus, replicas, night), "at night"), (_typical(gpus, replicas, day), "by day")]
    else:
        few, many = (np.argmin(np.abs(gpus - np.percentile(gpus, share))) for share in (5, 95))
        parts = [
            ((int(gpus[few]), int(replicas[few])), "in quiet minutes"),
            ((int(gpus[many]), int(replicas[many])), "in busy ones"),
        ]
    held = [(_fleet(*sizes), when) for sizes, when in parts]
    told = held[0][0] if held[0][0] == held[1][0] else ", ".join(f"{fleet} {when}" for fleet, when in held)
    low, high = np.percentile(clocks[clocks > 0], [5, 95]) if (clocks > 0).any() else (0.0, 0.0)
    span = f"{low:.0f}" if round(low) == round(high) else f"{low:.0f}-{high:.0f}"
    return f"{told}; mean clock {span} MHz"


def _typical(gpus: NDArray[np.int64], replicas: NDArray[np.int64], when: NDArray[np.bool_]) -> tuple[int, int]:
    chosen = np.flatnonzero(when)
    middle = chosen[np.argsort(gpus[chosen], kind="stable")[len(chosen) // 2]]
    return int(gpus[middle]), int(replicas[middle])


def _fleet(gpus: int, replicas: int) -> str:
    if replicas and gpus % replicas == 0:
        return f"{replicas} x TP{gpus // replicas}"
    return f"{gpus} GPUs in {replicas} replicas"
