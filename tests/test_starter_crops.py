"""Parts of composed pictures, for autoencoders."""

from __future__ import annotations

import pytest
import torch
from starter_lab import SIDE, make_packages

from ldm.errors import UserError
from ldm.starter.colours import COLOURS
from ldm.starter.composing import draw
from ldm.starter.preparing import prepare
from ldm.starter.settings import StarterConfig
from ldm.starter.source import StarterSource

pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> StarterSource:
    place = tmp_path_factory.mktemp("starter")
    prepare(place / "data", place / "npm", SIDE, 1, 0, make_packages(place / "npm"))
    kinds = {"single": 1, "colours": 2, "pairs": 1}
    values = {"path": place / "data", "size": 128, "crop": 64, "kinds": kinds, "length": 300}
    return StarterSource(StarterConfig.checked(values))


def test_a_part_is_cut_out_of_its_scene_at_some_size(source: StarterSource) -> None:
    for index in range(5):
        part = source.read(index).image
        assert part.shape == (3, 64, 64)
        assert part.is_contiguous()
        found = False
        for side in range(64, 129):
            whole = draw(source.prepared, source.scene(index), side)
            windows = whole.unfold(1, 64, 1).unfold(2, 64, 1)  # (3, y, x, 64, 64)
            found = found or bool((windows == part[:, None, None]).all(-1).all(-1).all(0).any())
        assert found


def test_parts_show_things_and_come_again_the_same(source: StarterSource) -> None:
    bare = 0
    for index in range(300):
        part = source.read(index).image
        ground = torch.tensor(COLOURS[source.scene(index).background].rgb, dtype=torch.uint8)[:, None, None]
        bare += bool((part == ground).all())
        assert torch.equal(part, source.read(index).image)
    assert bare < 6  # a place in the box of a round thing may miss it


def test_parts_have_no_captions_as_these_tell_of_the_whole(source: StarterSource) -> None:
    assert not source.captioned
    assert source.read(3).captions == source.words(3).captions == ()
    assert source.sizes is not None
    assert source.sizes[7].tolist() == [64, 64]


def test_a_part_is_no_larger_than_the_whole() -> None:
    with pytest.raises(UserError, match="at most size, 128, got 136"):
        StarterConfig.checked({"path": "x", "size": 128, "crop": 136})
