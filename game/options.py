"""How to play: what the command line says, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from game.bindings import KEYS_NAME
from game.slots import home


@dataclass(frozen=True)
class Options:
    """How to play."""

    world: str | None = None
    """None: the one that is installed, or a choice where there are several."""
    seed: int = 0
    scene: str | None = None
    source: str | None = None
    """Plays this real game instead of a dream."""
    twin: bool = False
    """The real game of the same name beside the dream."""
    player: str = "human"
    """human, random, wander, the path of a script, or the folder of a recording."""
    fast: bool = False
    """Does not pace: as fast as the machine goes."""
    fullscreen: bool = False
    log: bool = True
    ticks: int | None = None
    """Ends by itself after so many ticks of the clock."""
    film: bool = False
    """Films from the start."""
    trace: Path | None = None
    keys: Path | None = None
    home: Path | None = None
    out: Path | None = None
    """With `source`: the data set that the session is added to; None: `root`/episodes/<source>."""
    audio: bool = True
    """Whether a sound device is used, where the world has sound."""
    record: Path | None = None
    """Films from the start, and keeps film and log in this folder."""

    @property
    def root(self) -> Path:
        return self.home or home()

    @property
    def keys_file(self) -> Path:
        return self.keys or self.root / KEYS_NAME

    @property
    def films(self) -> Path:
        """The folder of films."""
        return self.record or self.root / "films"

    @property
    def recordings(self) -> Path:
        """The folder of the logs that replay a session."""
        return self.record or self.root / "recordings"
