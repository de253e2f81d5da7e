"""Reads the log of a session and dreams it again, comparing picture by picture."""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from game.history import History, stepper
from game.recorder import LOG_NAME, SCHEMA, picture_crc, sound_crc
from game.slots import read_state, unroll
from world_model.types import DataError, Frame

MAX_LINE = 64 << 20
STATE_NAME = re.compile(r"start\d{1,4}\.state")
"""A file beside the log: nothing that a recording names may lie elsewhere."""


@dataclass(frozen=True)
class Recording:
    """A log: its header, the records that are whole, and what is wrong with the rest, if anything."""

    path: Path
    header: dict[str, Any]
    records: list[dict[str, Any]]
    cut: bool
    """The last line is incomplete, as after a crash: at most one tick is lost."""
    altered: str | None
    """A line that is not as it was written; records before it are good."""


@dataclass(frozen=True)
class Difference:
    """The first tick at which a replay does not show what was recorded."""

    tick: int
    what: str
    reason: str


def read_recording(folder: Path) -> Recording:
    """Raises DataError where there is no log, or nothing of it can be used."""
    path = folder / LOG_NAME if folder.is_dir() else folder
    lines: list[dict[str, Any]] = []
    cut, altered, crc = False, None, 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
                if not line.endswith(b"\n"):
                    cut = True
                    break
                crc = zlib.crc32(line[9:-1], crc)
                if line[:9] != b"%08x " % crc:
                    altered = f"{path}, line {number}: altered or damaged since it was recorded"
                    break
                lines.append(_parse(path, number, line[9:-1]))
    except OSError as err:
        raise DataError(f"{path}: no recording can be read there ({err.strerror})") from err
    if not lines:
        raise DataError(altered or f"{path}: it holds no whole record")
    header = _check_header(path, lines[0])
    return Recording(path, header, lines[1:], cut, altered)


def _parse(path: Path, number: int, payload: bytes) -> dict[str, Any]:
    try:
        record = json.loads(payload)
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path}, line {number}: not a record ({err})") from err
    if not isinstance(record, dict):
        raise DataError(f"{path}, line {number}: not a record")
    return record


