"""Where worlds are looked for."""

from __future__ import annotations

import os
from pathlib import Path

from world_model.types import WorldError


def world_roots() -> list[Path]:
    """Folders that may hold worlds: $REVERIE_WORLDS, the assets of a checkout, those of an install."""
    roots = [Path(p) for p in os.environ.get("REVERIE_WORLDS", "").split(os.pathsep) if p]
    roots.append(Path(__file__).resolve().parent.parent / "assets" / "worlds")
    roots.append(Path(__file__).resolve().parent.parent / "reverie_worlds")
    return roots


def list_worlds() -> dict[str, Path]:
    """Every world that is installed: name -> folder. The first root that has a name wins."""
    found: dict[str, Path] = {}
    for root in world_roots():
        for description in sorted(root.glob("*/world.json")):
            found.setdefault(description.parent.name, description.parent)
    return found


def find_world(name: str | os.PathLike[str]) -> Path:
    """The folder of a world given by name or path. Raises WorldError that lists what there is."""
    path = Path(name)
    if path.is_dir():
        return path
    worlds = list_worlds()
    if str(name) not in worlds:
        there = ", ".join(worlds) or "none is installed"
        raise WorldError(
            f"unknown world {str(name)!r}; there are: {there}. A path to a world folder works too"
        )
    return worlds[str(name)]
