"""Prometheus metrics, in a registry of their own; what the read model and the log know is asked at the scrape."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from bitinglip.gateway.fleetmetrics import CountedElsewhere, FleetMetrics

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
FAST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """The gateway's instruments."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Histogram(
            "bitinglip_http_request_seconds",
            "Time to answer a request; of an event stream, its whole life.",
            ("method", "route", "status"),
            buckets=FAST_BUCKETS,
            registry=registry,
        )
        self.append = Histogram(
            "bitinglip_append_seconds",
            "Time until the log has a submitted task.",
            buckets=FAST_BUCKETS,
            registry=registry,
        )
        self.submitted = Counter(
            "bitinglip_tasks_submitted",
            "Tasks that this gateway put into the log.",
            ("kind", "lane"),
            registry=registry,
        )
        self.sse_clients = Gauge("bitinglip_sse_clients", "Open event streams.", registry=registry)
        self.tasks = Gauge("bitinglip_tasks", "Tasks by state.", ("state",), registry=registry)
        self.queue_depth = Gauge(
            "bitinglip_queue_depth", "Tasks that wait or run, by queue.", ("lane", "model"), registry=registry
        )
        self.key_depth = Gauge(
            "bitinglip_key_depth", "Tasks that wait or run, by API key.", ("key_id",), registry=registry
        )
        self.lag = Gauge(
            "bitinglip_projection_lag_events",
            "Events that the read model has not applied yet.",
            ("stream",),
            registry=registry,
        )
        self.stream_bytes = Gauge(
            "bitinglip_stream_bytes",
            "Bytes that a stream of the log takes on a server.",
            ("stream",),
            registry=registry,
        )
        self.store_ratio = Gauge(
            "bitinglip_store_limit_ratio", "Part of the log's room that is taken; at 1 it is full.", registry=registry
        )
        self.archive_behind_events = Gauge(
            "bitinglip_archive_behind_events",
            "Sequences of a stream after the last archived one.",
            ("stream",),
            registry=registry,
        )
        self.archive_behind_s = Gauge(
            "bitinglip_archive_behind_seconds",
            "Age of a stream's oldest event that is not archived; a day is usual.",
            ("stream",),
            registry=registry,
        )
        self.connected = Gauge("bitinglip_log_connected", "Whether the event log is connected.", registry=registry)
        self.corrupt = CountedElsewhere(
            "bitinglip_corrupt_events", "Messages of a stream that are no events of ours.", ("stream",)
        )
        registry.register(self.corrupt)
        self.fleet = FleetMetrics(registry)
        self._children: dict[tuple[str, str, int], Histogram] = {}
        self._submits: dict[tuple[str, str], Counter] = {}

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request under its route's template."""
        key = (method, route, status)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._requests.labels(method, route, str(status))
        child.observe(seconds)

    def observe_submit(self, kind: str, lane: str, seconds: float) -> None:
        """Count a task that went into the log."""
        self.append.observe(seconds)
        child = self._submits.get((kind, lane))
        if child is None:
            child = self._submits[kind, lane] = self.submitted.labels(kind, lane)
        child.inc()

    def render(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)
