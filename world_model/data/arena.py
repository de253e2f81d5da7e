"""The world `arena`: a hall in which monsters come, are shot and come again, with sound.

Weapon and status bar are drawn; view and weapon do not bob, so that a pose tells the view.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from world_model.data.arena_map import HEIGHT, arena_wad
from world_model.data.vizdoom_source import DoomSetup, VizdoomSource
from world_model.types import Action

FIGHT: Final = (
    (Action("idle"), ()),
    (Action("forward", ("up",)), ("MOVE_FORWARD",)),
    (Action("back", ("down",)), ("MOVE_BACKWARD",)),
    (Action("left", ("left",)), ("TURN_LEFT",)),
    (Action("right", ("right",)), ("TURN_RIGHT",)),
    (Action("forward_left", ("up", "left")), ("MOVE_FORWARD", "TURN_LEFT")),
    (Action("forward_right", ("up", "right")), ("MOVE_FORWARD", "TURN_RIGHT")),
    (Action("strafe_left", ("q",)), ("MOVE_LEFT",)),
    (Action("strafe_right", ("e",)), ("MOVE_RIGHT",)),
    (Action("shoot", ("space",)), ("ATTACK",)),
    (Action("shoot_left", ("space", "left")), ("ATTACK", "TURN_LEFT")),
    (Action("shoot_right", ("space", "right")), ("ATTACK", "TURN_RIGHT")),
)

VARIABLES: Final = ("HEALTH", "SELECTED_WEAPON_AMMO", "KILLCOUNT", "ITEMCOUNT", "DEAD")
"""What each tick tells in numbers, by ViZDoom's names; ammunition is that of the pistol in hand."""

MONSTERS: Final = frozenset({"ArenaImp", "ArenaDemon"})
"""The living, by their names in labels; the fallen have "Dead" before theirs."""

ITEMS: Final = frozenset({"ArenaMedikit", "ArenaClip"})

STATUS_BAR: Final = (0, 134, 256, 26)
"""x, y, width, height in pixels of the picture: ammunition, health, face."""

FIELDS: Final = {"SELECTED_WEAPON_AMMO": (24, 136, 27, 14), "HEALTH": (55, 136, 27, 14)}
"""Boxes of the status bar that show a number of up to three digits, flush right, by the variable shown."""

BAR_LATE: Final = 1
"""Ticks by which the status bar of a picture comes after the variables of its tick."""

FLASH: Final = (116, 66, 24, 24)
"""x, y, width, height of where the muzzle flashes."""

ARGS = "+alwaysapplydmflags 1 +sv_itemrespawn 1 +movebob 0"


def arena(sound: bool = True) -> VizdoomSource:
    """Opens the game. Raises SourceError when ViZDoom, or OpenAL for the sound, is missing."""
    with tempfile.TemporaryDirectory(prefix="reverie-arena-") as folder:
        wad = Path(folder) / "arena.wad"
        wad.write_bytes(arena_wad())
        return VizdoomSource(
            DoomSetup(
                "arena",
                wad,
                FIGHT,
                game_args=ARGS,
                sound=sound,
                hud=True,
                weapon=True,
                labels=True,
                unseen=("ArenaPlayer", "ArenaSpawner"),
                variables=VARIABLES,
                fields=FIELDS,
                room_units=HEIGHT,
                licence="Freedoom textures, sprites and sounds, BSD-3-Clause",
            )
        )
