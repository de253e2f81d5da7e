"""How much is measured, and which protocols there are. All sizes of an evaluation stand here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

PROTOCOLS = ("one-tick", "rollout", "control", "collapse", "memory", "real-or-dream", "probe", "events")
"""In the order in which they are measured."""


@dataclass(frozen=True)
class Plan:
    """Counts are windows, rollouts, starts or walks; the rest are ticks. 0 leaves a part out."""

    windows: int = 64
    ticks: int = 256
    all_windows: int = 32
    long_windows: int = 32
    long_ticks: int = 1000
    collapse_rollouts: int = 50
    collapse_ticks: int = 1000
    starts: int = 64
    closures: int = 32
    turns: int = 16
    walks: int = 8
    walk_ticks: int = 400
    realness_clips: int = 48
    probe_windows: int = 32
    event_windows: int = 16
    event_ticks: int = 256
    branches: int = 8
    ablation_windows: int = 24
    ablation_ticks: int = 256
    ablation_walks: int = 8
    ablation_turns: int = 8
    batch: int = 16
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


FULL = Plan()
FIGURES = Plan(
    windows=34,
    ticks=128,
    all_windows=0,
    long_windows=17,
    long_ticks=500,
    starts=48,
    closures=0,
    turns=8,
    walks=0,
    realness_clips=0,
    probe_windows=0,
    event_windows=0,
    branches=0,
)
"""What decides whether a checkpoint replaces another, and no more."""
QUICK = Plan(
    windows=12,
    ticks=128,
    all_windows=0,
    long_windows=6,
    long_ticks=500,
    collapse_rollouts=6,
    collapse_ticks=200,
    starts=12,
    closures=8,
    turns=4,
    walks=0,
    realness_clips=20,
    probe_windows=0,
    event_windows=0,
    branches=0,
    ablation_windows=4,
    ablation_ticks=128,
    ablation_walks=4,
    ablation_turns=4,
)

NEEDED: dict[str, tuple[str, ...]] = {
    "memory": ("closures", "turns", "walks"),
    "real-or-dream": ("realness_clips",),
    "probe": ("probe_windows",),
    "events": ("event_windows", "branches"),
}
"""What a protocol counts, where a plan may leave it out."""


def check_protocols(names: Sequence[str]) -> tuple[str, ...]:
    """The protocols of these names in their order, all for none. Raises ValueError for an unknown one."""
    if "speed" in names:
        raise ValueError("speed is measured by: python main.py bench --world NAME")
    for name in names:
        if name not in PROTOCOLS:
            raise ValueError(f"unknown protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    return tuple(p for p in PROTOCOLS if p in names) if names else PROTOCOLS


def with_asked(plan: Plan, names: Sequence[str]) -> Plan:
    """A protocol that is asked for by name is measured by a small plan too, at a quarter of the full size."""
    fields = [f for name in names for f in NEEDED.get(name, ()) if not getattr(plan, f)]
    return replace(plan, **{f: max(2, getattr(FULL, f) // 4) for f in fields})
