"""What a service counts, in a Prometheus registry of its own: `/metrics`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServiceMetrics:
    """Counters of one service; texts, images and tokens are in none of them.

    Attributes:
        waiting_rows: rows that wait for the model.
        requests_under_way: requests that were read and are not answered yet.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.waiting_rows = Gauge(
            "medrm_waiting_rows", "Answers that wait for the model.", registry=registry
        )
        self.requests_under_way = Gauge(
            "medrm_requests_under_way",
            "Requests that were read and are not answered yet.",
            registry=registry,
        )
        self._requests = Counter(
            "medrm_requests", "Answered requests.", ("path", "status"), registry=registry
        )
        self._request_seconds = Histogram(
            "medrm_request_seconds",
            "From a request's head to its answer.",
            ("path",),
            registry=registry,
            buckets=_SECONDS,
        )
        self._cases = Counter(
            "medrm_cases", "Cases, by how they ended.", ("state",), registry=registry
        )
        self._batch_cases, self._batch_rows, self._batch_seconds = (
            Histogram(f"medrm_batch_{name}", text, registry=registry, buckets=buckets)
            for name, text, buckets in (
                ("cases", "Cases of a batch.", _ROWS),
                ("rows", "Answers of a batch.", _ROWS),
                ("seconds", "Time that the model takes for a batch.", _SECONDS),
            )
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request; `path` is one of the service's, or "other"."""
        self._requests.labels(path, str(status)).inc()
        self._request_seconds.labels(path).observe(seconds)

    def case(self, is_scored: bool) -> None:
        """Counts a case."""
        self._cases.labels("ok" if is_scored else "error").inc()

    def batch(self, cases: int, rows: int, seconds: float) -> None:
        """Counts a batch."""
        self._batch_cases.observe(cases)
        self._batch_rows.observe(rows)
        self._batch_seconds.observe(seconds)

    def exposition(self) -> bytes:
        """Returns all of them in Prometheus' text format."""
        return generate_latest(self._registry)
