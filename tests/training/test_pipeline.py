"""Schedules run everything once, in an order that can be executed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training.profiles_for_tests import synthetic_profile

from control_plane.training import pipeline
from control_plane.training.computation import Choice
from control_plane.training.dag import CycleError, dag_of_nodes, finish_times
from control_plane.training.pipeline import Instruction, build_dag


@given(st.integers(1, 6), st.integers(1, 9))
def test_every_schedule_runs_each_microbatch_once_and_has_no_cycle(stages: int, microbatches: int) -> None:
    profile = synthetic_profile(stages, clocks=2)
    for build in (pipeline.gpipe, pipeline.one_f_one_b, pipeline.early_recompute_1f1b, pipeline.zero_bubble):
        schedule = build(stages, microbatches)
        build_dag(schedule, profile)
        for program in schedule.order:
            runs = Counter(step.name for step in program)
            assert set(runs.values()) == {microbatches}
            assert len(set(program)) == len(program)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 3))
def test_interleaved_schedule_runs_every_chunk(stages: int, groups: int, chunks: int) -> None:
    schedule = pipeline.interleaved_1f1b(stages, stages * groups, chunks)
    build_dag(schedule, synthetic_profile(stages, clocks=2))
    for program in schedule.order:
        assert len(program) == len(set(program)) == 2 * stages * groups * chunks


def test_1f1b_order_of_the_first_and_last_stage() -> None:
    schedule = pipeline.one_f_one_b(3, 4)
    spelled = ["".join(f"{s.name[0]}{s.microbatch}" for s in program) for program in schedule.order]
    assert spelled == ["f0f1f2b0f3b1b2b3", "f0f1b0f2b1f3b2b3", "f0b0f1b1f2b2f3b3"]


def test_iteration_time_of_equal_stages_is_the_textbook_one() -> None:
    choices = {(s, name): [Choice(1, t, 1)] for s in range(4) for name, t in (("forward", 1.0), ("backward", 2.0))}
    from control_plane.training.computation import profile_of

    profile = profile_of(choices)
    for schedule in (pipeline.one_f_one_b(4, 8), pipeline.gpipe(4, 8)):
        dag = build_dag(schedule, profile)
        times_s = dag.per_operation(c.fastest.time_s for c in dag.computations)
        assert finish_times(dag, times_s).max() == (8 + 4 - 1) * 3
    split = build_dag(pipeline.zero_bubble(4, 8), profile)
    times_s = split.per_operation(c.fastest.time_s for c in split.computations)
    assert finish_times(split, times_s).max() < (8 + 4 - 1) * 3


def test_transfers_are_constant_operations_between_stages() -> None:
    dag = build_dag(pipeline.one_f_one_b(2, 3), synthetic_profile(2), 60.0, transfer_time_s=0.5)
    transfers = [op for op, task in enumerate(dag.tasks) if task.instruction.startswith("send_")]
    assert len(transfers) == 6
    assert all(dag.computation(op).fastest.time_s == 0.5 for op in transfers)


def test_an_order_that_waits_for_itself_is_refused_with_its_cycle() -> None:
    order = [
        [Instruction("backward", 0), Instruction("forward", 0)],
        [Instruction("forward", 0), Instruction("backward", 0)],
    ]
    with pytest.raises(CycleError, match="stage 0 backward 0"):
        build_dag(pipeline.user_order(order), synthetic_profile(2))


def test_a_cycle_in_given_nodes_and_edges_is_refused() -> None:
    nodes = {name: [Choice(1, 1.0, 1.0)] for name in "abc"}
    with pytest.raises(CycleError, match=r"a.*waits for"):
        dag_of_nodes(nodes, [("a", "b"), ("b", "c"), ("c", "a")])
    with pytest.raises(ValueError, match="'d', which is not a node"):
        dag_of_nodes(nodes, [("a", "d")])


@pytest.mark.parametrize("microbatches", [0, -1])
def test_no_schedule_has_less_than_one_microbatch(microbatches: int) -> None:
    for build in (pipeline.gpipe, pipeline.one_f_one_b, pipeline.early_recompute_1f1b, pipeline.zero_bubble):
        with pytest.raises(ValueError, match=f"microbatches must be at least 1, got {microbatches}"):
            build(4, microbatches)


def test_an_order_that_leaves_out_what_it_needs_is_refused() -> None:
    order = [[Instruction("forward", 0)], [Instruction("forward", 0), Instruction("backward", 0)]]
    build_dag(pipeline.user_order(order), synthetic_profile(2))
    with pytest.raises(ValueError, match="which never runs it"):
        build_dag(pipeline.user_order([order[0][:0], order[1]]), synthetic_profile(2))
    with pytest.raises(ValueError, match="twice"):
        pipeline.user_order([[Instruction("forward", 0), Instruction("forward", 0)]])


def test_topological_order_puts_every_operation_after_what_it_waits_for() -> None:
    dag = build_dag(pipeline.one_f_one_b(4, 6), synthetic_profile(4))
    place = np.argsort(dag.order)
    assert (place[dag.edges[:, 0]] < place[dag.edges[:, 1]]).all()
