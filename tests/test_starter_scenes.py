"""Composed pictures: pure in their number, true to their captions, and never on the wrong side of the split."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from script_calls import ROOT
from starter_lab import EMOJI, ICONS, SIDE, make_packages
from torch.utils.data import DataLoader

from ldm.config import load_config
from ldm.data.order import ShardedBatches
from ldm.data.samples import TrainingSamples, collate
from ldm.data.sources import open_source
from ldm.errors import UserError
from ldm.starter import held_out
from ldm.starter.colours import COLOURS, nearest
from ldm.starter.preparing import prepare
from ldm.starter.scene import Scene
from ldm.starter.settings import StarterConfig
from ldm.starter.source import StarterSource
from ldm.training.clip_settings import ClipRun

pytest.importorskip("resvg_py")
WITHOUT_AVATARS = {"single": 1, "colours": 1, "pairs": 1, "triples": 1, "glyphs": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("starter")
    prepare(place / "data", place / "npm", SIDE, 1, 0, make_packages(place / "npm"))
    return place / "data"


def opened(folder: Path, **changes: Any) -> StarterSource:
    values = {"path": folder, "size": SIDE, "kinds": WITHOUT_AVATARS, "length": 5000, **changes}
    return StarterSource(StarterConfig.checked(values))


def names_of(source: StarterSource, scene: Scene) -> list[tuple[str, str, int]]:
    """(style, name, index) of every thing."""
    found = []
    for item in scene.items:
        picture = source.prepared.pictures[item.picture]
        found.append((picture.style, source.prepared.subjects[picture.subject].name, picture.subject))
    return found


def combinations(source: StarterSource, scene: Scene) -> set[tuple[str, ...]]:
    """What a scene combines, worked out from where its things are."""
    things = names_of(source, scene)
    found: set[tuple[str, ...]] = {("style", style, name) for style, name, _ in things}
    found |= {("background", scene.background, name) for _, name, _ in things}
    found |= {
        ("colour", str(item.colour), name)
        for item, (_, name, _) in zip(scene.items, things, strict=True)
        if item.painted
    }
    for i, (x, y) in enumerate(item.centre for item in scene.items):
        for j, (other_x, other_y) in enumerate(item.centre for item in scene.items):
            if other_x - x > 0.2 and abs(other_y - y) < 0.1:
                found.add(("left of", things[i][1], things[j][1]))
            if other_y - y > 0.2:
                found.add(("above", things[i][1], things[j][1]))
    return found


def is_held_out(source: StarterSource, combination: tuple[str, ...]) -> bool:
    what, first, second = combination
    if what == "style":
        styles = {p.style for p in source.prepared.pictures if source.prepared.subjects[p.subject].name == second}
        return held_out.style_is_held_out(first, second, len(styles))
    if what == "background":
        return held_out.background_is_held_out(first, second)
    if what == "colour":
        return held_out.colour_is_held_out(first, second)
    return held_out.relation_is_held_out(first, what, second)


# ------------------------------------------------------------------------------- purity


@settings(max_examples=30, deadline=None)
@given(index=st.integers(0, 4999), seed=st.integers(0, 1000))
def test_a_picture_and_its_words_are_a_function_of_seed_and_number(folder: Path, index: int, seed: int) -> None:
    first, second = opened(folder, seed=seed), opened(folder, seed=seed)
    second.read((index + 1) % 5000)
    one, other = first.read(index), second.read(index)
    assert torch.equal(one.image, other.image)
    assert one.captions == other.captions == second.words(index).captions
    assert one.image.shape == (3, SIDE, SIDE)
    assert one.original == (SIDE, SIDE) == tuple(first.sizes[index].tolist())  # pyright: ignore[reportOptionalSubscript]


def test_numbers_seeds_and_settings_make_a_difference(folder: Path) -> None:
    source = opened(folder)
    pictures = {source.read(index).image.numpy().tobytes() for index in range(60)}
    assert len(pictures) > 50
    assert len({source.stamp(index) for index in range(60)} | {opened(folder, seed=1).stamp(0)}) == 61
    assert len({source.key(index) for index in range(60)} | {opened(folder, split="held_out").key(0)}) == 61
    assert opened(folder, captions={"en": 3}).stamp(0) == source.stamp(0)  # its pictures are the same


def test_a_larger_picture_shows_the_same(folder: Path) -> None:
    for index in range(20):
        small, large = opened(folder).read(index).image, opened(folder, size=2 * SIDE).read(index).image
        shrunk = torch.nn.functional.avg_pool2d(large.float()[None], 2)[0]
        assert (shrunk - small.float()).abs().mean() < 12, index


def test_processes_read_the_same(folder: Path) -> None:
    source = opened(folder)
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again.read(7).image, source.read(7).image)
    batches = ShardedBatches(0, 1, 4)
    given = TrainingSamples(source, 0, condition="text")
    (batch,) = DataLoader(given, batch_sampler=batches, num_workers=1, collate_fn=collate)
    samples = TrainingSamples(opened(folder), 0, condition="text")
    assert batch.captions == [samples[n]["captions"] for n in range(4)]
    assert torch.equal(batch.images, torch.stack([samples[n]["images"] for n in range(4)]))


# ------------------------------------------------------------------------------- the split


@settings(max_examples=150, deadline=None)
@given(index=st.integers(0, 2**40), seed=st.integers(0, 2**20))
def test_nothing_that_is_held_out_is_ever_trained_on(folder: Path, index: int, seed: int) -> None:
    source = opened(folder, seed=seed)
    scene = source.scene(index)
    assert not [each for each in combinations(source, scene) if is_held_out(source, each)]


@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 2**40), kind=st.sampled_from(["colours", "pairs", "triples", "glyphs"]))
def test_what_is_held_out_has_what_its_kind_is_to_measure_and_nothing_else(folder: Path, index: int, kind: str) -> None:
    source = opened(folder, split="held_out", kinds={kind: 1})
    found = {each[0] for each in combinations(source, source.scene(index)) if is_held_out(source, each)}
    measured = {"colours": {"colour", "background"}, "glyphs": {"colour"}}.get(kind, {"left of", "above"})
    assert found
    assert found <= measured


def test_the_held_out_list_is_the_same_for_good() -> None:
    held = [name for name in sorted(COLOURS) if held_out.colour_is_held_out(name, "icon anvil")]
    assert held == ["turquoise"]
    assert not held_out.background_is_held_out("white", "1f436")
    assert not any(held_out.style_is_held_out(style, str(k), 2) for style in ("noto", "twemoji") for k in range(200))


# ------------------------------------------------------------------------------- what is seen


def corners(image: torch.Tensor) -> list[tuple[int, int, int]]:
    return [tuple(image[:, y, x].tolist()) for y in (0, -1) for x in (0, -1)]  # pyright: ignore[reportReturnType]


def ink(image: torch.Tensor) -> np.ndarray:
    """Where there is something else than the background, (H, W) bool."""
    return (image.int() - image[:, :1, :1].int()).abs().sum(0).numpy() > 60


@pytest.mark.parametrize("kind", ["single", "colours", "pairs", "triples", "glyphs"])
def test_the_background_has_the_colour_that_it_is_said_to_have(folder: Path, kind: str) -> None:
    source = opened(folder, kinds={kind: 1}, captions={"en": 1, "ko": 1})
    for index in range(40):
        example, scene = source.read(index), source.scene(index)
        assert {nearest(corner) for corner in corners(example.image)} == {scene.background}
        english, korean = example.captions if len(example.captions) == 2 else example.captions * 2
        said = scene.background != "white" or kind == "colours"
        assert (f"{scene.background} background" in english) == said
        assert (f"{COLOURS[scene.background].korean} 배경" in korean) == said


def test_glyphs_have_the_colour_that_they_are_said_to_have(folder: Path) -> None:
    source = opened(folder, kinds={"glyphs": 1}, captions={"en": 1})
    for index in range(60):
        example, scene = source.read(index), source.scene(index)
        inside = example.image[:, torch.from_numpy(ink(example.image))].float().median(1).values
        colour = nearest(tuple(inside.int().tolist()))
        assert colour == scene.items[0].colour
        assert re.search(rf"\b{colour} .*(icon|silhouette)", example.captions[0])


def test_painted_things_have_the_colour_that_they_are_said_to_have(folder: Path) -> None:
    source = opened(folder, kinds={"colours": 1}, captions={"en": 1, "ko": 1})
    painted = [index for index in range(300) if source.scene(index).items[0].painted]
    assert len(painted) > 30
    for index in painted:
        example, item = source.read(index), source.scene(index).items[0]
        inside = example.image[:, torch.from_numpy(ink(example.image))].float().median(1).values
        assert nearest(tuple(inside.int().tolist())) == item.colour
        assert str(item.colour) in example.captions[0]
        assert COLOURS[str(item.colour)].korean in example.captions[1]


def test_things_are_where_they_are_said_to_be(folder: Path) -> None:
    source = opened(folder, kinds={"colours": 1}, captions={"en": 1, "ko": 1})
    seen = set()
    for index in range(300):
        example, scene = source.read(index), source.scene(index)
        rows, columns = np.nonzero(ink(example.image))
        down, across = rows.mean() / SIDE, columns.mean() / SIDE
        english, korean = example.captions
        for words, in_korean, is_there in (
            (r"\btop\b", "위쪽|위 구석", down < 0.4),
            (r"\bbottom\b", "아래쪽|아래 구석", down > 0.6),
            (r"\bleft\b", "왼쪽", across < 0.4),
            (r"\bright\b", "오른쪽", across > 0.6),
        ):
            assert bool(re.search(words, english)) == is_there == bool(re.search(in_korean, korean)), (english, korean)
        height = (rows.max() - rows.min() + 1) / SIDE
        if re.search(r"\b(small|tiny|little)\b", english):
            assert height < 0.4
        if re.search(r"\b(large|big|huge)\b", english):
            assert height > 0.7
        seen.add(scene.place)
    assert len(seen) == 9


def test_relations_are_as_they_are_said_in_both_languages(folder: Path) -> None:
    source = opened(folder, kinds={"pairs": 1}, captions={"en": 1, "ko": 1})
    for index in range(200):
        scene, (english, korean) = source.scene(index), source.words(index).captions
        nouns = [source.prepared.subjects[number] for _, _, number in names_of(source, scene)]
        first, second = ((subject.noun, *subject.other) for subject in nouns)
        before = max(english.find(noun) for noun in first) < max(english.find(noun) for noun in second)
        (x, y), (other_x, other_y) = (item.centre for item in scene.items)
        beside = abs(other_x - x) > abs(other_y - y)
        if re.search(r"left of| on the left and", english):
            assert beside
            assert before == (x < other_x)
        elif "right of" in english:
            assert beside
            assert before == (x > other_x)
        else:
            assert not beside
            assert before == (y < other_y) if re.search(r"above|at the top", english) else before == (y > other_y)
        assert any(noun in korean for noun in (nouns[0].korean, nouns[0].noun))
        assert ("쪽" in korean) == beside


def test_captions_read_well(folder: Path) -> None:
    source = opened(folder, captions={"en": 3, "ko": 2})
    told = [caption for index in range(600) for caption in source.words(index).captions]
    for caption in told:
        assert caption == caption.strip()
        assert "  " not in caption
        assert not re.search(r"\ba [aeio]|\ban [^aeio]|\ba a\b|\ban? grapes|None|\{", caption), caption
    single = opened(folder, kinds={"single": 1}, captions={"en": 1})
    words = {single.words(index).captions[0] for index in range(400)}
    assert {"a dog face", "a car", "grapes", "a woman with curly hair"} <= words
    assert any("puppy" in each and "dog" not in each for each in words)  # by its tags alone
    assert any(each.startswith("3d render of ") for each in words)
    assert any(each.endswith(", noto style") for each in words)


# ------------------------------------------------------------------------------- as a source


def test_a_configuration_opens_it(folder: Path) -> None:
    data = f"{{source: starter, path: {folder}, size: 64, kinds: {{pairs: 1}}, captions: {{ko: 1}}, length: 8}}"
    source = open_source(StarterConfig.checked({"path": folder, "size": 64, "kinds": {"pairs": 1}, "length": 8}))
    assert (len(source), source.channels, source.captioned, source.num_classes) == (8, 3, True, None)
    run = load_config(ROOT / "configs" / "mnist_text" / "clip.yaml", [f"data={data}"])
    assert isinstance(run, ClipRun)
    assert open_source(run.data).words(3).captions == opened(folder, kinds={"pairs": 1}, captions={"ko": 1}).words(3)[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": {"avatars": 1}}, "has no pictures for scenes of kind avatars"),
        ({"kinds": {}}, "at least one of them a share"),
        ({"captions": {"en": 0}}, "at least one of them a share"),
        ({"kinds": {"doubles": 1}}, "kinds"),
        ({"groups": ["fruit"]}, "groups"),
        ({"groups": ["symbols"]}, "no pictures for scenes of kind single, of what groups"),
        ({"least_styles": 9}, "no pictures for scenes of kind single, of what groups"),
        ({"size": 63}, "multiple of 8"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(folder, **changes)


def test_every_picture_is_used(folder: Path) -> None:
    source = opened(folder)
    used = {item.picture for index in range(4000) for item in source.scene(index).items}
    held = {
        k
        for k, picture in enumerate(source.prepared.pictures)
        if is_held_out(source, ("style", picture.style, source.prepared.subjects[picture.subject].name))
    }
    assert used | held == set(range(len(source.prepared.pictures)))
    assert len(source.prepared.pictures) == 3 * len(EMOJI) + 1 + len(ICONS)  # one is mirrored


def test_a_smaller_world_has_the_emoji_that_were_asked_for_and_all_icons(folder: Path) -> None:
    source = opened(folder, groups=["animals-nature", "food-drink"], least_styles=3)
    subjects = [source.prepared.subjects[k] for i in range(1000) for *_, k in names_of(source, source.scene(i))]
    assert {s.noun for s in subjects if s.kind == "emoji"} == {"dog face", "snail", "grapes"}
    assert len({s.noun for s in subjects if s.kind == "glyph"}) == len(ICONS)
