"""Which GPUs a run of a job gets: some that nobody leases, taken all at once or not at all.

Looking and taking are two calls, and others may start in between: whoever keeps the leases decides, and the loser looks
again. A run leases under a name of its own, so that no run renews or ends the leases of another one.
"""

import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from actors.training_messages import job_of_owner
from train_jobs.schedule_lease import LeaseRefusedError

LOOK_EVERY_S = 0.3
WAIT_MORE_S = 2.0
"""Than a lease lives: it is ended at the next look of whoever keeps it."""

MOST_REFUSALS = 20
"""Somebody else was quicker, so often; beyond that a GPU that looks free cannot be had."""


class Leases(Protocol):
    """Whoever keeps them: a node's agent or gpud."""

    def owners(self) -> Mapping[str, str]:
        """Who leases which GPU now, by UUID."""
        ...

    def take(self, owner: str, uuids: Sequence[str]) -> None:
        """All of them or none. Raises LeaseRefusedError."""
        ...

    def release(self, owner: str, uuids: Sequence[str]) -> None: ...


def new_run() -> str:
    return secrets.token_hex(3)


def claim(
    owner: str,
    needed: int,
    offered: Sequence[str],
    leases: Leases,
    patience_s: float,
    sleep_s: Callable[[float], None] = time.sleep,
) -> tuple[str, ...]:
    """``needed`` GPUs of those ``offered``, leased to ``owner`` from now on; what it leases already comes first. A job
    of this name that runs is waited for as long as ``patience_s``: one that was killed leases its GPUs that long.

    Raises LeaseRefusedError where others lease too many of them, the job runs already, or leases were refused
    ``MOST_REFUSALS`` times.
    """
    job, until_s, refusals = job_of_owner(owner), time.monotonic() + patience_s, 0
    while True:
        known = leases.owners()
        owners = {uuid: who for uuid, who in known.items() if who != owner}
        rivals = sorted({who for who in owners.values() if job_of_owner(who) == job})
        if not rivals:
            mine = sorted((uuid for uuid in offered if uuid not in owners), key=lambda uuid: uuid not in known)
            if len(mine) < needed:
                raise LeaseRefusedError(
                    f"job {job} needs {needed} GPUs, {len(mine)} of {len(offered)} are free; the others are leased to "
                    f"{', '.join(sorted({owners[uuid] for uuid in offered if uuid in owners}))}"
                )
            try:
                leases.take(owner, mine[:needed])
            except LeaseRefusedError:
                refusals += 1
                if refusals == MOST_REFUSALS:
                    raise
            else:
                if all(who == owner or job_of_owner(who) != job for who in leases.owners().values()):
                    return tuple(mine[:needed])
                # Two runs of one job took different GPUs in the same moment: neither is the first.
                leases.release(owner, mine[:needed])
        elif time.monotonic() >= until_s:
            raise LeaseRefusedError(f"job {job} runs already, as {rivals[0]}: give this one another name")
        sleep_s(LOOK_EVERY_S * (0.5 + random.random()))
