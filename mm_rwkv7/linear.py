"""The linear maps of the language model."""

from torch import Tensor, nn

from mm_rwkv7.ops import linear


class Linear(nn.Linear):
    """A linear map without bias, whose product is the fastest that the device has."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)
