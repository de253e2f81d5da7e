"""Video files by PyAV (extra `video`): live while playing, or rendered from a recording.

A live film is a fragmented MP4 with a key frame every second, so that what was written before a crash
plays. Encoding happens in a thread of its own; when it cannot follow, pictures are left out, never ticks.
"""

from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path
from queue import Full, Queue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.types import FPS, DataError, Frame, Image, ReverieError

QUEUE = 2 * FPS
AAC_DELAY = 1024
"""Samples by which the encoder's output is late."""
Sound = NDArray[np.int16]
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}


def sound_rate(world: Any) -> int:
    """Samples a second of a world's sound; 0 where it has none."""
    return int(getattr(world.info, "sound_rate", 0))


def _av() -> Any:
    try:
        import av
    except ImportError as err:
        raise ReverieError("video needs PyAV: pip install 'reverie[video]'") from err
    return av


def fitted(inner: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int]:
    """The largest (width, height) with the aspect of `inner` that `outer` holds, in whole pixels."""
    scale = min(outer[0] / inner[0], outer[1] / inner[1])
    return max(1, round(inner[0] * scale)), max(1, round(inner[1] * scale))


class VideoWriter:
    """An H.264 MP4, or an animated GIF, of pictures at 25 a second. Raises DataError where the disk refuses.

    With a `rate`, samples a second, it has sound as AAC beside them; a GIF has none. Pictures of another
    size than (width, height) are scaled smoothly with their aspect, between black bars.
    """

    def __init__(self, path: Path, width: int, height: int, rate: int = 0, live: bool = False) -> None:
        self._av, self.path = _av(), path
        self._size = (width - width % 2, height - height % 2)  # H.264 halves the colour planes
        self._gif = path.suffix.lower() == ".gif"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = "gif" if self._gif else None  # else FFmpeg tells by the name
            self._container = self._av.open(str(path), "w", kind, options=FRAGMENTED if live else {})
            self._stream = self._container.add_stream("gif" if self._gif else "libx264", rate=FPS)
            self._sound: Any = None
            if rate and not self._gif:
                self._sound = self._container.add_stream("aac", rate=rate, layout="stereo")
        except (OSError, ValueError, self._av.error.FFmpegError) as err:
            raise DataError(f"{path}: the video cannot be written ({err})") from err
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "rgb8" if self._gif else "yuv420p"
        self._stream.time_base = Fraction(1, FPS)
        if not self._gif:
            self._stream.gop_size = FPS
            preset = "ultrafast" if live else "medium"
            tune = {"tune": "zerolatency"} if live else {}
            self._stream.options = {"preset": preset, "crf": "18", "threads": "1", **tune}
        # A live film has no edit list to tell players of the encoder's delay: its sound begins so much early.
        self._rate, self._heard, self._early = rate, 0, AAC_DELAY if live else 0

    def write(self, image: Image, tick: int, sound: Sound | None = None) -> None:
        """One picture, shown from `tick` on, and the sound that ends with this tick: (samples, 2).

        Where ticks before it have not been told, it is as long as they are; what is missing is silence.
        """
        if self._sound is not None:
            self._write_sound(sound, (tick + 1) * (self._rate // FPS))
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = self._between_bars(frame).reformat(
            *self._size, format=self._stream.pix_fmt, interpolation="BICUBIC"
        )
        frame.pts, frame.time_base = tick, Fraction(1, FPS)
        self._mux(self._stream, frame)

    def _between_bars(self, frame: Any) -> Any:
        """The frame as large as it fits in, on black; itself where it has the film's aspect already."""
        width, height = fitted((frame.width, frame.height), self._size)
        if (width, height) == self._size:
            return frame
        canvas = np.zeros((self._size[1], self._size[0], 3), np.uint8)
        left, top = (self._size[0] - width) // 2, (self._size[1] - height) // 2
        scaled = frame.reformat(width, height, format="rgb24", interpolation="BICUBIC")
        canvas[top : top + height, left : left + width] = scaled.to_ndarray()
        return self._av.VideoFrame.from_ndarray(canvas, format="rgb24")

    def _write_sound(self, sound: Sound | None, end: int) -> None:
        """Samples up to `end`, so that sound and pictures have the same length at any moment."""
        line = np.zeros((max(0, end - self._heard), 2), np.int16)
        if sound is not None and len(line):
            part = sound[-len(line) :]
            line[len(line) - len(part) :] = part
        skipped = max(0, self._early - self._heard)
        self._heard, line = max(self._heard, end), line[skipped:]
        if len(line):
            frame = self._av.AudioFrame.from_ndarray(line.reshape(1, -1), format="s16", layout="stereo")
            frame.sample_rate, frame.time_base = self._rate, Fraction(1, self._rate)
            frame.pts = self._heard - len(line) - self._early
            self._mux(self._sound, frame)

    def close(self) -> None:
        """Writes what is still held back, and the end of the file."""
        try:
            self._mux(self._stream, None)
            if self._sound is not None:
                self._mux(self._sound, None)
            self._container.close()
        except (OSError, self._av.error.FFmpegError) as err:
            raise DataError(f"{self.path}: the video could not be finished ({err})") from err

    def _mux(self, stream: Any, frame: Any) -> None:
        try:
            for packet in stream.encode(frame):
                self._container.mux(packet)
        except (OSError, self._av.error.FFmpegError) as err:
            raise DataError(f"{self.path}: the video has stopped ({err})") from err


class LiveFilm:
    """Films what is shown, tick by tick, beside the game. `error` says why it stopped by itself."""

    def __init__(self, path: Path, width: int, height: int, rate: int = 0) -> None:
        self.path, self.error = path, None  # type: Path, str | None
        self._writer = VideoWriter(path, width, height, rate, live=True)
        self._queue: Queue[tuple[Image, int, Sound] | None] = Queue(QUEUE)
        self._silence = np.zeros((rate // FPS, 2), np.int16)
        self._waiting: list[Sound] = []
        """Sound of ticks whose picture was left out."""
        self._tick = 0
        self.left_out = 0
        self._thread = threading.Thread(target=self._run, name="film", daemon=True)
        self._thread.start()

    def show(self, frame: Frame, sound: Sound | None = None) -> None:
        """The picture of the next tick, and what is heard with it. Never waits."""
        self._waiting.append(self._silence if sound is None else sound)
        try:
            self._queue.put_nowait((frame.image, self._tick, np.concatenate(self._waiting)))
            self._waiting.clear()
        except Full:
            self.left_out += 1
        self._tick += 1

    def close(self) -> None:
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.1)
                self._thread.join()
            except Full:
                continue  # it is still encoding what waits

    def _run(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                self._writer.write(*item)
            self._writer.close()
        except DataError as err:
            self.error = str(err)
            while self._queue.get() is not None:  # so that `close` does not wait for ever
                pass
