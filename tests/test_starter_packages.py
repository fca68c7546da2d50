"""Tarballs are fetched once, verified always, and what is wrong is named."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from starter_lab import make_packages, names, pack

from ldm.errors import UserError
from ldm.starter.packages import PACKAGES, fetch, read_members

NPM = "#!/bin/sh\necho \"$@\" >> '{log}'\n{does}\n"


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that is all there is: ``install`` puts an npm into it."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr("shutil.which", lambda name: str(folder / name) if (folder / name).exists() else None)
    return folder


def install(folder: Path, does: str) -> Path:
    log = folder / "log"
    (folder / "npm").write_text(NPM.format(log=log, does=does))
    (folder / "npm").chmod(stat.S_IRWXU)
    return log


def test_every_package_is_pinned_to_a_whole_hash_and_is_no_share_alike_one() -> None:
    for package in PACKAGES.values():
        kind, _, held = package.integrity.partition("-")
        assert kind == "sha512"
        assert len(base64.b64decode(held, validate=True)) == 64
        assert package.licence in ("MIT", "Apache-2.0", "CC-BY-3.0", "CC-BY-4.0")
        assert package.version.count(".") == 2
    assert not {"openmoji", "emojione-v1"} & {package.name.split("/")[-1] for package in PACKAGES.values()}


def test_a_folder_of_tarballs_needs_no_npm(tmp_path: Path, npm: Path) -> None:
    packages = make_packages(tmp_path / "there")
    found = fetch(tmp_path / "there", list(packages.values()))
    assert found == {package.name: tmp_path / "there" / package.tarball for package in packages.values()}


def test_npm_is_asked_for_what_is_missing_and_only_for_that(tmp_path: Path, npm: Path) -> None:
    package = pack(tmp_path, PACKAGES["emojibase"], names())
    (tmp_path / package.tarball).rename(tmp_path / "published.tgz")
    log = install(npm, f"cp '{tmp_path / 'published.tgz'}' '{package.tarball}'")
    for _ in range(2):
        fetch(tmp_path / "downloads", [package])
    assert log.read_text().split() == ["pack", "emojibase-data@17.0.0", "--silent"]
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [package.tarball]


def test_without_npm_the_message_says_what_to_do(tmp_path: Path, npm: Path) -> None:
    with pytest.raises(UserError, match=r"emojibase-data@17\.0\.0 is not in .*no npm.*emojibase-data-17\.0\.0\.tgz"):
        fetch(tmp_path / "downloads", [PACKAGES["emojibase"]])


def test_what_npm_says_is_passed_on(tmp_path: Path, npm: Path) -> None:
    install(npm, "echo 'npm error code E404' >&2; exit 1")
    with pytest.raises(UserError, match=r"emojibase-data@17\.0\.0 .*cannot be fetched: npm error code E404"):
        fetch(tmp_path / "downloads", [PACKAGES["emojibase"]])
    assert not list((tmp_path / "downloads").iterdir())


def test_another_file_than_was_published_never_reaches_its_place(tmp_path: Path, npm: Path) -> None:
    install(npm, f"echo other > '{PACKAGES['emojibase'].tarball}'")
    with pytest.raises(UserError, match=r"is damaged or not emojibase-data@17\.0\.0"):
        fetch(tmp_path / "downloads", [PACKAGES["emojibase"]])
    assert not list((tmp_path / "downloads").iterdir())


def test_one_changed_byte_is_found(tmp_path: Path) -> None:
    packages = make_packages(tmp_path)
    path = tmp_path / packages["noto"].tarball
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path.name} is damaged or not @iconify-json/noto@1\.2\.9.*delete it"):
        fetch(tmp_path, list(packages.values()))


def test_a_tarball_without_what_it_should_hold_is_named(tmp_path: Path) -> None:
    package = pack(tmp_path, PACKAGES["noto"], {"icons.json": b"{}"})
    with pytest.raises(UserError, match=r"noto-1\.2\.9\.tgz has no chars\.json"):
        read_members(tmp_path / package.tarball, ("icons.json", "chars.json"))
    (tmp_path / package.tarball).write_bytes(b"no tarball")
    with pytest.raises(UserError, match="cannot be read as a tarball"):
        read_members(tmp_path / package.tarball, ("icons.json",))
