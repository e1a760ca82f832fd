"""The planner without Ray: plain calls, a folder, and solving on another thread."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests_support import pipeline_choices

from actors.perseus_planner import PerseusPlanner, UnknownJobError
from actors.training_messages import JobRegistration

CLOCKS = {1980, 1590, 1200}


def registration(job: str = "llm", stages: int = 2, profiled_stages: int = 2) -> JobRegistration:
    return JobRegistration(job, pipeline_choices(profiled_stages), "1f1b", stages, 6, 130.0)


async def on_a_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(function, *args)


def planner(folder: Path) -> PerseusPlanner:
    return PerseusPlanner(folder, on_a_thread)


def test_a_registered_job_gets_clocks_for_every_rank(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = planner(tmp_path)
        await one.register(registration())
        schedule = await one.schedule("llm")
        assert [len(rank) for rank in schedule.ranks] == [12, 12]
        assert schedule.degree == 1.0
        assert schedule.planned_time_s <= schedule.all_max_time_s
        assert schedule.planned_energy_j < schedule.all_max_energy_j
        assert {step.freq_mhz for rank in schedule.ranks for step in rank} <= CLOCKS

    asyncio.run(scenario())


def test_a_straggler_slows_the_others_to_its_pace_and_its_recovery_undoes_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = planner(tmp_path)
        await one.register(registration())
        healthy = await one.schedule("llm")
        slow = await one.report_straggler("llm", "p1", 1.25)
        assert healthy.planned_time_s < slow.planned_time_s <= 1.25 * slow.t_min_s
        assert slow.planned_energy_j < slow.all_max_energy_until_j(slow.deadline_s)
        assert await one.report_straggler("llm", "p1", 1.0) == healthy

    asyncio.run(scenario())


def test_jobs_and_stragglers_survive_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = planner(tmp_path)
        await first.register(registration("a"))
        await first.register(registration("b"))
        slow = await first.report_straggler("b", "p1", 1.3)
        second = planner(tmp_path)
        assert await second.jobs() == ("a", "b")
        assert await second.schedule("b") == slow
        assert (await second.frontier("a")).degree == 1.0

    asyncio.run(scenario())


def test_a_file_that_is_no_job_is_left_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        await planner(tmp_path).register(registration("a"))
        (tmp_path / "b.json").write_text('{"name": "b", "colour": "red"}')
        assert await planner(tmp_path).jobs() == ("a",)

    asyncio.run(scenario())
    assert "b.json is no job" in caplog.text


def test_other_jobs_are_answered_while_one_is_solved(tmp_path: Path) -> None:
    gate = threading.Event()

    async def scenario() -> None:
        async def slowly(function: Callable[..., Any], *args: Any) -> Any:
            def waiting() -> Any:
                gate.wait(10)
                return function(*args)

            return await asyncio.to_thread(waiting)

        one = PerseusPlanner(tmp_path, slowly)
        await one.register(registration("a"))
        asked = asyncio.ensure_future(one.schedule("a"))
        await asyncio.wait_for(one.register(registration("b")), 0.5)
        assert await asyncio.wait_for(one.jobs(), 0.5) == ("a", "b")
        assert not asked.done()
        gate.set()
        assert (await asked).job == "a"

    asyncio.run(scenario())


def test_the_frontier_falls_from_t_min_to_t_star(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = planner(tmp_path)
        await one.register(registration())
        frontier = await one.frontier("llm", 12)
        times = [sample.iteration_time_s for sample in frontier.samples]
        assert times[0] == pytest.approx(frontier.t_min_s)
        assert times[-1] == pytest.approx(frontier.t_star_s)
        assert times == sorted(times)
        assert all(sample.lower_bound_j <= sample.energy_j * (1 + 1e-9) for sample in frontier.samples)

    asyncio.run(scenario())


def test_stages_that_disagree_and_jobs_that_are_not_there_are_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = planner(tmp_path)
        with pytest.raises(ValueError, match="the schedule has 3 stages, the profile 2"):
            await one.register(registration(stages=3))
        with pytest.raises(UnknownJobError, match=r"no job 'llm' is registered; known: none"):
            await one.schedule("llm")
        await one.register(registration())
        with pytest.raises(ValueError, match=r"1 or more, got 0\.5"):
            await one.report_straggler("llm", "p1", 0.5)
        await one.forget("llm")
        await one.forget("llm")
        assert await planner(tmp_path).jobs() == ()

    asyncio.run(scenario())
