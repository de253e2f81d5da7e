"""One world that is being played: its session, loop, sound, films and logs. Knows no pygame by itself."""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from game.bindings import read_bindings
from game.budget import Governor
from game.clip import LastSeconds
from game.clock import Clock, FreeClock
from game.episode_log import EpisodeLog, check_seed
from game.keys import Command
from game.loop import Loop
from game.options import Options
from game.players import Listed, Player, RandomPlayer, Wanderer, player_for
from game.recorder import LOG_NAME, SessionLog, new_recording
from game.replay import check_world, read_recording, timeline
from game.session import Log, Session
from game.slots import Slots
from game.speaker import Speaker, default_device
from game.video import LiveFilm, sound_rate
from world_model.types import WorldError

if TYPE_CHECKING:
    from game.window import Window

FILM_SCALE = 2
"""Films have twice the picture's size: enough to see it well, little enough to encode beside the game."""

Spans = deque[tuple[str, float, float]]
"""(section, start, end) in seconds, for a trace."""


class Sitting:
    """A world in the window, from its start until `close`. It can be left, and gone on with by `run`.

    Raises what the world raises for a bad start, DataError for bad key bindings, scripts or recordings.
    """

    def __init__(self, options: Options, world: Any, window: Window, spans: Spans | None = None) -> None:
        self.options, self.world, self._window = options, world, window
        self._bindings = read_bindings(options.keys_file, world.actions)
        self.session = make_session(options, world)
        self._logs = list(self.session.logs)  # the loop takes those out that have failed
        clock, governor = (FreeClock(), None) if options.fast else (Clock(), Governor())
        # What does not run in time cannot be heard in time.
        audible = options.audio and not options.fast
        self._speaker = Speaker(self.session.messages.append, default_device if audible else None)
        self.loop = Loop(self.session, window, clock, governor, self._new_film, self._speaker)
        self.loop.hud.world = world.info.name
        self.loop.sections.spans = spans
        if options.film or options.record:
            try:
                self.loop.film = self._new_film()
            except BaseException:
                self.close()
                raise

    def run(self) -> Command:
        """Plays until the person leaves: QUIT, PICKER for another world, TWIN for the real game beside it."""
        self._window.bind(self._bindings, self.world.actions)
        self._speaker.prepare(self.session.frame)
        self.loop.run(self.options.ticks)
        return self.loop.leaving

    def close(self) -> list[str]:
        """Ends film, sound, logs and a real game; returns what was kept, and what went wrong."""
        self.loop.close()
        notes = self._speaker.lines()
        self._speaker.close()
        episodes: list[str] = []
        for log in self._logs:
            if isinstance(log, SessionLog):
                log.close()
                notes.append(log.error or f"recording: {log.folder}")
            elif isinstance(log, EpisodeLog):
                log.close()
                episodes += [*log.notes, *([log.error] if log.error else [])]
        close_world(self.world)
        return notes + self.loop.notes + episodes

    def _new_film(self) -> LiveFilm:
        info = self.world.info
        path = _film_path(self.options.films, info.name)
        return LiveFilm(path, FILM_SCALE * info.width, FILM_SCALE * info.height, sound_rate(self.world))


def close_world(world: Any) -> None:
    """Ends the real game of a world that has one."""
    source = getattr(world, "source", None)
    if source is not None:
        source.close()


def _film_path(folder: Path, world_name: str) -> Path:
    """A file that is not there yet: world, date and time."""
    stem = f"{world_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    paths = (folder / f"{stem}{f'-{i}' if i else ''}.mp4" for i in range(10_000))
    return next(path for path in paths if not path.exists())


def make_session(options: Options, world: Any) -> Session:
    """A session with its log and slots, begun at the chosen start."""
    root = options.root

    def random(seed: int) -> Player:
        return RandomPlayer(world.actions, seed)

    def wander(seed: int) -> Player:
        return Wanderer(world.actions, seed)

    player, seed, scene = _player(options, world)
    if scene is not None:
        _check_scene(scene, world)
    slots = Slots(root / "slots", world)
    logs = _logs(options, world, seed) if options.log else []
    last = LastSeconds(world) if hasattr(world, "snapshot") else None
    logs += [last] if last else []
    keep_last = partial(last.save_in, root / "clips") if last else None
    shots = root / "screenshots"
    session = Session(
        world,
        player,
        logs,
        slots,
        time.perf_counter,
        (wander, random),
        screenshots=shots,
        keep_last=keep_last,
    )
    session.begin(seed, scene)
    return session


def _player(options: Options, world: Any) -> tuple[Player | None, int, str | None]:
    """The player (None: the person), and the seed and scene to begin with: a recording brings its own."""
    choice = Path(options.player)
    if options.player == "human":
        return None, options.seed, options.scene
    if (choice / LOG_NAME).is_file():
        recording = read_recording(choice)
        check_world(recording, world)
        seed, scene, actions = timeline(recording)
        return Listed("the recording", actions), seed, scene
    return player_for(options.player, world.actions, options.seed), options.seed, options.scene


def _check_scene(scene: str, world: Any) -> None:
    scenes = world.info.scenes
    if scene not in scenes:
        there = f"there are: {', '.join(scenes)}" if scenes else "it has no named starts, --seed chooses one"
        raise WorldError(f"no scene {scene!r} in {world.info.name}; {there}")


def _logs(options: Options, world: Any, seed: int) -> list[Log]:
    """The log that replays the session; for a real game also the episode that can be trained on."""
    if options.source is not None:
        check_seed(seed)
    folder = new_recording(options.recordings, world.info.name)
    logs: list[Log] = [SessionLog(folder, world, getattr(world, "origin", None))]
    if options.source is not None:
        kind = world.info.name.removesuffix("-source")
        logs.append(EpisodeLog(options.out or options.root / "episodes" / kind, world))
    return logs
