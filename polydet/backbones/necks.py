"""Necks: from a backbone's maps to the pyramid a detector reads.  Each wraps its backbone, as Detectron2's FPN."""

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn


class ChannelMapper(Backbone):
    """1x1 conv + norm per map, further levels by stride-2 3x3 convs (Deformable-DETR, DINO).

    The first further level reads the backbone's last map, each later one the level before it.  Maps come out as
    ``p{k}`` at stride ``2**k``, from high to low resolution.

    Args:
        bottom_up: the backbone.
        in_features: its maps, from high to low resolution.
        out_channels: channels of every level.
        num_outs: number of levels; default one per map.
        norm: Detectron2 norm name; ``"GN"`` has 32 groups.  Empty for none.
        kernel_size: of the lateral convs.
        bias: of the convs: with one in the repositories of the DETRs, without before a norm in mmdetection (Co-DETR).
        size_divisibility: batches are padded to multiples of it; 0: to their largest image.

    Raises:
        ValueError: fewer levels than maps, or maps of the same stride (of a dilated backbone).
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str] = ("res3", "res4", "res5"),
        out_channels: int = 256,
        num_outs: int | None = None,
        norm: str = "GN",
        kernel_size: int = 1,
        bias: bool = True,
        size_divisibility: int = 0,
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        self.bottom_up = bottom_up
        self._size_divisibility = size_divisibility
        self.in_features = list(in_features)
        num_outs = len(self.in_features) if num_outs is None else num_outs
        if num_outs < len(self.in_features):
            raise ValueError(f"num_outs={num_outs} is less than the {len(self.in_features)} maps that come in")
        self.lateral = nn.ModuleList(
            _conv_norm(shapes[f].channels, out_channels, kernel_size, 1, norm, bias) for f in self.in_features
        )
        last = shapes[self.in_features[-1]]
        extra = num_outs - len(self.in_features)
        self.extra = nn.ModuleList(
            _conv_norm(last.channels if i == 0 else out_channels, out_channels, 3, 2, norm, bias) for i in range(extra)
        )
        strides = [shapes[f].stride for f in self.in_features] + [last.stride * 2 ** (i + 1) for i in range(extra)]
        if len(set(strides)) < len(strides):
            raise ValueError(f"maps {self.in_features} have strides {strides}: levels of the same stride share a name")
        self._out_features = [f"p{stride.bit_length() - 1}" for stride in strides]
        self._out_feature_strides = dict(zip(self._out_features, strides))
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """``image [B, 3, H, W]`` -> ``{p{k}: [B, out_channels, ceil(H / 2**k), ceil(W / 2**k)]}``."""
        features = self.bottom_up(image)
        maps = [lateral(features[f]) for lateral, f in zip(self.lateral, self.in_features)]
        for i, layer in enumerate(self.extra):
            maps.append(layer(features[self.in_features[-1]] if i == 0 else maps[-1]))
        return dict(zip(self._out_features, maps))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level."""
        return {
            f: ShapeSpec(channels=self._out_feature_channels[f], stride=self._out_feature_strides[f])
            for f in self._out_features
        }

    @property
    def size_divisibility(self) -> int:
        """As given; with 0 any size will do, odd maps round up."""
        return self._size_divisibility


def _conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int, norm: str, bias: bool) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    layers: list[nn.Module] = [conv]
    if norm:
        layers.append(get_norm(norm, out_channels))
    return nn.Sequential(*layers)


class ExtraLevels(nn.Module):
    """P6 and P7 for Detectron2's FPN: stride-2 3x3 convs, each with the pyramid's norm.

    Args:
        in_channels: of the map that P6 reads.
        out_channels: of both.
        in_feature: that map, one of the backbone's or the pyramid's.
        norm: Detectron2 norm name, empty for none.
        relu: whether P7 reads P6 through a ReLU (Detectron2, CenterNet2, FCOS) or as it is (mmdetection's RetinaNet).
    """

    num_levels = 2

    def __init__(
        self, in_channels: int, out_channels: int, in_feature: str = "res5", norm: str = "", relu: bool = True
    ) -> None:
        super().__init__()
        self.in_feature, self.relu = in_feature, relu
        self.p6, self.p7 = (
            Conv2d(channels, out_channels, 3, 2, 1, bias=not norm, norm=get_norm(norm, out_channels))
            for channels in (in_channels, out_channels)
        )
        for conv in (self.p6, self.p7):
            c2_xavier_fill(conv)

    def forward(self, source: Tensor) -> list[Tensor]:
        """``source [B, in_channels, H, W]`` -> P6 ``[B, out_channels, ceil(H / 2), ceil(W / 2)]``, P7 half of that."""
        p6 = self.p6(source)
        return [p6, self.p7(F.relu(p6) if self.relu else p6)]


def fpn_p3_p7(
    bottom_up: Backbone,
    out_channels: int = 256,
    in_features: Sequence[str] = ("res3", "res4", "res5"),
    norm: str = "",
) -> FPN:
    """Detectron2's FPN with P6 (stride-2 conv on P5) and P7 (stride-2 conv on relu(P6)): CenterNet2, RetinaNet."""
    return FPN(
        bottom_up=bottom_up,
        in_features=list(in_features),
        out_channels=out_channels,
        norm=norm,
        top_block=ExtraLevels(out_channels, out_channels, "p5", norm),
    )


def fpn(bottom_up: Backbone, out_channels: int = 256, coarsest: int = 6, norm: str = "") -> FPN:
    """Detectron2's FPN over all maps of a backbone that ends at stride 32, up to ``p{coarsest}``.

    P6 alone is a pooled P5 (Faster R-CNN's); with P7 both are convs (CenterNet2's and RetinaNet's).

    Raises:
        ValueError: ``coarsest`` other than 5, 6 and 7.
    """
    if coarsest not in (5, 6, 7):
        raise ValueError(f"coarsest must be 5, 6 or 7, not {coarsest}")
    top = {5: None, 6: LastLevelMaxPool(), 7: LastLevelP6P7(out_channels, out_channels, in_feature="p5")}[coarsest]
    return FPN(
        bottom_up=bottom_up,
        in_features=list(bottom_up.output_shape()),
        out_channels=out_channels,
        norm=norm,
        top_block=top,
    )
