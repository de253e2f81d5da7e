"""The spans of a session as a Chrome trace, for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from world_model.files import write_atomic
from world_model.types import DataError

MAX_SPANS = 200_000
"""Spans that are kept, the last ones: about a quarter of an hour."""


def trace_events(spans: Iterable[tuple[str, float, float]]) -> list[dict[str, Any]]:
    """(section, start, end) in seconds -> complete events in microseconds from the first start."""
    # What encloses comes first, also where both begin at once: viewers nest them in this order.
    spans = sorted(spans, key=lambda span: (span[1], -span[2]))
    zero = spans[0][1] if spans else 0.0
    return [
        {
            "name": name,
            "ph": "X",
            "ts": round(1e6 * (start - zero), 1),
            "dur": round(1e6 * (end - start), 1),
            "pid": 1,
            "tid": 1,
        }
        for name, start, end in spans
    ]


def check_trace(path: Path) -> None:
    """Raises DataError where no trace could be written to `path`. What is there stays as it is."""
    if path.is_dir():
        raise DataError(f"{path}: the trace cannot be written; it is a folder, name a file")
    probe = path.with_name(f".{path.name}.probe")
    write_atomic(probe, [])
    probe.unlink(missing_ok=True)


def write_trace(path: Path, spans: Iterable[tuple[str, float, float]]) -> None:
    """Writes atomically. Raises DataError where the disk refuses."""
    document = {"traceEvents": trace_events(spans), "displayTimeUnit": "ms"}
    write_atomic(path, [json.dumps(document).encode()])
