"""What a diffusion run learns from: its source, class pictures beside it, a part held out, and a cache of all that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ldm.codec import Codec, VAECodec
from ldm.conditioner import Conditioner
from ldm.data.example import Source
from ldm.data.samples import Kept, TrainingSamples
from ldm.data.sources import open_source
from ldm.data.split import hold_out
from ldm.data.streaming import no_stream
from ldm.errors import UserError
from ldm.text_conditioner import TextConditioner
from ldm.training.caching import open_cache
from ldm.training.memorised import check_enough, distinct_places
from ldm.training.player import layout
from ldm.training.prior import class_pictures, is_of_class, with_prior
from ldm.training.run_source import source_of
from ldm.training.settings import DiffusionRun
from ldm.training.start import FROZEN, Start, condition_of, start_of
from ldm.training.textual_inversion import check_captions
from ldm.training.tune_settings import FullTune, InversionTune
from ldm.training.validation import HeldOut
from ldm.weights.model import Model

_CAPTIONS_LOOKED_AT = 100


@dataclass
class Material:
    """What training starts from and learns from.

    Attributes:
        start: the model; what training needs of its frozen parts is on the device.
        samples: for training.
        held_out: for validation, if any.
    """

    start: Start
    samples: TrainingSamples
    held_out: HeldOut | None


def material_of(run: DiffusionRun, device: torch.device) -> Material:
    """Open what a run learns from; all processes call it together.

    Raises:
        UserError: anything about it that the user can mend.
    """
    source = source_of(run)
    start = start_of(run, source)
    validation = run.validation
    count = validation.count if validation is not None else 0
    learned, held = hold_out(source, count, validation.seed) if validation is not None and count else (source, None)
    if run.prior is not None:
        prior = _prior(run, start, device)
        source, learned = with_prior(source, prior), with_prior(learned, prior)
    cache = open_cache(run, source, start, device)
    kept = None if cache is None else cache.of(learned)
    samples = _samples(run, start.model, learned, kept)
    _check(run, samples)
    held_out = None
    if held is not None and validation is not None:
        # a cache of texts has those forms of captions that the run's seed gives
        seed = validation.seed if kept is None or run.captions.variants is None else run.seed
        fixed = run.model_copy(update={"flip": False, "condition": None, "seed": seed})
        held_samples = _samples(fixed, start.model, held, None if cache is None else cache.of(held))
        held_out = HeldOut(held_samples, validation.times, run.train.batch_size, validation.seed, run.skip_bad)
    # what a cache takes the place of stays mapped from its file
    codec = start.model.codec if kept is None or not kept.latents else None
    conditioner = start.model.conditioner if kept is None or not kept.texts else None
    place(run, device, codec)
    # text encoders that are trained, or through which a word is, begin as their files have them, not rounded
    place(run, device, conditioner, dtype=torch.float32 if _trains_texts(run) else None)
    return Material(start, samples, held_out)


def _trains_texts(run: DiffusionRun) -> bool:
    return isinstance(run.tune, InversionTune) or (isinstance(run.tune, FullTune) and run.tune.text_encoder)


def _samples(run: DiffusionRun, model: Model, source: Source, kept: Kept | None) -> TrainingSamples:
    return TrainingSamples(
        source,
        run.seed,
        frame=run.frame,
        captions=run.captions,
        condition=condition_of(model.conditioner),
        drop=getattr(run.condition, "drop", 0.0),
        flip=run.flip,
        process=model.process.build(),
        space=(model.codec.channels, model.codec.factor),
        kept=kept,
        skip_bad=run.skip_bad,
    )


def _check(run: DiffusionRun, samples: TrainingSamples) -> None:
    if run.prior is not None and len(samples.plan.shapes) > 1:
        raise UserError("prior needs pictures of one shape, so that each step has both kinds: frame.buckets false")
    streams = any(part.stream for part in samples.plan.parts)
    if run.memorised is not None and streams:
        raise no_stream("memorised looks through the training pictures", samples.source, "set memorised to null")
    if run.memorised is not None:
        check_enough(distinct_places(samples, is_of_class))
    if isinstance(run.tune, InversionTune) and not streams:
        numbers = range(min(_CAPTIONS_LOOKED_AT, len(samples.source)))
        check_captions(run.tune.token, [samples[n]["captions"] for n in numbers])


def place(
    run: DiffusionRun, device: torch.device, *parts: Codec | Conditioner | None, dtype: torch.dtype | None = None
) -> None:
    """Bring frozen parts to the device, in ``frozen_dtype`` or ``dtype``; in float32 autocast sees to their speed."""
    modules: list[Any] = []  # Any: torch's stubs lack a keyword of Module.to
    for part in parts:
        if isinstance(part, VAECodec):
            modules.append(part.vae)
        if isinstance(part, TextConditioner):
            modules += [tower.encoder for tower in part.towers]
    for module in modules:
        module.to(device, dtype or FROZEN[run.frozen_dtype], memory_format=layout(run.train))


def _prior(run: DiffusionRun, start: Start, device: torch.device) -> Source:
    assert run.prior is not None
    if run.prior.data is not None:
        return open_source(run.prior.data)
    assert run.prior.generate is not None
    model = start.model

    def drawing() -> Model:
        codec, conditioner = start.parts()
        place(run, device, codec, conditioner, dtype=torch.float32)
        net: Any = model.net
        net.to(device, torch.float32, memory_format=layout(run.train))
        return replace(model, codec=codec, conditioner=conditioner)

    told = {"model": run.model, "colours": model.codec.colours, **model.defaults}
    return class_pictures(run.output / "prior", drawing, device, run.prior.generate, told)
