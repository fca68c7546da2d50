"""What a model, or any file of weights, is: as text, for ``ldm info``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.knowledge.file import read_knowledge
from ldm.weights.absent import near
from ldm.weights.embedded import DEFAULT, as_path
from ldm.weights.families import FAMILIES
from ldm.weights.files import read_json
from ldm.weights.first_bytes import picture_kind
from ldm.weights.habits import habits
from ldm.weights.hub import looks_like_name
from ldm.weights.identify import count_numbers, dtypes_in, identify
from ldm.weights.model import latest_checkpoint, resolve
from ldm.weights.modelspec import told_index
from ldm.weights.own import Own, read_own
from ldm.weights.parts import CONFIG, INDEX, SCHEDULER_CONFIG, TEXT_ENCODERS, UNREAD_PARTS, listed_parts
from ldm.weights.pickles import FLAG, PICKLE_ENDINGS, form_of
from ldm.weights.stored import open_stored
from ldm.weights.tuned import LORA_FILE, embedding_in, lora_in, told_base, tuned_folder
from ldm.weights.variants import STEMS, find_weights, variants_in

_MOST = 200  # files that are told of one folder


def describe(place: str | None, allow_pickle: bool = False) -> str:
    """Say what is at a place, without building anything of it.

    Args:
        place: a model folder, a run, a folder of one part, a file of weights, or None for the model in the package.
        allow_pickle: look into pickles too; otherwise they are named and not opened.

    Returns:
        Several lines: the place, then what is known.

    Raises:
        UserError: there is nothing, it is damaged, or it is nothing of a model.
    """
    path = as_path(place or DEFAULT)
    if place is not None and looks_like_name(place):  # of a file or folder that is not here
        raise UserError(
            f"{place}: no such folder or file{near(path)}; names on the hub (owner/name) are not looked up by info"
        )
    if path.is_file():
        lines = _of_file(path, allow_pickle)
    elif loose := _loose_files(path):
        lines = _of_loose(loose, allow_pickle)
    elif (path / CONFIG).is_file() and not (path / INDEX).is_file():
        lines = _of_part(path, allow_pickle)
    elif folder := tuned_folder(path):
        path = folder
        lines = _of_tuned(folder)
    else:
        path = resolve(path)
        lines = _of_folder(path, allow_pickle)
    return "\n".join([str(path), *(f"  {line}" for line in lines)])


def _of_tuned(folder: Path) -> Iterator[str]:
    base, _ = told_base(folder)
    is_lora = (folder / LORA_FILE).is_file()
    file = lora_in(folder) if is_lora else embedding_in(folder)
    yield f"{'a LoRA' if is_lora else 'a word'} for {base}, in {file.name}"
    yield from _of_file(file, allow_pickle=False)


# --------------------------------------------------------------------------------------- folders


def _loose_files(folder: Path) -> list[Path]:
    """The files of weights in a folder that is no model, no part of one and no run."""
    if not folder.is_dir() or any((folder / name).is_file() for name in (INDEX, CONFIG)) or latest_checkpoint(folder):
        return []
    endings = (".safetensors", *PICKLE_ENDINGS)
    return sorted(path for path in folder.iterdir() if path.suffix in endings and path.is_file())


def _of_loose(paths: list[Path], allow_pickle: bool) -> Iterator[str]:
    for path in paths[:_MOST]:
        yield f"{path.name}: {_in_short(path, allow_pickle)}"
    if len(paths) > _MOST:
        yield f"and {len(paths) - _MOST} more"


def _in_short(path: Path, allow_pickle: bool) -> str:
    try:
        if form_of(path) == "pickle" and not allow_pickle:
            return f"pickle, not opened (see {FLAG})"
        told = identify(path, allow_pickle)
    except UserError as error:
        return str(error).removeprefix(str(path)).strip()
    more = [f"{word} {told[key]}" for key, word in (("for", "for"), ("fault", "fault:")) if key in told]
    return ", ".join([told["kind"], *more])


def _of_folder(folder: Path, allow_pickle: bool) -> Iterator[str]:
    index = read_json(folder / INDEX)
    yield f"kind: {index.get('_class_name', '?')}"
    parts = listed_parts(index)
    for name in sorted(parts):
        if name in UNREAD_PARTS and not (folder / name).is_dir():
            yield f"{name:14s} (not here, and not needed)"
            continue
        first, *more = _weights(folder / name, allow_pickle)
        yield f"{name:14s} {index[name][-1]!s:24s} {first}"
        yield from (f"{'':39s} {line}" for line in more)
    own = read_own(index, folder / INDEX)
    if "unet" in parts:
        yield from _family(read_json(folder / "unet" / CONFIG))
    for name in (name for name in TEXT_ENCODERS if name in parts):
        yield f"{name}: {_tower(read_json(folder / name / CONFIG))}"
    if "scheduler" in parts:
        scheduler = read_json(folder / "scheduler" / SCHEDULER_CONFIG)
        yield f"scheduler: {_scheduler(scheduler)}"
        if "_ldm" not in index and "unet" in parts:
            own = Own.checked({"defaults": habits(scheduler, len(parts & {*TEXT_ENCODERS}))})
    if known := read_knowledge(folder):
        things = sum(len(group.things) for group in known.groups)
        yield f"knows: {things:,} things in {len(known.styles)} styles (ldm prompts names them)"
    yield from _own(own)


def _weights(folder: Path, allow_pickle: bool) -> list[str]:
    """A line for each variant of a part's weights."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing, though {folder.parent / INDEX} lists it")
    names = [path.name for path in folder.iterdir()]
    lines, told = [], set()
    for ending in ("safetensors", "bin"):
        for stem in STEMS:
            for variant in variants_in(names, stem, ending):
                if (stem, variant) not in told:
                    paths = find_weights(folder, stem, variant, allow_pickle=ending == "bin")
                    lines.append(_sum(paths, variant, allow_pickle))
                told.add((stem, variant))
    return lines or ["(no weights)"]


