"""Fetching by name: huggingface_hub's own code against a small hub on this machine, and against its cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ldm.errors import UserError
from ldm.weights.hub import fetch, looks_like_name, wanted_files

COMMIT, OLDER = 40 * "a", 40 * "b"
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": [None, None],
}
NET = "diffusion_pytorch_model"
PLAIN = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    f"unet/{NET}-00001-of-00002.safetensors",
    f"unet/{NET}-00002-of-00002.safetensors",
    f"unet/{NET}.safetensors.index.json",
    "unet/config.json",
    "vae/config.json",
    f"vae/{NET}.safetensors",
]
HALF = {
    "text_encoder/model.safetensors": "text_encoder/model.fp16.safetensors",
    f"unet/{NET}-00001-of-00002.safetensors": f"unet/{NET}.fp16-00001-of-00002.safetensors",
    f"unet/{NET}-00002-of-00002.safetensors": f"unet/{NET}-00002-of-00002.fp16.safetensors",
    f"unet/{NET}.safetensors.index.json": f"unet/{NET}.safetensors.index.fp16.json",
    f"vae/{NET}.safetensors": f"vae/{NET}.fp16.safetensors",
}
OTHER = [
    ".gitattributes",
    "README.md",
    "model.safetensors",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "text_encoder/pytorch_model.bin",
    f"unet/{NET}.non_ema.safetensors",
    f"vae/{NET}.bin",
    "safety_checker/model.safetensors",
    "safety_checker/config.json",
    "feature_extractor/preprocessor_config.json",
]
REPOS = {
    "owner/model": [*PLAIN, *HALF.values(), *OTHER],
    "owner/vae": ["config.json", f"{NET}.safetensors", f"{NET}.bin", "README.md"],
    "owner/single": ["a.safetensors", "b.safetensors", "README.md"],
    "owner/pickled": ["model_index.json", "unet/config.json", f"unet/{NET}.bin", f"unet/{NET}.fp16.bin"],
}


def content(repo: str, name: str, commit: str) -> bytes:
    if name == "model_index.json":
        return json.dumps(INDEX).encode()
    return f"{repo} {name} {commit}".encode()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for."""

    asked: list[str]  # method and path of every request
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: int, reason: str) -> None:
        self.reply(b"{}", code, X_Error_Code=reason, X_Error_Message=reason)

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]
        words = self.path.partition("?")[0].strip("/").split("/")
        listing = words[:2] == ["api", "models"]
        repo = "/".join(words[2:4] if listing else words[:2])
        if repo == "owner/gated":
            return self.refuse(403, "GatedRepo")
        if repo == "owner/broken":
            return self.reply(b"", 500)
        if repo not in REPOS:
            return self.refuse(404, "RepoNotFound")
        words = words[4:] if listing else words[2:]
        revision = words[1] if len(words) > 1 else "main"
        commits = {"main": COMMIT, "v1": OLDER, COMMIT: COMMIT, OLDER: OLDER}
        if revision not in commits:
            return self.refuse(404, "RevisionNotFound")
        commit = commits[revision]
        if words[:1] == ["resolve"]:
            body = content(repo, "/".join(words[2:]), commit)
            return self.reply(body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=commit)
        if words[:1] == ["tree"]:
            files = [(name, content(repo, name, commit)) for name in REPOS[repo]]
            found: Any = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in files
            ]
        else:
            found = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in REPOS[repo]]}
        return self.reply(json.dumps(found).encode(), Content_Type="application/json")

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


CALLS = """
import json, sys
from pathlib import Path
from ldm.errors import UserError
from ldm.weights.hub import fetch
told = []
for arguments in json.loads(sys.argv[2]):
    try:
        found = fetch(*arguments, cache=Path(sys.argv[1]))
        told.append({"path": str(found.path), "repo": found.repo, "commit": found.commit})
    except UserError as error:
        told.append(str(error))
print("TOLD" + json.dumps(told))
"""


def calls(
    hub: ThreadingHTTPServer | None, cache: Path, *arguments: tuple[Any, ...], offline: bool = False
) -> list[Any]:
    """What ``fetch`` gives or says in a process of its own: the address of the hub is read when it starts."""
    port = hub.server_address[1] if hub else 9  # where nobody listens
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(cache / "home"),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "*",
    }
    command = [sys.executable, "-W", "ignore", "-c", CALLS, str(cache), json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("TOLD")[2])


