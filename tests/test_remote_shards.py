"""Shards behind URLs: a real server and a real client."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from file_server import Ranged, serving
from tar_shards import colour_of, picture, write_shards

from ldm.data import shards
from ldm.data.example import BadExample
from ldm.data.webdataset import WebDatasetConfig, WebDatasetSource
from ldm.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(path: Path | str, **changes) -> WebDatasetSource:
    return WebDatasetSource(WebDatasetConfig(path=str(path), **changes))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[Ranged], Path]]:
    pytest.importorskip("aiohttp")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("Handler", (Ranged,), {"asked": [], "breaks": 0})
    with serving(folder, handler) as url:
        yield url, handler, folder


def series(found: WebDatasetSource, ks: range) -> list[int]:
    found.arrange(4, 1)
    examples = [found.read(k) for k in ks]
    numbers = [int(example.captions[0].split()[1]) for example in examples]
    assert [tuple(one.image[:, 0, 0].tolist()) for one in examples] == [colour_of(number) for number in numbers]
    return numbers


@pytest.mark.parametrize("statistics", [True, False])
def test_a_server_gives_the_samples_of_the_disk(server, monkeypatch, statistics):
    url, handler, folder = server
    write_shards(folder, [30, 20, 25], statistics=statistics)
    monkeypatch.setattr(shards, "_WAITS", (0, 0, 0))
    handler.breaks = 3
    here, there = opened(folder), opened(f"{url}/{{00000..00002}}.tar")
    assert len(there) == 75
    assert handler.breaks == 0
    handler.breaks = 3
    assert series(there, range(60, 100)) == series(here, range(60, 100))
    assert handler.breaks == 0
    assert len(opened(url)) == 75  # the server lists its folder
    counted = [name for name, _ in handler.asked if name.endswith(".json")]
    assert len(counted) == 6


def test_what_is_wrong_behind_a_url_is_told(server, monkeypatch):
    url, handler, folder = server
    monkeypatch.setattr(shards, "_WAITS", (0, 0))
    write_shards(folder, [5])
    with pytest.raises(UserError, match=r"there is no http://.*/1\.tar"):
        opened(f"{url}/1.tar")
    with pytest.raises(UserError, match=r"http://.*/none/?: found no .tar files|there is no http://.*/none"):
        opened(f"{url}/none")
    with pytest.raises(UserError, match=r"nosuch://x/0\.tar cannot be read: Protocol"):
        opened("nosuch://x/0.tar")
    found = opened(f"{url}/00000.tar")
    handler.breaks = 10**6
    with pytest.raises(UserError, match=r"http://.*/00000\.tar cannot be read") as raised:
        found.read(0)
    assert not isinstance(raised.value, BadExample)  # the network is no fault of the sample


def test_a_server_without_parts_of_files_is_told(tmp_path):
    pytest.importorskip("aiohttp")
    write_shards(tmp_path, [200], image=picture(1, (300, 300)) + bytes(100_000))
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with serving(tmp_path, handler) as url:
        source = opened(f"{url}/00000.tar")
        with pytest.raises(UserError, match=r"00000\.tar cannot be read.*range"):
            [one() for _, one in source.scan()]