def _sum(paths: list[Path], variant: str | None, allow_pickle: bool) -> str:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing, a shard of the weights in {missing[0].parent}")
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    tail = (f", variant {variant}" if variant else "") + (f", {len(paths)} shards" if len(paths) > 1 else "")
    if not allow_pickle and any(form_of(path) == "pickle" for path in paths):
        return f"pickle, not opened (see {FLAG}), {megabytes:,.1f} MB{tail}"
    stored = [open_stored(path, allow_pickle) for path in paths]
    dtypes = dtypes_in(dtype for file in stored for dtype in file.dtypes.values())
    return f"{sum(count_numbers(file.shapes) for file in stored):>12,d} parameters, {megabytes:,.1f} MB, {dtypes}{tail}"


def _family(unet: dict[str, Any]) -> Iterator[str]:
    for family in FAMILIES:
        wanted = {**family.unet, "in_channels": family.in_channels}
        if all(unet.get(key) == value for key, value in wanted.items()):
            distilled = ", distilled: it reads the scale of guidance" if unet.get("time_cond_proj_dim") else ""
            yield f"family: {family.title}{distilled}"


def _tower(config: dict[str, Any]) -> str:
    names = {"hidden_size": "wide", "num_hidden_layers": "layers", "vocab_size": "tokens known"}
    told = [f"{config[key]} {word}" for key, word in names.items() if key in config]
    if "max_position_embeddings" in config:
        told.append(f"windows of {config['max_position_embeddings']}")
    return ", ".join(told)


def _scheduler(config: dict[str, Any]) -> str:
    told = [str(config.get("_class_name")), f"predicts {config.get('prediction_type', 'epsilon')}"]
    if "beta_schedule" in config:
        told.append(f"{config['beta_schedule']} noise of {config.get('num_train_timesteps', 1000)} times")
    if config.get("rescale_betas_zero_snr"):
        told.append("zero terminal SNR")
    return ", ".join(told)


def _of_part(folder: Path, allow_pickle: bool) -> Iterator[str]:
    yield from (f"{key}: {value}" for key, value in identify(folder, allow_pickle).items() if value)
    yield from (f"weights: {line.strip()}" for line in _weights(folder, allow_pickle))
    config = read_json(folder / CONFIG)
    if config.get("_class_name") == "UNet2DConditionModel":
        yield from _family(config)


def _own(own: Own) -> Iterator[str]:
    if own.size:
        yield f"pictures: {own.size[1]}x{own.size[0]}"
    defaults = own.defaults.model_dump(exclude_none=True)
    if defaults:
        yield "draws by default with: " + ", ".join(f"{key} {value}" for key, value in defaults.items())
    lines = []
    for key, value in own.provenance.items():
        if key == "config" and isinstance(value, dict):
            data, train = value.get("data", {}), value.get("train", {})
            split = f" ({data['split']})" if data.get("split") else ""
            lines.append(f"  data: {data.get('source')}{split}, batch {train.get('batch_size')}")
        elif not isinstance(value, dict):
            lines.append(f"  {key}: {value}")
    yield from (["trained with"] if lines else []) + lines


# ----------------------------------------------------------------------------------------- files


def _of_file(path: Path, allow_pickle: bool) -> Iterator[str]:
    picture = picture_kind(path)
    if picture is not None:
        yield f"kind: picture ({picture}); `ldm show` reads what it was drawn with"
        return
    megabytes = f"size: {path.stat().st_size / 1e6:,.1f} MB"
    if form_of(path) == "pickle" and not allow_pickle:
        yield "kind: pickle, a form that can carry code: not opened"
        yield megabytes
        yield f"to look inside: {FLAG} (it is then read by torch's restricted reader, which runs nothing)"
        return
    yield from (f"{key}: {value}" for key, value in identify(path, allow_pickle).items())
    yield megabytes
    index = told_index(open_stored(path, allow_pickle).metadata)
    if index is not None:
        yield from _own(read_own(index, path))
