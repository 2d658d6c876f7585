"""A small residual network, and what is done to its images in training."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(kind: str, width: int) -> nn.Module:
    """``batch``, or ``group``: without anything that one image takes from others of its batch."""
    return nn.BatchNorm2d(width) if kind == "batch" else nn.GroupNorm(math.gcd(8, width), width)


class Block(nn.Module):
    """Two convolutions beside a short cut. Shape: (N, C, S, S) -> (N, C', S / stride, S / stride)."""

    def __init__(self, width: int, out: int, stride: int, kind: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.first_norm = norm(kind, out)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.second_norm = norm(kind, out)
        self.short: nn.Module = nn.Identity()
        if stride > 1 or width != out:
            self.short = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), norm(kind, out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.short(x))


class Network(nn.Module):
    """Images -> features. Shape: (N, C, S, S), about 0 and of length 1 a pixel -> (N, dim).

    Args:
        channels: C.
        widths: of each stage; all but the first halve the side. So does the stem.
        depth: blocks a stage.
        dim: of the features.
        kind: of normalisation, "batch" or "group".
    """

    def __init__(self, channels: int, widths: list[int], depth: int, dim: int, kind: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, 2, 1, bias=False)
        self.stem_norm = norm(kind, widths[0])
        stages: list[nn.Module] = []
        width = widths[0]
        for number, out in enumerate(widths):
            for block in range(depth):
                stages.append(Block(width, out, 2 if number and not block else 1, kind))
                width = out
        self.stages = nn.Sequential(*stages)
        # Where a stroke is counts: the mean over places would not tell a character from its mirror image.
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.out = nn.Linear(4 * width, dim)
        self.out_norm: nn.Module = nn.BatchNorm1d(dim) if kind == "batch" else nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(images)))
        features: Tensor = self.out_norm(self.out(self.pool(self.stages(x)).flatten(1)))
        return features


def normalised(images: Tensor) -> Tensor:
    """uint8 -> fp32 between -1 and 1."""
    return images.float() / 127.5 - 1


def augmented(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turned, stretched, sheared and moved at random, one by one; and lighter or darker.

    Shape: (N, C, S, S) fp32 of -1 .. 1; the same.

    Args:
        strength: 1: turns by about 5 degrees, moves by about 5% of the side; 0: nothing.
        generator: of the CPU.
    """
    if not strength or not len(images):
        return images
    n = len(images)
    draw = torch.randn(n, 6, generator=generator).clamp_(-2, 2).mul_(0.09 * strength)
    change = torch.eye(2, 3).repeat(n, 1, 1)
    change[:, :, :2] += draw[:, :4].view(n, 2, 2)
    change[:, :, 2] = draw[:, 4:]
    change = change.to(images.device)
    grid = F.affine_grid(change, list(images.shape), align_corners=False)
    # Outside is what the images have there: the darkest of a glyph, the edge of a photograph.
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    light = 1 + 0.2 * strength * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    return moved * light.to(images.device)
