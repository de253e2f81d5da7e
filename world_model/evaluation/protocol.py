"""What is evaluated: anything that dreams a batch of rollouts behind `reset` and `step`.

B rollouts, T context frames, H x W pictures. Worlds, baselines and deliberately broken dreamers all
answer this, so that every figure comes from the same code.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from world_model.types import WorldError

Images = NDArray[np.uint8]
"""(B, H, W, 3) RGB."""

Ints = NDArray[np.int64]


class Dreamer(Protocol):
    """A batch of dreams at once.

    More methods are used where a dreamer has them: `context_predictions(obs, act, phase)`, uint8
    (B, T - 1, H, W, 3), the teacher-forced predictions of obs[:, 1:]; `reconstruct(obs)`, uint8
    (B, T, H, W, 3), what the decoder makes of real frames (the decode ceiling); `advance(act)`, a tick
    that is not painted; `heard`, int16 (B, samples, channels), the sound of the present tick, None in a
    world without; `reseeded(seed)`, the same world with other chances; and `reset_clips(clips)` in place of
    `reset`, for references that are told more than a world is (the real game: the seed; persistence: the
    real frames).
    """

    name: str

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        """Starts from obs uint8 (B, T, H, W, 3) and act (B, T - 1); phase (B,) is the clock position of
        the first transition. Returns the last context frame as the dream sees it."""
        ...

    def step(self, act: Ints) -> Images:
        """The frames after act (B,)."""
        ...


@dataclass(frozen=True, eq=False)
class Clip:
    """A real stretch of play: `context` frames that are shown, then the frames to be imagined.

    frames: uint8 (context + ticks, H, W, 3), memory-mapped where it comes from an episode. actions:
    (context + ticks - 1,). pose: (context + ticks, 3) or None. phase: clock position of actions[0].
    episode: the unit over which intervals are resampled. seed and history: what the source was reset
    with, and the actions (start,) from there to frames[0], so that the source can be played again; None
    where it is not known. sound: int16 (context + ticks - 1, samples, channels). labels, variables: as in
    an episode, (context + ticks, ...). All three None where the episode has none.
    """

    frames: NDArray[np.uint8]
    actions: NDArray[Any]
    pose: NDArray[np.float32] | None
    phase: int
    context: int
    episode: str
    start: int
    seed: int | None = None
    history: NDArray[Any] | None = None
    sound: NDArray[np.int16] | None = None
    labels: NDArray[np.int16] | None = None
    variables: NDArray[np.int32] | None = None

    @property
    def ticks(self) -> int:
        return len(self.frames) - self.context

    @property
    def future(self) -> NDArray[Any]:
        """The actions from the last context frame on, (ticks,)."""
        return self.actions[self.context - 1 :]

    def real(self, tick: int) -> NDArray[np.uint8]:
        """The real frame `tick` ticks after the last context frame (H, W, 3)."""
        return np.asarray(self.frames[self.context - 1 + tick])


def batched(clips: Sequence[Clip], size: int) -> Iterator[list[Clip]]:
    """At most `size` neighbouring clips of equal length at a time, to bound memory."""
    for _, group in groupby(clips, key=lambda c: (c.context, c.ticks)):
        same = list(group)
        for i in range(0, len(same), size):
            yield same[i : i + size]


def context_of(clips: Sequence[Clip]) -> tuple[NDArray[np.uint8], Ints, Ints]:
    """obs uint8 (B, T, H, W, 3), act (B, T - 1) and phase (B,) of a batch, as `reset` takes them."""
    n = clips[0].context
    obs = np.stack([c.frames[:n] for c in clips])
    act = np.stack([np.asarray(c.actions[: n - 1], np.int64) for c in clips])
    return obs, act, np.array([c.phase for c in clips], np.int64)


def reals(clips: Sequence[Clip], tick: int) -> Images:
    """Real frames (B, H, W, 3) of one tick; tick 0 is the last context frame."""
    return np.stack([c.real(tick) for c in clips])


def dream(
    dreamer: Dreamer,
    clips: Sequence[Clip],
    actions: Ints | None = None,
    painted: Container[int] | None = None,
) -> Iterator[Images]:
    """Yields the dream's frames (B, H, W, 3) at ticks 0 (last context frame), 1, 2, ...

    Feeds the recorded actions, or `actions` (B, ticks). With `painted` only these ticks need a picture:
    the others are dreamed without, where the dreamer offers `advance`, and the last frame painted stands
    for them. Raises WorldError for a dreamer that returns anything but uint8 pictures of the right
    shape: a broken frame never gets a score.
    """
    shape = (len(clips), *clips[0].frames.shape[1:])
    if actions is None:
        actions = np.stack([np.asarray(c.future, np.int64) for c in clips])
    told = getattr(dreamer, "reset_clips", None)
    first = dreamer.reset(*context_of(clips)) if told is None else told(clips)
    frames = check_frames(dreamer, first, shape)
    yield frames
    blind = getattr(dreamer, "advance", None)
    for tick, column in enumerate(actions.T, 1):
        if painted is not None and tick not in painted and blind is not None:
            blind(column)
        else:
            frames = check_frames(dreamer, dreamer.step(column), shape)
        yield frames


def check_frames(dreamer: Dreamer, frames: Any, shape: tuple[int, ...]) -> Images:
    """Returns `frames` if they are uint8 of `shape`; raises WorldError that says what came instead."""
    frames = np.asarray(frames)
    if np.issubdtype(frames.dtype, np.floating) and not np.isfinite(frames).all():
        raise WorldError(f"{dreamer.name} dreamed a picture with NaN or infinity in it")
    if frames.dtype != np.uint8 or frames.shape != shape:
        raise WorldError(
            f"{dreamer.name} dreamed {frames.dtype} {frames.shape}; expected uint8 pictures of shape {shape}"
        )
    return frames
