"""What a server counts, for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.engine import Engine
from mm_rwkv7.pipeline import Answer

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """One server's; `text` is what a scraper reads."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "mm_rwkv7_http_requests", "Requests by route and status.", ("route", "status"), registry=self._registry
        )
        self._first = Histogram(
            "mm_rwkv7_first_token_seconds",
            "From a request's submission to its first token.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._pace = Histogram(
            "mm_rwkv7_answer_tokens_per_second",
            "Tokens that one answer got a second.",
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
            registry=self._registry,
        )
        self._registry.register(_EngineFigures(engine))

    def count(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def answered(self, answer: Answer) -> None:
        if answer.usage.completion_tokens:
            self._first.observe(answer.timings.first_token_s)
            self._pace.observe(answer.timings.decode_tokens_per_s)

    @property
    def text(self) -> bytes:
        return generate_latest(self._registry)


class _EngineFigures(Collector):
    """Read from the engine whenever somebody asks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine, counts = self._engine, self._engine.counts
        for name, told, value in (
            ("answers", "Requests that were answered.", counts.answered),
            ("cancelled", "Requests that were cancelled.", counts.cancelled),
            ("failed", "Requests that failed.", counts.failed),
            ("tokens_read", "Tokens of prompts that were read.", counts.tokens_read),
            ("tokens_recalled", "Tokens of prompts whose state was known.", counts.tokens_recalled),
            ("tokens_written", "Tokens of answers.", counts.tokens_written),
            ("busy_seconds", "Seconds in which the engine worked.", counts.busy_s),
            ("media_encoded", "Pictures and sounds that were encoded.", engine.media.encoded),
        ):
            yield CounterMetricFamily(f"mm_rwkv7_{name}", told, value)
        scheduler = engine.scheduler
        for name, told, value in (
            ("waiting", "Requests that wait for a slot.", len(scheduler.waiting)),
            ("reading", "Requests whose prompts are being read.", len(scheduler.reading)),
            ("writing", "Requests whose answers are being written.", len(scheduler.writing)),
            ("slots", "Requests that can be worked on at once.", scheduler.slots),
            ("feature_bytes", "Features of media that are remembered.", engine.media.held),
            ("state_bytes", "States that are remembered in memory.", sum(engine.states.held)),
        ):
            yield GaugeMetricFamily(f"mm_rwkv7_{name}", told, value)
