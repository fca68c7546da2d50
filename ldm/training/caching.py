"""The cache of a run: what its configuration wants kept, and how that is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ldm.cache.build import Maker, Wanted, open_or_build
from ldm.cache.cuts import Cutting
from ldm.cache.fingerprint import plain
from ldm.cache.makers import text_traits, vae_traits
from ldm.cache.reader import Cache
from ldm.cache.settings import CacheConfig
from ldm.codec import VAECodec
from ldm.data.example import Source
from ldm.data.streaming import no_stream
from ldm.errors import IdleError, UserError
from ldm.text_conditioner import TextConditioner
from ldm.training.settings import DiffusionRun
from ldm.training.start import FROZEN, Start
from ldm.weights.model import Model


def open_cache(
    run: DiffusionRun, source: Source, start: Start, device: torch.device, *, thorough: bool = False
) -> Cache | None:
    """The cache that a run reads, complete; None where it asks for none. All processes call this together.

    Args:
        run: its settings.
        source: all its pictures, before any are held out; ``Cache.of`` gives the rows of any part of them.
        start: what the run starts from, with weights as they were loaded.
        device: to encode on; what is encoded with is read anew there, and let go.
        thorough: check every file in full.

    Raises:
        UserError: the run cannot do with a cache, or the cache cannot be made.
    """
    if run.cache is None:
        return None
    if source.stream:
        raise no_stream("cache finds pictures again by their keys", source, "set cache to null")
    return open_or_build(wanted(run, run.cache, source, start, device), thorough=thorough)


def wanted(run: DiffusionRun, config: CacheConfig, source: Source, start: Start, device: torch.device) -> Wanted:
    """What a run wants kept.

    Raises:
        UserError: there is nothing to keep, or something that cannot be kept.
    """
    codec, conditioner = start.model.codec, start.model.conditioner
    texts = config.texts and isinstance(conditioner, TextConditioner)
    _check(run, config, start.model, texts)
    random = run.frame is not None and run.frame.crop == "random"
    cutting = Cutting(run.frame, config.crops, run.flip, run.seed)
    common = {
        **plain("cache.dtype", config.dtype),
        **plain("precision", f"{run.train.mixed_precision} with weights in {run.frozen_dtype}"),
    }
    vae = text = None
    if isinstance(codec, VAECodec):
        cut = {
            **plain("frame", "none" if run.frame is None else run.frame.model_dump_json()),
            **plain("flip", run.flip),
            **plain("cache.crops", config.crops),
            **(plain("seed", run.seed) if random else {}),
        }
        recipe = {**vae_traits(codec, _place_of_vae(run)), **cut, **common}
        vae = Maker(recipe, _maker(run, start, device, VAECodec))
    if texts and isinstance(conditioner, TextConditioner):
        recipe = {**text_traits(conditioner, _place_of_text(run)), **common}
        text = Maker(recipe, _maker(run, start, device, TextConditioner))
    return Wanted(
        folder=config.path or run.output / "cache",
        config=config,
        source=source,
        cutting=cutting,
        captions=run.captions,
        vae=vae,
        text=text,
        precision=run.train.mixed_precision,
        device=device,
        batch_size=run.train.batch_size,
        # a GPU is faster so, and the same to the bit only on a CPU
        channels_last=run.train.channels_last or device.type == "cuda",
        workers=run.train.workers,
        skip_bad=run.skip_bad,
    )


def _check(run: DiffusionRun, config: CacheConfig, model: Model, texts: bool) -> None:
    if not isinstance(model.codec, VAECodec) and not texts:
        raise UserError("cache has nothing to keep: the run diffuses pixels, and encodes no texts that could be kept")
    if config.crops > 1 and (run.frame is None or run.frame.crop == "center"):
        raise IdleError("cache.crops", "cache.crops does nothing while frame.crop is center: there is one centre")
    if texts and (run.tune.kind == "textual_inversion" or getattr(run.tune, "text_encoder", False)):
        raise UserError("cache.texts must be false while the text encoder or its words are trained: they change")
    if model.inpaints:
        raise UserError("cache keeps no pictures, and masks are cut out of pictures: leave out `cache`")


def _place_of_vae(run: DiffusionRun) -> str:
    return str(run.loading.vae or run.model or getattr(run.codec, "path", ""))


def _place_of_text(run: DiffusionRun) -> str:
    return str(run.model or getattr(run.condition, "path", ""))


_Part = TypeVar("_Part", VAECodec, TextConditioner)


def _maker(run: DiffusionRun, start: Start, device: torch.device, kind: type[_Part]) -> Callable[[], _Part]:
    """Reads the codec or the conditioner anew, as the run would compute with it."""

    def load() -> _Part:
        found = next(part for part in start.parts() if isinstance(part, kind))
        modules = [found.vae] if isinstance(found, VAECodec) else [tower.encoder for tower in found.towers]
        for module in modules:
            module.to(device, FROZEN[run.frozen_dtype])
        return found

    return load
