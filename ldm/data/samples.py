"""Training samples: an example with all that is drawn for it, ready to be batched."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.conditioner import Condition
from ldm.data.caption_forms import CaptionConfig, form
from ldm.data.example import BadExample, Example, Source, StreamSource, Words
from ldm.data.framing import Buckets, Frame, FrameConfig, cut, least_to_decode
from ldm.data.order import draws, mix
from ldm.data.plan import Plan, Ticket
from ldm.diffusion.context import Context
from ldm.diffusion.process import Process
from ldm.errors import UserError


class Skipped(NamedTuple):
    """An example that could not be used, and why."""

    key: str
    message: str


@dataclass(frozen=True)
class Batch:
    """B training samples of one shape.

    Attributes:
        index: global sample indices (B,).
        images: (B, C, H, W) uint8, cut and mirrored; or what a codec's ``encode`` gave, float.
        conditions: one per sample, ``None`` where dropped.
        captions: one caption per sample ("" without captions), never dropped.
        uniform: (B,) in [0, 1), for the training time.
        codec_noise, noise: (B, c, h, w), empty where the task asks for none.
        frames: how each picture was cut.
        keys: of the examples.
        context: of the conditions, where they were encoded beforehand.
        skipped: examples in whose place others stand.
    """

    index: Tensor
    images: Tensor
    conditions: list[Condition]
    captions: list[str]
    uniform: Tensor
    codec_noise: Tensor
    noise: Tensor
    frames: list[Frame]
    keys: list[str]
    context: Context | None = None
    skipped: tuple[Skipped, ...] = ()

    def sizes(self) -> Tensor:
        """SDXL's numbers (B, 6): original height and width, top, left, height, width."""
        return torch.tensor([frame.sizes() for frame in self.frames], dtype=torch.float32)

    def to(self, device: torch.device) -> Batch:
        """Move what the network reads; a no-op where it is already there."""
        return self._map(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by the data loader when copies to a GPU are to overlap with work."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, function: Any) -> Batch:
        changed = {k: function(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        context = None if self.context is None else self.context.map(function)
        return Batch(**{**vars(self), **changed, "context": context})


class Kept(Protocol):
    """What a cache keeps in place of pictures and texts.

    Attributes:
        crops: parts kept of each picture; one where it is the centre.
        latents: whether what the codec's ``encode`` gave is kept.
        texts: whether contexts are kept.
    """

    crops: int
    latents: bool
    texts: bool

    def moments(self, part: int, index: int, crop: int, mirrored: bool) -> tuple[Tensor, Frame]:
        """What the codec's ``encode`` gave for a picture, (C, h, w), and how it was cut.

        Raises:
            BadExample: the picture could not be encoded.
        """
        ...

    def context(self, caption: str | None) -> Context:
        """The context of a caption, or of none, batch size 1, on the CPU; that of "" is always there."""
        ...


class TrainingSamples(Dataset[dict[str, Any]]):
    """Samples by their global index, any number of epochs: ``samples[n]`` for n = 0, 1, 2, ...

    Args:
        source: the examples.
        seed: of the run.
        frame: the shapes that pictures come to; None where all have one size and keep it.
        captions: what is done to captions.
        condition: which part of an example conditions the picture: ``none``, ``label`` or ``text``.
        drop: probability of dropping a condition, for classifier-free guidance.
        flip: mirror half of the samples left to right.
        process: draws the diffusion noise; None for tasks without one.
        space: (channels, factor) of the diffused space; None for tasks that draw no noise.
        kept: a cache that takes the place of pictures and texts.
        skip_bad: so many examples that cannot be used are allowed; no sample looks for a stand-in beyond one more.

    Attributes:
        size: (height, width) that the run is about: that of all pictures, or of the largest square bucket.

    Raises:
        UserError: the pictures have several sizes and ``frame`` is None, or a shape is no multiple of the factor.
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        *,
        frame: FrameConfig | None = None,
        captions: CaptionConfig | None = None,
        condition: str = "none",
        drop: float = 0.0,
        flip: bool = False,
        process: Process | None = None,
        space: tuple[int, int] | None = None,
        kept: Kept | None = None,
        skip_bad: int = 0,
    ) -> None:
        self.source, self.seed, self.frame = source, seed, frame
        self.captions = captions or CaptionConfig()
        self.condition, self.drop, self.flip = condition, drop, flip
        self.process, self.space, self.kept, self._skip_bad = process, space, kept, skip_bad
        self.buckets = Buckets(frame) if frame is not None else None
        self.plan = Plan(source, seed, 1, self.buckets)
        side = max(frame.sides) if frame else 0
        self.size = (side, side) if frame else self.plan.shapes[0]
        self._check_shapes()

    def _check_shapes(self) -> None:
        factor = self.space[1] if self.space else 1
        for height, width in self.plan.shapes:
            if height % factor or width % factor:
                told = f"pictures of {width} x {height} are not a multiple of the codec's factor {factor}"
                raise UserError(told + ("; set frame.step to one" if self.frame else ""))

    def begin(self, per_step: int) -> None:
        """Say how many samples a step has, over all processes; it decides which of them share a bucket."""
        self.plan = Plan(self.source, self.seed, per_step, self.buckets)
        for part in self.plan.parts:
            if part.stream:
                cast(StreamSource, part).arrange(per_step, self.seed)

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        """The samples of a batch; called by the data loader."""
        items = [self[n] for n in numbers]
        if items[0]["context"] is not None:
            assert self.kept is not None
            longest = max(item["context"].tokens.shape[1] for item in items)
            for item in items:
                # nothing more is said, or, where a dropped condition is zeros, nothing at all
                more = self.kept.context(None if item["conditions"] is None else "")
                item["context"] = _extended(item["context"], more.tokens, longest)
        return items

    def __getitem__(self, n: int) -> dict[str, Any]:
        generator = draws(self.seed, n)
        # Drawn in one fixed order, used or not, so that no setting shifts what another draws.
        pick, mirror, drop, uniform = torch.rand(4, generator=generator).tolist()
        place = torch.rand(3, generator=torch.Generator().manual_seed(mix(self.seed, 3, n))).tolist()
        image, frame, words, key, shape, skipped = self._picture(self.plan.at(n), self.flip and mirror < 0.5, place)
        caption = self._caption(words, pick, place[2])
        condition = {"none": None, "label": words.label, "text": caption}[self.condition]
        condition = None if drop < self.drop else condition
        channels, factor = self.space or (0, 1)
        latent = (channels, shape[0] // factor, shape[1] // factor) if self.space else (0,)
        codec_noise = torch.randn(latent, generator=generator)
        with_text = self.kept is not None and self.kept.texts and self.condition == "text"
        return {
            "index": n,
            "images": image,
            "conditions": condition,
            "captions": caption,
            "uniform": uniform,
            "codec_noise": codec_noise,
            "noise": self.process.noise(latent, generator) if self.process else codec_noise,
            "frames": frame,
            "keys": key,
            "context": self.kept.context(condition) if self.kept is not None and with_text else None,
            "skipped": skipped,
        }

    def _caption(self, words: Words, pick: float, variant: float) -> str:
        if not words.captions:
            return ""
        return form(words.captions[int(pick * len(words.captions))], self.captions, self.seed, variant)

    def _picture(
        self, ticket: Ticket, mirrored: bool, place: Sequence[float]
    ) -> tuple[Tensor, Frame, Words, str, tuple[int, int], tuple[Skipped, ...]]:
        """The picture of a ticket, or of the first after it that can be used, and what there is to say about it."""
        skipped: dict[str, Skipped] = {}
        first = ticket
        while True:
            part = self.plan.parts[ticket.part]
            try:
                return *self._open(part, ticket, mirrored, place), tuple(skipped.values())
            except BadExample as error:
                skipped.setdefault(error.key, Skipped(error.key, str(error)))
                ticket = self.plan.instead(ticket)
                if ticket == first:
                    raise UserError(f"no picture of {part.name} in this bucket can be used: {error}") from error
                if len(skipped) > self._skip_bad + 1:
                    raise UserError(f"{len(skipped)} examples in a row cannot be used: {error}") from error

    def _open(
        self, part: Source, ticket: Ticket, mirrored: bool, place: Sequence[float]
    ) -> tuple[Tensor, Frame, Words, str, tuple[int, int]]:
        shape = self.plan.shapes[ticket.bucket]
        if self.kept is not None and self.kept.latents:
            crop = int(place[0] * self.kept.crops)
            moments, frame = self.kept.moments(ticket.part, ticket.index, crop, mirrored)
            return moments, frame, part.words(ticket.index), part.key(ticket.index), shape
        example = self._read(part, ticket, shape)
        image, frame = self._cut(example, shape, mirrored, place)
        return image, frame, Words(example.label, example.captions), example.key, shape

    def _read(self, part: Source, ticket: Ticket, shape: tuple[int, int]) -> Example:
        if self.frame is None:
            return part.read(ticket.index)
        if part.sizes is None:  # a stream learns the size when it opens the picture
            return cast(StreamSource, part).read(ticket.index, shape, ticket.turn)
        height, width = part.sizes[ticket.index].tolist()
        return part.read(ticket.index, least_to_decode((height, width), shape))

    def first(self, count: int) -> list[Example]:
        """The first examples that can be used, at most ``count``, each with the centre of its picture at ``size``."""
        found = []
        part = self.plan.parts[0]
        for index in range(len(part)):
            if len(found) == count:
                break
            with contextlib.suppress(BadExample):  # told where it comes up in training
                example = self._read(part, Ticket(0, index, 0), self.size)
                image, _ = cut(example.image, example.original, self.size, 0.5, 0.5, False)
                found.append(replace(example, image=image))
        return found

    def _cut(
        self, example: Example, shape: tuple[int, int], mirrored: bool, place: Sequence[float]
    ) -> tuple[Tensor, Frame]:
        random = self.frame is not None and self.frame.crop == "random"
        down, across = place[:2] if random else (0.5, 0.5)
        return cut(example.image, example.original, shape, down, across, mirrored)


def collate(items: Sequence[dict[str, Any]]) -> Batch:
    """Stack samples into a batch."""
    column = {key: [item[key] for item in items] for key in items[0]}
    contexts = column["context"]
    context = None if contexts[0] is None else Context(*(_cat(parts) for parts in zip(*contexts, strict=True)))
    return Batch(
        index=torch.tensor(column["index"]),
        images=torch.stack(column["images"]),
        conditions=column["conditions"],
        captions=column["captions"],
        uniform=torch.tensor(column["uniform"]),
        codec_noise=torch.stack(column["codec_noise"]),
        noise=torch.stack(column["noise"]),
        frames=column["frames"],
        keys=column["keys"],
        context=context,
        skipped=tuple(skip for row in column["skipped"] for skip in row),
    )


def _cat(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _extended(context: Context, empty: Tensor | None, length: int) -> Context:
    """A context with ``empty`` windows after its own, as ``TextConditioner`` pads prompts of a call."""
    assert context.tokens is not None
    assert empty is not None
    missing = (length - context.tokens.shape[1]) // empty.shape[1]
    return context._replace(tokens=torch.cat([context.tokens, *[empty] * missing], dim=1)) if missing else context
