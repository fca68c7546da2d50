"""What it takes to open a single file of Stable Diffusion 1.5: ours beside diffusers' ``from_single_file``.

    python benchmarks/loading.py --folder FOLDER --dtypes fp32 fp16 bf16 --repeats 3

The weights are random, in float32, and written to FOLDER once (4.3 GB with VAE and text encoder); diffusers finds its
configurations there too, since it asks the hub for them otherwise. Each opening is a process of its own, in turn. The
clock starts after the imports of either side. ``ours`` is ``open_model``: every part in its dtype, as the other side
has it then. ``ldm.load`` is that and what ``ldm generate`` does next: kernels in the layout that is fastest here, in
bf16 packed for this CPU; fp16 is not drawn in on a CPU. ``ready`` is until the pipeline stands; what is mapped and not
converted has not been read then, so ``read`` is until each weight has been looked at once. ``peak`` is the most
memory that the process held over what it held after its imports; mapped pages of the file count.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _timing import machine, report
from torch import Tensor, nn

import ldm
from ldm.codec import VAECodec
from ldm.text_conditioner import TextConditioner
from ldm.weights.components import build_empty
from ldm.weights.families import SD_SCALE, Part, find_family, text_config, vae_config
from ldm.weights.model import Model
from ldm.weights.opening import Loading, open_model
from ldm.weights.papers import usual_tokenizer
from ldm.weights.single_file import write_single_file

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TINY: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [32, 64],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 64,
    },
    "vae": {
        "block_out_channels": [32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
    "text_encoder": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2},
}


def configs(tiny: bool) -> dict[str, dict[str, Any]]:
    """Of the parts of Stable Diffusion 1.5, or of something like it."""
    family = find_family(768, 4)
    found = {"unet": family.unet_config(512), "vae": vae_config(SD_SCALE, 512), "text_encoder": text_config(768)}
    return {name: {**config, **(TINY[name] if tiny else {})} for name, config in found.items()}


def write_file(folder: Path, tiny: bool) -> None:
    """``model.safetensors`` and ``configs/``, a folder of diffusers without weights."""
    parts = {}
    for name, config in configs(tiny).items():
        module = build_empty(config, folder)
        parts[name] = Part(config, {_in_file(name, key): _random(value) for key, value in module.state_dict().items()})
    family = find_family(768, 4)
    parts["scheduler"] = Part({**family.scheduler_config(), "prediction_type": "epsilon"})
    write_single_file(parts, folder / "model.safetensors")
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        **{name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")},
        "requires_safety_checker": False,
    }
    for name, part in parts.items():
        file = folder / "configs" / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(part.config))
    usual_tokenizer(parts["text_encoder"].config).save_pretrained(folder / "configs" / "tokenizer")
    (folder / "configs" / "model_index.json").write_text(json.dumps(index))


def _in_file(part: str, key: str) -> str:
    return key if part != "text_encoder" or key.startswith("text_model.") else f"text_model.{key}"


def _random(like: Tensor) -> Tensor:
    return torch.empty(like.shape).uniform_(-0.01, 0.01)


def open_ours(folder: Path, dtype: torch.dtype) -> list[nn.Module]:
    return parts_of(open_model(folder / "model.safetensors", Loading(), dtype))


def open_to_draw(folder: Path, dtype: torch.dtype) -> list[nn.Module]:
    name = next(name for name, known in DTYPES.items() if known is dtype)
    return parts_of(ldm.load(folder / "model.safetensors", device="cpu", dtype=name).model)


def parts_of(model: Model) -> list[nn.Module]:
    codec, conditioner = model.codec, model.conditioner
    assert isinstance(codec, VAECodec)
    assert isinstance(conditioner, TextConditioner)
    return [model.net, codec.vae, *(tower.encoder for tower in conditioner.towers)]


def open_theirs(folder: Path, dtype: torch.dtype) -> list[nn.Module]:
    pipeline = importlib.import_module("diffusers").StableDiffusionPipeline.from_single_file(
        str(folder / "model.safetensors"),
        config=str(folder / "configs"),
        torch_dtype=dtype,
        local_files_only=True,
        safety_checker=None,
        requires_safety_checker=False,
    )
    return [pipeline.unet, pipeline.vae, pipeline.text_encoder]


OPENINGS = {"diffusers": open_theirs, "ours": open_ours, "ldm.load": open_to_draw}


def imports_of(contestant: str) -> None:
    """What a program has imported anyhow, so that it is not counted."""
    if contestant == "diffusers":
        importlib.import_module("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    importlib.import_module("diffusers.loaders.single_file_utils")
    importlib.import_module("transformers.models.clip.modeling_clip")


def _memory(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**20


def measure(contestant: str, folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Open the file once, in this process: seconds and GiB."""
    imports_of(contestant)
    before = _memory("VmRSS")
    start = time.perf_counter()
    modules = OPENINGS[contestant](folder, dtype)
    ready, ready_peak = time.perf_counter() - start, _memory("VmHWM") - before
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.sum()
    read = time.perf_counter() - start
    return {"ready_s": ready, "read_s": read, "ready_peak_gib": ready_peak, "peak_gib": _memory("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the file is, or is written")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="to open it in")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    parser.add_argument("--only", choices=OPENINGS, help="measure one side, once, and print it as JSON")
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, given.folder, DTYPES[given.dtypes[0]])))
        return
    if not (given.folder / "model.safetensors").is_file():
        given.folder.mkdir(parents=True, exist_ok=True)
        write_file(given.folder, given.tiny)
    taken: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(given.repeats):
        for dtype in given.dtypes:
            for contestant in OPENINGS:
                if contestant == "ldm.load" and dtype == "fp16":
                    continue  # the CPU does not draw in it
                command = [sys.executable, __file__, "--folder", str(given.folder), "--dtypes", dtype]
                done = subprocess.run([*command, "--only", contestant], check=True, stdout=subprocess.PIPE, text=True)
                taken.setdefault((dtype, contestant), []).append(json.loads(done.stdout.splitlines()[-1]))
    rows = [
        {"dtype": dtype, "who": contestant, **{key: statistics.median(run[key] for run in runs) for key in runs[0]}}
        for (dtype, contestant), runs in taken.items()
    ]
    size = (given.folder / "model.safetensors").stat().st_size / 2**30
    report({**machine(torch.device("cpu")), "file_gib": round(size, 3), "repeats": given.repeats}, rows, given.output)


if __name__ == "__main__":
    main()
