"""How good the pictures of a row are, on the way and at the end of its training.

A U-Net is trained to one mark after the other; at each, the model that it is then is kept, draws, and is compared with
pictures that were held out.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ldm.codec import VAECodec
from ldm.compare.material import Material
from ldm.compare.settings import CodecComparison, JudgeTraining
from ldm.compare.stages import Found
from ldm.errors import UserError
from ldm.evaluate.evaluation import Evaluator
from ldm.evaluate.features import JudgeFeatures
from ldm.evaluate.judge_training import train_judge
from ldm.evaluate.metric import Metric
from ldm.evaluate.plots import sheet_of
from ldm.evaluate.reconstruction import measure_reconstruction
from ldm.evaluate.reference import RealPictures
from ldm.evaluate.sets import ReferenceSet, compare
from ldm.evaluate.settings import EvaluateConfig
from ldm.publishing import DOOMED, disk_trouble, replacing, write_whole
from ldm.recorded import load
from ldm.training.checkpoint import checkpoint_folder
from ldm.training.parallel import Team
from ldm.training.run import Resume, train
from ldm.training.settings import DiffusionRun
from ldm.weights.model import latest_checkpoint, load_vae, resolve

ALONE = Team(0, 1)
_FIRST = 40  # pictures of a sheet


class Jury:
    """Networks and real pictures that all rows are judged by.

    Args:
        told: the comparison.
        material: its pictures.
        judge: a judge that was trained for it; None where none was.
        device: to compute on.
    """

    def __init__(self, told: CodecComparison, material: Material, judge: Path | None, device: torch.device) -> None:
        assert told.quality is not None
        own = () if judge is None else (f"judge:{judge}",)
        self.config = EvaluateConfig(
            data=material.held_out,  # pyright: ignore[reportArgumentType]
            features=(*own, *told.quality.features),
            count=told.quality.count,
            sampler=told.draw.sampler,
            steps=(told.draw.steps,),
            guidance=(told.draw.guidance,),
            batch_size=told.quality.batch_size,
            workers=0,
        )
        self.size = (material.side, material.side)
        self._train, self._device = material.train, device
        self._evaluator = Evaluator(self.config, self.size, ALONE, device)

    def model(self, folder: Path, sheet: Path) -> Found:
        """Have a model draw, and compare: ``metrics``; the first of its pictures are written to ``sheet``."""
        found = self._evaluator.evaluate(load(folder, device=str(self._device)), None)
        assert found is not None
        cell = found.cells[0]
        metrics = [asdict(metric) for metric in cell.measured.metrics]
        return {"metrics": metrics, "sheet": _written(sheet, cell.first[:_FIRST])}

    def real(self) -> Found:
        """What as many training pictures come to: the best that there is to be had."""
        pictures = RealPictures.at(self._train, self.size, self.config.count, self.config.seed)
        networks, reference = self._evaluator.networks, self._evaluator.reference
        own = pictures.features(networks, self._device, ALONE)
        known = reference.features(networks, self._device, ALONE)
        assert own is not None
        assert known is not None
        metrics: list[Metric] = []
        for network, mine, theirs in zip(networks, own, known, strict=True):
            metrics += compare(mine, ReferenceSet(theirs, self.config), network.name, self.config)
        return {"metrics": [asdict(metric) for metric in metrics], "name": pictures.told, "against": reference.told}

    def ceiling(self, vae: Path, sheet: Path) -> Found:
        """What an autoencoder loses of the held-out pictures.

        Some pictures, each with what came back on its right, are written to ``sheet``.
        """
        module = load_vae(resolve(vae)).to(self._device).eval()
        networks, reference = self._evaluator.networks, self._evaluator.reference
        described = reference.features(networks, self._device, ALONE)
        found = measure_reconstruction(VAECodec(module), reference, described, networks, ALONE)
        assert found is not None
        return {
            "metrics": [asdict(metric) for metric in found.metrics],
            "latents": asdict(found.latents),
            "sheet": _written(sheet, found.first.flatten(0, 1)),
        }


def _written(place: Path, pictures: Tensor) -> str:
    with disk_trouble(str(place)):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, lambda path: path.write_bytes(sheet_of(pictures, 8)))
    return place.name


def make_judge(material: Material, told: JudgeTraining, place: Path) -> Found:
    """Train a judge on the training pictures, write it, and tell how many of the held-out ones it recognises.

    Raises:
        UserError: the pictures have no labels, or are not such as it reads.
    """
    size = (material.side, material.side)
    images, labels = _labelled(RealPictures.at(material.train, size))
    judge = train_judge(images, labels, **told.model_dump())
    place.parent.mkdir(parents=True, exist_ok=True)
    judge.save(place)
    images, labels = _labelled(RealPictures.at(material.held_out, size))
    features = JudgeFeatures(place, torch.device("cpu"))
    right = features.classify(features.describe(images)) == labels
    return {"place": place.name, "accuracy": right.float().mean().item(), "pictures": len(labels)}


def _labelled(real: RealPictures) -> tuple[Tensor, Tensor]:
    labels = [real.words(k).label for k in range(len(real))]
    if any(label is None for label in labels):
        raise UserError(f"{real.name}: a picture has no label, and quality.judge learns from labels: leave it out")
    batches = [images for _, images in real.pictures.batches(ALONE, 0, f"pictures of {real.name}")]
    return torch.cat(batches), torch.tensor(labels)


def model_after(run: DiffusionRun, place: Path) -> Found:
    """Train a run to its last step, from wherever it is, and keep the model that it is then.

    Args:
        run: its settings; its folder may hold fewer steps of it.
        place: a folder for the model.

    Raises:
        UserError: the run cannot be trained.
        Stopped: a signal asked for it.
    """
    last = latest_checkpoint(run.output)
    doomed = run.output.with_name(DOOMED + run.output.name)
    if last is not None and last > checkpoint_folder(run.output, run.train.steps):
        os.replace(run.output, doomed)  # it went on from here, and only its end is there
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint = train(run, resume=Resume.IF_ANY)
    with replacing(place) as new:
        new.rmdir()
        shutil.copytree(checkpoint, new, ignore=shutil.ignore_patterns("training"))
    return {"model": place.name}
