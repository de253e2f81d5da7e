"""Pictures to latents and back: a small convolutional autoencoder that works frame by frame.

Axes: B batch, C channels, H W rows and columns. Pictures are float in [-1, 1]; latents are bounded by
tanh and trained under noise, so that the decoder survives imperfect predictions. Frame by frame means
streaming with no look-ahead. Blocks follow TAESD: convolution and ReLU, no normalisation.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.config import TokenizerConfig


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions beside a skip; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.conv2(F.relu(self.conv1(F.relu(x_BCHW))))


class Encoder(nn.Module):
    """Picture (B, 3, 160, 256) in [-1, 1] -> latent (B, C, 10, 16) in (-1, 1)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        fine, middle, coarse = config.encoder_channels
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, fine, 3, padding=1),
            ResBlock(fine),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * fine, middle, 1),
            ResBlock(middle),
            ResBlock(middle),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * middle, coarse, 1),
            ResBlock(coarse),
            ResBlock(coarse),
            nn.ReLU(),
            nn.Conv2d(coarse, config.latent_dim, 1),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.tanh(self.layers(x_BCHW).float())


class Decoder(nn.Module):
    """Latent (B, C, 10, 16) -> picture (B, 3, 160, 256), about [-1, 1].

    In a world with a map it may be given the map's detail on the grids 64 x 40 and 128 x 80 as well: then the
    detail paints, and the latent corrects it. Where the detail is not known, the latent paints, and with
    `blend` wherever it shows something that no map holds: its picture is the same as without the detail.
    Things of a cast are laid over both, but for what is on the glass before them: a weapon, a muzzle flash.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        coarse, middle, fine = config.decoder_channels
        self.layers = nn.Sequential(
            nn.Conv2d(config.latent_dim, coarse, 3, padding=1),
            ResBlock(coarse),
            ResBlock(coarse),
            ResBlock(coarse),
            nn.Conv2d(coarse, 4 * middle, 1),
            nn.PixelShuffle(2),
            ResBlock(middle),
            ResBlock(middle),
            nn.Conv2d(middle, 4 * fine, 1),
            nn.PixelShuffle(2),
            ResBlock(fine),
            ResBlock(fine),
            nn.ReLU(),
            nn.Conv2d(fine, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )
        told = all(config.detail_dim)
        self.detail = DetailPainter(config.detail_dim, fine, config.blend, config.glass) if told else None

    def forward(self, z_BCHW: Tensor, detail: Detail | None = None) -> Tensor:
        x = self.start(z_BCHW)
        if detail is None or self.detail is None:
            return self.finish(x)
        x = self.layers[FINE:-2](x if self.detail.enter is None else x + self.detail.enter(detail[0]))
        painted = self.detail.paint(detail[1]) + F.pixel_shuffle(self.detail.correct(x), 4)
        share = None if detail[2] is None else inner(detail[2])
        if self.detail.choose is not None:
            chosen = torch.sigmoid(F.pixel_shuffle(self.detail.choose(x), 4).float())
            share = chosen if share is None else share * chosen
        picture = painted.float()
        if share is not None:
            alone = self.layers[-2:](x).float()
            picture = alone + share * (picture - alone)
        if detail[3] is None:
            return picture
        colour, opaque = detail[3][:, :3], detail[3][:, 3:]
        shown = 2 * colour - opaque * (1 + picture)  # by how much things change it
        if self.detail.glass is not None:
            shown = shown * torch.sigmoid(-F.pixel_shuffle(self.detail.glass(x), 4).float())
        return picture + shown

    def start(self, z_BCHW: Tensor) -> Tensor:
        """Two thirds of the work: all before the finest grid."""
        x: Tensor = self.layers[:FINE](z_BCHW)
        return x

    def finish(self, x_BCHW: Tensor) -> Tensor:
        """The picture, without detail, of what was started."""
        out: Tensor = self.layers[FINE:](x_BCHW)
        return out.float()


Detail = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""See `map.Detail`."""


def inner(known_B1HW: Tensor) -> Tensor:
    """A mask of cells as one of pixels, four to a side: 0 outside, growing to 1 half a cell inside."""
    smooth = F.interpolate(known_B1HW, scale_factor=4, mode="bilinear")
    return F.interpolate(known_B1HW, scale_factor=4) * (2 * smooth - 1).clamp(min=0)


CLEAR_GLASS = -2.0
"""Logit of what is on the glass, to start with: little."""
FINE = 10
"""First of the decoder's layers on its finest grid."""


class DetailPainter(nn.Module):
    """How the decoder uses the detail of a map; starts by painting from the detail alone."""

    def __init__(
        self, detail_dim: tuple[int, int], fine: int, blend: bool = False, glass: bool = False
    ) -> None:
        super().__init__()
        self.enter = None if blend else nn.Conv2d(detail_dim[0], fine, 1)
        self.correct = nn.Conv2d(fine, 48, 1)
        self.choose = nn.Conv2d(fine, 16, 1) if blend else None
        self.glass = nn.Conv2d(fine, 16, 1) if glass else None
        if self.glass is not None:
            nn.init.zeros_(self.glass.weight)
            nn.init.constant_(self.glass.bias, CLEAR_GLASS)  # type: ignore[arg-type]
        self.out = nn.Conv2d(detail_dim[1], 12, 3, padding=1)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)  # type: ignore[arg-type]

    def paint(self, fine: Tensor) -> Tensor:
        """Fine detail (B, D, h, w) -> picture (B, 3, 2 h, 2 w)."""
        return F.pixel_shuffle(self.out(F.silu(fine)), 2)


class Tokenizer(nn.Module):
    """Encoder and decoder together."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, x_BCHW: Tensor) -> Tensor:
        z: Tensor = self.encoder(x_BCHW)
        return z

    def decode(self, z_BCHW: Tensor, detail: Detail | None = None) -> Tensor:
        x: Tensor = self.decoder(z_BCHW, detail)
        return x


def to_float(images: NDArray[np.uint8] | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1], channels last in memory."""
    tensor = torch.as_tensor(images).to(device)
    return tensor.permute(0, 3, 1, 2).float().mul_(2 / 255).sub_(1)


def to_uint8(x_BCHW: Tensor) -> NDArray[np.uint8]:
    """Float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3), C-contiguous, owned by the caller."""
    scaled = x_BCHW.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def laplacian(x_BCHW: Tensor) -> Tensor:
    """Discrete Laplacian of each channel, interior pixels only: what texture and edges leave."""
    centre = x_BCHW[..., 1:-1, 1:-1]
    around = x_BCHW[..., :-2, 1:-1] + x_BCHW[..., 2:, 1:-1] + x_BCHW[..., 1:-1, :-2] + x_BCHW[..., 1:-1, 2:]
    return 4 * centre - around


def reconstruction_loss(out_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """L1 + 2 MSE + half an L1 over three levels of a Laplacian pyramid, so that edges count."""
    loss = F.l1_loss(out_BCHW, target_BCHW) + 2 * F.mse_loss(out_BCHW, target_BCHW)
    for _ in range(3):
        out_small, target_small = F.avg_pool2d(out_BCHW, 2), F.avg_pool2d(target_BCHW, 2)
        out_band = out_BCHW - F.interpolate(out_small, scale_factor=2)
        target_band = target_BCHW - F.interpolate(target_small, scale_factor=2)
        loss = loss + 0.5 * F.l1_loss(out_band, target_band)
        out_BCHW, target_BCHW = out_small, target_small
    return loss
