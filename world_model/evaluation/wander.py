"""Action sequences for rollouts that nobody steers: keys held for random spans, and a last look around."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from world_model.evaluation.protocol import Ints

LOOK_AROUND = 75
"""Ticks of the turn that ends a wandering rollout: a full circle in Doom takes about 73."""

HOLDS = {"turn": (4, 20), "walk": (6, 40), "other": (2, 8)}
"""Shortest and longest hold, in ticks, by kind of action."""

KIND_SHARE = {"turn": 0.3, "walk": 0.6, "other": 0.1}


def kind(name: str) -> str:
    """Whether an action turns on the spot, walks, or does something else, by its name."""
    if "forward" in name or name in ("up", "gas"):
        return "walk"
    return "turn" if _turns(name) else "other"


def turning(names: Sequence[str]) -> list[int]:
    """Indices of the actions that turn the view, walking or not."""
    return [i for i, name in enumerate(names) if _turns(name)]


def _turns(name: str) -> bool:
    return ("left" in name or "right" in name) and not name.startswith("strafe")


def named(names: Sequence[str], wanted: str) -> int | None:
    """Index of an action by its exact name, or None."""
    return list(names).index(wanted) if wanted in names else None


def wander(names: Sequence[str], ticks: int, seed: int) -> Ints:
    """Actions (ticks,): keys held for random spans, mostly walking; deterministic by seed.

    The last 75 ticks turn on the spot, to the left or to the right, where there is such an action: a
    player who has walked into a corner sees one wall in the real game too, but not all around.
    """
    rng = np.random.default_rng(seed)
    groups = {k: [i for i, n in enumerate(names) if kind(n) == k] for k in KIND_SHARE}
    kinds = [k for k in KIND_SHARE if groups[k]]
    share = np.array([KIND_SHARE[k] for k in kinds])
    plan: list[int] = []
    while len(plan) < ticks:
        chosen = kinds[rng.choice(len(kinds), p=share / share.sum())]
        low, high = HOLDS[chosen]
        plan += [int(rng.choice(groups[chosen]))] * int(rng.integers(low, high + 1))
    actions = np.array(plan[:ticks], np.int64)
    if groups["turn"]:
        actions[-min(LOOK_AROUND, ticks) :] = rng.choice(groups["turn"])
    return actions


def mirrored(names: Sequence[str], actions: Ints) -> Ints:
    """The actions that undo `actions`, last first: forward and back, left and right swapped."""
    opposite = {"forward": "back", "back": "forward", "left": "right", "right": "left"}
    undo = [named(names, opposite.get(name, name)) for name in names]
    return np.array([i if undo[i] is None else undo[i] for i in actions[::-1]], np.int64)
