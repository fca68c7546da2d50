"""Models by their name on the Hugging Face hub, such as ``stable-diffusion-v1-5/stable-diffusion-v1-5``.

A name means the newest commit of its main branch, unless a revision says otherwise. Which commit that was is returned
with the folder: given as the revision, it brings the very same files at any later time, and from the cache without
asking the hub. Only what is drawn with is fetched: no pickles, no other variants, no safety checker.
"""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError
from ldm.weights.files import read_json
from ldm.weights.parts import CONFIG, DRAWING_PARTS, INDEX, TEXT_ENCODERS, listed_parts
from ldm.weights.pickles import PICKLE_ENDINGS
from ldm.weights.variants import STEMS, index_name, instead, variants_in, weights_name

_WEIGHTY = ("unet", "vae", *TEXT_ENCODERS)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Fetched:
    """What was fetched.

    Attributes:
        path: a folder in the cache, or the file that was named.
        repo: ``owner/name``.
        commit: what pins it: as ``revision``, it means these files for ever.
    """

    path: Path
    repo: str
    commit: str


def fetch(
    name: str, revision: str | None = None, variant: str | None = None, cache: Path | None = None, offline: bool = False
) -> Fetched:
    """Fetch a model, or find it in the cache of huggingface_hub.

    Args:
        name: ``owner/name`` of a repository in the layout of diffusers, or ``owner/name/file.safetensors``.
        revision: commit, tag or branch; by default the main branch.
        variant: of the weights, such as ``fp16``.
        cache: the cache; by default that of huggingface_hub.
        offline: look into the cache alone, as with ``HF_HUB_OFFLINE=1``.

    Raises:
        UserError: the hub cannot be reached, has no such thing or does not give it; or it is not in the cache.
    """
    from huggingface_hub import constants

    repo, file = _split(name)
    offline = offline or constants.HF_HUB_OFFLINE
    with _trouble(name, revision, cache or Path(constants.HF_HUB_CACHE)):
        if offline or (revision and _COMMIT.fullmatch(revision) and _is_cached(repo, file, revision, variant, cache)):
            return _from_cache(repo, file, revision, variant, cache)
        return _from_hub(repo, file, revision, variant, cache)


def looks_like_name(place: str) -> bool:
    """Whether a place could be a name on the hub: ``owner/name``, and no file or folder here nor the name of a file."""
    if place.count("/") == 1 and place.endswith((".safetensors", *PICKLE_ENDINGS)):
        return False
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(/[\w./-]+)?", place) is not None and not Path(place).exists()


def _split(name: str) -> tuple[str, str | None]:
    """(repository, file in it)."""
    owner, _, rest = name.partition("/")
    model, _, file = rest.partition("/")
    if not owner or not model or ".." in file.split("/"):
        raise UserError(f"{name!r} is no name of a model on the hub, which is owner/name")
    return f"{owner}/{model}", file or None


def _from_hub(repo: str, file: str | None, revision: str | None, variant: str | None, cache: Path | None) -> Fetched:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    names = [entry.rfilename for entry in HfApi().model_info(repo, revision=revision).siblings or []]
    if file is not None:
        if file not in names:
            raise UserError(f"{repo} has no file {file}{_single_files(names)}")
        return _file(repo, file, hf_hub_download(repo, file, revision=revision, cache_dir=cache))
    patterns = [glob.escape(wanted) for wanted in wanted_files(names, variant, repo)]
    folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, cache_dir=cache))
    return Fetched(folder, repo, folder.name)


def _file(repo: str, file: str, path: str) -> Fetched:
    return Fetched(Path(path), repo, Path(path).parents[file.count("/")].name)


def _from_cache(repo: str, file: str | None, revision: str | None, variant: str | None, cache: Path | None) -> Fetched:
    from huggingface_hub import hf_hub_download, snapshot_download

    if file is not None:
        found = hf_hub_download(repo, file, revision=revision, cache_dir=cache, local_files_only=True)
        return _file(repo, file, found)
    # The pattern matches nothing, so that only the folder is asked for: which of its files there must be, we know.
    found = snapshot_download(repo, revision=revision, cache_dir=cache, local_files_only=True, allow_patterns=["."])
    folder = Path(found)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    wanted_files(names, variant, f"{repo} in the cache ({folder})")
    _check_parts(folder, names, repo)
    return Fetched(folder, repo, folder.name)


