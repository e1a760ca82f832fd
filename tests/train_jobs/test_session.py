"""A session in a loop of the test's own, without torch and without Ray."""

import subprocess
import sys
from dataclasses import replace

import pytest
from session_fakes import FULL_MHZ, PROGRAM, SCHEDULE, Control, Lease, Now, profile_of_rank, steps
from tests_support import ROOT

from control_plane.training.schedules import Instruction
from train_jobs.meter import Meter
from train_jobs.order import RankOrder, SessionError
from train_jobs.scheduled_clock import ScheduledClock
from train_jobs.session import RankProfile, TrainingSession, comparable, registration_of


def session_of(control: Control, lease: Lease, rank: int = 0) -> TrainingSession:
    clock = ScheduledClock(control, lease, PROGRAM, FULL_MHZ)
    return TrainingSession(RankOrder(PROGRAM, rank), Meter(Now()), clock, lease)


def test_a_loop_is_measured_and_its_clocks_follow_the_schedule() -> None:
    control = Control()
    with session_of(control, Lease()) as session:
        session.apply(SCHEDULE)
        clocks_mhz = []
        for _ in range(2):
            for step in PROGRAM:
                session.begin(step)
                clocks_mhz.append(control.mhz)
                session.end(step)
            measured = session.end_iteration()
            assert [m.step for m in measured] == list(PROGRAM)
            assert {(m.end_ns - m.begin_ns, m.energy_j) for m in measured} == {(10, 2.0)}
    assert clocks_mhz == [1980, 1590, 1590, 1200] * 2


def test_what_ran_while_a_clock_settled_is_compared_with_nothing() -> None:
    now = Now()
    with session_of(Control(), Lease()) as session:
        for step in PROGRAM:
            session.begin(step, now())
            if step == PROGRAM[1]:
                now.at = now.at._replace(freq_mhz=1590)
            session.end(step, now())
        compared = comparable(3, session.end_iteration())
    assert [(c.stage, c.instruction, c.freq_mhz) for c in compared] == [
        (3, "forward", 1980),
        (3, "backward", 1590),
        (3, "backward", 1590),
    ]


def test_a_counter_that_restarts_gives_no_negative_energy() -> None:
    now = Now()
    with session_of(Control(), Lease()) as session:
        session.begin(PROGRAM[0], now())
        now.at = now.at._replace(energy_j=0.5)
        assert session.end(PROGRAM[0], now()).energy_j == 0.5


def test_another_program_than_registered_is_told_where_they_part() -> None:
    with session_of(Control(), Lease(), rank=1) as session:
        session.begin(PROGRAM[0])
        with pytest.raises(SessionError, match="rank 1 begins forward 1 before forward 0 has ended"):
            session.begin(PROGRAM[1])
        with pytest.raises(SessionError, match="rank 1 ends forward 1, which has not begun"):
            session.end(PROGRAM[1])
        session.end(PROGRAM[0])
        with pytest.raises(SessionError, match=r"rank 1 runs backward 0 where .* has forward 1 \(computation 1 of 4\)"):
            session.begin(PROGRAM[2])
        with pytest.raises(SessionError, match=r"ends an iteration after 1 of 4 computations; forward 1 is due"):
            session.end_iteration()


def test_more_computations_than_registered_are_told() -> None:
    with session_of(Control(), Lease()) as session:
        for step in PROGRAM:
            session.begin(step)
            session.end(step)
        with pytest.raises(SessionError, match=r"runs forward 0 where .* has the end of the iteration"):
            session.begin(PROGRAM[0])


def test_a_schedule_without_this_rank_is_refused() -> None:
    with (
        session_of(Control(), Lease(), rank=2) as session,
        pytest.raises(SessionError, match="2 ranks, none for rank 2"),
    ):
        session.apply(SCHEDULE)


def test_a_session_that_ends_by_an_error_leaves_the_clock_full_and_the_lease_ended() -> None:
    control, lease = Control(), Lease()

    def loop() -> None:
        with session_of(control, lease) as session:
            session.apply(replace(SCHEDULE, ranks=(steps(1200, 1200, 1200, 1200),)))
            assert control.mhz == 1200
            raise RuntimeError("the loop broke")

    with pytest.raises(RuntimeError, match="the loop broke"):
        loop()
    assert control.mhz == FULL_MHZ
    assert lease.ended


def test_where_clocks_may_not_be_moved_the_end_moves_none() -> None:
    control, lease = Control(), Lease()
    control.mhz, lease.live = 1500, False
    session_of(control, lease).close()
    assert control.told == []


def test_a_lost_lease_brings_the_clock_to_full_though_nothing_is_computed() -> None:
    control, lease = Control(), Lease()
    with session_of(control, lease) as session:
        session.apply(replace(SCHEDULE, ranks=(steps(1200, 1200, 1200, 1200),)))
        lease.live = False
        lease.lost()
        assert control.mhz == FULL_MHZ


def test_a_registration_is_made_of_every_ranks_own_order_and_profile() -> None:
    whole = registration_of("llm", 2, [profile_of_rank(1), profile_of_rank(0)], 0.01)
    assert whole.order == (PROGRAM, PROGRAM)
    assert set(whole.choices) == {(rank, name) for rank in range(2) for name in ("forward", "backward")}
    assert (whole.blocking_power_w, whole.switch_time_s) == (100.5, 0.01)


@pytest.mark.parametrize(
    ("profiles", "told"),
    [
        ([profile_of_rank(0), profile_of_rank(2)], "rank 1 of 3 is missing: every rank"),
        ([profile_of_rank(0), profile_of_rank(1), profile_of_rank(1)], "rank 1 gives two profiles"),
        ([profile_of_rank(r) for r in range(4)], "rank 3 is not one of the pipeline's 3 ranks"),
        (
            [profile_of_rank(0), profile_of_rank(1), profile_of_rank(2, (Instruction("recompute", 0),))],
            "rank 2 runs recompute, which it has not measured",
        ),
        (
            [profile_of_rank(0), profile_of_rank(1), profile_of_rank(2, (PROGRAM[0], PROGRAM[0]))],
            "stage 2 runs forward 0 twice",
        ),
    ],
)
def test_a_registration_that_is_not_the_whole_pipeline_is_refused(profiles: list[RankProfile], told: str) -> None:
    with pytest.raises(SessionError, match=told):
        registration_of("llm", 3, profiles)


def test_a_rank_without_computations_is_refused() -> None:
    with pytest.raises(SessionError, match="rank 1 registers no computation"):
        RankOrder((), 1)


def test_neither_torch_nor_ray_is_loaded_by_a_session() -> None:
    modules = "session, meter, order, scheduled_clock, schedule_lease, planner_link"
    code = f"import sys; from train_jobs import {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "ray", "numpy"}.isdisjoint(loaded.stdout.split())
