"""What lets a week fit: working block by block changes nothing, an excerpt guesses the fleet, no run is done twice."""

import gc
import json
import resource
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from control_plane.baselines.single_pool import SinglePool
from control_plane.domain import IdleGpus, Slo
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.settings import Settings
from control_plane.simulation import bound, comparison, sizing, traces
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.scoring import curve
from control_plane.simulation.serving_cluster import SimulatedCluster
from control_plane.simulation.trace import Trace, excerpt
from control_plane.simulation.traces import WEEK_2024, load_curve_trace, synthetic_trace
from wattray import run_files

PROFILE = RooflineProfile()
TABLES = {tp: ShapeTables.of(PROFILE, tp) for tp in PROFILE.tps}
CURVE = ["time_utc,rpm_mid", "2024-05-12 00:00:00,60", "2024-05-12 00:10:00,300", "2024-05-12 00:20:00,30"]


def same(one: Trace, other: Trace) -> bool:
    return (
        one.arrival_ps.tobytes() == other.arrival_ps.tobytes()
        and one.input_tokens.tobytes() == other.input_tokens.tobytes()
        and one.output_tokens.tobytes() == other.output_tokens.tobytes()
    )


def test_a_load_curve_drawn_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_curve_trace(CURVE, WEEK_2024["conv"], seed=3)
    monkeypatch.setattr(traces, "_BLOCK", 97)
    assert len(whole) > 1000
    assert same(load_curve_trace(CURVE, WEEK_2024["conv"], seed=3), whole)


def test_an_excerpt_puts_every_nth_window_behind_the_other() -> None:
    seconds = np.arange(0.5, 60.0)
    ones = np.ones(60, np.int32)
    trace = Trace.at(seconds, np.arange(1, 61, dtype=np.int32), ones)
    part = excerpt(trace, 10.0, 3)
    assert part.input_tokens.tolist() == [*range(1, 11), *range(31, 41)]
    assert (part.arrival_ps / 1e12).tolist() == np.arange(0.5, 20.0).tolist()


@pytest.mark.parametrize("kind", ["conv", "code"])
def test_an_excerpt_only_guesses_the_fleet(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    trace, slo = synthetic_trace(kind, 0.1, 4.0, seed=2), Slo()
    runs: list[tuple[int, int]] = []

    def simulate(part: Trace, replicas: int, watch: sizing.Watch) -> Simulated:
        runs.append((len(part), replicas))
        return SimulatedCluster(PROFILE, None, SinglePool(replicas)).run(part, watch=watch)

    whole = sizing.fewest_replicas(trace, TABLES[8], slo, simulate)
    runs.clear()
    monkeypatch.setattr(sizing, "EXCERPT_REQUESTS", len(trace) // 5)
    guessed = sizing.fewest_replicas(trace, TABLES[8], slo, simulate)
    assert (guessed.replicas, guessed.outcome) == (whole.replicas, whole.outcome)
    assert runs[0][0] < len(trace) / 2
    full = [replicas for size, replicas in runs if size == len(trace)]
    assert len(set(runs)) == len(runs)
    assert guessed.runs == len(full)
    assert {whole.replicas, whole.replicas - 1} <= set(full)


def test_no_fleet_plays_the_trace_twice_and_every_run_is_kept_once() -> None:
    trace = synthetic_trace("conv", 0.05, 2.0, seed=1)
    names, kept = set(), []
    question = comparison.Question(trace, PROFILE, Settings(), ("wattray",), idle=IdleGpus.CHARGED)
    answer = comparison.compare(
        question, lambda: 0.0, lambda name, _share: names.add(name), lambda name, _outcome: kept.append(name)
    )
    assert kept == ["single-pool", "wattray"]
    assert "single-pool" not in names
    assert {"wattray", "scoring wattray", "bound"} <= names
    static = SimulatedCluster(PROFILE, None, SinglePool(answer.baseline_replicas), idle_gpus=answer.idle_gpus)
    outcome = static.run(trace, trace.duration_s + comparison.SETTLE_S)
    assert answer.scores["single-pool"].energy_j == outcome.energy_j


def test_the_bound_of_parts_loses_only_what_spans_their_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = synthetic_trace("conv", 0.1, 2.0, seed=1)
    whole = bound.energy_bound(trace, TABLES, Slo()).energy_j
    monkeypatch.setattr(bound, "_ROWS", len(trace) // 4)
    told: list[float] = []
    parts = bound.energy_bound(trace, TABLES, Slo(), progress=told.append).energy_j
    assert 0.99 * whole < parts <= whole * (1 + 1e-12)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_records_written_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trace = synthetic_trace("conv", 0.02, seed=1)
    outcome = SimulatedCluster(PROFILE, None, SinglePool(1)).run(trace)
    (whole,) = run_files.request_columns(outcome)
    assert whole["energy_j"].sum() == pytest.approx(outcome.energy_j)
    monkeypatch.setattr(run_files, "_BLOCK", 7)
    blocks = list(run_files.request_columns(outcome))
    assert len(blocks) > 5
    for name, column in whole.items():
        assert np.array_equal(np.concatenate([block[name] for block in blocks]), column)
    monkeypatch.setattr(run_files, "find_spec", lambda _name: None)
    run_files.write_policy_run(tmp_path, None, "p", outcome)
    assert len((tmp_path / "p-requests.csv").read_text().splitlines()) == len(trace) + 1


def test_the_share_held_over_time_is_by_arrival() -> None:
    trace = synthetic_trace("conv", 0.1, seed=1)
    outcome = SimulatedCluster(PROFILE, None, SinglePool(1)).run(trace)
    held = curve(outcome, Slo()).held
    bins = np.minimum((trace.arrival_ps / trace.arrival_ps[-1] * 240).astype(int), 239)
    met = outcome.met(Slo())
    expected = [met[bins == at].mean() if (bins == at).any() else np.nan for at in range(240)]
    assert np.allclose(held, expected, equal_nan=True, atol=0.5)
    assert np.nanmean(np.abs(held - expected)) < 0.01


@pytest.mark.parametrize("engine", [None, "compiled"])
def test_a_run_that_is_over_holds_nothing(engine: Literal["compiled"] | None) -> None:
    """Even where garbage is not collected: a second week must find room."""
    trace = synthetic_trace("conv", 0.02, seed=1)
    outcome = SimulatedCluster(PROFILE, None, SinglePool(2), engine=engine).run(trace)
    held = [weakref.ref(column) for column in (outcome.columns.finished_ps, outcome.columns.energy_wps)]
    assert all(ref() is not None for ref in held)
    gc.disable()
    try:
        del outcome
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["conv", "code"])
def test_a_week_fits_and_is_bounded(data: Path, tmp_path: Path, kind: str) -> None:
    """`wattray simulate` on a whole week in a process of its own: memory, CPU time, and nobody beats the bound."""
    curve_file = data / "traces" / f"azure2024_week_{kind}_rpm_digitized.csv"
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "wattray", "simulate", "--trace", str(curve_file), "--lengths", kind]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, "--json", str(out)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    results = json.loads(out.read_text())
    simulator, policies = results["simulator"], results["policies"]
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{kind}: {cpu_s:.0f} CPU s, at most {after.ru_maxrss / 1e6:.2f} GB; {simulator}")
    assert after.ru_maxrss * 1024 <= 3 * 2**30
    assert policies["single-pool"]["slo_attainment"] >= 0.99
    for line in policies.values():
        assert line["energy_j"] >= results["bound_energy_j"]
    # Two policies, both in this figure: each may take a quarter of an hour.
    assert simulator["cpu_s"] + simulator["policy_cpu_s"] <= 2 * 900