def files(folder: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_a_model_is_fetched_pinned_and_found_again(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    plain, tagged, vae, file = calls(
        hub,
        tmp_path,
        ("owner/model",),
        ("owner/model", "v1", "fp16"),
        ("owner/vae",),
        ("owner/model/v1-5-pruned.safetensors",),
    )
    assert (plain["repo"], plain["commit"], tagged["commit"]) == ("owner/model", COMMIT, OLDER)
    assert files(plain["path"]) == sorted([*PLAIN, "v1-5-pruned.safetensors"])
    assert files(tagged["path"]) == sorted(HALF.get(name, name) for name in PLAIN)
    assert files(vae["path"]) == ["config.json", f"{NET}.safetensors"]
    assert Path(file["path"]).read_bytes() == content("owner/model", "v1-5-pruned.safetensors", COMMIT)
    assert file["commit"] == COMMIT
    # pinned, it needs no hub; and a name without a pin does not take the cache for the hub
    hub.asked.clear()  # type: ignore[attr-defined]
    again, half, unpinned = calls(
        None, tmp_path, ("owner/model", COMMIT), ("owner/model", OLDER, "fp16"), ("owner/model",)
    )
    assert (again["path"], half["path"]) == (plain["path"], tagged["path"])
    assert "the hub is not reached" in unpinned
    assert "HF_HUB_OFFLINE=1" in unpinned
    assert not hub.asked  # type: ignore[attr-defined]
    named, missing, other = calls(
        None,
        tmp_path,
        ("owner/model",),
        ("owner/model", None, "fp16"),
        ("owner/model/other.safetensors",),
        offline=True,
    )
    assert named["path"] == plain["path"]
    assert "no variant 'fp16' in safetensors; variants there: (none)" in missing
    assert "not in the cache" in other


def test_what_the_hub_refuses(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    expected = {
        ("owner/none",): "no such repository",
        ("owner/gated",): "is gated: accept its conditions",
        ("owner/broken",): "the hub answers with an error",
        ("owner/model", "v9"): "owner/model at v9: the repository has no such revision",
        ("owner/model", None, "fp8"): "no variant 'fp8' in safetensors; variants there: (none), fp16",
        ("owner/model/none.safetensors",): "has no file none.safetensors; single files there: model.safetensors, v1-5",
        ("owner/single",): "single files there: a.safetensors, b.safetensors (name one as owner/name/file)",
        ("owner/pickled",): "there are pickles (.bin) of these variants: (none), fp16 (read with --allow-pickle)",
        ("a b/c",): "is no name of a model on the hub",
    }
    for arguments, told in zip(expected, calls(hub, tmp_path, *expected), strict=True):
        assert isinstance(told, str), arguments
        assert expected[arguments] in told
    assert not [path for path in tmp_path.rglob("*.safetensors")]


def cached(cache: Path, names: list[str], commit: str = COMMIT) -> Path:
    """A repository in the cache, laid out by hand as huggingface_hub documents it."""
    folder = cache / "models--owner--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    for name in names:
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content("owner/model", name, commit))
    return folder / "snapshots" / commit


def test_a_cache_made_by_hand(tmp_path: Path) -> None:
    folder = cached(tmp_path, [*PLAIN, "deep/a.safetensors"])
    for revision in (None, "main", COMMIT):
        found = fetch("owner/model", revision, cache=tmp_path, offline=True)
        assert (found.path, found.repo, found.commit) == (folder, "owner/model", COMMIT)
    file = fetch("owner/model/deep/a.safetensors", cache=tmp_path, offline=True)
    assert (file.path, file.commit) == (folder / "deep" / "a.safetensors", COMMIT)
    with pytest.raises(UserError, match=f"owner/model at {OLDER} is not in the cache {tmp_path}"):
        fetch("owner/model", OLDER, cache=tmp_path, offline=True)


def test_half_a_model_in_the_cache(tmp_path: Path) -> None:
    cached(tmp_path, [name for name in PLAIN if not name.startswith("vae/")])
    with pytest.raises(UserError, match="without its vae"):
        fetch("owner/model", cache=tmp_path, offline=True)


def test_an_empty_cache(tmp_path: Path) -> None:
    for name in ("owner/model", "owner/model/a.safetensors"):
        with pytest.raises(UserError, match=f"{name} is not in the cache {tmp_path}, and nothing is fetched offline"):
            fetch(name, cache=tmp_path, offline=True)


@pytest.mark.parametrize("name", ["model", "/model", "owner/", "owner/model/../../x", "owner/mo del", "-/-"])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no name of a model on the hub"):
        fetch(name, cache=tmp_path, offline=True)


def test_which_places_look_like_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert looks_like_name("owner/model-1.5")
    assert looks_like_name("owner/model/file.safetensors")
    files = ("nets/canny.safetensors", "models/old.ckpt")  # mistyped, most likely
    for place in ("model", "./model", "../model", "/abs/model", "owner/", "a\\b", *files):
        assert not looks_like_name(place)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert not looks_like_name("owner/model")


def test_no_pickle_is_ever_wanted() -> None:
    for variant in (None, "fp16"):
        found = wanted_files(REPOS["owner/model"], variant, "owner/model")
        assert not [name for name in found if not name.endswith((".json", ".txt", ".safetensors"))]
        assert len(found) == len(set(found)) == len(PLAIN)
