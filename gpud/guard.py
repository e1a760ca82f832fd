"""Whose GPUs are whose: checks requests, keeps the lease book, and sees to it that the hardware follows it.

It runs in one event loop. The book says what the hardware should be set to, each card what it was set to; what differs
is set at once and again every second. Nothing here waits for a GPU that it was not asked about.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from actors.gpu.gpud_wire import ErrorKind
from actors.gpu.readback import Verdict, verdict
from control_plane.leases import DEFAULT, Hold, LeaseBook, StaleEpochError
from control_plane.ports import Gpu, GpuError
from gpud.audit import Audit
from gpud.bounds import RateLimit, checked_hold, checked_scheduled
from gpud.card import Card
from gpud.executor import Executor, Peer, Rules, shown
from gpud.records import Records, boot_id
from gpud.requests import Lease as Asked
from gpud.requests import LimitPower, Lock, RefusedError, Reset, Schedule, SetScheduled

log = logging.getLogger(__name__)

_FOR_EVER = frozenset({ErrorKind.PERMISSION, ErrorKind.NOT_SUPPORTED, ErrorKind.OUT_OF_BOUNDS, ErrorKind.NOT_OURS})
"""A GPU that refused for one of these was not set and will not be: its lease ends."""
LOOK_S = 0.05
MOST_PAUSE_S = 30.0


@dataclass(slots=True)
class Answer:
    """Of the GPUs asked for: what is in force now, and why the others are not the caller's."""

    granted: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)

    def refuse(self, uuid: str, error: RefusedError) -> None:
        self.refused[uuid] = {"kind": error.kind, "message": str(error)}


