import numpy as np

from control_plane.serving.arrival_log import Answers, ArrivalLog


def test_it_remembers_the_last_hour_and_forgets_the_rest() -> None:
    log = ArrivalLog(keep_s=100.0)
    for second in range(1000):
        log.add(float(second), second, 2.0 * second)
    recent = log.recent(999.0)
    assert recent.at_s.tolist() == [float(second) for second in range(899, 1000)]
    assert recent.input_tokens[-1] == 999
    log.add(1000.0, 7, 1.0)
    assert len(log.recent(1000.0)) == 101


def test_what_was_handed_out_does_not_change_when_more_arrives() -> None:
    log = ArrivalLog()
    log.add(1.0, 10, 20.0)
    before = log.recent(2.0)
    log.add(2.0, 30, 40.0)
    assert (len(before), len(log.recent(2.0))) == (1, 2)


def test_answers_add_up() -> None:
    log = ArrivalLog()
    log.answers(Answers(10, 1))
    log.answers(Answers(5, 0))
    assert log.recent(0.0).answers == Answers(15, 1)


def test_parts_keep_what_was_learnt_of_answers() -> None:
    log = ArrivalLog()
    for second in range(10):
        log.add(float(second), second, 1.0)
    log.answers(Answers(3, 2))
    recent = log.recent(10.0)
    part = recent.between(2.0, 5.0).where(np.array([True, False, True])).faster(2.0)
    assert (part.at_s.tolist(), part.input_tokens.tolist()) == ([1.0, 2.0], [2.0, 4.0])
    assert part.answers == Answers(3, 2)
    assert part.later(10.0).at_s.tolist() == [11.0, 12.0]
