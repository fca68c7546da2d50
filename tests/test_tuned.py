"""A LoRA or an embedding named by the folder or run that holds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldm.describe import describe
from ldm.errors import UserError
from ldm.weights.opening import Loading
from ldm.weights.tuned import EMBEDDING_FILE, LORA_FILE, TUNED, whole_model


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_folder_a_run_and_a_file(tmp_path: Path) -> None:
    file = touched(tmp_path / "style.safetensors")
    plain = touched(tmp_path / "plain" / LORA_FILE)
    touched(tmp_path / "run" / "checkpoints" / "step_00000001" / LORA_FILE)
    newest = touched(tmp_path / "run" / "checkpoints" / "step_00000002" / LORA_FILE)
    places = (file, plain.parent, tmp_path / "run", tmp_path / "absent")
    found = Loading.checked({"loras": tuple((place, 0.5) for place in places)}).loras
    assert found == tuple((place, 0.5) for place in (file, plain, newest, tmp_path / "absent"))
    word = touched(tmp_path / "word" / EMBEDDING_FILE)
    assert Loading.checked({"embeddings": (word.parent, file)}).embeddings == (word, file)


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no {LORA_FILE} in it, and it is no run"):
        Loading.checked({"loras": ((tmp_path, 1.0),)})
    touched(tmp_path / "checkpoints" / "step_00000003" / LORA_FILE)
    with pytest.raises(UserError, match=f"no {EMBEDDING_FILE} in it, nor in .*step_00000003"):
        Loading.checked({"embeddings": (tmp_path,)})


def test_a_run_of_a_lora_is_a_model(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000002"
    lora, other = touched(checkpoint / LORA_FILE), tmp_path / "other.safetensors"
    (checkpoint / TUNED).write_text(json.dumps({"model": "base", "loading": {"variant": "fp16"}, "provenance": {}}))
    for place in (tmp_path / "run", checkpoint):
        assert whole_model(place, {"loras": [(other, 0.5)], "live": True}) == (
            "base",
            {"variant": "fp16", "live": True, "loras": ((lora, 1.0), (other, 0.5))},
        )
    lora.unlink()
    word = touched(checkpoint / "zork.safetensors")
    assert whole_model(checkpoint, {"variant": None}) == ("base", {"variant": None, "embeddings": (word,)})
    (checkpoint / TUNED).write_text("{}")
    with pytest.raises(UserError, match="should say `model` and `loading`"):
        whole_model(checkpoint, {})
    assert whole_model(tmp_path, {"variant": "x"}) == (tmp_path, {"variant": "x"})
    assert whole_model(None, {}) == (None, {})


def test_info_says_what_a_tuned_run_is_for(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True)
    save_file({"zork": torch.zeros(2, 24)}, checkpoint / EMBEDDING_FILE)
    (checkpoint / TUNED).write_text(json.dumps({"model": "sd15", "loading": {}}))
    lines = describe(str(tmp_path)).splitlines()
    assert lines[0] == str(checkpoint)
    assert lines[1] == f"  a word for sd15, in {EMBEDDING_FILE}"
    assert "zork" in "".join(lines[2:])
