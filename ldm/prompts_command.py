"""``ldm prompts``: ideas for prompts, and what a model knows. Imports no torch: it is to answer at once."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.errors import UserError, choose
from ldm.knowledge.file import KNOWS, Knowledge, Language, read_knowledge
from ldm.knowledge.ideas import ideas
from ldm.knowledge.mending import Mender
from ldm.knowledge.showing import LISTS, described, groups_by_name, in_short, listing, matches, other_uses, wrapped
from ldm.metadata.plain import printable
from ldm.weights.embedded import DEFAULT, as_path, is_embedded
from ldm.weights.parts import CONFIG, INDEX

_NARROW, _WIDE = 60, 100  # columns
_MOST_DESCRIBED = 5  # things that a word finds
_SEEDS = 10_000  # few enough to type one


@dataclass(frozen=True)
class Asked:
    """What is to be shown.

    Attributes:
        words: to look up; the first can be the model.
        model: where it is; None for the first of the words where that is a place, or else the one in the package.
        listed: one of ``LISTS``, or a group of things.
        count, seed, language: of the ideas.
        json: as JSON.
    """

    words: tuple[str, ...] = ()
    model: str | None = None
    listed: str | None = None
    count: int = 8
    seed: int | None = None
    language: str = "en"
    json: bool = False


def show_prompts(asked: Asked) -> None:
    """Print what is asked for: what words find, a list, or ideas, and then how much there is beside.

    What is there to be used is printed to stdout, and what explains it to stderr, so that ideas can be drawn as they
    come: ``ldm prompts | ldm generate --from-file -``.

    Raises:
        UserError: there is no such model or list, or the model does not say what it knows.
    """
    place, words = _place(asked)
    choose(asked.language, ("en", "ko"), "language")
    if words and asked.listed:
        raise UserError("either words to look up or --list, not both")
    folder = _folder(place)
    knowledge = read_knowledge(folder)
    if knowledge is None:
        if words or asked.listed:
            raise UserError(_silent(folder, place))
        return _show_samples(folder, place, asked)
    if words:
        _show_words(knowledge, words, asked)
    elif asked.listed:
        _print(_listed(knowledge, asked.listed) if asked.json else listing(knowledge, asked.listed, _width()), asked)
    else:
        _show_ideas(knowledge, asked, place)


def _place(asked: Asked) -> tuple[str, tuple[str, ...]]:
    """The model and the words to look up."""
    first, *others = asked.words or ("",)
    if asked.model is not None:
        return asked.model, asked.words
    if is_embedded(first) or os.sep in first or (first and Path(first).is_dir()):
        return first, tuple(others)
    return DEFAULT, asked.words


def _folder(place: str) -> Path:
    """The model folder at a place."""
    folder = as_path(place)
    if (folder / INDEX).is_file() or (folder / KNOWS).is_file():
        return folder
    from ldm.weights.model import resolve  # takes torch: runs are seldom asked

    return resolve(place)


def _width() -> int:
    return min(max(shutil.get_terminal_size((_WIDE, 24)).columns, _NARROW), _WIDE)


def _print(what: Any, asked: Asked) -> None:
    """Something for programs, or text for people."""
    print(json.dumps(what, ensure_ascii=False, indent=1) if asked.json else printable(what))


def _explain(lines: list[str]) -> None:
    sys.stdout.flush()  # stderr does not wait
    print(printable("\n".join(("", *lines))), file=sys.stderr)


# ------------------------------------------------------------------------------------ ideas and lists


def _show_ideas(knowledge: Knowledge, asked: Asked, place: str) -> None:
    seed = secrets.randbelow(_SEEDS) if asked.seed is None else asked.seed
    language: Language = "ko" if asked.language == "ko" else "en"
    found = ideas(knowledge, asked.count, seed, language)
    if asked.json:
        return _print({"model": place, "seed": seed, "ideas": found}, asked)
    _print("\n".join(found), asked)
    name = "" if place == DEFAULT else f" {place}"
    model = "" if place == DEFAULT else f" -m {place}"
    _explain(
        [
            *wrapped(f"{place} {in_short(knowledge)}".split(", "), _width(), ""),
            f'  draw one     ldm generate{model} "{found[0]}"',
            f"  these again  ldm prompts{name} --seed {seed}",
            f"  a word       ldm prompts{name} dog",
            f"  all of it    ldm prompts{name} --list things, or {', '.join(LISTS[1:])}",
        ]
    )


def _listed(knowledge: Knowledge, what: str) -> Any:
    """A list of ``listing`` as plain data."""
    groups = groups_by_name(knowledge)
    choose(what, [*LISTS, *groups], "list")
    if what in groups:
        return [thing.model_dump() for thing in groups[what].things]
    held = knowledge.model_dump(mode="json")
    return held["groups" if what == "things" else what]


# ------------------------------------------------------------------------------------ words


def _show_words(knowledge: Knowledge, words: tuple[str, ...], asked: Asked) -> None:
    """What the words, taken together, find; what is unknown gives way to what is nearest."""
    wanted = " ".join(words)
    mended = Mender(knowledge)(wanted)
    found = matches(knowledge, wanted) or matches(knowledge, mended.prompt)
    uses = [*other_uses(knowledge, wanted)] or [*other_uses(knowledge, mended.prompt)]
    if not found and not uses:
        found = [each for word in mended.prompt.split() for each in matches(knowledge, word)]
        uses = [use for word in mended.prompt.split() for use in other_uses(knowledge, word)]
    if not found and not uses:
        raise UserError(f"the model knows nothing like {wanted!r}; `ldm prompts --list things` lists what it knows")
    if asked.json:
        things = [
            {**thing.model_dump(), "styles": group.styles_of(thing), "group": group.name} for group, thing in found
        ]
        return _print({"unknown": [each._asdict() for each in mended.unknown], "things": things, "uses": uses}, asked)
    parts = ["\n".join(dict.fromkeys(uses))] if uses else []
    parts += [described(knowledge, thing, group, _width()) for group, thing in found[:_MOST_DESCRIBED]]
    rest = [thing.noun for _, thing in found[_MOST_DESCRIBED:]]
    if rest:
        parts.append("\n".join((f"and {len(rest)} more", *wrapped(dict.fromkeys(rest), _width()))))
    for each in mended.unknown:
        told = f'; the nearest is "{each.nearest}"' if each.nearest else ", nor anything near it"
        print(printable(f'note: this model does not know "{each.word}"{told}'), file=sys.stderr)
    _print("\n\n".join(parts), asked)


# ------------------------------------------------------------------------------------ models without the file


def _silent(folder: Path, place: str) -> str:
    return f"{place} does not say what it knows: there is no {KNOWS} in {folder}"


def _show_samples(folder: Path, place: str, asked: Asked) -> None:
    """Print what a model without the file drew while it was trained.

    Raises:
        UserError: its files do not tell that either.
    """
    examples = _conditions(folder)
    if not examples:
        raise UserError(_silent(folder, place))
    if asked.json:
        return _print({"model": place, "examples": examples}, asked)
    _print("\n".join(examples), asked)
    _explain([f"{_silent(folder, place)};", "these are what its training drew as samples"])


def _conditions(folder: Path) -> list[str]:
    """Prompts or labels that a model's own files name."""
    label_file = folder / "label_encoder" / CONFIG
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        labels = json.loads(label_file.read_text(encoding="utf-8")) if label_file.is_file() else {}
        found = index["_ldm"]["provenance"]["config"]["sample"]["conditions"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(each) for each in found or range(labels.get("classes", 0)) if each is not None]
