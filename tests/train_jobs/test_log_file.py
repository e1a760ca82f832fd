"""A run's log: appended to, cut short by a kill, gone on with after a restart."""

from pathlib import Path

import pytest
from run_log_values import iteration, schedule

from train_jobs.log_file import Iterated, LogFile, LogFileError, Profiled, Scheduled, Started, read_log

PROFILED = Profiled(profile=(), energy_j=7.0, blocking_power_w=130.0)


def iterated(number: int) -> Iterated:
    return Iterated(iteration=iteration(number, 1.0, 100.0, 1.0, 0.0))


def write(path: Path, first: int, last: int) -> None:
    log = LogFile(path)
    log.append(Started(from_iteration=first))
    for number in range(first, last):
        log.append(iterated(number))
    log.close()


def test_a_log_comes_back_as_it_was_written(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "run" / "log.jsonl")
    for event in (Started(from_iteration=0), PROFILED, iterated(0), Scheduled(schedule=schedule(1.0, 1)), iterated(1)):
        log.append(event)
    log.sync()
    log.close()
    read = read_log(tmp_path / "run" / "log.jsonl")
    assert (read.starts, read.profile_energy_j, read.blocking_power_w) == (1, 7.0, 130.0)
    assert [record.iteration for record in read.iterations] == [0, 1]
    assert read.iterations[0] == iterated(0).iteration
    assert read.schedules == (schedule(1.0, 1),)


def test_an_iteration_costs_the_same_however_many_went_before(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = LogFile(path)
    sizes = []
    for number in range(100, 900):
        before = path.stat().st_size
        log.append(iterated(number))
        sizes.append(path.stat().st_size - before)
    log.close()
    assert max(sizes) - min(sizes) < 40, "the digits of the loss"


def test_a_line_that_a_kill_cut_off_is_gone_and_the_next_start_goes_on_after_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, 0, 3)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event":"iterated","iter')
    assert [record.iteration for record in read_log(path).iterations] == [0, 1, 2]
    write(path, 3, 5)
    read = read_log(path)
    assert [record.iteration for record in read.iterations] == [0, 1, 2, 3, 4]
    assert read.starts == 2
    assert path.read_bytes().startswith(whole)


def test_what_came_after_the_checkpoint_of_a_restart_counts_no_more(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, 0, 7)
    log = LogFile(path)
    log.append(Scheduled(schedule=schedule(1.5, 6)))
    log.close()
    write(path, 5, 9)
    write(path, 5, 10)
    read = read_log(path)
    assert [record.iteration for record in read.iterations] == list(range(10))
    assert read.schedules == ()
    assert read.starts == 3


@pytest.mark.parametrize("line", [b"nonsense", b'{"event": "colour"}', b'{"event": "started"}'])
def test_a_line_that_is_no_event_is_told_by_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    write(path, 0, 1)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(LogFileError, match=r"log\.jsonl, line 3: "):
        read_log(path)


def test_a_log_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(LogFileError, match=r"log\.jsonl: No such file"):
        read_log(tmp_path / "log.jsonl")
