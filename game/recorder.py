"""What a session leaves behind: a log of every tick, and for rollouts the pictures too.

The log, `session.jsonl`, has one record a line: the CRC-32 of the record (chained to the one before it, so
that a lost line shows), a blank, the record as JSON. Lines are appended and flushed, so a crash costs at
most the last one. Records:

    {"schema": 1, "world": ..., "weights_sha256": ..., "backend": ..., "actions": [names], "size": [w, h]}
    {"start": {"seed": 0, "scene": null, "actions": [[action, times], ...], "picture": crc}}
    {"tick": 1, "action": 2, "picture": crc}             and now and then "state": hash after this tick
    {"rewind": 120}                                      back to tick 120, what came after it is forgotten

A tick that was dreamed but not painted has no "picture"; in a world with sound each has "sound": crc.
A clip's starts (`game.clip`) also have "state", and may have "file": a packed state beside the log, from
which it goes on at once.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from game.players import Player
from game.session import Session
from game.slots import run_lengths
from world_model.files import write_json
from world_model.types import FPS, DataError, Frame, Image, ReverieError

SCHEMA = 1
LOG_NAME = "session.jsonl"
HASH_EVERY = 10 * FPS
"""Ticks between state hashes: they cost milliseconds."""


def picture_crc(image: Image) -> int:
    """CRC-32 of the pixels."""
    return zlib.crc32(np.ascontiguousarray(image).data)


def sound_crc(frame: Frame) -> int | None:
    """CRC-32 of the samples; None in a world without sound."""
    return None if frame.audio is None else zlib.crc32(np.ascontiguousarray(frame.audio).data)


def picture_record(frame: Frame) -> dict[str, int]:
    """What a record says of the picture: nothing where it was not painted, as a replay would show another.
    And of the sound, where there is any.
    """
    sound = sound_crc(frame)
    seen = {"picture": picture_crc(frame.image)} if frame.info.painted else {}
    return seen if sound is None else seen | {"sound": sound}


class SessionLog:
    """Writes the log of a session. Where the disk refuses, it stops and says so in `error`: play goes on."""

    def __init__(
        self, folder: Path, world: Any, extra: dict[str, Any] | None = None, file: IO[bytes] | None = None
    ) -> None:
        self.folder, self._world = folder, world
        self.error: str | None = None
        self._crc = 0
        self._hashes = hasattr(world, "snapshot")
        self._file: IO[bytes] | None = file
        try:
            if self._file is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = (folder / LOG_NAME).open("xb")
        except OSError as err:
            self._stop(err)
        self.write(_header(world) | (extra or {}))

    def start(self, seed: int, scene: str | None, actions: Sequence[int], frame: Frame) -> None:
        runs = run_lengths(tuple(actions))
        picture = picture_record(frame)
        self.write({"start": {"seed": seed, "scene": scene, "actions": runs} | picture})

    def tick(self, tick: int, action: int, frame: Frame) -> None:
        record: dict[str, Any] = {"tick": tick, "action": action} | picture_record(frame)
        if self._hashes and tick % HASH_EVERY == 0:
            record["state"] = self._world.snapshot().hash()
        self.write(record)

    def rewind(self, tick: int) -> None:
        self.write({"rewind": tick})

    def close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as err:
                self._stop(err)
            self._file = None

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record."""
        if self._file is None:
            return
        payload = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
        crc = zlib.crc32(payload, self._crc)
        try:
            self._file.write(b"%08x %s\n" % (crc, payload))
            self._file.flush()
        except OSError as err:
            self._stop(err)
            return
        self._crc = crc

    def _stop(self, err: OSError) -> None:
        file, self._file = self._file, None
        self.error = self.error or f"recording has stopped: {err.strerror or err} ({self.folder})"
        if file is not None:
            try:
                file.close()
            except OSError as again:  # what is still buffered is refused once more
                self.error += f"; closing: {again.strerror}"