def _is_cached(repo: str, file: str | None, revision: str, variant: str | None, cache: Path | None) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        _from_cache(repo, file, revision, variant, cache)
    except (LocalEntryNotFoundError, UserError):  # not there, or not all of it: the hub has the rest
        return False
    return True


def _check_parts(folder: Path, names: Sequence[str], repo: str) -> None:
    """Refuse a folder of the cache that lacks parts which its index lists."""
    if INDEX not in names:
        return
    listed = listed_parts(read_json(folder / INDEX))
    lost = [part for part in DRAWING_PARTS if part in listed and not any(name.startswith(f"{part}/") for name in names)]
    if lost:
        raise UserError(f"{repo} is in the cache ({folder}) without its {', '.join(lost)}: fetch it once online")


def wanted_files(names: Sequence[str], variant: str | None, repo: str) -> list[str]:
    """Which files of a repository to draw with.

    Args:
        names: all there are.
        variant: of the weights.
        repo: what to call the repository in messages.

    Raises:
        UserError: it has no model in the layout of diffusers, or not this variant; the message lists what it has.
    """
    if INDEX in names:
        folders = [part for part in DRAWING_PARTS if any(name.startswith(f"{part}/") for name in names)]
        found = [INDEX]
    elif CONFIG in names:  # a part alone, such as a VAE or a ControlNet
        folders, found = [""], []
    else:
        raise UserError(f"{repo} has no model in the layout of diffusers ({INDEX} is missing){_single_files(names)}")
    for folder in folders:
        start = f"{folder}/" if folder else ""
        inside = [name.removeprefix(start) for name in names if name.startswith(start)]
        small = [name for name in inside if re.fullmatch(r"[^/]+\.(json|txt|model)", name) and ".index." not in name]
        weights = _weights(inside, variant, repo, folder) if folder in (*_WEIGHTY, "") else []
        found += [start + name for name in (*small, *weights)]
    return found


def _weights(names: Sequence[str], variant: str | None, repo: str, folder: str) -> list[str]:
    for stem in STEMS:
        if variant not in variants_in(names, stem):
            continue
        whole = weights_name(stem, variant)
        if whole in names:
            return [whole]
        tail = re.escape(f".{variant}") if variant else ""
        shard = re.compile(rf"{stem}(?:{tail}-\d{{5}}-of-\d{{5}}|-\d{{5}}-of-\d{{5}}{tail})\.safetensors")
        return [index_name(stem, variant), *(name for name in names if shard.fullmatch(name))]
    asked = f"variant {variant!r}" if variant else "weights without a variant"
    there = next((told for stem in STEMS if (told := instead(names, stem))), "")
    raise UserError(f"{repo}{f', {folder}' if folder else ''}: no {asked} in safetensors{there}")


def _single_files(names: Sequence[str]) -> str:
    found = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    return f"; single files there: {', '.join(found[:5])} (name one as owner/name/file)" if found else ""


@contextlib.contextmanager
def _trouble(name: str, revision: str | None, cache: Path) -> Iterator[None]:
    """Say in our words what huggingface_hub raises."""
    from huggingface_hub import errors

    at = f"{name}{f' at {revision}' if revision else ''}"
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f"{at} is gated: accept its conditions on its page of the hub, and log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{at}: the hub has no such repository, or it is private (`hf auth login`)") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{at}: the repository has no such revision") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(
            f"{at} is not in the cache {cache}, and nothing is fetched offline: run once with a network and without "
            "HF_HUB_OFFLINE"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{name!r} is no name of a model on the hub: {error}") from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"{at}: the hub answers with an error: {' '.join(str(error).split())}") from error
    except Exception as error:
        if not isinstance(error, errors.HfHubHTTPError.__bases__):  # OSError, and the base of its HTTP client's errors
            raise
        raise UserError(
            f"{at} is no folder or file here, and cannot be fetched: the hub is not reached ({error}); "
            "HF_HUB_OFFLINE=1 uses what is in the cache"
        ) from error
