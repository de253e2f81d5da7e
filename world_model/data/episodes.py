"""Episodes on disk: what a source showed, what was done, and where the player stood.

An episode is a folder of plain `.npy` arrays beside a `header.json`. Arrays can be memory-mapped, so
a data set larger than memory trains well. A folder is written under a temporary name and renamed when
complete, so whatever carries an episode's name is whole.

Alignment: `actions[t]` was taken after `frames[t]` and led to `frames[t + 1]`; `phases[t]`, `rewards[t]`
and `sound[t]` belong to the same transition.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.types import DataError

SCHEMA = 1
ARRAYS = (
    "frames",
    "actions",
    "phases",
    "pose",
    "sound",
    "rewards",
    "depth",
    "labels",
    "variables",
    "things",
)
SPLITS = {"train": 0, "val": 1_000_000_000, "test": 1_500_000_000}
"""First seed of each split: an episode is held out by its seed, never by its frames."""


@dataclass(frozen=True)
class Episode:
    """One walk through a source: T + 1 frames and the T transitions between them.

    frames: uint8 (T + 1, H, W, 3). actions: int16 (T,). phases: uint8 (T,), position of the tick in the
    source's own clock. pose: float32 (T + 1, 3) of x, y (map units) and heading (radians), or None.
    sound: int16 (T, samples, channels) or None. rewards: float32 (T,). depth: float16
    (T + 1, H / 4, W / 4) in map units, or None. labels: int16 (T + 1, K, 5), what is in the picture as
    kind, x, y, width, height in pixels; the kind counts from 1 in the header's list `labels`, rows beyond
    the last thing are 0. variables: int32 (T + 1, V), numbers that the header's list `variables` names.
    things: float32 (T + 1, K, 5), what there is in the map, as number, kind, x, y, z in map units; the
    number, from 1, is kept while a thing is there, the kind counts from 1 in the header's list `things`.
    """

    header: dict[str, Any]
    frames: NDArray[np.uint8]
    actions: NDArray[np.int16]
    phases: NDArray[np.uint8]
    pose: NDArray[np.float32] | None
    sound: NDArray[np.int16] | None
    rewards: NDArray[np.float32]
    depth: NDArray[np.float16] | None = None
    labels: NDArray[np.int16] | None = None
    variables: NDArray[np.int32] | None = None
    things: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.actions)


def write_episode(folder: Path, episode: Episode) -> None:
    """Writes an episode as `folder`, whole or not at all. Raises DataError when the disk refuses."""
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in ARRAYS:
            array = getattr(episode, name)
            if array is not None:
                np.save(partial / f"{name}.npy", array, allow_pickle=False)
        (partial / "header.json").write_text(json.dumps(episode.header | {"schema": SCHEMA}, indent=1))
        os.replace(partial, folder)
    except OSError as err:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(
            f"cannot write {folder}: {err.strerror}; free some space or choose another --out"
        ) from err


def read_episode(folder: Path) -> Episode:
    """Opens an episode; arrays are memory-mapped. Raises DataError that names the file and the reason."""
    header = _read_header(folder)
    arrays: dict[str, Any] = {}
    for name in ARRAYS:
        path = folder / f"{name}.npy"
        if not path.exists():
            arrays[name] = None
            continue
        try:
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as err:
            raise DataError(f"{path} is damaged ({err}); delete the episode and collect it again") from err
    episode = Episode(header, **arrays)
    _check(folder, episode)
    return episode


def list_episodes(root: Path, split: str) -> list[Path]:
    """Folders of the complete episodes of one split, in order. Raises DataError when there are none."""
    folders = sorted(p for p in (root / split).glob("ep_*") if not p.name.endswith(".partial"))
    if not folders:
        raise DataError(f"{root / split} holds no episodes; run `main.py collect --out {root}` first")
    return folders


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / "header.json"
    try:
        header = json.loads(path.read_text())
    except FileNotFoundError as err:
        raise DataError(f"{folder} is no episode: it has no header.json") from err
    except (OSError, ValueError) as err:
        raise DataError(f"{path} cannot be read: {err}") from err
    if not isinstance(header, dict) or not isinstance(header.get("schema"), int):
        raise DataError(f"{path} is no episode header")
    if header["schema"] > SCHEMA:
        raise DataError(f"{path} has schema {header['schema']}, newer than {SCHEMA}: upgrade reverie")
    return header


def _check(folder: Path, episode: Episode) -> None:
    for name in ("frames", "actions", "phases", "rewards"):
        if getattr(episode, name) is None:
            raise DataError(f"{folder} lacks {name}.npy; delete the episode and collect it again")
    steps = len(episode.actions)
    expected = {"frames": steps + 1, "phases": steps, "rewards": steps, "pose": steps + 1, "sound": steps}
    expected |= {"depth": steps + 1, "labels": steps + 1, "variables": steps + 1, "things": steps + 1}
    for name, length in expected.items():
        array = getattr(episode, name)
        if array is not None and len(array) != length:
            raise DataError(f"{folder}/{name}.npy has {len(array)} entries, expected {length}")
