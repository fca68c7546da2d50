"""What a model knows, as text to read in a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from ldm.errors import choose
from ldm.knowledge.file import Group, Knowledge, Phrases, Thing

LISTS = ("things", "styles", "colours", "places", "sizes", "relations", "examples")
_MANY = 1000  # things of a group that are not listed with the others
_INDENT = "  "


def in_short(knowledge: Knowledge) -> str:
    """How much a model knows, in a sentence without its subject."""
    pictured = sum(len(group.things) for group in knowledge.groups if _is_pictured(knowledge, group))
    styles = [style.word for style in knowledge.styles if style.kind == "picture"]
    told = [f"{pictured:,} things in {len(styles)} styles ({', '.join(styles)})"] if pictured else []
    told += [f"{len(group.things):,} {group.name}" for group in knowledge.groups if not _is_pictured(knowledge, group)]
    told += [f"{len(knowledge.colours)} colours"] if knowledge.colours else []
    return f"knows {', '.join(told[:-1])} and {told[-1]}" if len(told) > 1 else f"knows {''.join(told) or 'nothing'}"


def _is_pictured(knowledge: Knowledge, group: Group) -> bool:
    kinds = {style.word: style.kind for style in knowledge.styles}
    return any(kinds[word] == "picture" for word in group.styles)


def groups_by_name(knowledge: Knowledge) -> dict[str, Group]:
    """Groups by their names and by the first words of these."""
    return {name: group for group in knowledge.groups for name in (group.name.split()[0], group.name)}


def listing(knowledge: Knowledge, what: str, width: int) -> str:
    """All that is known of a kind.

    Args:
        knowledge: of the model.
        what: one of ``LISTS``, or the name of a group or its first word.
        width: columns that the text may take.

    Raises:
        UserError: there is no such list.
    """
    groups = groups_by_name(knowledge)
    choose(what, [*LISTS, *groups], "list")
    if what in groups:
        return "\n".join(_group(groups[what], width))
    if what == "things":
        return "\n\n".join("\n".join(_group(group, width, _MANY)) for group in knowledge.groups)
    if what == "styles":
        return "\n".join(_styles(knowledge))
    if what == "colours":
        shown = [(each.name, each.korean, "#{:02x}{:02x}{:02x}".format(*each.rgb)) for each in knowledge.colours]
        return "\n".join(columns(shown))
    phrases: Phrases = getattr(knowledge, what)
    return "\n".join((*phrases.en, *phrases.ko)) or f"it was trained without {what}"


def _group(group: Group, width: int, most: int | None = None) -> Iterator[str]:
    yield f"{group.name} ({len(group.things):,})"
    if most is not None and len(group.things) > most:
        yield f"{_INDENT}too many for this list: --list {group.name.split()[0]}"
    else:
        yield from wrapped((thing.noun for thing in group.things), width)


def _styles(knowledge: Knowledge) -> Iterator[str]:
    rows = []
    for style in knowledge.styles:
        if style.kind == "icon":
            rows.append((style.word, f"a red sword {style.word}", f"{style.korean}"))
        else:
            told = f"..., {style.word} style; {style.drawing} of ..."
            rows.append((style.word, told, f"..., {style.korean} 스타일"))
    yield from columns(rows)


def described(knowledge: Knowledge, thing: Thing, group: Group, width: int) -> str:
    """All about a thing."""
    heads = [thing.noun, thing.korean]
    rows = (
        ("also", thing.other),
        ("found by", (*thing.tags, *thing.korean_tags)),
        ("styles", group.styles_of(thing)),
        ("group", (group.name,)),
    )
    lines = [" · ".join(filter(None, heads))]
    for name, words in rows:
        if words:
            first, *more = wrapped(words, width - 11, "")
            lines += [f"{_INDENT}{name:9s}{first}", *(f"{'':11s}{line}" for line in more)]
    return "\n".join(lines)


def matches(knowledge: Knowledge, word: str) -> list[tuple[Group, Thing]]:
    """Things that a word finds: those called so, then those with it in their names, then by tags."""
    ranked = [(rank, group, thing) for group, thing in knowledge.members() if (rank := _rank(thing, word.casefold()))]
    return [(group, thing) for _, group, thing in sorted(ranked, key=lambda found: found[0])]


def _rank(thing: Thing, word: str) -> int:
    """1 is best; 0 is none."""
    names = [name.casefold() for name in (thing.noun, thing.korean, *thing.other) if name]
    tests: tuple[Callable[[], bool], ...] = (
        lambda: word in names,
        lambda: any(word in name.split() for name in names),
        lambda: any(f" {word} " in f" {name} " for name in names),
        lambda: any(word == tag.casefold() for tag in (*thing.tags, *thing.korean_tags)),
    )
    return next((rank for rank, fits in enumerate(tests, 1) if fits()), 0)


def other_uses(knowledge: Knowledge, word: str) -> Iterator[str]:
    """What a word is beside a thing: a style, a colour, a word for a place, a size or a relation."""
    word = word.casefold()
    for style in knowledge.styles:
        if word in (style.word.casefold(), style.korean.casefold()):
            yield f"{style.word}: a style"
    for colour in knowledge.colours:
        if word in (colour.name, colour.korean):
            yield f"{colour.name}: a colour ({colour.korean}), of things, icons and backgrounds"
    for name, kind in (("places", "a place"), ("sizes", "a size"), ("relations", "how two things stand")):
        phrases: Phrases = getattr(knowledge, name)
        for phrase in (*phrases.en, *phrases.ko):
            if f" {word} " in f" {phrase} ":
                yield f"{phrase}: {kind}"


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows with their cells below each other."""
    widths = [max(map(_shown_width, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell + " " * (width - _shown_width(cell)) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def wrapped(words: Iterable[str], width: int, indent: str = _INDENT) -> Iterator[str]:
    """Words with commas between them, in lines of at most ``width`` columns where the words allow it."""
    line = ""
    for word in words:
        if line and _shown_width(f"{indent}{line}, {word},") > width:
            yield f"{indent}{line},"
            line = word
        else:
            line = f"{line}, {word}" if line else word
    if line:
        yield indent + line


def _shown_width(text: str) -> int:
    """In columns of a terminal, where a Korean syllable takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
