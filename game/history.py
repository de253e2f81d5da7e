"""The way from a start to the present tick, and how to come back to any tick of it exactly.

Not every state is kept: anchors, some ticks apart, are restored and stepped forward with the recorded
actions, which gives the same bytes. Thinned by a budget of bytes, so memory is bounded. Ticks that nobody
sees on the way are not painted, where the world can leave that out.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from world_model.types import FPS, Frame

ACTION = "H"
"""Type code of an array of actions: they are kept from the start of a session on."""

GRAIN = FPS
"""Ticks between fresh anchors."""

HORIZON = 6 * 60 * FPS
"""Ticks for which anchors are kept: six minutes."""

RECENT = 2 * GRAIN
"""The last pictures are kept, so that rewinding begins at once."""


def stepper(world: Any) -> Callable[[int, bool], Frame]:
    """`step(action, paint)` of a world; one without `paint` paints every tick, asked or not."""

    def step(action: int, paint: bool) -> Frame:
        frame: Frame = world.step(action) if paint else world.step(action, paint=False)
        return frame

    def paint_all(action: int, paint: bool) -> Frame:
        frame: Frame = world.step(action)
        return frame

    return step if hasattr(world, "paint") else paint_all


@dataclass(frozen=True)
class Anchor:
    """A state of the world at a tick, with the picture that was shown."""

    state: Any
    frame: Frame

    @property
    def nbytes(self) -> int:
        return int(self.state.nbytes) + self.frame.image.nbytes


class History:
    """Actions since the start, anchors, last pictures of one timeline. `budget` bounds the anchors' bytes."""

    def __init__(self, world: Any, budget: int = 120 << 20) -> None:
        self._world, self._budget = world, budget
        self._step = stepper(world)
        self.actions: array[int] = array(ACTION)
        self._anchors: dict[int, Anchor] = {}
        self._bytes = 0
        self.recent: deque[Frame] = deque(maxlen=RECENT)
        """Frames of the ticks that end with the present one."""

    @property
    def tick(self) -> int:
        """Ticks since the start of the timeline."""
        return len(self.actions)

    @property
    def floor(self) -> int:
        """The earliest tick that can be reached."""
        return min(self._anchors)

    @property
    def nbytes(self) -> int:
        """Bytes of all anchors and pictures held."""
        return self._bytes + sum(f.image.nbytes for f in self.recent)

    def begin(self, frame: Frame, actions: Sequence[int] = ()) -> None:
        """A new timeline whose present is the world's present, after `actions`."""
        self.actions = array(ACTION, actions)
        self._anchors.clear()
        self.recent.clear()
        self._bytes = 0
        self.recent.append(frame)
        self._keep(frame)

    def append(self, action: int, frame: Frame) -> None:
        """The world stepped with `action` and showed `frame`."""
        self.actions.append(action)
        self.recent.append(frame)
        if self.tick % GRAIN == 0:
            self._keep(frame)
            self._thin()

    def anchor_before(self, tick: int) -> int:
        """The latest anchor at or before `tick`."""
        ticks = sorted(self._anchors)
        return ticks[max(bisect_right(ticks, tick) - 1, 0)]

    def anchor(self, tick: int) -> Anchor:
        return self._anchors[tick]

    def seek(self, tick: int, near: dict[int, Anchor] | None = None) -> Frame:
        """Makes `tick` the world's present and forgets what came after it. Returns its picture.

        `near` holds more anchors than the history keeps. Raises ValueError for a tick out of reach.
        """
        if not self.floor <= tick <= self.tick:
            raise ValueError(f"tick {tick} is out of reach: {self.floor} to {self.tick} can be reached")
        known = self._anchors | (near or {})
        start = max(t for t in known if t <= tick)
        self._world.restore(known[start].state)
        frame = known[start].frame
        for t in range(start, tick):
            frame = self._step(self.actions[t], False)
        frame = frame.painted()
        self._cut(tick, frame)
        return frame

    def _cut(self, tick: int, frame: Frame) -> None:
        gone = self.tick - tick
        kept = list(self.recent)[: max(len(self.recent) - gone, 0)] or [frame]
        self.recent = deque(kept, maxlen=RECENT)
        del self.actions[tick:]
        self.drop_anchors_after(tick)
        if tick % GRAIN == 0 and tick not in self._anchors:
            self._keep(frame)

    def drop_anchors_after(self, tick: int) -> None:
        """Nobody goes there again once the time before it is taken up."""
        for later in [t for t in self._anchors if t > tick]:
            self._bytes -= self._anchors.pop(later).nbytes

    def _keep(self, frame: Frame) -> None:
        anchor = Anchor(self._world.snapshot(), frame)
        self._anchors[self.tick] = anchor
        self._bytes += anchor.nbytes

    def _thin(self) -> None:
        """Drops what is too old, then whatever leaves the smallest gap for its age."""
        for old in [t for t in self._anchors if t < self.tick - HORIZON]:
            self._bytes -= self._anchors.pop(old).nbytes
        while self._bytes > self._budget and len(self._anchors) > 2:
            ticks = sorted(self._anchors)
            around = zip(ticks, ticks[1:], ticks[2:], strict=False)
            gaps = {b: (c - a) / (self.tick - b + 200 * GRAIN) for a, b, c in around}
            victim = min(gaps, key=lambda t: (gaps[t], t))
            self._bytes -= self._anchors.pop(victim).nbytes


class Rewind:
    """Goes back tick by tick, smoothly: while one stretch is shown backwards, the one before it is
    computed forwards, a few steps a tick. Pictures are painted as they are shown. Then
    `history.seek(rewind.tick, rewind.near)` resumes play.
    """

    STEPS = 2
    """World steps done in the background of one tick."""

    def __init__(self, world: Any, history: History) -> None:
        self._world, self._history = world, history
        self._step = stepper(world)
        self.tick = history.tick
        self.near: dict[int, Anchor] = {}
        shown = list(history.recent)
        self._ready: list[Frame] = shown[:-1]
        """Frames of the ticks just before `tick`, oldest first."""
        self._frame = shown[-1].painted()
        self._target = self.tick - len(self._ready)
        """The earliest tick whose frame is ready; the stretch before it is built next."""
        self._target_start = self._target
        self._built: list[Frame] | None = None
        """The stretch under construction, from an anchor on."""

    def back(self) -> Frame:
        """The picture one tick earlier; the same one again where it is not ready, or at the earliest."""
        self._build()
        if self._ready:
            self._frame = self._ready.pop().painted()
            self.tick -= 1
            self._history.drop_anchors_after(self.tick)
            for later in [t for t in self.near if t > self.tick]:
                del self.near[later]
        return self._frame

    def _build(self) -> None:
        if self._built is None and not self._begin():
            return
        assert self._built is not None
        for _ in range(self.STEPS):
            at = self._target_start + len(self._built)
            if at >= self._target:
                break
            frame = self._step(self._history.actions[at - 1], False)
            if at % (2 * GRAIN) == 0:
                self.near[at] = Anchor(self._world.snapshot(), frame)
            self._built.append(frame)
        if self._target_start + len(self._built) == self._target:
            self._ready, self._built = self._built + self._ready, None
            self._target = self._target_start

    def _begin(self) -> bool:
        """Starts on the stretch before `_target`, in time but not earlier: its pictures take memory."""
        if self._target <= self._history.floor:
            return False
        start = self._history.anchor_before(self._target - 1)
        if len(self._ready) > (self._target - start) / self.STEPS + 2 * GRAIN:
            return False
        anchor = self._history.anchor(start)
        self._world.restore(anchor.state)
        self._built, self._target_start = [anchor.frame], start
        return True
