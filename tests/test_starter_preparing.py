"""From tarballs to the prepared folder: what is rendered and what is left out, kills, damage, the card."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from script_calls import call, start
from starter_lab import EMOJI, ICONS, SIDE, icons, make_packages, names, pack, square

from ldm.cli import main
from ldm.errors import UserError
from ldm.starter.avatar_styles import AVATAR_STYLES
from ldm.starter.avatars import avatar_drawings, avatar_licence
from ldm.starter.card import write_papers
from ldm.starter.colours import COLOURS, nearest
from ldm.starter.emoji import EmojiNames
from ldm.starter.icon_sets import emoji_drawings
from ldm.starter.looks import look_at, recolouring
from ldm.starter.packages import PACKAGES
from ldm.starter.prepared import Picture, Prepared
from ldm.starter.preparing import Found, prepare
from ldm.starter.rendering import render, shards_of
from ldm.starter.styles import STYLES

pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found]:
    place = tmp_path_factory.mktemp("starter")
    packages = make_packages(place / "npm")
    found = prepare(place / "data", place / "npm", SIDE, 1, 0, packages)
    write_papers(place / "data", packages, found)
    return place / "data", found


def picture_of(prepared: Prepared, style: str, slug: str) -> Picture:
    return next(each for each in prepared.pictures if (each.style, each.slug) == (style, slug))


def middle_of(prepared: Prepared, picture: Picture) -> list[int]:
    left, top, right, bottom = picture.box
    return prepared.pixels(picture)[(top + bottom) // 2, (left + right) // 2].tolist()


# ------------------------------------------------------------------------------- what is rendered


def test_pictures_are_rendered_where_their_svg_says(made: tuple[Path, Found]) -> None:
    prepared = Prepared(made[0])
    for code, (label, *_, fill) in EMOJI.items():
        rgb = [int(fill[k : k + 2], 16) for k in (1, 3, 5)]
        slug = label.replace(": ", "-").replace(" ", "-").lower()
        by_code, by_name = picture_of(prepared, "twemoji", slug), picture_of(prepared, "noto", slug)
        from_webp = picture_of(prepared, "fluent-3d", code.lower())
        assert by_code.box == (8, 8, 56, 56)  # 16..112 of 128, at half the size
        assert by_name.box == (4, 20, 28, 44)
        assert from_webp.box == (8, 8, 56, 56)  # 10..70 of 80
        for picture in (by_code, by_name, from_webp):
            assert middle_of(prepared, picture) == [*rgb, 255]
            assert prepared.subjects[picture.subject].name == code.lower()
    glyph = prepared.pixels(picture_of(prepared, "game-icons", "anvil"))
    assert glyph.shape == (SIDE, SIDE)
    assert (glyph[15:49, 8:42] == 255).all()
    assert int((glyph > 0).sum()) == 34 * 34


def test_an_alias_that_is_mirrored_is_a_picture_of_its_own(made: tuple[Path, Found]) -> None:
    prepared = Prepared(made[0])
    as_it_is = prepared.pixels(picture_of(prepared, "noto", "automobile"))
    mirrored = prepared.pixels(picture_of(prepared, "noto", "red-car-1"))
    assert np.array_equal(mirrored, as_it_is[:, ::-1])


def test_skin_tones_and_what_has_no_name_are_left_out(made: tuple[Path, Found]) -> None:
    folder, found = made
    assert found.unmatched == {"twemoji": ["letter-a"], "noto": ["nothing"], "fluent-3d": []}
    assert found.pictures == {"twemoji": 9, "noto": 10, "fluent-3d": 9, "game-icons": len(ICONS)}
    assert not [each for each in Prepared(folder).pictures if "dark" in each.slug]


def test_what_cannot_be_rendered_or_shows_nothing_is_left_out_and_told(tmp_path: Path) -> None:
    bodies = {"dog-face": square("#8a5a2b"), "key": '<path d="', "door": "", "snail": square("none")}
    packages = {
        "emojibase": pack(tmp_path, PACKAGES["emojibase"], names()),
        "noto": pack(tmp_path, PACKAGES["noto"], icons(bodies, {})),
    }
    found = prepare(tmp_path / "data", tmp_path, SIDE, 1, 0, packages)
    assert found.blank == ["noto/door", "noto/key", "noto/snail"]
    assert [each.slug for each in Prepared(tmp_path / "data").pictures] == ["dog-face"]


def test_a_gun_is_not_called_a_water_pistol(tmp_path: Path) -> None:
    files = names()
    rows = {language: json.loads(files[f"{language}/data.json"]) for language in ("en", "ko")}
    for language, label in (("en", "water pistol"), ("ko", "물총")):
        rows[language].append({"hexcode": "1F52B", "label": label, "group": 7, "subgroup": 2, "tags": ["pistol"]})
        files[f"{language}/data.json"] = json.dumps(rows[language]).encode()
    files["en/shortcodes/github.json"] = json.dumps({"1F52B": "pistol"}).encode()
    pack(tmp_path, PACKAGES["emojibase"], files)
    known = EmojiNames(tmp_path / PACKAGES["emojibase"].tarball)
    for style, expected in (("twemoji", 1), ("fxemoji", 0)):
        pack(tmp_path, PACKAGES[style], icons({"pistol": square("#000")}, {}))
        drawings, _ = emoji_drawings(style, tmp_path / PACKAGES[style].tarball, known)
        assert len(drawings) == expected


# ------------------------------------------------------------------------------- looks


def test_a_look_tells_one_hue_from_several() -> None:
    picture = np.zeros((48, 48, 4), np.uint8)
    picture[8:40, 8:40] = (200, 30, 30, 255)
    picture[30:40, 8:40] = (90, 90, 90, 255)  # wheels
    look = look_at(picture)
    assert look is not None
    assert (look.box, look.hue) == ((8, 8, 40, 40), (200, 30, 30))
    picture[8:20, 8:40] = (30, 30, 200, 255)
    look = look_at(picture)
    assert look is not None
    assert look.hue is None
    assert look_at(np.zeros((48, 48, 4), np.uint8)) is None


@pytest.mark.parametrize("own", [(200, 30, 30), (250, 210, 40), (30, 60, 180)])
def test_recolouring_keeps_greys_and_takes_one_colour_to_another(own: tuple[int, int, int]) -> None:
    for colour in COLOURS.values():
        if colour.paint:
            change = recolouring(own, colour.rgb)
            assert np.allclose(change @ (128, 128, 128), 128, atol=1e-3)
            assert np.allclose(change @ own, colour.rgb, atol=1e-3)
            assert np.allclose(change @ np.multiply(0.5, own), np.multiply(0.5, colour.rgb), atol=1e-3)


# ------------------------------------------------------------------------------- kills and damage

PREPARE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from starter_lab import EMOJI, icons, names, pack, square
from ldm.starter.packages import PACKAGES
from ldm.starter.preparing import prepare
place = Path(sys.argv[2])
place.mkdir(exist_ok=True)
bodies = {f"thing-{k:04d}": square("currentColor", k % 60, k % 50, 40) for k in range(400)}
packages = {"emojibase": pack(place, PACKAGES["emojibase"], names())}
packages["game-icons"] = pack(place, PACKAGES["game-icons"], icons(bodies, {}))
prepare(place / "data", place, 128, int(sys.argv[3]), 0, packages)
"""


