"""The last half minute, ready to be kept: a recording that begins where it began, and replays.

Nothing is written until somebody asks. Held in memory are the actions since the start and, every five
seconds and after each jump in time, the state there: a reference, which the history mostly holds anyway.
"""

from __future__ import annotations

import shutil
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from game.history import ACTION
from game.recorder import SessionLog, new_recording, picture_record
from game.slots import run_lengths
from world_model.files import write_atomic
from world_model.types import FPS, DataError, Frame

SECONDS = 30
GRAIN = 5 * FPS
"""Ticks between the moments from which a clip can begin."""

STRETCHES = 24
"""Most such moments. Whoever jumps in time more often than that has a shorter clip."""


@dataclass
class Stretch:
    """Ticks in a row, and the moment they begin at."""

    seed: int
    scene: str | None
    state: Any
    picture: dict[str, int]
    timeline: array[int]
    """Actions from the start of the dream on, shared by all stretches between two jumps in time: it grows."""
    begins: int
    """How many of them led to this moment."""
    jumped: bool
    """Whether time jumped here: it does not go on from the stretch before."""
    records: list[dict[str, Any]] = field(default_factory=list)


class LastSeconds:
    """A `session.Log` of the last `seconds` of a world with states."""

    def __init__(self, world: Any, seconds: int = SECONDS) -> None:
        self._world, self._wanted = world, seconds * FPS
        self._seed, self._scene = 0, None  # type: int, str | None
        self._actions: array[int] = array(ACTION)
        self._stretches: deque[Stretch] = deque(maxlen=STRETCHES)

    def start(self, seed: int, scene: str | None, actions: Sequence[int], frame: Frame) -> None:
        self._seed, self._scene, self._actions = seed, scene, array(ACTION, actions)
        self._begin(picture_record(frame), jumped=True)

    def tick(self, tick: int, action: int, frame: Frame) -> None:
        self._actions.append(action)
        picture = picture_record(frame)
        self._stretches[-1].records.append({"tick": tick, "action": action} | picture)
        if len(self._stretches[-1].records) == GRAIN:
            self._begin(picture, jumped=False)

    def rewind(self, tick: int) -> None:
        self._actions = self._actions[:tick]  # a copy: earlier stretches keep the way they went
        self._begin({}, jumped=True)

    @property
    def ticks(self) -> int:
        """Ticks that a clip would have now."""
        return sum(len(stretch.records) for stretch in self._stretches)

    def save_in(self, root: Path) -> str:
        """`save` in a new folder of `root`; says where. Raises what `save` raises."""
        folder = new_recording(root, self._world.info.name)
        self.save(folder)
        return f"the last {self.ticks / FPS:.0f} s: {folder} (replay --video makes a film of it)"

    def save(self, folder: Path) -> None:
        """Writes the clip, a recording whose starts have their packed states beside the log, so that a
        replay need not dream the way there. Raises DataError where the disk refuses.
        """
        log = SessionLog(folder, self._world, getattr(self._world, "origin", None))
        try:
            state = self._world.snapshot()  # the last stretch ends here, the others where the next begins
            for stretch in reversed(self._stretches):
                if stretch.records and state is not None:
                    stretch.records[-1]["state"] = state.hash()
                state = None if stretch.jumped else stretch.state
            for number, stretch in enumerate(self._stretches):
                if number == 0 or stretch.jumped:
                    log.write({"start": self._start(folder / f"start{number}.state", stretch)})
                for record in stretch.records:
                    log.write(record)
            log.close()
            if log.error:
                raise DataError(log.error)
        except DataError:
            log.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _begin(self, picture: dict[str, int], jumped: bool) -> None:
        """A stretch from the present moment on."""
        stretch = Stretch(
            self._seed,
            self._scene,
            self._world.snapshot(),
            picture,
            self._actions,
            len(self._actions),
            jumped,
        )
        self._stretches.append(stretch)
        while self.ticks - len(self._stretches[0].records) >= self._wanted:
            self._stretches.popleft()

    def _start(self, path: Path, stretch: Stretch) -> dict[str, Any]:
        start = {
            "seed": stretch.seed,
            "scene": stretch.scene,
            "actions": run_lengths(tuple(stretch.timeline[: stretch.begins])),
            "state": stretch.state.hash(),
        }
        if hasattr(self._world, "pack_state"):
            write_atomic(path, [self._world.pack_state(stretch.state)])
            start["file"] = path.name
        return start | stretch.picture
