"""The text that web UIs of the A1111 family write into their pictures, and that most tools read.

    {prompt}
    Negative prompt: {negative}
    Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 64x64, ...

The second line is there only when there is a negative prompt; values with a comma, a colon or a line break are JSON
strings. The form is lossy: a line of the prompt that begins with "Negative prompt:" ends it, lines lose the spaces
around them, and a setting without a name there is left out. What ldm itself reads back is the record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from ldm.metadata.plain import Asked
from ldm.metadata.record import Record

# A1111's names beside ours and our aliases; a sampler that it does not have goes by our name
SAMPLERS = {
    "DDPM": ("ddpm", "ddpm_large"),
    "DDIM": ("ddim",),
    "PLMS": ("plms", "pndm"),
    "Euler": ("euler", "k_euler"),
    "Euler a": ("euler_a", "euler_ancestral", "k_euler_a"),
    "Heun": ("heun", "k_heun"),
    "DPM++ 2M": ("dpm++_2m", "dpm_solver++", "k_dpmpp_2m"),
    "DPM++ 2M SDE": ("dpm++_2m_sde", "k_dpmpp_2m_sde"),
    "LCM": ("lcm",),
}
SCHEDULES = {  # our spacings of times, and the schedule there that lays the same ones
    "leading": "DDIM",
    "linspace": "Uniform",
    "trailing": "SGM Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "ays": "Align Your Steps",
    "ays_xl": "Align Your Steps",
    "beta": "Beta",
}
_OTHER = {  # their names of further settings; each is written when it differs from the value there that does nothing
    "Variation seed": ("variation_seed", None),
    "Variation seed strength": ("variation_strength", None),
    "Denoising strength": ("strength", None),
    "Clip skip": ("clip_skip", 1),
    "Eta DDIM": ("eta", 0),
}
_NEGATIVE = "Negative prompt:"
_KEY = re.compile(r"\w[\w \-/()]*")
_QUOTE = re.compile(r'\s*"')
_FEWEST = 3  # settings that a last line has to have, or it belongs to the prompt


class Parameters(NamedTuple):
    """What a text of this form says; values are as they are written there."""

    prompt: str
    negative: str
    settings: dict[str, str]


def parameters_text(record: Record) -> str:
    """A record in this form. NUL and lone surrogates, which no file holds as text, become U+FFFD."""
    negative = _asked(record.negative)
    pairs = {key: value for key, value in _settings(record).items() if value is not None}
    settings = ", ".join(f"{key}: {_quoted(_shown(value))}" for key, value in pairs.items())
    lines = [_prompt(record), *([f"{_NEGATIVE} {negative}"] if negative else []), settings]
    return re.sub("[\0\ud800-\udfff]", "\ufffd", "\n".join(lines).strip())


def _prompt(record: Record) -> str:
    """With the LoRAs as tags, as those programs write and read them."""
    found = record.loading.get("loras")
    pairs = [pair for pair in found if _is_lora(pair)] if isinstance(found, list) else []
    tags = [f"<lora:{PurePath(file).stem}:{weight:g}>" for file, weight in pairs]
    return " ".join([_asked(record.prompt).strip(), *tags]) if tags else _asked(record.prompt)


def _is_lora(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], float | int)


def _asked(condition: Asked) -> str:
    return "" if condition is None else str(condition)


def _settings(record: Record) -> dict[str, Any]:
    drawing, model = record.drawing, record.model
    sampler, schedule = _sampler_and_schedule(drawing.get("sampler"), drawing.get("spacing"))
    sized = "width" in drawing and "height" in drawing
    others = {name: drawing.get(key) for name, (key, idle) in _OTHER.items() if drawing.get(key) != idle}
    return {
        "Steps": drawing.get("steps"),
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": drawing.get("guidance"),
        "Seed": record.seed,
        "Size": f"{drawing['width']}x{drawing['height']}" if sized else None,
        "Model hash": model.hash[:10] if model.hash else None,
        "Model": re.sub("[,:]", "", model.name),
        **others,
        **_second_pass(drawing),
        "RNG": "CPU",
        "Version": f"ldm {record.versions.get('ldm', '')}".strip(),
    }


def _second_pass(drawing: Mapping[str, Any]) -> dict[str, Any]:
    if drawing.get("hires_scale", 1) == 1:
        return {}
    return {
        "Denoising strength": drawing.get("hires_strength"),
        "Hires upscale": drawing["hires_scale"],
        "Hires steps": drawing.get("hires_steps"),
        "Hires upscaler": str(drawing.get("hires_upscaler", "")).capitalize() or None,
    }


def _sampler_and_schedule(sampler: Any, spacing: Any) -> tuple[str | None, str | None]:
    """Their names; a name such as ``DPM++ 2M Karras`` holds both."""
    if sampler is None:
        return None, SCHEDULES.get(str(spacing))
    plain = _plain(str(sampler))
    for ending in ("", *SCHEDULES):
        if plain.endswith(ending) and plain.removesuffix(ending) in _NAMES:
            return _NAMES[plain.removesuffix(ending)], SCHEDULES.get(str(spacing or ending))
    return str(sampler), SCHEDULES.get(str(spacing))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))


_NAMES = {_plain(name): theirs for theirs, ours in SAMPLERS.items() for name in (theirs, *ours)}


def _shown(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search("[,:\n]", value) else value


def parse_parameters(text: str) -> Parameters:
    """Read a text of this form as A1111 does; what is no such text is all prompt."""
    lines = [line.strip() for line in text.strip().split("\n")]
    settings = dict(_pairs(lines[-1]))
    if len(settings) < _FEWEST:
        settings = {}
    else:
        lines.pop()
    start = next((k for k, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = [line.removeprefix(_NEGATIVE).strip() for line in lines[start:]]
    return Parameters("\n".join(lines[:start]), "\n".join(negative), settings)


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """``Key: value`` between commas, in one pass; a value in quotes may hold commas."""
    place = 0
    while (colon := line.find(":", place)) >= 0:
        key = line[place:colon].rpartition(",")[2].strip()
        value, end = _value(line, colon + 1)
        place = end + 1
        if _KEY.fullmatch(key):
            yield key, value


def _value(line: str, start: int) -> tuple[str, int]:
    """The value that begins at ``start``, after spaces, and where the comma behind it is."""
    if quote := _QUOTE.match(line, start):
        try:
            value, quoted = json.JSONDecoder().raw_decode(line, quote.end() - 1)
            comma = line.find(",", quoted)
            return value, len(line) if comma < 0 else comma
        except ValueError:
            pass
    comma = line.find(",", start)
    end = len(line) if comma < 0 else comma
    return line[start:end].strip(), end
