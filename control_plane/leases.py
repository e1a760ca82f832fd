"""Who may hold which GPU at what, and until when: the rules of the node's agent and of any guard outside Ray.

Pure, and free of every import but the standard library. The book says what the hardware *should* be set to; a shell
sets it and says whether that succeeded. What a lease leaves behind stays in the book until the hardware has it undone.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_TTL_S = 600.0
"""Nobody may hold a GPU for longer than this without renewing."""

MOST_OWNERS = 4096
"""So many owners' epochs are remembered; beyond that, those who hold nothing are forgotten."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What one GPU is held at: the highest clock and the power it may draw; None is the GPU's own default."""

    freq_mhz: int | None = None
    power_w: float | None = None


DEFAULT = Hold()


@dataclass(frozen=True, slots=True)
class Lease:
    """One GPU's lease. ``hold`` None: the owner moves the clock itself, and the book only sees to the end of it."""

    owner: str
    hold: Hold | None
    expires_s: float
    clocks_mhz: tuple[int, int] | None = None
    """Of a schedule lease: the lowest and the highest clock that its owner may take; None: every supported one."""
    renewed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Which of the asked GPUs are the owner's now, and why the others are not."""

    granted: tuple[str, ...]
    refused: Mapping[str, str]


@dataclass(slots=True)
class _Entry:
    lease: Lease | None = None
    in_force: Hold | None = DEFAULT
    """What the hardware was last known to be set to; None: not known, or moved by the owner of a schedule lease."""


@dataclass(slots=True)
class _Owner:
    epoch: int = 0
    gpus: set[str] = field(default_factory=set)


class StaleEpochError(ValueError):
    """Somebody with a higher epoch speaks for this owner by now: the caller has been replaced."""


