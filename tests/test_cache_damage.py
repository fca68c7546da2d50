"""A cache whose files were cut short, changed in a bit, or lost: found before training reads them, and mended."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_caches import Pile, wanted
from torch import Tensor

from ldm.cache.build import Wanted, open_or_build
from ldm.cache.shards import is_whole, read_shard, sealed_json, unsealed_json, write_shard
from ldm.errors import UserError

COUNT = 6


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Wanted:
    """A cache of a few pictures, which was built; not to be changed."""
    found = wanted(tmp_path_factory.mktemp("cache") / "whole", Pile(COUNT, sizes=[(32, 32), (40, 24)]))
    open_or_build(found)
    return found


def everything(asked: Wanted) -> list[Tensor]:
    kept = open_or_build(asked).of(asked.source)
    texts: list[Any] = [None, "", "a red one", "thing 3, small, round"]
    moments = [kept.moments(0, i, 0, False)[0].clone() for i in range(COUNT)]  # which are mapped
    return [*moments, *(kept.context(text).map(torch.clone).tokens for text in texts)]


def flipped(path: Path, at: int, bit: int) -> None:
    blob = bytearray(path.read_bytes())
    blob[at] ^= 1 << bit
    path.write_bytes(blob)


def _flip(chance: random.Random, path: Path) -> None:
    flipped(path, chance.randrange(path.stat().st_size), chance.randrange(8))


def _flip_head(chance: random.Random, path: Path) -> None:
    flipped(path, chance.randrange(min(400, path.stat().st_size)), chance.randrange(8))


def _cut(chance: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def _lengthen(chance: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes() + chance.randbytes(8))


def _empty(chance: random.Random, path: Path) -> None:
    path.write_bytes(b"")


def _delete(chance: random.Random, path: Path) -> None:
    path.unlink()


def _overwrite(chance: random.Random, path: Path) -> None:
    blob, size = path.read_bytes(), path.stat().st_size // 3
    path.write_bytes(blob[:size] + chance.randbytes(size) + blob[2 * size :])


DAMAGE = [_flip, _flip, _flip_head, _cut, _cut, _lengthen, _empty, _delete, _overwrite]
CASES = [(damage, kind, k) for kind in ("latents", "texts", "cache.json") for k, damage in enumerate(DAMAGE)]


@pytest.mark.parametrize(("damage", "kind", "seed"), CASES)
def test_damage_is_named_and_mended(
    asked: Wanted,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[random.Random, Path], None],
    kind: str,
    seed: int,
) -> None:
    folder = Path(shutil.copytree(asked.folder, tmp_path / "cache"))
    mine = Wanted(**{**vars(asked), "folder": folder})
    expected = everything(mine)  # notes the states of the copies
    capsys.readouterr()
    chance = random.Random(f"{kind} {seed}")
    path = chance.choice(sorted(folder.glob(f"{kind}*")))
    damage(chance, path)
    cache = open_or_build(mine)
    told = capsys.readouterr().out
    if kind == "cache.json":
        assert damage is _delete or "cache.json is damaged" in told
        assert (cache.made.pictures, cache.made.texts) == (0, 0)
    else:
        assert f"{path.name} is {'missing' if damage is _delete else 'damaged'}" in told
        assert (cache.made.pictures > 0, cache.made.texts > 0) == (kind == "latents", kind == "texts")
    assert all(torch.equal(a, b) for a, b in zip(everything(mine), expected, strict=True))
    assert "damaged" not in capsys.readouterr().out


@pytest.fixture
def shared(asked: Wanted, tmp_path: Path) -> Iterator[Wanted]:
    """A copy on a disk that can be read alone, with a bit changed, and what a killed process left."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    shutil.copytree(asked.folder, folder, dirs_exist_ok=True)
    (folder / "latents-00009.safetensors.tmp").write_bytes(b"half")
    flipped(folder / "latents-00000.safetensors", -9, 3)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    yield Wanted(**{**vars(asked), "folder": folder})
    subprocess.run(["umount", "-l", folder], check=True)


def test_damage_in_a_folder_that_is_only_read_is_named(shared: Wanted) -> None:
    path = shared.folder / "latents-00000.safetensors"
    with pytest.raises(UserError, match=f"^{path} is damaged, and {shared.folder} cannot be written to"):
        open_or_build(shared)
    assert path.is_file()


def test_every_byte_of_a_shard_is_sealed(tmp_path: Path) -> None:
    path = tmp_path / "latents-00000.safetensors"
    ids = torch.arange(4).reshape(2, 2).numpy()
    write_shard(path, ids, {"moments": torch.ones(2, 3)}, {"recipe": {"é": ["1", "2"]}})
    assert is_whole(path)
    assert read_shard(path).note == {"recipe": {"é": ["1", "2"]}}
    blob = path.read_bytes()
    for bit in range(0, 8 * len(blob), 7):  # one or two of every byte
        flipped(path, bit // 8, bit % 8)
        assert not is_whole(path), f"byte {bit // 8}, bit {bit % 8}"
        path.write_bytes(blob)
    for length in range(0, len(blob), 9):
        path.write_bytes(blob[:length])
        assert not is_whole(path)


def test_every_single_bit_of_the_list_is_sealed() -> None:
    blob = sealed_json({"latents": {"files": {"ä": [1, 2]}}})
    assert unsealed_json(blob) == {"latents": {"files": {"ä": [1, 2]}}}
    for bit in range(8 * len(blob)):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        assert unsealed_json(bytes(changed)) is None
    assert all(unsealed_json(blob[:length]) is None for length in range(len(blob)))


def test_a_checked_file_is_not_read_again(asked: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr("ldm.cache.shelf.is_whole", lambda path: read.append(path) or True)
    open_or_build(asked)
    assert not read
    open_or_build(asked, thorough=True)
    assert sorted(read) == sorted(asked.folder.glob("*.safetensors"))
