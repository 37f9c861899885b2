"""What Prometheus may ask, in a registry of each station's own."""

import contextlib
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from blemish.server.judging import JudgeQueue

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counts by decision, latency, what waits, refusals, and whether promises hold."""

    def __init__(self, judges: Mapping[str, JudgeQueue]) -> None:
        self._registry = own = CollectorRegistry()
        self._judged = Counter("blemish_inspections", "Images judged", ["model", "decision"], registry=own)
        labels = ["model"]
        told = "blemish_latency_seconds", "From arrival to judged", labels
        self._latency = Histogram(*told, buckets=SECONDS, registry=own)
        self.refused = Counter("blemish_refused", "Requests refused because the queue was full", labels, registry=own)
        self.holds = Gauge("blemish_promise_holds", "1 while no test speaks against it", labels, registry=own)
        self.brings = Gauge("blemish_source_brings", "1 while it brings images", ["model", "source"], registry=own)
        self.undelivered = Gauge("blemish_undelivered", "Messages that wait for a sink", ["sink"], registry=own)
        self._waiting = Gauge("blemish_waiting", "Photographs taken and not yet answered", labels, registry=own)
        self._judges = judges

    def judged(self, answer: Mapping[str, Any]) -> None:
        self._judged.labels(answer["model"], answer["decision"] or "undecided").inc()
        self._latency.labels(answer["model"]).observe(answer["milliseconds"] / 1000)

    def forget(self, model: str) -> None:
        """Of a model that was unloaded nothing holds, and nothing waits."""
        for gauge in (self.holds, self._waiting):
            with contextlib.suppress(KeyError):
                gauge.remove(model)

    def text(self) -> bytes:
        for name, judge in [*self._judges.items()]:
            self._waiting.labels(name).set(judge.depth)
        return generate_latest(self._registry)