def _header(world: Any) -> dict[str, Any]:
    info = world.info
    return {
        "schema": SCHEMA,
        "world": info.name,
        "weights_sha256": info.weights_sha256,
        "backend": info.backend,
        "actions": [action.name for action in world.actions],
        "size": [info.width, info.height],
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def new_recording(root: Path, world_name: str) -> Path:
    """A folder name that is not taken yet: world, date and time."""
    stem = f"{world_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (root / (stem if i == 0 else f"{stem}-{i}") for i in range(10_000))
    return next(path for path in names if not path.exists())


class FrameFile:
    """`frames.npy` of a known length, written frame by frame; readable at any moment (`open_frames`)."""

    def __init__(self, path: Path, frames: int, height: int, width: int) -> None:
        self._file = path.open("xb")
        self._frames, self._size, self._written = frames, (height, width, 3), 0
        self._begin(frames)

    def append(self, image: Image) -> None:
        self._file.write(np.ascontiguousarray(image).data)
        self._file.flush()
        self._written += 1

    def close(self) -> None:
        """Where there are fewer frames than were expected, the file says so."""
        try:
            if self._written < self._frames:
                self._file.seek(0)
                self._begin(self._written)
        finally:
            self._file.close()

    def _begin(self, frames: int) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (frames, *self._size)}
        np.lib.format.write_array_header_1_0(self._file, header)


def open_frames(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Memory-maps the whole frames of a `FrameFile`, also where the writer was killed. Raises DataError."""
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("an unknown version of the npy format")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            begin = file.tell()
        if dtype != np.uint8 or fortran or len(shape) != 4 or min(shape[1:]) < 1:
            raise ValueError(f"{dtype} {shape} instead of frames")
        whole = (path.stat().st_size - begin) // int(np.prod(shape[1:]))
        return np.memmap(path, np.uint8, "r", begin, (min(shape[0], whole), *shape[1:]))
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: the frames cannot be read ({err})") from err


def partial_of(out: Path) -> Path:
    """The folder of a rollout that is not complete."""
    return out.with_name(out.name + ".partial")


def stopped_rollout(out: Path) -> str | None:
    """What to say of a rollout that a person has stopped; None where nothing of it is there."""
    partial = partial_of(out)
    if not (partial / LOG_NAME).is_file():
        return None
    return f"stopped; what was imagined so far is in {partial}, and `replay {partial}` dreams it again"


def record_rollout(
    world: Any,
    player: Player,
    frames: int,
    out: Path,
    seed: int = 0,
    scene: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Writes `frames` imagined frames and the one they start from, as an episode that can be replayed; fewer,
    where the dream comes to its end.

    Works under "<out>.partial", which keeps what there is after a crash, and renames it when complete.
    Raises DataError where `out` exists or the disk refuses.
    """
    if frames < 1:
        raise ValueError(f"--frames {frames}: at least one frame is needed")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists already; choose another --out")
    partial = partial_of(out)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        actions, over = _roll(world, player, frames, partial, seed, scene, progress)
        np.save(partial / "actions.npy", np.array(actions, np.int16), allow_pickle=False)
        np.save(partial / "phases.npy", np.zeros(len(actions), np.uint8), allow_pickle=False)
        np.save(partial / "rewards.npy", np.zeros(len(actions), np.float32), allow_pickle=False)
        origin = {"source": f"dream:{world.info.name}", "seed": seed, "scene": scene, "player": player.name}
        alignment = "actions[t] was taken after frames[t] and led to frames[t + 1]"
        write_json(
            partial / "header.json",
            _header(world)
            | origin
            | {"licence": world.info.licence, "fps": FPS, "alignment": alignment, "terminated": over},
        )
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    except OSError as err:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"{out} cannot be written: {err.strerror or err}; choose another --out") from err
    except ReverieError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def _roll(
    world: Any,
    player: Player,
    frames: int,
    folder: Path,
    seed: int,
    scene: str | None,
    progress: Callable[[int], None],
) -> tuple[list[int], bool]:
    """The actions, and whether the dream came to its end."""
    log = SessionLog(folder, world)
    # A plain session without history: a rollout never goes back, so it keeps no states.
    session = Session(world, player, [log], keep_history=False)
    file = FrameFile(folder / "frames.npy", frames + 1, world.info.height, world.info.width)
    actions = _Actions()
    session.logs.append(actions)
    sounds = []
    try:
        file.append(session.begin(seed, scene).image)
        for done in range(1, frames + 1):
            frame = session.step_once()
            file.append(frame.image)
            if frame.audio is not None:
                sounds.append(frame.audio)
            if log.error:
                raise DataError(log.error)
            progress(done)
            if frame.info.over:
                break
    finally:
        log.close()
        file.close()
    if sounds:
        np.save(folder / "sound.npy", np.stack(sounds), allow_pickle=False)
    return actions.taken, frame.info.over


class _Actions:
    """Collects the actions of a session."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def start(self, seed: int, scene: str | None, actions: Sequence[int], frame: Frame) -> None:
        self.taken.clear()

    def tick(self, tick: int, action: int, frame: Frame) -> None:
        self.taken.append(action)

    def rewind(self, tick: int) -> None:
        del self.taken[tick:]
