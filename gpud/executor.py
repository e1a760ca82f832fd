"""Carries out one GPU's target: in its own thread, with a deadline, audited, and read back."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from actors.gpu.driver_thread import HUNG_S
from actors.gpu.gpud_wire import ErrorKind
from actors.gpu.readback import Verdict, verdict
from control_plane.leases import DEFAULT, Hold
from control_plane.ports import (
    Gpu,
    GpuBusyError,
    GpuError,
    GpuLostError,
    GpuNotSupportedError,
    GpuPermissionError,
    NoGpuError,
)
from gpud.audit import Audit
from gpud.bounds import NO_BOUNDS, Bounds
from gpud.card import Brought, Card, Look, NotOursError
from gpud.requests import RefusedError

log = logging.getLogger(__name__)

READ_BACK_EVERY_S = 0.005
STEADY_S = 0.1
"""A clock that shows the same for this long has settled, where it is not above the lock."""

_KINDS: tuple[tuple[type[BaseException], ErrorKind], ...] = (
    (NotOursError, ErrorKind.NOT_OURS),
    (GpuPermissionError, ErrorKind.PERMISSION),
    (GpuNotSupportedError, ErrorKind.NOT_SUPPORTED),
    (GpuLostError, ErrorKind.LOST),
    (NoGpuError, ErrorKind.LOST),
    (GpuBusyError, ErrorKind.BUSY),
    (ValueError, ErrorKind.OUT_OF_BOUNDS),
)

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks: the user and the process on the other end of the socket."""

    uid: int
    pid: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator allows."""

    ttl_max_s: float
    bounds: Bounds = NO_BOUNDS
    dry_run: bool = False
    settle_s: float = 0.5
    """How long a new clock may take: tens of milliseconds on A100 and H100, hundreds on GH200."""
    hung_s: float = HUNG_S


class Executor:
    """Runs in one event loop; every call to a driver runs in its GPU's thread."""

    def __init__(self, rules: Rules, audit: Audit) -> None:
        self._rules, self._audit = rules, audit
        self._denied_told: set[str] = set()

    async def bring(self, card: Card, why: str, peer: Peer | None = None) -> Brought:
        """Set what is wanted of this GPU now. Raises RefusedError where that failed; then it stays due."""
        owner, target = card.wanted()
        who = {} if peer is None else {"uid": peer.uid, "pid": peer.pid}
        if self._rules.dry_run:
            if target != card.in_force:
                self._audit.note("would set", gpu=card.uuid, owner=owner or None, new=shown(target), why=why, **who)
                card.in_force = target
            return Brought(target, None, None, False, None)
        try:
            brought = await self.in_thread(card, card.bring, urgent=True)
        except GpuError as error:
            what = {"owner": owner or None, "new": shown(target), "error": str(error), "why": why}
            self._audit.note("set", gpu=card.uuid, **what, **who)
            raise _refusal(card, error) from None
        if brought.changed:
            self._note_set(card, owner, brought, why, who)
        if brought.error is not None:
            raise _refusal(card, brought.error)
        return brought

    def _note_set(self, card: Card, owner: str, brought: Brought, why: str, who: dict[str, int]) -> None:
        self._audit.note_soon(
            "set",
            gpu=card.uuid,
            owner=owner or None,
            old=shown(brought.before),
            new=shown(brought.target),
            driver_ms=round(brought.driver_s * 1000, 3),
            error=None if brought.error is None else str(brought.error),
            why=why,
            **who,
        )
        if isinstance(brought.error, GpuPermissionError) and card.uuid not in self._denied_told:
            self._denied_told.add(card.uuid)
            log.warning("%s; it is only watched from now on, until that changes", brought.error)

    async def read_back(self, card: Card, brought: Brought) -> tuple[Verdict, int | None]:
        """Look until the clock has settled, at most ``settle_s``: the verdict and the clock seen. Raises RefusedError
        where the GPU does not answer, or a newer target came."""
        facts, target_mhz = card.facts, brought.target.freq_mhz
        assert facts is not None
        assert target_mhz is not None
        began_s = steady_since_s = time.monotonic()
        last: tuple[Verdict, int | None] | None = None
        while True:
            try:
                sample = await self.in_thread(card, lambda gpu: gpu.sample())
            except GpuError as error:
                raise _refusal(card, error) from None
            if card.in_force != brought.target:
                raise RefusedError(
                    ErrorKind.SUPERSEDED, f"GPU {card.uuid}: a newer target came before {target_mhz} MHz"
                )
            now_s = time.monotonic()
            found = verdict(target_mhz, facts.step_mhz, sample, brought.before_mhz), sample.freq_mhz
            if found != last:
                last, steady_since_s = found, now_s
            arrived = found[1] is not None and abs(found[1] - target_mhz) <= facts.step_mhz
            steady = found[0] is not Verdict.STUCK and now_s - steady_since_s >= STEADY_S
            if (found[0] is Verdict.HELD and arrived) or steady or now_s - began_s >= self._rules.settle_s:
                what = {"held_mhz": target_mhz, "observed_mhz": found[1], "verdict": found[0]}
                self._audit.note("read back", gpu=card.uuid, **what)
                return found
            await asyncio.sleep(READ_BACK_EVERY_S)

    async def reset_whatever_is_set(self, card: Card, why: str, peer: Peer) -> None:
        """Raises RefusedError."""
        try:
            await self.in_thread(card, card.reset_whatever_is_set, urgent=True)
        except GpuError as error:
            raise _refusal(card, error) from None
        self._audit.note("set", gpu=card.uuid, uid=peer.uid, pid=peer.pid, new=shown(DEFAULT), why=why)

    async def prepare(self, card: Card) -> None:
        """Raises RefusedError."""
        try:
            await self.in_thread(card, card.prepare, urgent=True)
        except (GpuError, OSError) as error:
            raise _refusal(card, error) from None

    async def look(self, card: Card, max_age_s: float) -> Look:
        """A look that is not older than this. Raises GpuError."""
        if card.last is not None and time.monotonic() - card.last.at_s <= max_age_s:
            return card.last
        return await self.in_thread(card, card.look)

    async def in_thread(self, card: Card, call: Callable[[Gpu], Value], urgent: bool = False) -> Value:
        """Raises what the call raises, and GpuBusyError where the driver does not answer in time."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Value] = loop.create_future()
        running = card.thread.submit(call, urgent)

        def settle() -> None:
            if not answered.done():
                error = running.exception()
                if error is None:
                    answered.set_result(running.result())
                else:
                    answered.set_exception(error)

        def give_up() -> None:
            if not answered.done():
                running.cancel()
                within = f"within {self._rules.hung_s:g} s"
                answered.set_exception(GpuBusyError(f"GPU {card.uuid}: its driver has not answered {within}"))

        running.add_done_callback(lambda done: None if done.cancelled() else loop.call_soon_threadsafe(settle))
        timer = loop.call_later(self._rules.hung_s, give_up)
        try:
            return await answered
        finally:
            timer.cancel()


def shown(hold: Hold | None) -> dict[str, Any] | None:
    """As the audit and the answers write it."""
    return None if hold is None else {"max_mhz": hold.freq_mhz, "power_w": hold.power_w}


def _refusal(card: Card, error: BaseException) -> RefusedError:
    kind = next((kind for cls, kind in _KINDS if isinstance(error, cls)), ErrorKind.DRIVER)
    return RefusedError(kind, str(error) or f"GPU {card.uuid}: {type(error).__name__}")
