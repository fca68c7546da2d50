"""What goes wrong in a run stops it with one clear message, exit code 2, and nothing spoilt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny_models import written
from tiny_runs import command, config, config_file, differences, trained, training_state

from ldm.config import validate
from ldm.errors import UserError
from ldm.recorded import load
from ldm.training.parallel import Team
from ldm.training.run import build_task
from ldm.training.trainer import Trainer, seed_weights
from ldm.weights.model import latest_checkpoint


def refused(capsys, *arguments: str) -> str:
    """The message of a command that ends in exit code 2."""
    capsys.readouterr()
    assert command(*arguments) == 2
    message = capsys.readouterr().err
    assert "error: " in message
    assert "Traceback" not in message
    return message.partition("error: ")[2]


# ------------------------------------------------- what is no longer finite


@pytest.mark.parametrize("kind", ["label", "vae"])
def test_a_rate_far_too_high_stops_the_run(kind, tmp_path, capsys):
    """After a step or two of such a size the loss overflows; the checkpoint before it stays."""
    changes = {"train__learning_rate": 1e30, "train__lr_warmup_steps": 0, "train__checkpoint_every": 1}
    file = config_file(kind, tmp_path / "run.yaml", tmp_path / "run", **changes)
    message = refused(capsys, "train", str(file))
    last = latest_checkpoint(tmp_path / "run")
    assert last is not None
    step = int(last.name.removeprefix("step_"))
    assert f"not finite at step {step}, on samples {4 * step} to {4 * step + 3} of the run" in message
    assert f"{last} is good" in message
    assert all(value.isfinite().all() for value in training_state(last).values())
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == list(range(1, step + 1))
    # Resuming meets the same step, and ends in the same way.
    assert f"not finite at step {step}," in refused(capsys, "train", str(file), "--resume")


def test_the_bad_step_is_not_taken(tmp_path):
    """Weights, average and AdamW's memory are after the failure what they were before that step."""
    changes = {"train__learning_rate": 1e30, "train__lr_warmup_steps": 0, "train__checkpoint_every": 1}
    run = validate(config("label", tmp_path / "run", **changes, train__keep_checkpoints=2), "tiny")
    seed_weights(run.seed)
    trainer = Trainer(run, build_task(run, torch.device("cpu")), Accelerator(), Team(0, 1), {"config": {}})
    with pytest.raises(UserError, match="that step was not taken"):
        trainer.fit(None)
    good = latest_checkpoint(run.output)
    assert good is not None
    trainer.step = 99
    trainer.checkpoint()  # what the trainer holds now
    assert differences(good, run.output / "checkpoints" / "step_00000099") == []


def test_latents_that_overflow_are_found_before_the_first_step(tmp_path, capsys):
    """A VAE's file with an absurd scaling factor gives infinite latents; there is no checkpoint to speak of."""
    for kind in ("vae", "clip"):
        trained(kind, tmp_path / kind, train__steps=1)
    vae = latest_checkpoint(tmp_path / "vae")
    assert vae is not None
    settings = json.loads((vae / "vae" / "config.json").read_text())
    (vae / "vae" / "config.json").write_text(json.dumps({**settings, "scaling_factor": 1e38}))
    places = {"codec__path": tmp_path / "vae", "condition__path": tmp_path / "clip"}
    file = config_file("latent", tmp_path / "run.yaml", tmp_path / "run", **places)
    message = refused(capsys, "train", str(file))
    assert "not finite at step 0, on samples 0 to 3 of the run; that step was not taken" in message
    assert "there is no checkpoint yet" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


# ------------------------------------------------------ what cannot be begun


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_fp16_without_cuda(tmp_path, capsys):
    file = config_file("label", tmp_path / "run.yaml", tmp_path / "run", train__mixed_precision="fp16")
    assert "fp16 needs a CUDA device" in refused(capsys, "train", str(file))
    assert not (tmp_path / "run").exists()


