"""What Ray says when it does not start becomes one line."""

import pytest

from wattray.ray_head import _why


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (
            "Traceback (most recent call last):\n  File x\n    go()\nValueError: port 1 is in use\n",
            "ValueError: port 1 is in use",
        ),
        ("starting\nValueError: ports clash:\n  {'a': 1}\n\n", "ValueError: ports clash: {'a': 1}"),
        ("", "it said nothing"),
    ],
)
def test_the_last_error_of_the_log_is_told_on_one_line(log: str, told: str) -> None:
    assert _why(log) == told
