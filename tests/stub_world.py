"""A world that needs no weights: it paints its action, its tick and all it has done into the picture."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from game.keys import Command, Input
from game.loop import HudState
from world_model.types import FPS, Action, Frame, FrameInfo, Image, WorldError, WorldInfo

ACTIONS = (
    Action("idle"),
    Action("forward", ("up",)),
    Action("back", ("down",)),
    Action("left", ("left",)),
    Action("right", ("right",)),
    Action("forward_left", ("up", "left")),
    Action("forward_right", ("up", "right")),
)
FORWARD, BACK, LEFT, RIGHT = 1, 2, 3, 4


@dataclass(frozen=True)
class StubState:
    seed: int
    scene: int
    tick: int
    digest: int
    image: Image
    nbytes: int

    def hash(self) -> str:
        return hashlib.sha256(repr((self.seed, self.scene, self.tick, self.digest)).encode()).hexdigest()


class StubWorld:
    """`image[0, 0]` is (action, tick % 256, seed % 256); the rest depends on all actions so far. It is over
    after `lasts` ticks."""

    def __init__(
        self, name: str = "stub", weights: str = "aa" * 32, state_bytes: int = 1000, lasts: int = 10**9
    ) -> None:
        self.actions = ACTIONS
        scenes = ("hall", "yard")
        self.info = WorldInfo(name, 32, 20, FPS, 1, scenes, "MIT", {}, {}, weights, "cpu-stub-1")
        self.steps = self.painted = 0
        self._bytes, self._lasts = state_bytes, lasts
        self._state: StubState | None = None
        self._last: Image

    def reset(self, seed: int = 0, scene: str | None = None, context: object = None) -> Frame:
        at = seed % 2 if scene is None else self.info.scenes.index(scene)
        return self._show(seed, at, 0, 0, (1 + seed * 7 + at) % 2**32)

    def step(self, action: int, paint: bool = True) -> Frame:
        if not 0 <= action < len(self.actions):
            raise ValueError(f"action {action} is out of range")
        s = self.state
        self.steps += 1
        digest = (s.digest * 6364136223 + action + 1) % 2**32
        return self._show(s.seed, s.scene, s.tick + 1, action, digest, paint)

    def paint(self, state: StubState | None = None) -> Frame:
        s = state or self.state
        return Frame(s.image.copy(), None, FrameInfo(s.tick))

    @property
    def state(self) -> StubState:
        assert self._state is not None, "reset comes first"
        return self._state

    def snapshot(self) -> StubState:
        return self.state

    def restore(self, state: StubState) -> None:
        self._state = state

    @property
    def memory(self) -> SimpleNamespace:
        thumbnail = np.full((40, 64, 3), 90, np.uint8)
        frames = tuple(SimpleNamespace(thumbnail=thumbnail, age=30 * i, uses=i) for i in range(5))
        return SimpleNamespace(window=min(self.state.tick, 16), size=16, keyframes=frames)

    def _show(self, seed: int, scene: int, tick: int, action: int, digest: int, paint: bool = True) -> Frame:
        image = _picture(seed, tick, action, digest)
        self._state = StubState(seed, scene, tick, digest, image, self._bytes)
        ms = {"trunk": 3.0, "head": 2.0, "decode": 1.0, "total": 6.0}
        info = FrameInfo(tick, ms, (0, 2), painted=paint, over=tick >= self._lasts)
        if paint:
            return Frame(self._paint(image), None, info)
        return Frame(self._last.copy(), None, info, lambda: self._paint(image))

    def _paint(self, image: Image) -> Image:
        self.painted, self._last = self.painted + 1, image
        return image.copy()


def _picture(seed: int, tick: int, action: int, digest: int) -> Image:
    image = np.full((20, 32, 3), digest % 251, np.uint8)
    image[0, 0] = action, tick % 256, seed % 256
    return image


class PackingWorld(StubWorld):
    """A world whose state can be written down."""

    def pack_state(self, state: StubState) -> bytes:
        action = int(state.image[0, 0, 0])
        return json.dumps([state.seed, state.scene, state.tick, state.digest, action]).encode()

    def unpack_state(self, data: bytes) -> StubState:
        try:
            seed, scene, tick, digest, action = json.loads(data)
        except ValueError as err:
            raise WorldError("the state is broken") from err
        return StubState(seed, scene, tick, digest, _picture(seed, tick, action, digest), 1000)


class FakeTime:
    """Time that passes only by sleeping, by `spend`, and a little with every look at it."""

    def __init__(self, tick: float = 1e-5) -> None:
        self.now, self.tick = 100.0, tick
        self.slept: list[float] = []

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += seconds

    def spend(self, seconds: float) -> None:
        self.now += seconds


class FakeFront:
    """A front end that plays a script of inputs, then quits, and keeps what it was shown."""

    def __init__(self, script: list[Input]) -> None:
        self.script = list(script)
        self.shown: list[Frame] = []
        self.events: list[str] = []
        self.states: list[HudState] = []

    def poll(self) -> Input:
        self.events.append("poll")
        return self.script.pop(0) if self.script else press(Command.QUIT)

    def draw(self, frame: Frame, hud: HudState) -> None:
        self.events.append("draw")
        self.shown.append(frame)

    def flip(self) -> None:
        self.events.append("flip")

    def close(self) -> None:
        self.events.append("close")


def press(command: Command, key: str = "", action: int = 0) -> Input:
    return Input(action, ((command, key),))


def hold(command: Command, action: int = 0) -> Input:
    return Input(action, (), frozenset({command}))
