"""Events in pictures and sound, tick by tick: shots heard, flashes seen, and whether the two agree.

T ticks; sound is int16 (T, samples, channels) or (T, samples), a tick's samples in a row; pictures are
uint8 (T, H, W, 3). A box is x, y, width, height in pixels. An event is True in a bool array (T,).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.spectrum import FLOOR, mel_bands

Box = tuple[int, int, int, int]
Events = NDArray[np.bool_]

BLOCKS = 6
"""Blocks in which the loudness of a tick is measured, of some 7 ms each."""
FULL_SCALE = 32768.0
MEL_WINDOW = 512
REFRACTORY = 3
"""Ticks after an onset in which no other can begin: a bang rings on."""


def loudness(sound: NDArray[np.int16]) -> NDArray[np.float64]:
    """Root mean square of each block: (T, BLOCKS), full scale 1. Samples over are left out."""
    mono = _mono(sound)
    size = mono.shape[1] // BLOCKS
    blocks = mono[:, : size * BLOCKS].reshape(len(mono), BLOCKS, size)
    return np.asarray(np.sqrt((blocks**2).mean(-1)))


def sound_onsets(sound: NDArray[np.int16], rise: float = 0.15, quiet: int = 6) -> Events:
    """Ticks in which a bang begins: a block louder by `rise` (full scale 1) than the `quiet` before it.

    Loud and sudden is all this asks for; other loud sounds of a game are told from shots by nothing.
    """
    level = loudness(sound).ravel()
    before = np.concatenate([np.zeros(quiet), level])
    floor = np.lib.stride_tricks.sliding_window_view(before, quiet)[: len(level)].mean(-1)
    return _first(((level - floor) > rise).reshape(len(sound), BLOCKS).any(1))


def flash_onsets(pictures: NDArray[np.uint8], box: Box, rise: float = 25.0) -> Events:
    """Ticks whose picture has become brighter than the one before by `rise` of 255 within `box`.

    The first picture has none before it and no onset.
    """
    luma = crop(pictures, box).astype(np.float64).mean((1, 2, 3))
    return _first(np.concatenate([[False], np.diff(luma) > rise]))


def _first(hot: Events) -> Events:
    """Keeps an event, and drops those within REFRACTORY ticks after it."""
    events = np.zeros(len(hot), bool)
    last = -REFRACTORY - 1
    for tick in np.flatnonzero(hot).tolist():
        if tick - last > REFRACTORY:
            events[tick], last = True, tick
    return events


def onset_f1(found: Events, true: Events, tolerance: int = 1) -> float:
    """F1 of events matched one to one within `tolerance` ticks, 0 to 1; 1 when neither has any."""
    a, b = np.flatnonzero(found), np.flatnonzero(true)
    if len(a) + len(b) == 0:
        return 1.0
    matched = i = j = 0
    while i < len(a) and j < len(b):  # both sorted: matching the earliest pair first is best
        if abs(int(a[i]) - int(b[j])) <= tolerance:
            matched, i, j = matched + 1, i + 1, j + 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return 2 * matched / (len(a) + len(b))


def log_mel(sound: NDArray[np.int16], rate: int = 22050) -> NDArray[np.float64]:
    """Mel spectrum (bands, windows) of the whole sound, dB below full scale, floored at -60 dB."""
    flat = _mono(sound).ravel()
    flat = np.pad(flat, (0, max(0, MEL_WINDOW - len(flat))))
    windows = np.lib.stride_tricks.sliding_window_view(flat, MEL_WINDOW)[:: MEL_WINDOW // 4]
    taper = np.hanning(MEL_WINDOW + 1)[:-1]
    power = np.abs(np.fft.rfft(windows * taper, axis=1)) ** 2 / MEL_WINDOW
    return np.asarray(10 * np.log10(mel_bands(rate, MEL_WINDOW) @ power.T + FLOOR**2))


def log_mel_distance(a: NDArray[np.int16], b: NDArray[np.int16], rate: int = 22050) -> float:
    """Mean absolute difference of two log-mel spectra in dB. Raises ValueError for unequal lengths."""
    if a.shape != b.shape:
        raise ValueError(f"sounds of shapes {a.shape} and {b.shape} cannot be compared; cut them alike")
    return float(np.abs(log_mel(a, rate) - log_mel(b, rate)).mean())


def log_mel_scores(
    sound: NDArray[np.int16], true: NDArray[np.int16], seed: int = 0, rate: int = 22050
) -> dict[str, float]:
    """Distance in dB of `sound` to `true`, beside that of silence and of the true ticks shuffled."""
    shuffled = np.random.default_rng(seed).permutation(true)
    return {
        "dream": log_mel_distance(sound, true, rate),
        "silence": log_mel_distance(np.zeros_like(true), true, rate),
        "shuffled": log_mel_distance(shuffled, true, rate),
    }


def picture_sound_offset(seen: NDArray[Any], heard: NDArray[Any], reach: int = 12) -> int:
    """Ticks by which `heard` comes after `seen` (negative: before), where their correlation peaks.

    Both (T,): events or strengths. Ties go to the smallest offset. Raises ValueError when one is constant
    or shorter than `reach` ticks.
    """
    a, b = (np.asarray(x, np.float64) - np.asarray(x, np.float64).mean() for x in (seen, heard))
    if len(a) != len(b) or len(a) <= reach or not (a.any() and b.any()):
        raise ValueError(f"an offset needs two rows of events of one length above {reach}, none constant")

    def likeness(shift: int) -> float:
        early, late = (a, b) if shift >= 0 else (b, a)
        return float(early[: len(a) - abs(shift)] @ late[abs(shift) :])

    shifts = sorted(range(-reach, reach + 1), key=abs)
    return max(shifts, key=lambda shift: round(likeness(shift), 9))


def crop(pictures: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """The part of pictures (..., H, W, 3) within a box, cut at the picture's edges."""
    x, y, width, height = box
    return pictures[..., max(0, y) : max(0, y + height), max(0, x) : max(0, x + width), :]


