"""Measures a load at a clock: warms up, waits until power is steady, then takes windows at shifted sensor phases.

It reads GPUs through gpud and sets clocks only under a schedule lease, so that they go back whatever happens. Where
clocks are not to be set it measures at the clock that runs. It needs neither Ray nor pydantic.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from actors.gpu.gpud_client import GpudClient, GpudError
from control_plane.hardware.steady_measurement import Estimate, estimate, phase_shifts_s, steady_from
from control_plane.ports import CAPS

log = logging.getLogger(__name__)

SAMPLE_S = 0.1
CAPPED = frozenset(str(event) for event in CAPS)
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


@dataclass(frozen=True, slots=True)
class Progress:
    """How many iterations a load has done, and when the last of them ended, in monotonic seconds."""

    iterations: float
    at_s: float


class Load(Protocol):
    """Runs by itself between ``start`` and ``stop``."""

    @property
    def tokens(self) -> int:
        """Tokens of one iteration."""
        ...

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def progress(self) -> Progress:
        """Raises ProfilerError where the load has failed."""
        ...


class RepeatedCall:
    """A function, again and again in a thread: it returns when the work of one iteration is done."""

    def __init__(self, tokens: int, iterate: Callable[[], object]) -> None:
        self.tokens, self._iterate = tokens, iterate
        self._ending = threading.Event()
        self._done = Progress(0, time.monotonic())
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="profiler-load", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(60)

    def progress(self) -> Progress:
        if self._failure is not None:
            raise ProfilerError(f"the load failed: {self._failure!r}") from self._failure
        return self._done

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self._iterate()
                self._done = Progress(self._done.iterations + 1, time.monotonic())
        except BaseException as error:  # noqa: BLE001 (raised where the progress is asked for)
            self._failure = error


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


def measure(meter: Meter, freq_mhz: int | None, load: Load, plan: Plan) -> Measured:
    """Starts the load and stops it. ``freq_mhz`` None: at the clock that runs, and nothing is set."""
    load.start()
    try:
        return _measured(meter, freq_mhz, load, plan)
    finally:
        load.stop()


def _measured(meter: Meter, freq_mhz: int | None, load: Load, plan: Plan) -> Measured:
    _until(time.monotonic() + plan.warmup_s, load)
    powers: list[float] = []
    began_s, steady = time.monotonic(), False
    while not steady and time.monotonic() - began_s < plan.settle_s:
        _until(time.monotonic() + SAMPLE_S, load)
        powers.append(meter.power_w())
        steady = steady_from(powers[-40:]) is not None
    windows = [_window(meter, load, plan.window_s, shift_s) for shift_s in phase_shifts_s(plan.windows)]
    observed_mhz = sum(window.clock_mhz for window in windows) / len(windows)
    return Measured(
        load.tokens,
        round(observed_mhz) if freq_mhz is None else freq_mhz,
        observed_mhz,
        estimate([window.iteration_s for window in windows]),
        estimate([window.power_w for window in windows]),
        estimate([window.power_w * window.iteration_s for window in windows]),
        steady,
        any(window.capped for window in windows),
    )


@dataclass(frozen=True, slots=True)
class _Window:
    iteration_s: float
    power_w: float
    clock_mhz: float
    capped: bool


def _window(meter: Meter, load: Load, window_s: float, shift_s: float) -> _Window:
    """``window_s`` of the load, begun ``shift_s`` later: power, and time from end to end of iterations."""
    time.sleep(shift_s)
    before, begun = meter.rows(0.0), load.progress()
    ends_s = time.monotonic() + window_s
    clocks, capped = [_clock(before)], False
    while time.monotonic() < ends_s or load.progress().iterations < begun.iterations + 1:
        time.sleep(SAMPLE_S)
        rows = meter.rows()
        clocks.append(_clock(rows))
        capped = capped or any(set(row["events"] or ()) & CAPPED for row in rows)
    after, ended = meter.rows(0.0), load.progress()
    return _Window(
        (ended.at_s - begun.at_s) / (ended.iterations - begun.iterations),
        sum(_mean_power_w(first, last) for first, last in zip(before, after, strict=True)),
        sum(clocks) / len(clocks),
        capped,
    )


def _mean_power_w(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """Between the moments at which the counter was asked: its readings may be a tenth of a second old."""
    apart_s = after["energy"]["read_at_s"] - before["energy"]["read_at_s"]
    if apart_s <= 0:
        raise ProfilerError("the window is shorter than the energy counter's step")
    return float((after["energy"]["total_j"] - before["energy"]["total_j"]) / apart_s)


def _clock(rows: Sequence[dict[str, Any]]) -> float:
    return min(float(row["clock_mhz"]) for row in rows)


def _until(moment_s: float, load: Load) -> None:
    while time.monotonic() < moment_s:
        load.progress()
        time.sleep(min(SAMPLE_S, max(0.0, moment_s - time.monotonic())))


def at_rest(meter: Meter, seconds: float) -> float:
    """Watts of these GPUs while nothing runs on them, contexts included."""
    powers = []
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        powers.append(meter.power_w())
        time.sleep(SAMPLE_S)
    return sum(powers) / len(powers)


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
    ending, client = threading.Event(), GpudClient(meter.client.path)

    def renew() -> None:
        while not ending.wait(ttl_s / RENEWALS_PER_TTL):
            try:
                client.schedule(owner, meter.gpus, ttl_s)
            except GpudError as error:
                log.warning("the lease is not renewed: %s", error)

    thread = threading.Thread(target=renew, name="profiler-lease", daemon=True)
    thread.start()

    def stop() -> None:
        ending.set()
        thread.join(5.0)
        client.close()

    return stop
