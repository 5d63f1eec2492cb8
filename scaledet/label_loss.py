"""The language loss of eq. 8 on a batch of regions: which labels count for which image, divided by what."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor, nn

from polydet.data import class_image_counts
from polydet.layers import mean_over_processes
from polydet.layers.federated import sample_federated_labels
from polydet.text import LabelSpace
from scaledet.losses import SoftLabelTargets, duplicate_labels, hard_label_loss, soft_label_loss


def count_normaliser(counts: Sequence[int], device: torch.device) -> Tensor:
    """Counts averaged over processes and at least 1 in total: the loss of a batch does not depend on its split."""
    return mean_over_processes(
        torch.tensor(counts, dtype=torch.float32, device=device), minimum=1.0 / comm.get_world_size()
    )


def joint_image_counts(label_space: LabelSpace) -> list[int]:
    """Images per joint label, read from the cards: what ``federated="sampled"`` draws by."""
    counts = np.zeros(len(label_space), dtype=np.int64)
    for name in label_space.datasets:
        counts[label_space.mapping(name)] += class_image_counts(name)
    return counts.tolist()


class LabelLoss(nn.Module):
    """``L_lang = L_hl + lambda L_sl`` (eqs. 6 to 8) over the joint labels of all training datasets.

    Args:
        tau: temperature of eq. 6 (not given in the paper; 1/50 is Detic's).
        soft_weight: lambda of eq. 8; 0 leaves L_sl out.
        hl_scope: ``all``: every label of every dataset is a negative elsewhere, as eq. 6 says;
            ``own_dataset``: only the labels of the image's dataset count.
        dup: what a label with the same embedding as the row's label (the "person" of another dataset) is:
            ``negative``, as eq. 6 says, though identical logits cannot be told apart, or ``ignore``.
        sl_background: background has no row of S: ``ignore`` it in eq. 7, or pull it to ``zero``.
        federated: ``none``; ``sampled``: Detic's federated loss; ``verified``: an image of a federated dataset counts
            only the labels that its boxes have and those verified to be absent (a positive one may have groups only,
            or have been cropped away).
        federated_count: labels per step of ``sampled``.
    """

    def __init__(
        self,
        *,
        tau: float = 0.02,
        soft_weight: float = 10.0,
        hl_scope: Literal["all", "own_dataset"] = "all",
        dup: Literal["negative", "ignore"] = "ignore",
        sl_background: Literal["ignore", "zero"] = "ignore",
        federated: Literal["none", "sampled", "verified"] = "none",
        federated_count: int = 50,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("hl_scope", hl_scope, ("all", "own_dataset")),
            ("dup", dup, ("negative", "ignore")),
            ("sl_background", sl_background, ("ignore", "zero")),
            ("federated", federated, ("none", "sampled", "verified")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        if federated == "sampled" and hl_scope != "all":
            raise ValueError("federated='sampled' draws from all labels: it needs hl_scope='all'")
        self.tau, self.soft_weight = tau, soft_weight
        self.hl_scope, self.dup, self.sl_background = hl_scope, dup, sl_background
        self.federated, self.federated_count = federated, federated_count
        for name in ("text", "duplicates", "weights", "gram", "cross", "square"):
            self.register_buffer(name, None, persistent=False)
        self._columns: dict[str, Tensor] = {}

    def set_labels(self, text: Tensor, label_space: LabelSpace, image_counts: Sequence[int] | None = None) -> None:
        """Take the joint labels; everything that follows from their embeddings is computed here, once.

        Args:
            text: ``[n, D]`` unit rows in the order of ``label_space``.
            label_space: which label belongs to which dataset.
            image_counts: images per label, for ``federated="sampled"``.

        Raises:
            ValueError: sizes that do not fit, or ``sampled`` without ``image_counts``.
        """
        if len(text) != len(label_space):
            raise ValueError(f"{len(text)} text embeddings for a label space of {len(label_space)} labels")
        self.text = text
        self.duplicates = duplicate_labels(text) if self.dup == "ignore" else None
        if self.soft_weight:
            soft = SoftLabelTargets(text)
            self.gram, self.cross, self.square = soft.gram, soft.cross, soft.square
        if self.federated == "sampled":
            if image_counts is None or len(image_counts) != len(text):
                raise ValueError("federated='sampled' needs image_counts, one per joint label")
            self.weights = torch.as_tensor(image_counts, dtype=torch.float32).sqrt()
        self._columns = {name: torch.as_tensor(label_space.mapping(name)) for name in label_space.datasets}

    def image_labels(self, inputs: Sequence[Mapping[str, Any]]) -> list[Tensor | None]:
        """The labels that count for each image of a batch: int64 joint labels, or None for all of them.

        Args:
            inputs: model inputs; ``dataset_name`` is read for ``own_dataset``, ``neg_category_ids``
                for ``verified``.  Labels of an image's own ``instances`` always count.

        Raises:
            KeyError: ``own_dataset`` and an image whose dataset is not in the label space.
        """
        labels: list[Tensor | None] = []
        for item in inputs:
            if self.federated == "verified" and item.get("neg_category_ids") is not None:
                absent = torch.as_tensor(item["neg_category_ids"], dtype=torch.long)
                labels.append(torch.cat([absent, item["instances"].gt_classes.cpu()]).unique())
            elif self.hl_scope == "own_dataset":
                name = item.get("dataset_name")
                if name not in self._columns:
                    raise KeyError(
                        f"image {item.get('image_id')!r} ({item.get('file_name')}) is of dataset {name!r}, which is "
                        f"not in the label space of {list(self._columns)}: hl_scope='own_dataset' needs it"
                    )
                own = self._columns[name]
                present = item["instances"].gt_classes.cpu()
                pasted = present[~torch.isin(present, own)]  # objects copied from another dataset's image
                labels.append(torch.cat([own, pasted.unique()]) if len(pasted) else own)
            else:
                labels.append(None)
        return labels

    def forward(
        self,
        visual: Tensor,
        labels: Tensor,
        bias: Tensor | None = None,
        rows_per_image: Sequence[int] = (),
        image_labels: Sequence[Tensor | None] = (),
    ) -> dict[str, Tensor]:
        """Losses of one cascade stage.

        Args:
            visual: ``[R, D]`` unit rows, float32.
            labels: int64 ``[R]`` in ``[0, n]``, n is background.
            bias: logit bias of the classifier.
            rows_per_image, image_labels: how many rows each image has and which labels count for it
                (``image_labels()``); empty for all labels everywhere.

        Returns:
            ``loss_hard`` (sum over labels, mean over all sampled regions) and, unless its weight is 0,
            ``loss_soft`` (mean over labels and the regions that count, times lambda).
        """
        n = len(self.text)
        counted = len(labels) if self.sl_background == "zero" else int((labels < n).sum())
        regions, soft_regions = count_normaliser([len(labels), counted], visual.device)
        total = visual.sum() * 0.0
        for rows, columns in self._groups(labels, rows_per_image, image_labels):
            total = total + self._hard(visual[rows], labels[rows], columns, bias)
        losses = {"loss_hard": total / regions}
        if self.soft_weight:
            soft = soft_label_loss(visual, labels, self.gram, self.cross, self.square, self.sl_background)
            losses["loss_soft"] = self.soft_weight * soft / soft_regions
        return losses

    def _groups(
        self, labels: Tensor, rows_per_image: Sequence[int], image_labels: Sequence[Tensor | None]
    ) -> list[tuple[Tensor | slice, Tensor | None]]:
        """Rows whose images count the same labels, with those labels."""
        if self.federated == "sampled":
            return [(slice(None), sample_federated_labels(labels, self.weights, self.federated_count))]
        if all(columns is None for columns in image_labels):
            return [(slice(None), None)]
        starts = torch.tensor([0, *rows_per_image]).cumsum(0).tolist()
        groups: dict[int, tuple[list[Tensor], Tensor | None]] = {}
        for start, end, columns in zip(starts, starts[1:], image_labels):
            rows, _ = groups.setdefault(id(columns), ([], columns))
            rows.append(torch.arange(start, end, device=labels.device))
        return [
            (torch.cat(rows), None if columns is None else columns.to(labels.device))
            for rows, columns in groups.values()
        ]

    def _hard(self, visual: Tensor, labels: Tensor, columns: Tensor | None, bias: Tensor | None) -> Tensor:
        n = len(self.text)
        ignored = None
        if self.duplicates is not None and self.duplicates.shape[1]:
            padded = torch.cat([self.duplicates, self.duplicates.new_full((1, self.duplicates.shape[1]), -1)])
            ignored = padded[labels]
        if columns is None:
            return hard_label_loss(visual, self.text, labels, 1.0 / self.tau, bias, ignored)
        position = labels.new_full((n + 2,), -1)  # the last entry serves the padding -1
        position[columns] = torch.arange(len(columns), device=labels.device)
        position[n] = len(columns)
        if ignored is not None:
            ignored = position[ignored]
        return hard_label_loss(visual, self.text[columns], position[labels], 1.0 / self.tau, bias, ignored)
