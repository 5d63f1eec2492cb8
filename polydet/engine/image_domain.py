"""Image-domain pre-training in small: a backbone learns to classify object-centric crops.

Papers start from published ImageNet weights. Where none can be had (ShapeWorld, or a domain far from ImageNet), this
makes a backbone of the same kind from any dataset card.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from polydet.data import get_card, load_card, read_image
from polydet.files import whole_file, write_text

logger = logging.getLogger(__name__)


def object_crops(dataset: str, size: int = 64, context: float = 0.2, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Every annotated object of a card, cut out with some context and resized to a square.

    Args:
        context: share of the box added on each side; the crop is clipped to the image.
        limit: the first so many objects.

    Returns:
        uint8 ``[n, 3, size, size]`` RGB and int64 ``[n]`` class of the card.
    """
    crops: list[np.ndarray] = []
    labels: list[int] = []
    for record in load_card(dataset):
        boxes = [a for a in record["annotations"] if not a["iscrowd"] and min(a["bbox"][2:]) >= 4]
        if not boxes:
            continue
        image = Image.fromarray(read_image(record))
        for annotation in boxes:
            x, y, w, h = annotation["bbox"]
            dx, dy = w * context, h * context
            box = (max(x - dx, 0), max(y - dy, 0), min(x + w + dx, image.width), min(y + h + dy, image.height))
            crops.append(np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box)))
            labels.append(int(annotation["category_id"]))
            if len(crops) == limit:
                return _stack(crops), torch.tensor(labels)
    return _stack(crops), torch.tensor(labels)


def _stack(crops: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).copy())


def pretrain_backbone(
    dataset: str,
    output: str | os.PathLike[str],
    name: str = "resnet18",
    iterations: int = 150,
    batch_size: int = 32,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
    crop_size: int = 48,
    limit: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    model_kwargs: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Train a timm classifier on crops and save its backbone as ``output`` (.safetensors) for ``TimmBackbone``.

    Args:
        dataset: card whose boxes are cut out.
        crop_size: side of the crops, pixels.
        limit: the first so many objects.
        model_kwargs: further arguments of ``timm.create_model``.

    Nothing happens if ``output`` is there from the same settings.

    Returns:
        ``accuracy`` on the crops of the last tenth of training, 0 to 1, and ``crops``.
    """
    output = Path(output)
    model_kwargs = OmegaConf.to_object(model_kwargs) if OmegaConf.is_config(model_kwargs) else model_kwargs  # type: ignore[assignment]
    settings: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("output", "device")}
    sidecar = output.with_suffix(".json")
    if output.is_file() and sidecar.is_file():
        known = json.loads(sidecar.read_text())
        if known["settings"] == settings:
            return known["result"]
    crops, labels = object_crops(dataset, crop_size, limit=limit)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    classes = len(get_card(dataset).classes or ())
    model = timm.create_model(name, num_classes=classes, **(model_kwargs or {})).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=iterations, pct_start=0.1)
    mean = torch.tensor([123.675, 116.28, 103.53], device=device).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375], device=device).view(3, 1, 1)
    right = seen = 0
    for step in range(iterations):
        rows = torch.randint(len(crops), (batch_size,), generator=generator)
        images = (crops[rows].to(device).float() - mean) / std
        images = torch.where(
            torch.rand(batch_size, 1, 1, 1, generator=generator).to(device) < 0.5, images.flip(3), images
        )
        targets = labels[rows].to(device)
        logits = model(images)
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= iterations * 9 // 10:
            right, seen = right + int((logits.argmax(1) == targets).sum()), seen + batch_size
        if step % 50 == 0:
            logger.info("backbone %d/%d: loss %.3f", step, iterations, loss.item())
    result = {"accuracy": right / max(seen, 1), "crops": float(len(crops))}
    default: Any = model.default_cfg
    classifier = tuple(f"{layer}." for layer in np.atleast_1d(default["classifier"]))
    weights = {k: v.cpu().contiguous() for k, v in model.state_dict().items() if not k.startswith(classifier)}
    with whole_file(output) as temporary:
        save_file(weights, temporary)
    write_text(sidecar, json.dumps({"settings": settings, "result": result}, indent=1))
    logger.info("%s on %s: %s", name, dataset, result)
    return result
