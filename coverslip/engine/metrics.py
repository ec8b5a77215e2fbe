"""A run's status as Prometheus reads it: text on a port, without the slides' names.

The text is version 0.0.4 of the exposition format
(https://prometheus.io/docs/instrumenting/exposition_formats/).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, NamedTuple

from coverslip.engine.status import RunStatus, RunWatcher
from coverslip.errors import CoverslipError, InvalidConfig

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PATIENCE_S = 10
"""For a visitor who has connected and does not speak."""
Samples = Mapping[str, float]
"""Value of the family's label -> number; "" for a family without a label."""


class Family(NamedTuple):
    """Samples of one name."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    label: str
    samples: Samples


def families(status: RunStatus) -> list[Family]:
    """What is told of a run. What cannot be known yet has no sample."""
    known: list[tuple[str, str, float | None]] = [
        ("tiles", "Tiles of the slides that are done.", status.tiles),
        ("nuclei", "Nuclei of the slides that are done.", status.nuclei),
        ("stale_locks", "Locks whose holder is gone.", len(status.stale_locks)),
        ("slides_per_hour", "Slides ended in an hour, lately.", status.per_hour),
        ("left_seconds", "Until all slides have ended, at that rate.", status.seconds_left),
        ("updated_timestamp_seconds", "When the journal was last written to.", status.updated),
    ]
    states = {
        "done": status.done,
        "no tissue": status.no_tissue,
        "failed": status.failed,
        "running": len(status.running),
        "interrupted": len(status.interrupted),
        "waiting": status.waiting,
    }
    return [
        Family("coverslip_slides", "gauge", "Slides by where they stand.", "state", states),
        *(
            Family(f"coverslip_{name}", "gauge", meaning, "", {} if value is None else {"": value})
            for name, meaning, value in known
        ),
        Family(
            "coverslip_results_total",
            "counter",
            "How often slides have ended, over all runs.",
            "status",
            status.results,
        ),
        Family(
            "coverslip_stage_seconds_total",
            "counter",
            "Seconds spent by stage, over all runs and processes.",
            "stage",
            status.seconds,
        ),
    ]


def exposition(status: RunStatus) -> str:
    """The text that a scrape is answered with."""
    lines = []
    for family in families(status):
        lines.append(f"# HELP {family.name} {family.meaning}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for value, number in family.samples.items():
            label = f'{{{family.label}="{_escaped(value)}"}}' if family.label else ""
            lines.append(f"{family.name}{label} {float(number)!r}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class MetricsServer(ThreadingHTTPServer):
    """Answers GET /metrics with the status of a folder, until `shutdown`.

    host, port   where it listens; port 0 takes a free one

    Raises InvalidConfig: taken, or no such address.
    """

    daemon_threads = True

    def __init__(self, watcher: RunWatcher, host: str, port: int) -> None:
        self._watcher, self._turn = watcher, threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host.strip("[]"), port), _Answer)
        except (OSError, OverflowError) as error:
            raise InvalidConfig(
                f"{host}:{port} cannot be listened on: {error}\n"
                "  choose another port with --serve, 0 for any that is free"
            ) from None

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host, port = self.server_address[:2]
        name = str(host)
        return f"http://{f'[{name}]' if ':' in name else name}:{port}/metrics"

    def text(self) -> bytes:
        """As things stand; one visitor at a time reads the journals."""
        with self._turn:
            return exposition(self._watcher.status()).encode()


class _Answer(BaseHTTPRequestHandler):
    server: MetricsServer
    timeout = PATIENCE_S
    server_version, sys_version = "coverslip", ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND, "only /metrics is here")
            return
        try:
            content = self.server.text()
        except CoverslipError:  # it names a path, which is nobody else's business
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "the journal cannot be read")
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """A scrape a minute is no news."""
