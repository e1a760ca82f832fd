import math
from collections.abc import Mapping

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from control_plane.leases import DEFAULT, MAX_TTL_S, Hold, LeaseBook, StaleEpochError

GPUS = ("g0", "g1", "g2")
owners = st.sampled_from(["pool", "job", "governor"])
holds = st.builds(Hold, st.sampled_from([None, 990, 1590]), st.sampled_from([None, 300.0]))
uuids = st.sampled_from([*GPUS, "foreign"])


class Leases(RuleBasedStateMachine):
    """Owners come, renew, fall silent and are replaced; the hardware refuses now and then; time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.book = LeaseBook(GPUS)
        self.now_s = 0.0
        self.hardware: dict[str, Hold | None] = dict.fromkeys(GPUS, DEFAULT)
        self.until_s: dict[tuple[str, str], float] = {}
        self.failing: set[str] = set()

    @rule(owner=owners, wanted=st.dictionaries(uuids, holds), ttl_s=st.floats(0.1, 30))
    def hold(self, owner: str, wanted: Mapping[str, Hold], ttl_s: float) -> None:
        before = self.book.leases()
        answer = self.book.hold(owner, wanted, ttl_s, self.now_s)
        assert set(answer.granted) | set(answer.refused) == set(wanted)
        for uuid in answer.refused:
            assert uuid == "foreign" or before[uuid].owner != owner
        for uuid in GPUS:
            self.until_s.pop((owner, uuid), None)
        for uuid in answer.granted:
            self.until_s[owner, uuid] = self.now_s + ttl_s
        self.apply()

    @rule(owner=owners, uuid=st.sampled_from(GPUS), ttl_s=st.floats(0.1, 30))
    def schedule(self, owner: str, uuid: str, ttl_s: float) -> None:
        if self.book.schedule(owner, [uuid], ttl_s, self.now_s).granted:
            self.until_s[owner, uuid] = self.now_s + ttl_s
            self.hardware[uuid] = None  # its owner moves it

    @rule(owner=owners, some=st.none() | st.sets(st.sampled_from(GPUS)))
    def release(self, owner: str, some: set[str] | None) -> None:
        others = {uuid: lease for uuid, lease in self.book.leases().items() if lease.owner != owner}
        self.book.release(owner, some)
        for uuid in GPUS if some is None else some:
            self.until_s.pop((owner, uuid), None)
        assert others.items() <= self.book.leases().items()
        self.apply()

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.book.expire(self.now_s)
        self.until_s = {key: until_s for key, until_s in self.until_s.items() if until_s > self.now_s}
        self.apply()

    @rule(failing=st.sets(st.sampled_from(GPUS)))
    def the_driver_changes_its_mind(self, failing: set[str]) -> None:
        self.failing = failing
        self.apply()

    @precondition(lambda self: self.book.leases())
    @rule()
    def everything_is_released(self) -> None:
        self.book.release_all()
        self.until_s.clear()
        self.apply()

    def apply(self) -> None:
        for uuid, hold in self.book.to_set().items():
            if uuid in self.failing:
                self.book.is_unknown(uuid)
            else:
                self.hardware[uuid] = hold
                self.book.was_set(uuid, hold)

    @invariant()
    def a_gpu_is_leased_to_whom_it_was_granted_until_then(self) -> None:
        leased = {(lease.owner, uuid): lease.expires_s for uuid, lease in self.book.leases().items()}
        assert leased == self.until_s

    @invariant()
    def what_nobody_leases_is_at_its_default_or_due_to_be_set(self) -> None:
        for uuid in GPUS:
            if self.book.lease(uuid) is None and self.hardware[uuid] != DEFAULT:
                assert self.book.to_set()[uuid] == DEFAULT
                assert uuid in self.failing

    @invariant()
    def what_is_leased_is_in_force_or_due_to_be_set(self) -> None:
        for uuid, lease in self.book.leases().items():
            if lease.hold is not None and self.hardware[uuid] != lease.hold:
                assert self.book.to_set()[uuid] == lease.hold


TestLeases = Leases.TestCase


def test_a_book_that_does_not_know_the_hardware_brings_all_of_it_to_its_default() -> None:
    assert LeaseBook(GPUS, in_force=None).to_set() == dict.fromkeys(GPUS, DEFAULT)
    assert LeaseBook(GPUS).to_set() == {}


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, math.nan, math.inf, MAX_TTL_S + 1])
def test_a_time_to_live_that_is_none_is_refused(ttl_s: float) -> None:
    book = LeaseBook(GPUS)
    with pytest.raises(ValueError, match="a lease of"):
        book.hold("pool", {"g0": Hold(990)}, ttl_s, 0.0)
    assert book.leases() == {}


@pytest.mark.parametrize("hold", [Hold(0), Hold(-990), Hold(990, math.nan), Hold(990, -1.0), Hold(None, math.inf)])
def test_a_hold_that_is_none_is_refused_before_anything_changes(hold: Hold) -> None:
    book = LeaseBook(GPUS)
    with pytest.raises(ValueError, match="g1"):
        book.hold("pool", {"g0": Hold(990), "g1": hold}, 5.0, 0.0)
    assert book.leases() == {}


def test_a_lower_epoch_is_refused_and_an_equal_one_is_not() -> None:
    book = LeaseBook(GPUS)
    book.hold("pool", {"g0": Hold(990)}, 5.0, 0.0, epoch=7)
    book.hold("pool", {"g0": Hold(1200)}, 5.0, 0.0, epoch=7)
    with pytest.raises(StaleEpochError):
        book.schedule("pool", ["g0"], 5.0, 0.0, epoch=6)
    book.hold("job", {"g1": Hold(990)}, 5.0, 0.0, epoch=1)
    assert [lease.hold for lease in book.leases().values()] == [Hold(1200), Hold(990)]
