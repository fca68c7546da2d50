"""Records of every kind, as hypothesis strategies, and a picture to put them into."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.metadata.record import Record

HASH = "0123456789abcdef" * 4
PICTURE = Image.frombytes("RGB", (5, 3), bytes(range(45)))
NUMBERS = st.integers(-(2**200), 2**200) | st.floats(allow_nan=False, allow_infinity=False)


def _joined(text: str) -> str:
    """Without two halves of one character side by side, the one kind of text that a record refuses."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


TEXTS = st.one_of(
    st.text(st.characters(), max_size=60).map(_joined),  # surrogates, NUL and line breaks too
    st.lists(st.sampled_from(["a cat", "(red:1.2)", "\n", ",", ": ", "Negative prompt:", "Steps: 20", "é", "猫", "😀"]))
    .map("".join)
    .filter(lambda text: len(text) < 200),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
USUAL = st.fixed_dictionaries(
    {
        "sampler": st.sampled_from(["ddim", "euler", "Euler a", "dpm++_2m", "DPM++ 2M Karras", "lcm", "mine"]),
        "spacing": st.sampled_from([None, "karras", "trailing", "lcm"]),
        "steps": st.integers(1, 1000),
        "guidance": st.floats(0, 30),
        "width": st.integers(1, 4096),
        "height": st.integers(1, 4096),
    }
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """A record; its drawing has the usual keys and some that nobody knows."""
    file = st.fixed_dictionaries({"name": TEXTS, "sha256": st.just(HASH)})
    return Record.checked(
        {
            "prompt": draw(TEXTS | st.integers() | st.none()),
            "negative": draw(TEXTS | st.integers() | st.none()),
            "seed": draw(st.integers(0, 2**64 - 1)),
            "drawing": draw(st.dictionaries(TEXTS, VALUES, max_size=3)) | draw(USUAL),
            "inputs": draw(st.dictionaries(TEXTS, file, max_size=2)),
            "model": {"name": draw(TEXTS), "source": draw(TEXTS), "hash": draw(st.sampled_from([None, HASH]))},
            "loading": draw(st.dictionaries(TEXTS, VALUES, max_size=2)),
            "versions": {"ldm": "0.1.0", **draw(st.dictionaries(TEXTS, TEXTS, max_size=2))},
            "pixels": HASH,
            "cost": {
                "seconds": draw(st.floats(0, 1e9)),
                "peak_memory": draw(st.none() | st.floats(0, 1e9)),
                "flops": draw(st.none() | st.integers(0, 2**64 - 1)),
            },
        }
    )


def example(**changes: object) -> Record:
    """One plain record."""
    values = {
        "prompt": "a red cat",
        "seed": 42,
        "drawing": {
            "sampler": "dpm++_2m",
            "spacing": "karras",
            "steps": 20,
            "guidance": 7.5,
            "width": 64,
            "height": 48,
        },
        "model": {"name": "tiny", "source": "models/tiny", "hash": HASH},
        "loading": {"device": "cpu", "dtype": "float32", "attention": "sdpa"},
        "versions": {"ldm": "0.1.0", "torch": "2.10"},
        "pixels": HASH,
        "cost": {"seconds": 1.5, "peak_memory": 100.0, "flops": 10**12},
    }
    return Record.checked({**values, **changes})


def write_chunk(path: Path, text: str, name: str = "ldm") -> None:
    chunks = PngInfo()
    chunks.add_text(name, text, zip=True)
    PICTURE.save(path, pnginfo=chunks)
