"""Records of a training run, as values for tests."""

from train_jobs.run_log import IterationRecord, ScheduleRecord, SpanRecord

SPAN = SpanRecord(stage=0, instruction="forward", microbatch=0, begin_s=0.0, end_s=0.2, freq_mhz=1200)


def schedule(degree: float, first: int) -> ScheduleRecord:
    return ScheduleRecord(
        degree=degree,
        first_iteration=first,
        deadline_s=degree,
        planned_time_s=degree,
        planned_energy_j=80 / degree,
        lower_bound_j=79 / degree,
        regime="",
        t_min_s=1.0,
        t_star_s=2.0,
        all_max_time_s=1.0,
        all_max_energy_j=100.0,
        blocking_power_w=20.0,
    )


def iteration(number: int, time_s: float, energy_j: float, degree: float, planned: float) -> IterationRecord:
    slow_s = degree if degree > 1 else 0.0
    return IterationRecord(
        iteration=number,
        loss=1 / (1 + number),
        time_s=time_s,
        own_time_s=time_s,
        energy_j=energy_j,
        degree=degree,
        straggler_time_s=slow_s,
        planned_degree=planned,
        spans=(SPAN,),
    )
