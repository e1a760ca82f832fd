"""What a simulated run would cost in a month: energy, money, carbon and the peak that is billed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from control_plane.simulation.outcome import Sample

MONTH_S = 30 * 86400.0
PEAK_S = 900.0
"""Utilities bill the highest mean of a quarter of an hour."""
J_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class Hourly:
    """A value of each hour, from midnight UTC on, that repeats: one value for always, 24 for a day."""

    values: tuple[float, ...]

    def at(self, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
        hours = np.floor(times_s / 3600).astype(np.int64) % len(self.values)
        chosen: NDArray[np.float64] = np.array(self.values)[hours]
        return chosen


@dataclass(frozen=True, slots=True)
class Monthly:
    """Thirty days like the run. ``cost`` is in the tariff's currency; None without a tariff or a carbon intensity."""

    energy_kwh: float
    peak_kw: float
    """Highest mean of 15 minutes; of the whole run where it is shorter."""
    cost: float | None
    co2_kg: float | None


def monthly(
    samples: Sequence[Sample], tariff: Hourly | None = None, carbon: Hourly | None = None, starts_s: float = 0.0
) -> Monthly:
    """From a run's samples. ``tariff`` is per kWh, ``carbon`` in grams of CO2 per kWh, and ``starts_s`` the time of day
    at which the run starts, in seconds after midnight UTC."""
    at_s = np.array([sample.at_s for sample in samples])
    energy_j = np.array([sample.energy_j for sample in samples])
    if len(at_s) < 2 or at_s[-1] <= at_s[0]:
        return Monthly(0.0, 0.0, None if tariff is None else 0.0, None if carbon is None else 0.0)
    lasts_s = float(at_s[-1] - at_s[0])
    month = MONTH_S / lasts_s
    spent_kwh = np.diff(energy_j) / J_PER_KWH
    middle_s = starts_s + (at_s[1:] + at_s[:-1]) / 2
    width_s = min(PEAK_S, lasts_s)
    starts = np.append(at_s[at_s <= at_s[-1] - width_s], at_s[-1] - width_s)
    means_w = (np.interp(starts + width_s, at_s, energy_j) - np.interp(starts, at_s, energy_j)) / width_s
    return Monthly(
        energy_kwh=float(spent_kwh.sum()) * month,
        peak_kw=float(means_w.max()) / 1000,
        cost=None if tariff is None else float((spent_kwh * tariff.at(middle_s)).sum()) * month,
        co2_kg=None if carbon is None else float((spent_kwh * carbon.at(middle_s)).sum()) / 1000 * month,
    )
