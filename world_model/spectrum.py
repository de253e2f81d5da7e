"""How alike two sounds are to an ear: losses and measures on spectra, and a picture of one.

Sounds are float (..., samples) in [-1, 1] at any sampling rate.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIZES = (128, 512, 1024)
FLOOR = 1e-3
"""Magnitude, about -60 dB of full scale, below which nothing is heard beside the rest."""
MEL_BANDS = 40


def spectrum(sound_NS: Tensor, size: int) -> Tensor:
    """Magnitudes (N, size / 2 + 1, time), scaled so that noise of rms r has about r."""
    flat = sound_NS.reshape(-1, sound_NS.shape[-1])
    window = torch.hann_window(size, device=flat.device)
    out = torch.stft(flat, size, size // 4, window=window, normalized=True, return_complex=True)
    # Not abs(): its gradient at zero is not a number, and silence is zero.
    return (out.real.square() + out.imag.square() + 1e-12).sqrt()


def spectral_loss(out: Tensor, target: Tensor) -> Tensor:
    """Multi-resolution: the miss in magnitude over all there is, and the miss in log magnitude."""
    terms = []
    for size in SIZES:
        a, b = spectrum(out, size), spectrum(target, size)
        terms.append((a - b).square().sum().sqrt() / (b.square().sum().sqrt() + FLOOR))
        terms.append(((a + FLOOR).log() - (b + FLOOR).log()).abs().mean())
    return torch.stack(terms).mean()


def log_mel(sound_NS: Tensor, rate: int, size: int = 512) -> Tensor:
    """(N, MEL_BANDS, time) in decibels, 0 dB full scale, floored at -60 dB."""
    bands = torch.from_numpy(mel_bands(rate, size)).to(sound_NS.device)
    power = bands @ spectrum(sound_NS, size).square()
    return 10 * (power + FLOOR**2).log10()


def log_mel_distance(out: Tensor, target: Tensor, rate: int) -> float:
    """Mean absolute difference of `log_mel` in decibels."""
    return float((log_mel(out, rate) - log_mel(target, rate)).abs().mean())


def snr(out: Tensor, target: Tensor) -> float:
    """Decibels of the target over the error, of all samples together; 0 is what silence has."""
    error, power = (out - target).square().sum(), target.square().sum()
    return float(10 * (power.clamp(min=1e-12) / error.clamp(min=1e-12)).log10())


def mel_bands(rate: int, size: int) -> NDArray[np.float32]:
    """Triangular filters (MEL_BANDS, size / 2 + 1), each of unit sum, evenly spaced in mel."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MEL_BANDS + 2) / 2595) - 1)
    freqs = np.arange(size // 2 + 1) * rate / size
    up = (freqs - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - freqs) / (edges[2:] - edges[1:-1])[:, None]
    bands = np.maximum(np.minimum(up, down), 0)
    narrow = bands.sum(1) == 0  # a band between two bins takes the nearest
    bands[narrow, np.round(edges[1:-1][narrow] * size / rate).astype(int)] = 1
    return (bands / bands.sum(1, keepdims=True)).astype(np.float32)


def spectrogram(sound_S: Tensor, rate: int, scale: int = 3) -> NDArray[np.uint8]:
    """A picture (MEL_BANDS * scale, time, 3) of a sound: high above low, loud bright, -60 dB black."""
    level = ((log_mel(sound_S[None], rate)[0].flip(0) + 60) / 60).clamp(0, 1).numpy()
    level = np.repeat(level, scale, 0)
    colours = np.array([(0, 0, 0), (60, 20, 110), (200, 60, 80), (250, 160, 50), (255, 250, 200)], np.float32)
    at = level * (len(colours) - 1)
    low = np.minimum(at.astype(int), len(colours) - 2)
    share = (at - low)[..., None]
    return np.round(colours[low] * (1 - share) + colours[low + 1] * share).astype(np.uint8)
