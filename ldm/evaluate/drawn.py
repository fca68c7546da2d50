"""Pictures drawn to be measured: conditions as frequent as in the reference, a seed for each, features at once.

The pictures themselves are not kept but for the first few: of 50,000 at 512 x 512 they would be 39 GB.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ldm.conditioner import Condition, LabelConditioner
from ldm.errors import UserError
from ldm.evaluate.features import Features
from ldm.evaluate.gathering import advance, bar, exact_float32, in_order, shares
from ldm.evaluate.reference import RealPictures
from ldm.flops import Meter
from ldm.images import to_bytes
from ldm.pipeline import Pipeline
from ldm.text_conditioner import TextConditioner
from ldm.training.parallel import Team
from ldm.training.run_source import HOW_TO_CAPTION

SHOWN = 64  # pictures that are kept
Kind = Literal["auto", "none", "label", "text"]


class Request(NamedTuple):
    """What one picture is to show: the condition, and label and caption of its example, where anything is asked for."""

    condition: Condition
    label: int | None
    caption: str | None


@dataclass(frozen=True)
class Drawn:
    """What is known of pictures once they are drawn.

    Attributes:
        features: (N, D) in each network.
        first: uint8 (N, C, H, W), the first few.
        seconds: that a device works on one, conditions and decoding included, features not; the median of the batches.
        flops: operations of one.
    """

    features: list[Tensor]
    first: Tensor
    seconds: float
    flops: int


def kind_of(pipeline: Pipeline, wanted: Kind, real: RealPictures) -> Literal["none", "label", "text"]:
    """What the pictures of a model are asked for with.

    Raises:
        UserError: the model does not read it, or the real pictures do not have it.
    """
    conditioner = pipeline.model.conditioner
    labels, texts = isinstance(conditioner, LabelConditioner), isinstance(conditioner, TextConditioner)
    kind = wanted if wanted != "auto" else "label" if labels else "text" if texts else "none"
    if kind != "none" and not {"label": labels, "text": texts}[kind]:
        raise UserError(f"conditions of kind {kind} are not for this model, which takes {conditioner.accepts}")
    if kind == "label" and real.classes is None:
        raise UserError(f"{real.name} has no labels to ask for: --conditions none draws without")
    if kind == "text" and not real.captioned:
        told = "has no captions to ask for: --conditions none draws without"
        raise UserError(f"{real.name} {told}; or give it some: {HOW_TO_CAPTION}")
    return kind


def requests(real: RealPictures, kind: str, count: int, seed: int) -> list[Request]:
    """What to ask for, picture by picture: the examples in a random order, again and again.

    Raises:
        UserError: the words of an example cannot be used.
    """
    if kind == "none":
        return [Request(None, None, None)] * count
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed)).tolist()
    found = []
    for i in range(count):
        words = real.words(order[i % len(order)])
        caption = words.captions[(seed + i) % len(words.captions)] if words.captions else None
        if kind == "text" and caption is None:
            raise UserError(f"{real.name}: a picture has no caption to ask for")
        condition: Condition = words.label if kind == "label" else caption
        found.append(Request(condition, words.label, caption))
    return found


def draw_all(
    pipeline: Pipeline,
    asked: Sequence[Request],
    how: Mapping[str, Any],
    networks: Sequence[Features],
    team: Team,
    *,
    seed: int,
    batch_size: int,
    title: str = "drawing",
    shown: int = SHOWN,
) -> Drawn | None:
    """Draw pictures and describe them; all but the main process get None.

    Args:
        pipeline: the model.
        asked: what each shows; picture i has the seed ``seed`` + i.
        how: fields of ``ldm.drawing.Drawing``.
        networks: of features.
        team: shares the work.
        seed: of the first picture.
        batch_size: pictures of a batch, which is drawn by one process.
        title: of the bar.
        shown: pictures that are kept, from the first on.

    Raises:
        UserError: they cannot be drawn so.
    """
    how = {**how, "batch_size": batch_size}
    conditioner = pipeline.model.conditioner
    if isinstance(conditioner, TextConditioner):
        how["prompt_syntax"] = "plain"  # brackets in captions are brackets
        conditioner.forget()  # what was drawn before is not to make this cheaper
    flops = _flops_of_one(pipeline, asked[0], how, seed)

    def drawn() -> Iterator[tuple[range, tuple[list[Tensor], Tensor, float]]]:
        with bar(len(asked), title, team) as progress:
            for batch in shares(len(asked), batch_size, team):
                began = time.perf_counter()
                found = pipeline.generate([asked[i].condition for i in batch], [seed + i for i in batch], **how)
                seconds = time.perf_counter() - began
                images = to_bytes(found)
                with exact_float32():
                    described = [network.describe(images) for network in networks]
                yield batch, (described, images[: max(0, shown - batch.start)], seconds / len(batch))
                advance(progress, len(batch) * team.size)

    found = in_order(drawn(), team)
    if found is None:
        return None
    described, first, seconds = zip(*found, strict=True)
    features = [torch.cat(parts) for parts in zip(*described, strict=True)]
    return Drawn(features, torch.cat(first), statistics.median(seconds), flops)


def _flops_of_one(pipeline: Pipeline, asked: Request, how: Mapping[str, Any], seed: int) -> int:
    """The operations of a picture; drawn before the clock runs, as a first call takes longer than others."""
    meter = Meter()
    with meter.running():
        pipeline.generate([asked.condition], [seed], **how)
    return meter.flops
