"""Opens the window and plays one world after another in it. Knows no pygame by itself."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from game.bindings import read_bindings
from game.clock import Clock
from game.keys import Command, default_bindings
from game.loop import Summary
from game.options import Options
from game.picker import pick_start
from game.sitting import Sitting, Spans, close_world
from game.trace import MAX_SPANS, check_trace, write_trace
from world_model.files import read_json
from world_model.types import DataError, ReverieError, WorldError

if TYPE_CHECKING:
    from game.window import Window

Load = Callable[[str], Any]
"""The world of a name."""

Worlds = Callable[[], dict[str, Path]]
"""The worlds that are installed: name -> folder."""


def play(options: Options, load: Load, worlds: Worlds) -> Summary | None:
    """Opens a window and plays until the person leaves, or Ctrl-C.

    Returns None where they left before a world was there. Raises DisplayError without a screen,
    WorldError for a world that cannot be loaded, DataError for bad key bindings, scripts or recordings, and
    for a trace that cannot be written.
    """
    read_bindings(options.keys_file, named=options.keys is not None)  # errors come before a window opens
    if options.trace is not None:
        check_trace(options.trace)
    from game.window import Window

    window = Window(default_bindings(), fullscreen=options.fullscreen)
    try:
        return _Evening(options, load, worlds, window).run()
    finally:
        window.close()


class _Evening:
    """All that is played in one window, and what is to be said of it at the end."""

    def __init__(self, options: Options, load: Load, worlds: Worlds, window: Window) -> None:
        self._options, self._load_world, self._worlds, self._window = options, load, worlds, window
        self._spans: Spans | None = deque(maxlen=MAX_SPANS) if options.trace else None
        self._sitting: Sitting | None = None
        self._notes: list[str] = []
        self._left = options.ticks

    def run(self) -> Summary | None:
        interrupted = False
        try:
            self._play()
        except KeyboardInterrupt:
            if self._sitting is None:
                raise
            interrupted = True
        finally:
            self._close()
            self._write_trace()
        if self._sitting is None:
            return None
        return replace(self._sitting.loop.summary(), notes=self._notes, interrupted=interrupted)

    def _play(self) -> None:
        chosen = _choose(self._options, self._window, self._worlds)
        self._sitting = None if chosen is None else self._open(chosen)
        while self._sitting is not None:
            leaving = self._sitting.run()
            if leaving == Command.QUIT:
                return
            following = self._following(self._sitting, leaving)
            if self._window.closing:
                return
            if following is not None:
                self._close()
                self._sitting = following

    def _open(self, chosen: Options) -> Sitting | None:
        """The world that `chosen` names, ready to be played; None where the person leaves meanwhile."""
        world = _load(chosen, self._load_world, self._window)
        if world is None:
            return None
        try:
            return Sitting(chosen, world, self._window, self._spans)
        except BaseException:
            close_world(world)
            raise

    def _following(self, now: Sitting, leaving: Command) -> Sitting | None:
        """What a key asked for. None: nothing was chosen, or it is not there; then play goes on as it was."""
        try:
            chosen = self._twin_of(now) if leaving == Command.TWIN else self._another(now)
            return None if chosen is None else self._open(chosen)
        except (ReverieError, ValueError) as err:
            now.session.messages.append(str(err))
            return None

    def _another(self, now: Sitting) -> Options | None:
        """What is picked from the cards. Raises WorldError where there is none."""
        if not self._worlds():
            raise WorldError("no world is installed")
        chosen = replace(self._from_here(now), world=None, source=None, twin=False)
        return _choose(chosen, self._window, self._worlds, ask=True)

    def _twin_of(self, now: Sitting) -> Options:
        """The other one of dream and twin. Raises WorldError where no dream of a real game is known."""
        here = replace(self._from_here(now), seed=now.session.seed)
        if here.source is None:
            return replace(here, twin=not here.twin)
        world = _dream_of(here.source, self._worlds())
        if world is None:
            raise WorldError(f"no world that dreams of {here.source} is installed")
        return replace(here, world=world, source=None, twin=True)

    def _from_here(self, now: Sitting) -> Options:
        """How to go on in another world: scripts and recordings are of the one they began in."""
        left = None if now.options.ticks is None else now.options.ticks - now.loop.summary().ticks
        by_name = now.options.player in ("human", "random", "wander")
        player = now.options.player if by_name else "human"
        return replace(now.options, ticks=left, player=player, scene=None, out=None)

    def _close(self) -> None:
        if self._sitting is not None:
            self._notes += self._sitting.close()

    def _write_trace(self) -> None:
        if self._options.trace is None or self._spans is None or self._sitting is None:
            return
        try:
            write_trace(self._options.trace, self._spans)
        except DataError as err:
            self._notes.append(str(err))  # the summary is worth more than the trace


def _choose(options: Options, window: Window, worlds: Worlds, ask: bool = False) -> Options | None:
    """Options that name a world; asks where there are several, or where the person wants to be asked."""
    if options.world is not None or options.source is not None:
        return options
    found = worlds()
    if len(found) < 2 and not ask:
        return replace(options, world=next(iter(found), "rooms"))
    start = pick_start(window, Clock(), lambda: found)
    return None if start is None else replace(options, world=start[0], scene=start[1])


def _dream_of(source: str, worlds: dict[str, Path]) -> str | None:
    """The first installed world that learned from this real game."""
    for name, folder in worlds.items():
        try:
            origin = read_json(folder / "world.json").get("provenance")
        except WorldError:
            continue  # a broken world dreams of nothing; whoever chooses it is told
        if isinstance(origin, dict) and origin.get("source", name) == source:
            return name
    return None


def open_world(options: Options, load: Callable[[str], Any]) -> Any:
    """The world, the real game, or both. Raises SourceError that says what to install."""
    name = str(options.world)
    if options.source is None and not options.twin:
        return load(name)
    from game.twin import open_source, open_twin

    if options.source is not None:
        return open_source(options.source, options.audio)
    if options.scene is not None:
        raise ValueError("--scene: a twin begins where the real game does, which --seed chooses")
    dream = load(name)
    kind = str(dream.info.provenance.get("source", dream.info.name))
    return open_twin(dream, kind, options.audio)


def _load(options: Options, load: Callable[[str], Any], window: Window) -> Any:
    """Loads beside a window that stays alive; None where the person leaves meanwhile."""
    name = options.source or str(options.world)
    began = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(open_world, options, load)
        while not loading.done():
            window.loading(name, time.perf_counter() - began)
            if window.poll().asks(Command.QUIT):
                loading.add_done_callback(_discard)
                return None
            time.sleep(0.03)
    return loading.result()


def _discard(loading: Future[Any]) -> None:
    """Nobody waits for this world any more: its real game must not stay open."""
    if loading.exception() is None:
        close_world(loading.result())
