"""What a session showed, in plain files while it goes on, and the episodes that they become.

Pictures and the rest are appended tick by tick, a record of the tick last, so that the files are good at
any moment: whatever kills the program, every tick that has a record has all of its arrays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from world_model.data.episodes import Episode
from world_model.data.sources import Observation
from world_model.files import read_json, write_json

FIELDS = {"frames": "image", "pose": "pose", "depth": "depth", "variables": "variables"}
"""Arrays of an episode with an entry for each picture, and where an observation has them."""

LABELS = 64
"""Things of a picture that are kept at most, the first ones: a record has one size."""

TICK = np.dtype([("action", "<i2"), ("phase", "u1"), ("over", "u1"), ("reward", "<f4")])
"""A picture's record: the action that led there (-1: none), the phase of what comes next, whether the game
is over (1 terminated, 2 truncated), the reward of the action."""

ALIGNMENT = "actions[t] was taken after frames[t] and led to frames[t+1]"
ABOUT, TICKS, SOUND, BOXES = "header.json", "ticks", "sound", "labels"


class Store:
    """The files of one timeline, in the existing empty folder `folder`. Raises OSError, DataError.

    `header` is what its episodes say about themselves; `at` is the session's tick of the first picture.
    """

    def __init__(self, folder: Path, header: dict[str, Any], first: Observation, at: int = 0) -> None:
        self.folder, self._first = folder, at
        values = {name: getattr(first, field, None) for name, field in FIELDS.items()}
        held = {name: value for name, value in values.items() if value is not None}
        self._silent: NDArray[np.int16] | None = None
        boxes = np.zeros((LABELS, 5), np.int16)
        self._kinds: list[str] = []
        self._sizes = {TICKS: TICK.itemsize, BOXES: boxes.nbytes}
        self._sizes |= {name: value.nbytes for name, value in held.items()}
        self._files: dict[str, IO[bytes]] = {}
        for name in self._sizes:
            self._files[name] = (folder / name).open("xb", buffering=0)
        _lock(self._files[TICKS])
        arrays = held | {BOXES: boxes}
        shapes = {name: [str(value.dtype), list(value.shape)] for name, value in arrays.items()}
        self._about = {"arrays": shapes, "header": header | {"alignment": ALIGNMENT}}
        write_json(folder / ABOUT, self._about)
        self.append(-1, first)

    def append(self, action: int, obs: Observation) -> None:
        """`action` led to `obs`."""
        if action >= 0 and obs.sound is not None and self._files[TICKS].tell() == TICK.itemsize:
            self._begin_sound(obs.sound)
        if self._silent is not None:
            self._files[SOUND].write((self._silent if obs.sound is None else obs.sound).tobytes())
        for name, file in self._files.items():
            if name in FIELDS:
                file.write(np.ascontiguousarray(getattr(obs, FIELDS[name])).data)
        self._files[BOXES].write(self._boxes(obs).data)
        over = 1 if obs.terminated else 2 if obs.truncated else 0
        self._files[TICKS].write(np.array([(action, obs.phase, over, obs.reward)], TICK).tobytes())

    def _boxes(self, obs: Observation) -> NDArray[np.int16]:
        """A picture's labels as `Episode.labels` has them; a kind that is new is written down first."""
        boxes = np.zeros((LABELS, 5), np.int16)
        new = dict.fromkeys(label.name for label in obs.labels if label.name not in self._kinds)
        if new:
            self._kinds += new
            self._about["header"]["labels"] = self._kinds
            write_json(self.folder / ABOUT, self._about)
        for row, b in zip(boxes, obs.labels, strict=False):
            row[:] = (self._kinds.index(b.name) + 1, b.x, b.y, b.width, b.height)
        return boxes

    def _begin_sound(self, first: NDArray[np.int16]) -> None:
        """The first tick tells whether there is sound; the picture before it has none."""
        if SOUND not in self._files:
            self._files[SOUND] = (self.folder / SOUND).open("xb", buffering=0)
            self._silent, self._sizes[SOUND] = np.zeros_like(first), first.nbytes
            self._files[SOUND].write(self._silent.tobytes())
            self._about["arrays"][SOUND] = [str(first.dtype), list(first.shape)]
            write_json(self.folder / ABOUT, self._about)

    def cut(self, tick: int) -> None:
        """Forgets what came after the session's tick `tick`."""
        for name, file in self._files.items():
            file.truncate((tick - self._first + 1) * self._sizes[name])
            file.seek(0, os.SEEK_END)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def read_games(folder: Path) -> Iterator[Episode]:
    """The episodes of a store, memory-mapped: after a game that is over begins another, of the next seed.

    Raises WorldError for a broken description, OSError where a file is missing.
    """
    about = read_json(folder / ABOUT)
    kinds = {name: (np.dtype(kind), tuple(shape)) for name, (kind, shape) in about["arrays"].items()}
    count = (folder / TICKS).stat().st_size // TICK.itemsize
    for name, (dtype, shape) in kinds.items():
        count = min(count, (folder / name).stat().st_size // (dtype.itemsize * int(np.prod(shape))))
    if count == 0:
        return
    ticks = np.fromfile(folder / TICKS, TICK, count)
    arrays = {name: np.memmap(folder / name, dt, "r", 0, (count, *s)) for name, (dt, s) in kinds.items()}
    begin, seed = 0, about["header"]["seed"]
    for game, end in enumerate([*np.flatnonzero(ticks["over"][:-1]), count - 1]):
        piece = slice(begin, int(end) + 1)
        header = about["header"] | {"seed": seed + game}
        yield _episode(header, ticks[piece], {name: array[piece] for name, array in arrays.items()})
        begin = int(end) + 1


def abandoned(folder: Path) -> bool:
    """Whether the program that wrote this store has ended without finishing it."""
    if not (folder / ABOUT).is_file():
        return False  # it has only just begun
    try:
        import fcntl

        with (folder / TICKS).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except (ImportError, OSError):
        return False


def _lock(file: IO[bytes]) -> None:
    """Held until the program ends, however it ends: so it is known which sessions still run."""
    with contextlib.suppress(ImportError):  # not on Windows, where leftovers stay where they are
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _episode(header: dict[str, Any], ticks: NDArray[Any], arrays: dict[str, Any]) -> Episode:
    over = int(ticks["over"][-1])
    sound, labels = arrays.pop(SOUND, None), arrays.pop(BOXES, None)
    most = 0 if labels is None else int((labels[:, :, 0] > 0).sum(1).max())
    phases = (int(ticks["phase"][0]) + np.arange(len(ticks) - 1)) % header.get("phases", 1)
    return Episode(
        header | {"terminated": over == 1, "truncated": over == 2},
        actions=ticks["action"][1:].astype(np.int16),
        phases=phases.astype(np.uint8),
        rewards=ticks["reward"][1:].astype(np.float32),
        sound=None if sound is None else sound[1:],
        labels=None if labels is None or not most else labels[:, :most],
        **({"pose": None} | arrays),
    )
