"""Metrics for Prometheus: requests by route and outcome, tokens, the queue, and the work of the engine."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bagel_mot.inference.request import Request
from bagel_mot.inference.result import Result
from bagel_mot.serving.service import Service

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class ServerMetrics:
    """The metrics of one app, in a registry of its own, so that several apps fit into one process."""

    def __init__(self, service: Service) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"bagel_{name}", about, labels, registry=registry)

        def histogram(name: str, about: str, label: str) -> Histogram:
            return Histogram(f"bagel_{name}", about, [label], buckets=_SECONDS, registry=registry)

        about_seconds = "From the first step of a result to its last, waiting excluded."
        self.requests = counter("http_requests", "Requests answered.", "method", "route", "status")
        self.seconds = histogram("http_request_seconds", "From a request's head to the end of its answer.", "route")
        self.results = counter("results", "Pictures and texts made.", "task")
        self.result_seconds = histogram("result_seconds", about_seconds, "task")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", "task", "kind")
        self.completion_tokens = counter("completion_tokens", "Tokens of results.", "task", "kind")
        self.dropped_previews = counter("dropped_previews", "Partial images not sent, since a newer one was there.")
        self.registry.register(_State(service))

    def count(self, request: Request, result: Result) -> None:
        """Counts one result."""
        task = request.task
        self.results.labels(task).inc()
        self.result_seconds.labels(task).observe(result.seconds)
        self.prompt_tokens.labels(task, "text").inc(request.text_tokens)
        self.prompt_tokens.labels(task, "image").inc(request.image_tokens)
        self.completion_tokens.labels(task, "text").inc(result.completion_tokens)
        self.completion_tokens.labels(task, "image").inc(request.noised_tokens)

    def text(self) -> bytes:
        """All metrics in the format that Prometheus reads."""
        return generate_latest(self.registry)


class _State(Collector):
    """Reads the state of service and engine whenever metrics are collected."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service, engine = self._service, self._service.bagel.engine
        gauges = {
            "bagel_requests_present": ("Requests at work or waiting.", service.present),
            "bagel_requests_active": ("Requests at work.", engine.active),
            "bagel_requests_limit": ("Most requests that are taken.", service.limits.queue),
            "bagel_accepting": ("Whether requests are taken.", int(service.open)),
            "bagel_cache_tokens_limit": ("Tokens of cache for requests at work.", service.capacity.cache_tokens),
        }
        stats = engine.stats
        counters = {
            "bagel_engine_steps": ("Steps of the engine.", stats.steps),
            "bagel_engine_forwards": ("Forward passes of the model.", stats.forwards),
            "bagel_engine_rows": ("Rows of forward passes.", stats.forward_ops),
            "bagel_engine_prefill_tokens": ("Tokens read into contexts.", stats.prefill_tokens),
            "bagel_engine_written_tokens": ("Tokens of texts written.", stats.written_tokens),
            "bagel_engine_noised_tokens": ("Tokens of denoising steps.", stats.noised_tokens),
            "bagel_engine_encoded_pictures": ("Pictures encoded.", stats.encoded),
            "bagel_engine_decoded_pictures": ("Pictures decoded.", stats.decoded),
        }
        prefixes = service.bagel.runtime.prefixes
        counters["bagel_prefix_hits"] = ("Requests that found their beginning read already.", prefixes.hits)
        counters["bagel_prefix_misses"] = ("Requests that did not.", prefixes.misses)
        for name, (about, value) in gauges.items():
            yield GaugeMetricFamily(name, about, value=value)
        for name, (about, value) in counters.items():
            yield CounterMetricFamily(name, about, value=value)
