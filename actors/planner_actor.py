"""The planner as it runs in its actor's process: a thread that solves, and the site that jobs run on."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from actors.perseus_planner import PerseusPlanner
from actors.training_messages import TrainingSite


class PerseusPlannerActor(PerseusPlanner):
    """Wrapped by runtime.py, as every actor is."""

    async def __init__(self, folder: Path, site: TrainingSite) -> None:  # type: ignore[misc]
        # One thread: solutions queue up, while calls about what is solved are answered.
        solver = ThreadPoolExecutor(max_workers=1, thread_name_prefix="solver")

        async def in_background(function: Callable[..., Any], *args: Any) -> Any:
            return await asyncio.get_running_loop().run_in_executor(solver, function, *args)

        super().__init__(folder, in_background)
        self._site = site

    async def site(self) -> TrainingSite:
        return self._site
