"""What ``ldm evaluate`` does, once its flags are read: a model to numbers, numbers to a folder with a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import ldm
from ldm.accel import pick_dtype, prepare
from ldm.codec import VAECodec
from ldm.errors import UserError
from ldm.evaluate.evaluation import Evaluation, Evaluator
from ldm.evaluate.gathering import processes, seen_by_all
from ldm.evaluate.page import page
from ldm.evaluate.plots import plots, sheets, title
from ldm.evaluate.reference import read_data
from ldm.evaluate.report import as_data, markdown
from ldm.evaluate.settings import EvaluateConfig
from ldm.images import check_folder
from ldm.pipeline import Pipeline
from ldm.publishing import disk_trouble, replacing
from ldm.recorded import load
from ldm.training.parallel import Team
from ldm.weights.files import read_json
from ldm.weights.model import latest_checkpoint, load_vae
from ldm.weights.parts import INDEX, listed_parts

DATA = "evaluation.json"
_OWN = "the model in ldm"


@dataclass(frozen=True)
class Asked:
    """The flags of ``ldm evaluate``.

    Attributes:
        model: as ``ldm.load`` takes it, or a folder or run of an autoencoder alone; None is the one in the package.
        data, floor: as ``ldm.evaluate.reference.read_data`` takes them.
        output: the folder of the report.
        settings: the other fields of ``EvaluateConfig``; what is None is left out.
        loading: what ``ldm.load`` takes beside the model, but for the device.
        device: None picks.
    """

    model: str | None
    data: str
    floor: str | None
    output: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    loading: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None


def several(text: str | None, kind: type[int] | type[float], flag: str) -> tuple[Any, ...]:
    """Numbers with commas between them.

    Raises:
        UserError: they are something else.
    """
    try:
        return tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UserError(f"{flag} takes numbers with commas between them, such as 10,20,50; got {text!r}") from error


def evaluate_model(asked: Asked) -> Evaluation | None:
    """Evaluate a model, write the report, and print it; all but the main process get None.

    Raises:
        UserError: anything the user can mend; before the first picture is drawn where it can be.
    """
    _check_output(asked.output)
    sources = {"data": read_data(asked.data, "--data")}
    if asked.floor is not None:
        sources["floor"] = read_data(asked.floor, "--floor")
    given = {key: value for key, value in asked.settings.items() if value is not None}
    config = EvaluateConfig.checked({**sources, **given})
    with processes(asked.device) as (team, device):
        model = _open(asked, config, device)
        evaluator = Evaluator(config, model.size, team, device)
        found = evaluator.evaluate(model.pipeline, model.codec if config.reconstruction else None)
        seen_by_all(lambda: _write(found, model.made(asked, team), asked.output), team)
    return found


@dataclass(frozen=True)
class _Opened:
    """What is evaluated.

    Attributes:
        pipeline: None where it is an autoencoder alone.
        codec: None where there is none.
        size: (height, width) of its pictures.
        told: of the model, what a report tells.
    """

    pipeline: Pipeline | None
    codec: VAECodec | None
    size: tuple[int, int]
    told: dict[str, Any]

    def made(self, asked: Asked, team: Team) -> dict[str, Any]:
        """By what the numbers were made."""
        versions = {"ldm": ldm.__version__, "torch": str(torch.__version__)}
        return {**self.told, **versions, "threads": torch.get_num_threads(), "processes": team.size}


def _open(asked: Asked, config: EvaluateConfig, device: torch.device) -> _Opened:
    vae = _autoencoder_alone(asked.model)
    if vae is not None:
        if config.count or not config.reconstruction:
            raise UserError(f"{asked.model} is an autoencoder, which draws nothing: --reconstruction --count 0")
        return _open_autoencoder(vae, asked, device)
    studio = load(asked.model, device=str(device), **asked.loading)
    model = studio.model
    codec = model.codec if isinstance(model.codec, VAECodec) else None
    if config.reconstruction and codec is None:
        raise UserError(f"{asked.model or _OWN} diffuses pixels, and has no autoencoder: leave out --reconstruction")
    told = {"model": asked.model or _OWN, "hash": studio.fingerprint, "device": device.type}
    told["dtype"] = _named(studio.denoiser.dtype)
    return _Opened(studio if config.count else None, codec, model.size, told)


def _autoencoder_alone(place: str | None) -> Path | None:
    """The folder of a model that is an autoencoder and nothing else, such as a checkpoint of ``task: vae``."""
    if place is None:
        return None
    folder = latest_checkpoint(Path(place)) or Path(place)
    parts = listed_parts(read_json(folder / INDEX)) if (folder / INDEX).is_file() else set()
    return folder if "vae" in parts and "unet" not in parts else None


def _open_autoencoder(folder: Path, asked: Asked, device: torch.device) -> _Opened:
    dtype = pick_dtype(asked.loading.get("dtype"), device)
    vae = load_vae(folder)
    prepare(vae, device=device, dtype=dtype)
    side = vae.config.sample_size
    told = {"model": str(asked.model), "device": device.type, "dtype": _named(dtype)}
    return _Opened(None, VAECodec(vae), (side, side), told)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_output(folder: Path) -> None:
    """Refuse to write over what is no report."""
    if folder.exists() and not (folder / DATA).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something that is no report of an evaluation: name another --output")
    check_folder(folder)


def _write(found: Evaluation | None, made: dict[str, Any], folder: Path) -> None:
    """All files of the report, together or not at all; and the numbers to the terminal."""
    assert found is not None
    plotted, drawn = plots(found), sheets(found)
    pictures = {name: plot.png for name, plot in plotted.items()} | drawn
    text = markdown(found, made, {f"{name}.png": title(name, found) for name in pictures})
    with disk_trouble(str(folder)), replacing(folder) as new:
        data = json.dumps(as_data(found, made), indent=1, ensure_ascii=False)
        (new / DATA).write_text(data + "\n", encoding="utf-8")
        (new / "report.md").write_text(text, encoding="utf-8")
        (new / "report.html").write_text(page(found, made, plotted, drawn), encoding="utf-8")
        for name, content in pictures.items():
            (new / f"{name}.png").write_bytes(content)
    print(markdown(found, made, {}).rstrip())
    print(f"\n{folder / 'report.html'}: the same with plots and pictures; {DATA} has every number")
