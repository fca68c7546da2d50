"""A pipeline that keeps a record of every picture."""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

from ldm.accel import peak_memory
from ldm.batch import Progress, follows_scale, moves
from ldm.conditioner import Condition
from ldm.drawing import Drawing
from ldm.errors import UserError
from ldm.flops import Meter, unmetered
from ldm.images import to_pil
from ldm.knowledge.file import Knowledge, read_knowledge
from ldm.knowledge.mending import Mended, Mender
from ldm.metadata.record import Cost, InputFile, ModelUsed, Record, hash_pixels, installed_versions
from ldm.pipeline import Pipeline, check_request
from ldm.preview import LatentPreview, preview_of
from ldm.text_conditioner import TextConditioner
from ldm.weights.fingerprint import fingerprint, fingerprints
from ldm.weights.hub import looks_like_name
from ldm.weights.lora_files import read_lora
from ldm.weights.lora_live import LiveLoras
from ldm.weights.model import Model
from ldm.weights.opening import Loading, lora_targets
from ldm.workpieces import PictureFiles, prepare

PROMPTS_KEPT = 64  # a context of SDXL takes 0.6 MB of the device
PREVIEW_SIDE = 128  # pixels of the pictures that a preview is fitted to


class Studio(Pipeline):
    """A pipeline that knows where its model came from, so that its pictures can be drawn again.

    It draws prompts as they are given; ``mended`` says them in words that the model knows, where it tells which.

    Attributes:
        place: where the model was read from; None is the one in the package.
        loading: the arguments of ``ldm.load`` that are not its defaults.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        place: str | None = None,
        loading: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__(model, device, dtype)
        self.place, self.loading = place, dict(loading)
        self._meter = Meter()
        self._live: LiveLoras | None = None
        if isinstance(model.conditioner, TextConditioner):
            model.conditioner.remember, model.conditioner.together = PROMPTS_KEPT, False

    def __call__(
        self,
        prompt: Condition | Sequence[Condition],
        *,
        seed: int = 0,
        pictures: Mapping[str, Any] = MappingProxyType({}),
        progress: Progress | None = None,
        **options: object,
    ) -> list[Image.Image]:
        """Draw one picture per prompt: PIL images; the k-th has seed ``seed`` + k.

        Each has its record as ``image.info["record"]``; ``ldm.images.save_image`` writes it into the file.

        Args:
            prompt: a prompt or label, or several.
            seed: of the first picture.
            pictures: to begin from or to follow, files or PIL's: fields of ``ldm.workpieces.PictureFiles``, such as
                ``{"init": image, "mask": "mask.png"}``.
            progress: is called after each move with the moves made, those of this batch in all, and the ``Step``;
                ``studio.preview.pictures(step.x0)`` shows how far it is.
            **options: fields of ``ldm.drawing.Drawing``.

        Raises:
            UserError: anything the user can mend.
        """
        conditions = [prompt] if prompt is None or isinstance(prompt, str | int) else list(prompt)
        first = _whole(seed)
        seeds = [first + k for k in range(len(conditions))]
        how, files = Drawing.checked(options), PictureFiles.checked(pictures)
        drawn = self.draw(conditions, seeds, how, files, progress and (lambda _: progress))
        for image, record in drawn:
            image.info["record"] = record
        return [image for image, _ in drawn]

    def set_loras(self, loras: Sequence[tuple[str | Path, float]]) -> None:
        """Let these LoRAs, and no others, change the pictures from now on.

        Args:
            loras: files and weights: 1 is as trained, 0 nothing, below 0 the opposite. A file that is named twice has
                the sum.

        Raises:
            UserError: the model was not loaded with ``live=True``, or a LoRA cannot be read or is for another model.
                The LoRAs are as before then.
        """
        wanted = Loading.checked({"loras": loras}).loras
        if not self.loading.get("live"):
            raise UserError("LoRAs were merged into this model, if any; ldm.load(..., live=True) lets them be changed")
        targets = lora_targets(self.model)
        live = self._live = self._live or LiveLoras(targets)
        names = {file: f"{file}@{fingerprint(file)[:8]}" for file, _ in wanted}  # a file may change between two calls
        weights: dict[str, float] = {}
        for file, weight in wanted:
            weights[names[file]] = weights.get(names[file], 0.0) + weight
        before = dict(live.weights)
        try:
            for file, name in names.items():
                if name not in live.weights:
                    live.add(replace(read_lora(file, targets), name=name), 0.0)
        finally:
            live.set_weights(before)
        if weights:
            live.set_weights(weights)
        else:
            live.remove()  # and let go of their memory
        if isinstance(self.model.conditioner, TextConditioner):
            self.model.conditioner.forget()
        self._meter = Meter()  # the layers cost something else now
        self.loading["loras"] = wanted

    @functools.cached_property
    def preview(self) -> LatentPreview:
        """Shows latents on the way as pictures without decoding them; fitted to the codec when first asked for."""
        codec, (height, width) = self.model.codec, self.model.size
        largest = max(1, PREVIEW_SIDE // codec.factor) * codec.factor
        with unmetered():
            return preview_of(codec, codec.colours, min(height, largest), min(width, largest))

    @functools.cached_property
    def knowledge(self) -> Knowledge | None:
        """What the model's folder says that it can draw; None where it says nothing.

        Raises:
            UserError: it is damaged.
        """
        folder = self.model.folder
        return read_knowledge(folder) if folder is not None else None

    def mended(self, prompt: str) -> Mended:
        """A prompt with the nearest known words in place of unknown ones, and which they are.

        It stays as it is where the model does not say what it knows, and where LoRAs are in use, as those may have been
        trained with any words. Words of textual inversion are known.
        """
        if self._mender is None or self.loading.get("loras"):
            return Mended(prompt, ())
        return self._mender(prompt)

    @functools.cached_property
    def _mender(self) -> Mender | None:
        conditioner = self.model.conditioner
        if not isinstance(conditioner, TextConditioner) or self.knowledge is None:
            return None
        own = {token.lower() for tower in conditioner.towers for token in tower.tokenizer.get_added_vocab()}
        return Mender(self.knowledge, own)

    def settled(self, how: Drawing, files: PictureFiles) -> Drawing:
        """The settings that ``draw`` will come to.

        Raises:
            UserError: they do not fit the model or the files.
        """
        work = prepare(files, self.model, how)
        return self.settle(work.how, work.inputs)

    def draw(
        self,
        conditions: Sequence[Condition],
        seeds: Sequence[int],
        how: Drawing,
        files: PictureFiles = PictureFiles(),  # noqa: B008  frozen, so it can be shared
        progress: Callable[[int], Progress] | None = None,
        finished: Callable[[int, Image.Image, Record], object] | None = None,
        asked: Mapping[int, str] = MappingProxyType({}),
    ) -> list[tuple[Image.Image, Record]]:
        """Pictures and their records.

        Args:
            conditions: one prompt, label or None per picture.
            seeds: one per picture.
            how: to draw.
            files: pictures to begin from or to follow.
            progress: is told how many moves there will be, and gives what is called after each.
            finished: is given each picture as soon as it is drawn, with its place among them.
            asked: place -> what was asked for, where that was said otherwise than it is drawn: for the record.

        Raises:
            UserError: anything the user can mend.
        """
        check_request(conditions, seeds)
        work = prepare(files, self.model, how)
        settled = self.settle(work.how, work.inputs)
        if settled.guidance == 0 and not follows_scale(self.model) and set(conditions) - {None, ""}:
            raise UserError("guidance 0 leaves the prompt out; none is 1, which diffusers calls 0 for turbo models")
        batches = self.batches(conditions, settled)
        told = progress and progress(len(batches) * moves(settled, work.inputs, self.model))
        chosen = {**settled.model_dump(mode="json"), "pictures": files.model_dump(mode="json", exclude_defaults=True)}
        weights = _of_weights(self.loading)
        inputs = {**files.named(), **fingerprints(weights.files(), weights.variant, weights.allow_pickle)}
        found: dict[int, tuple[Image.Image, Record]] = {}
        for batch in batches:
            began = time.perf_counter()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            with self._meter.running():
                drawn = self.generate(
                    [conditions[i] for i in batch],
                    [seeds[i] for i in batch],
                    inputs=work.inputs,
                    progress=told,
                    **settled.model_dump(),
                )
            images = [work.finish(image) for image in to_pil(drawn)]
            cost = self._cost(time.perf_counter() - began, len(batch))
            company = [[conditions[i], seeds[i]] for i in batch] if len(batch) > 1 else []
            for place, (i, image) in enumerate(zip(batch, images, strict=True)):
                drawing = {**chosen, **({"batch": company, "place_in_batch": place} if company else {})}
                drawing |= {"asked": asked[i]} if i in asked else {}
                found[i] = image, self._record(conditions[i], seeds[i], drawing, inputs, image, cost)
                if finished is not None:
                    finished(i, *found[i])
        return [found[i] for i in range(len(conditions))]

    def _cost(self, seconds: float, pictures: int) -> Cost:
        """One picture's share of a batch. torch's counter does not see what xformers does."""
        flops = None if self.loading.get("attention") == "xformers" else self._meter.flops // pictures
        return Cost(seconds=seconds / pictures, peak_memory=peak_memory(self.device), flops=flops)

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """What tells the model from others."""
        how = _of_weights(self.loading)
        return fingerprint(self.model.folder, how.variant, how.allow_pickle) if self.model.folder else None

    @property
    def _name(self) -> str:
        """Of the model, for people."""
        folder = self.model.folder or Path("model")
        if self.place is not None and looks_like_name(self.place):
            return self.place
        return folder.stem if folder.is_file() else folder.name

    def _record(
        self,
        condition: Condition,
        seed: int,
        drawing: dict[str, Any],
        inputs: dict[str, InputFile],
        image: Image.Image,
        cost: Cost,
    ) -> Record:
        rest = {key: value for key, value in drawing.items() if key != "negative"}
        known = {"device": str(self.device), "dtype": str(self.denoiser.dtype).removeprefix("torch.")}
        return Record.checked(
            {
                "prompt": condition,
                "negative": drawing["negative"],
                "seed": seed,
                "drawing": rest,
                "inputs": inputs,
                "model": ModelUsed(
                    name=self._name,
                    source=self.place or "",
                    hash=self.fingerprint,
                ),
                "loading": {**_plain(self.loading), **known, "threads": torch.get_num_threads()},
                "versions": installed_versions(),
                "pixels": hash_pixels(image),
                "cost": cost,
            }
        )


def _whole(seed: object) -> int:
    try:
        return operator.index(seed)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise UserError(f"seed should be a whole number, of the first picture; got {seed!r}") from error


def _of_weights(loading: Mapping[str, Any]) -> Loading:
    """What a record or a studio says of its weights, without device and the like."""
    return Loading.checked({key: value for key, value in loading.items() if key in Loading.model_fields})


def _plain(value: Any) -> Any:
    """As JSON has it: paths as text, tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
