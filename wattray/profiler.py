"""Measures a load at a clock: warms up, waits until power is steady, then takes windows at shifted sensor phases.

It reads GPUs through gpud and sets clocks only under a schedule lease, so that they go back whatever happens. Where
clocks are not to be set it measures at the clock that runs. It needs neither Ray nor pydantic.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from actors.gpu.gpud_client import GpudClient, GpudError
from control_plane.hardware.steady_measurement import Estimate, estimate, phase_shifts_s, steady_from

SAMPLE_S = 0.1
RENEWALS_PER_TTL = 3


class ProfilerError(RuntimeError):
    """The measurement cannot be made or is not to be believed; the message says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often. Windows shorter than 5 s compare badly: the energy counter moves every 100 ms."""

    warmup_s: float = 3.0
    settle_s: float = 30.0
    """A load whose power is not steady by then is measured all the same, and marked so."""
    window_s: float = 5.0
    windows: int = 5
    lease_ttl_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One load at one clock. Times are of one iteration; watts are summed over the GPUs."""

    tokens: int
    freq_mhz: int
    """The clock that was asked for; the one that ran where none was."""
    observed_mhz: float
    iteration_s: Estimate
    power_w: Estimate
    energy_j_per_iteration: Estimate
    steady: bool
    capped: bool
    """Heat or power held the clock down in the windows."""


Iterate = Callable[[], None]
"""Runs one iteration of the load and returns when its work is done."""


class Meter:
    """These GPUs, through gpud."""

    def __init__(self, client: GpudClient, gpus: Sequence[str]) -> None:
        self.client, self.gpus = client, tuple(gpus)

    def rows(self, max_age_s: float = SAMPLE_S / 2) -> list[dict[str, Any]]:
        """Raises ProfilerError where one of the GPUs does not tell what is needed."""
        rows: list[dict[str, Any]] = self.client.read(self.gpus, max_age_s)["gpus"]
        for row in rows:
            if row["clock_mhz"] is None or row["power_w"] is None or row["energy"] is None:
                raise ProfilerError(f"GPU {row['uuid']}: {row['why'] or 'it does not tell its clock and its power'}")
        if len(rows) != len(self.gpus):
            missing = set(self.gpus) - {row["uuid"] for row in rows}
            raise ProfilerError(f"this node has no GPU {', '.join(sorted(missing))}")
        return rows

    def power_w(self) -> float:
        return float(sum(row["power_w"] for row in self.rows()))


def measure(meter: Meter, tokens: int, freq_mhz: int | None, iterate: Iterate, plan: Plan) -> Measured:
    """``freq_mhz`` None: at the clock that runs, and nothing is set."""
    _run_for(plan.warmup_s, iterate)
    powers: list[float] = []
    began_s = time.monotonic()
    steady = False
    while not steady and time.monotonic() - began_s < plan.settle_s:
        _run_for(SAMPLE_S, iterate)
        powers.append(meter.power_w())
        steady = steady_from(powers[-40:]) is not None
    windows = [_window(meter, iterate, plan.window_s, shift_s) for shift_s in phase_shifts_s(plan.windows)]
    observed_mhz = sum(window.clock_mhz for window in windows) / len(windows)
    return Measured(
        tokens,
        round(observed_mhz) if freq_mhz is None else freq_mhz,
        observed_mhz,
        estimate([window.elapsed_s / window.iterations for window in windows]),
        estimate([window.energy_j / window.elapsed_s for window in windows]),
        estimate([window.energy_j / window.iterations for window in windows]),
        steady,
        any(window.capped for window in windows),
    )


@dataclass(frozen=True, slots=True)
class _Window:
    elapsed_s: float
    energy_j: float
    iterations: int
    clock_mhz: float
    capped: bool


