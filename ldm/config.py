"""Configuration files: YAML that holds data only, read into frozen settings, with every mistake named at once.

YAML is read by its 1.2 core rules where people expect them: ``1e-4`` is a number, ``off`` is a word.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from ldm.errors import UserError
from ldm.schema import explain
from ldm.training.settings import AnyRun, ClipRun, DiffusionRun, VAERun


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers and booleans of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.I), list("tTfF"))
_FLOAT = re.compile(r"^[-+]?(?:(?:\.\d+|\d+(?:\.\d*)?)(?:e[-+]?\d+)?|\.inf|\.nan)$", re.I)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse_yaml(text: str, place: str) -> Any:
    """Read YAML.

    Raises:
        UserError: it is not YAML; the message has ``place`` and the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{place} is not YAML: {error}") from error


def load_config(path: Path, overrides: Sequence[str] = ()) -> DiffusionRun | VAERun | ClipRun:
    """Read a training configuration.

    Args:
        path: a YAML file.
        overrides: ``dotted.key=value``, the value in YAML.

    Raises:
        UserError: the file is missing, no YAML, or says what it may not; all mistakes are listed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path} should hold keys and values, found {type(tree).__name__}")
    for override in overrides:
        _override(tree, override)
    return validate(tree, str(path))


def validate(tree: dict[str, Any], place: str) -> DiffusionRun | VAERun | ClipRun:
    """Turn a tree of plain data into settings; see :func:`load_config`."""
    adapter: TypeAdapter[Any] = TypeAdapter(AnyRun)
    try:
        return adapter.validate_python(tree)
    except ValidationError as error:
        lines = [_explain(item, tree) for item in error.errors()]
        plural = "mistakes" if len(lines) > 1 else "mistake"
        raise UserError(f"{place}: {len(lines)} {plural}\n" + "\n".join(f"  {line}" for line in lines)) from error


def dump_config(settings: BaseModel) -> str:
    """The settings as YAML, defaults included; :func:`load_config` reads it back equal."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{override!r} is no override: expected dotted.key=value, such as train.steps=100")
    *parents, last = key.strip().split(".")
    node: Any = tree
    for depth, name in enumerate(parents):
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise UserError(f"{override!r}: {'.'.join(parents[: depth + 1])} is a value, not a group of keys")
    node[last] = parse_yaml(value, f"the value of {key}")


def _explain(error: Any, tree: dict[str, Any]) -> str:
    """One pydantic error as a line, with the dotted key that the user wrote."""
    path = _without_tags(error["loc"], tree)
    dotted = ".".join(str(part) for part in path) or "(top level)"
    allowed = _allowed_keys(path[:-1], tree) if error["type"] == "extra_forbidden" else []
    return explain(error, dotted, allowed)


def _without_tags(loc: Sequence[Any], tree: dict[str, Any]) -> tuple[Any, ...]:
    """Drop the names of union members that pydantic puts between the keys of a location."""
    kept: list[Any] = []
    node: Any = tree
    for part in loc[1:] if loc and loc[0] == tree.get("task") else loc:  # the first is the task's
        if isinstance(node, dict) and part not in node and part == node.get("kind"):
            continue
        if isinstance(part, str) and not isinstance(node, dict):
            continue  # inside a value: the name of one of its types
        kept.append(part)
        reachable = isinstance(node, dict) and part in node
        reachable = reachable or (isinstance(node, list) and isinstance(part, int) and part < len(node))
        node = node[part] if reachable else None
    return tuple(kept)


def _allowed_keys(path: Sequence[Any], tree: dict[str, Any]) -> list[str]:
    """The keys that the settings at ``path`` have, following the tags that ``tree`` chose."""
    kinds = [DiffusionRun, VAERun, ClipRun]
    model: Any = next((k for k in kinds if _tag(k, "task") == tree.get("task")), DiffusionRun)
    node: Any = tree
    for part in path:
        node = node.get(part, {}) if isinstance(node, dict) else {}
        options = [m for m in _models_in(model.model_fields[part].annotation)]
        tagged = [m for m in options if _tag(m, "kind") == node.get("kind", "")]
        model = (tagged or options)[0]
    return list(model.model_fields)


def _tag(model: Any, key: str) -> Any:
    field = model.model_fields.get(key)
    return typing.get_args(field.annotation)[0] if field else None


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [m for part in typing.get_args(annotation) for m in _models_in(part)]
    return []
