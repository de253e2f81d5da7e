"""Stage `tokenizer`: pictures to latents and back, decoded under noise on the latent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world_model.data.dataset import FrameSampler
from world_model.data.episodes import Episode
from world_model.evaluation.metrics import laplacian_energy, psnr, ssim
from world_model.precision import mixed_precision
from world_model.tokenizer import Tokenizer, laplacian, reconstruction_loss, to_float, to_uint8
from world_model.training.pictures import save_rows

CROP = (80, 128)
WHOLE = (160, 256)
LATENT_NOISE = 0.15
LIVELY_WEIGHT = 0.5
"""Of things that move and of numbers, as a whole: they cover little of the picture and are what counts."""


class TokenizerStage:
    """Half-size crops for most of the run (four times the variety per step), whole frames at the end."""

    name = "tokenizer"

    def __init__(
        self,
        tokenizer: Tokenizer,
        train: list[Episode],
        val: list[Episode],
        device: str,
        batch_size: int = 32,
        view: int | None = None,
    ) -> None:
        """`view`: the first row of a status bar, if there is one."""
        self.device = torch.device(device)
        tokenizer.requires_grad_(True)
        self.model = tokenizer.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._sampler, self._batch_size, self._view = FrameSampler(train), batch_size, view
        self._preview = TokenizerPreview(val, self.device, view)

    def batch(self, rng: np.random.Generator, done: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        if done < 0.8:
            return self._sampler.lively(rng, self._batch_size, CROP, self._view)
        return self._sampler.lively(rng, self._batch_size // 4, WHOLE, self._view)

    def loss(
        self, batch: tuple[NDArray[np.uint8], NDArray[np.bool_]], done: float
    ) -> tuple[Tensor, dict[str, float]]:
        x = to_float(batch[0], self.device)
        with mixed_precision(self.device.type):
            z = self.model.encode(x)
            # A level per picture, from none to the full amount: clean latents must stay sharp too.
            level = torch.rand(len(z), 1, 1, 1, device=self.device) * LATENT_NOISE
            out = self.model.decode(z + level * torch.randn_like(z))
        edges = (laplacian(out) - laplacian(x)).abs().mean()
        loss = reconstruction_loss(out, x) + 0.1 * edges + LIVELY_WEIGHT * lively_loss(out, x, batch[1])
        return loss, {"z_std": z.std().item()}

    def preview(self, path: Path) -> dict[str, float]:
        return self._preview(self.model, path)


def lively_loss(out_BCHW: Tensor, x_BCHW: Tensor, mask: NDArray[np.bool_]) -> Tensor:
    """`reconstruction_loss` of what `mask` (B, H, W) covers, as a mean over that; 0 where that is nothing."""
    if not mask.any():
        return out_BCHW.new_zeros(())
    covered = torch.from_numpy(mask).to(x_BCHW.device)[:, None]
    share = covered.float().mean().clamp(min=0.01)
    return reconstruction_loss(torch.where(covered, out_BCHW, x_BCHW), x_BCHW) / share


class TokenizerPreview:
    """64 random held-out frames, fixed for a run. `view`: the first row of a status bar, if there is one."""

    def __init__(self, episodes: list[Episode], device: torch.device, view: int | None = None) -> None:
        self._frames, self._things = FrameSampler(episodes).lively(np.random.default_rng(0), 64, WHOLE)
        self._device, self._view = device, view

    def __call__(self, model: Tokenizer, path: Path) -> dict[str, float]:
        """Writes a sheet, real above its reconstruction, and returns PSNR, SSIM and sharpness.

        Where the episodes tell boxes, also the PSNR within them, `things`, and that of the whole of the
        pictures that have some, `around`; with a status bar also its own, `bar`.
        """
        frames = self._frames
        out = np.concatenate([reconstruct(model, part, self._device) for part in np.split(frames, 8)])
        save_rows(path, [list(part[i : i + 6]) for i in (0, 6, 12) for part in (frames, out)])
        scores = np.array([psnr(a, b) for a, b in zip(out, frames, strict=True)])
        return {
            "psnr": float(scores.mean()),
            "worst": float(scores.min()),
            "ssim": float(np.mean([ssim(a, b) for a, b in zip(out, frames, strict=True)])),
            "sharpness": sum(map(laplacian_energy, out)) / max(sum(map(laplacian_energy, frames)), 1e-6),
            **self._parts(out),
        }

    def _parts(self, out: NDArray[np.uint8]) -> dict[str, float]:
        found: dict[str, float] = {}
        some = self._things.any((1, 2))
        if some.any():
            found["things"] = psnr(out[self._things], self._frames[self._things])
            found["around"] = psnr(out[some], self._frames[some])
        if self._view is not None:
            found["bar"] = psnr(out[:, self._view :], self._frames[:, self._view :])
        return found


@torch.no_grad()
def reconstruct(model: Tokenizer, frames: NDArray[np.uint8], device: torch.device) -> NDArray[np.uint8]:
    """Encodes and decodes uint8 (B, H, W, 3) frames."""
    with mixed_precision(device.type):
        return to_uint8(model.decode(model.encode(to_float(frames, device))))


@torch.no_grad()
def encode_frames(model: Tokenizer, frames: NDArray[np.uint8], device: torch.device) -> NDArray[np.float16]:
    """uint8 (T, H, W, 3) -> latents float16 (T, C, h, w), in batches of 64."""
    parts = []
    for i in range(0, len(frames), 64):
        with mixed_precision(device.type):
            parts.append(model.encode(to_float(np.array(frames[i : i + 64]), device)).half().cpu().numpy())
    return np.concatenate(parts)
