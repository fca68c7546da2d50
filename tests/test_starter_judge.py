"""The judge of composed pictures, and the marks that it gives: on real pictures, drawn as the prompts say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from starter_lab import SIDE, make_packages
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluate.picture_judge_training import (
    Known,
    check_judge,
    cut_outs,
    distorted,
    train_picture_judge,
    what_to_know,
)
from ldm.evaluate.starter_marks import ground_of, ink_of, mark, parts_of
from ldm.evaluate.starter_nearest import nearest as nearest_of
from ldm.evaluate.starter_nearest import on_white, things_of
from ldm.evaluate.starter_prompts import KINDS, Asked, Prompts
from ldm.images import to_signed
from ldm.models.picture_judge import PictureJudge, PictureJudgeConfig
from ldm.starter.colours import COLOURS, nearest
from ldm.starter.composing import draw
from ldm.starter.held_out import LEFT_OF, colour_is_held_out, relation_is_held_out
from ldm.starter.prepared import Prepared
from ldm.starter.preparing import prepare
from ldm.starter.scene import Item, Scene

pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    place = tmp_path_factory.mktemp("starter")
    prepare(place / "data", place / "npm", SIDE, 1, 0, make_packages(place / "npm"))
    return Prepared(place / "data")


@pytest.fixture(scope="module")
def known(prepared: Prepared) -> Known:
    return what_to_know(prepared, least_styles=2)


@pytest.fixture(scope="module")
def judge(prepared: Prepared, known: Known) -> PictureJudge:
    """The things of the hand-made packages are squares of different colours: a minute network tells them apart."""
    config = PictureJudgeConfig(things=known.things, styles=known.styles, side=32, channels=(8, 16, 16, 32))
    cuts = cut_outs(prepared, known, 32)
    return train_picture_judge(cuts, known, config, steps=60, batch_size=32, learning_rate=1e-2, seed=0)


def pictures_of(prepared: Prepared, known: Known, asked: list[Asked]) -> Tensor:
    """What a model that does as it is told draws."""
    return to_signed(torch.stack([draw(prepared, scene_of(prepared, known, a), SIDE) for a in asked]))


def scene_of(prepared: Prepared, known: Known, asked: Asked) -> Scene:
    if not asked.things:
        glyph = next(i for i, p in enumerate(prepared.pictures) if p.style == "game-icons")
        return Scene("glyphs", (Item(glyph, (0.5, 0.5), 0.7, asked.colour, True),), "white")
    rows = [
        next(
            k
            for k, (thing, style) in enumerate(zip(known.thing_of, known.style_of, strict=True))
            if thing == wanted and asked.style in (None, style)
        )
        for wanted in asked.things
    ]
    spots = [(0.5, 0.5)]
    if asked.relation:
        spots = [(0.27, 0.5), (0.73, 0.5)] if asked.relation == LEFT_OF else [(0.5, 0.27), (0.5, 0.73)]
    size = 0.4 if asked.relation else 0.8
    items = tuple(Item(known.pictures[row], spot, size) for row, spot in zip(rows, spots, strict=True))
    return Scene("single", items, asked.colour or "white")


def test_what_is_known_comes_in_several_styles_and_is_no_flag(prepared: Prepared, known: Known) -> None:
    nouns = {s.noun for s in prepared.subjects if s.name in known.things}
    assert {"car", "automobile"} & nouns or "automobile" in nouns
    assert not [noun for noun in nouns if "flag" in noun or "thumb" in noun]
    shown = [prepared.subjects[prepared.pictures[i].subject].name for i in known.pictures]
    assert shown == [known.things[k] for k in known.thing_of]
    with pytest.raises(UserError, match="in 9 styles"):
        what_to_know(prepared, least_styles=9)


def test_it_learns_and_is_right_about_pictures_that_it_never_saw(
    prepared: Prepared, known: Known, judge: PictureJudge
) -> None:
    found = check_judge(judge, prepared, known, False, 100, 3)
    assert found.top1 > 0.9
    assert found.top5 >= found.top1


def test_the_same_seed_gives_the_same_judge(prepared: Prepared, known: Known) -> None:
    config = PictureJudgeConfig(things=known.things, styles=known.styles, side=32, channels=(8, 8, 8, 8))
    cuts = cut_outs(prepared, known, 32)
    one, two = (
        train_picture_judge(cuts, known, config, steps=20, batch_size=4, learning_rate=1e-2, seed=5) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_what_is_kept_back_is_never_learned_from(prepared: Prepared, known: Known) -> None:
    """A judge that learns from pictures that are all blank but for those that are kept back knows nothing of these."""
    back = tuple(k % 2 == 0 for k in range(len(known.pictures)))
    only = Known(known.things, known.styles, known.pictures, known.thing_of, known.style_of, back)
    config = PictureJudgeConfig(things=known.things, styles=known.styles, side=32, channels=(8, 8, 8, 8))
    cuts = cut_outs(prepared, known, 32)
    other = cuts.clone()
    other[0::2] = 7
    one, two = (
        train_picture_judge(c, only, config, steps=20, batch_size=8, learning_rate=1e-2, seed=0) for c in (cuts, other)
    )
    assert torch.equal(one.thing.weight, two.thing.weight)


def test_distortions_stay_in_range_and_differ(prepared: Prepared, known: Known) -> None:
    cuts = cut_outs(prepared, known, 32)[:4]
    one, two = (distorted(cuts, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert one.shape == (4, 3, 32, 32)
    assert one.abs().max() <= 1
    assert not torch.allclose(one, two)


def test_a_file_says_what_it_knows_and_another_is_refused(judge: PictureJudge, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge.safetensors")
    again = PictureJudge.load(tmp_path / "judge.safetensors")
    images = torch.rand(2, 3, 48, 48) * 2 - 1
    assert again.config == judge.config
    for one, two in zip(again.look(images), judge.look(images), strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)  # the layout in memory differs
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(UserError, match="whole safetensors"):
        PictureJudge.load(tmp_path / "other")
    with pytest.raises(UserError, match="train_starter_judge"):
        PictureJudge.load(tmp_path / "none")
    with pytest.raises(UserError, match=r"\(B, 3, H, H\)"):
        judge.look(torch.zeros(1, 3, 8, 9))


@pytest.mark.parametrize("kind", ["single", "korean", "relation", "ground", "ink"])
def test_one_who_draws_what_is_asked_passes_and_one_who_draws_another_fails(
    kind: str, prepared: Prepared, known: Known, judge: PictureJudge
) -> None:
    asked = KINDS[kind](Prompts(prepared, judge.config), 12, 0)
    images = pictures_of(prepared, known, asked)
    found = mark(kind, asked, images, judge)
    assert found.pictures == len(asked) == len(found.passed)
    assert found.right > 0.85
    assert found.right == sum(found.passed) / len(asked)
    wrong = mark(kind, asked, -torch.ones_like(images), judge)  # all black
    assert wrong.right < 0.5


def test_prompts_are_of_what_is_held_out(prepared: Prepared, judge: PictureJudge) -> None:
    prompts = Prompts(prepared, judge.config)
    for asked in prompts.relations(20, 1):
        assert asked.relation is not None
        names = [judge.config.things[k] for k in asked.things]
        assert relation_is_held_out(names[0], asked.relation, names[1])
        nouns = [next(s.noun for s in prepared.subjects if s.name == name) for name in names]
        assert asked.prompt.index(nouns[0]) < asked.prompt.index(asked.relation) < asked.prompt.rindex(nouns[1])
    nouns = {s.noun: s.name for s in prepared.subjects if s.kind == "glyph"}
    for asked in prompts.inks(20, 1):
        assert asked.colour is not None
        noun = asked.prompt.split(f" {asked.colour} ")[1].removesuffix(" icon")
        assert colour_is_held_out(asked.colour, nouns[noun])


def test_both_languages_ask_for_the_same_things(prepared: Prepared, judge: PictureJudge) -> None:
    prompts = Prompts(prepared, judge.config)
    english, korean = prompts.single(10, 4), prompts.single(10, 4, "ko")
    assert [a.things for a in english] == [a.things for a in korean]
    assert all(any("가" <= letter <= "힣" for letter in a.prompt) for a in korean)


def test_a_judge_of_another_folder_is_refused(prepared: Prepared) -> None:
    with pytest.raises(UserError, match="which the judge knows"):
        Prompts(prepared, PictureJudgeConfig(things=("1F436", "nothing"), styles=("noto", "twemoji")))


@pytest.mark.parametrize("ground", ["white", "navy", "orange"])
def test_ground_and_ink_are_those_that_were_laid(prepared: Prepared, ground: str) -> None:
    glyph = next(i for i, p in enumerate(prepared.pictures) if p.style == "game-icons")
    ink = "yellow" if ground == "navy" else "blue"
    image = draw(prepared, Scene("glyphs", (Item(glyph, (0.5, 0.5), 0.6, ink, True),), ground), 64)
    assert ground_of(image) == COLOURS[ground].rgb
    found = ink_of(image)
    assert found is not None
    assert nearest(found) == ink
    assert ink_of(torch.full((3, 16, 16), 200, dtype=torch.uint8)) is None


def test_parts_are_the_halves_in_which_the_things_are() -> None:
    down, across = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    image = torch.stack([down, across, down])
    left, right = parts_of(image, True)
    assert left.shape == right.shape == (3, 4, 4)
    assert left[1].max() < right[1].min()
    assert torch.equal(left[0], right[0])
    top, bottom = parts_of(image, False)
    assert top[0].max() < bottom[0].min()
    assert torch.equal(top[1], bottom[1])


def test_a_copy_is_nearest_to_what_it_copies_wherever_it_stands(prepared: Prepared, known: Known) -> None:
    learned = on_white(cut_outs(prepared, known, 32))
    scenes = [
        Scene("colours", (Item(picture, (0.35, 0.6), 0.5),), "white" if k % 2 else "navy")
        for k, picture in enumerate(known.pictures)
    ]
    drawn = to_signed(torch.stack([draw(prepared, scene, 128) for scene in scenes]))
    found = nearest_of(things_of(drawn, 32), learned)
    alike = torch.cdist(learned.flatten(1), learned.flatten(1))[range(len(scenes)), found.rows]
    assert float(alike.max()) * (3 * 32 * 32) ** -0.5 < 0.05  # itself, or one that looks as it does
    assert float(found.distances.max()) < 0.25
    others = nearest_of(learned, learned, apart=True)
    assert not (others.rows == torch.arange(len(learned))).any()
    direct = torch.cdist(learned.flatten(1).double(), learned.flatten(1).double()).fill_diagonal_(torch.inf)
    torch.testing.assert_close(others.distances.double(), direct.amin(1) * (3 * 32 * 32) ** -0.5, atol=2e-3, rtol=0)


def test_nothing_but_ground_is_white() -> None:
    assert torch.equal(things_of(torch.full((2, 3, 64, 64), 0.3), 16), torch.ones(2, 3, 16, 16))
