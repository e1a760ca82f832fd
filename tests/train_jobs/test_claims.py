"""Runs of jobs that start at once, on the real rules of leases."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from actors.training_messages import job_of_owner, owner_of
from control_plane.leases import LeaseBook
from train_jobs.claims import claim
from train_jobs.schedule_lease import LeaseRefusedError

GPUS = ("a", "b", "c", "d")


class Node:
    """A lease book as an agent keeps it. The first look of each of ``together`` runs is over only when all have
    looked: none knows of another."""

    def __init__(self, together: int = 1) -> None:
        self.book, self._guard = LeaseBook(GPUS), threading.Lock()
        self._met, self._looked = threading.Barrier(together), threading.local()
        self.refusals = 0
        self.now_s = 0.0

    def owners(self) -> Mapping[str, str]:
        with self._guard:
            self.book.expire(self.now_s)
            found = {uuid: lease.owner for uuid, lease in self.book.leases().items()}
        if not hasattr(self._looked, "once"):
            self._looked.once = True
            self._met.wait(30)
        return found

    def take(self, owner: str, uuids: Sequence[str]) -> None:
        with self._guard:
            refused = self.book.schedule(owner, uuids, 4.0, self.now_s).refused
            self.refusals += bool(refused)
        if refused:
            raise LeaseRefusedError(str(refused))

    def release(self, owner: str, uuids: Sequence[str]) -> None:
        with self._guard:
            self.book.release(owner, uuids)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def claimed_together(node: Node, owners: Sequence[str], needed: int) -> list[tuple[str, ...] | LeaseRefusedError]:
    def one(owner: str) -> tuple[str, ...] | LeaseRefusedError:
        try:
            return claim(owner, needed, GPUS, node, 0.0, node.sleep)
        except LeaseRefusedError as error:
            return error

    with ThreadPoolExecutor(len(owners)) as pool:
        return list(pool.map(one, owners))


def test_two_jobs_that_start_in_the_same_moment_get_different_gpus() -> None:
    node = Node(together=2)
    first, second = claimed_together(node, [owner_of("one", "1"), owner_of("two", "2")], 2)
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    assert sorted(first + second) == list(GPUS)
    assert node.refusals == 1, "both had seen the same GPUs free"


def test_of_three_that_need_two_of_four_gpus_one_is_told_who_has_them() -> None:
    node = Node(together=3)
    answers = claimed_together(node, [owner_of(name, name) for name in ("one", "two", "six")], 2)
    (refused,) = [answer for answer in answers if isinstance(answer, LeaseRefusedError)]
    holders = sorted({lease.owner for lease in node.book.leases().values()})
    assert len(holders) == 2
    assert f"needs 2 GPUs, 0 of 4 are free; the others are leased to {', '.join(holders)}" in str(refused)


def test_a_job_that_runs_is_not_started_again_under_its_name() -> None:
    node = Node()
    claim(owner_of("llm", "1"), 2, GPUS, node, 0.0)
    with pytest.raises(LeaseRefusedError, match="job llm runs already, as training:llm/1: give this one another name"):
        claim(owner_of("llm", "2"), 2, GPUS, node, 0.0)


def test_a_run_that_was_killed_is_waited_for_until_its_leases_lapse() -> None:
    node = Node()
    claim(owner_of("llm", "1"), 4, GPUS, node, 0.0)
    assert claim(owner_of("llm", "2"), 4, GPUS, node, 60.0, node.sleep) == GPUS
    assert 4.0 <= node.now_s < 5.0


def test_workers_that_start_again_get_their_runs_own_gpus_first() -> None:
    node = Node()
    owner = owner_of("llm", "1")
    node.take(owner, ["c", "d"])
    assert claim(owner, 2, GPUS, node, 0.0) == ("c", "d")
    node.release(owner, ["c"])
    assert claim(owner, 2, GPUS, node, 0.0) == ("d", "a")


def test_an_owner_tells_its_job() -> None:
    assert job_of_owner(owner_of("my-job.2", "ab12")) == "my-job.2"
    assert job_of_owner("pool_manager:short") is None


def test_a_gpu_that_looks_free_and_cannot_be_had_is_told_in_the_end() -> None:
    class Refusing(Node):
        def take(self, owner: str, uuids: Sequence[str]) -> None:
            raise LeaseRefusedError("GPU a is lost")

    with pytest.raises(LeaseRefusedError, match="GPU a is lost"):
        claim(owner_of("one", "run"), 2, GPUS, Refusing(), 0.0, lambda _: None)
