"""All about one picture: enough to draw it again, and to prove that the pixels are the same.

A record is stored as one line of JSON in ASCII; ``Record.from_json(record.to_json(), ...)`` equals ``record``.
"""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, Self

from PIL import Image
from pydantic import Field, StrictFloat, StrictInt, ValidationError

import ldm
from ldm.errors import UserError
from ldm.metadata.plain import Asked, Group, Sha256, Text, printable
from ldm.schema import Settings, explain_all

FORMAT = 1  # raise it whenever an older ldm would misread a record
_LONGEST_FAULT = 500  # characters of a message about a record that somebody else may have made


class InputFile(Settings):
    """A file that a picture was drawn from: a first picture, a mask, a ControlNet, a LoRA.

    Attributes:
        name: as it was given.
        sha256: of its bytes.
    """

    name: Text
    sha256: Sha256


class ModelUsed(Settings):
    """Which weights drew.

    Attributes:
        name: short; for people.
        source: where it was read from: a path or a hub name.
        hash: SHA-256 that tells it from other models; None when it was not computed.
    """

    name: Text
    source: Text
    hash: Sha256 | None = None


class Cost(Settings):
    """The receipt.

    Attributes:
        seconds: that the drawing took; of a batch, this picture's share.
        peak_memory: in MiB: allocated on a GPU for the batch; on a CPU, of the process so far.
        flops: floating-point operations; None when they were not counted.
    """

    seconds: StrictFloat = Field(ge=0)
    peak_memory: StrictFloat | None = Field(default=None, ge=0)
    flops: StrictInt | None = Field(default=None, ge=0, le=2**64 - 1)


class Record(Settings):
    """All about one picture.

    Attributes:
        format: of the record itself.
        prompt: text, class label, or None.
        negative: what was guided away from.
        seed: of the picture's own generator.
        drawing: every other setting, resolved: ``sampler``, ``spacing``, ``steps``, ``guidance``, ``width``,
            ``height``, and whatever else there is. Plain data; tuples become lists. Unknown keys are kept.
        inputs: files that it was drawn from, by their part: ``init``, ``mask``, ...
        model: which weights drew.
        loading: how they were loaded: ``device``, ``dtype``, ``attention``, ...
        versions: of ``ldm``, ``torch``, ``transformers``, ``python``.
        pixels: ``hash_pixels`` of the picture before it was written.
        cost: the receipt.
    """

    format: Literal[1] = FORMAT
    prompt: Asked = None
    negative: Asked = None
    seed: StrictInt = Field(ge=0, le=2**64 - 1)
    drawing: Group
    inputs: dict[Text, InputFile] = Field(default_factory=dict)
    model: ModelUsed
    loading: Group = Field(default_factory=dict)
    versions: dict[Text, Text]
    pixels: Sha256
    cost: Cost

    def to_json(self) -> str:
        """One line of ASCII."""
        return json.dumps(self.model_dump(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes, place: str) -> Self:
        """Read what ``to_json`` wrote.

        Args:
            text: the JSON.
            place: where it comes from, for messages.

        Raises:
            UserError: it is no record, or one of a newer ldm.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: the record is no readable JSON: {error}") from error
        if not isinstance(values, dict) or type(values.get("format")) is not int:
            raise UserError(f"{place}: the record has no format number, so it is none of ldm's")
        if values["format"] > FORMAT:
            raise UserError(
                f"{place}: the record has format {values['format']}, and ldm {ldm.__version__} reads up to {FORMAT}: "
                "a newer ldm reads it"
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]  # one tells enough; a hostile record has a million
            fault = explain_all([(first, ".".join(map(str, first["loc"])), list(cls.model_fields))])[0]
            raise UserError(f"{place}: the record is wrong: {printable(fault[:_LONGEST_FAULT])}") from error


def hash_pixels(image: Image.Image) -> str:
    """SHA-256 of mode, size and pixels, whatever file the picture is written to."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height} ".encode("ascii"))
    digest.update(image.tobytes())
    return digest.hexdigest()


def input_file(path: Path) -> InputFile:
    """Name and hash of a file that a picture is to be drawn from.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return InputFile(name=str(path), sha256=digest)


def installed_versions() -> dict[str, str]:
    """What draws here: versions of ldm, torch, transformers and Python, found without importing them."""
    found = {"ldm": ldm.__version__, "python": platform.python_version()}
    for package in ("torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
