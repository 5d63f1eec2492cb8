"""The category extraction module (METR, sec. 3.2): which categories are in an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polydet.detr import Auxiliary, Branch, Memory, Targets, TrainingStep
from polydet.detr.label_scope import stack_known
from polydet.layers import FeedForward, asymmetric_loss, xavier_reset

from .language import DotProduct


class ClassDecoderLayer(nn.Module):
    """Cross-attention and feed-forward, norms after the residuals: Query2Label's layer without self-attention."""

    def __init__(self, dim: int = 256, num_heads: int = 8, ffn_dim: int = 2048, dropout: float = 0.0) -> None:
        super().__init__()
        self.cross_attn = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        xavier_reset(self)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None) -> Tensor:
        """``[B, n, C]`` to the same; `key`, `value` ``[B, S, C]``, `padding_mask` ``[B, S]`` True on padding."""
        attended = self.cross_attn(x, key, value, key_padding_mask=padding_mask, need_weights=False)[0]
        x = self.norm1(x + self.dropout(attended))
        return self.norm2(x + self.ffn(x))


class CategoryExtraction(nn.Module):
    """Language embeddings look at the image and say whether their category is in it (eqs. 1 to 3).

    Args:
        num_layers: N_L.
        levels: indices of the pyramid levels that are looked at; None: all of them (the paper's F does not say).
    """

    def __init__(
        self,
        dim: int = 256,
        num_layers: int = 2,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        dropout: float = 0.0,
        levels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ClassDecoderLayer(dim, num_heads, ffn_dim, dropout) for _ in range(num_layers))
        self.head = DotProduct(dim)
        self.levels = None if levels is None else tuple(levels)

    def forward(self, e: Tensor, bias: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """
        Args:
            e: ``[n, C]`` projected language embeddings. bias: ``[n]``. memory: of the encoder.

        Returns:
            logits ``[B, n]`` (S is their sigmoid) and image-aware embeddings ``[B, n, C]``.
        """
        tokens, position, mask = self._seen(memory)
        key = tokens + position.to(tokens.dtype)
        x = e[None].expand(len(tokens), -1, -1)
        for layer in self.layers:
            x = layer(x, key, tokens, mask)
        return self.head(x, e, bias), x

    def _seen(self, memory: Memory) -> tuple[Tensor, Tensor, Tensor | None]:
        mask = memory.layout.padding_mask
        if self.levels is None:
            return memory.tokens, memory.position, mask
        levels = memory.layout.levels
        keep = torch.isin(levels, torch.tensor(self.levels, device=levels.device))
        return memory.tokens[:, keep], memory.position[:, keep], None if mask is None else mask[:, keep]


def category_loss(
    logits: Tensor,
    present: Tensor,
    known: Tensor | None = None,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
) -> Tensor:
    """Asymmetric loss, summed over categories and averaged over images.

    Args:
        logits: ``[B, n]``. present: ``[B, n]`` bool.
        known: ``[B, n]`` bool: categories that count for an image; None: all.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = asymmetric_loss(logits, present.to(logits.dtype), gamma_pos, gamma_neg, clip)
        if known is not None:
            loss = loss * known
        return loss.sum(1).mean()


class CategoryLoss(Auxiliary):
    """The asymmetric loss of the category extraction, ``loss_cem``.

    Args:
        weight: mu. asl: further arguments of `category_loss`.
    """

    name = "category_loss"

    def __init__(self, weight: float = 1.0, **asl: float) -> None:
        super().__init__()
        self.weight, self.asl = weight, asl

    def forward(self, detector: nn.Module, step: TrainingStep) -> tuple[dict[str, Tensor], list[Branch]]:
        """See `Auxiliary`."""
        logits = step.queries.category_logits
        if logits is None:
            raise ValueError("CategoryLoss needs a query source that extracts categories (CategoryQuerySource)")
        count = logits.shape[1]
        loss = category_loss(logits, present_labels(step.targets, count), stack_known(step.targets, count), **self.asl)
        return {"loss_cem": self.weight * loss}, []


def present_labels(targets: Sequence[Targets], num_classes: int) -> Tensor:
    """Categories with an object in each image, ``[B, K]`` bool."""
    device = targets[0].labels.device
    present = torch.zeros(len(targets), num_classes, dtype=torch.bool, device=device)
    for row, target in zip(present, targets):
        row[target.labels] = True
    return present
