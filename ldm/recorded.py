"""Opening a model to draw with, and drawing a picture again from its record.

A picture that was drawn in a batch is drawn again in that batch: its companions are in its record, because the sums of
another batch are rounded in another order. On a CPU in float32 every picture is drawn by itself, so it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import Field

from ldm import accel
from ldm.batch import Progress
from ldm.conditioner import Condition
from ldm.drawing import Drawing
from ldm.errors import UserError
from ldm.metadata.record import InputFile, Record
from ldm.open_picture import IN_MEMORY
from ldm.schema import Settings
from ldm.studio import Studio
from ldm.weights.embedded import DEFAULT
from ldm.weights.fingerprint import fingerprints
from ldm.weights.opening import Loading, open_model
from ldm.weights.tuned import whole_model
from ldm.workpieces import PictureFiles


def load(
    place: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    attention: str = "sdpa",
    compile: bool = False,
    **weights: object,
) -> Studio:
    """Read a model and make it ready to draw.

    Args:
        place: a model folder, a run of ``ldm train`` (of a LoRA or word, too), a single file, ``owner/name`` on the
            Hugging Face hub, ``ldm:NAME`` for one that comes with the package, or None for the first of these.
        device: ``cpu``, ``cuda``, ...; None picks.
        dtype: ``fp32``, ``bf16`` or ``fp16``; None picks the fastest that the device computes well in.
        attention: ``sdpa``, ``xformers`` or ``math``.
        compile: compile the U-Net with ``torch.compile``; pays after some dozens of pictures.
        **weights: fields of ``ldm.weights.opening.Loading``: ``variant``, ``vae``, ``loras``, ``embeddings``, ...

    Raises:
        UserError: the model or an option is not to be had.
    """
    place, weights = whole_model(place, weights)
    where = accel.pick_device(None if device is None else str(device))
    kind = accel.pick_dtype(None if dtype is None else str(dtype).removeprefix("torch."), where)
    model = open_model(DEFAULT if place is None else place, Loading.checked(weights), kind)
    asked = {"device": device, "dtype": dtype, "attention": attention, "compile": compile, **weights}
    loading = {key: value for key, value in asked.items() if value not in (None, False)}
    if model.commit is not None:
        loading["revision"] = model.commit  # a branch moves on
    live = bool(loading.get("live"))
    prepared = accel.prepare_model(model, where, kind, attention, compile, pack=not live)
    studio = Studio(prepared, where, kind, None if place is None else str(place), loading)
    if live:
        studio.set_loras(loading.get("loras", ()))
    return studio


class _Loaded(Loading):
    """What a record says of how its model was loaded; anybody can have written it."""

    device: str | None = None
    dtype: str | None = None
    attention: str = "sdpa"
    compile: bool = False
    threads: int | None = Field(default=None, ge=1, le=1024)


class _Company(Settings):
    """What a record says of a drawing beside fields of ``Drawing``.

    Attributes:
        batch: prompt and seed of every picture that was drawn together with this one, itself among them.
        place_in_batch: of this one.
        pictures: fields of ``PictureFiles``.
        asked: what was asked for, where the prompt says it in other words.
    """

    batch: tuple[tuple[Condition, int], ...] = ()
    place_in_batch: int = Field(default=0, ge=0)
    pictures: dict[str, Any] = Field(default_factory=dict)
    asked: str | None = None


def draw_again(
    record: Record,
    model: str | None = None,
    progress: Callable[[int], Progress] | None = None,
    allow_pickle: bool = False,
) -> tuple[Image.Image, Record]:
    """Draw a picture from its record.

    Args:
        record: of the picture.
        model: in place of where the record says that the model was.
        progress: as that of ``Studio.draw``.
        allow_pickle: read pickles if it was drawn from some, whatever the record says.

    Raises:
        UserError: the model or an input is not there, or is another one.
    """
    for name, file in record.inputs.items():
        if file.name == IN_MEMORY:
            raise UserError(f"{name} was a picture in memory, of which the record has only the hash: keep it as a file")
    drawing = dict(record.drawing)
    company = _Company.checked({key: drawing.pop(key) for key in _Company.model_fields if key in drawing})
    files = _picture_files(company, allow_pickle)
    how = _Loaded.checked({**record.loading, "allow_pickle": allow_pickle})
    _check_files(record, {**files.named(), **fingerprints(how.files(), how.variant, how.allow_pickle)})
    asked = how.model_dump(exclude_defaults=True, exclude={"threads"})
    studio = load(model or record.model.source or None, **asked)
    if record.model.hash is not None and studio.fingerprint != record.model.hash:
        other = f"{studio.place or 'the model in ldm'} is not {record.model.name}, which drew the picture"
        raise UserError(f"{other}, or has its weights in another form")
    together = company.batch or ((record.prompt, record.seed),)
    if company.place_in_batch >= len(together):
        raise UserError(f"the record is of picture {company.place_in_batch} in a batch of {len(together)}")
    drawn = Drawing.checked({**drawing, "negative": record.negative})
    place = company.place_in_batch
    asked = {} if company.asked is None else {place: company.asked}
    with _threads(how.threads):
        found = studio.draw([c for c, _ in together], [s for _, s in together], drawn, files, progress, asked=asked)
    return found[place]


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """As many threads as then: sums that are shared among others are rounded in another order."""
    own = torch.get_num_threads()
    torch.set_num_threads(wanted or own)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def _picture_files(company: _Company, allow_pickle: bool) -> PictureFiles:
    files = PictureFiles.checked(company.pictures)
    controls = tuple(net.model_copy(update={"allow_pickle": allow_pickle}) for net in files.controls)
    return files.model_copy(update={"controls": controls})


def _check_files(record: Record, found: Mapping[str, InputFile]) -> None:
    for name, file in record.inputs.items():
        if name not in found or found[name].sha256 != file.sha256:
            raise UserError(f"{name} ({file.name}) is not the file that the picture was drawn from")
