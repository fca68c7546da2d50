"""The features of Inception v3 that the Fréchet Inception distance is defined by, as torch-fidelity computes them.

The network is the one of the TensorFlow graph of 2015, resizing included; its weights are in torch-fidelity's file
``weights-inception-2015-12-05-6726825d.pth``.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluate.features import named
from ldm.evaluate.fidelity import torch_fidelity
from ldm.evaluate.fitting import check_pictures, to_channels
from ldm.weights.absent import check_file
from ldm.weights.files import read_tensors
from ldm.weights.pickles import form_of, read_pickle

_LAYER = "2048"  # the pooled features, as in Heusel et al. 2017


class InceptionFeatures:
    """See ``ldm.evaluate.features.Features``.

    Args:
        path: torch-fidelity's file of weights, or the same tensors as safetensors.
        device: where to compute.
    """

    size = int(_LAYER)

    def __init__(self, path: Path, device: torch.device) -> None:
        network = torch_fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
        check_file(path)
        safe = form_of(path) == "safetensors"
        # only tensors are let through, so reading a pickle needs no leave
        tensors = read_tensors(path) if safe else read_pickle(path, allow_pickle=True).tensors
        # the class opens its file with pickle's full powers: it is given one that was just written here
        held = io.BytesIO()
        torch.save(dict(tensors), held)
        held.seek(0)
        try:
            self._network = network("inception-v3-compat", [_LAYER], held).to(device)
        except RuntimeError as error:
            first = " ".join(str(error).split())[:300]
            raise UserError(f"{path} does not hold the weights of torch-fidelity's Inception v3: {first}") from error
        self._device = device
        self.name = named(f"Inception v3, {_LAYER} features,", [path])

    @torch.inference_mode()
    def describe(self, images: Tensor) -> Tensor:
        check_pictures(images)
        return self._network(to_channels(images, 3).to(self._device))[0].float().cpu()
