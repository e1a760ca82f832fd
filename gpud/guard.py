"""Whose GPUs are whose: checks requests, keeps the lease book, and sets at once what a request changed.

It runs in one event loop. The book says what the hardware should be set to, each card what it was set to; what differs
is set at once and again every second. Nothing here waits for a GPU that it was not asked about.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from actors.gpu.gpud_wire import ErrorKind
from actors.gpu.readback import Verdict
from control_plane.leases import DEFAULT, Hold, LeaseBook, StaleEpochError
from control_plane.ports import Gpu
from gpud.audit import Audit
from gpud.bounds import RateLimit, checked_hold, checked_scheduled
from gpud.card import Card
from gpud.executor import Executor, Peer, Rules, shown
from gpud.records import Records, boot_id
from gpud.requests import Lease as Asked
from gpud.requests import LimitPower, Lock, RefusedError, Reset, Schedule, SetScheduled
from gpud.upkeep import Upkeep, owner_key, owner_name

log = logging.getLogger(__name__)

_FOR_EVER = frozenset({ErrorKind.PERMISSION, ErrorKind.NOT_SUPPORTED, ErrorKind.OUT_OF_BOUNDS, ErrorKind.NOT_OURS})
"""A GPU that refused for one of these was not set and will not be: its lease ends."""


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
        self.ending = False
        """Nothing more is granted."""
        self.woken = asyncio.Event()
        """Something is leased: whoever ticks must look at the next moment at which a lease may lapse."""
        self.upkeep = Upkeep(self.cards, self.book, self._scheduled_mhz, self._wanted, self.executor, audit, rules)

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
            self.upkeep.bring_soon(uuid, f"{asked.owner} has let it go")
        await asyncio.gather(*(self._hold_one(self.cards[uuid], owner, asked, peer, answer) for uuid in mine))
        for uuid, refusal in answer.refused.items():
            self.audit.note("refused", gpu=uuid, **_who(peer, asked), asked=shown(request.holds.get(uuid)), **refusal)
        return answer

    async def limit_power(self, request: LimitPower, peer: Peer) -> Answer:
        """As ``lock``; what the owner holds these GPUs' clocks at stays."""
        held = self._held_by(owner_key(request.lease.owner, peer.uid))
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
        owner, answer = owner_key(request.owner, peer.uid), Answer()
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
            if by_hand or lease.owner == owner_key(request.owner or owner_name(lease.owner), peer.uid):
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

    # checks

    def _controllable(self, uuid: str) -> Card:
        if self.ending:
            raise RefusedError(ErrorKind.BUSY, "gpud is ending and sets nothing any more")
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
        owner = owner_key(asked.owner, peer.uid)
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
