"""Where CenterNet2's first stage looks for objects: heatmap and box targets on the cells of a pyramid."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Cells:
    """The M cells of all levels, level after level, row by row.

    Attributes:
        centres: ``[M, 2]`` (x, y) in pixels.
        index: int64 ``[M, 2]`` (column, row) inside the level.
        level: int64 ``[M]``.
        strides: ``[L]``.
        sizes: int64 ``[L, 2]`` (width, height) in cells.
        starts: int64 ``[L]`` first cell of each level.
    """

    centres: Tensor
    index: Tensor
    level: Tensor
    strides: Tensor
    sizes: Tensor
    starts: Tensor

    @classmethod
    def build(cls, shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> "Cells":
        """Cells of maps of ``(height, width)`` cells; a centre lies at ``index * stride + stride // 2``."""
        index, level, half = [], [], []
        for number, ((height, width), stride) in enumerate(zip(shapes, strides)):
            rows = torch.arange(height, device=device)
            columns = torch.arange(width, device=device)
            row, column = torch.meshgrid(rows, columns, indexing="ij")
            index.append(torch.stack([column, row], -1).view(-1, 2))
            level.append(torch.full((height * width,), number, device=device))
            half.append(stride // 2)
        cells, levels = torch.cat(index), torch.cat(level)
        stride_of = torch.tensor(strides, dtype=torch.float32, device=device)
        half_of = torch.tensor(half, dtype=torch.float32, device=device)
        counts = torch.tensor([height * width for height, width in shapes], device=device)
        return cls(
            centres=cells * stride_of[levels, None] + half_of[levels, None],
            index=cells,
            level=levels,
            strides=stride_of,
            sizes=torch.tensor([(width, height) for height, width in shapes], device=device),
            starts=counts.cumsum(0) - counts,
        )

    def centre_cells(self, centres: Tensor) -> Tensor:
        """The cell under each point on each level: ``[N, 2]`` pixels -> int64 ``[N, L, 2]`` (column, row)."""
        cells = (centres[:, None] / self.strides[:, None]).floor().long()
        return torch.minimum(cells.clamp(min=0), self.sizes - 1)


@dataclass
class ImageTargets:
    """Targets of one image on M cells.

    Attributes:
        heatmap: ``[M]`` in [0, 1].
        positives: int64 ``[P]`` cells, one for each object and level of interest (may repeat).
        box_cells: int64 ``[Q]`` cells that regress a box.
        boxes: ``[Q, 4]`` their (left, top, right, bottom) distances in strides.
    """

    heatmap: Tensor
    positives: Tensor
    box_cells: Tensor
    boxes: Tensor


@torch.no_grad()
def centernet_targets(
    boxes: Tensor,
    cells: Cells,
    sizes_of_interest: Tensor,
    min_overlap: float = 0.8,
    min_radius: float = 4.0,
) -> ImageTargets:
    """Targets of one image (CenterNet2, appendix; class-agnostic).

    Args:
        boxes: ``[N, 4]`` xyxy pixels of the network's input.
        cells: the cells of all levels.
        sizes_of_interest: ``[L, 2]`` range of half the box diagonal, ends included; ranges overlap.
        min_overlap: IoU that a shifted box keeps on the Gaussian's radius.
        min_radius: smallest radius in pixels.
    """
    if len(boxes) == 0:
        none = torch.zeros(0, dtype=torch.long, device=boxes.device)
        return ImageTargets(cells.centres.new_zeros(len(cells.centres)), none, none, boxes.new_zeros(0, 4))
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    centre_cells = cells.centre_cells(centre)  # [N, L, 2]
    offset = (cells.index[:, None] - centre_cells.transpose(0, 1)[cells.level]).abs().amax(-1)  # [M, N]

    squared = (cells.centres[:, None] - centre).square().sum(-1).masked_fill(offset == 0, 0.0)
    delta = (1 - min_overlap) / (1 + min_overlap)
    radius = (2 * delta**2 * size.prod(1)).clamp(min=min_radius**2)
    distance = squared / radius
    heatmap = (-distance.amin(1)).exp()
    heatmap = heatmap.masked_fill(heatmap < 1e-4, 0.0)

    half_diagonal = size.square().sum(1).sqrt() / 2
    low, high = sizes_of_interest.unbind(1)
    of_interest = (half_diagonal[:, None] >= low) & (half_diagonal[:, None] <= high)  # [N, L]
    flat = cells.starts + centre_cells[..., 1] * cells.sizes[:, 0] + centre_cells[..., 0]

    ltrb = torch.cat([cells.centres[:, None] - boxes[:, :2], boxes[:, 2:] - cells.centres[:, None]], -1)
    allowed = (offset <= 1) & (ltrb.amin(-1) > 0) & of_interest.T[cells.level]
    nearest, owner = distance.masked_fill(~allowed, torch.inf).min(1)
    box_cells = torch.isfinite(nearest).nonzero().squeeze(1)
    distances = ltrb[box_cells, owner[box_cells]] / cells.strides[cells.level[box_cells], None]
    return ImageTargets(heatmap, flat[of_interest], box_cells, distances)
