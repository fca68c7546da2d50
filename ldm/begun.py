"""Where a drawing begins: from noise, or some way on from a picture, of which a mask may keep a part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.diffusion.denoiser import Estimator
from ldm.diffusion.grid import Grid
from ldm.diffusion.inpaint import Kept
from ldm.drawing import Drawing, Inputs, shrunk
from ldm.errors import UserError
from ldm.weights.model import Model

_STRENGTH = 0.75


class Begun:
    """The state of a batch before its first step, and what becomes of its inputs on the way.

    Image-to-image as in SDEdit (Meng et al. 2022): the picture is noised to an intermediate level, and the rest of
    the grid is walked.

    Attributes:
        x: the sample, (B, C, h, w).
        grid: what is left to walk.
        beside: what an inpainting network reads beside x_t: the mask and the latents of the masked picture.
    """

    def __init__(
        self,
        model: Model,
        inputs: Inputs,
        grid: Grid,
        start: Tensor,
        how: Drawing,
        x0: Tensor | None = None,
    ) -> None:
        """Begin a batch.

        Args:
            model: whose codec encodes the inputs.
            inputs: pictures to begin from.
            grid: all of the way.
            start: noise, (B, C, h, w).
            how: settled; says how much of the way is drawn.
            x0: latents to begin from in place of a picture, (B, C, h, w).

        Raises:
            UserError: an input is lacking or surplus, or nothing of the way is left.
        """
        self.x, self.grid, self._inputs = start, grid, inputs
        self._x0, self._mask, self._blank, self.beside = x0, None, None, None
        if model.inpaints and (inputs.init is None or inputs.mask is None):
            raise UserError("this model inpaints: give it a picture (init) and a mask")
        if inputs.init is not None:
            codec = model.codec
            encoded = codec.encode(inputs.init.to(start.device), how.tiled)
            self._x0 = codec.mean(encoded).to(start).expand_as(start)
        if self._x0 is None:
            return
        strength, moves = self.strength(how, model), len(grid) - 1
        self.grid = grid[moves - int(moves * strength) :]
        if len(self.grid) < 2:
            raise UserError(f"strength {strength:g} of {moves} steps is less than one step: raise either")
        first = self.grid[0]
        self.x = first.alpha * self._x0 + first.sigma * start
        if inputs.mask is not None:
            self._hold(model, start, inputs.mask, whole=strength == 1, tiled=how.tiled)

    @staticmethod
    def strength(how: Drawing, model: Model) -> float:
        """The part of the way that is drawn where there is a picture to begin from."""
        return how.strength or (1.0 if model.inpaints else _STRENGTH)

    def _hold(self, model: Model, start: Tensor, mask: Tensor, whole: bool, tiled: bool) -> None:
        """Take note of what a mask keeps; with the ``whole`` way to go, what it does not keep begins as noise alone."""
        codec, init = model.codec, self._inputs.init
        assert init is not None
        self._mask = shrunk(mask, codec.factor).to(start).expand(len(start), 1, *start.shape[2:])
        if not model.inpaints:
            if whole:
                self._blank = (self.grid[0], start)
                self.x = torch.lerp(self.x, start, self._mask)
            return
        # told to the network as it was trained: in two values, those of the first pixel of each latent
        binary = F.interpolate((mask >= 0.5).float(), size=start.shape[2:]).to(start).expand_as(self._mask)
        encoded = codec.encode((init * (mask < 0.5)).to(start.device), tiled)
        latents = codec.mean(encoded).to(start).expand_as(start)
        self.beside = torch.cat([binary, latents], dim=1).to(next(model.net.parameters()).dtype)
        self.x = start if whole else self.x

    def keep(self, denoise: Estimator) -> Estimator:
        """An estimator that knows what the mask keeps; an inpainting network knows by itself."""
        if self._mask is None or self._x0 is None or self.beside is not None:
            return denoise
        return Kept(denoise, self._x0, self._mask, self._blank)

    def finish(self, x: Tensor) -> Tensor:
        """The last state (B, C, h, w), with what the mask keeps clean: some walks end a little short of that."""
        if self._mask is None or self._x0 is None or self.beside is not None:
            return x
        return torch.where(self._mask == 0, self._x0, x)

    def paste(self, pictures: Tensor) -> Tensor:
        """Drawn pictures (B, C, H, W), with what the mask keeps put back to the last bit."""
        init, mask = self._inputs.init, self._inputs.mask
        if init is None or mask is None:
            return pictures
        init, mask = init.to(pictures), mask.to(pictures)
        return torch.where(mask == 0, init, torch.lerp(init.expand_as(pictures), pictures, mask))