class Guard:
    """All methods run in one event loop."""

    def __init__(self, rules: Rules, records: Records, audit: Audit) -> None:
        self.rules, self._records, self.audit = rules, records, audit
        self.executor = Executor(rules, audit)
        self.cards: dict[str, Card] = {}
        self.book = LeaseBook(())
        self._left = records.left_behind()
        self._boot_id = boot_id()
        self._scheduled_mhz: dict[str, int | None] = {}
        self._rates: dict[str, RateLimit] = {}
        self._drift: dict[str, tuple[int, float]] = {}
        """By GPU: how often in a row its clock was found above its lock, and when it may be set again."""
        self._failed: dict[str, tuple[int, float]] = {}
        """By GPU: how often in a row it could not be set, and when to try again."""
        self.woken = asyncio.Event()
        """Something is leased: whoever ticks must look at the next moment at which a lease may lapse."""
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def admit(self, gpus: Iterable[Gpu]) -> list[Card]:
        """GPUs that the driver shows now: new ones are taken in, missing ones count as lost. Returns the new ones."""
        seen = {gpu.uuid: gpu for gpu in gpus}
        new = []
        for uuid, gpu in seen.items():
            if uuid in self.cards:
                continue
            left = self._left.pop(uuid, None)
            if left is not None and left.boot_id != self._boot_id:
                self.audit.note("forgotten", gpu=uuid, why="the node has booted since; clocks do not outlive that")
                self._records.remove(uuid)
                left = None
            card = Card(gpu, self._wanted, self._moves_often, self._records, left, self._boot_id, self.rules.hung_s)
            self.cards[uuid], self._rates[uuid] = card, RateLimit()
            self.book.admit(uuid, card.in_force)
            new.append(card)
        for uuid, card in self.cards.items():
            if card.listed != (uuid in seen):
                card.listed = uuid in seen
                self.audit.note("back" if card.listed else "lost", gpu=uuid, why=card.lost)
        return new

    def _wanted(self, uuid: str) -> tuple[str, Hold]:
        """(owner, what its lease wants now); no owner and the default where nobody holds it. Any thread may ask."""
        lease = self.book.lease(uuid)
        if lease is None:
            return "", DEFAULT
        return owner_name(lease.owner), Hold(self._scheduled_mhz.get(uuid)) if lease.hold is None else lease.hold

    def _moves_often(self, uuid: str) -> bool:
        lease = self.book.lease(uuid)
        return lease is not None and lease.hold is None

    # requests

    async def lock(self, request: Lock, peer: Peer) -> Answer:
        """Hold GPUs and read back. Raises RefusedError where the whole request is refused."""
        asked, answer = request.lease, Answer()
        owner = self._owner(asked, peer)
        checked: dict[str, Hold] = {}
        for uuid, hold in request.holds.items():
            try:
                card = self._controllable(uuid)
                checked[uuid] = checked_hold(card, hold, self.rules.bounds)
                if checked[uuid] != card.in_force:
                    self._rates[uuid].take(uuid, time.monotonic())
            except RefusedError as error:
                answer.refuse(uuid, error)
        held = self._held_by(owner)
        # A GPU that was refused keeps the lease it has.
        stays = {uuid: held[uuid] for uuid in held if uuid in answer.refused and asked.only}
        take = self.book.hold if asked.only else self.book.add
        granted = take(owner, {**stays, **checked}, asked.ttl_s, time.monotonic(), asked.epoch)
        for uuid, why in granted.refused.items():
            answer.refuse(uuid, RefusedError(ErrorKind.LEASED, f"GPU {uuid}: {_without_user(why)}"))
        self.woken.set()
        mine = [uuid for uuid in granted.granted if uuid in checked]
        for uuid in mine:
            self._scheduled_mhz.pop(uuid, None)
        for uuid in held.keys() - self._held_by(owner).keys():
            self._soon(uuid, "bring", self._bring_quietly(uuid, f"{asked.owner} has let it go"))
        await asyncio.gather(*(self._hold_one(self.cards[uuid], owner, asked, peer, answer) for uuid in mine))
        for uuid, refusal in answer.refused.items():
            self.audit.note("refused", gpu=uuid, **_who(peer, asked), asked=shown(request.holds.get(uuid)), **refusal)
        return answer

    async def limit_power(self, request: LimitPower, peer: Peer) -> Answer:
        """As ``lock``; what the owner holds these GPUs' clocks at stays."""
        held = self._held_by(owner_key(request.lease.owner, peer))
        holds = {uuid: replace(held.get(uuid, DEFAULT), power_w=watts) for uuid, watts in request.limits_w.items()}
        return await self.lock(Lock(request.lease, holds), peer)

    async def _hold_one(self, card: Card, owner: str, asked: Asked, peer: Peer, answer: Answer) -> None:
        try:
            brought = await self.executor.bring(card, asked.why or "lock", peer)
            told: dict[str, Any] = {"max_mhz": brought.target.freq_mhz, "power_w": brought.target.power_w}
            if self.rules.dry_run:
                told |= {"verdict": "recommended", "dry_run": True}
            elif brought.target.freq_mhz is None:
                card.verdict = None
                told["verdict"] = Verdict.HELD
            else:
                if brought.changed or card.verdict is None:
                    card.verdict = None
                    card.verdict, told["runs_mhz"] = await self.executor.read_back(card, brought)
                told["verdict"] = card.verdict
            answer.granted[card.uuid] = told
        except RefusedError as error:
            if error.kind in _FOR_EVER:
                self.book.release(owner, [card.uuid])
            answer.refuse(card.uuid, error)

    async def schedule(self, request: Schedule, peer: Peer) -> Answer:
        """A schedule needs all of its GPUs: where one is refused none is granted."""
        asked, answer = request.lease, Answer()
        owner, within = self._owner(asked, peer), self.rules.bounds.within(request.clocks_mhz)
        for uuid in request.gpus:
            try:
                self._controllable(uuid)
            except RefusedError as error:
                answer.refuse(uuid, error)
        if not answer.refused:
            fresh = [uuid for uuid in request.gpus if not self._drives(owner, uuid)]
            taken = self.book.schedule(owner, request.gpus, asked.ttl_s, time.monotonic(), asked.epoch, within)
            self.woken.set()
            for uuid, why in taken.refused.items():
                answer.refuse(uuid, RefusedError(ErrorKind.LEASED, f"GPU {uuid}: {_without_user(why)}"))
            if not answer.refused:
                await asyncio.gather(*(self._open_schedule(self.cards[uuid], answer) for uuid in fresh))
            if answer.refused and taken.granted:
                self.book.release(owner, fresh)
            elif fresh:
                self.audit.note("scheduled", gpus=fresh, **_who(peer, asked), clocks_mhz=within)
        if answer.refused:
            self.audit.note("refused", **_who(peer, asked), refused=answer.refused)
        else:
            answer.granted = {uuid: {"dry_run": self.rules.dry_run} for uuid in request.gpus}
        return answer

    async def _open_schedule(self, card: Card, answer: Answer) -> None:
        try:
            if not self.rules.dry_run:
                await self.executor.prepare(card)
            await self.executor.bring(card, "schedule")
        except RefusedError as error:
            answer.refuse(card.uuid, error)

    async def set_scheduled(self, request: SetScheduled, peer: Peer) -> Answer:
        """Clocks now. Quick: no read-back, no waiting for anybody else."""
        owner, answer = owner_key(request.owner, peer), Answer()
        self._check_epoch(owner, request.epoch)
        cards = []
        for uuid, freq_mhz in request.clocks_mhz.items():
            try:
                card = self._controllable(uuid)
                clock = checked_scheduled(card, self.book.lease(uuid), owner, freq_mhz, self.rules.bounds)
                self._rates[uuid].take(uuid, time.monotonic())
            except RefusedError as error:
                answer.refuse(uuid, error)
                self.audit.note("refused", gpu=uuid, owner=request.owner, uid=peer.uid, asked=freq_mhz, why=str(error))
                continue
            self._scheduled_mhz[uuid] = clock
            cards.append(card)
        if len(cards) == 1:
            await self._set_one(cards[0], peer, answer)
        else:
            await asyncio.gather(*(self._set_one(card, peer, answer) for card in cards))
        return answer

    async def _set_one(self, card: Card, peer: Peer, answer: Answer) -> None:
        try:
            brought = await self.executor.bring(card, "schedule", peer)
            answer.granted[card.uuid] = {"max_mhz": brought.target.freq_mhz, "dry_run": self.rules.dry_run}
        except RefusedError as error:
            answer.refuse(card.uuid, error)

    async def reset(self, request: Reset, peer: Peer, may_end_all: bool) -> Answer:
        """End leases: the owner's, or where none is named everybody's; another user than root or gpud's may end its own
        only. A GPU that such an operator names without an owner is reset even where we hold nothing on it."""
        answer, named = Answer(), request.gpus or tuple(self.cards)
        for uuid in set(named) - self.cards.keys():
            answer.refuse(uuid, RefusedError(ErrorKind.NO_SUCH_GPU, f"this node has no GPU {uuid}"))
        known = [uuid for uuid in named if uuid in self.cards]
        by_hand = request.owner is None and may_end_all
        todo = [uuid for uuid in known if by_hand and (request.gpus or self.cards[uuid].owes_a_reset)]
        for uuid in known:
            lease = self.book.lease(uuid)
            if lease is None:
                continue
            if by_hand or lease.owner == owner_key(request.owner or owner_name(lease.owner), peer):
                self.book.release(lease.owner, [uuid])
                self._scheduled_mhz.pop(uuid, None)
                todo.append(uuid)
            elif request.gpus and request.owner is None:
                told = f"GPU {uuid}: leased to another user, whose lease user {peer.uid} may not end"
                answer.refuse(uuid, RefusedError(ErrorKind.FORBIDDEN, told))
        why = request.why or "reset"
        await asyncio.gather(*(self._reset_one(uuid, why, peer, answer) for uuid in dict.fromkeys(todo)))
        return answer

    async def _reset_one(self, uuid: str, why: str, peer: Peer, answer: Answer) -> None:
        card = self.cards[uuid]
        try:
            if not card.owes_a_reset and card.in_force == DEFAULT and not self.rules.dry_run:
                await self.executor.reset_whatever_is_set(card, f"{why}: asked for by its UUID", peer)
            else:
                await self.executor.bring(card, why, peer)
            answer.granted[uuid] = {"reset": not self.rules.dry_run}
        except RefusedError as error:
            answer.refuse(uuid, error)

    # by itself

    def tick(self) -> None:
        """End lapsed leases, and see to whatever is not as the book says. Waits for nobody."""
        for uuid, lease in self.book.expire(time.monotonic()).items():
            self._scheduled_mhz.pop(uuid, None)
            self.audit.note("lapsed", gpu=uuid, owner=owner_name(lease.owner))
        for uuid, card in self.cards.items():
            owner, target = self._wanted(uuid)
            if card.in_force != target or (card.owes_a_reset and not owner):
                self._soon(uuid, "bring", self._bring_quietly(uuid, "due"))
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

    # checks

    def _controllable(self, uuid: str) -> Card:
        card = self.cards.get(uuid)
        if card is None:
            raise RefusedError(ErrorKind.NO_SUCH_GPU, f"this node has no GPU {uuid}")
        if card.lost is not None:
            raise RefusedError(ErrorKind.LOST, card.lost)
        if card.last is None or card.facts is None:
            raise RefusedError(ErrorKind.BUSY, f"GPU {uuid}: its driver has not answered yet")
        if card.last.not_ours is not None:
            raise RefusedError(ErrorKind.NOT_OURS, f"GPU {uuid}: {card.last.not_ours}")
        if card.hangs:
            raise RefusedError(
                ErrorKind.BUSY, f"GPU {uuid}: its driver has not answered for {card.thread.stuck_s():.1f} s"
            )
        return card

    def _owner(self, asked: Asked, peer: Peer) -> str:
        if not 0 < asked.ttl_s <= self.rules.ttl_max_s:
            most = f"more than 0 and at most {self.rules.ttl_max_s:g}"
            raise RefusedError(ErrorKind.OUT_OF_BOUNDS, f"ttl_s must be {most}, got {asked.ttl_s:g}")
        owner = owner_key(asked.owner, peer)
        self._check_epoch(owner, asked.epoch)
        return owner

    def _check_epoch(self, owner: str, epoch: int) -> None:
        try:
            self.book.check_epoch(owner, epoch)
        except StaleEpochError as error:
            raise RefusedError(ErrorKind.STALE_EPOCH, str(error)) from None

    def _held_by(self, owner: str) -> Mapping[str, Hold]:
        leases = self.book.leases().items()
        return {uuid: lease.hold or DEFAULT for uuid, lease in leases if lease.owner == owner}

    def _drives(self, owner: str, uuid: str) -> bool:
        lease = self.book.lease(uuid)
        return lease is not None and lease.owner == owner and lease.hold is None


def owner_key(owner: str, peer: Peer) -> str:
    """Owners of different users are different owners."""
    return f"{owner}@{peer.uid}"


def owner_name(key: str) -> str:
    return key.rpartition("@")[0]


def _without_user(why: str) -> str:
    return owner_name(why) or why


def _who(peer: Peer, asked: Asked) -> dict[str, Any]:
    return {
        "owner": asked.owner,
        "epoch": asked.epoch or None,
        "uid": peer.uid,
        "pid": peer.pid,
        "why": asked.why or None,
    }
