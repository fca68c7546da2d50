"""What all tests share: one thread, because several test processes on few cores slow each other down."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
