"""Where a drawing begins: from noise, or some way on from a picture, of which a mask may keep a part."""

from __future__ import annotations

import torch
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
        self, model: Model, device: torch.device, inputs: Inputs, grid: Grid, start: Tensor, how: Drawing
    ) -> None:
        self.x, self.grid, self._inputs = start, grid, inputs
        self._x0 = self._mask = self.beside = None
        if inputs.init is None:
            if model.inpaints:
                raise UserError("this model inpaints: give it a picture (init) and a mask")
            return
        count, codec = len(start), model.codec
        strength = how.strength or (1.0 if model.inpaints else _STRENGTH)
        skipped = len(grid) - 1 - int((len(grid) - 1) * strength)
        self.grid = grid[skipped:]
        if len(self.grid) < 2:
            raise UserError(f"strength {strength:g} of {len(grid) - 1} steps is less than one step: raise either")
        self._x0 = codec.mean(codec.encode(inputs.init.to(device))).to(start).expand_as(start)
        first = self.grid[0]
        noised = first.alpha * self._x0 + first.sigma * start
        if inputs.mask is None:
            if model.inpaints:
                raise UserError("this model inpaints: give it a mask beside the picture")
            self.x = noised
            return
        # told to the network in two values, as it was trained; kept softly
        self._mask = shrunk(inputs.mask, codec.factor).to(start).expand(count, 1, *start.shape[2:])
        whole = skipped == 0 and strength == 1
        self.x = torch.lerp(noised, start, self._mask) if whole else noised
        if model.inpaints:
            masked = inputs.init * (inputs.mask < 0.5)
            latents = codec.mean(codec.encode(masked.to(device))).to(start).expand_as(start)
            binary = (shrunk((inputs.mask >= 0.5).float(), codec.factor) > 0).to(start).expand_as(self._mask)
            self.beside = torch.cat([binary, latents], dim=1).to(next(model.net.parameters()).dtype)
            self.x = start if whole else noised

    def keep(self, denoise: Estimator) -> Estimator:
        """An estimator that knows what the mask keeps; an inpainting network knows by itself."""
        if self._mask is None or self._x0 is None or self.beside is not None:
            return denoise
        return Kept(denoise, self._x0, self._mask)

    def paste(self, pictures: Tensor) -> Tensor:
        """Drawn pictures (B, C, H, W), with what the mask keeps put back to the last bit."""
        init, mask = self._inputs.init, self._inputs.mask
        if init is None or mask is None:
            return pictures
        return torch.where(mask == 0, init, torch.lerp(init.expand_as(pictures), pictures, mask))
