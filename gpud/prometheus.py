"""gpud's figures for Prometheus, on a loopback port; labels join DCGM's and Ray's by the GPU's UUID."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpud.guard import Guard
from gpud.readings import rows
from gpud.requests import Read

MAX_AGE_S = 1.0
MOST_REQUEST_BYTES = 8192

_GAUGES: tuple[tuple[str, str, str, float], ...] = (
    ("wattray_gpu_power_watts", "Power a GPU draws now.", "power_w", 1),
    ("wattray_gpu_clock_hertz", "SM clock of a GPU now.", "clock_mhz", 1e6),
    ("wattray_gpu_clock_target_hertz", "Highest SM clock that is locked; absent at full clock.", "max_mhz", 1e6),
    ("wattray_gpu_power_limit_watts", "Power limit in force.", "power_limit_w", 1),
    ("wattray_gpu_temperature_celsius", "Temperature of a GPU.", "temperature_c", 1),
    ("wattray_gpu_utilisation_ratio", "Share of time in which a kernel ran.", "utilisation_ratio", 1),
    ("wattray_gpu_reading_age_seconds", "Age of these readings.", "age_s", 1),
)


def exposition(gpus: Sequence[Mapping[str, Any]]) -> str:
    """Prometheus' text format. What is not known is absent, never zero."""
    lines: list[str] = []

    def family(name: str, kind: str, told: str, samples: Sequence[tuple[Mapping[str, Any], float | None]]) -> None:
        known = [(labels, value) for labels, value in samples if value is not None]
        lines.extend([f"# HELP {name} {told}", f"# TYPE {name} {kind}"])
        lines.extend(f"{name}{{{_labels(labels)}}} {value:.17g}" for labels, value in known)

    def scaled(row: Mapping[str, Any], column: str, by: float) -> float | None:
        return None if row.get(column) is None else row[column] * by

    def by_uuid(row: Mapping[str, Any]) -> dict[str, Any]:
        return {"uuid": row["uuid"]}

    for name, told, column, by in _GAUGES:
        family(name, "gauge", told, [(by_uuid(row), scaled(row, column, by)) for row in gpus])
    counted = [row for row in gpus if row["energy"]]
    energy = [(by_uuid(row), row["energy"]["total_j"]) for row in counted]
    family("wattray_gpu_energy_joules_total", "counter", "Energy a GPU has used since gpud started.", energy)
    sources = [({**by_uuid(row), "source": row["energy"]["source"]}, 1.0) for row in counted]
    family("wattray_gpu_energy_source_info", "gauge", "What counted the last of the energy.", sources)
    events = [({**by_uuid(row), "event": event}, 1.0) for row in gpus for event in row["events"] or ()]
    family("wattray_gpu_clock_event_info", "gauge", "Why a GPU runs below the clock it may take.", events)
    leased = [(row, row["lease"]) for row in gpus if row["lease"]]
    left = [({**by_uuid(row), "owner": lease["owner"]}, lease["expires_in_s"]) for row, lease in leased]
    family("wattray_gpu_lease_expires_seconds", "gauge", "Time until a lease lapses unless it is renewed.", left)
    ages = [({**by_uuid(row), "owner": lease["owner"]}, lease["age_s"]) for row, lease in leased]
    family("wattray_gpu_lease_age_seconds", "gauge", "Time since a lease was last renewed.", ages)
    states = [({**by_uuid(row), "state": row["state"], "name": row["name"] or ""}, 1.0) for row in gpus]
    family("wattray_gpu_state_info", "gauge", "ok, lost, silent, not ours, watched only.", states)
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, Any]) -> str:
    return ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items())


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


async def serve_metrics(guard: Guard, port: int, tell_port: Callable[[int], None]) -> asyncio.Server:
    """GET anything on 127.0.0.1. ``tell_port`` hears the port that was given where ``port`` is 0."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5.0):
                await reader.readuntil(b"\r\n\r\n")
            body = exposition(await rows(guard, Read(None, MAX_AGE_S))).encode()
            head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a scraper that does not speak HTTP, or is gone
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, limit=MOST_REQUEST_BYTES)
    tell_port(server.sockets[0].getsockname()[1])
    return server
