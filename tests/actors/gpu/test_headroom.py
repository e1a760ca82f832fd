from typing import Any

from actors.gpu.headroom import HeadroomWatch


def row(runs_mhz: int | None, *events: str, max_mhz: int | None = None, owner: str | None = None) -> dict[str, Any]:
    lease = None if owner is None else {"owner": owner}
    return {
        "uuid": "g",
        "clock_mhz": runs_mhz,
        "clocks_mhz": [345, 1980],
        "max_mhz": max_mhz,
        "events": list(events),
        "lease": lease,
    }


def test_a_gpu_that_heat_holds_down_for_three_looks_is_told_once_and_told_when_it_is_back() -> None:
    watch = HeadroomWatch()
    hot = row(1320, "thermal", owner="training:job")
    assert [watch.changes([hot]) for _ in range(2)] == [((), ())] * 2
    (lost,), back = watch.changes([hot])
    assert (lost.owner, lost.allowed_mhz, lost.runs_mhz, lost.degree, back) == ("training:job", 1980, 1320, 1.5, ())
    assert watch.changes([hot]) == ((), ())
    assert watch.changes([row(1980, owner="training:job")]) == ((), (lost,))
    assert watch.changes([row(1980)]) == ((), ())


def test_a_clock_at_its_lock_or_low_for_another_reason_loses_nothing() -> None:
    watch = HeadroomWatch()
    for seen in (row(990, "power_cap", max_mhz=990), row(345, "idle"), row(1200), row(None, "thermal"), row(1900)):
        for _ in range(5):
            assert watch.changes([seen]) == ((), ())


def test_a_deeper_loss_is_told_again() -> None:
    watch = HeadroomWatch()
    for _ in range(3):
        watch.changes([row(1500, "power_cap")])
    (deeper,), _ = watch.changes([row(1000, "power_cap")])
    assert deeper.runs_mhz == 1000
