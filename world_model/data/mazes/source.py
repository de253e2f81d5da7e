"""Generated mazes as a source: every seed is another map, and one start on it."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from world_model.data.mazes.layout import VERSION, Layout, is_held_out, make_layout
from world_model.data.mazes.plan import Variety
from world_model.data.mazes.udmf import textmap
from world_model.data.mazes.wad import pack_wad
from world_model.data.sources import Observation
from world_model.data.vizdoom_source import TICS, WALK, DoomSetup, VizdoomSource
from world_model.types import FPS, SourceError

NAMES = {Variety.FULL: "mazes", Variety.SMALL: "mazes_small"}
STILL = "+movebob 0"
"""The view does not bob: the height of the eye would hang on a clock that no pose tells."""


class MazeSource:
    """Walks through the maze of a seed. Nothing in it hurts, moves or ends. 256 x 160, 25 Hz.

    ViZDoom takes a map only when it starts, so each new seed starts it again, in a fraction of a second.
    Raises SourceError when ViZDoom is not installed, or when `sound` is asked for and OpenAL is missing.
    """

    fps = FPS
    phases = len(TICS)
    licence = "Freedoom textures, BSD-3-Clause; generated map"

    def __init__(self, variety: Variety = Variety.FULL, sound: bool = False) -> None:
        if importlib.util.find_spec("vizdoom") is None:
            raise SourceError('ViZDoom is not installed; run pip install "reverie[doom]"')
        self.name = NAMES[variety]
        self.actions = tuple(action for action, _ in WALK)
        self.layout: Layout | None = None
        """The map of the last `reset`."""
        self._variety, self._sound = variety, sound
        self._game: VizdoomSource | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What an episode's header tells of the map. Empty before the first `reset`."""
        if self.layout is None:
            return {}
        return {
            "description": self.layout.description,
            "themes": list(self.layout.themes),
            "held_out_textures": is_held_out(self.layout.seed),
            "maze_version": VERSION,
        }

    def reset(self, seed: int) -> Observation:
        """Builds the seed's map and stands at its start."""
        if self._game is None or self.layout is None or self.layout.seed != seed:
            self.close()
            self.layout = make_layout(seed, self._variety)
            self._game = self._start(self.layout)
        return self._game.reset(seed)

    def step(self, action: int) -> Observation:
        """Holds the action's buttons for one tick of 40 ms. Raises ValueError for an unknown action."""
        if self._game is None:
            raise SourceError(f"{self.name} has no map yet; call reset first")
        return self._game.step(action)

    def close(self) -> None:
        if self._game is not None:
            self._game.close()
            self._game = None

    def _start(self, layout: Layout) -> VizdoomSource:
        with tempfile.TemporaryDirectory(prefix="reverie-maze-") as folder:
            wad = Path(folder) / "maze.wad"
            wad.write_bytes(pack_wad(textmap(layout)))
            setup = DoomSetup(self.name, wad, game_args=STILL, sound=self._sound, licence=self.licence)
            return VizdoomSource(setup)


def mazes(sound: bool = False) -> MazeSource:
    """All that the generator knows: nine themes, heights, skies, liquids, lights."""
    return MazeSource(Variety.FULL, sound)


def mazes_small(sound: bool = False) -> MazeSource:
    """Five by five cells, three themes, flat floors, nothing that moves."""
    return MazeSource(Variety.SMALL, sound)
