"""Configuration files: YAML that holds data only, read into frozen settings, with every mistake named at once.

YAML is read by the rules of its version 1.2: ``1e-4`` is a number, ``off`` is a word, ``010`` is ten.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from ldm.data.guess import guess
from ldm.errors import UserError
from ldm.schema import explain_all
from ldm.training.kinds import AnyRun, Run

_YAML = "tag:yaml.org,2002:"
_DISCRIMINATORS = ("task", "compare", "kind", "source")  # keys that tell the members of a union apart
# What a plain word means in YAML 1.2, section 10.3.2; PyYAML knows 1.1. The merge key is 1.1's and often used.
_WORDS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the words of YAML 1.2, and no key twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _YAML + "merge"]
        for i, key in enumerate(keys):
            if key.value in [earlier.value for earlier in keys[:i]]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class _Dumper(yaml.SafeDumper):
    """Quotes what :class:`_Loader` would not read as a string."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def represent_text(self, text: str) -> Any:
        # Unicode's own line breaks are escaped in double quotes only; elsewhere they would be read as spaces.
        style = '"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
        return self.represent_scalar(_YAML + "str", text, style=style)


for _name, _rule, _first in _WORDS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_YAML + _name, re.compile(f"^(?:{_rule})$"), [c.strip("\0") for c in _first])
_Loader.add_constructor(_YAML + "int", _Loader.construct_yaml_int)
_Dumper.add_representer(str, _Dumper.represent_text)


def parse_yaml(text: str, place: str) -> Any:
    """Read YAML.

    Raises:
        UserError: it is not YAML, or says a key twice; the message has ``place`` and the line.
    """
    loader = None
    try:
        loader = _Loader(text)  # finds characters that no YAML may hold
        loader.name = place
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{place} is not YAML: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()


def load_config(path: Path, overrides: Sequence[str] = ()) -> Run:
    """Read a training configuration.

    Args:
        path: a YAML file.
        overrides: ``dotted.key=value``, the value in YAML.

    Raises:
        UserError: the file is missing, no YAML, or says what it may not; all mistakes are listed.
    """
    return validate(read_tree(path, overrides), str(path))


def read_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file as plain data, with values of its keys replaced; see :func:`load_config`.

    Raises:
        UserError: the file is missing or no YAML, or an override is none.
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
    return tree


def validate(tree: dict[str, Any], place: str, kinds: Any = AnyRun) -> Any:
    """Turn a tree of plain data into settings of one of ``kinds``; see :func:`load_config`."""
    adapter: TypeAdapter[Any] = TypeAdapter(kinds)
    try:
        tree = _with_sources(tree, place)
    except RecursionError as error:
        raise UserError(
            f"{place}: a value holds itself: an alias (*) stands within what its anchor (&) names"
        ) from error
    try:
        # By way of JSON, whose strict rules take a list for a tuple and text for a path, and turn nothing else:
        # '20' is no number, 1 no truth and 2.0 no count.
        return adapter.validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        lines = explain_all([(item, *_place(item, tree, kinds)) for item in error.errors()])
        plural = "mistakes" if len(lines) > 1 else "mistake"
        raise UserError(f"{place}: {len(lines)} {plural}\n" + "\n".join(f"  {line}" for line in lines)) from error
    except TypeError as error:
        raise UserError(f"{place} holds more than text, numbers, lists and groups of keys: {error}") from error


def _with_sources(node: Any, place: str) -> Any:
    """The tree with settings in place of every source of data that is named by its place alone: ``data: FOLDER``."""
    if isinstance(node, list):
        return [_with_sources(item, place) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _with_sources(value, place) for key, value in node.items()}
    if isinstance(node.get("data"), str):
        try:
            found["data"] = guess(node["data"]).model_dump(mode="json")
        except UserError as error:
            raise UserError(f"{place}: data: {error}") from error
    return found


def dump_config(settings: BaseModel) -> str:
    """The settings as YAML, defaults included; :func:`load_config` reads it back equal."""
    return yaml.dump(settings.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


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


def _place(error: Any, tree: dict[str, Any], kinds: Any) -> tuple[str, list[str]]:
    """The dotted key that the user wrote, and, for one that is unknown, those there are."""
    path = _without_tags(error["loc"], tree)
    allowed = _allowed_keys(path[:-1], tree, kinds) if error["type"] == "extra_forbidden" else []
    return ".".join(str(part) for part in path), allowed


def _without_tags(loc: Sequence[Any], tree: dict[str, Any]) -> tuple[Any, ...]:
    """Drop the names of union members that pydantic puts between the keys of a location."""
    kept: list[Any] = []
    node: Any = tree
    for part in (
        loc[1:] if loc and loc[0] in (tree.get("task"), tree.get("compare")) else loc
    ):  # the first is the kind's
        if isinstance(node, dict) and part not in node and part in [node.get(tag) for tag in _DISCRIMINATORS]:
            continue
        if isinstance(part, str) and not isinstance(node, dict):
            continue  # inside a value: the name of one of its types
        kept.append(part)
        if isinstance(node, dict):
            node = node.get(part)
        else:
            node = node[part] if isinstance(node, list) and isinstance(part, int) and part < len(node) else None
    return tuple(kept)


def _allowed_keys(path: Sequence[Any], tree: dict[str, Any], kinds: Any) -> list[str]:
    """The keys that the settings at ``path`` have, following the tags that ``tree`` chose."""
    node: Any = tree
    models = _models_in(kinds)
    for part in path:
        if isinstance(part, str):  # a number is a place in a list, whose annotation tells of its items
            models = _models_in(_chosen(models, node).model_fields[part].annotation)
        node = node[part]
    return list(_chosen(models, node).model_fields)


def _chosen(models: Sequence[Any], node: dict[str, Any]) -> Any:
    """Of the members of a union, the one that the tag in ``node`` names; the first where none does."""
    for model in models:
        for tag in _DISCRIMINATORS:
            field = model.model_fields.get(tag)
            if field and node.get(tag) in typing.get_args(field.annotation):
                return model
    return models[0]


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, tuple):
        return [m for part in typing.get_args(annotation) for m in _models_in(part)]
    return []
