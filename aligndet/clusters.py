"""Pseudo-classes of proposals: RoI features of a backbone, PCA, k-means (what DETR's matching needs as labels)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from torch import nn
from torchvision.ops import roi_align
from tqdm import tqdm

from aligndet.proposal_columns import ProposalColumns
from polydet.data import read_image

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@torch.no_grad()
def box_features(
    columns: ProposalColumns,
    rows: Sequence[int],
    image_root: Path,
    backbone: nn.Module,
    feature: str = "res5",
    pooled: int = 7,
) -> Iterator[tuple[int, np.ndarray]]:
    """Mean RoIAlign feature of every proposal of the given images.

    Args:
        rows: positions of images in ``columns``.
        backbone: ``[1, 3, H, W] -> {feature: [1, C, h, w]}``, in evaluation; RGB, ImageNet's mean and deviation.
        pooled: side of the RoIAlign grid before the mean.

    Yields:
        position and float32 ``[k, C]``.
    """
    device = next(backbone.parameters()).device
    mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (MEAN, STD))
    for row in rows:
        boxes, _ = columns.of(row)
        if len(boxes) == 0:
            continue
        height, width = (int(v) for v in columns.sizes[row])
        record = {"file_name": str(image_root / columns.file_names[row]), "height": height, "width": width}
        image = torch.from_numpy(read_image(record).transpose(2, 0, 1).copy()).to(device)
        image = nn.functional.pad((image - mean) / std, (0, -width % 32, 0, -height % 32))
        maps = backbone(image[None])[feature]
        scale = maps.shape[-1] / image.shape[-1]
        rois = torch.from_numpy(boxes).to(device, maps.dtype)
        found = roi_align(maps, [rois], pooled, scale, sampling_ratio=2, aligned=True).mean((2, 3))
        yield row, found.float().cpu().numpy()


def cluster(
    columns: ProposalColumns,
    image_root: Path,
    backbone: nn.Module,
    num_clusters: int = 256,
    dim: int = 256,
    sample: int = 100_000,
    feature: str = "res5",
    seed: int = 0,
) -> ProposalColumns:
    """The same proposals with a cluster each as their label.

    PCA and k-means are fitted on the proposals of random images, then every proposal is assigned. The authors
    published neither level, pooling nor seed: these are ours.

    Args:
        dim: components kept, at most the channels of the feature.
        sample: proposals to fit on.

    Raises:
        ValueError: fewer proposals than clusters.
    """
    backbone = backbone.eval()
    order = np.random.default_rng(seed).permutation(len(columns))
    counts = np.cumsum(np.diff(columns.offsets)[order])
    chosen = order[: int(np.searchsorted(counts, sample)) + 1]
    found = box_features(columns, tqdm(chosen, desc="features to fit"), image_root, backbone, feature)
    fitted = [features for _, features in found]
    if sum(map(len, fitted)) < num_clusters:
        raise ValueError(f"{sum(map(len, fitted))} proposals cannot make {num_clusters} clusters")
    features = np.concatenate(fitted)
    pca = PCA(min(dim, *features.shape), svd_solver="randomized", random_state=seed).fit(features)
    kmeans = MiniBatchKMeans(num_clusters, random_state=seed, n_init=3, batch_size=max(4096, 4 * num_clusters))
    kmeans.fit(pca.transform(features))
    labels = np.zeros(len(columns.boxes), np.uint16)
    everything = tqdm(range(len(columns)), desc="assigning")
    for row, features in box_features(columns, everything, image_root, backbone, feature):
        labels[int(columns.offsets[row]) : int(columns.offsets[row + 1])] = kmeans.predict(pca.transform(features))
    info: dict[str, Any] = {**columns.info, "num_labels": num_clusters}
    info["clusters"] = {"dim": int(pca.n_components_), "sample": sample, "feature": feature, "seed": seed}
    return replace(columns, labels=labels, info=info)