def test_a_killed_rendering_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PREPARE, str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([*command, str(tmp_path / "killed"), "1"], env=environment)
    pictures = tmp_path / "killed" / "data" / "pictures"
    while len(list(pictures.glob("*.npy")) if pictures.is_dir() else []) < 1:
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "data" / "contents.json").exists()
    there = {path.name: path.stat().st_mtime_ns for path in pictures.glob("*.npy")}
    (pictures / "game-icons-000-0123456789abcdef.npy").write_bytes(b"of another version")
    subprocess.run([*command, str(tmp_path / "killed"), "1"], env=environment, check=True)
    subprocess.run([*command, str(tmp_path / "calm"), "2"], env=environment, check=True)
    calm = tmp_path / "calm" / "data" / "pictures"
    assert 1 <= len(there) < 4
    assert {name: (pictures / name).stat().st_mtime_ns for name in there} == there
    assert sorted(path.name for path in pictures.iterdir()) == sorted(path.name for path in calm.iterdir())
    assert all(path.read_bytes() == (calm / path.name).read_bytes() for path in pictures.iterdir())
    contents = [(tmp_path / which / "data" / "contents.json").read_bytes() for which in ("killed", "calm")]
    assert contents[0] == contents[1]


def test_another_drawing_or_side_is_another_shard(tmp_path: Path) -> None:
    packages = make_packages(tmp_path)
    known = EmojiNames(tmp_path / packages["emojibase"].tarball)
    drawings, _ = emoji_drawings("noto", tmp_path / packages["noto"].tarball, known)
    paths = {shards_of(some, side, False, tmp_path)[0].path for some in (drawings, drawings[1:]) for side in (64, 128)}
    assert len(paths) == 4
    (shard,) = shards_of(drawings, 64, False, tmp_path)
    looks = render(shard)
    before = shard.path.stat().st_mtime_ns
    assert render(shard) == looks
    assert shard.path.stat().st_mtime_ns == before


