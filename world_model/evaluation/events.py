"""Events in pictures and sound, tick by tick: shots heard, flashes seen, and whether the two agree.

T ticks; sound is int16 (T, samples, channels) or (T, samples), a tick's samples in a row; pictures are
uint8 (T, H, W, 3). A box is x, y, width, height in pixels. An event is True in a bool array (T,).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

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
LEAST_PAIRS = 5
LEAST_SHARE = 1 / 3
"""What must coincide for an offset to be told: so many pairs, and of the rarer events so large a share."""


class Offset(NamedTuple):
    """By how many ticks one kind of event comes after another: `ticks`, how many `pairs` coincide at that
    offset, and the correlation there."""

    ticks: int
    pairs: int
    correlation: float


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


def matches(found: Events, true: Events, tolerance: int = 1) -> int:
    """Pairs of events, matched one to one within `tolerance` ticks."""
    a, b = np.flatnonzero(found), np.flatnonzero(true)
    matched = i = j = 0
    while i < len(a) and j < len(b):  # both sorted: matching the earliest pair first is best
        if abs(int(a[i]) - int(b[j])) <= tolerance:
            matched, i, j = matched + 1, i + 1, j + 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return matched


def onset_f1(found: Events, true: Events, tolerance: int = 1) -> float | None:
    """F1 of events matched one to one within `tolerance` ticks, 0 to 1; None when neither has any."""
    total = int(found.sum()) + int(true.sum())
    return 2 * matches(found, true, tolerance) / total if total else None


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


def picture_sound_offset(seen: Events, heard: Events, reach: int = 12) -> Offset | None:
    """By how many ticks `heard` comes after `seen` (negative: before), where their correlation peaks.

    Both (T,). Ties go to the smallest offset. None where fewer than LEAST_PAIRS events coincide there, or
    less than LEAST_SHARE of the rarer kind: something always peaks, and unrelated events do so anywhere.
    Raises ValueError for rows of unequal length, or shorter than `reach` ticks.
    """
    if len(seen) != len(heard) or len(seen) <= reach:
        raise ValueError(f"an offset needs two rows of events of one length above {reach}")
    a, b = (x.astype(np.float64) - x.mean() for x in (seen, heard))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    if scale == 0:
        return None

    def likeness(shift: int) -> float:
        return float(np.dot(*_shifted(a, b, shift))) / scale

    best = max(sorted(range(-reach, reach + 1), key=abs), key=lambda shift: round(likeness(shift), 9))
    early, late = _shifted(seen, heard, best)
    pairs, rarer = int((early & late).sum()), min(int(seen.sum()), int(heard.sum()))
    if pairs < max(LEAST_PAIRS, LEAST_SHARE * rarer):
        return None
    return Offset(best, pairs, round(likeness(best), 4))


def _shifted(seen: NDArray[Any], heard: NDArray[Any], shift: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """What stands together when `heard` comes `shift` ticks after `seen`."""
    if shift >= 0:
        return seen[: len(seen) - shift], heard[shift:]
    return seen[-shift:], heard[:shift]


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
    return label_psnrs(a, b, labels, kinds)[0]


def label_psnrs(
    a: NDArray[np.uint8], b: NDArray[np.uint8], labels: NDArray[np.int16], kinds: frozenset[int] | None = None
) -> tuple[float, float]:
    """`label_psnr`, and PSNR of the whole of the same pictures: those that have such a box. NaN for none."""
    boxes, wholes = [], []
    for x, y, row in zip(a, b, labels, strict=True):
        inside = np.zeros(x.shape[:2], bool)
        for kind, left, top, width, height in row.tolist():
            if kind and (kinds is None or kind in kinds):
                inside[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = True
        if inside.any():
            squares = _squares(x, y)
            boxes.append(squares[inside].ravel())
            wholes.append(squares.ravel())
    if not boxes:
        return math.nan, math.nan
    return _psnr(np.concatenate(boxes)), _psnr(np.concatenate(wholes))


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
