"""Pickles: what honest ones hold is read when allowed, and what hostile ones ask for never happens."""

from __future__ import annotations

import builtins
import collections
import contextlib
import functools
import importlib
import io
import marshal
import operator
import os
import pickle
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm.errors import UserError
from ldm.weights.pickles import form_of, read_pickle
from ldm.weights.stored import open_stored

CANARY = "canary"


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


class Armed:
    """A class of the program's own whose state does harm when it is set."""

    def __setstate__(self, state: str) -> None:
        Path(state).touch()

    def __reduce__(self) -> Any:
        return (Armed, (), CANARY)


def touching(place: str) -> str:
    return f"open({place!r}, 'w').close()"


def code_as_bytes() -> Any:
    return Call(exec, Call(marshal.loads, marshal.dumps(compile(touching(CANARY), "", "exec"))))


# Objects that leave the canary when they are unpickled without protection.
OBJECTS: dict[str, Callable[[], Any]] = {
    "os.system": lambda: Call(os.system, f"touch {CANARY}"),
    "subprocess.Popen": lambda: Call(subprocess.check_call, ["touch", CANARY]),
    "exec": lambda: Call(exec, touching(CANARY)),
    "eval": lambda: Call(eval, touching(CANARY)),
    "open": lambda: Call(open, CANARY, "w"),
    "getattr and import": lambda: Call(
        operator.call, Call(getattr, Call(builtins.__import__, "os"), "system"), f"touch {CANARY}"
    ),
    "importlib": lambda: Call(operator.call, Call(getattr, Call(importlib.import_module, "os"), "mkdir"), CANARY),
    "a method of pathlib": lambda: Call(Path.touch, Path(CANARY)),
    "functools.partial": lambda: Call(operator.call, functools.partial(os.mkdir, CANARY)),
    "operator.methodcaller": lambda: Call(operator.call, operator.methodcaller("touch"), Path(CANARY)),
    "map in a list": lambda: Call(list, Call(map, exec, [touching(CANARY)])),
    "code as bytes": code_as_bytes,
    "pickle in a pickle": lambda: Call(pickle.loads, pickle.dumps(Call(exec, touching(CANARY)))),
    "torch.load in a pickle": lambda: Call(
        functools.partial(torch.load, weights_only=False), Call(io.BytesIO, torch_bytes(Call(exec, touching(CANARY))))
    ),
    "torch's storage from bytes": lambda: Call(
        torch.storage._load_from_bytes, torch_bytes(Call(exec, touching(CANARY)))
    ),
    "state of a class of one's own": Armed,
    "state after a plain container": lambda: Call(collections.OrderedDict, state={"a": Call(exec, touching(CANARY))}),
    "beside true tensors": lambda: {"a": torch.ones(2), "b": Call(exec, touching(CANARY))},
    "deep in a state_dict": lambda: {"state_dict": {"a": torch.ones(2), "b": [({"c": Call(exec, touching(CANARY))},)]}},
    "as a key": lambda: {Call(exec, touching(CANARY)): torch.ones(2)},
    "as an attribute of a parameter": lambda: Call(
        torch._utils._rebuild_parameter, torch.ones(2), Call(exec, touching(CANARY)), {}
    ),
    "through torch's own rebuilding": lambda: Call(
        torch._tensor._rebuild_from_type_v2, exec, type(None), (touching(CANARY),), None
    ),
}
_TEXT = touching(CANARY).encode()
# The same call in the opcodes of other protocols and of hand-made pickles.
OPCODES = {
    "protocol 0": b"c__builtin__\nexec\n(V" + _TEXT + b"\ntR.",
    "GLOBAL": b"\x80\x02cbuiltins\nexec\n(X" + len(_TEXT).to_bytes(4, "little") + _TEXT + b"tR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c" + bytes([len(_TEXT)]) + _TEXT + b"\x85R.",
    "INST": b"(V" + _TEXT + b"\nibuiltins\nexec\n.",
    "OBJ": b"\x80\x02(cbuiltins\nexec\nX" + len(_TEXT).to_bytes(4, "little") + _TEXT + b"o.",
    "a dotted name": b"\x80\x04\x8c\x02os\x8c\x0bpath.os.sys\x930\x8c\x08builtins\x8c\x04exec\x93\x8c"
    + bytes([len(_TEXT)])
    + _TEXT
    + b"\x85R.",
    "left on the stack": b"\x80\x02cbuiltins\nexec\n(X" + len(_TEXT).to_bytes(4, "little") + _TEXT + b"tR0}.",
    "memoised": b"\x80\x02cbuiltins\nexec\nq\x010h\x01(X" + len(_TEXT).to_bytes(4, "little") + _TEXT + b"tR.",
}


