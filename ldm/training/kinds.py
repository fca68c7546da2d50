"""Which kinds of runs there are: what the ``task`` of a configuration may be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ldm.training.clip_settings import ClipRun
from ldm.training.gan_settings import GanRun
from ldm.training.lcm_settings import LcmRun
from ldm.training.settings import DiffusionRun, VAERun

Run = DiffusionRun | VAERun | ClipRun | LcmRun | GanRun
AnyRun = Annotated[Run, Field(discriminator="task")]
