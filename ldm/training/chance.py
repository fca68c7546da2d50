"""Random numbers as a function of (seed, sample, place), computed where the samples are.

What is drawn for a sample on the device must not depend on the batch it is in, nor make the device wait for the host.
So the numbers are not taken from a generator but computed: the finaliser of MurmurHash3, which mixes 32 bits, is
folded over the seed, the number of the sample and the place of the number. The arithmetic is of whole numbers, so every
device gives the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm.data.order import mix

_BITS = 0xFFFFFFFF
# purposes, so that no two draws of a run are alike
OFFSET_NOISE, MASKS, VECTORS = 11, 12, 15


def uniforms(index: Tensor, seed: int, purpose: int, count: int) -> Tensor:
    """Numbers (B, count) uniform in [0, 1), float32.

    Args:
        index: of samples, int64 (B,).
        seed: of the run.
        purpose: what the numbers are for.
        count: of numbers for each sample.
    """
    key = mix(seed, purpose)
    place = torch.arange(count, device=index.device)
    state = _mixed(index & _BITS ^ (key & _BITS))
    state = _mixed((state + (index >> 32) + (key >> 32)) & _BITS)  # (B,)
    state = _mixed((state[:, None] + 0x9E3779B9 * (place + 1)) & _BITS)
    return (state >> 8).float() / 2**24  # 24 bits, as many as a float32 holds


def normals(index: Tensor, seed: int, purpose: int, count: int) -> Tensor:
    """Standard normal numbers (B, count), float32, by the transform of Box and Muller; arguments as of ``uniforms``."""
    radius, angle = uniforms(index, seed, purpose, 2 * count).chunk(2, dim=1)
    return (-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()


def _mixed(state: Tensor) -> Tensor:
    # products of two numbers of 32 bits overflow, and their lower 32 bits are right all the same
    state = ((state ^ (state >> 16)) * 0x85EBCA6B) & _BITS
    state = ((state ^ (state >> 13)) * 0xC2B2AE35) & _BITS
    return state ^ (state >> 16)
