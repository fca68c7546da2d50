"""Packages of a few hand-made pictures, as npm would have packed them, and a folder prepared of them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.starter.packages import PACKAGES, Package

SIDE = 64
# code: (English label, Korean label, group, subgroup, tags, Korean tags, fill)
EMOJI: dict[str, tuple[str, str, int, int, list[str], list[str], str]] = {
    "1F436": ("dog face", "강아지 얼굴", 3, 0, ["dog", "pet", "puppy"], ["개", "동물"], "#8a5a2b"),
    "1F697": ("automobile", "자동차", 5, 1, ["car", "driving"], ["차", "운전"], "#dd2222"),
    "1F40C": ("snail", "달팽이", 3, 0, ["animal", "slow"], ["느린"], "#33aa44"),
    "1F6AA": ("door", "문", 7, 2, ["front"], ["입구"], "#2255dd"),
    "1F511": ("key", "열쇠", 7, 2, ["lock", "password"], ["비밀번호"], "#d8b020"),
    "1F347": ("grapes", "포도", 4, 3, ["fruit"], ["과일"], "#7a30b0"),
    "1F469-200D-1F9B1": ("woman: curly hair", "여자: 곱슬머리", 1, 4, ["woman"], ["여자"], "#cc8866"),
    "1F1E8-1F1F3": ("flag: China", "깃발: 중국", 9, 5, ["CN", "flag"], ["CN", "깃발"], "#ee3333"),
    "1F44D": ("thumbs up", "올린 엄지", 1, 6, ["+1", "like"], ["좋아"], "#f0c040"),
}
GROUPS = [
    "animal-mammal",
    "transport-ground",
    "household",
    "food-fruit",
    "person",
    "country-flag",
    "hand-fingers-closed",
]
ICONS = ("sword", "thrown-spear", "key", "oak-leaf", "round-bottom-flask", "anvil")


def square(fill: str, left: float = 16, top: float = 16, side: float = 96) -> str:
    return f'<path fill="{fill}" d="M{left} {top}h{side}v{side}h-{side}z"/>'


def pack(folder: Path, package: Package, files: dict[str, bytes]) -> Package:
    """Write a tarball and give back its package with the hash that it has."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    (folder / package.tarball).write_bytes(held.getvalue())
    digest = base64.b64encode(hashlib.sha512(held.getvalue()).digest()).decode()
    return replace(package, integrity=f"sha512-{digest}")


def encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def names() -> dict[str, bytes]:
    """What emojibase-data holds."""
    rows: dict[str, list[dict[str, Any]]] = {"en": [], "ko": []}
    for code, (label, korean, group, subgroup, tags, korean_tags, _) in EMOJI.items():
        known = {"hexcode": code, "group": group, "subgroup": subgroup}
        rows["en"].append({**known, "label": label, "tags": tags})
        rows["ko"].append({**known, "label": korean, "tags": korean_tags})
    regional = {"label": "regional indicator A", "hexcode": "1F1E6", "tags": []}
    files = {f"{language}/data.json": encoded([*of, regional]) for language, of in rows.items()}
    files["meta/groups.json"] = encoded({"subgroups": {str(k): name for k, name in enumerate(GROUPS)}})
    files["meta/unicode-names.json"] = encoded({"1F436": "DOG FACE", "1F697": "AUTOMOBILE"})
    for table in ("cldr", "emojibase", "joypixels", "iamcal", "github"):
        files[f"en/shortcodes/{table}.json"] = encoded({"1F44D": ["+1", "thumbsup"], "1F697": "red_car"})
    return files


def icons(bodies: dict[str, str], chars: dict[str, str], **more: Any) -> dict[str, bytes]:
    """What a set of Iconify holds, in boxes of 128 x 128."""
    held = {
        "prefix": "x",
        "icons": {slug: {"body": body} for slug, body in bodies.items()},
        "width": 128,
        "height": 128,
    }
    return {"icons.json": encoded({**held, **more}), "chars.json": encoded(chars)}


def slug_of(label: str) -> str:
    return label.replace(": ", "-").replace(" ", "-").lower()


def make_packages(folder: Path) -> dict[str, Package]:
    """Three sets of emoji, one of them WebP, a set of glyphs, and the names."""
    folder.mkdir(parents=True, exist_ok=True)
    bodies = {slug_of(row[0]): square(row[-1]) for row in EMOJI.values()}
    toned = {"thumbs-up-dark": square("#553311")}
    by_code = icons(
        {**bodies, **toned, "letter-a": square("#111111")},
        {**{code.lower(): slug_of(row[0]) for code, row in EMOJI.items()}, "1f44d-1f3ff": "thumbs-up-dark"},
    )
    aliased = {"red-car-1": {"parent": "automobile", "hFlip": True}, "doggy": {"parent": "dog-face"}}
    by_name = icons(
        {**{slug: square(row[-1], 8, 40, 48) for slug, row in zip(bodies, EMOJI.values(), strict=True)}, "nothing": ""},
        {},
        aliases=aliased,
    )
    webp = {f"assets/{code.lower()}.webp": webp_square(row[-1]) for code, row in EMOJI.items()}
    glyphs = icons({slug: square("currentColor", 16, 30, 68) for slug in ICONS}, {})
    made = {"emojibase": names(), "twemoji": by_code, "noto": by_name, "fluent-3d": webp, "game-icons": glyphs}
    return {style: pack(folder, PACKAGES[style], files) for style, files in made.items()}


def webp_square(fill: str) -> bytes:
    picture = Image.new("RGBA", (80, 80), (0, 0, 0, 0))
    picture.paste(Image.new("RGBA", (60, 60), fill), (10, 10))
    held = io.BytesIO()
    picture.save(held, "WEBP", lossless=True)
    return held.getvalue()
