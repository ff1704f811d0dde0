"""Health, and metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from xgem._version import __version__
from xgem.serve.api import AnyServer, User
from xgem.serve.state import Server
from xgem.utils.files import one_line

router = APIRouter()


@router.get("/health")
def health(server: AnyServer, response: Response) -> dict[str, Any]:
    """Whether requests are accepted and generated: 200, or 503 with what is missing."""
    try:
        workers = len(server.queue.workers())
    except SQLAlchemyError as error:
        response.status_code = 503
        return {"status": "no database", "error": one_line(error), "version": __version__}
    if not workers:
        response.status_code = 503
    return {"status": "ok" if workers else "no worker", "workers": workers, "version": __version__}


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request, user: User) -> Response:
    """For Prometheus."""
    del user
    registry = CollectorRegistry()
    registry.register(_Collector(request.app.state.server))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Collector(Collector):
    """Reads everything from the database: all servers on it give the same numbers, and a restart loses none."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The metrics of this moment."""
        queue = self.server.queue
        requests = GaugeMetricFamily("xgem_requests", "Requests by state.", labels=["state"])
        for state, number in queue.counts().items():
            requests.add_metric([state], number)
        yield requests
        workers = GaugeMetricFamily("xgem_workers", "Workers that live, by device.", labels=["device"])
        devices = [worker.device for worker in queue.workers()]
        for device in sorted(set(devices)):
            workers.add_metric([device], devices.count(device))
        yield workers
        times = queue.times()
        for name, text, value in (
            (
                "xgem_waiting_seconds",
                "Mean time from acceptance to start, of the last 100 finished requests.",
                times[0],
            ),
            ("xgem_generating_seconds", "Mean time from start to end, of the last 100 finished requests.", times[1]),
        ):
            yield GaugeMetricFamily(name, text, value=value)
