"""The loudspeaker of a session: volume, mute, a device that may be missing or go away.

miniaudio (extra `sound`) is asked first, pygame's mixer next. Without a device the game is silent and says
so once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from game.keys import Command
from game.sound import CHANNELS, Hearing, Pull, Sound, SoundQueue, SpeakerError
from world_model.types import FPS, Frame

LOST_TICKS = 2 * FPS
"""Ticks of the clock without a pull after which a device counts as lost."""
VOLUME_STEP = 0.1
COMMANDS = (Command.MUTE, Command.LOUDER, Command.QUIETER)


class Device(Protocol):
    """Something that pulls sound from when it is made until it is closed."""

    def close(self) -> None: ...


class Speaker:
    """Told what is seen at each tick of the clock, it lets it be heard. Never raises, never waits for long.

    `open_device` is called with (pull, rate) when the first sound comes, None keeps silent; `say` gets what
    the person should know.
    """

    def __init__(
        self, say: Callable[[str], None], open_device: Callable[[Pull, int], Device] | None = None
    ) -> None:
        self.volume, self.muted = 1.0, False
        self.queue: SoundQueue | None = None
        self._say, self._open = say, open_device
        self._device: Device | None = None
        self._tried = False
        self._hearing = Hearing()
        self._pulls = self._unpulled = 0

    def prepare(self, frame: Frame) -> None:
        """Opens the device, if the world has sound: before the first tick, for that may take a moment."""
        if frame.audio is None or self._open is None or self._tried:
            return
        self._tried = True
        queue = SoundQueue(len(frame.audio) * FPS)
        try:
            self._device = self._open(queue.pull, queue.rate)
        except SpeakerError as err:
            self._say(f"no sound: {err}")
            return
        self.queue = queue
        queue.set_volume(0.0 if self.muted else self.volume)

    def hear(
        self, frame: Frame, tick: int, running: bool, speed: float = 1.0, slowed: float = 1.0
    ) -> Sound | None:
        """One tick of the clock; returns what is heard at full volume, for a film. See `Hearing.piece`;
        `slowed` below 1: the clock itself runs slower, as on a busy machine.
        """
        self.prepare(frame)
        piece = self._hearing.piece(frame, tick, running, speed)
        if self.queue is not None:
            if piece is None:
                self.queue.hush()
            else:
                self.queue.push(piece, slowed)
            self._check()
        return piece

    def obey(self, command: Command) -> None:
        """Mute, louder, quieter."""
        if self.queue is None:
            self._say("there is no sound")
            return
        if command == Command.MUTE:
            self.muted = not self.muted
        else:
            change = VOLUME_STEP if command == Command.LOUDER else -VOLUME_STEP
            self.volume, self.muted = min(max(self.volume + change, 0.0), 1.0), False
        self.queue.set_volume(0.0 if self.muted else self.volume)
        self._say("muted" if self.muted else f"volume {100 * self.volume:.0f} %")

    def close(self) -> None:
        """Ends the sound."""
        device, self._device, self.queue = self._device, None, None
        if device is not None:
            device.close()

    def lines(self) -> list[str]:
        """What is said of the sound when the session ends; nothing where nothing went wrong."""
        queue = self.queue
        if queue is None or not queue.underruns + queue.overruns:
            return []
        return [f"sound: ran dry {queue.underruns} times, ran over {queue.overruns} times"]

    def _check(self) -> None:
        """Whether the device still pulls."""
        assert self.queue is not None
        pulls = self.queue.pulls
        self._unpulled = self._unpulled + 1 if pulls == self._pulls else 0
        self._pulls = pulls
        if self._unpulled >= LOST_TICKS:
            self._say("the sound device is gone; the game goes on without sound")
            device, self._device, self.queue = self._device, None, None
            if device is not None:
                # A device that hangs must not hold up the game.
                threading.Thread(target=device.close, name="sound-close", daemon=True).start()


def default_device(pull: Pull, rate: int) -> Device:
    """miniaudio where it is installed and finds a device, else pygame's mixer. Raises SpeakerError."""
    try:
        return MiniaudioDevice(pull, rate)
    except SpeakerError as first:
        from game.mixer import MixerDevice

        try:
            return MixerDevice(pull, rate)
        except SpeakerError as second:
            raise SpeakerError(f"{first}; {second}") from second


class MiniaudioDevice:
    """Playback by miniaudio, which calls from a thread of its own. Raises SpeakerError."""

    def __init__(self, pull: Pull, rate: int, **options: Any) -> None:
        """`options` are `miniaudio.PlaybackDevice`'s own, as another backend."""
        try:
            import miniaudio
        except ImportError as err:
            raise SpeakerError("miniaudio is not installed: pip install 'reverie[sound]'") from err
        self._errors = (miniaudio.MiniaudioError, OSError)
        try:
            self._device = miniaudio.PlaybackDevice(
                miniaudio.SampleFormat.SIGNED16, CHANNELS, rate, buffersize_msec=40, **options
            )
            stream = _stream(pull)
            next(stream)
            self._device.start(stream)
        except self._errors as err:
            raise SpeakerError(f"no device for miniaudio ({err})") from err

    def close(self) -> None:
        with suppress(*self._errors):  # it may be gone already
            self._device.close()


def _stream(pull: Pull) -> Any:
    """The generator that miniaudio asks: numbers of frames come in, bytes go out."""
    count = yield b""
    while True:
        count = yield pull(count).tobytes()
