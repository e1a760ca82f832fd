"""What `up` waits for and `down` ends follows the policy's pools, not those of the settings."""

import pytest

from actors.runtime import Installation
from control_plane.settings import Settings
from wattray.take_down import apps_of


@pytest.mark.parametrize(
    ("policy", "pools"),
    [("wattray", {"short-medium", "long"}), ("sized-pool", {"sized-pool"}), ("single-pool", {"single-pool"})],
)
def test_managers_and_applications_are_those_of_the_policy(policy: str, pools: set[str]) -> None:
    settings = Settings(policy=policy)
    assert set(Installation(settings, "", "").pool_names) == pools
    apps = apps_of(settings)
    assert {f"{pool}-tp8" for pool in pools} <= apps
    assert not any(app.startswith("long") for app in apps) or "long" in pools
