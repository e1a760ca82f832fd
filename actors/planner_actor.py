"""The planner as it runs in its actor's process: its solver in another, and the site that jobs run on."""

import time
from pathlib import Path

from actors.perseus_planner import PerseusPlanner
from actors.solver_process import SolverProcess
from actors.training_messages import TrainingSite


class PerseusPlannerActor(PerseusPlanner):
    """Wrapped by runtime.py, as every actor is."""

    async def __init__(self, folder: Path, site: TrainingSite) -> None:  # type: ignore[misc]
        super().__init__(folder, SolverProcess(), time.time)
        self._site = site

    async def site(self) -> TrainingSite:
        return self._site