def test_a_damaged_folder_is_named(made: tuple[Path, Found], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no prepared folder.*ldm data prepare starter"):
        Prepared(tmp_path)
    contents = (made[0] / "contents.json").read_text(encoding="utf-8")
    (tmp_path / "contents.json").write_text(contents[: len(contents) // 2], encoding="utf-8")
    with pytest.raises(UserError, match=r"contents\.json cannot be read"):
        Prepared(tmp_path)
    (tmp_path / "contents.json").write_text(contents.replace('"format":1', '"format":0'), encoding="utf-8")
    with pytest.raises(UserError, match="not of the version"):
        Prepared(tmp_path)
    (tmp_path / "contents.json").write_text(contents, encoding="utf-8")
    with pytest.raises(UserError, match=r"\.npy is missing"):
        Prepared(tmp_path)
    (tmp_path / "pictures").mkdir()
    for path in (made[0] / "pictures").iterdir():
        (tmp_path / "pictures" / path.name).write_bytes(path.read_bytes()[:1000])
    prepared = Prepared(tmp_path)
    with pytest.raises(UserError, match=r"\.npy is missing or damaged"):
        prepared.pixels(prepared.pictures[0])


# ------------------------------------------------------------------------------- what it says of itself


def test_everybody_is_named(made: tuple[Path, Found]) -> None:
    text = (made[0] / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for style in ("emojibase", "twemoji", "noto", "fluent-3d", "game-icons"):
        package = PACKAGES[style]
        assert all(told in text for told in (package.spec, package.author, package.licence, package.home))
    assert "streamline" not in text


def test_the_card_and_the_held_out_list_are_of_this_folder(made: tuple[Path, Found]) -> None:
    folder, _ = made
    card = (folder / "card.md").read_text(encoding="utf-8")
    for name in ("single", "colours", "pairs", "triples", "glyphs"):
        assert f"]({name}.png)" in card
        assert (folder / f"{name}.png").stat().st_size > 1000
    assert "avatars" not in card.split("## Never")[0]
    assert "34 pictures of 64 x 64" in card
    held = json.loads((folder / "held_out.json").read_text(encoding="utf-8"))
    nouns = {subject.noun for subject in Prepared(folder).subjects}
    for name in ("style and label", "colour and glyph", "colour and label", "background and label"):
        assert all(noun in nouns for _, noun in held[name])
        assert all(first in (STYLES if "style" in name else COLOURS) for first, _ in held[name])
    assert held["relations"] >= len(held["relations, for example"]) > 0


def test_the_command_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(main, "ldm", "data", "prepare", "stater", "--out", str(tmp_path)) == 2
    assert "did you mean 'starter'" in capsys.readouterr().err
    damaged = tmp_path / PACKAGES["emojibase"].tarball
    damaged.write_bytes(b"half a file")
    for run in (
        lambda: start(main, "ldm", "data", "prepare", "starter", "-o", str(tmp_path), "--downloads", str(tmp_path)),
        lambda: call("prepare_starter", "--out", tmp_path, "--downloads", tmp_path),
    ):
        assert run() == 2
        assert f"{damaged} is damaged" in capsys.readouterr().err
    assert not (tmp_path / "contents.json").exists()


# ------------------------------------------------------------------------------- avatars


def test_avatars_show_what_they_are_said_to_show(tmp_path: Path) -> None:
    pytest.importorskip("dicebear")
    pytest.importorskip("dicebear_styles")
    drawings, subjects = avatar_drawings(3)
    assert list(drawings) == [style.name for style in AVATAR_STYLES]
    again, _ = avatar_drawings(2)
    assert all(again[name] == drawings[name][:2] for name in drawings)
    for style in AVATAR_STYLES:
        assert any(kind in avatar_licence(style.name) for kind in ("CC0 1.0", "CC BY 4.0"))
        (shard,) = shards_of(drawings[style.name], SIDE, False, tmp_path)
        for drawing, look, pixels in zip(shard.drawings, render(shard), np.load(shard.path), strict=True):
            assert look is not None
            assert pixels[0, 0].tolist() == [0, 0, 0, 0]  # there is no background
            noun = subjects[drawing.key].noun
            colour = next(name for name in sorted(COLOURS, key=len, reverse=True) if name in noun.replace("-", " "))
            opaque = pixels[pixels[..., 3] == 255][:, :3]
            seen = {nearest(tuple(rgb)) for rgb in opaque.tolist()}
            assert colour in seen, noun
