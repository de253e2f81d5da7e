"""Reverie's engine: `load_world`, then `reset` and `step`. It draws nothing and reads no keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from world_model.types import Action, Frame, FrameInfo, WorldError, WorldInfo

if TYPE_CHECKING:
    from world_model.world import World, load_world

__all__ = ["Action", "Frame", "FrameInfo", "World", "WorldError", "WorldInfo", "load_world"]


def __getattr__(name: str) -> Any:
    # torch takes a second to import: only those who load a world pay for it.
    if name in ("World", "load_world"):
        from world_model import world

        return getattr(world, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
