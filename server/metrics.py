"""Counters, gauges and histograms in Prometheus' text format (version 0.0.4).

Written from one event loop, without locks: a thread hands its observations to the loop. A child
(one combination of label values) is looked up once and then costs an addition.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of buckets for durations in seconds: half a millisecond to ten seconds."""

MAX_CHILDREN = 10_000
"""Of one metric. More means that a label holds something a caller chooses."""

_OTHER = "other"


class Counter:
    """Counts up."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount


class Gauge:
    """Goes up and down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount

    def dec(self, amount: float = 1.0) -> None:
        self.value -= amount

    def set(self, value: float) -> None:
        self.value = value


class Histogram:
    """Counts observations by upper bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Per bucket, not cumulative; the last one is everything beyond the bounds."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


ChildT = TypeVar("ChildT", Counter, Gauge, Histogram)


class Metric(Generic[ChildT]):
    """A named metric: one child for each combination of label values."""

    def __init__(
        self, name: str, text: str, kind: str, labels: tuple[str, ...], make: Callable[[], ChildT]
    ) -> None:
        self.name = name
        self.text = text
        self.kind = kind
        self.label_names = labels
        self.children: dict[tuple[str, ...], ChildT] = {}
        self._make: Callable[[], ChildT] = make

    def labels(self, *values: str) -> ChildT:
        """The child of these values, in the order the names were given.

        Beyond MAX_CHILDREN new combinations are counted together, under `other`.
        """
        child = self.children.get(values)
        if child is None:
            if len(values) != len(self.label_names):
                raise ValueError(f"{self.name} has labels {self.label_names}, not {values}")
            if len(self.children) >= MAX_CHILDREN:
                values = (_OTHER,) * len(values)
            child = self.children.setdefault(values, self._make())
        return child


class Registry:
    """All metrics of a process, in the order they were made."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric[Counter] | Metric[Gauge] | Metric[Histogram]] = {}
        self._readings: dict[str, tuple[str, Callable[[], float]]] = {}

    def counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Metric[Counter]:
        """A counter; by convention its name ends in `_total`."""
        metric = Metric(name, text, "counter", tuple(labels), Counter)
        return self._add(metric)

    def gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Metric[Gauge]:
        """A gauge that is set."""
        metric = Metric(name, text, "gauge", tuple(labels), Gauge)
        return self._add(metric)

    def reading(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when somebody asks for the metrics."""
        self._check(name)
        self._readings[name] = (text, read)

    def histogram(
        self, name: str, text: str, labels: Iterable[str] = (), bounds: Sequence[float] = SECONDS
    ) -> Metric[Histogram]:
        """A histogram with fixed upper bounds, ascending."""
        metric = Metric(name, text, "histogram", tuple(labels), lambda: Histogram(bounds))
        return self._add(metric)

    def _check(self, name: str) -> None:
        if name in self._metrics or name in self._readings:
            raise ValueError(f"metric {name} exists already")

    def _add(self, metric: Metric[ChildT]) -> Metric[ChildT]:
        self._check(metric.name)
        self._metrics[metric.name] = metric
        return metric

    def text(self) -> str:
        """Everything, as Prometheus scrapes it."""
        lines: list[str] = []
        for metric in self._metrics.values():
            lines.append(f"# HELP {metric.name} {_escaped(metric.text, quote=False)}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            for values, child in metric.children.items():
                labels = [
                    f'{name}="{_escaped(value)}"'
                    for name, value in zip(metric.label_names, values, strict=True)
                ]
                if isinstance(child, Histogram):
                    lines += _histogram(metric.name, labels, child)
                else:
                    lines.append(f"{metric.name}{_set(labels)} {_number(child.value)}")
        for name, (text, read) in self._readings.items():
            lines.append(f"# HELP {name} {_escaped(text, quote=False)}")
            lines.append(f"# TYPE {name} gauge")
            lines.append(f"{name} {_number(read())}")
        return "\n".join(lines) + "\n"


def _histogram(name: str, labels: list[str], child: Histogram) -> Iterable[str]:
    count = 0
    for bound, inside in zip((*child.bounds, math.inf), child.counts, strict=True):
        count += inside
        limit = f'le="{_number(bound)}"'
        yield f"{name}_bucket{_set([*labels, limit])} {count}"
    yield f"{name}_sum{_set(labels)} {_number(child.total)}"
    yield f"{name}_count{_set(labels)} {count}"


def _set(labels: list[str]) -> str:
    return f"{{{','.join(labels)}}}" if labels else ""


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(value)


def _escaped(text: str, *, quote: bool = True) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


class ServerMetrics:
    """What the server measures of itself; the pipeline's `CallMetrics`."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.calls = registry.counter(
            "lakemesh_calls_total",
            "Calls that ended, by method, gRPC code and transport.",
            ("method", "code", "transport"),
        )
        self.durations = registry.histogram(
            "lakemesh_call_duration_seconds",
            "How long calls took, by method and transport.",
            ("method", "transport"),
        )
        self.loop_lag = registry.histogram(
            "lakemesh_loop_lag_seconds", "How late the event loop ran what was due."
        ).labels()
        self.blocked_loops = registry.counter(
            "lakemesh_agent_blocked_loop_total",
            "How often an agent kept the event loop from running, by agent.",
            ("agent",),
        )
        self._known: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}

    def watch_active(self, read: Callable[[], float]) -> None:
        """Show the number of calls at work, read when asked for."""
        self.registry.reading("lakemesh_active_calls", "Calls at work now.", read)

    def ended(self, path: str, code: str, transport: str, seconds: float) -> None:
        """One call ended with the named code after so many seconds."""
        key = (path, code, transport)
        known = self._known.get(key)
        if known is None:
            method = path.removeprefix("/")
            known = (
                self.calls.labels(method, code, transport),
                self.durations.labels(method, transport),
            )
            self._known[key] = known
        known[0].value += 1
        known[1].observe(seconds)
