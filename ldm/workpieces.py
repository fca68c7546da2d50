"""Picture files that a drawing begins from or follows, brought to what the model takes; and the way back.

init, mask -> outpainting room -> the masked region, if only that is drawn -> the size that is drawn
drawn picture -> back into its region, with what the mask keeps untouched
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import ConfigDict, Field, PlainSerializer
from torch import nn

from ldm.accel import prepare as prepare_module
from ldm.diffusion.control import Control
from ldm.drawing import Drawing, Inputs
from ldm.errors import UserError
from ldm.images import from_pil
from ldm.metadata.record import InputFile, hash_pixels, input_file
from ldm.models.attention import Attention
from ldm.models.controlnet import ControlNet
from ldm.open_picture import IN_MEMORY, open_picture
from ldm.regions import Box, fit_image, masked_region, pad_for_outpainting, paste_back, prepare_mask
from ldm.schema import Settings
from ldm.weights.components import Reading
from ldm.weights.controlnets import read_controlnet
from ldm.weights.fingerprint import fingerprint, fingerprints
from ldm.weights.model import Model


def _told(picture: Path | Image.Image) -> str:
    return str(picture) if isinstance(picture, Path) else IN_MEMORY


# the record of a picture that was drawn from one in memory has its hash, and cannot be drawn again
Given = Annotated[Path | Image.Image, PlainSerializer(_told, when_used="json")]


class ControlFile(Settings):
    """A ControlNet and the picture it is to follow.

    Attributes:
        net: a folder of diffusers' ``ControlNetModel``, a single file, or a name on the hub.
        hint: a picture, such as of edges: a file, or PIL's.
        scale, start, end: see ``ldm.diffusion.control.Control``.
        allow_pickle: also read a net in a pickle, by torch's restricted reader.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    net: Path
    hint: Given
    scale: float = 1.0
    start: float = Field(default=0.0, ge=0, le=1)
    end: float = Field(default=1.0, ge=0, le=1)
    allow_pickle: bool = False


class PictureFiles(Settings):
    """Which pictures, files or PIL's, and what is done to them first.

    Attributes:
        init: a picture to begin from.
        mask: of the same proportions, white where to draw anew.
        fit: how ``init`` comes to the size that is drawn: see ``ldm.regions.fit_image``.
        invert_mask: draw where the mask is black.
        mask_blur: softens the mask's border, in pixels.
        only_masked: draw the masked region alone, at the full size, and put it back into the picture.
        padding: pixels of surroundings that ``only_masked`` sees.
        outpaint: pixels of room to add left, above, right and below, and to draw there.
        outpaint_fill: what the room holds at first, ``edge`` or ``noise``.
        controls: ControlNets.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    init: Given | None = None
    mask: Given | None = None
    fit: Literal["resize", "crop", "fill"] = "resize"
    invert_mask: bool = False
    mask_blur: float = Field(default=0.0, ge=0)
    only_masked: bool = False
    padding: int = Field(default=32, ge=0)
    outpaint: tuple[int, int, int, int] | None = None
    outpaint_fill: Literal["edge", "noise"] = "edge"
    controls: tuple[ControlFile, ...] = ()

    def named(self) -> dict[str, InputFile]:
        """Name and hash of every picture and ControlNet, for the record."""
        found = {"init": self.init, "mask": self.mask}
        found |= {f"hint {i + 1}": control.hint for i, control in enumerate(self.controls)}
        pictures = {name: _named(picture) for name, picture in found.items() if picture is not None}
        for i, control in enumerate(self.controls):
            if control.net.exists():  # else a name on the hub
                pictures |= fingerprints({f"control {i + 1}": control.net}, allow_pickle=control.allow_pickle)
        return pictures


def _named(picture: Path | Image.Image) -> InputFile:
    if isinstance(picture, Path):
        return input_file(picture)
    return InputFile(name=IN_MEMORY, sha256=hash_pixels(picture))


@dataclass(frozen=True)
class Workpiece:
    """What is drawn from picture files.

    Attributes:
        inputs: for the pipeline.
        how: with the size that is drawn.
        finish: a drawn picture to the one that is wanted.
    """

    inputs: Inputs
    how: Drawing
    finish: Callable[[Image.Image], Image.Image]


def prepare(files: PictureFiles, model: Model, how: Drawing) -> Workpiece:
    """Open what ``files`` names and bring it to size.

    Raises:
        UserError: a file is no picture, or something is asked for that lacks its other half.
    """
    _check(files)
    mode = "L" if model.codec.colours == 1 else "RGB"
    if files.init is None:
        how = how.model_copy(update={"height": how.height or model.size[0], "width": how.width or model.size[1]})
        return Workpiece(Inputs(controls=_controls(files, model, how)), how, lambda drawn: drawn)
    picture, mask = _opened(files, mode)
    box = _region(files, picture, mask, model, how)
    how = _sized(how, model, picture if box is None else None)
    width, height = how.width or 0, how.height or 0
    part, part_mask = (picture, mask) if box is None else (picture.crop(box), mask and mask.crop(box))
    fitted = fit_image(part, width, height, files.fit)
    # softened at its own size already, so here it is brought to size alone
    fitted_mask = part_mask and prepare_mask(part_mask, width, height, files.fit)
    inputs = Inputs(
        from_pil(fitted)[None],
        (from_pil(fitted_mask)[None] + 1) / 2 if fitted_mask else None,
        _controls(files, model, how),
    )

    def finish(drawn: Image.Image) -> Image.Image:
        return drawn if box is None or mask is None else paste_back(picture, drawn, box, mask)

    return Workpiece(inputs, how, finish)


def _check(files: PictureFiles) -> None:
    for key in ("mask", "outpaint"):
        if getattr(files, key) is not None and files.init is None:
            raise UserError(f"{key} needs a picture to begin from (init)")
    if files.outpaint is not None and (files.mask is not None or files.only_masked):
        raise UserError("outpaint makes a mask of its own: leave out mask and only_masked")
    if files.mask is None and files.outpaint is None and (files.invert_mask or files.mask_blur):
        raise UserError("invert_mask and mask_blur need a mask")
    if files.only_masked and files.mask is None:
        raise UserError("only_masked needs a mask")
    for key, idle, needed in (
        ("padding", not files.only_masked, "is of the region that only_masked draws: ask for that too"),
        ("outpaint_fill", files.outpaint is None, "is what outpaint's room holds: ask for that too"),
        ("fit", files.init is None and not files.controls, "is about a picture (init, or the hint of a control)"),
    ):
        if idle and getattr(files, key) != PictureFiles.model_fields[key].default:
            raise UserError(f"{key} {getattr(files, key)} {needed}")


def _opened(files: PictureFiles, mode: Literal["L", "RGB"]) -> tuple[Image.Image, Image.Image | None]:
    """The picture, with its room, and its mask at the picture's size."""
    assert files.init is not None
    picture = open_picture(files.init, mode)
    if files.outpaint is not None:
        picture, mask = pad_for_outpainting(picture, *files.outpaint, fill=files.outpaint_fill)
        return picture, prepare_mask(mask, *picture.size, blur=files.mask_blur)
    if files.mask is None:
        return picture, None
    mask = open_picture(files.mask, "L", background=(0, 0, 0))  # what is transparent is not masked
    if abs(mask.width * picture.height - mask.height * picture.width) > 0.02 * mask.width * picture.height:
        sizes = f"{mask.width}x{mask.height}, and the picture {picture.width}x{picture.height}"
        raise UserError(f"the mask is {sizes}: their proportions differ")
    mask = prepare_mask(mask, *picture.size, invert=files.invert_mask, blur=files.mask_blur)
    if mask.getextrema() == (0, 0):
        raise UserError("the mask is empty: there is nothing to draw")
    return picture, mask


