"""`wattray straggler`: what an operator types."""

import pytest

from wattray.cli_straggler import seconds_of


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), (" 2m ", 120.0)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["10", "m", "10 minutes", "-5s", "0s", "1e3s", ""])
def test_what_is_no_duration_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number of seconds, minutes or hours, such as 90s, 10m or 2h"):
        seconds_of(text)
