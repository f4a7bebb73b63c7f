"""What Prometheus is told; every label is a name of the server's own, never a request's text."""

from __future__ import annotations

import math

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest

from personaspace.serve.scheduler import Worker
from personaspace.serve.watch import Act, WatchedReply
from personaspace.space import PersonaSpace


class PersonaMetrics:
    """Projections, alerts, and tokens that a cap changed, of whatever server; where replies lie along directions, of those
    alone that it was started with, whose number is bounded (`Watch.names`)."""

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
        named = ["model", "direction"]
        self.along = Summary("personaspace_along", "Replies' projections on a direction", named, registry=r)
        shifts = [k / 2 for k in range(-8, 9)]
        self.shift = Histogram(
            "personaspace_shift",
            "How far replies lie above the default's mean along a direction, in its standard deviations",
            named,
            buckets=shifts,
            registry=r,
        )
        self.alerts_along = Counter(
            "personaspace_alerts_along", "Replies after which an alert of a direction stood", named, registry=r
        )

        self.acted = Counter(
            "personaspace_acted", "Requests on which an earlier alert acted", ["model", "act"], registry=r
        )
        self.webhook = Counter(
            "personaspace_webhook_messages", "Messages of alerts, by what became of them", ["outcome"], registry=r
        )

    def act(self, model: str, act: Act | None) -> None:
        """Counts a request that is held or ended since an alert was raised."""
        if act:
            self.acted.labels(model, act).inc()

    def reply(self, model: str, reply: WatchedReply | None) -> None:
        """Counts a reply; None is one that was not read. A sum that has once taken in NaN stays NaN."""
        self.capped.labels(model).inc(reply.persona["capped_tokens"] if reply else 0)
        if reply is None or not math.isfinite(reply.persona["projection"]):
            return
        self.projection.labels(model).observe(reply.persona["projection"])
        self.alerts.labels(model).inc(bool(reply.persona["alert"]))
        for name, place in reply.along.items():
            self.along.labels(model, name).observe(place.projection)
            if place.shift is not None:
                self.shift.labels(model, name).observe(place.shift)
        for name, stands in reply.persona.get("alerts", {}).items():
            self.alerts_along.labels(model, name).inc(stands)


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
