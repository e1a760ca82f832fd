"""One control plane on one Ray for all live tests."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests_support import QUICK, free_ports

from control_plane.settings import Settings, parse_settings
from control_plane.simulation.traces import synthetic_conversation
from wattray.client import Client


@dataclass(frozen=True)
class Live:
    """What is up, and how to talk to it."""

    client: Client
    settings: Settings
    ports: tuple[int, int, int]

    @property
    def url(self) -> str:
        return self.client.running.router_url


@pytest.fixture(scope="session")
def live(own_temp: Path) -> Iterator[Live]:
    from wattray import lifecycle
    from wattray.demo import first_load
    from wattray.ray_head import Ports
    from wattray.take_down import take_down

    http, ray_port, dashboard, metrics = free_ports(4)
    settings = parse_settings({**QUICK, "serve": {"port": http}})
    expected = first_load(synthetic_conversation(30.0, seed=1, scale=0.5))
    ports = Ports(ray_port, dashboard, metrics)
    running = lifecycle.up(settings, ports, expected, None, print, own_head=True)
    yield Live(Client(running), settings, (ray_port, dashboard, metrics))
    take_down(running, print)
