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
from ldm.training.settings import DiffusionRun, RunSettings, VAECodecConfig, VAERun
from ldm.training.trainer import seed_weights
from ldm.weights.components import save_module
from ldm.weights.files import write_json
from ldm.weights.fingerprint import fingerprint
from ldm.weights.model import resolve

NOWHERE = "nowhere"  # the name of a folder of runs that write nothing


class Ready(NamedTuple):
    """A row that can be trained.

    Attributes:
        row: which.
        codec: what tells its codec from others, as JSON has it.
        vae: the folder of its VAE; None for pixels.
        trained: what was found in training that; None where it was there before, or there is none.
        cache: the folder of its latents and texts; None where there is nothing to keep.
        cached: what was found in making them.
    """

    row: Row
    codec: Found
    vae: Path | None = None
    trained: Found | None = None
    cache: Path | None = None
    cached: Found | None = None

    def run(self, output: Path, seed: int, steps: int, cached: bool = True) -> DiffusionRun:
        """The training of its U-Net."""
        return self.row.run(output, self.vae, self.cache if cached else None, seed, steps)


def make_ready(row: Row, pictures: Found, stages: Stages) -> Ready:
    """Train the VAE of a row, and encode the pictures with it, if that is not done yet.

    Args:
        row: which.
        pictures: what depends on the pictures depends on; see ``Material.as_told``.
        stages: keeps what is found.

    Raises:
        UserError: a model is not to be had, or cannot be trained.
        Stopped: a signal asked for it.
    """
    codec, vae, trained = _codec(row, pictures, stages)
    if vae is None and not row.reads_text:
        return Ready(row, codec)
    of = {"pictures": pictures, "codec": codec, **row.reads(), "precision": row.told.train.mixed_precision}
    cache = stages.folder / "caches" / stages.name(row.name, of)
    run = row.run(stages.folder / NOWHERE, vae, cache, 0, 1)
    title = f"{row.name}: latents" if vae is not None else f"{row.name}: texts"
    cached = stages.find(title, of, lambda _: build_cache(run), row=row.name, needs=lambda _: [cache])
    return Ready(row, codec, vae, trained, cache, cached)


def _codec(row: Row, pictures: Found, stages: Stages) -> tuple[Found, Path | None, Found | None]:
    """What tells the codec from others, the folder of its VAE, and what was found in training that."""
    codec, runs = row.config.codec, stages.folder / "runs"
    if isinstance(codec, VAECodecConfig):
        folder = resolve(codec.path)
        return {"vae": fingerprint(folder / "vae" if (folder / "vae").is_dir() else folder)}, folder, None
    if row.new_vae is None:
        return {"pixels": True}, None, None
    run = None if row.told.vae is None else row.vae_run(stages.folder / NOWHERE)
    if run is None:
        of: dict[str, Any] = {"vae": row.new_vae.model_dump(mode="json"), "weights": "first"}
        title = f"{row.name}: a VAE with first weights"
    else:
        of = {"pictures": pictures, "run": run.model_dump(mode="json", exclude={"output", "data"})}
        title = f"{row.name}: its VAE"

    def work(name: str) -> Found:
        return _first(row, runs / name) if run is None else _trained(row.vae_run(runs / name))

    found = stages.find(title, of, work, row=row.name, needs=lambda found: [runs / found["folder"]])
    return {"vae": found["folder"]}, runs / found["folder"], found


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
    return {"folder": run.output.name, "seconds": training_seconds(run)}


def training_seconds(run: RunSettings) -> float:
    """How long a run has trained, by its log: pictures, checkpoints and caches on the way are not in it."""
    lines = [line for line in read_log(run.output / "log.jsonl") if "images_per_second" in line]
    before = [0, *(line["step"] for line in lines)]
    samples = run.train.batch_size * run.train.gradient_accumulation
    steps = [line["step"] - at for at, line in zip(before, lines, strict=False)]
    return sum(taken * samples / line["images_per_second"] for taken, line in zip(steps, lines, strict=True))