def torch_bytes(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def zip_of(pickled: bytes) -> bytes:
    """An archive of torch around any pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return stream.getvalue()


def legacy_of(pickled: bytes) -> bytes:
    """The file of torch before 1.6 around any pickle: three pickles about the system, then this one, then keys."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    start = [0x1950A86A20F9469CFC6C, 1001, system]
    return b"".join(pickle.dumps(value, 2) for value in start) + pickled + pickle.dumps([], 2)


def tar_of(pickled: bytes) -> bytes:
    """The archive of torch before 0.1.10."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in (
            ("storages", pickle.dumps(0, 2) + pickle.dumps([], 2)),
            ("tensors", pickle.dumps(0, 2)),
            ("pickle", pickled),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


CONTAINERS = {"zip": zip_of, "legacy": legacy_of, "tar": tar_of, "bare": bytes}
SYSTEM = pickle.dumps(Call(exec, touching(CANARY)), 2)
VARIANTS: dict[str, Callable[[], bytes]] = {
    **{name: lambda made=made: torch_bytes(made()) for name, made in OBJECTS.items()},
    **{
        f"{name}, legacy": lambda made=made: torch_bytes(made(), _use_new_zipfile_serialization=False)
        for name, made in list(OBJECTS.items())[:4]
    },
    **{name: lambda code=code: zip_of(code) for name, code in OPCODES.items()},
    **{f"in {name}": lambda wrap=wrap: wrap(SYSTEM) for name, wrap in CONTAINERS.items()},
    "in the first pickle of a legacy file": lambda: SYSTEM + legacy_of(pickle.dumps({}, 2)),
}
ENDINGS = [".ckpt", ".safetensors", ".bin"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_there_are_thirty() -> None:
    assert len(VARIANTS) >= 30


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_hostile_pickle_does_nothing(name: str, ending: str) -> None:
    path = Path(f"model{ending}")
    path.write_bytes(VARIANTS[name]())
    with pytest.raises(UserError, match=f"model{ending}"):
        open_stored(path, allow_pickle=True)
    with pytest.raises(UserError, match=f"model{ending}"):
        open_stored(path)
    assert [entry.name for entry in Path().iterdir()] == [path.name]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_hostile_pickles_are_live(name: str) -> None:
    """Without protection each does its harm, so the test above could fail."""
    Path("model.ckpt").write_bytes(VARIANTS[name]())
    with contextlib.suppress(Exception):  # once the harm is done, what comes back is often no archive of torch
        torch.load("model.ckpt", weights_only=False)
    assert Path(CANARY).exists()


def honest(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_honest_pickles_are_read_when_allowed(zipped: bool) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(2).half(), "c": torch.randn(2).bfloat16()}
    value = {"state_dict": {**tensors, "p": torch.nn.Parameter(torch.ones(2)), "note": "text"}, "global_step": 875000}
    path = honest(
        Path("model.ckpt"),
        {**value, "epoch": 3, "optimizer_states": [{"lr": 0.1}]},
        _use_new_zipfile_serialization=zipped,
    )
    found = read_pickle(path, allow_pickle=True)
    assert found.tensors.keys() == {"a", "b", "c", "p"}
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    assert type(found.tensors["p"]) is torch.Tensor
    assert not found.tensors["p"].requires_grad
    assert found.numbers == {"global_step": 875000, "epoch": 3}


def test_reading_converts_and_lets_go() -> None:
    path = honest(
        Path("model.ckpt"), {"a": torch.ones(3), "b": torch.ones(2), "count": torch.ones(1, dtype=torch.int64)}
    )
    stored = open_stored(path, allow_pickle=True)
    assert stored.dtypes == {"a": "float32", "b": "float32", "count": "int64"}
    found = stored.take({"a", "count"}, torch.float16)
    assert {name: tensor.dtype for name, tensor in found.items()} == {"a": torch.float16, "count": torch.int64}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([torch.ones(2)], "should hold tensors by name, found list"),
        ({"epoch": 3}, "holds no tensors by name"),
        ({"state_dict": torch.ones(2)}, "found Tensor"),
        ({"a": torch.ones(2, 2).to_sparse()}, "sparse"),
    ],
)
def test_other_contents_are_named(value: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_pickle(honest(Path("model.ckpt"), value), allow_pickle=True)


def test_the_reason_is_told_without_torchs_advice() -> None:
    """torch proposes to read the file without protection, which is what the file hopes for."""
    path = honest(Path("model.ckpt"), {"a": OBJECTS["os.system"]()})
    with pytest.raises(UserError, match="system") as caught:
        read_pickle(path, allow_pickle=True)
    for word in ("weights_only", "safe_globals", "trust"):
        assert word not in str(caught.value)


def test_forms_are_told_by_content() -> None:
    save_file({"a": torch.ones(2)}, "model.safetensors")
    honest(Path("model.ckpt"), {"a": torch.ones(2)})
    assert form_of(Path("model.safetensors")) == "safetensors"
    assert form_of(Path("model.ckpt")) == "pickle"
    Path("model.safetensors").rename("other.ckpt")
    Path("model.ckpt").rename("other.safetensors")
    with pytest.raises(UserError, match=r"other\.ckpt is a safetensors file that is named as a pickle"):
        form_of(Path("other.ckpt"))
    with pytest.raises(UserError, match=r"other\.safetensors is a pickle that calls itself safetensors"):
        form_of(Path("other.safetensors"))
    Path("text.ckpt").write_text("no weights")
    with pytest.raises(UserError, match="neither"):
        form_of(Path("text.ckpt"))
    with pytest.raises(UserError, match="missing"):
        form_of(Path("none.ckpt"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.95])
def test_damaged_pickles_are_named(zipped: bool, part: float) -> None:
    path = honest(Path("model.ckpt"), {"a": torch.randn(1000)}, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(UserError, match=r"model\.ckpt"):
        open_stored(path, allow_pickle=True)
