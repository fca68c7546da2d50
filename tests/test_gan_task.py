"""A generative adversarial network: who learns from what, and a run that goes on as if it had not stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import command, config, differences, digits, log_of

from ldm.config import validate
from ldm.data.samples import collate
from ldm.errors import UserError
from ldm.images import save_grid
from ldm.models.generator import Generator, GeneratorConfig, draw_vectors
from ldm.training.chance import VECTORS, normals
from ldm.training.gan_task import GanTask
from ldm.training.run import train
from ldm.weights.components import load_module

SHAPE: dict[str, Any] = {"latent_dim": 6, "sample_size": 28, "channels": [8, 4]}


def run_of(output: Path, **changes: Any) -> Any:
    tree = {
        "task": "gan",
        "output": str(output),
        "data": {"source": "mnist", "path": str(digits())},
        "generator": SHAPE,
        "discriminator": {"channels": 4},
        "count": 4,
        "columns": 2,
        "train": config("label", output)["train"],
        **changes,
    }
    return validate(tree, "here")


def test_each_side_has_gradients_of_its_own_loss_alone(tmp_path: Path) -> None:
    task = GanTask(run_of(tmp_path), torch.device("cpu"))
    batch = collate([task.samples[n] for n in range(4)])
    generator, adversary = task.players["generator"], task.players["adversary"]
    generator(batch, 0).loss.backward()
    assert all(p.grad is not None for p in generator.parameters())
    assert all(p.grad is None for p in adversary.parameters())
    before = [p.grad.clone() for p in generator.parameters() if p.grad is not None]
    adversary(batch, 0).loss.backward()
    assert all(p.grad is not None for p in adversary.parameters())
    assert all(a.equal(p.grad) for a, p in zip(before, generator.parameters(), strict=True) if p.grad is not None)


def test_the_losses_are_those_of_the_hinge(tmp_path: Path) -> None:
    task = GanTask(run_of(tmp_path), torch.device("cpu"))
    batch = collate([task.samples[n] for n in range(4)])
    generator, adversary = task.players["generator"], task.players["adversary"]
    generator.eval()
    adversary.eval()
    told = generator(batch, 0).loss, adversary(batch, 0).loss
    with torch.no_grad():
        vectors = normals(batch.index, 0, VECTORS, SHAPE["latent_dim"])
        real, fake = batch.images.float() / 127.5 - 1, task.player.generator(vectors)
        judged: Any = [adversary.adversary(images).double().numpy() for images in (real, fake)]
    assert told[0].item() == pytest.approx(-judged[1].mean(), rel=1e-4)
    hinge = (np.maximum(0, 1 - judged[0]).mean() + np.maximum(0, 1 + judged[1]).mean()) / 2
    assert told[1].item() == pytest.approx(hinge, rel=1e-4)


def test_a_run_goes_on_and_its_model_draws_its_sheet(tmp_path: Path) -> None:
    whole = train(run_of(tmp_path / "whole"))
    short = config("label", tmp_path)["train"] | {"steps": 3}
    train(run_of(tmp_path / "halves", train=short))
    halves = train(run_of(tmp_path / "halves"), resume=True)
    assert differences(halves, whole) == []
    assert {"loss", "discriminator"} <= log_of(tmp_path / "whole")[0].keys()
    generator: Any = load_module(whole / "generator")
    with torch.no_grad():
        drawn = generator.eval()(draw_vectors([0, 1, 2, 3], generator.config))
    save_grid(drawn, tmp_path / "again.png", columns=2, scale=2)
    again, sheet = (Image.open(path) for path in (tmp_path / "again.png", *(tmp_path / "whole" / "samples").iterdir()))
    assert np.abs(np.asarray(again, int) - np.asarray(sheet, int)).max() <= 1


def test_a_picture_is_made_of_its_seed_alone() -> None:
    shape = GeneratorConfig(**SHAPE)
    model = Generator(shape).eval()
    together = model(draw_vectors([3, 4, 5], shape))
    assert together.shape == (3, 1, 28, 28)
    assert together.abs().max() <= 1
    torch.testing.assert_close(together[1:2], model(draw_vectors([4], shape)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"generator": {**SHAPE, "sample_size": 30}}, "sample_size should be a multiple of 4"),
        ({"generator": {**SHAPE, "sample_size": 32}}, "generator.sample_size is 32, but pictures are 28 x 28"),
        ({"generator": {**SHAPE, "out_channels": 3}}, "generator.out_channels is 3, but the pictures have 1"),
        ({"discriminator": {"layers": 4}}, "discriminator.layers is 4: halved so often"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        GanTask(run_of(tmp_path, **changes), torch.device("cpu"))


def test_the_configuration_in_the_repository_is_read(tmp_path: Path) -> None:
    file = Path(__file__).parents[1] / "configs" / "families" / "gan.yaml"
    flags = [f"data.path={digits()}", f"output={tmp_path / 'run'}", "train.steps=1", "train.batch_size=4"]
    assert command("train", str(file), *flags) == 0
    assert (tmp_path / "run" / "samples" / "step_00000001.png").is_file()
