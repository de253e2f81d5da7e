"""Recordings, rollouts and episodes as data that others train on: plain numpy, LeRobot, Minari.

A recording holds no pictures: it is dreamed again and every picture and state compared before a file is
written. Each start of a session becomes an episode of its own; what was rewound is not in it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from game.episode_store import Store, read_games
from game.export_formats import FORMATS
from game.recorder import LOG_NAME, picture_crc
from game.replay import Recording, read_recording, replay
from game.twin import open_recorded
from world_model.data.episodes import Episode, read_episode
from world_model.data.sources import Observation
from world_model.types import FPS, DataError, Frame


def export(
    folder: Path, kind: str, out: Path | None, load: Callable[[str], Any], world: str | None = None
) -> str:
    """Writes `folder` as `kind` (npz, lerobot, minari) to `out`, a new folder, whole or not at all.

    folder: a session's recording, a rollout of `record`, an episode, or a folder of episodes. out: None
    for a folder beside it. load: gives the world of a name, for recordings; `world`: another than the
    recorded one. Returns a line for people. Raises ValueError for an unknown kind, ReverieError that says
    what to install, DataError for what cannot be read, verified or written.
    """
    if kind not in FORMATS:
        raise ValueError(f"--to {kind}: there are {', '.join(FORMATS)}")
    write = FORMATS[kind]()  # says what to install, before anything takes time
    out = out or folder.resolve().with_name(f"{folder.resolve().name}-{kind}")
    if out.exists():
        raise DataError(f"{out} exists already; choose another --out")
    partial = out.with_name(out.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as place:
            episodes, note = _episodes(folder, Path(place), load, world)
            write(episodes, partial, out.name)
        partial.rename(out)
    except OSError as err:
        raise DataError(f"{out} cannot be written: {err.strerror or err}; choose another --out") from err
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    ticks = sum(map(len, episodes))
    return f"{_count(len(episodes), 'episode')} of {_count(ticks, 'tick')} written to {out}{note}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _episodes(
    folder: Path, place: Path, load: Callable[[str], Any], world: str | None
) -> tuple[list[Episode], str]:
    """The episodes of any kind of folder, and what is to be said about them."""
    if (folder / "header.json").is_file():
        episode = read_episode(folder)
        if (folder / LOG_NAME).is_file():
            _verify(folder, episode)
        episodes, note = [episode], ""
    elif folder.is_file() or (folder / LOG_NAME).is_file():
        episodes, note = _replayed(read_recording(folder), place, load, world)
    else:
        parts = sorted(p.parent for p in folder.glob("*/header.json") if p.parent.suffix != ".partial")
        if not parts:
            raise DataError(f"{folder} is neither a recording nor a rollout nor an episode, nor holds some")
        episodes, note = [read_episode(part) for part in parts], ""
    episodes = [episode for episode in episodes if len(episode)]
    if not episodes:
        raise DataError(f"{folder}: nothing was played, so there is nothing to export")
    return episodes, note


def _verify(folder: Path, episode: Episode) -> None:
    """A rollout's pictures and actions against its log, which has a checksum for each of them."""
    records = [r.get("start", r) for r in read_recording(folder).records]
    if len(records) != len(episode.frames):
        raise DataError(f"{folder}: {len(episode.frames)} pictures, but {len(records)} in its log")
    for tick, (record, image) in enumerate(zip(records, episode.frames, strict=True)):
        same = tick == 0 or record.get("action") == int(episode.actions[tick - 1])
        crc = picture_crc(image)
        if not same or record.get("picture", crc) != crc:
            raise DataError(f"{folder}: tick {tick} is not what its log says; it was altered since")


def _replayed(
    recording: Recording, place: Path, load: Callable[[str], Any], name: str | None
) -> tuple[list[Episode], str]:
    if str(recording.header["backend"]).startswith("twin-"):
        raise DataError(f"{recording.path}: a twin's pictures show two games in one; record one of them")
    world = open_recorded(recording.header, load, name)
    takes = _Takes(recording, world, place)
    try:
        compared, difference = replay(recording, world, takes.show)
        takes.follow()
    finally:
        takes.close()
    if difference is not None:
        raise DataError(
            f"{recording.path}: {difference.what} differs at tick {difference.tick}, so nothing is exported; "
            f"the reason may be {difference.reason}"
        )
    note = "; the last record is cut off" if recording.cut else ""
    if recording.altered is not None:
        note = f"; only the {compared} ticks before this: {recording.altered}"
    return [episode for take in takes.folders for episode in read_games(take)], note


class _Takes:
    """Follows a replay, and keeps for each start of the session what was played last."""

    def __init__(self, recording: Recording, world: Any, place: Path) -> None:
        self._records = iter(recording.records)
        self._header, self._world, self._place = recording.header, world, place
        self.folders: list[Path] = []
        self._store: Store | None = None

    def show(self, frame: Frame) -> None:
        """The picture of the next start or tick."""
        record = self.follow()
        tape = getattr(self._world, "tape", None)
        obs = Observation(frame.image, sound=frame.audio) if tape is None else tape.now
        if "start" in record:
            self._begin(record["start"], obs)
        else:
            assert self._store is not None, "a replay begins with a start"
            self._store.append(record["action"], obs)

    def follow(self) -> dict[str, Any]:
        """Goes back where the session did; returns the record after that, or an empty one at the end."""
        for record in self._records:
            if "rewind" not in record:
                return record
            if self._store is not None:
                self._store.cut(record["rewind"])
        return {}

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _begin(self, start: dict[str, Any], obs: Observation) -> None:
        self.close()
        info, source = self._world.info, getattr(self._world, "source", None)
        header = {
            "source": f"dream:{info.name}" if source is None else source.name,
            "licence": info.licence,
            "seed": start["seed"],
            "scene": start["scene"],
            "actions": list(self._header["actions"]),
            "fps": FPS,
            "weights_sha256": info.weights_sha256,
            "backend": info.backend,
        }
        if source is not None:
            header["phases"] = source.phases
        folder = self._place / str(len(self.folders))
        folder.mkdir()
        at = sum(times for _, times in start["actions"])
        self._store = Store(folder, header, obs, at)
        self.folders.append(folder)
