"""How far a run is, from a log that grows."""

from pathlib import Path

from run_log_values import iteration

from train_jobs.log_file import Iterated, LogFile, Started
from train_jobs.log_follower import LogFollower, followed


def test_iterations_are_counted_once_and_a_restart_counts_from_its_checkpoint(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path / "log.jsonl")
    assert follower.iterations() == 0
    log = LogFile(tmp_path / "log.jsonl")
    log.append(Started(from_iteration=0))
    for number in range(3):
        log.append(Iterated(iteration=iteration(number, 1.0, 10.0, 1.0, 0.0)))
    assert [follower.iterations(), follower.iterations()] == [3, 3]
    log.append(Started(from_iteration=2))
    assert follower.iterations() == 2
    log.append(Iterated(iteration=iteration(2, 1.0, 10.0, 1.0, 0.0)))
    log.close()
    assert follower.iterations() == 3


def test_half_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    line = Iterated(iteration=iteration(0, 1.0, 10.0, 1.0, 0.0)).model_dump_json().encode()
    path.write_bytes(line[:20])
    follower = LogFollower(path)
    assert follower.iterations() == 0
    path.write_bytes(line + b"\n")
    assert follower.iterations() == 1


def test_whoever_follows_is_told_the_end(tmp_path: Path) -> None:
    told: list[int] = []
    with followed(tmp_path / "log.jsonl", told.append):
        log = LogFile(tmp_path / "log.jsonl")
        log.append(Iterated(iteration=iteration(0, 1.0, 10.0, 1.0, 0.0)))
        log.close()
    assert told[-1] == 1
