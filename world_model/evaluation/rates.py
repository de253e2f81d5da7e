"""How a fight goes, by the minute: kills, health lost and shots of a blind player, in dream and game.

Both are read off pictures by the same probes; what the game itself tells stands beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.data.sources import Source
from world_model.evaluation import blind
from world_model.evaluation.digits import Reading
from world_model.evaluation.kills import MINUTE, covered
from world_model.evaluation.probes import Probes
from world_model.evaluation.protocol import Clip, Dreamer
from world_model.evaluation.scenery import AMMO, HEALTH, KILLS, Scenery, Stretch
from world_model.evaluation.stats import ratio_interval

HOLD = 3
"""Ticks for which a number has to stand to count: a flicker of the picture is no shot and no wound."""
LEGIBLE = 0.5
"""Share of ticks at which a number must be legible for its changes to be counted."""
RATES = ("kills", "health_lost", "shots")

Amounts = dict[str, tuple[float, float]]
"""How much there was of each of `RATES` in a stretch, and in how many ticks it was looked for."""


def blind_rates(
    dreamer: Dreamer,
    clips: Sequence[Clip],
    names: Sequence[str],
    probes: Probes,
    scenery: Scenery,
    game: Source,
    floor: float,
    batch: int = 16,
) -> dict[str, Any]:
    """Rates a minute of a blind player who goes on where the clips begin; `names` are those of the actions.

    `floor`: kills a minute that the probe sees where there are none; a figure that does not exceed it is
    None. A stretch ends when the player dies: in the dream, when the health that is shown comes to 0.
    Raises DataError or SourceError where the game cannot be played so.
    """
    acts = blind.scripts(names, clips)
    played = blind.played(game, clips, acts, scenery)
    columns = list(getattr(game, "variables", ()))
    dreamed = blind.dreamed(dreamer, clips, acts, scenery, batch)
    kinds = {
        "dream": [read_amounts(s, probes) for s in dreamed],
        "real": [read_amounts(s, probes) for s, _ in played],
        "told": [told_amounts(numbers, columns) for _, numbers in played],
    }
    of = [c.episode for c in clips]
    result: dict[str, Any] = {who: _means(amounts, of) for who, amounts in kinds.items()}
    for who in ("dream", "real"):
        kills = result[who]["kills"]
        if kills is not None and kills["mean"] <= floor:
            result[who]["kills"] = None
        falls = [falling(held(s.read(probes.reader, AMMO))) for s in _stretches(who, dreamed, played)]
        every = np.concatenate(falls)
        # A shot takes one round: what else a falling number shows is a miscount.
        result[who]["counted_down_by_one"] = round(float((every == -1).mean()), 4) if len(every) else None
    result["clips"] = [[c.episode, c.start] for c in clips]
    result["ticks"] = {who: int(sum(a["shots"][1] for a in amounts)) for who, amounts in kinds.items()}
    result["per_clip"] = {
        who: {
            what: [None if t == 0 else round(n / t * MINUTE, 3) for n, t in _column(a, what)]
            for what in RATES
        }
        for who, a in kinds.items()
    }
    return result


def read_amounts(stretch: Stretch, probes: Probes) -> Amounts:
    """What the probes see in a stretch, up to where its player dies."""
    health, ammo = stretch.read(probes.reader, HEALTH), stretch.read(probes.reader, AMMO)
    last = death(health)
    # The 0 has to stand as other numbers do, and is part of the stretch.
    length = len(health.value) if last is None else last + HOLD
    health, ammo = (Reading(r.value[:length], r.legible[:length]) for r in (health, ammo))
    return {
        "kills": (probes.kills.count(stretch.views[:length]), covered(length)),
        "health_lost": _fallen(health, held(health), sum),
        "shots": _fallen(ammo, held(ammo), len),
    }


def _fallen(reading: Reading, numbers: NDArray[np.int64], count: Callable[[Any], Any]) -> tuple[float, float]:
    """How much numbers fell, and in how many ticks; in none where most of them cannot be read."""
    if reading.legible.mean() < LEGIBLE:
        return 0.0, 0.0
    return abs(float(count(falling(numbers)))), len(reading.value) - 1


def told_amounts(numbers: NDArray[np.int32], columns: Sequence[str]) -> Amounts:
    """The same from the game's variables (T + 1, V)."""
    health, ammo, kills = (np.diff(numbers[:, columns.index(n)].clip(0)) for n in (HEALTH, AMMO, KILLS))
    ticks = len(numbers) - 1
    return {
        "kills": (kills.clip(0).sum(), ticks),
        "health_lost": (-health.clip(None, 0).sum(), ticks),
        "shots": ((ammo < 0).sum(), ticks),
    }


def held(reading: Reading, hold: int = HOLD) -> NDArray[np.int64]:
    """Numbers, in order, that stood for at least `hold` legible ticks on end."""
    value = reading.value[reading.legible]
    if not len(value):
        return value
    first = np.flatnonzero(np.concatenate([[True], np.diff(value) != 0]))
    lengths = np.diff(np.concatenate([first, [len(value)]]))
    return value[first[lengths >= hold]]


def falling(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The steps by which numbers fall, each below 0."""
    steps = np.diff(numbers)
    return np.asarray(steps[steps < 0])


def death(health: Reading) -> int | None:
    """The first tick of a legible 0 that stands for HOLD ticks, or None."""
    zero = health.legible & (health.value == 0)
    runs = np.lib.stride_tricks.sliding_window_view(zero, HOLD).all(1) if len(zero) >= HOLD else zero[:0]
    return int(runs.argmax()) if runs.any() else None


def _stretches(
    who: str, dreamed: list[Stretch], played: list[tuple[Stretch, NDArray[np.int32]]]
) -> list[Stretch]:
    return dreamed if who == "dream" else [s for s, _ in played]


def _column(amounts: list[Amounts], what: str) -> list[tuple[float, float]]:
    return [(float(a[what][0]), float(a[what][1])) for a in amounts]


def _means(amounts: list[Amounts], names: list[str]) -> dict[str, Any]:
    """A minute, with intervals; None where there was no tick to look at."""
    found: dict[str, Any] = {}
    for what in RATES:
        count, ticks = np.array(_column(amounts, what)).T
        found[what] = ratio_interval(count, ticks / MINUTE, names) if ticks.sum() else None
    return found
