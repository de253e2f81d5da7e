"""What happened in episodes that tell health, ammunition and kills: per minute of play."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.data.episodes import Episode, read_episode
from world_model.types import FPS

NEEDED = ("HEALTH", "SELECTED_WEAPON_AMMO", "KILLCOUNT")


def shot_ticks(episode: Episode) -> NDArray[np.bool_]:
    """(T,): whether a shot left the barrel in the tick, told by ammunition that is one less after it.

    A shot in the tick of a pickup is missed. Raises ValueError for an episode without game variables.
    """
    return shots_of(_column(episode, "SELECTED_WEAPON_AMMO"))


def shots_of(ammo: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(T,): whether ammunition (T + 1,) is one less after a tick."""
    return np.asarray(np.diff(ammo) == -1)


def fight_report(folders: list[Path]) -> dict[str, Any]:
    """Kills, health lost, deaths, pickups a minute, share of ticks with a shot; empty without variables."""
    ticks = kills = lost = deaths = pickups = shots = 0
    for folder in folders:
        episode = read_episode(folder)
        if not set(NEEDED) <= set(episode.header.get("variables", ())):
            continue
        health, ammo = np.diff(_column(episode, "HEALTH")), np.diff(_column(episode, "SELECTED_WEAPON_AMMO"))
        ticks += len(episode)
        kills += int(np.diff(_column(episode, "KILLCOUNT")).clip(0).sum())
        lost += int(-health.clip(None, 0).sum())
        pickups += int((health > 0).sum() + (ammo > 0).sum())
        deaths += bool(episode.header["terminated"])
        shots += int(shot_ticks(episode).sum())
    if not ticks:
        return {}
    minutes = ticks / FPS / 60
    counts = {"kills": kills, "health_lost": lost, "deaths": deaths, "pickups": pickups}
    rates = {f"{name}_a_minute": round(count / minutes, 2) for name, count in counts.items()}
    return rates | {"shot_share": round(shots / ticks, 4)}


def _column(episode: Episode, name: str) -> NDArray[np.int32]:
    names = episode.header.get("variables", [])
    if episode.variables is None or name not in names:
        raise ValueError(f"this episode tells no {name}; collect it from a source that does, such as arena")
    return np.asarray(episode.variables[:, names.index(name)])
