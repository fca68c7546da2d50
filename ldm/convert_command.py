"""What ``ldm convert`` does, once its flags are read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm.accel import DTYPES
from ldm.errors import UserError, choose
from ldm.requests import loras_of
from ldm.weights.converting import FORMS, NAMINGS, Converted, convert_lora, convert_model
from ldm.weights.opening import Loading, open_model

_PATIENCE = 2.0  # seconds before a bar is shown
_FEW = 3


class Wishes(Loading):
    """The flags of ``ldm convert``, beside those of ``Loading``.

    Attributes:
        dtype: ``fp32``, ``fp16`` or ``bf16``; None leaves the tensors as they are.
        half_variant: a folder of ``*.fp16.safetensors``.
        model: which model a LoRA is for.
    """

    dtype: str | None = None
    half_variant: bool = False
    model: str | None = None


_FOR_LORA = {"model", "variant", "revision", "allow_pickle"}  # the last three say how the model is read


def convert_files(source: str, target: Path, to: str, options: dict[str, Any]) -> None:
    """Convert a model, a part of one alone, or a LoRA, and say in a line what was done.

    Args:
        source: a model as ``open_model`` reads it; a U-Net, autoencoder, text encoder or ControlNet alone; or a LoRA.
        target: a folder or file.
        to: ``diffusers`` or ``single-file`` for a model or part, ``peft`` or ``kohya`` for a LoRA.
        options: fields of ``Wishes``; each of ``loras`` is FILE or FILE:WEIGHT.

    Raises:
        UserError: anything the user can mend; nothing is written then.
    """
    choose(to, (*FORMS, *NAMINGS), "form")
    wishes, began = Wishes.checked({**options, "loras": loras_of(options.get("loras"))}), time.perf_counter()
    done = _model(source, target, to, wishes) if to in FORMS else _lora(source, target, to, wishes)
    print(f"{_in_words(done)}, {time.perf_counter() - began:.1f} s")
    if done.left_out:
        more = ", ..." if len(done.left_out) > _FEW else ""
        print(f"left out, as nothing draws with it: {len(done.left_out)} ({', '.join(done.left_out[:_FEW])}{more})")
    for line in done.assumed:
        print(f"assumed, as the file does not say: {line}")
    if done.tokenizers:
        print(
            f"its {' and '.join(done.tokenizers)} is not CLIP's own: ldm finds it in the file's header, and other "
            "programs would read prompts wrongly with theirs"
        )


def _model(source: str, target: Path, to: Any, wishes: Wishes) -> Converted:
    if wishes.model is not None:
        raise UserError("model says which model a LoRA is for (to peft or kohya); a model needs none")
    dtype = None if wishes.dtype is None else DTYPES[choose(wishes.dtype, DTYPES, "dtype")]
    how = Loading(**wishes.model_dump(include=set(Loading.model_fields)))
    with tqdm(unit="B", unit_scale=True, disable=None, leave=False, delay=_PATIENCE) as bar:

        def wrote(done: int, size: int) -> None:
            bar.total = size
            bar.update(done - bar.n)

        return convert_model(source, target, to, how, dtype=dtype, half_variant=wishes.half_variant, progress=wrote)


def _lora(source: str, target: Path, to: Any, wishes: Wishes) -> Converted:
    idle = [name for name in wishes.model_fields_set - _FOR_LORA if getattr(wishes, name)]
    if idle:
        raise UserError(f"{', '.join(sorted(idle))}: for models, and {to} is a naming of LoRAs, which have none")
    if wishes.model is None:
        raise UserError(f"a LoRA's layers are named by the model it is for: give one as model, to convert to {to}")
    how = Loading(variant=wishes.variant, revision=wishes.revision, allow_pickle=wishes.allow_pickle)
    return convert_lora(Path(source), target, to, open_model(wishes.model, how))


def _in_words(done: Converted) -> str:
    return f"{done.path}: {', '.join(done.parts)}, {done.size / 1e6:,.1f} MB, {done.dtypes}"
