"""Who imports whom, and what is never imported for a command that has no use for it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import written

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ldm"
RULE = (
    (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## The import rule")[1].split("A module imports")[0]
)
LEVELS = {name: k for k, names in enumerate(RULE.split("<-")) for name in re.findall(r"\w+", names)}
NEVER_TO_DRAW = {"diffusers", "datasets", "accelerate", "matplotlib", "gradio", "peft", "mlxtend", "torchmetrics"}
HEAVY = {"torch", "numpy", "transformers", "yaml", "PIL", "tqdm", "rich", "safetensors", "tokenizers"}


def part(module: str) -> str:
    """``ldm.models.unet`` and ``ldm.models`` are of the part ``models``; ``ldm`` itself is of none."""
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> list[str]:
    """The modules of ldm that a file imports anywhere in it, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide who imports whom"
            assert node.module is not None
            whole = node.module == "ldm"
            found += [f"ldm.{alias.name}" for alias in node.names] if whole else [node.module]
    return [name for name in found if name.split(".")[0] == "ldm"]


MODULES = {
    "ldm." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path not in (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
}


def test_the_rule_names_every_part() -> None:
    assert {part(name) for name in MODULES} == set(LEVELS)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    for other in imported(MODULES[name]):
        mine, theirs = part(name), part(other)
        # `import ldm` itself is free: it holds the version, and imports nothing until asked for a pipeline
        allowed = theirs in ("", mine) or LEVELS[theirs] <= LEVELS[mine]
        assert allowed, f"{name} imports {other}, which stands to its right in ARCHITECTURE.md"


def modules_after(code: str, cwd: Path, *arguments: str) -> set[str]:
    """The top-level packages that a fresh interpreter has imported once ``code`` has run."""
    told = "import sys; print('IMPORTED', *sorted({name.split('.')[0] for name in sys.modules}))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{told}", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("IMPORTED ")[2].split())


COMMAND_LINE = """
from ldm.cli import app
try:
    app()
except SystemExit as ended:
    assert not ended.code, ended.code
"""


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["train", "-h"], ["data", "check", "-h"]])
def test_help_waits_for_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    found = modules_after(COMMAND_LINE, tmp_path, *arguments)
    assert "typer" in found
    assert not found & (HEAVY | NEVER_TO_DRAW)


def test_importing_ldm_imports_nothing_else(tmp_path: Path) -> None:
    assert not modules_after("import ldm; ldm.__version__", tmp_path) & (HEAVY | NEVER_TO_DRAW | {"typer"})
    assert "torch" in modules_after("import ldm; ldm.load", tmp_path)


def test_drawing_digits_imports_what_it_needs(tmp_path: Path) -> None:
    place = str(written("label", tmp_path / "model"))
    found = modules_after(COMMAND_LINE, tmp_path, "generate", "3", "--model", place, "-o", "3.png")
    assert (tmp_path / "3.png").is_file()
    assert not found & (NEVER_TO_DRAW | {"transformers", "scipy", "rich"})


def test_drawing_from_a_prompt_adds_only_what_transformers_wants(tmp_path: Path) -> None:
    place = str(written("text", tmp_path / "model"))
    found = modules_after(COMMAND_LINE, tmp_path, "generate", "two", "--model", place, "-o", "two.png")
    assert (tmp_path / "two.png").is_file()
    theirs = modules_after("from transformers import CLIPTextModel, CLIPTokenizer", tmp_path)
    assert not theirs & {"diffusers", "datasets", "matplotlib"}  # else the next line would say nothing of them
    assert not (found - theirs) & NEVER_TO_DRAW
