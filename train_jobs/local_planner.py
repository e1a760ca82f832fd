"""A planner inside the job, where no control plane runs: the same planner, its solver in a process of its own."""

import asyncio
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

END_S = 6.0


class LocalPlanner:
    """Lives as long as the rank that leads the job."""

    def __init__(self) -> None:
        from actors.perseus_planner import PerseusPlanner
        from actors.solver_process import SolverProcess

        self._folder = tempfile.TemporaryDirectory(prefix="wattray-planner-")
        self._loop = asyncio.new_event_loop()
        self._solver = SolverProcess()
        self._planner = PerseusPlanner(Path(self._folder.name), self._solver, time.time)
        self._thread = threading.Thread(target=self._loop.run_forever, name="local-planner", daemon=True)
        self._thread.start()

    def call(self, method: str, *args: Any) -> "Future[Any]":
        """As a link calls the planner's actor."""
        return asyncio.run_coroutine_threadsafe(getattr(self._planner, method)(*args), self._loop)

    def close(self) -> None:
        """Ends the solver too, which otherwise ends with this process."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        self._thread.join(timeout=END_S)
        self._folder.cleanup()

    async def _end(self) -> None:
        await self._solver.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._loop.stop()
