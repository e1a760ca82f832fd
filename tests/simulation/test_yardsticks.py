"""Yardsticks know the trace: each holds the SLO, and none is beaten by a neighbour that it could have been."""

import json
from collections.abc import Mapping

import pytest

from control_plane.baselines.single_pool import SinglePool
from control_plane.domain import IdleGpus
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.settings import Settings, parse_settings
from control_plane.simulation.comparison import Answer, Question, compare
from control_plane.simulation.policies import YARDSTICK_NAMES, check_policy_names
from control_plane.simulation.serving_cluster import SimulatedCluster
from control_plane.simulation.traces import synthetic_trace
from control_plane.simulation.yardsticks import YARDSTICKS
from wattray.report.simulation_report import report_page
from wattray.simulation_results import as_json, result_table
from wattray.whatif import Prices

PROFILE = RooflineProfile()
TRACE = synthetic_trace("conv", 0.15, 6.0, seed=4)


def question(settings: Settings, *names: str) -> Question:
    return Question(TRACE, PROFILE, settings, names, startup_s=60.0)


@pytest.fixture(scope="module")
def answer() -> Answer:
    return compare(question(Settings(), "wattray", *YARDSTICK_NAMES), lambda: 0.0)


def test_every_name_has_its_yardstick() -> None:
    assert set(YARDSTICKS) == set(YARDSTICK_NAMES)
    check_policy_names((*YARDSTICK_NAMES, "wattray"))


def test_every_yardstick_holds_the_slo_and_loses_nothing(answer: Answer) -> None:
    for name in YARDSTICK_NAMES:
        assert answer.holds(name), name
        assert answer.scores[name].lost == 0


def test_the_static_best_costs_no_more_than_any_static_pool_tried_by_hand(answer: Answer) -> None:
    slo, best_j = Settings().slo.slo(), answer.scores["static-best"].energy_j
    assert best_j <= answer.scores["single-pool"].energy_j
    tried = 0
    for tp in PROFILE.tps:
        for replicas in range(1, 8):
            for freq_mhz in PROFILE.freqs_mhz[::3]:
                cluster = SimulatedCluster(PROFILE, None, SinglePool(replicas, tp, freq_mhz), idle_gpus=0)
                outcome = cluster.run(TRACE, TRACE.duration_s + 60.0)
                if outcome.slo_attainment(slo) >= 0.99:
                    tried += 1
                    assert best_j <= outcome.energy_j * 1.005, (replicas, tp, freq_mhz)
    assert tried > 5


def test_who_knows_the_load_needs_no_more_than_who_does_not(answer: Answer) -> None:
    knows, learns = answer.scores["clairvoyant"], answer.scores["wattray"]
    assert knows.energy_j <= learns.energy_j * 1.01
    assert answer.scores["static-best"].reconfigurations == answer.scores["static-split"].reconfigurations == 0


def test_a_policy_that_misses_its_slo_shows_no_saving(answer: Answer) -> None:
    strict = Answer(
        answer.scores,
        answer.curves,
        answer.baseline_replicas,
        answer.sizing_runs,
        answer.bound,
        answer.gpus,
        answer.idle_gpus,
        attainment=1.0,
        fleets=answer.fleets,
    )
    late = [name for name, line in answer.scores.items() if line.slo_attainment < 1]
    assert late, "the case has nobody who is late"
    names = ("wattray", *YARDSTICK_NAMES)
    found: Mapping[str, Mapping[str, object]] = json.loads(json.dumps(as_json(strict, names, TRACE)))["policies"]
    page = report_page(strict, question(Settings(), *names), Prices())
    table = result_table(strict, names, TRACE)
    saved = dict(zip(*([str(cell) for cell in table.columns[at].cells] for at in (0, 2)), strict=True))
    for name in answer.scores:
        assert found[name]["slo_held"] == (name not in late)
        assert (saved[name] == "SLO missed") == (name in late)
        assert (f"energy saved by {name}" in page) == (name not in late and name != "single-pool")


def test_yardsticks_for_phases_apart_say_what_they_need() -> None:
    together = parse_settings({"phases": "together"})
    with pytest.raises(ValueError, match="hand KV caches over"):
        compare(question(together, "static-split"), lambda: 0.0)
    assert IdleGpus.RELEASED is question(together, "wattray").idle


def test_a_static_pool_runs_at_its_clock_from_the_first_second() -> None:
    def energy_j(freq_mhz: int | None) -> float:
        return SimulatedCluster(PROFILE, None, SinglePool(3, 4, freq_mhz), idle_gpus=0).run(TRACE, 540.0).energy_j

    top, low = max(PROFILE.freqs_mhz), min(PROFILE.freqs_mhz, key=lambda mhz: abs(mhz - 1200))
    assert energy_j(top) == pytest.approx(energy_j(None), rel=1e-9)
    assert energy_j(low) < 0.9 * energy_j(top)