class LeaseBook:
    """The leases of one node's GPUs. Times are monotonic seconds of the caller's clock."""

    def __init__(self, uuids: Iterable[str], in_force: Hold | None = DEFAULT) -> None:
        """``in_force`` None: what the hardware is set to is not known, so that it is brought to its default first."""
        self._entries = {uuid: _Entry(in_force=in_force) for uuid in uuids}
        self._owners: dict[str, _Owner] = {}

    def hold(self, owner: str, wanted: Mapping[str, Hold], ttl_s: float, now_s: float, epoch: int = 0) -> Answer:
        """These are all the GPUs that ``owner`` wants, until ``ttl_s`` from now: its other leases end. Repeating it
        renews. A GPU that is not there or is somebody else's is refused, the others are granted.

        Raises StaleEpochError, and ValueError for a time to live or a hold that is none.
        """
        for uuid, hold in wanted.items():
            _check_hold(uuid, hold)
        answer = self._take(owner, wanted, ttl_s, now_s, epoch)
        for uuid in self._owner(owner).gpus - wanted.keys():
            self._end(uuid)
        return answer

    def add(self, owner: str, wanted: Mapping[str, Hold], ttl_s: float, now_s: float, epoch: int = 0) -> Answer:
        """As ``hold``, but the owner's other leases stay."""
        for uuid, hold in wanted.items():
            _check_hold(uuid, hold)
        return self._take(owner, wanted, ttl_s, now_s, epoch)

    def schedule(
        self,
        owner: str,
        uuids: Iterable[str],
        ttl_s: float,
        now_s: float,
        epoch: int = 0,
        clocks_mhz: tuple[int, int] | None = None,
    ) -> Answer:
        """``owner`` moves the clocks of these GPUs itself until ``ttl_s`` from now, within ``clocks_mhz``; its other
        leases stay. A schedule needs all of its GPUs: where one is refused none is granted. Raises as ``hold`` does."""
        wanted: dict[str, Hold | None] = dict.fromkeys(uuids, None)
        refused = self._refusals(owner, wanted)
        return Answer((), refused) if refused else self._take(owner, wanted, ttl_s, now_s, epoch, clocks_mhz)

    def release(self, owner: str, uuids: Iterable[str] | None = None) -> None:
        """End the owner's leases on these GPUs, or all of them; those of others are not touched."""
        known = self._owners.get(owner)
        mine = set() if known is None else known.gpus
        for uuid in mine & set(mine if uuids is None else uuids):
            self._end(uuid)

    def release_all(self) -> None:
        """End every lease, whoever holds it."""
        for uuid, entry in self._entries.items():
            if entry.lease is not None:
                self._end(uuid)

    def expire(self, now_s: float) -> dict[str, Lease]:
        """End the leases whose time is over; which they were."""
        over = {u: e.lease for u, e in self._entries.items() if e.lease is not None and e.lease.expires_s <= now_s}
        for uuid in over:
            self._end(uuid)
        return over

    def lease(self, uuid: str) -> Lease | None:
        entry = self._entries.get(uuid)
        return None if entry is None else entry.lease

    def leases(self) -> dict[str, Lease]:
        return {uuid: entry.lease for uuid, entry in self._entries.items() if entry.lease is not None}

    def check_epoch(self, owner: str, epoch: int) -> None:
        """Raises StaleEpochError where somebody with a higher epoch speaks for this owner by now."""
        known = self._owners.get(owner)
        if known is not None and epoch < known.epoch:
            raise StaleEpochError(f"{owner} speaks with epoch {epoch}; epoch {known.epoch} has replaced it")

    def admit(self, uuid: str, in_force: Hold | None = DEFAULT) -> None:
        """A GPU that came later; one that is known stays as it is."""
        self._entries.setdefault(uuid, _Entry(in_force=in_force))

    def to_set(self) -> dict[str, Hold]:
        """What the hardware must be set to and, as far as is known, is not. Nothing for GPUs under a schedule."""
        wanted = {}
        for uuid, entry in self._entries.items():
            target = DEFAULT if entry.lease is None else entry.lease.hold
            if target is not None and target != entry.in_force:
                wanted[uuid] = target
        return wanted

    def was_set(self, uuid: str, hold: Hold) -> None:
        """The hardware has this in force now."""
        self._entries[uuid].in_force = hold

    def is_unknown(self, uuid: str) -> None:
        """The hardware may be set to anything: a call failed half-way, or somebody else set it."""
        self._entries[uuid].in_force = None

    def _take(
        self,
        owner: str,
        wanted: Mapping[str, Hold | None],
        ttl_s: float,
        now_s: float,
        epoch: int,
        clocks_mhz: tuple[int, int] | None = None,
    ) -> Answer:
        if not 0 < ttl_s <= MAX_TTL_S:
            raise ValueError(f"a lease of {ttl_s} s for {owner}: it must be more than 0 and at most {MAX_TTL_S:.0f} s")
        self.check_epoch(owner, epoch)
        account = self._owner(owner)
        account.epoch = epoch
        refused = self._refusals(owner, wanted)
        granted = tuple(uuid for uuid in wanted if uuid not in refused)
        if len(self._owners) > MOST_OWNERS:
            self._owners = {name: known for name, known in self._owners.items() if known.gpus or name == owner}
        for uuid in granted:
            entry = self._entries[uuid]
            entry.lease = Lease(owner, wanted[uuid], now_s + ttl_s, clocks_mhz, now_s)
            if wanted[uuid] is None:
                entry.in_force = None
            account.gpus.add(uuid)
        return Answer(granted, refused)

    def _refusals(self, owner: str, uuids: Iterable[str]) -> dict[str, str]:
        refused = {}
        for uuid in uuids:
            entry = self._entries.get(uuid)
            if entry is None:
                refused[uuid] = "this node has no such GPU"
            elif entry.lease is not None and entry.lease.owner != owner:
                refused[uuid] = f"leased to {entry.lease.owner}"
        return refused

    def _end(self, uuid: str) -> None:
        entry = self._entries[uuid]
        if entry.lease is not None:
            self._owner(entry.lease.owner).gpus.discard(uuid)
            entry.lease = None

    def _owner(self, owner: str) -> _Owner:
        return self._owners.setdefault(owner, _Owner())


def _check_hold(uuid: str, hold: Hold) -> None:
    if hold.freq_mhz is not None and hold.freq_mhz <= 0:
        raise ValueError(f"{uuid}: a clock of {hold.freq_mhz} MHz")
    if hold.power_w is not None and not 0 < hold.power_w < math.inf:
        raise ValueError(f"{uuid}: a power limit of {hold.power_w} W")
