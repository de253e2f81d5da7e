"""Picture metrics. Images are uint8 (H, W, 3); checked against scikit-image in the tests."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from world_model.types import Image

SSIM_WINDOW = 11
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def psnr(a: Image, b: Image) -> float:
    """Peak signal-to-noise ratio in dB, peak 255; identical pictures give 100."""
    error = np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)
    return 100.0 if error == 0 else 10 * math.log10(255.0**2 / float(error))


def grey(image: Image) -> NDArray[np.float32]:
    """Luma (H, W), 0 to 255."""
    return (image.astype(np.float32) @ LUMA).astype(np.float32)


def laplacian_energy(image: Image) -> float:
    """Mean square of the discrete Laplacian of the luma: how much texture and edge there is."""
    return luma_energy(grey(image))


def luma_energy(g: NDArray[np.float32]) -> float:
    """`laplacian_energy` of a luma (H, W) that is at hand already."""
    centre = 4 * g[1:-1, 1:-1] - g[:-2, 1:-1] - g[2:, 1:-1] - g[1:-1, :-2] - g[1:-1, 2:]
    return float(np.mean(centre**2))


def ssim(a: Image, b: Image) -> float:
    """Structural similarity of the luma (Wang et al. 2004): Gaussian window, sigma 1.5, 11 x 11."""
    x, y = (torch.from_numpy(grey(i))[None, None].double() for i in (a, b))
    luminance, contrast = _ssim_terms(x, y)
    return float((luminance * contrast).mean())


def _ssim_terms(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The luminance term and the contrast-structure term of every window inside the picture."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(t: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(t, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * covariance + c2) / (var_x + var_y + c2)


def psnr_each(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """PSNR in dB of pictures (N, H, W, 3), pair by pair: (N,)."""
    return np.array([psnr(x, y) for x, y in zip(a, b, strict=True)])


def change(a: Image, b: Image) -> float:
    """Mean absolute difference of the luma, 0 to 255."""
    return float(np.abs(grey(a) - grey(b)).mean())


def histogram_distance(a: Image, b: Image, bins: int = 8) -> float:
    """Half the L1 distance between colour histograms (`bins` levels a channel, jointly): 0 to 1."""
    counts = [_histogram(image, bins) for image in (a, b)]
    return float(np.abs(counts[0] - counts[1]).sum() / 2)


def block_spread(image: Image, rows: int = 5, columns: int = 8) -> float:
    """How unlike the parts of a picture are: mean RGB distance of its blocks' colours from their mean."""
    height, width = image.shape[0] // rows * rows, image.shape[1] // columns * columns
    blocks = image[:height, :width].reshape(rows, height // rows, columns, width // columns, 3)
    colours = blocks.mean((1, 3), dtype=np.float32).reshape(-1, 3)
    return float(np.linalg.norm(colours - colours.mean(0), axis=1).mean())


MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ms_ssim(a: Image, b: Image) -> float:
    """Multi-scale SSIM of the luma (Wang et al. 2003), as many of the five scales as fit.

    Weights are renormalised when a picture is too small for all (160 rows hold four); a negative
    term counts as zero.
    """
    x, y = (torch.from_numpy(grey(i))[None, None].double() for i in (a, b))
    scales = sum(min(x.shape[-2:]) // 2**i >= SSIM_WINDOW for i in range(len(MS_WEIGHTS)))
    weights = np.array(MS_WEIGHTS[:scales]) / sum(MS_WEIGHTS[:scales])
    result = 1.0
    for i, weight in enumerate(weights):
        luminance, contrast = _ssim_terms(x, y)
        term = (luminance * contrast).mean() if i == scales - 1 else contrast.mean()
        result *= max(float(term), 0.0) ** float(weight)
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return result


def _histogram(image: Image, bins: int) -> NDArray[np.float64]:
    level = (image.astype(np.int64) * bins) // 256
    index = (level[..., 0] * bins + level[..., 1]) * bins + level[..., 2]
    return np.bincount(index.ravel(), minlength=bins**3) / index.size
