"""One person playing one world: time in both directions, save slots, players, and the log of it all.

A moment is (seed, scene, actions since the start); everything that moves through time leaves the session
at such a moment, so that whatever is recorded can be reproduced. Knows no window and no clock.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from game.history import History, Rewind, stepper
from game.keys import Command, Input
from game.players import Human, Listed, Player
from game.png import write_png
from game.slots import Moment, Slots, moment_to_json
from world_model.files import write_json
from world_model.types import Frame, ReverieError

SPEEDS = (0.125, 0.25, 0.5, 1.0)
FAST_STEPS = 8
"""Most world steps in a tick of fast-forward."""

FAST_SECONDS = 0.03
"""Fast-forward begins no further step after this much of a tick."""


class Mode(StrEnum):
    PLAYING = "playing"
    PAUSED = "paused"
    REWINDING = "rewinding"
    RECALLING = "recalling"


class Log(Protocol):
    """Is told everything that happened, in order (see `recorder.SessionLog`)."""

    def start(self, seed: int, scene: str | None, actions: Sequence[int], frame: Frame) -> None: ...
    def tick(self, tick: int, action: int, frame: Frame) -> None: ...
    def rewind(self, tick: int) -> None: ...


class Session:
    """`begin`, then `advance` once a tick of the clock: it returns the picture to show.

    world: anything with `reset(seed, scene)`, `step(action)` and `actions`; with `snapshot` and `restore`
    it can also go back, with `paint` leave out pictures. `time` limits fast-forward, nothing else depends
    on it.
    """

    def __init__(
        self,
        world: Any,
        player: Player | None = None,
        logs: Sequence[Log] = (),
        slots: Slots | None = None,
        time: Callable[[], float] | None = None,
        others: Sequence[Callable[[int], Player]] = (),
        keep_history: bool = True,
        screenshots: Path | None = None,
        keep_last: Callable[[], str] | None = None,
    ) -> None:
        """`screenshots` is the folder for them; `keep_last` keeps the last seconds and says where."""
        self.world = world
        self.human = Human()
        self.player: Player = player or self.human
        self.logs = list(logs)
        self.slots = slots
        self.slot = 1
        self.mode = Mode.PLAYING
        self.speed = 1.0
        self.fast = False
        self.paint_every = 1
        """Of so many ticks one is painted while time runs; the others show the picture before."""
        self.seed, self.scene = 0, None  # type: int, str | None
        self.messages: deque[str] = deque(maxlen=8)
        """Notices for the person, oldest first; whoever shows them takes them out."""
        self._time, self._screenshots, self._keep_last = time, screenshots, keep_last
        self._others = tuple(others)
        self._next_other = 0
        if isinstance(player, Listed):  # a script or a recording: who took over can give back to it
            self._others, self._next_other = (lambda seed: player, *others), 1
        keep_history = keep_history and hasattr(world, "snapshot") and hasattr(world, "restore")
        self.history: History | None = History(world) if keep_history else None
        self._world_step = stepper(world)
        self._rewind: Rewind | None = None
        self._recall: list[int] = []
        self._recalled: Moment | None = None
        self._resume = Mode.PLAYING
        self._latched = 0
        self._phase = 0.0
        self.tick = 0
        self.frame: Frame

    def begin(self, seed: int = 0, scene: str | None = None) -> Frame:
        """Starts anew. Raises what the world raises for an unknown scene."""
        frame = self.world.reset(seed=seed) if scene is None else self.world.reset(seed=seed, scene=scene)
        self.seed, self.scene = seed, scene
        self._arrive(frame, ())
        return self.frame

    def advance(self, asked: Input) -> Frame:
        """One tick of the clock: obeys the commands, then steps the world as often as time wants."""
        if Command.REWIND not in asked.held:
            self._settle()
        for command, key in asked.commands:
            self._obey(command, key)
        if self.mode == Mode.RECALLING:
            self._recall_some()
        elif self._rewinding(Command.REWIND in asked.held):
            assert self._rewind is not None
            self.frame = self._rewind.back()
            self.tick = self._rewind.tick
        elif self.mode == Mode.PAUSED:
            if asked.asks(Command.ADVANCE):
                self._step(asked.action)
            self.frame = self.frame.painted()
        else:
            self._play(asked)
        return self.frame

    def step_once(self) -> Frame:
        """One step whatever the time does, as rollouts without a clock want it."""
        self._step(0)
        return self.frame

    def moment(self) -> Moment:
        """Where the session is now, as something that can be written down. Needs a world with states."""
        if self.history is None:
            raise ReverieError("this game has no states, so a moment of it cannot be kept")
        state = self.world.snapshot()
        return Moment(
            world=self.world.info.name,
            weights_sha256=self.world.info.weights_sha256,
            backend=self.world.info.backend,
            seed=self.seed,
            scene=self.scene,
            actions=tuple(self.history.actions),
            state_hash=state.hash(),
        )

    def _play(self, asked: Input) -> None:
        self.fast = Command.FAST_FORWARD in asked.held
        if self.fast:
            began = self._time() if self._time else 0.0
            for _ in range(FAST_STEPS):
                self._step(asked.action, paint=False)
                if self._time and self._time() - began > FAST_SECONDS:
                    break
            self.frame = self.frame.painted()
            return
        self._phase += self.speed
        if self._phase >= 1.0:
            self._phase -= 1.0
            # In slow motion most ticks do not step: a tap in one of them acts in the next that does.
            self._step(asked.action or self._latched, paint=(self.tick + 1) % self.paint_every == 0)
            self._latched = 0
        else:
            self._latched = asked.action or self._latched
            self.frame = self.frame.painted()  # a tick without a step has the time for it

    def _step(self, human: int, paint: bool = True) -> None:
        if isinstance(self.player, Listed):
            self.player.tick = self.tick
        # Whoever chooses by what the picture shows must choose the same on a slow machine.
        looks = not isinstance(self.player, Human | Listed)
        if looks:
            self.frame = self.frame.painted()
        action = self.player.act(human, self.frame.image)
        if self.player is not self.human and getattr(self.player, "done", False):
            self.messages.append(f"{self.player.name} has ended; you play")
            self.player = self.human
        self._act(action, paint or looks)

    def _act(self, action: int, paint: bool = True) -> None:
        was_over = self.frame.info.over
        self.frame = self._world_step(action, paint)
        self.tick += 1
        if self.history is not None:
            self.history.append(action, self.frame)
        for log in self.logs:
            log.tick(self.tick, action, self.frame)
        if self.frame.info.over and not was_over:
            self.messages.append("it is over: begin anew or go back (help shows the keys)")

    def _obey(self, command: Command, key: str) -> None:
        if command == Command.RESTART:
            self.begin(self.seed + 1)
            self.messages.append(f"a new start, seed {self.seed}")
        elif command == Command.PAUSE and self.mode in (Mode.PLAYING, Mode.PAUSED):
            self.mode = Mode.PLAYING if self.mode == Mode.PAUSED else Mode.PAUSED
        elif command == Command.ADVANCE and self.mode == Mode.PLAYING:
            self.mode = Mode.PAUSED
        elif command in (Command.SLOWER, Command.FASTER):
            at = SPEEDS.index(self.speed) + (1 if command == Command.FASTER else -1)
            self.speed = SPEEDS[min(max(at, 0), len(SPEEDS) - 1)]
            self._phase = 0.0
            self.messages.append(f"speed {100 * self.speed:g} %")
        elif command == Command.REWIND and self.history is None:
            self.messages.append("this game cannot go back")
        elif command == Command.PLAYER:
            self._switch_player()
        elif command == Command.SLOT and key.strip("[]").isdecimal():  # "[7]" is that of the number pad
            self.slot = int(key.strip("[]"))
            self.messages.append(self._slot_text())
        elif command in (Command.SAVE, Command.LOAD):
            self._save_or_load(command)
        elif command == Command.RESEED and self.mode in (Mode.PLAYING, Mode.PAUSED):
            self._reseed()
        elif command == Command.SCREENSHOT and self._screenshots is not None:
            self._screenshot(self._screenshots)
        elif command == Command.CLIP:
            self._clip()

    def _reseed(self) -> None:
        """An action of its own in a twin, so that it is recorded and taken back like any other."""
        if hasattr(self.world, "reseed_action"):
            self._act(self.world.reseed_action)
            self.messages.append("the dream begins again from the real game")
        else:
            self.messages.append("only a dream beside the real game can begin again from it")

    def _switch_player(self) -> None:
        """You, then each of the others in turn."""
        if self._next_other < len(self._others):
            self.player = self._others[self._next_other](self.seed + self.tick)
            self._next_other += 1
        else:
            self.player, self._next_other = self.human, 0
        self.messages.append("you play" if self.player is self.human else f"{self.player.name} plays")

    def _rewinding(self, held: bool) -> bool:
        """Whether this tick goes back; begins and ends rewinding."""
        if held and self.history is not None and self._rewind is None:
            self._resume = self.mode
            self._rewind = Rewind(self.world, self.history)
            self.mode = Mode.REWINDING
        elif not held and self._rewind is not None:
            assert self.history is not None
            went, self._rewind = self._rewind, None
            self.mode = self._resume
            if went.tick < self.history.tick:
                self.frame = self.history.seek(went.tick, went.near)
                for log in self.logs:
                    log.rewind(went.tick)
            else:
                self.frame = self.history.seek(went.tick)
            self.tick = went.tick
        return self._rewind is not None

    def _settle(self) -> None:
        """Ends rewinding before something else moves through time."""
        self._rewinding(False)

    def _save_or_load(self, command: Command) -> None:
        if self.slots is None or self.history is None:
            self.messages.append("this game has no save slots")
            return
        self._settle()
        try:
            if command == Command.SAVE and self.mode != Mode.RECALLING:
                self.slots.save(self.slot, self.moment(), self.world.snapshot(), self.frame.painted())
                self.messages.append(f"saved in slot {self.slot}")
            elif command == Command.LOAD:
                self._load()
        except ReverieError as err:
            self.messages.append(str(err))

    def _load(self) -> None:
        assert self.slots is not None
        moment, state, frame = self.slots.load(self.slot)
        if state is not None and frame is not None:
            self.world.restore(state)
            self.seed, self.scene = moment.seed, moment.scene
            self._arrive(frame, moment.actions)
            self.messages.append(f"slot {self.slot}: back at tick {self.tick}")
            return
        self.begin(moment.seed, moment.scene)  # it dreams the way there again, which gives the same bytes
        self._recall, self._recalled, self.mode = list(reversed(moment.actions)), moment, Mode.RECALLING
        self._recall_some()

    def _recall_some(self) -> None:
        began = self._time() if self._time else 0.0
        for _ in range(FAST_STEPS):
            if not self._recall:
                break
            action = self._recall.pop()
            self.frame = self._world_step(action, False)
            self.tick += 1
            assert self.history is not None
            self.history.append(action, self.frame)
            for log in self.logs:
                log.tick(self.tick, action, self.frame)
            if self._time and self._time() - began > FAST_SECONDS:
                break
        self.frame = self.frame.painted()
        if not self._recall:
            self._check_recalled()

    def _check_recalled(self) -> None:
        moment, self._recalled, self.mode = self._recalled, None, Mode.PAUSED
        assert moment is not None and self.slots is not None
        same = self.world.snapshot().hash() == moment.state_hash
        self.messages.append(
            f"slot {self.slot}: back at tick {self.tick}, paused"
            if same
            else f"slot {self.slot}: the way there came out differently on this machine ({moment.backend})"
        )

    @property
    def recall_left(self) -> int:
        """Ticks that are still to be dreamt again before a loaded slot is reached."""
        return len(self._recall)

    def _screenshot(self, folder: Path) -> None:
        """The picture as PNG, and beside it the moment in the form of a slot's file (`Slots`)."""
        stem = f"{getattr(self.world.info, 'name', 'game')}-{self.seed}-{self.tick}"
        # Another way may have led to the same tick.
        names = (stem if i == 0 else f"{stem}-{i}" for i in itertools.count())
        name = next(name for name in names if not (folder / f"{name}.png").exists())
        try:
            write_png(folder / f"{name}.png", self.frame.painted().image)
            if self.history is not None and self._rewind is None:
                write_json(folder / f"{name}.json", moment_to_json(self.moment()))
            self.messages.append(f"screenshot {folder / name}.png")
        except ReverieError as err:
            self.messages.append(str(err))

    def _clip(self) -> None:
        """The last half minute as a recording of its own."""
        self._settle()
        try:
            self.messages.append(
                self._keep_last() if self._keep_last else "the last seconds of this game cannot be kept"
            )
        except ReverieError as err:
            self.messages.append(str(err))

    def _slot_text(self) -> str:
        held = self.slots.tick_of(self.slot) if self.slots else None
        return f"slot {self.slot}: " + ("empty" if held is None else f"tick {held}")

    def _arrive(self, frame: Frame, actions: Sequence[int]) -> None:
        """The world is at a new moment: forget the way that led here before."""
        self._rewind, self._recall, self._recalled = None, [], None
        self.mode = Mode.PAUSED if self.mode == Mode.PAUSED else Mode.PLAYING
        self.frame, self.tick, self._latched = frame, len(actions), 0
        if self.history is not None:
            self.history.begin(frame, actions)
        for log in self.logs:
            log.start(self.seed, self.scene, actions, frame)
