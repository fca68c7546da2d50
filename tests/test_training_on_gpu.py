"""Training on a CUDA device: the numbers of the CPU, in every precision, and no step that waits for the device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import WIDTH
from tiny_runs import config_file, log_of, trained

from ldm.training.trainer import Trainer
from ldm.weights.files import read_tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights to draw with."""
    files = [file for file in sorted(checkpoint.rglob("*.safetensors")) if file.parent.name != "training"]
    return {f"{file.parent.name} {name}": value for file in files for name, value in read_tensors(file).items()}


def log_on_the_cpu(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """The log of the same run by a process that sees no GPU."""
    told = config_file("label", folder / "cpu.json", folder / "cpu", **changes)
    blind = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-m", "ldm", "train", str(told)], check=True, env=blind, capture_output=True)
    return log_of(folder / "cpu")


@pytest.mark.parametrize(
    ("changes", "near"),
    [
        ({}, 5e-3),  # TF32 in convolutions
        ({"train__mixed_precision": "bf16"}, 0.05),
        ({"train__mixed_precision": "fp16"}, 0.05),
        ({"train__channels_last": True, "train__gradient_checkpointing": True}, 5e-3),
    ],
)
def test_losses_are_those_of_the_cpu(changes, near, tmp_path):
    """In float32 on both sides the same; noise, times and dropped labels are drawn on the CPU."""
    expected = log_on_the_cpu(tmp_path)
    trained("label", tmp_path / "gpu", **changes)
    found = log_of(tmp_path / "gpu")
    assert [record["loss"] for record in found] == pytest.approx([record["loss"] for record in expected], rel=near)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("kind", ["label", "vae", "latent"])
def test_no_step_waits_for_the_device(kind, precision, whole, tmp_path, monkeypatch):
    """From the third step on; what first steps set up may wait. Latents are encoded at every step."""
    plain, seen = Trainer.take_step, []

    def watched(self: Trainer, *arguments: Any) -> None:
        late = self.step >= 2
        torch.cuda.set_sync_debug_mode("error" if late else "default")
        try:
            plain(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        seen.append(late)

    monkeypatch.setattr(Trainer, "take_step", watched)
    model = whole["text"]
    parts = {"codec__path": model, "condition__path": model, "unet__cross_attention_dim": WIDTH}
    changes = parts if kind == "latent" else {}
    trained(kind, tmp_path / "run", train__mixed_precision=precision, train__log_every=100, **changes)
    assert sum(seen) == 4


def test_resuming_goes_on(tmp_path):
    trained("label", tmp_path / "whole")
    trained("label", tmp_path / "halves", train__steps=3)
    trained("label", tmp_path / "halves", resume=True)
    for record, other in zip(log_of(tmp_path / "halves"), log_of(tmp_path / "whole"), strict=True):
        assert record == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_an_average_on_the_host_is_that_on_the_device(tmp_path):
    one = trained("label", tmp_path / "device")
    other = trained("label", tmp_path / "host", train__ema_device="cpu")
    expected, found = weights(one), weights(other)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_under_nccl(parallel, tmp_path):
    """One process of a launch, as more take as many devices."""
    alone = trained("label", tmp_path / "alone")
    told = config_file("label", tmp_path / "run.json", tmp_path / "run", train__parallel=parallel)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    subprocess.run([*launch, "-m", "ldm", "train", str(told)], check=True, capture_output=True)
    for record, other in zip(log_of(tmp_path / "run"), log_of(tmp_path / "alone"), strict=True):
        assert record == pytest.approx(other, rel=1e-3, abs=1e-4)
    assert weights(tmp_path / "run" / "checkpoints" / alone.name).keys() == weights(alone).keys()
