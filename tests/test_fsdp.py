"""Networks in shares: the numbers of whole ones. Several processes are in ``test_training_processes``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import written
from tiny_runs import command, config, config_file, digits, log_of, trained

from ldm.config import validate
from ldm.errors import UserError
from ldm.training.averaging import Average
from ldm.training.run import train
from ldm.training.train_settings import TrainSettings
from ldm.weights.files import read_tensors

FSDP = {"train__parallel": "fsdp"}


def model(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights to draw with."""
    files = [file for file in sorted(checkpoint.rglob("*.safetensors")) if file.parent.name != "training"]
    return {f"{file.parent.name} {name}": value for file in files for name, value in read_tensors(file).items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"train__gradient_checkpointing": True, "train__gradient_accumulation": 2},
        {"train__ema_decay": 0, "train__mixed_precision": "bf16"},
    ],
)
def test_shares_are_the_whole(changes, tmp_path):
    """Also in half precision, where weights are gathered in bf16: as autocast would round them, but for the norms'."""
    changes = {**changes, "train__steps": 3}
    whole, shares = (
        trained("label", tmp_path / "whole", **changes),
        trained("label", tmp_path / "sh", **changes, **FSDP),
    )
    near = 1e-5 if "train__mixed_precision" not in changes else 1e-2
    for record, other in zip(log_of(tmp_path / "sh"), log_of(tmp_path / "whole"), strict=True):
        assert record == pytest.approx(other, rel=near, abs=near)
    one, other = model(whole), model(shares)
    assert one.keys() == other.keys()
    furthest = max(float((one[name] - other[name]).abs().max()) for name in one)
    assert furthest < (1e-4 if near < 1e-4 else 0.004)  # AdamW's two steps are of 0.001 and 0.002 at most
    assert not list((shares / "training").glob("*.safetensors"))


def test_a_text_encoder_in_shares_is_the_whole(tmp_path):
    base = written("text", tmp_path / "base")
    tree: dict[str, Any] = {
        "task": "diffusion",
        "model": str(base),
        "data": {"source": "mnist", "path": str(digits()), "size": 32, "captions": True},
        "tune": {"kind": "full", "text_encoder": True},
        "sample": {"count": 1, "conditions": ["two"]},
        "train": {"steps": 2, "batch_size": 2, "lr_warmup_steps": 0, "ema_decay": 0, "log_every": 1},
    }
    for parallel in ("ddp", "fsdp"):
        kind = {**tree, "output": str(tmp_path / parallel), "train": {**tree["train"], "parallel": parallel}}
        train(validate(kind, "tiny"))
    for record, other in zip(log_of(tmp_path / "fsdp"), log_of(tmp_path / "ddp"), strict=True):
        assert record == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_resuming_shares_changes_nothing(tmp_path):
    whole = trained("label", tmp_path / "whole", **FSDP, train__steps=3)
    trained("label", tmp_path / "halves", **FSDP, train__steps=2)
    halves = trained("label", tmp_path / "halves", **FSDP, train__steps=3, resume=True)
    one, other = model(whole), model(halves)
    assert all(one[name].equal(other[name]) for name in {*one, *other})
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "halves")


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("vae", {}, "splits one network, and this task trains vae and adversary in turn: use ddp"),
        ("clip", {}, "cannot split single numbers such as clip.logit_scale: use ddp"),
        ("label", {"train__channels_last": True}, "train.parallel fsdp needs train.channels_last False"),
        ("label", {"train__optimizer": "adamw8bit"}, "train.parallel fsdp needs train.optimizer adamw"),
        ("label", {"train__mixed_precision": "fp16"}, "train.parallel fsdp trains in bf16 or no"),
    ],
)
def test_what_cannot_be_split_is_refused(kind, changes, said, tmp_path, capsys):
    file = config_file(kind, tmp_path / "run.yaml", tmp_path / "run", **changes, **FSDP)
    assert command("train", str(file)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_its_kind(tmp_path):
    trained("toy", tmp_path / "run", train__steps=1)
    with pytest.raises(UserError, match=r"train\.parallel: was 'ddp', now 'fsdp'"):
        trained("toy", tmp_path / "run", train__steps=2, resume=True, **FSDP)


def test_accelerates_own_fsdp_is_sent_here(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"train\.parallel=fsdp does the rest"):
        trained("toy", tmp_path / "run", train__steps=1)


# ------------------------------------------------------------- what is frozen


class Adapted(torch.nn.Module):
    """A large frozen layer and a small trained one."""

    def __init__(self) -> None:
        super().__init__()
        self.base = torch.nn.Linear(64, 64).requires_grad_(False)
        self.small = torch.nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(1))


def test_what_is_frozen_is_neither_copied_nor_kept():
    module, settings = Adapted(), TrainSettings(steps=1, ema_decay=0.5)
    average = Average(module, settings, torch.device("cpu"))
    average.begin({name: p for name, p in module.named_parameters() if p.requires_grad})
    begun = module.small.weight.detach().clone()
    with torch.no_grad():
        module.small.weight += 1
        module.seen += 3
    average.update(step=100)  # decay 0.5
    with average.whole() as drawn:
        assert drawn is average.module
        assert drawn.base.weight is module.base.weight
        assert drawn.small.weight is not module.small.weight
        torch.testing.assert_close(drawn.small.weight.detach(), begun + 0.5)
        assert drawn.seen == 3
    assert set(average.tensors()) == {"small.weight", "small.bias"}


def test_settings_validate_alone():
    assert validate(config("label", Path("run"), **FSDP), "tiny").train.parallel == "fsdp"
