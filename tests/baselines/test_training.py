"""Baselines plan as their papers say, and none of them beats the frontier."""

import numpy as np
import pytest
from training.profiles_for_tests import synthetic_profile

from control_plane.baselines.training import BASELINES, AllMaxClocks, EnvPipe, PerseusClocks, ZeusGlobal, ZeusPerStage
from control_plane.training import pipeline
from control_plane.training.dag import finish_times
from control_plane.training.frontier import walk_frontier
from control_plane.training.planner import run_choices

DAG = pipeline.build_dag(pipeline.one_f_one_b(4, 8), synthetic_profile(4), 60.0)
FRONTIER = walk_frontier(DAG)
ALL_MAX_S, ALL_MAX_J = run_choices(DAG, AllMaxClocks().choices(DAG, 0.0))


def test_zeus_global_gives_every_operation_one_clock() -> None:
    assert len({c.freq_mhz for c in ZeusGlobal().choices(DAG, 1.2 * ALL_MAX_S)}) == 1


def test_zeus_per_stage_gives_every_stage_one_clock_and_the_heaviest_the_highest() -> None:
    choices = ZeusPerStage().choices(DAG, 1.1 * ALL_MAX_S)
    freq_mhz = {s: {c.freq_mhz for c, t in zip(choices, DAG.tasks, strict=True) if t.stage == s} for s in range(4)}
    assert all(len(clocks) == 1 for clocks in freq_mhz.values())
    assert max(freq_mhz[3]) == max(max(clocks) for clocks in freq_mhz.values())


def test_envpipe_saves_without_slowing_down_and_keeps_the_last_stage_at_full_clock() -> None:
    choices = EnvPipe().choices(DAG, 0.0)
    end_s, effective_j = run_choices(DAG, choices)
    assert end_s <= ALL_MAX_S
    assert effective_j < ALL_MAX_J
    assert {c.freq_mhz for c, t in zip(choices, DAG.tasks, strict=True) if t.stage == 3} == {1400}


def test_envpipe_gives_the_micro_batches_of_one_stage_different_clocks_where_their_slack_differs() -> None:
    choices = EnvPipe().choices(DAG, 0.0)
    backwards = [c for c, t in zip(choices, DAG.tasks, strict=True) if (t.stage, t.instruction) == (0, "backward")]
    assert len({choice.freq_mhz for choice in backwards}) > 1
    bound_j = FRONTIER.within(ALL_MAX_S).effective_j
    _, effective_j = run_choices(DAG, choices)
    assert effective_j - bound_j < 0.25 * (ALL_MAX_J - bound_j)


@pytest.mark.parametrize("factor", [1.0, 1.1, 1.3])
def test_no_baseline_beats_the_bound_and_ours_beats_every_baseline(factor: float) -> None:
    deadline_s = factor * ALL_MAX_S
    ours = PerseusClocks().choices(DAG, deadline_s)
    assert finish_times(DAG, np.array([c.time_s for c in ours])).max() <= deadline_s
    _, ours_j = run_choices(DAG, ours)
    bound_j = FRONTIER.within(deadline_s).effective_j
    for policy in BASELINES:
        end_s, effective_j = run_choices(DAG, policy.choices(DAG, deadline_s))
        if end_s > deadline_s:  # a family without a plan in time answers with its fastest
            assert isinstance(policy, ZeusPerStage)
            continue
        assert bound_j <= ours_j <= effective_j, policy.name
