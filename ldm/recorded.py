"""Opening a model to draw with, and drawing a picture again from its record.

A picture that was drawn in a batch is drawn again in that batch: its companions are in its record, because the sums of
another batch are rounded in another order. On a CPU in float32 every picture is drawn by itself, so it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ldm import accel
from ldm.batch import Progress
from ldm.drawing import Drawing
from ldm.errors import UserError
from ldm.metadata.record import Record
from ldm.studio import Studio, of_weights
from ldm.weights.fingerprint import fingerprints
from ldm.weights.opening import Loading, open_model
from ldm.workpieces import PictureFiles

EMBEDDED = Path(__file__).parent / "assets" / "mnist_text"


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
        place: a model folder, a run of ``ldm train``, a single file, ``owner/name`` on the Hugging Face hub, or None
            for the model that comes with the package.
        device: ``cpu``, ``cuda``, ...; None picks.
        dtype: ``fp32``, ``bf16`` or ``fp16``; None picks the fastest that the device computes well in.
        attention: ``sdpa``, ``xformers`` or ``math``.
        compile: compile the U-Net with ``torch.compile``; pays after some dozens of pictures.
        **weights: fields of ``ldm.weights.opening.Loading``: ``variant``, ``vae``, ``loras``, ``embeddings``, ...

    Raises:
        UserError: the model or an option is not to be had.
    """
    where = accel.pick_device(device)
    kind = accel.pick_dtype(dtype, where)
    model = open_model(EMBEDDED if place is None else place, Loading.checked(weights), kind)
    asked = {"device": device, "dtype": dtype, "attention": attention, "compile": compile, **weights}
    loading = {key: value for key, value in asked.items() if value not in (None, False)}
    live = bool(loading.get("live"))
    prepared = accel.prepare_model(model, where, kind, attention, compile, pack=not live)
    studio = Studio(prepared, where, kind, None if place is None else str(place), loading)
    if live:
        studio.set_loras(loading.get("loras", ()))
    return studio


def draw_again(
    record: Record, model: str | None = None, progress: Callable[[int], Progress] | None = None
) -> tuple[Image.Image, Record]:
    """Draw a picture from its record.

    Args:
        record: of the picture.
        model: in place of where the record says that the model was.
        progress: as that of ``Studio.draw``.

    Raises:
        UserError: the model or an input is not there, or is another one.
    """
    drawing = dict(record.drawing)
    files = PictureFiles.checked(drawing.pop("pictures", None) or {})
    company = drawing.pop("batch", None) or [[record.prompt, record.seed]]
    place = drawing.pop("place_in_batch", 0)
    loading = {key: value for key, value in record.loading.items() if key != "threads"}
    how = of_weights(loading)
    found = {**files.named(), **fingerprints(how.files(), how.variant, how.allow_pickle)}
    for name, file in record.inputs.items():
        if name not in found or found[name].sha256 != file.sha256:
            raise UserError(f"{name} ({file.name}) is not the file that the picture was drawn from")
    studio = load(model or record.model.source or None, **loading)
    if record.model.hash is not None and studio.fingerprint != record.model.hash:
        raise UserError(f"{studio.place or 'the model in ldm'} is not {record.model.name}, which drew the picture")
    drawn = Drawing.checked({**drawing, "negative": record.negative})
    return studio.draw([c for c, _ in company], [s for _, s in company], drawn, files, progress)[place]
