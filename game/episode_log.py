"""Keeps a session on a real game as episodes that `train` accepts, beside those of `collect`.

While the session runs, it grows in `.unfinished`. When it ends, or the player starts anew, it becomes an
episode. What a killed program leaves there becomes one when the next session begins. After a rewind the
episode goes on from there: it holds what was played last.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from game.episode_store import Store, abandoned, read_games
from game.source_world import SourceWorld
from world_model.data.episodes import SPLITS, write_episode
from world_model.types import FPS, Frame, ReverieError, WorldError

MIN_TICKS = 2 * FPS
"""Shorter episodes are not kept: training cuts clips of up to 48 ticks."""

UNFINISHED = ".unfinished"


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed that is held out: what is measured with must not be trained on."""
    if seed >= SPLITS["val"]:
        raise ValueError(
            f"--seed {seed} is held out for evaluation, so no episode to train on can be kept; "
            f"take one below {SPLITS['val']:,}, or play with --no-log"
        )


class EpisodeLog:
    """A `session.Log` that writes episodes to `out`/train.

    Where the disk refuses, it stops and says so in `error`: play goes on. What was kept, and what was
    not, is told in `notes`.
    """

    def __init__(self, out: Path, world: SourceWorld) -> None:
        self.out, self._world = out, world
        self.error: str | None = None
        self.notes: list[str] = []
        self._store: Store | None = None
        self._guarded(self._recover)

    def start(self, seed: int, scene: str | None, actions: Sequence[int], frame: Frame) -> None:
        self._guarded(self._finish)
        if self.error is None:
            self._guarded(self._begin)

    def tick(self, tick: int, action: int, frame: Frame) -> None:
        store = self._store
        if store is not None:
            self._guarded(lambda: store.append(action, self._world.tape.now))

    def rewind(self, tick: int) -> None:
        store = self._store
        if store is not None:
            self._guarded(lambda: store.cut(tick))

    def close(self) -> None:
        """Makes episodes of what there is."""
        self._guarded(self._finish)

    def _begin(self) -> None:
        source, tape = self._world.source, self._world.tape
        folder = _free(self.out / UNFINISHED, f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        folder.mkdir(parents=True)
        header = {
            "source": source.name,
            "licence": source.licence,
            "seed": tape.game_seed,
            "actions": [action.name for action in source.actions],
            "fps": source.fps,
            "phases": source.phases,
        }
        if names := getattr(source, "variables", ()):
            header["variables"] = list(names)
        self._store = Store(folder, header, tape.now, tape.at)

    def _finish(self) -> None:
        if self._store is not None:
            store, self._store = self._store, None
            store.close()
            self._keep(store.folder)

    def _keep(self, folder: Path) -> None:
        stem = folder.name.rpartition("-")[0]
        for episode in read_games(folder):
            seed, ticks = episode.header["seed"], len(episode)
            if ticks < MIN_TICKS:
                self.notes.append(f"too short to be trained on, not kept: {ticks} ticks of {MIN_TICKS}")
            elif seed >= SPLITS["val"]:
                self.notes.append(f"not kept: seed {seed} is held out for evaluation")
            else:
                path = _free(self.out / "train", f"ep_played_{stem}_{seed}")
                write_episode(path, episode)
                self.notes.append(f"an episode of {ticks} ticks: {path}")
        shutil.rmtree(folder, ignore_errors=True)

    def _recover(self) -> None:
        """What a killed session left behind."""
        for folder in sorted((self.out / UNFINISHED).glob("*-*")):
            if abandoned(folder):
                try:
                    self._keep(folder)
                except WorldError as err:  # its description is broken; that is no reason not to play
                    self.notes.append(f"{folder} cannot be made an episode: {err}")

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (OSError, ReverieError) as err:
            reason = str(err) if isinstance(err, ReverieError) else err.strerror or str(err)
            self.error = self.error or f"the episode is no longer kept: {reason} ({self.out})"
            store, self._store = self._store, None
            if store is not None:
                with contextlib.suppress(OSError):  # the reason is told already
                    store.close()


def _free(folder: Path, name: str) -> Path:
    paths = (folder / (name if i == 0 else f"{name}_{i}") for i in range(10_000))
    return next(path for path in paths if not path.exists())