def test_missing_and_empty_folders_of_a_latent_model(tmp_path, capsys):
    trained("vae", tmp_path / "vae", train__steps=1)
    trained("clip", tmp_path / "clip", train__steps=1)
    (tmp_path / "empty").mkdir()

    def message(vae: str, clip: str) -> str:
        places = {"codec__path": tmp_path / vae, "condition__path": tmp_path / clip}
        file = config_file("latent", tmp_path / "run.yaml", tmp_path / "run", **places)
        found = refused(capsys, "train", str(file))
        assert not (tmp_path / "run").exists()  # so the same command works once the path is right
        return found

    assert "nowhere: no such folder" in message("nowhere", "clip")
    assert "nowhere: no such folder" in message("vae", "nowhere")
    assert "no run with a checkpoint" in message("empty", "clip")
    assert "vae/config.json is missing" in message("clip", "clip")
    assert "text_encoder/config.json is missing" in message("vae", "vae")
    weights = latest_checkpoint(tmp_path / "vae") / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"{weights} " in message("vae", "clip")


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("label", {"condition__classes": 9}, "condition.classes is 9, but mnist train (folder) has 10"),
        ("label", {"unet__cross_attention_dim": None}, "needs unet.cross_attention_dim"),
        ("label", {"unet__in_channels": 3, "unet__out_channels": 3}, "reads 3 channels, but the codec gives 1"),
        ("label", {"condition": {"kind": "text", "path": "x"}}, "text file beside each picture"),
        ("clip", {"data__captions": False}, "text file beside each picture"),
        ("clip", {"image__patch_size": 5}, "a multiple of image.patch_size"),
        ("vae", {"captions": {"prefix": "a "}}, "captions does nothing for an autoencoder"),
        ("label", {"captions": {"prefix": "a "}}, "captions does nothing for a model that reads none"),
        ("toy", {"captions": {"shuffle": True}}, "captions does nothing for a model that reads none"),
        ("toy", {"train__gradient_checkpointing": True}, "does nothing for a toy network"),
        ("vae", {"data__size": 30}, "not a multiple of the codec's factor 4"),
        ("vae", {"vae__in_channels": 3}, "vae.in_channels is 3, but the pictures have 1"),
        ("vae", {"loss__discriminator_layers": 4}, "loss.discriminator_layers is 4: halved so often"),
        ("vae", {"loss__perceptual": 0.1, "loss__perceptual_path": "nowhere.safetensors"}, "nowhere.safetensors"),
        ("toy", {"data__path": "/nowhere"}, "/nowhere: no such folder"),
    ],
)
def test_settings_that_do_not_fit_each_other(kind, changes, said, tmp_path, capsys):
    file = config_file(kind, tmp_path / "run.yaml", tmp_path / "run", **changes)
    assert said in refused(capsys, "train", str(file))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        file = config_file("toy", tmp_path / "run.yaml", output, train__steps=1)
        assert f"{output} cannot be written" in refused(capsys, "train", str(file))


# ------------------------------------------------------------ the full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    import subprocess

    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def leave(folder: Path, free: int) -> Path:
    """Fill a disk but for so many bytes."""
    filler = folder / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(folder).free // 4096 * 4096 - free // 4096 * 4096))
    return filler


@pytest.mark.parametrize(("kind", "most"), [("label", 1_400_000), ("clip", 420_000)])
def test_a_full_disk_spoils_nothing(kind, most, small_disk, tmp_path, capsys):
    """Whatever is being written when the disk is full: the message, the old checkpoint, and going on later."""
    run = small_disk / "run"
    changes = {"train__trackers": ["tensorboard"]}
    trained(kind, run, train__steps=2, **changes)
    before = {file: file.read_bytes() for file in (run / "checkpoints").rglob("*") if file.is_file()}
    file = config_file(kind, tmp_path / "run.yaml", run, train__steps=4, **changes)
    places = set()
    for share in (0, 0.02, 0.1, 0.3, 0.6, 0.95):
        filler = leave(small_disk, int(share * most))
        message = refused(capsys, "train", str(file), "--resume")
        filler.unlink()
        places.add(message.partition(" cannot be written")[0].rpartition("/")[2])
        assert " cannot be written: " in message
        assert {f: f.read_bytes() for f in (run / "checkpoints").rglob("*") if f.is_file()} == before
        assert not list((run / "checkpoints").glob("writing_*"))
        assert not list(run.rglob("*.tmp"))
    assert {"the checkpoint", "step_00000004"} & places
    if kind == "label":
        load(run)
    last = trained(kind, run, train__steps=4, resume=True, **changes)
    assert differences(last, trained(kind, tmp_path / "whole", train__steps=4)) == []


def test_a_model_that_does_not_fit_on_the_disk_leaves_the_one_before(small_disk):
    folder = written("text", small_disk / "model")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    leave(small_disk, sum(len(content) for content in before.values()) // 2)
    with pytest.raises(UserError, match=f"^{folder} cannot be written: .*No space left"):
        written("text", folder)
    assert {file: file.read_bytes() for file in small_disk.rglob("model/**/*") if file.is_file()} == before
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "model"]
