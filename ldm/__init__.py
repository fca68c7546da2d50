"""Latent text-to-image diffusion that one engineer can read in a day."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Studio", "__version__", "load"]

if TYPE_CHECKING:
    from ldm.recorded import load
    from ldm.studio import Studio


def __getattr__(name: str) -> Any:
    # Torch and transformers take seconds to import; `ldm --help` and `import ldm` do not wait for them.
    if name in ("Studio", "load"):
        from ldm import recorded, studio

        return recorded.load if name == "load" else studio.Studio
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")
