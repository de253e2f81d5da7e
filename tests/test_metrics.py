"""Picture metrics against reference implementations, and properties that follow from their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from world_model.evaluation import metrics
from world_model.evaluation.shift import horizontal_shift
from world_model.evaluation.stats import mean_interval, ratio_interval
from world_model.evaluation.tables import interval, share_interval, signed
from world_model.types import DataError


def noisy_pair(seed: int, size: tuple[int, int] = (96, 128)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    smooth = np.kron(rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3)), np.ones((8, 8, 1)))
    a = np.clip(smooth + rng.normal(0, 10, smooth.shape), 0, 255).astype(np.uint8)
    b = np.clip(smooth + rng.normal(0, 30, smooth.shape), 0, 255).astype(np.uint8)
    return a, b


@pytest.mark.parametrize("seed", range(3))
def test_psnr_and_ssim_agree_with_scikit_image(seed: int) -> None:
    reference = pytest.importorskip("skimage.metrics")
    a, b = noisy_pair(seed)
    assert metrics.psnr(a, b) == pytest.approx(reference.peak_signal_noise_ratio(a, b), abs=1e-3)
    # scikit-image pads at the border; the definition of Wang et al. keeps whole windows only
    _, full = reference.structural_similarity(
        metrics.grey(a).astype(np.float64),
        metrics.grey(b).astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )
    assert metrics.ssim(a, b) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)


def test_laplacian_energy_agrees_with_scikit_image() -> None:
    filters = pytest.importorskip("skimage.filters")
    a, _ = noisy_pair(0)
    reference = filters.laplace(metrics.grey(a).astype(np.float64), ksize=3)[1:-1, 1:-1]
    assert metrics.laplacian_energy(a) == pytest.approx(np.mean(reference**2), rel=1e-4)


def test_histogram_distance_agrees_with_numpy() -> None:
    a, b = noisy_pair(1)
    edges = [np.arange(0, 257, 32)] * 3
    counts = [np.histogramdd(i.reshape(-1, 3), edges)[0] / (i.size / 3) for i in (a, b)]
    assert metrics.histogram_distance(a, b) == pytest.approx(np.abs(counts[0] - counts[1]).sum() / 2)


def test_identical_pictures_are_perfect() -> None:
    a, _ = noisy_pair(2)
    assert metrics.psnr(a, a) == 100
    assert metrics.ssim(a, a) == pytest.approx(1) and metrics.ms_ssim(a, a) == pytest.approx(1)
    assert metrics.histogram_distance(a, a) == 0 and metrics.change(a, a) == 0


def test_ms_ssim_falls_with_noise_and_forgives_fine_noise_more_than_ssim() -> None:
    a, b = noisy_pair(3)
    worse = noisy_pair(3)[1] // 2
    assert metrics.ssim(a, b) < metrics.ms_ssim(a, b) < 1
    assert metrics.ms_ssim(a, worse) < metrics.ms_ssim(a, b)


def test_ms_ssim_agrees_with_pytorch_msssim() -> None:
    reference = pytest.importorskip("pytorch_msssim")
    for seed in (6, 7):
        a, b = noisy_pair(seed, (192, 256))
        x, y = (torch.from_numpy(metrics.grey(i))[None, None].double() for i in (a, b))
        expected = float(reference.ms_ssim(x, y, data_range=255))
        assert metrics.ms_ssim(a, b) == pytest.approx(expected, abs=1e-4)


def test_ms_ssim_of_a_worlds_picture_is_four_scales_of_scipys_and_scikit_images_terms() -> None:
    """The published definition written another way: the map of scikit-image, its luminance term by SciPy."""
    reference = pytest.importorskip("skimage.metrics")
    filters = pytest.importorskip("scipy.ndimage")
    a, b = noisy_pair(8, (160, 256))
    x, y = (metrics.grey(i).astype(np.float64) for i in (a, b))
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363]) / (0.0448 + 0.2856 + 0.3001 + 0.2363)
    expected = 1.0
    for scale, weight in enumerate(weights):
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        _, both = reference.structural_similarity(x, y, data_range=255, full=True, **options)
        mean_x, mean_y = (filters.gaussian_filter(i, 1.5, truncate=3.5) for i in (x, y))
        c1 = (0.01 * 255) ** 2
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        inner = (slice(5, -5), slice(5, -5))
        term = both[inner] if scale == 3 else (both / luminance)[inner]
        expected *= term.mean() ** weight
        x, y = (i.reshape(i.shape[0] // 2, 2, i.shape[1] // 2, 2).mean((1, 3)) for i in (x, y))
    assert metrics.ms_ssim(a, b) == pytest.approx(expected, abs=1e-4)


def test_ms_ssim_with_one_scale_is_ssim() -> None:
    a, b = noisy_pair(4, (16, 16))
    assert metrics.ms_ssim(a, b) == pytest.approx(metrics.ssim(a, b))


def test_block_spread_tells_a_scene_from_a_texture() -> None:
    tile = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    scene, _ = noisy_pair(0, (160, 256))
    assert metrics.block_spread(np.tile(tile, (10, 16, 1))) < 1 < metrics.block_spread(scene)


@pytest.mark.parametrize("shift", [-20, -3, 1, 17])
def test_shift_is_found_on_noisy_pictures(shift: int) -> None:
    a, _ = noisy_pair(5, (160, 256))
    moved = np.roll(a, shift, axis=1)
    noise = np.random.default_rng(1).normal(0, 8, a.shape)
    moved = np.clip(moved + noise, 0, 255).astype(np.uint8)
    assert horizontal_shift(a, moved) == pytest.approx(shift, abs=0.6)


def test_shift_of_flat_pictures_is_zero() -> None:
    flat = np.full((160, 256, 3), 90, np.uint8)
    assert horizontal_shift(flat, flat) == 0


def test_interval_holds_the_mean_and_widens_when_episodes_disagree() -> None:
    same = mean_interval([1, 2, 3, 1, 2, 3], list("aaabbb"))
    apart = mean_interval([1, 1, 1, 3, 3, 3], list("aaabbb"))
    assert same["mean"] == apart["mean"] == 2
    assert (same["low"], same["high"]) == (2, 2) and (apart["low"], apart["high"]) == (1, 3)


def test_one_episode_has_a_mean_and_no_interval() -> None:
    alone = mean_interval([1, 2, 3], list("aaa"))
    assert alone == {"mean": 2, "low": None, "high": None, "n": 3, "episodes": 1}
    assert interval(alone, " dB") == "2.00 dB (one episode, no interval)"
    assert share_interval(alone | {"mean": 0.5}) == "50 % (one episode, no interval)"
    both = mean_interval([1, 1, 3, 3], list("aabb"))
    assert both["episodes"] == 2 and interval(both) == "2.00 (1.00 to 3.00)" and signed(both)[0] == "+"


def test_interval_covers_the_true_mean_about_95_percent_of_the_time() -> None:
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(30)]
    inside = 0
    for _ in range(200):
        found = mean_interval(rng.normal(5, 2, 30), names)
        inside += found["low"] <= 5 <= found["high"]
    assert 0.88 <= inside / 200 <= 0.99


def test_ratio_is_of_means_not_a_mean_of_ratios() -> None:
    assert ratio_interval([1, 9], [2, 3], ["a", "b"])["mean"] == 2


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_broken_values_are_an_error(values: list[float]) -> None:
    with pytest.raises(DataError):
        mean_interval(values, ["a"] * len(values))
