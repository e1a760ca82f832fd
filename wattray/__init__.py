"""The face: command line, Python client, reports. ``wattray.connect()`` gives typed calls to the control actors."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wattray.client import Client

__all__ = ["connect"]


def connect(address: str | None = None) -> "Client":
    """Connect to a control plane that is up; see ``wattray.client.Client``. Ray is imported only here."""
    from wattray.client import connect as connect_client

    return connect_client(address)
