"""EVA-02 ViT as a detection backbone: timm's blocks with windowed attention and a few global ones (ViTDet)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polydet.backbones.timm_backbone import _create


def partition(x: Tensor, window: int) -> Tensor:
    """``[B, H, W, C]`` to windows ``[B * n, window * window, C]``, zero-padded below and to the right."""
    batch, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.view(batch, rows, window, columns, window, channels).transpose(2, 3)
    return x.reshape(-1, window * window, channels)


def merge(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `partition`: back to ``[B, H, W, C]`` without the padding."""
    rows, columns = -(-height // window), -(-width // window)
    x = windows.view(-1, rows, columns, window, window, windows.shape[-1]).transpose(2, 3)
    return x.reshape(-1, rows * window, columns * window, windows.shape[-1])[:, :height, :width]


class EvaViT(Backbone):
    """One map ``res4``-like at the patch's stride, named ``last``.

    Rotary positions run over each window in windowed blocks; in global blocks over the image's own height and width, or
    over a square of `canvas` pixels. Both are rescaled to the pre-training grid, as timm does. Only the convolution of
    the patches is changed, resized bicubically where `patch_size` differs from the weights'.

    Args:
        name: timm model, e.g. ``eva02_large_patch14_448.mim_m38m_ft_in22k_in1k``.
        patch_size: stride of the map.
        window: side of the windows in patches.
        global_blocks: indices of blocks that attend over the whole image.
        canvas: side in pixels that the global positions are scaled for, where all images fill a canvas (the released
            LVIS model); None: each image's own sides (the released COCO model).
        out_norm: a LayerNorm on the map (the released models).
        weights: see `TimmBackbone`.
        checkpointing: recompute each block's activations in the backward pass.
    """

    def __init__(
        self,
        name: str,
        patch_size: int = 16,
        window: int = 16,
        global_blocks: Sequence[int] = (2, 5, 8, 11, 14, 17, 20, 23),
        canvas: int | None = 1536,
        weights: str | None = "timm",
        drop_path_rate: float = 0.0,
        checkpointing: bool = False,
        out_norm: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        kwargs = {
            "dynamic_img_size": True,
            "num_classes": 0,
            "drop_path_rate": drop_path_rate,
            **(model_kwargs or {}),
        }
        body: Any = _create(name, weights, kwargs)
        unknown = [i for i in global_blocks if not 0 <= i < len(body.blocks)]
        if unknown:
            raise ValueError(f"{name!r} has {len(body.blocks)} blocks; there are no blocks {unknown}")
        self.patch_size, self.window, self.canvas = patch_size, window, canvas
        self.global_blocks, self.checkpointing = frozenset(global_blocks), checkpointing
        resize_patches(body, patch_size)
        self.prefix = int(body.num_prefix_tokens)
        body.cls_token = None
        body.norm = body.fc_norm = nn.Identity()
        for block in body.blocks:
            block.attn.num_prefix_tokens = 0
        self.body = body
        self.out_norm = nn.LayerNorm(int(body.embed_dim), eps=1e-5) if out_norm else None
        self._out_features = ["last"]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """``image [B, 3, H, W]`` (normalised) -> ``{"last": [B, C, ceil(H / patch), ceil(W / patch)]}``."""
        body: Any = self.body
        patch = self.patch_size
        image = F.pad(image, (0, -image.shape[-1] % patch, 0, -image.shape[-2] % patch))
        x = body.patch_embed.proj(image).permute(0, 2, 3, 1)
        height, width = x.shape[1:3]
        old = body.patch_embed.grid_size
        position = resample_abs_pos_embed(
            body.pos_embed, [height, width], list(old), self.prefix, antialias=self.out_norm is None
        )
        x = x + position[:, self.prefix :].view(1, height, width, -1)
        windowed = body.rope.get_embed([self.window, self.window])
        whole = self._global_positions(height, width)
        for index, block in enumerate(body.blocks):
            args = (block, x, whole, 0) if index in self.global_blocks else (block, x, windowed, self.window)
            if self.checkpointing and self.training:
                x = checkpoint(run_block, *args, use_reentrant=False)
            else:
                x = run_block(*args)
        if self.out_norm is not None:
            x = self.out_norm(x)
        return {"last": x.permute(0, 3, 1, 2).contiguous()}

    def _global_positions(self, height: int, width: int) -> Tensor:
        body: Any = self.body
        if self.canvas is None:
            return body.rope.get_embed([height, width])
        side = max(height, width, self.canvas // self.patch_size)
        rope = body.rope.get_embed([side, side]).view(side, side, -1)
        return rope[:height, :width].reshape(height * width, -1)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of the map."""
        body: Any = self.body
        return {"last": ShapeSpec(channels=int(body.embed_dim), stride=self.patch_size)}

    @property
    def size_divisibility(self) -> int:
        """Input sides must be multiples of the patch."""
        return self.patch_size


@torch.no_grad()
def resize_patches(body: Any, size: int) -> None:
    """Give a timm ViT another patch size; the kernel is resized bicubically."""
    old = body.patch_embed.proj
    if old.kernel_size[0] == size:
        return
    new = nn.Conv2d(old.in_channels, old.out_channels, size, stride=size, bias=old.bias is not None)
    if old.weight.device.type != "meta":
        new.weight.copy_(F.interpolate(old.weight.float(), size=(size, size), mode="bicubic", align_corners=False))
        if new.bias is not None:
            new.bias.copy_(old.bias)
    body.patch_embed.proj = new


def run_block(block: Any, x: Tensor, rope: Tensor, window: int) -> Tensor:
    """One EVA block on ``[B, H, W, C]``; `window` 0 attends over the whole map.

    Padding of the windows is zero after the norm, so that it brings no bias.
    """
    height, width = x.shape[1:3]
    attended = block.norm1(x)
    attended = partition(attended, window) if window else attended.flatten(1, 2)
    attended = block.attn(attended, rope=rope)
    attended = merge(attended, window, height, width) if window else attended.view(x.shape)
    if block.gamma_1 is not None:
        attended = block.gamma_1 * attended
    x = x + block.drop_path1(attended)
    out = block.mlp(block.norm2(x))
    if block.gamma_2 is not None:
        out = block.gamma_2 * out
    return x + block.drop_path2(out)
