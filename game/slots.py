"""Ten places to keep a moment. They survive the program; a slot of another world is refused.

A slot is a small JSON file: seed, scene and the actions since, from which the same weights dream the same
way again, checked by the state's hash. Where the world can write its state as bytes (`pack_state`,
`unpack_state`), it is kept beside that, so that loading takes no time: about 3.2 MB a slot for `rooms`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from world_model.files import open_regular, read_json, write_atomic, write_json
from world_model.types import DataError, Frame, ReverieError, WorldError

SCHEMA = 1
SLOTS = 10
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Moment:
    """A moment of a dream, as something that can be written down."""

    world: str
    weights_sha256: str
    backend: str
    seed: int
    scene: str | None
    actions: tuple[int, ...]
    state_hash: str


def home() -> Path:
    """Where the player keeps slots, recordings and key bindings: $REVERIE_HOME, or the user's data folder."""
    if os.environ.get("REVERIE_HOME"):
        return Path(os.environ["REVERIE_HOME"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "reverie"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "reverie"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "reverie"


def run_lengths(actions: tuple[int, ...]) -> list[list[int]]:
    """[[action, how often in a row], ...]."""
    runs: list[list[int]] = []
    for action in actions:
        if runs and runs[-1][0] == action:
            runs[-1][1] += 1
        else:
            runs.append([action, 1])
    return runs


def unroll(path: Path, runs: Any, count: int, limit: int = 10_000_000) -> tuple[int, ...]:
    """The inverse of `run_lengths`. Raises DataError for anything else than it writes."""
    actions: list[int] = []
    for run in runs if isinstance(runs, list) else [None]:
        if not (isinstance(run, list) and len(run) == 2 and all(type(n) is int for n in run)):
            raise DataError(f"{path}: its list of actions is broken")
        action, times = run
        if not 0 <= action < count or not 0 < times <= limit - len(actions):
            raise DataError(f"{path}: its list of actions does not fit this world")
        actions += [action] * times
    return tuple(actions)


def moment_to_json(moment: Moment) -> dict[str, Any]:
    return asdict(moment) | {"schema": SCHEMA, "actions": run_lengths(moment.actions)}


def moment_from_json(path: Path, data: dict[str, Any], actions: int) -> Moment:
    """Raises DataError that names the file and the reason."""
    if not isinstance(data.get("schema"), int):
        raise DataError(f"{path}: it is no saved moment")
    if data["schema"] > SCHEMA:
        raise DataError(f"{path}: schema {data['schema']} is newer than {SCHEMA}: upgrade reverie")
    kinds = {"world": str, "weights_sha256": str, "backend": str, "seed": int, "state_hash": str}
    for name, kind in kinds.items():
        if not isinstance(data.get(name), kind):
            raise DataError(f"{path}: {name!r} is missing or not a {kind.__name__}")
    scene = data.get("scene")
    if scene is not None and not isinstance(scene, str):
        raise DataError(f"{path}: 'scene' is not a name")
    taken = unroll(path, data.get("actions"), actions)
    return Moment(scene=scene, actions=taken, **{name: data[name] for name in kinds})


def read_state(path: Path, world: Any, state_hash: str) -> Any:
    """A packed state that has this hash. None where there is none, or only another or a damaged one: then
    the way to that moment is known and can be dreamt again.
    """
    try:
        if not hasattr(world, "unpack_state") or not path.is_file():
            return None
        with open_regular(path, MAX_BYTES) as file:
            state = world.unpack_state(file.read())
    except (ReverieError, OSError):
        return None
    return state if state.hash() == state_hash else None


class Slots:
    """The slots of one world, in `root`/<world>."""

    def __init__(self, root: Path, world: Any) -> None:
        self._world = world
        self.folder = root / world.info.name
        self._live: dict[int, tuple[str, Any, Frame]] = {}

    def path(self, slot: int) -> Path:
        return self.folder / f"slot{slot}.json"

    def save(self, slot: int, moment: Moment, state: Any, frame: Frame) -> None:
        """Raises DataError where the disk refuses; what the slot held before is unchanged then."""
        path = self._state(slot, moment.state_hash)
        known = path.exists()
        try:
            if hasattr(self._world, "pack_state"):
                write_atomic(path, [self._world.pack_state(state)])
            write_json(self.path(slot), moment_to_json(moment))  # last: from here on the slot is the new one
        except ReverieError:
            if not known:
                path.unlink(missing_ok=True)
            raise
        self._live[slot] = (moment.state_hash, state, frame)
        for old in [self.folder / f"slot{slot}.state", *self.folder.glob(f"slot{slot}-*.state")]:
            if old != path:
                with contextlib.suppress(OSError):  # it only takes room
                    old.unlink(missing_ok=True)

    def load(self, slot: int) -> tuple[Moment, Any, Frame | None]:
        """The moment, and its state and picture if they are known. Raises DataError for a bad slot."""
        moment = self._moment(slot)
        state_hash, state, frame = self._live.get(slot, ("", None, None))
        if state_hash == moment.state_hash:
            return moment, state, frame
        state = read_state(self._state(slot, moment.state_hash), self._world, moment.state_hash)
        return moment, state, None if state is None else self._world.paint(state)

    def _moment(self, slot: int) -> Moment:
        path = self.path(slot)
        if not path.exists():
            raise DataError(f"slot {slot} is empty")
        try:
            data = read_json(path, MAX_BYTES)
        except WorldError as err:
            raise DataError(str(err)) from err
        moment = moment_from_json(path, data, len(self._world.actions))
        info = self._world.info
        if (moment.world, moment.weights_sha256) != (info.name, info.weights_sha256):
            raise DataError(f"{path}: it belongs to another world or other weights ({moment.world})")
        return moment

    def _state(self, slot: int, state_hash: str) -> Path:
        """Another name for every moment, so that a save that fails half way has replaced nothing."""
        return self.folder / f"slot{slot}-{hashlib.sha256(state_hash.encode()).hexdigest()[:16]}.state"

    def tick_of(self, slot: int) -> int | None:
        """Ticks played before the saved moment; None where the slot is empty or broken."""
        try:
            return len(self._moment(slot).actions)
        except DataError:
            return None
