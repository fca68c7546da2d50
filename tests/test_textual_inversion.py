"""New words in training: only their rows change, and diffusers reads them and draws the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_finetune import a_batch, run_of
from tiny_families import Folders, drawn_by_diffusers, drawn_by_us, opened

import ldm
from ldm.data.samples import Batch
from ldm.errors import UserError
from ldm.training.diffusion_player import DiffusionPlayer
from ldm.training.start import Start
from ldm.training.textual_inversion import LearnedRows, check_captions
from ldm.training.tuning import tuning_of
from ldm.weights.model import load_model

PROMPT = "a thick zork"
TUNE = {"kind": "textual_inversion", "token": "zork", "initializer": "two", "vectors": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    return Folders(tmp_path_factory.mktemp("families"))


def trained(folder: Path, out: Path, steps: int = 3) -> DiffusionPlayer:
    run = run_of(tune=TUNE, output="runs/zork")
    start = Start(load_model(folder), lambda: pytest.fail("nothing is saved"))
    tuning = tuning_of(run, start)
    player = DiffusionPlayer(start.model, run, tuning.encoders()).train()
    optimizer = torch.optim.AdamW([p for p in player.parameters() if p.requires_grad], lr=0.3)
    for step in range(steps):
        batch = a_batch(step, dropped=False)
        player(Batch(**{**vars(batch), "conditions": [PROMPT] * 3}), step).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tuning.save(out, player.eval(), {"steps": steps})
    return player


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_diffusers_reads_the_word_and_draws_the_same(family, folders, tmp_path):
    folder, out = folders.folder(family), tmp_path / "word"
    player = trained(folder, out)
    file = out / ("learned_embeds.safetensors" if family == "sd1" else "zork.safetensors")
    ours = ldm.load(folder, device="cpu", dtype="fp32", embeddings=[file])
    wanted = drawn_by_us(ours, "ddim", [PROMPT])
    assert not torch.allclose(wanted, drawn_by_us(folders.ours(family), "ddim", [PROMPT]), atol=0.01)
    pipe = opened(folder)
    if family == "sd1":
        pipe.load_textual_inversion(out)
    else:  # each encoder by itself, as diffusers' documentation has it
        words = load_file(file)
        parts = [("clip_l", pipe.text_encoder, pipe.tokenizer), ("clip_g", pipe.text_encoder_2, pipe.tokenizer_2)]
        for name, encoder, tokenizer in parts:
            pipe.load_textual_inversion(words[name], token="zork", text_encoder=encoder, tokenizer=tokenizer)
    torch.testing.assert_close(drawn_by_diffusers(pipe, "ddim", [PROMPT]), wanted, atol=1e-3, rtol=0)
    drawing = ldm.load(folder, device="cpu", dtype="fp32")
    drawing.model = player.model(load_model(folder), {})
    torch.testing.assert_close(drawn_by_us(drawing, "ddim", [PROMPT]), wanted, atol=1e-4, rtol=0)


def test_only_the_new_rows_are_trained(folders, tmp_path):
    before = load_model(folders.folder("sdxl"))
    player = trained(folders.folder("sdxl"), tmp_path)
    names = [name for name, p in player.named_parameters() if p.requires_grad]
    assert names == [f"encoders.{k}.encoder.{'text_model.' * k}embeddings.token_embedding.rows" for k in (0, 1)]
    for name, value in before.net.state_dict().items():
        assert torch.equal(player.net.state_dict()[name], value), name
    for own, tower in zip(player.encoders, before.conditioner.towers, strict=True):
        encoder: Any = own.encoder
        rows: Any = encoder.get_input_embeddings()
        assert isinstance(rows, LearnedRows)
        count = tower.encoder.get_input_embeddings().num_embeddings
        assert torch.equal(rows.table.weight[:count], tower.encoder.get_input_embeddings().weight)
        (two,) = tower.tokenizer("two", add_special_tokens=False).input_ids
        assert torch.equal(rows.table.weight[rows.first :], rows.table.weight[[two, two]])
        assert (rows.rows != rows.table.weight[[two, two]]).all()  # every number of both rows has learned


def test_gradients_are_those_of_the_whole_table(folders):
    """Where the rows are a part of the encoder's own table, as diffusers trains them, they have the same gradients."""
    from ldm.weights.embeddings import Embedding, add_embedding

    run = run_of(tune=TUNE)
    start = Start(load_model(folders.folder("sd1")), lambda: pytest.fail("nothing is saved"))
    player = DiffusionPlayer(start.model, run, tuning_of(run, start).encoders()).train()
    batch = Batch(**{**vars(a_batch()), "conditions": [PROMPT, "zork", "four"]})
    player(batch, 0).loss.backward()
    found: Any = player.get_parameter("encoders.0.encoder.embeddings.token_embedding.rows").grad
    other = Start(load_model(folders.folder("sd1")), lambda: pytest.fail("nothing is saved"))
    tower = other.model.conditioner.towers[0]  # type: ignore[union-attr]
    rows = start.model.conditioner.towers[0].encoder.get_input_embeddings()  # type: ignore[union-attr]
    add_embedding(tower.encoder, tower.tokenizer, Embedding("zork", {"text_encoder": rows.rows.detach()}))
    full = run_of(tune={"kind": "full", "text_encoder": True})
    whole = DiffusionPlayer(other.model, full, tuning_of(full, other).encoders()).train()
    whole(batch, 0).loss.backward()
    table = tower.encoder.get_input_embeddings().weight.grad
    assert found.abs().sum() > 0
    torch.testing.assert_close(found, table[-2:], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"token": "two"}, "'two' is a word that the model knows"), ({"vectors": 15}, "a prompt has room for 14")],
)
def test_words_that_cannot_be_taught(changes, said, folders):
    with pytest.raises(UserError, match=said):
        tuning_of(run_of(tune={**TUNE, **changes}), Start(load_model(folders.folder("sd1")), pytest.fail))


def test_captions_that_do_not_have_the_word():
    check_captions("zork", ["a zork", "two zorks"])
    with pytest.raises(UserError, match=r"1 of the first 2 captions do not have the word 'zork'.*'a bird'"):
        check_captions("zork", ["a zork", "a bird"])
