"""Simple feature pyramid: several levels from the one map of a plain ViT (ViTDet, arXiv:2203.16527)."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class SimpleFeaturePyramid(Backbone):
    """Each level is made from the last map alone: nearest upsampling and 3x3 convolutions for the finer ones, max
    pooling for the next coarser one, a stride-2 convolution more for each after it; then 1x1 and 3x3 convolutions.

    Args:
        bottom_up: a backbone with one map.
        out_channels: of every level.
        strides: of the levels, pixels; each a power of two times or over the map's stride.
        activated: Co-DETR's released pyramid: convolutions without bias, a norm and GELU after each of them but the
            last, overlapping pooling. False: ViTDet's.
        size_divisibility: batches are padded to multiples of it; None: of the backbone's. It counts: positions of a
            ViT's global blocks span the padded image.

    Raises:
        ValueError: a backbone with several maps, strides that are not such, or a divisor that is no multiple of the
            backbone's.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        out_channels: int = 256,
        strides: tuple[int, ...] = (4, 8, 16, 32, 64),
        activated: bool = False,
        size_divisibility: int | None = None,
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        if len(shapes) != 1:
            raise ValueError(f"a simple feature pyramid stands on one map, the backbone gives {list(shapes)}")
        (self.in_feature, shape), *_ = shapes.items()
        assert shape.channels is not None and shape.stride is not None
        own = bottom_up.size_divisibility
        self._size_divisibility = own if size_divisibility is None else size_divisibility
        if own and self._size_divisibility % own:
            raise ValueError(f"size_divisibility={size_divisibility} is no multiple of the backbone's {own}")
        self.bottom_up = bottom_up
        self.strides = tuple(strides)
        self.out_channels = out_channels
        self.scales = nn.ModuleList(
            _scale(shape.channels, shape.stride, s, out_channels, activated) for s in self.strides
        )
        self._out_features = [f"p{s.bit_length() - 1}" for s in self.strides]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """``image [B, 3, H, W]`` -> ``{p{k}: [B, out_channels, H / 2**k, W / 2**k]}``."""
        feature = self.bottom_up(image)[self.in_feature]
        return {name: scale(feature) for name, scale in zip(self._out_features, self.scales)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level."""
        return {
            name: ShapeSpec(channels=self.out_channels, stride=s) for name, s in zip(self._out_features, self.strides)
        }

    @property
    def size_divisibility(self) -> int:
        """As given, else that of the backbone."""
        return self._size_divisibility


def _scale(channels: int, stride: int, target: int, out_channels: int, activated: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    while stride > target:
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels // 2, 3, padding=1, bias=not activated)]
        channels, stride = channels // 2, stride // 2
        if stride > target or activated:
            layers += [LayerNorm2d(channels), nn.GELU()]
    if stride < target:
        layers.append(nn.MaxPool2d(3, 2, padding=1) if activated else nn.MaxPool2d(2, ceil_mode=True))
        stride *= 2
    while stride < target:
        layers += [nn.Conv2d(channels, channels, 3, 2, 1, bias=not activated), LayerNorm2d(channels), nn.GELU()]
        stride *= 2
    if stride != target:
        raise ValueError(f"a level at stride {target} cannot be made from the backbone's map by factors of two")
    layers += [nn.Conv2d(channels, out_channels, 1, bias=False), LayerNorm2d(out_channels)]
    layers += [nn.GELU()] if activated else []
    layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), LayerNorm2d(out_channels)]
    return nn.Sequential(*layers)
