"""The scalar metrics of one run, as lines of `metrics.jsonl`.

This file is the truth about a run's metrics: MLflow is a copy of it. A point is named by its key
and step and is written once, so a resumed run that repeats an epoch adds nothing.
"""

import json
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_NOT_IN_A_KEY = re.compile(r"[^\w\-. :/]", flags=re.ASCII)


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    """NaN where it is not a finite number."""
    step: int
    timestamp: int
    """Milliseconds since 1970, when the point was logged: sent again later, it is the same point."""


class Points:
    """The points in `path`, in the order in which they were logged."""

    def __init__(self, path: Path):
        self.path = path
        self._points: dict[tuple[str, int], Point] = {}
        if path.exists():
            self._load()

    def __iter__(self):
        return iter(self._points.values())

    def add(self, metrics: Mapping[str, Any], step: int) -> list[Point]:
        """Appends the metrics that this step does not have yet, and returns them."""
        now = int(time.time() * 1000)
        new = {}
        for name, value in metrics.items():
            point = Point(metric_key(name), finite_or_nan(value), int(step), now)
            if (point.key, point.step) not in self._points:
                new[point.key, point.step] = point
        if new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(_line(point) for point in new.values()))
            self._points.update(new)
        return list(new.values())

    def with_value(self, key: str, value: float) -> Point | None:
        """The newest point of `key` that has this value."""
        value = finite_or_nan(value)
        matching = [
            p for p in self if p.key == key and (p.value == value or (math.isnan(p.value) and math.isnan(value)))
        ]
        return max(matching, key=lambda point: point.step, default=None)

    def last_step(self) -> int:
        """The highest step of any metric, 0 when there is none."""
        return max((point.step for point in self), default=0)

    def _load(self) -> None:
        content = self.path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            # A process killed while writing leaves half a line; a line appended to it would be lost too.
            os.truncate(self.path, complete)
        for line in content[:complete].decode("utf-8").splitlines():
            fields = json.loads(line)
            value = math.nan if fields["value"] is None else fields["value"]
            point = Point(fields["key"], value, fields["step"], fields["timestamp"])
            self._points.setdefault((point.key, point.step), point)


def metric_key(name: str) -> str:
    """The name with every character that MLflow refuses in a metric or parameter replaced by `_`."""
    return _NOT_IN_A_KEY.sub("_", name)[:250]


def finite_or_nan(value: Any) -> float:
    """A Python float of a number, NumPy scalar or one-element tensor.

    Infinity becomes NaN: MLflow stores it as 1.8e308, which flattens every chart it is in.
    """
    number = float(value)
    return number if math.isfinite(number) else math.nan


def _line(point: Point) -> str:
    # NaN is written as null: JSON has no NaN.
    fields = point._asdict() | {"value": None if math.isnan(point.value) else point.value}
    return json.dumps(fields) + "\n"
