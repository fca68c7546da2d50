"""``ldm data cache``: make, complete or check the cache of a run, and say what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ldm.cache.reader import Cache
from ldm.config import load_config
from ldm.errors import UserError
from ldm.training.caching import open_cache
from ldm.training.lcm_settings import LcmRun
from ldm.training.run_source import source_of
from ldm.training.settings import DiffusionRun
from ldm.training.start import start_of


def cache_file(config: Path, overrides: Sequence[str]) -> None:
    """Bring the cache of a run up to date: every file is checked in full, and what is missing, stale or damaged made.

    Args:
        config: the run's configuration.
        overrides: ``dotted.key=value``.

    Raises:
        UserError: the run has no cache, or it cannot be made.
    """
    from accelerate import Accelerator

    run = load_config(config, overrides)
    if isinstance(run, LcmRun):
        run = run.of_teacher()
    if not isinstance(run, DiffusionRun):
        raise UserError(f"{config} is of task {run.task}, which trains on pictures: a cache is for diffusion and lcm")
    if run.cache is None:
        raise UserError(f"{config} has no `cache`: add `cache: {{}}` to it, which takes the defaults")
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    source = source_of(run)
    found = open_cache(run, source, start_of(run, source), accelerator.device, thorough=True)
    assert found is not None
    if accelerator.is_main_process:
        print(in_words(found, len(source)))
    accelerator.end_training()


def in_words(cache: Cache, pictures: int) -> str:
    """What is in a cache, and what was just done to it."""
    made = cache.made
    rate = f", {made.pictures / made.seconds:.1f} pictures/s" if made.pictures else ""
    done = f"{made.pictures:,} pictures and {made.texts:,} texts made in {made.seconds:.0f} s{rate}"
    told = done if made.pictures or made.texts else "nothing to make, every file is whole"
    lines = [f"{cache.folder}: {pictures:,} pictures, {cache.bytes / 1e6:,.1f} MB; {told}"]
    lines += [f"  left out: {skipped.message}" for skipped in cache.left_out]
    return "\n".join(lines)
