"""From the sound of a tick to the loudspeaker: what is to be heard, a bounded queue, a device that pulls.

`Hearing` follows the session: a tick of the clock is heard as it is seen. Slow motion sounds as a slowed tape
does, longer and lower, because then a shot is still heard in the picture that shows it. Pause, rewind, fast
forward and the way back to a saved moment are silent: sound played backwards or eight times too fast tells a
person nothing. `SoundQueue` lies between two clocks that never agree, the game's and the device's. Sounds are
int16 (samples, 2).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from world_model.types import Frame, ReverieError

Sound = NDArray[np.int16]
Pull = Callable[[int], Sound]
"""How a device asks for so many samples."""

CHANNELS = 2
CUSHION = 0.1
"""Seconds that the queue keeps in store: what a late tick may cost before it is heard."""
ROOM = 2.5
"""Cushions in the queue at most; what is older is given up."""
FADE = 0.008
"""Seconds from silence to full loudness and back."""
DECAY = 0.0015
"""Seconds in which a sound that breaks off dies away."""
MAX_BEND = 0.005
"""Most by which the queue plays faster or slower to keep its cushion: a twelfth of a semitone, unheard."""
CALM = 0.5
"""Seconds over which the store is averaged before the rate follows it."""
STEADY = 0.25
"""Share of a cushion off the mark at which the rate bends most."""


class SpeakerError(ReverieError):
    """No sound device can be opened."""


class Hearing:
    """One piece of sound for each tick of the clock, in step with what is seen."""

    def __init__(self) -> None:
        self._tick, self._speed = -1, 1.0
        self._left: NDArray[np.float32]
        """What was imagined but not heard yet; before it lies the last value that was."""
        self._at: float
        self._forget()

    def piece(self, frame: Frame, tick: int, running: bool, speed: float = 1.0) -> Sound | None:
        """The sound of this tick of the clock; None where nothing is to be heard.

        tick: the session's; running: whether it plays forwards, at `speed`.
        """
        steps, self._tick = tick - self._tick, tick
        if frame.audio is None or not running or steps not in (0, 1) or speed != self._speed:
            self._forget()
        self._speed = speed
        if frame.audio is None or not running or steps not in (0, 1):
            return None
        if steps:
            self._left = np.concatenate((self._left[int(self._at) :], frame.audio.astype(np.float32)))
            self._at -= int(self._at)
        piece, self._at = bend(self._left, self._at, speed, len(frame.audio))
        return None if len(piece) < len(frame.audio) else np.round(piece).astype(np.int16)

    def _forget(self) -> None:
        self._left, self._at = np.zeros((1, CHANNELS), np.float32), 0.0


class SoundQueue:
    """Pushed to by the game, pulled from by the device, each at its own rate. Safe between two threads.

    Plays once a cushion is in store. What breaks off is faded, never cut; `underruns` counts how often the
    store ran dry, `overruns` how often it ran over.
    """

    def __init__(self, rate: int, cushion: float = CUSHION) -> None:
        self.rate = rate
        self.underruns = self.overruns = self.pulls = 0
        self._cushion, self._lock = cushion * rate, threading.Lock()
        self._store = np.zeros((0, CHANNELS), np.float32)
        self._at = 0.0
        self._mean = self._cushion
        self._playing = self._hushing = False
        self._gain, self._volume = 0.0, 1.0
        self._last = np.zeros(CHANNELS, np.float32)
        """The last value that the device was given."""

    @property
    def seconds(self) -> float:
        """In store now."""
        return (len(self._store) - self._at) / self.rate

    def set_volume(self, volume: float) -> None:
        """From 0 to 1; reached by a fade."""
        self._volume = min(max(volume, 0.0), 1.0)

    def push(self, sound: Sound, slowed: float = 1.0) -> None:
        """The next piece. `slowed` below 1: the clock runs so much slower, and the piece is stretched."""
        values = sound.astype(np.float32)
        if slowed < 1:
            padded = np.concatenate((values, values[-1:]))
            values, _ = bend(padded, 0.0, slowed, round(len(values) / slowed))
        with self._lock:
            if self._hushing:  # time runs again before the fade has ended
                self._clear()
            self._store = np.concatenate((self._store[int(self._at) :], values))
            self._at -= int(self._at)
            if len(self._store) > ROOM * self._cushion:
                self._give_up()

    def hush(self) -> None:
        """Fades out and forgets what is in store; the next push begins anew. No underrun."""
        with self._lock:
            self._hushing = self._playing
            if not self._playing:
                self._clear()

    def pull(self, count: int) -> Sound:
        """The next `count` samples for the device; never waits."""
        with self._lock:
            self.pulls += 1
            if not self._playing and not self._hushing and len(self._store) >= self._cushion:
                self._playing, self._mean, self._gain = True, float(len(self._store)), 0.0
            out = np.zeros((0, CHANNELS), np.float32)
            if self._playing:
                out, self._at = bend(self._store, self._at, self._step(count), count)
                out = out * self._ramp(len(out))[:, None]
                if self._hushing and self._gain == 0:
                    self._clear()
                elif len(out) < count:
                    self.underruns += not self._hushing
                    self._clear()
            out = self._die_away(out, count)
            self._last = out[-1] if count else self._last
            return np.round(out).clip(-32768, 32767).astype(np.int16)

    def _step(self, count: int) -> float:
        """How fast to read: a little faster where more is in store than should be."""
        share = min(1.0, count / (CALM * self.rate))
        self._mean += share * (len(self._store) - self._at - self._mean)
        off = (self._mean - self._cushion) / (STEADY * self._cushion)
        return 1 + MAX_BEND * float(np.clip(off, -1, 1))

    def _ramp(self, count: int) -> NDArray[np.float32]:
        """The loudness of the next samples, on its way to what is wanted."""
        wanted = 0.0 if self._hushing else self._volume
        way = (np.arange(count, dtype=np.float32) + 1) / (FADE * self.rate)
        gains = self._gain + np.sign(wanted - self._gain) * np.minimum(way, abs(wanted - self._gain))
        if count:
            self._gain = wanted if gains[-1] == np.float32(wanted) else float(gains[-1])
        return np.asarray(gains, np.float32)

    def _die_away(self, out: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        """Fills up with the last value, which fades: a sound that breaks off must not click."""
        if len(out) == count:
            return out
        last = out[-1] if len(out) else self._last
        fade = np.exp(-(np.arange(count - len(out)) + 1) / (DECAY * self.rate)).astype(np.float32)
        return np.concatenate((out, fade[:, None] * last))

    def _give_up(self) -> None:
        """Goes on from nearer the end, faded across."""
        keep, fade = int(self._cushion), int(FADE * self.rate)
        old, new = self._store[:fade], self._store[-keep:].copy()
        if self._playing:
            share = (np.arange(fade, dtype=np.float32) + 1)[:, None] / fade
            new[:fade] = (1 - share) * old + share * new[:fade]
            self.overruns += 1
        self._store, self._at, self._mean = new, 0.0, float(keep)

    def _clear(self) -> None:
        self._store, self._at = self._store[:0], 0.0
        self._playing = self._hushing = False


def bend(
    values: NDArray[np.float32], at: float, step: float, count: int
) -> tuple[NDArray[np.float32], float]:
    """Reads (count, 2) values at at, at + step, at + 2 step ..., linearly between neighbours, or as many as
    there are; and where to read next.
    """
    there = max(0, int(np.ceil((len(values) - 1 - at) / step - 1e-9)))
    count = min(count, there)
    if count == 0:
        return np.zeros((0, CHANNELS), np.float32), at
    where = at + step * np.arange(count)
    low = where.astype(int)
    share = (where - low).astype(np.float32)[:, None]
    return (1 - share) * values[low] + share * values[low + 1], at + step * count