def _window(meter: Meter, iterate: Iterate, window_s: float, shift_s: float) -> _Window:
    """Iterations for ``window_s``, begun ``shift_s`` later, with the energy that the GPUs used in them."""
    _run_for(shift_s, iterate)
    before = meter.rows(0.0)
    began_s = looked_s = time.monotonic()
    iterations, clocks, capped = 0, [_clock(before)], False
    while time.monotonic() - began_s < window_s:
        iterate()
        iterations += 1
        if time.monotonic() - looked_s >= SAMPLE_S:
            rows = meter.rows()
            looked_s = time.monotonic()
            clocks.append(_clock(rows))
            capped = capped or any(set(row["events"] or ()) & {"power_cap", "thermal", "power_brake"} for row in rows)
    after = meter.rows(0.0)
    elapsed_s = time.monotonic() - began_s
    power_w = sum(_mean_power_w(first, last) for first, last in zip(before, after, strict=True))
    return _Window(elapsed_s, power_w * elapsed_s, iterations, sum(clocks) / len(clocks), capped)


def _mean_power_w(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """Between the moments at which the counter was asked: its readings may be a tenth of a second old."""
    apart_s = after["energy"]["read_at_s"] - before["energy"]["read_at_s"]
    if apart_s <= 0:
        raise ProfilerError("the window is shorter than the energy counter's step")
    return float((after["energy"]["total_j"] - before["energy"]["total_j"]) / apart_s)


def _clock(rows: Sequence[dict[str, Any]]) -> float:
    return min(float(row["clock_mhz"]) for row in rows)


def _run_for(seconds: float, iterate: Iterate) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        iterate()


@contextmanager
def clock_lease(meter: Meter, owner: str, ttl_s: float) -> Iterator[Callable[[int], None]]:
    """Gives a function that sets the clock of all of the GPUs, renewing the lease. Clocks go back at the end, whatever
    happened, and within ``ttl_s`` if this process is killed. Raises ProfilerError where gpud does not grant it."""
    _lease(meter, owner, ttl_s)
    stop = _renewing(meter, owner, ttl_s)
    try:
        yield lambda freq_mhz: _set(meter, owner, freq_mhz)
    finally:
        stop()
        meter.client.reset(owner, meter.gpus, "the profiler has ended")


def _lease(meter: Meter, owner: str, ttl_s: float) -> None:
    answer = meter.client.schedule(owner, meter.gpus, ttl_s)
    if answer.refused:
        raise ProfilerError("; ".join(refusal.message for refusal in answer.refused.values()))
    if any(granted["dry_run"] for granted in answer.granted.values()):
        raise ProfilerError("gpud only records what would be set (--dry-run): measure at the present clock instead")


def _set(meter: Meter, owner: str, freq_mhz: int) -> None:
    answer = meter.client.set(owner, dict.fromkeys(meter.gpus, freq_mhz))
    if answer.refused:
        raise ProfilerError("; ".join(refusal.message for refusal in answer.refused.values()))
    time.sleep(0.5)
    for row in meter.rows(0.0):
        if row["clock_mhz"] > freq_mhz + 30:
            raise ProfilerError(
                f"GPU {row['uuid']} runs at {row['clock_mhz']} MHz, above the {freq_mhz} MHz that were set"
            )


def _renewing(meter: Meter, owner: str, ttl_s: float) -> Callable[[], None]:
    """Renews in a thread of its own, over a connection of its own: an iteration may be longer than the lease."""
    import logging
    import threading

    ending, client = threading.Event(), GpudClient(meter.client.path)

    def renew() -> None:
        while not ending.wait(ttl_s / RENEWALS_PER_TTL):
            try:
                client.schedule(owner, meter.gpus, ttl_s)
            except GpudError as error:
                logging.getLogger(__name__).warning("the lease is not renewed: %s", error)

    thread = threading.Thread(target=renew, name="profiler-lease", daemon=True)
    thread.start()

    def stop() -> None:
        ending.set()
        thread.join(5.0)
        client.close()

    return stop
