"""What a studio does around a drawing: files that change, pictures that are kept, threads, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_families import PROMPT, Folders

import ldm
from ldm.cli import app
from ldm.codec import VAECodec
from ldm.errors import UserError
from ldm.images import save_image
from ldm.metadata.a1111 import parameters_text
from ldm.metadata.read import read_record
from ldm.recorded import draw_again
from ldm.telling import Bar


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("folders"))


def generate(folders: Folders, *words: object) -> None:
    common = ["generate", "--model", folders.folder("sd1"), "--dtype", "fp32", "--device", "cpu", "--steps", 2]
    app([str(word) for word in (*common, *words)], standalone_mode=False)


def test_a_record_tells_what_was_left_to_the_model(folders: Folders, tmp_path: Path) -> None:
    studio = folders.ours("sd1")
    studio(PROMPT, steps=2)[0].save(tmp_path / "init.png")
    record = studio(PROMPT, sampler="euler", pictures={"init": tmp_path / "init.png"})[0].info["record"]
    assert (record.drawing["strength"], record.drawing["spacing"], record.drawing["steps"]) == (0.75, "linspace", 30)
    assert "Schedule type: Uniform" in parameters_text(record)
    assert "Denoising strength: 0.75" in parameters_text(record)


def test_the_second_pass_is_told_to_other_programs(folders: Folders) -> None:
    record = folders.ours("sd1")(PROMPT, steps=2, hires_scale=2, hires_strength=0.5)[0].info["record"]
    assert "Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Latent" in parameters_text(record)


def test_a_picture_is_saved_with_the_record_that_it_holds(folders: Folders, tmp_path: Path) -> None:
    image = folders.ours("sd1")(PROMPT, steps=2)[0]
    save_image(image, str(tmp_path / "two.png"))
    assert read_record(tmp_path / "two.png") == image.info["record"]


def test_replay_uses_as_many_threads_as_then(folders: Folders) -> None:
    record = folders.ours("sd1")(PROMPT, steps=2)[0].info["record"]
    record = record.model_copy(update={"loading": {**record.loading, "threads": 2}})
    seen = []
    draw_again(record, progress=lambda total: lambda done, steps, step: seen.append(torch.get_num_threads()))
    assert seen == [2, 2]
    assert torch.get_num_threads() == 1


def test_what_is_drawn_is_kept_when_the_next_picture_fails(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Bar.begin

    def failing(self: Bar, total: int) -> Any:
        moved, count = begin(self, total), []

        def told(*step: Any) -> None:
            moved(*step)
            count.append(1)
            if len(count) == 5:  # the first move of the third picture
                raise RuntimeError("the power is gone")

        return told

    monkeypatch.setattr(Bar, "begin", failing)
    with pytest.raises(RuntimeError, match="power"):
        generate(folders, "two", "--count", 4, "--seed", 3, "-o", tmp_path / "out.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out_0001.png", "out_0002.png"]
    assert read_record(tmp_path / "out_0002.png").seed == 4  # type: ignore[union-attr]


def test_nothing_that_is_drawn_from_is_written_over(folders: Folders, tmp_path: Path) -> None:
    init = tmp_path / "init.png"
    Image.radial_gradient("L").resize((32, 32)).save(init)
    before = init.read_bytes()
    for flags in (["-o", init], ["-o", tmp_path / "out.png", "--preview", init]):
        with pytest.raises(UserError, match=r"init.png is what is drawn from, and would be overwritten"):
            generate(folders, "two", "-i", init, *flags)
    with pytest.raises(UserError, match="is the preview and a picture"):
        generate(folders, "two", "-o", tmp_path / "out.png", "--preview", tmp_path / "out.png")
    assert init.read_bytes() == before
    assert list(tmp_path.iterdir()) == [init]


def test_a_control_net_that_changes_in_its_place_is_read_again(folders: Folders, tmp_path: Path) -> None:
    studio, net = folders.ours("sd1"), folders.control("sd1", 21)
    hint = tmp_path / "hint.png"
    Image.linear_gradient("L").resize((32, 32)).save(hint)
    drawn = {"steps": 2, "pictures": {"controls": [{"net": net, "hint": hint}]}}
    before = studio(PROMPT, **drawn)[0]
    file = net / "diffusion_pytorch_model.safetensors"
    save_file({key: value + 0.05 for key, value in load_file(file).items()}, file)
    after = studio(PROMPT, **drawn)[0]
    assert before.tobytes() != after.tobytes()
    assert before.info["record"].inputs["control 1"] != after.info["record"].inputs["control 1"]


class Overflowing(torch.nn.Module):
    """As an autoencoder whose activations leave half precision for bright latents."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1, 4, 1, 1), 60000.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).sum(1, keepdim=True).expand(-1, 3, -1, -1) / 1e6


def test_an_overflow_in_half_precision_concerns_its_picture_alone(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = ldm.load(folders.folder("sd1"), device="cpu", dtype="fp32").model.codec
    assert isinstance(codec, VAECodec)
    codec.vae.half()
    part = Overflowing().half()
    monkeypatch.setattr(codec.vae, "decode", lambda latents: part.to(latents.dtype)(latents))
    calm, bright = torch.full((1, 4, 2, 2), 0.01), torch.full((1, 4, 2, 2), 5.0)
    before = codec.decode(calm)
    assert capsys.readouterr().err == ""
    found = codec.decode(bright)
    assert "overflows in fp16: decoding again in fp32" in capsys.readouterr().err
    assert found.isfinite().all()
    assert codec.vae.last_layer.dtype == torch.float16
    assert torch.equal(codec.decode(calm), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 0}, "guidance 0 leaves the prompt out; none is 1"),
        ({"sampler": "DPM++ 2M Karras", "spacing": "beta"}, "has karras times by its name, and spacing says 'beta'"),
        ({"seed": "4"}, "seed should be a whole number, of the first picture; got '4'"),
        ({"seed": None}, "seed should be a whole number"),
    ],
)
def test_mistakes(folders: Folders, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        folders.ours("sd1")(PROMPT, **options)


def test_dtype_and_device_may_be_those_of_torch(folders: Folders) -> None:
    studio = ldm.load(folders.folder("sd1"), device=torch.device("cpu"), dtype=torch.float32)
    assert studio(PROMPT, steps=2)[0].tobytes() == folders.ours("sd1")(PROMPT, steps=2)[0].tobytes()