def _check_header(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    kinds = {"schema": int, "world": str, "weights_sha256": str, "backend": str, "actions": list}
    for name, kind in kinds.items():
        if not isinstance(header.get(name), kind):
            raise DataError(f"{path}: it is no recording ({name!r} is missing from its first line)")
    if header["schema"] > SCHEMA:
        raise DataError(f"{path}: schema {header['schema']} is newer than {SCHEMA}: upgrade reverie")
    return header


def check_world(recording: Recording, world: Any) -> str:
    """What differs between the recording's machine and this one, as a reason; "" if nothing does.

    Raises DataError where the world has other actions or no scenes: the recording means nothing in it.
    """
    header, info = recording.header, world.info
    names = [action.name for action in world.actions]
    if header["actions"] != names[: len(header["actions"])]:  # a twin has one more than its dream
        raise DataError(f"{recording.path}: it belongs to the world {header['world']!r}, not {info.name!r}")
    scenes = [r["start"].get("scene") for r in recording.records if isinstance(r.get("start"), dict)]
    if any(isinstance(scene, str) for scene in scenes) and not info.scenes:
        raise DataError(f"{recording.path}: it begins in a scene, and {info.name} has none")
    reasons = []
    if header["weights_sha256"] != info.weights_sha256:
        reasons.append(f"other weights ({header['weights_sha256'][:8]}, here {info.weights_sha256[:8]})")
    if header["backend"] != info.backend:
        reasons.append(f"another backend or thread count ({header['backend']}, here {info.backend})")
    return " and ".join(reasons)


def replay(
    recording: Recording, world: Any, show: Callable[[Frame], None] = lambda frame: None
) -> tuple[int, Difference | None]:
    """Dreams the recording again. Returns the ticks that were compared, and the first difference if any.

    `show` gets every picture in the order in which it was first seen, up to the difference.
    """
    reason = check_world(recording, world) or "an altered state, or another machine or version of torch"
    compared = 0
    for tick, frame, record in _dream(recording, world):
        show(frame)
        compared += "tick" in record
        if "picture" in record and record["picture"] != picture_crc(frame.image):
            return compared, Difference(tick, "the picture", reason)
        if "sound" in record and record["sound"] != sound_crc(frame):
            return compared, Difference(tick, "the sound", reason)
        if "state" in record and record["state"] != world.snapshot().hash():
            return compared, Difference(tick, "the state", reason)
    return compared, None


def _dream(recording: Recording, world: Any) -> Iterator[tuple[int, Frame, dict[str, Any]]]:
    history = History(world)
    started = False
    for record in recording.records:
        if "start" in record:
            frame, actions = _start(recording, world, record["start"])
            history.begin(frame, actions)
            started = True
            yield history.tick, frame, record["start"]
        elif not started:
            raise DataError(f"{recording.path}: its first tick comes before a start")
        elif "rewind" in record:
            _rewind(recording, history, record["rewind"], world)
        else:
            action = _int(recording, record, "action", 0, len(world.actions) - 1)
            _int(recording, record, "tick", history.tick + 1, history.tick + 1)
            frame = world.step(action)
            history.append(action, frame)
            yield history.tick, frame, record


def _int(recording: Recording, record: dict[str, Any], name: str, low: int, high: int) -> int:
    value = record.get(name)
    if type(value) is not int or not low <= value <= high:
        raise DataError(f"{recording.path}: {name} {value!r} does not fit; expected {low} to {high}")
    return value


def _start(recording: Recording, world: Any, start: Any) -> tuple[Frame, tuple[int, ...]]:
    seed, scene, taken = _begin(recording, start, len(world.actions))
    actions = tuple(taken)
    state = _packed(recording, world, start)
    if state is not None:
        world.restore(state)
        return world.paint(state), actions
    frame = world.reset(seed=seed) if scene is None else world.reset(seed=seed, scene=scene)
    step = stepper(world)
    for action in actions:
        frame = step(action, False)
    return frame.painted(), actions


def _packed(recording: Recording, world: Any, start: dict[str, Any]) -> Any:
    """The state that a clip's start keeps beside the log; None where the way there must be dreamt."""
    name, state_hash = start.get("file"), start.get("state")
    if not isinstance(name, str) or not STATE_NAME.fullmatch(name) or not isinstance(state_hash, str):
        return None
    return read_state(recording.path.with_name(name), world, state_hash)


def _rewind(recording: Recording, history: History, tick: Any, world: Any) -> None:
    if type(tick) is not int or not history.floor <= tick <= history.tick:
        raise DataError(f"{recording.path}: it goes back to tick {tick!r}, which was never there")
    history.seek(tick)


def timeline(recording: Recording) -> tuple[int, str | None, list[int]]:
    """Seed, scene and actions of the last timeline, from its start to the end of the recording.

    Raises DataError where it is altered, or is no timeline: what a replay would refuse is refused here.
    """
    if recording.altered is not None:
        raise DataError(f"{recording.altered}; `replay` shows what comes before it")
    count = len(recording.header["actions"])
    seed, scene, actions = 0, None, None  # type: int, str | None, list[int] | None
    for record in recording.records:
        if "start" in record:
            seed, scene, actions = _begin(recording, record["start"], count)
        elif actions is None:
            raise DataError(f"{recording.path}: its first tick comes before a start")
        elif "rewind" in record:
            del actions[_int(recording, record, "rewind", 0, len(actions)) :]
        else:
            _int(recording, record, "tick", len(actions) + 1, len(actions) + 1)
            actions.append(_int(recording, record, "action", 0, count - 1))
    return seed, scene, actions or []


def _begin(recording: Recording, start: Any, count: int) -> tuple[int, str | None, list[int]]:
    """Seed, scene and the actions that lead to a start."""
    if not isinstance(start, dict) or type(start.get("seed")) is not int or start["seed"] < 0:
        raise DataError(f"{recording.path}: a start without a seed")
    scene = start.get("scene")
    if scene is not None and not isinstance(scene, str):
        raise DataError(f"{recording.path}: the scene of a start is {scene!r}, not a name")
    return start["seed"], scene, list(unroll(recording.path, start.get("actions"), count))


def render(recording: Recording, world: Any, path: Path, size: tuple[int, int]) -> str:
    """Replays into a video file of `size` (width, height); returns what `report` says."""
    from game.video import VideoWriter, sound_rate

    writer = VideoWriter(path, *size, sound_rate(world))
    ticks = itertools.count()
    try:
        text = report(recording, world, lambda frame: writer.write(frame.image, next(ticks), frame.audio))
    finally:
        writer.close()  # also where the replay differs: what came before is worth seeing
    return f"{text}; {next(ticks)} pictures in {path}"


def report(recording: Recording, world: Any, show: Callable[[Frame], None] = lambda frame: None) -> str:
    """Replays and says how it went. Raises DataError where it differs, or the recording is damaged."""
    compared, difference = replay(recording, world, show)
    if difference is not None:
        raise DataError(
            f"{recording.path}: {difference.what} differs at tick {difference.tick}; "
            f"the reason may be {difference.reason}"
        )
    if recording.altered is not None:
        raise DataError(f"{recording.altered}; the {compared} ticks before it replay exactly")
    text = f"{compared} ticks replay exactly"
    return text + ("; the last record is cut off" if recording.cut else "")
