"""What Prometheus is told; every label is a name of the server's own, never a request's text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from personaspace.serve.scheduler import Worker
from personaspace.space import PersonaSpace


class PersonaMetrics:
    """Projections, alerts, and tokens that a cap changed, of whatever server."""

    def __init__(self, space: PersonaSpace, registry: CollectorRegistry = REGISTRY) -> None:
        mean, std = space.default_moments() if space.knows_default else (0.0, 1.0)
        buckets = [mean + std * k / 2 for k in range(-8, 9)]
        r = registry
        self.projection = Histogram(
            "personaspace_projection", "Replies' projections on the axis", ["model"], buckets=buckets, registry=r
        )
        self.capped = Counter(
            "personaspace_capped_tokens", "Generated tokens that a cap changed", ["model"], registry=r
        )
        self.alerts = Counter("personaspace_alerts", "Replies after which an alert stood", ["model"], registry=r)

    def reply(self, model: str, persona: Mapping[str, Any] | None) -> None:
        """Counts a reply, given its `persona`; None of one that was not read. A sum that has once taken in NaN stays NaN."""
        self.capped.labels(model).inc(persona["capped_tokens"] if persona else 0)
        if persona and math.isfinite(persona["projection"]):
            self.projection.labels(model).observe(persona["projection"])
            self.alerts.labels(model).inc(bool(persona["alert"]))


class Metrics(PersonaMetrics):
    """Those, and requests, tokens, queue and time to first token of our own server."""

    def __init__(self, space: PersonaSpace, worker: Worker) -> None:
        self.registry = r = CollectorRegistry()
        super().__init__(space, r)
        self.requests = Counter(
            "personaspace_requests", "Requests answered", ["model", "endpoint", "status"], registry=r
        )
        self.tokens = Counter("personaspace_tokens", "Tokens", ["model", "kind"], registry=r)
        self.first = Histogram(
            "personaspace_time_to_first_token_seconds",
            "Seconds until a reply's first token",
            ["model"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32),
            registry=r,
        )
        Gauge("personaspace_queue", "Replies that wait for a place", registry=r).set_function(
            lambda: len(worker.waiting)
        )
        Gauge("personaspace_running", "Replies that are being decoded", registry=r).set_function(
            lambda: len(worker.running)
        )

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)
