"""What gpud does by itself every second: ends lapsed leases, sets what is not as the book says, watches for drift.

It waits for nobody: each GPU has at most one task of a kind, and what fails is due again.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping

from actors.gpu.readback import Verdict, verdict
from control_plane.leases import DEFAULT, Hold, LeaseBook
from control_plane.ports import GpuError
from gpud.audit import Audit
from gpud.card import Card
from gpud.executor import Executor, Rules
from gpud.requests import RefusedError

log = logging.getLogger(__name__)

LOOK_S = 0.05
MOST_PAUSE_S = 30.0


class Upkeep:
    """``cards``, ``book`` and ``scheduled_mhz`` are the guard's own; ``wanted`` tells (owner, target) of a GPU."""

    def __init__(
        self,
        cards: Mapping[str, Card],
        book: LeaseBook,
        scheduled_mhz: dict[str, int | None],
        wanted: Callable[[str], tuple[str, Hold]],
        executor: Executor,
        audit: Audit,
        rules: Rules,
    ) -> None:
        self.cards, self.book, self._scheduled_mhz, self._wanted = cards, book, scheduled_mhz, wanted
        self.executor, self.audit, self.rules = executor, audit, rules
        self._drift: dict[str, tuple[int, float]] = {}
        """By GPU: how often in a row its clock was found above its lock, and when it may be set again."""
        self._failed: dict[str, tuple[int, float]] = {}
        """By GPU: how often in a row it could not be set, and when to try again."""
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def tick(self) -> None:
        """End lapsed leases, and see to whatever is not as the book says. Waits for nobody."""
        for uuid, lease in self.book.expire(time.monotonic()).items():
            self._scheduled_mhz.pop(uuid, None)
            self.audit.note("lapsed", gpu=uuid, owner=owner_name(lease.owner))
        for uuid, card in self.cards.items():
            owner, target = self._wanted(uuid)
            if card.in_force != target or (card.owes_a_reset and not owner):
                self.bring_soon(uuid, "due")
            elif owner and target.freq_mhz is not None and not self.rules.dry_run:
                self._soon(uuid, "watch", self._watch(card, target.freq_mhz))

    @property
    def busy(self) -> bool:
        """Whether anything is leased or owed, so that somebody must look every second."""
        return bool(self.book.leases()) or any(card.owes_a_reset for card in self.cards.values())

    def next_expiry_s(self) -> float | None:
        """Monotonic seconds; None where nothing is leased."""
        return min((lease.expires_s for lease in self.book.leases().values()), default=None)

    async def end(self) -> None:
        """Every lease ends and what was set is undone, before the process ends."""
        self.book.release_all()
        self._scheduled_mhz.clear()
        due = [uuid for uuid, card in self.cards.items() if card.owes_a_reset or card.in_force != DEFAULT]
        await asyncio.gather(*(self._bring_quietly(uuid, "gpud ends") for uuid in due))

    def look_soon(self, card: Card) -> None:
        """In the background, so that a lost GPU is found again."""
        self._soon(card.uuid, "look", self._look_quietly(card))

    async def _look_quietly(self, card: Card) -> None:
        try:
            await self.executor.look(card, 0.0)
        except GpuError as error:
            log.debug("%s", error)

    def _soon(self, uuid: str, kind: str, work: Coroutine[None, None, None]) -> None:
        """In the background; one of a kind and GPU at a time."""
        running = self._tasks.get((uuid, kind))
        if running is not None and not running.done():
            work.close()
            return
        self._tasks[uuid, kind] = asyncio.get_running_loop().create_task(work)

    async def _bring_quietly(self, uuid: str, why: str) -> None:
        """What fails is due again: at once five times, then less and less often."""
        times, again_s = self._failed.get(uuid, (0, 0.0))
        if times and time.monotonic() < again_s:
            return
        try:
            await self.executor.bring(self.cards[uuid], why)
            self._failed.pop(uuid, None)
        except RefusedError as error:
            pause_s = min(MOST_PAUSE_S, 2.0 ** max(0, times - 5) - 1)
            self._failed[uuid] = times + 1, time.monotonic() + pause_s
            log.warning("%s (tried again)", error)

    async def _watch(self, card: Card, held_mhz: int) -> None:
        """Somebody else may have set a GPU that is held here: a clock twice above its lock is set again, less and less
        often."""
        try:
            look = await self.executor.look(card, LOOK_S)
        except GpuError as error:
            log.warning("%s", error)
            return
        if card.facts is None or card.in_force is None or card.in_force.freq_mhz != held_mhz:
            return
        if look.at_s - card.set_at_s < self.rules.settle_s:
            return
        found = verdict(held_mhz, card.facts.step_mhz, look.sample)
        times, again_s = self._drift.get(card.uuid, (0, 0.0))
        now_s = time.monotonic()
        if found is not Verdict.STUCK:
            self._drift.pop(card.uuid, None)
            card.verdict = card.verdict if found is Verdict.UNVERIFIABLE else found
        elif times == 0:
            self._drift[card.uuid] = 1, now_s
        elif now_s >= again_s:
            self._drift[card.uuid] = times + 1, now_s + min(60.0, 2.0**times)
            self.audit.note("drifted", gpu=card.uuid, held_mhz=held_mhz, observed_mhz=look.sample.freq_mhz)
            card.verdict, card.in_force = found, None
            await self._bring_quietly(card.uuid, "its clock is above its lock")

    def bring_soon(self, uuid: str, why: str) -> None:
        """In the background."""
        self._soon(uuid, "bring", self._bring_quietly(uuid, why))


def owner_key(owner: str, uid: int) -> str:
    """Owners of different users are different owners."""
    return f"{owner}@{uid}"


def owner_name(key: str) -> str:
    return key.rpartition("@")[0]
