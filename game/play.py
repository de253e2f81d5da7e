"""Puts the player together: window first, then the world, then the loop. Knows no pygame by itself."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from game.bindings import KEYS_NAME, read_bindings
from game.budget import Governor
from game.clip import LastSeconds
from game.clock import Clock, FreeClock
from game.episode_log import EpisodeLog, check_seed
from game.keys import Command, default_bindings
from game.loop import Loop, Summary
from game.picker import pick_start
from game.players import Listed, Player, RandomPlayer, Wanderer, player_for
from game.recorder import LOG_NAME, SessionLog, new_recording
from game.replay import check_world, read_recording, timeline
from game.session import Log, Session
from game.slots import Slots, home
from game.speaker import Speaker, default_device
from game.trace import MAX_SPANS, write_trace
from game.video import LiveFilm, sound_rate
from world_model.types import ReverieError, WorldError

if TYPE_CHECKING:
    from game.window import Window

FILM_SCALE = 2
"""Films have twice the picture's size: enough to see it well, little enough to encode beside the game."""


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
    trace: Path | None = None
    keys: Path | None = None
    home: Path | None = None
    out: Path | None = None
    """With `source`: the data set that the session is added to; None: `root`/episodes/<source>."""
    audio: bool = True
    """Whether a sound device is used, where the world has sound."""

    @property
    def root(self) -> Path:
        return self.home or home()


def play(
    options: Options, load: Callable[[str], Any], worlds: Callable[[], dict[str, Path]]
) -> Summary | None:
    """Opens a window and plays until the person leaves. `load` gives the world of a name.

    Returns None where they left before a world was there. Raises DisplayError without a screen,
    WorldError for a world that cannot be loaded, DataError for bad key bindings, scripts or recordings.
    """
    read_bindings(_keys_file(options))  # errors come before a window opens
    from game.window import Window

    window = Window(default_bindings(), fullscreen=options.fullscreen)
    summary, note = None, ""
    try:
        chosen = _choose(options, window, worlds)
        while chosen is not None:
            try:
                world = _load(chosen, load, window)
            except ReverieError as err:
                if summary is None or not chosen.twin:
                    raise
                # A key asked for the real game, and it is not there: play goes on without it.
                chosen, note = replace(chosen, twin=False), str(err)
                continue
            if world is None:
                break
            leaving, summary = _play(chosen, world, window, note)
            note = ""
            if leaving == Command.QUIT:
                break
            if leaving == Command.TWIN:
                chosen = replace(chosen, twin=not chosen.twin, source=None, scene=None)
                chosen = replace(chosen, world=chosen.world or "rooms")
            else:
                again = replace(chosen, world=None, source=None, scene=None, twin=False)
                chosen = _choose(again, window, worlds, ask=True)
        return summary
    finally:
        window.close()


def _keys_file(options: Options) -> Path:
    return options.keys or options.root / KEYS_NAME


def _choose(
    options: Options, window: Window, worlds: Callable[[], dict[str, Path]], ask: bool = False
) -> Options | None:
    """Options that name a world; asks where there are several, or where the person wants to be asked."""
    if options.world is not None or options.source is not None:
        return options
    found = worlds()
    if len(found) < 2 and not ask:
        return replace(options, world=next(iter(found), "rooms"))
    start = pick_start(window, Clock(), lambda: found)
    return None if start is None else replace(options, world=start[0], scene=start[1])


def open_world(options: Options, load: Callable[[str], Any]) -> Any:
    """The world, the real game, or both. Raises SourceError that says what to install."""
    name = str(options.world)
    if options.source is None and not options.twin:
        return load(name)
    from game.source_world import SourceWorld
    from game.twin import TwinWorld
    from world_model.data.sources import make_source

    if options.source is not None:
        return SourceWorld(make_source(options.source))
    if options.scene is not None:
        raise ValueError("--scene: a twin begins where the real game does, which --seed chooses")
    dream = load(name)
    return TwinWorld(dream, make_source(str(dream.info.provenance.get("source", dream.info.name))))


def _load(options: Options, load: Callable[[str], Any], window: Window) -> Any:
    """Loads beside a window that stays alive; None where the person leaves meanwhile."""
    name = options.source or str(options.world)
    began = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(open_world, options, load)
        while not loading.done():
            window.loading(name, time.perf_counter() - began)
            if window.poll().asks(Command.QUIT):
                return None
            time.sleep(0.03)
    return loading.result()


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


def make_session(options: Options, world: Any) -> Session:
    """A session with its log and slots, begun at the chosen start."""
    root = options.root

    def random(seed: int) -> Player:
        return RandomPlayer(world.actions, seed)

    def wander(seed: int) -> Player:
        return Wanderer(world.actions, seed)

    player, seed, scene = _player(options, world)
    if scene is not None and scene not in world.info.scenes:
        raise WorldError(
            f"no scene {scene!r} in {world.info.name}; there are: {', '.join(world.info.scenes)}"
        )
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


def _logs(options: Options, world: Any, seed: int) -> list[Log]:
    """The log that replays the session; for a real game also the episode that can be trained on."""
    if options.source is not None:
        check_seed(seed)
    folder = new_recording(options.root / "recordings", world.info.name)
    logs: list[Log] = [SessionLog(folder, world, getattr(world, "origin", None))]
    if options.source is not None:
        kind = world.info.name.removesuffix("-source")
        logs.append(EpisodeLog(options.out or options.root / "episodes" / kind, world))
    return logs


def _play(options: Options, world: Any, window: Window, note: str) -> tuple[Command, Summary]:
    session = make_session(options, world)
    if note:
        session.messages.append(note)
    window.bind(read_bindings(_keys_file(options), world.actions), world.actions)
    clock, governor = (FreeClock(), None) if options.fast else (Clock(), Governor())

    def film() -> LiveFilm:
        path = new_recording(options.root / "films", world.info.name).with_suffix(".mp4")
        size = (FILM_SCALE * world.info.width, FILM_SCALE * world.info.height)
        return LiveFilm(path, *size, sound_rate(world))

    # What does not run in time cannot be heard in time.
    speaker = Speaker(session.messages.append, default_device if options.audio and not options.fast else None)
    loop = Loop(session, window, clock, governor, film, speaker)
    speaker.prepare(session.frame)
    loop.hud.world = world.info.name
    if options.film:
        loop.film = film()
    if options.trace:
        loop.sections.spans = deque(maxlen=MAX_SPANS)
    try:
        summary = loop.run(options.ticks)
    finally:
        notes = speaker.lines()
        speaker.close()
        for log in session.logs:
            if isinstance(log, SessionLog | EpisodeLog):
                log.close()
            if isinstance(log, EpisodeLog):
                notes += [*log.notes, *([log.error] if log.error else [])]
        if options.trace and loop.sections.spans is not None:
            write_trace(options.trace, loop.sections.spans)
    return loop.leaving, replace(summary, notes=notes)
