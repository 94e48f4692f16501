"""What towers with one body share: it is built with or without memory, and pixels are checked and normalised.

Letters: I pictures, S side of a prepared picture, M tokens, E width of the features.
"""

import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from encoders.protocol import Encoder, Preprocess

Grid = tuple[int, int]  # rows, columns


class Tower(Encoder):
    """pixels (I, 3, S, S) uint8 -> features (I, M, E) of a library's model. Its weights are named `body.` and then as
    the library names them.

    `make(pretrained)` builds the model; with `pretrained` it fetches the published weights.
    """

    mean: Tensor
    std: Tensor
    preprocess: Preprocess

    def __init__(self, preprocess: Preprocess, make: Callable[[bool], Any], pretrained: bool) -> None:
        super().__init__()
        self.preprocess = preprocess
        for name in ("mean", "std"):
            value = torch.tensor(getattr(preprocess, name), device="cpu").view(3, 1, 1) * 255
            self.register_buffer(name, value, persistent=False)
        with torch.no_grad():
            shapes = _without_memory(make).to("meta").eval()
            size = preprocess.size
            features, self.grid = self.read(shapes, torch.zeros(1, 3, size, size, device="meta"))
        _, self.tokens, self.width = features.shape
        if torch.get_default_device().type == "meta":
            self.body = _without_memory(make)
        else:
            with torch.device("cpu"):
                self.body = make(pretrained)

    @abstractmethod
    def read(self, body: Any, pictures: Tensor) -> tuple[Tensor, Grid]:
        """Normalised pictures (I, 3, S, S) -> their features (I, M, E), and the grid in which they lie."""

    def forward(self, pixels: Tensor) -> Tensor:
        size = self.preprocess.size
        if pixels.shape[1:] != (3, size, size):
            raise ValueError(f"pixels have shape {tuple(pixels.shape)}, expected (I, 3, {size}, {size})")
        weights = next(self.body.parameters())
        return self.read(self.body, ((pixels - self.mean) / self.std).to(weights.dtype))[0]


def _without_memory(make: Callable[[bool], Any]) -> Any:
    """A model whose parameters are on the meta device, and whose buffers have values: some of those are computed and
    no checkpoint holds them."""
    here = threading.get_ident()  # torch calls the hook for every module that is built meanwhile, in any thread

    def forget(module: nn.Module, name: str, parameter: nn.Parameter) -> Any:
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad) if threading.get_ident() == here else None

    with register_module_parameter_registration_hook(forget), torch.device("cpu"):
        return make(False)


def read_layer(body: Any, pictures: Tensor, layer: int, **norm: bool) -> Any:
    """What `forward_intermediates` of timm and open_clip gives for one layer, counted from the end: -1."""
    if layer >= 0 or not hasattr(body, "forward_intermediates"):
        raise ValueError(f"{type(body).__name__} cannot be read at layer {layer}, expected layers from the end: -1")
    try:
        return body.forward_intermediates(
            pictures, indices=[layer], stop_early=True, output_fmt="NCHW", intermediates_only=True, **norm
        )
    except AssertionError as error:  # how timm says that there is no such layer
        raise ValueError(f"{type(body).__name__} has no layer {layer}: {error}") from error


def map_tokens(features: Tensor) -> tuple[Tensor, Grid]:
    """A feature map (I, E, rows, columns) -> its cells row by row (I, M, E), and their grid."""
    rows, columns = features.shape[2:]
    return features.flatten(2).transpose(1, 2), (rows, columns)