def _region(
    files: PictureFiles, picture: Image.Image, mask: Image.Image | None, model: Model, how: Drawing
) -> Box | None:
    if not files.only_masked or mask is None:
        return None
    return masked_region(mask, files.padding, how.width or model.size[1], how.height or model.size[0])


def _sized(how: Drawing, model: Model, picture: Image.Image | None) -> Drawing:
    """With the size that is drawn: what was asked for, or the picture's to the nearest that the codec takes."""
    factor = model.codec.factor
    own = (model.size[1], model.size[0]) if picture is None else picture.size
    width, height = (max(factor, round(side / factor) * factor) for side in own)
    return how.model_copy(update={"width": how.width or width, "height": how.height or height})


def _controls(files: PictureFiles, model: Model, how: Drawing) -> tuple[Control, ...]:
    found, nets = [], _control_nets(files.controls, model)
    for control in files.controls:
        net = nets[control.net, control.allow_pickle]
        mode = "L" if net.config.conditioning_channels == 1 else "RGB"
        hint = fit_image(open_picture(control.hint, mode), how.width or 0, how.height or 0, files.fit)
        found.append(Control(net, (from_pil(hint)[None] + 1) / 2, control.scale, control.start, control.end))
    return tuple(found)


def _runs(net: nn.Module) -> tuple[torch.dtype, torch.device, str]:
    """The dtype, device and attention backend that a network has been made ready for."""
    first = next(net.parameters(), torch.empty(0))
    backends = (module.backend for module in net.modules() if isinstance(module, Attention))
    return first.dtype, first.device, next(backends, "sdpa")


_nets: dict[tuple[Any, ...], ControlNet] = {}


def _control_nets(controls: Sequence[ControlFile], model: Model) -> dict[tuple[Path, bool], ControlNet]:
    """The nets by place and permission.

    Those of the last call are kept, because settings are checked before anything is drawn, and a table of them is drawn
    in several turns.
    """
    runs = _runs(model.net)
    keys = {
        (control.net, control.allow_pickle): (control.net, control.allow_pickle, _digest(control), *runs)
        for control in controls
    }
    for key in _nets.keys() - set(keys.values()):
        del _nets[key]
    for key in keys.values():
        if key not in _nets:
            _nets[key] = _read_net(key[0], key[1], *runs)
    return {short: _nets[key] for short, key in keys.items()}


def _digest(control: ControlFile) -> str | None:
    return fingerprint(control.net, allow_pickle=control.allow_pickle) if control.net.exists() else None


def _read_net(place: Path, allow_pickle: bool, dtype: torch.dtype, device: torch.device, attention: str) -> ControlNet:
    net = read_controlnet(place, Reading(dtype=dtype, allow_pickle=allow_pickle))
    prepare_module(net, device=device, dtype=dtype, attention=attention)
    return net