def box_psnr(a: NDArray[np.uint8], b: NDArray[np.uint8], boxes: Iterable[Box]) -> float:
    """PSNR in dB over the pixels of all boxes together in two pictures (H, W, 3), a pixel counted once.

    Alike gives 100; NaN when the boxes hold no pixel.
    """
    inside = np.zeros(a.shape[:2], bool)
    for x, y, width, height in boxes:
        inside[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = True
    return _psnr(_squares(a, b)[inside])


def label_psnr(
    a: NDArray[np.uint8], b: NDArray[np.uint8], labels: NDArray[np.int16], kinds: frozenset[int] | None = None
) -> float:
    """`box_psnr` over all pictures (T, H, W, 3) and the boxes (T, K, 5) of an episode's `labels`.

    kinds: count only these; without, all. The squares of all boxes' pixels go into one mean.
    """
    squares = []
    for x, y, row in zip(a, b, labels, strict=True):
        inside = np.zeros(x.shape[:2], bool)
        for kind, left, top, width, height in row.tolist():
            if kind and (kinds is None or kind in kinds):
                inside[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = True
        squares.append(_squares(x, y)[inside].ravel())
    return _psnr(np.concatenate(squares) if squares else np.zeros(0))


def _squares(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray((a.astype(np.float64) - b.astype(np.float64)) ** 2)


def _psnr(squares: NDArray[np.float64]) -> float:
    if squares.size == 0:
        return math.nan
    error = float(squares.mean())
    return 100.0 if error == 0 else 10 * math.log10(255.0**2 / error)


def _mono(sound: NDArray[np.int16]) -> NDArray[np.float64]:
    """(T, samples), full scale 1."""
    level = sound.astype(np.float64) / FULL_SCALE
    return np.asarray(level.mean(-1) if level.ndim == 3 else level)
