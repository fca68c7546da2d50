"""The npm packages that the pictures and their names come from, and how they are fetched.

Every package is pinned: its version, and the SHA-512 of its tarball as the registry publishes it. ``npm pack``
downloads a tarball and runs none of its code. A folder that holds the tarballs already is all that is needed where
there is no network.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ldm.errors import UserError


@dataclass(frozen=True)
class Package:
    """One tarball of the npm registry.

    Attributes:
        name, version: as npm knows it.
        integrity: ``sha512-`` and the base64 of the tarball's hash.
        licence: SPDX identifier of what is used of it.
        title: what its makers call it.
        author: whom to name.
        home: where it comes from.
    """

    name: str
    version: str
    integrity: str
    licence: str
    title: str
    author: str
    home: str

    @property
    def spec(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def tarball(self) -> str:
        """The file name that ``npm pack`` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def page(self) -> str:
        return f"https://www.npmjs.com/package/{self.name}/v/{self.version}"


PACKAGES: dict[str, Package] = {
    "emojibase": Package(
        "emojibase-data",
        "17.0.0",
        "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
        "MIT",
        "Emojibase",
        "Miles Johnson",
        "https://github.com/milesj/emojibase",
    ),
    "fluent-3d": Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "MIT",
        "Fluent Emoji 3D",
        "Microsoft Corporation; packed by LobeHub",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    "fluent-flat": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT",
        "Fluent Emoji Flat",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
        "Noto Emoji",
        "Google Inc",
        "https://github.com/googlefonts/noto-emoji",
    ),
    "noto-v1": Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0",
        "Noto Emoji (v1)",
        "Google Inc",
        "https://github.com/googlefonts/noto-emoji",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0",
        "Twitter Emoji",
        "Twitter, Inc and other contributors",
        "https://github.com/jdecked/twemoji",
    ),
    "emojione": Package(
        "@iconify-json/emojione",
        "1.2.3",
        "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "CC-BY-4.0",
        "Emoji One (Colored)",
        "Emoji One",
        "https://github.com/EmojiTwo/emojitwo",
    ),
    "streamline": Package(
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "sha512-iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
        "CC-BY-4.0",
        "Streamline Emojis",
        "Streamline",
        "https://github.com/webalys-hq/streamline-vectors",
    ),
    "fxemoji": Package(
        "@iconify-json/fxemoji",
        "1.2.2",
        "sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        "Apache-2.0",
        "Firefox OS Emoji",
        "Mozilla",
        "https://github.com/mozilla/fxemoji",
    ),
    "game-icons": Package(
        "@iconify-json/game-icons",
        "1.2.4",
        "sha512-/HDDZxowXgDJcOEwPspUCq5RuDdl25OyZKdtxqqiPJQNTrWIym7r4StLzIVs77DyNzOWWhH5wDqwYR3WHeDfkg==",
        "CC-BY-3.0",
        "Game Icons",
        "Lorc, Delapouite and other contributors of game-icons.net",
        "https://github.com/game-icons/icons",
    ),
}


def fetch(folder: Path, packages: Sequence[Package]) -> dict[str, Path]:
    """The tarballs of packages, fetched where the folder does not hold them yet, all of them verified.

    Args:
        folder: where they are or come to be.
        packages: which.

    Returns:
        name of the package -> its tarball.

    Raises:
        UserError: one is damaged, cannot be fetched, or is not what was published; nothing wrong is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for package in tqdm(packages, desc="packages", unit="package", disable=None):
        path = folder / package.tarball
        if not path.exists():
            _pack(package, folder)
        check_integrity(path, package)
        found[package.name] = path
    return found


def _pack(package: Package, folder: Path) -> None:
    npm = shutil.which("npm")
    told = f"{package.spec} is not in {folder}"
    if npm is None:
        raise UserError(f"{told}, and there is no npm to fetch it: install Node.js, or put {package.tarball} there")
    work = folder / f"fetching_{package.tarball}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        # the tarball first lands beside its place, so that one that was cut off is never taken for whole
        done = subprocess.run([npm, "pack", package.spec, "--silent"], cwd=work, capture_output=True, text=True)
        made = work / package.tarball
        if done.returncode or not made.is_file():
            reason = " ".join((done.stderr or done.stdout).split())[:300] or f"npm ended with {done.returncode}"
            raise UserError(f"{told} and cannot be fetched: {reason}; or put {package.tarball} there yourself")
        check_integrity(made, package)
        made.replace(folder / package.tarball)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_integrity(path: Path, package: Package) -> None:
    """Compare a tarball with the hash that the registry published.

    Raises:
        UserError: it is another file, or damaged.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha512").digest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    found = "sha512-" + base64.b64encode(digest).decode()
    if found != package.integrity:
        raise UserError(
            f"{path} is damaged or not {package.spec}: its hash is {found[:20]}..., expected "
            f"{package.integrity[:20]}...; delete it to have it fetched again"
        )


def read_members(path: Path, wanted: Sequence[str] = (), ending: str = "") -> dict[str, bytes]:
    """Files of a tarball, by their path without the leading ``package/``.

    Args:
        path: a verified tarball.
        wanted: exact paths, all of which must be there.
        ending: or: all files whose path ends so.

    Raises:
        UserError: it is no tarball, or one of ``wanted`` is missing.
    """
    try:
        with tarfile.open(path) as tar:
            found = {}
            for member in tar:
                name = member.name.removeprefix("package/")
                if member.isfile() and (name in wanted or (ending and name.endswith(ending))):
                    file = tar.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read as a tarball: {error}") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{path} has no {missing[0]}")
    return found
