"""What the rows of a comparison begin with: their VAEs, trained or with first weights, and caches of latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ldm.compare.rows import Row
from ldm.compare.stages import Found, Stages
from ldm.compare.timed import build_cache
from ldm.models.vae import AutoencoderKL
from ldm.publishing import replacing
from ldm.training.journal import read_log
from ldm.training.run import Resume, train
from ldm.training.settings import DiffusionRun, VAECodecConfig, VAERun
from ldm.training.trainer import seed_weights
from ldm.weights.components import save_module
from ldm.weights.files import write_json
from ldm.weights.model import resolve

NOWHERE = Path(".")  # of runs that write nothing


class Ready(NamedTuple):
    """A row that can be trained.

    Attributes:
        row: which.
        vae: the folder of its VAE; None for pixels.
        trained: what was found in training that; None where it was there before, or there is none.
        cache: the folder of its latents.
        cached: what was found in making them.
    """

    row: Row
    vae: Path | None = None
    trained: Found | None = None
    cache: Path | None = None
    cached: Found | None = None

    def run(self, output: Path, seed: int, steps: int, cached: bool = True) -> DiffusionRun:
        """The training of its U-Net."""
        return self.row.run(output, self.vae, self.cache if cached else None, seed, steps)


def make_ready(row: Row, stages: Stages) -> Ready:
    """Train the VAE of a row, and encode the pictures with it, if that is not done yet.

    Args:
        row: which.
        stages: keeps what is found.

    Raises:
        UserError: a model is not to be had, or cannot be trained.
        Stopped: a signal asked for it.
    """
    vae, trained = _vae(row, stages)
    if vae is None:
        return Ready(row)
    steps = row.told.train.steps
    of = {"run": row.run(NOWHERE, vae, None, 0, steps).model_dump(mode="json", exclude={"output", "seed", "train"})}
    cache = stages.folder / "caches" / stages.name(row.name, of)
    run = row.run(NOWHERE, vae, cache, 0, steps)
    cached = stages.find(f"{row.name}: its latents", of, lambda _: build_cache(run))
    return Ready(row, vae, trained, cache, cached)


def _vae(row: Row, stages: Stages) -> tuple[Path | None, Found | None]:
    codec = row.config.codec
    if isinstance(codec, VAECodecConfig):
        return resolve(codec.path), None
    if row.new_vae is None:
        return None, None
    runs = stages.folder / "runs"
    if row.told.vae is None:
        of: dict[str, Any] = {"vae": row.new_vae.model_dump(mode="json"), "weights": "first"}
        found = stages.find(f"{row.name}: a VAE with first weights", of, lambda name: _first(row, runs / name))
    else:
        of = {"run": row.vae_run(NOWHERE).model_dump(mode="json", exclude={"output"})}
        found = stages.find(f"{row.name}: its VAE", of, lambda name: _trained(row.vae_run(runs / name)))
    return runs / found["folder"], found


def _first(row: Row, place: Path) -> Found:
    assert row.new_vae is not None
    seed_weights(0)
    with replacing(place) as folder:
        save_module(AutoencoderKL(row.new_vae), folder / "vae")
        index = {"_class_name": "VAE", "vae": ["diffusers", "AutoencoderKL"], "_ldm": {"provenance": {}}}
        write_json(folder / "model_index.json", index)
    return {"folder": place.name}


def _trained(run: VAERun) -> Found:
    train(run, resume=Resume.IF_ANY)
    return {"folder": run.output.name, "seconds": _seconds(run)}


def _seconds(run: VAERun) -> float:
    """That a run has trained, by its log; pictures and checkpoints on the way are not in it."""
    lines = [line for line in read_log(run.output / "log.jsonl") if "images_per_second" in line]
    first = [0, *(line["step"] for line in lines)]
    samples = run.train.batch_size * run.train.gradient_accumulation
    return sum(
        (line["step"] - before) * samples / line["images_per_second"]
        for before, line in zip(first, lines, strict=False)
    )
