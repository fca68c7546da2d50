"""What a prepared folder says about itself: whom to name, what is held out, and a card with pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import permutations
from pathlib import Path

from PIL import Image

from ldm.publishing import disk_trouble, write_whole
from ldm.sheet import labelled_sheet
from ldm.starter.avatar_styles import AVATAR_STYLES
from ldm.starter.avatars import avatar_licence
from ldm.starter.colours import COLOURS
from ldm.starter.composing import draw
from ldm.starter.held_out import (
    ABOVE,
    LEFT_OF,
    background_is_held_out,
    colour_is_held_out,
    relation_is_held_out,
    style_is_held_out,
)
from ldm.starter.packages import Package
from ldm.starter.prepared import Prepared
from ldm.starter.preparing import Found
from ldm.starter.scene import KINDS, Item, Scene
from ldm.starter.settings import Kind, StarterConfig
from ldm.starter.source import StarterSource
from ldm.starter.styles import STYLES
from ldm.starter.subjects import Subject

_LICENCES = {
    "MIT": "https://opensource.org/license/mit",
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
}
_SHOWN = 6  # pictures of a sheet
_SIDE = 192
_LABELS = ("dog", "pizza", "rocket", "sunflower", "grinning face", "guitar", "house", "octopus")


def write_papers(out: Path, packages: dict[str, Package], found: Found) -> None:
    """Write ``ATTRIBUTION.md``, ``held_out.json``, ``card.md`` and its pictures into a prepared folder.

    Raises:
        UserError: the disk is full.
    """
    prepared = Prepared(out)
    held = held_out_combinations(prepared)
    text = json.dumps(held, ensure_ascii=False, indent=0)
    avatars = any(style.name in found.pictures for style in AVATAR_STYLES)
    with disk_trouble(f"what {out} says about itself"):
        _write(out / "ATTRIBUTION.md", attribution(packages, avatars))
        _write(out / "held_out.json", text)
        _write_sheets(prepared)
        _write(out / "card.md", _card(prepared, packages, found, held))


def attribution(packages: dict[str, Package], avatars: bool) -> str:
    """Whom to name for the pictures, and for a model that is trained on them, in Markdown."""
    lines = [
        "# Attribution",
        "",
        "The pictures were rendered from the packages below, and composed: cut out, scaled, laid on a colour, some",
        "recoloured. Of emoji with skin tones the one without a tone is used. No licence is a share-alike one.",
        "",
        "| work | by | licence | package |",
        "|---|---|---|---|",
    ]
    for package in packages.values():
        licence = f"[{package.licence}]({_LICENCES[package.licence]})"
        lines.append(
            f"| [{package.title}]({package.home}) | {package.author} | {licence} | [{package.spec}]({package.page}) |"
        )
    if avatars:
        lines += ["", "Avatars are drawn by DiceBear (MIT) in these styles:", ""]
        lines += [f"- {avatar_licence(style.name)}" for style in AVATAR_STYLES]
    return "\n".join(lines) + "\n"


def held_out_combinations(prepared: Prepared) -> dict[str, object]:
    """What is never trained on, of what there is in a folder, by names.

    Of relations there are too many to list: their number is told, and the first ones; ``ldm.starter.held_out`` says of
    every combination on which side it is.
    """
    subjects, styles = prepared.subjects, _styles(prepared)
    emoji = [(number, subject) for number, subject in enumerate(subjects) if subject.kind == "emoji"]
    placeable = [subject.name for _, subject in emoji if subject.placeable]
    nouns = {subject.name: subject.noun for subject in subjects}
    relations = [
        [nouns[first], relation, nouns[second]]
        for relation in (LEFT_OF, ABOVE)
        for first, second in permutations(placeable, 2)
        if relation_is_held_out(first, relation, second)
    ]
    of_glyphs = [subject for subject in subjects if subject.kind == "glyph"]
    hued = {picture.subject for picture in prepared.pictures if picture.hue is not None}
    painted = [subject for number, subject in emoji if number in hued and subject.colourable]
    return {
        "style and label": [
            [style, subject.noun]
            for number, subject in emoji
            for style in sorted(styles[number])
            if style_is_held_out(style, subject.name, len(styles[number]))
        ],
        "colour and glyph": _pairs(of_glyphs, colour_is_held_out),
        "colour and label": _pairs(painted, colour_is_held_out),
        "background and label": _pairs([subject for _, subject in emoji], background_is_held_out),
        "relations": len(relations),
        "relations, for example": relations[:: max(1, len(relations) // 500)],
    }


def _pairs(subjects: Iterable[Subject], is_held_out: Callable[[str, str], bool]) -> list[list[str]]:
    return [[colour, subject.noun] for subject in subjects for colour in COLOURS if is_held_out(colour, subject.name)]


def _styles(prepared: Prepared) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for picture in prepared.pictures:
        found.setdefault(picture.subject, set()).add(picture.style)
    return found


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))


def _write_sheets(prepared: Prepared) -> None:
    """A sheet of styles, and one of every kind of scene that the folder has pictures for."""
    sheet = _sheet_of_styles(prepared)
    if sheet is not None:
        _save(prepared.folder / "styles.png", sheet)
    for kind in _kinds(prepared):
        config = StarterConfig(path=prepared.folder, size=_SIDE, kinds={kind: 1.0}, captions={"en": 1})
        source = StarterSource(config)
        examples = [source.read(number) for number in range(_SHOWN)]
        pictures = [Image.fromarray(example.image.permute(1, 2, 0).numpy()) for example in examples]
        captions = [example.captions[0] for example in examples]
        _save(prepared.folder / f"{kind}.png", labelled_sheet(pictures, _SHOWN, captions, [""]))


def _kinds(prepared: Prepared) -> list[Kind]:
    """Kinds of scenes that can be composed of what there is."""
    kinds = {subject.kind for subject in prepared.subjects}
    per_style = Counter(picture.style for picture in prepared.pictures if prepared.subjects[picture.subject].placeable)
    needs = {"glyphs": "glyph" in kinds, "avatars": "avatar" in kinds}
    needs |= dict.fromkeys(("pairs", "triples"), max(per_style.values(), default=0) >= 3)
    return [kind for kind in KINDS if needs.get(kind, "emoji" in kinds)]


def _sheet_of_styles(prepared: Prepared) -> Image.Image | None:
    """Some labels in every style that has them all."""
    where = {(p.style, prepared.subjects[p.subject].noun): k for k, p in reversed(list(enumerate(prepared.pictures)))}
    labels = [label for label in _LABELS if any(noun == label for _, noun in where)]
    styles = [name for name in STYLES if all((name, label) in where for label in labels)]
    if not labels or not styles:
        return None
    pictures = []
    for style in styles:
        for label in labels:
            scene = Scene("single", (Item(where[style, label], (0.5, 0.5), 0.8),), "white")
            pictures.append(Image.fromarray(draw(prepared, scene, _SIDE // 2).permute(1, 2, 0).numpy()))
    return labelled_sheet(pictures, len(labels), labels, [STYLES[style].word for style in styles])


def _save(path: Path, picture: Image.Image) -> None:
    write_whole(path, lambda place: picture.save(place, "PNG"))


def _card(prepared: Prepared, packages: dict[str, Package], found: Found, held: dict[str, object]) -> str:
    lines = [
        "# Data card",
        "",
        f"{len(prepared.pictures):,} pictures of {prepared.side} x {prepared.side} pixels with alpha, of "
        f"{len(_styles(prepared)):,} subjects.",
        "Training pictures are composed of them as they are asked for, with their captions: there is no end to them,",
        "and the same numbers give the same ones.",
        "",
        "| set | licence | asked for as | pictures | names without a match |",
        "|---|---|---|---|---|",
    ]
    for name, count in found.pictures.items():
        package = packages.get(name)
        licence = package.licence if package else "see ATTRIBUTION.md"
        lines.append(
            f"| {package.title if package else name} | {licence} | {STYLES[name].word} | {count:,} | "
            f"{len(found.unmatched.get(name, ()))} |"
        )
    if (prepared.folder / "styles.png").exists():
        lines += ["", "![the styles](styles.png)"]
    for kind in _kinds(prepared):
        lines += ["", f"## {kind}", "", f"![{kind}]({kind}.png)", "", *_captions(prepared, kind)]
    lines += ["", "## Never trained on", "", "| combination | how many |", "|---|---|"]
    lines += [f"| {name} | {len(each) if isinstance(each, list) else each:,} |" for name, each in held.items()][:-1]
    lines += [
        "",
        "Whether a combination is held out is a hash of its names: see held_out.json.",
        "",
        "## What to know of it",
        "",
        "- Flags, letters, arrows and families come less often than things and animals, men and women half as often as",
        "  people whose gender is left open.",
        "- Korean names are those of Unicode's locale data. Icons that have none keep the English one in Korean too.",
        "- Things are painted only where they have one hue. White grounds, the middle and a middling size go unsaid.",
        "- It is a small world of clip art. It holds no photographs, no real people and no text but that on signs.",
    ]
    if found.blank:
        lines.append(f"- {len(found.blank)} drawings could not be rendered: {', '.join(found.blank[:20])}.")
    return "\n".join(lines) + "\n"


def _captions(prepared: Prepared, kind: Kind) -> list[str]:
    """Some captions in both languages."""
    config = StarterConfig(path=prepared.folder, kinds={kind: 1.0}, captions={"en": 1, "ko": 1})
    source = StarterSource(config)
    return [f"- {' / '.join(source.words(number).captions)}" for number in range(_SHOWN, 2 * _SHOWN)]
