"""Networks of features: beside the libraries that they come from, on the same weights and pictures."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_models import fill
from tiny_runs import config, judge_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from ldm.config import validate
from ldm.errors import UserError
from ldm.evaluate.clip_folder import ClipFolder
from ldm.evaluate.features import JudgeFeatures, open_features
from ldm.evaluate.fidelity import torch_fidelity
from ldm.evaluate.fitting import centre, cover, to_channels
from ldm.images import to_signed
from ldm.models.judge import DigitJudge
from ldm.training.clip_task import ClipTask, learn_tokenizer

CPU = torch.device("cpu")
INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("torch_fidelity", "onnx", "onnxruntime")}


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth ones, as noise would say little about resizing."""
    coarse = torch.rand(count, channels, 5, 6, generator=torch.Generator().manual_seed(seed))
    return (255 * F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)).to(torch.uint8)


def pil(image: Tensor) -> Image.Image:
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


# ------------------------------------------------------------------------------ fitting


def test_colours_become_grey_as_pillow_makes_them() -> None:
    images = torch.randint(256, (2, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = np.stack([np.asarray(pil(image).convert("L")) for image in images])
    assert np.array_equal(to_channels(images, 1)[:, 0].numpy(), wanted)
    assert torch.equal(to_channels(images[:, :1], 3), images[:, :1].repeat(1, 3, 1, 1))
    with pytest.raises(UserError, match="2 channels cannot be brought to 3"):
        to_channels(images[:, :2], 3)


@pytest.mark.parametrize(("mode", "filter"), [("bicubic", Image.Resampling.BICUBIC), ("bilinear", 2)])
@pytest.mark.parametrize("shortest", [24, 100])
def test_pictures_are_resized_as_pillow_does(mode: str, filter: Any, shortest: int) -> None:
    images = pictures(2, 3, 60, 81)
    found = cover(images, shortest, mode)
    size = int(shortest * 81 / 60), shortest
    for image, ours in zip(images, found, strict=True):
        wanted = np.asarray(pil(image).resize(size, filter)).astype(int)
        assert np.abs(ours.permute(1, 2, 0).numpy() - wanted).max() <= 1
    assert centre(found, 20, 20).shape == (2, 3, 20, 20)


# ------------------------------------------------------------------------------ the judge


def test_features_of_the_judge(tmp_path: Path) -> None:
    path = judge_file(tmp_path / "judge.safetensors")
    network, judge = open_features(f"judge:{path}", CPU), DigitJudge.load(path)
    assert isinstance(network, JudgeFeatures)
    images = pictures(5, 1, 28, 28)
    found = network.describe(images)
    torch.testing.assert_close(found, judge.features(to_signed(images)))
    assert torch.equal(network.classify(found), judge.classify(to_signed(images)))
    assert torch.equal(network.describe(images.expand(-1, 3, -1, -1)), found)
    assert (network.size, network.classes) == (8, 10)


def test_other_weights_have_another_name(tmp_path: Path) -> None:
    path = judge_file(tmp_path / "judge.safetensors")
    before = open_features(f"judge:{path}", CPU).name
    assert before.startswith("digit judge, 8 features ")
    fill(judge := DigitJudge.load(path)).save(tmp_path / "other.safetensors")
    assert judge.name in before
    assert open_features(f"judge:{tmp_path / 'other.safetensors'}", CPU).name != before


@pytest.mark.parametrize(
    "told", ["judge", "judge:", "", "jugde:a", "clip:no/such/folder", "onnx:a", "onnx:a,pixel=unit"]
)
def test_mistakes_in_naming_a_network(told: str) -> None:
    with pytest.raises(UserError, match=r"expected KIND:PLACE|did you mean 'judge'|no/such/folder|expected onnx:FILE"):
        open_features(told, CPU)


# ------------------------------------------------------------------------------ CLIP


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("clip") / "run"
    task = ClipTask(validate(config("clip", run), "tiny"), CPU)
    task.save(run / "checkpoints" / "step_00000001", fill(task.player), {})
    return run


def test_the_clip_of_a_run(clip_run: Path) -> None:
    network = ClipFolder(clip_run, CPU)
    (folder,) = (clip_run / "checkpoints").iterdir()
    clip = CLIPModel.from_pretrained(folder / "clip").eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    images, captions = pictures(3, 1, 32, 32), ["a handwritten seven", "two", "three " * 40]
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        out = clip(input_ids=tokens, pixel_values=to_signed(images))
    torch.testing.assert_close(F.normalize(network.describe(images)), out.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(F.normalize(network.read(captions)), out.text_embeds, atol=1e-5, rtol=1e-4)
    assert network.size == 16
    assert open_features(f"clip:{folder}", CPU).name == network.name


@pytest.fixture(scope="module")
def others_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As OpenAI's on the hub: one folder with a CLIPModel, its tokenizer and its preprocessor."""
    folder = tmp_path_factory.mktemp("others") / "clip"
    tokenizer = learn_tokenizer(["a red car", "a blue house"], 540, 16)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**sizes, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    image = {**sizes, "image_size": 24, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=8))
    fill(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=24).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("size", [(24, 24), (50, 70), (90, 31), (10, 12)])
def test_pictures_come_to_others_clips_as_transformers_brings_them(others_clip: Path, size: tuple[int, int]) -> None:
    network = ClipFolder(others_clip, CPU)
    images = pictures(3, 3, *size)
    processor = CLIPImageProcessor.from_pretrained(others_clip)
    wanted = processor([pil(image) for image in images], return_tensors="pt").pixel_values
    torch.testing.assert_close(network.prepared(images), wanted, atol=2 / 255 / 0.26, rtol=0)  # a level of 8 bits
    with torch.no_grad():
        embedded = CLIPModel.from_pretrained(others_clip).eval().get_image_features(wanted).pooler_output
    torch.testing.assert_close(network.describe(images), embedded, atol=0.03, rtol=0.03)


def test_clips_that_cannot_be_read(others_clip: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        broken = tmp_path / name
        broken.mkdir()
        for file in others_clip.iterdir():
            if file.name != name:
                (broken / file.name).write_bytes(file.read_bytes())
        with pytest.raises(UserError, match=name.replace("model.", r"\*.")):
            ClipFolder(broken, CPU)
    (tmp_path / "config.json" / "config.json").write_text('{"architectures": ["CLIPTextModel"]}')
    with pytest.raises(UserError, match=r"\['CLIPTextModel'\], not a CLIPModel"):
        ClipFolder(tmp_path / "config.json", CPU)


# ------------------------------------------------------------------------------ Inception


def test_parts_of_torch_fidelity_are_imported_without_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "torch_fidelity"
    package.mkdir()
    (package / "__init__.py").write_text("import no_such_module_as_torchvision")
    (package / "one_part.py").write_text("from torch_fidelity.another import value")
    (package / "another.py").write_text("value = 7")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    assert torch_fidelity("one_part").value == 7
    assert "torch_fidelity" not in sys.modules  # who imports all of it later gets all of it
    with pytest.raises(UserError, match="pip install --no-deps torch-fidelity"):
        torch_fidelity("no_such_part")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)


class _Runs:
    def __reduce__(self) -> Any:
        return (print, ("a pickle ran",))


@pytest.mark.skipif(not INSTALLED["torch_fidelity"], reason="needs the extra `inception`")
def test_inception_with_weights_in_the_form_of_their_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = torch_fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    blank = network.__new__(network)
    nn.Module.__init__(blank)
    path = tmp_path / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:  # its own way of making one downloads the weights
        patch.setattr(sys.modules[network.__module__], "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        whole = network("plain", ["2048"]).eval()
    torch.save(whole.state_dict(), path)
    found = open_features(f"inception:{path}", CPU)
    images = pictures(2, 3, 32, 40)
    assert found.size == 2048
    assert torch.equal(found.describe(images), whole(images)[0])
    grey = images[:, :1]
    assert torch.equal(found.describe(grey), whole(grey.repeat(1, 3, 1, 1))[0])
    torch.save({"some": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="does not hold the weights of torch-fidelity's Inception v3"):
        open_features(f"inception:{path}", CPU)
    torch.save({"fc.weight": _Runs()}, path)
    with pytest.raises(UserError, match="is refused"):
        open_features(f"inception:{path}", CPU)
    assert "a pickle ran" not in capsys.readouterr().out


# ------------------------------------------------------------------------------ ONNX


def onnx_file(path: Path, last: bool) -> nn.Module:
    """A classifier as ONNX, its channels first or last, and the same in torch up to the layer of the classes."""
    onnx = pytest.importorskip("onnx")
    torch.manual_seed(0)
    convolution, head = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5, 2)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = {"w": convolution.weight, "b": convolution.bias, "hw": head.weight.T, "hb": head.bias}
    given = [onnx.numpy_helper.from_array(x.detach().contiguous().numpy(), name) for name, x in weights.items()]
    start = [helper.make_node("Transpose", ["in"], ["x"], perm=[0, 3, 1, 2])] if last else []
    nodes = [
        *start,
        helper.make_node("Conv", ["x" if last else "in", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["features"]),
        helper.make_node("MatMul", ["features", "hw"], ["m"]),
        helper.make_node("Add", ["m", "hb"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["out"]),
    ]
    shape = [None, 28, 28, 3] if last else [1, 3, 28, 28]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("in", kind, shape)],
        [helper.make_tensor_value_info("out", kind, [None, 2])],
        given,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.skipif(not INSTALLED["onnx"] or not INSTALLED["onnxruntime"], reason="needs the extra `onnx`")
@pytest.mark.parametrize("last", [False, True])
def test_features_of_an_onnx_classifier(tmp_path: Path, last: bool) -> None:
    network = onnx_file(tmp_path / "net.onnx", last)
    images = pictures(3, 3, 28, 28)
    # it is resized to 32 and cut: a picture of 32 is read as it is
    large = F.pad(images, (2, 2, 2, 2))
    found = open_features(f"onnx:{tmp_path / 'net.onnx'},pixels=caffe", CPU)
    mean = torch.tensor([104.0, 117.0, 123.0])[:, None, None]
    with torch.no_grad():
        wanted = network(images.flip(1).float() - mean)
    assert found.size == 5
    torch.testing.assert_close(found.describe(large), wanted, atol=1e-3, rtol=1e-4)
    logits = open_features(f"onnx:{tmp_path / 'net.onnx'},pixels=unit,layer=logits", CPU)
    assert logits.size == 2
    assert logits.name != found.name


@pytest.mark.skipif(not INSTALLED["onnx"] or not INSTALLED["onnxruntime"], reason="needs the extra `onnx`")
def test_onnx_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx_file(path, False)
    with pytest.raises(UserError, match="cannot be used as ONNX"):
        open_features(f"onnx:{path},pixels=unit,layer=nowhere", CPU)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be used as ONNX"):
        open_features(f"onnx:{path},pixels=unit", CPU)
    with pytest.raises(UserError, match="unknown kind of pixels 'bytes'"):
        open_features(f"onnx:{path},pixels=bytes", CPU)
