"""The box-domain pre-training model (algorithm 1): an online and a momentum detector on two views."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from aligndet.adapters.base import TASKS, DetectorAdapter
from aligndet.contrastive import box_contrastive_loss
from aligndet.modules import matches
from polydet.engine.trainer import Trainer


def momentum_at(step: int, total: int, base: float = 0.996) -> float:
    """Cosine schedule of the momentum: ``base`` at step 0, 1 at step ``total``."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * min(step, total) / total) + 1.0) / 2.0


@META_ARCH_REGISTRY.register()
class AlignDet(nn.Module):
    """Pre-train everything but the backbone, without labels.

    Training takes the dicts of :class:`aligndet.views.TwoViewMapper`; the losses are ``loss_contrastive`` and the
    detector's own box losses on the first view. In evaluation the online detector runs as it is.

    Args:
        adapter: the detector to pre-train, in its adapter. Its momentum twin starts as a copy.
        total_steps: length of the momentum schedule in optimiser steps; :class:`MomentumLength` corrects it.
        momentum: at the start of the schedule.
        temperature, contrastive_weight: of the contrastive loss.
        tasks: ``classification`` and / or ``regression`` (table 10).
        freeze_backbone: keep the backbone's weights and statistics (table 11 does not). A frozen backbone is one
            module that both detectors share.
    """

    momentum_modules = ("target",)  # what moves without a gradient
    detects = False  # it knows boxes, no classes

    def __init__(
        self,
        adapter: DetectorAdapter,
        total_steps: int,
        momentum: float = 0.996,
        temperature: float = 0.5,
        contrastive_weight: float = 1.0,
        tasks: Sequence[str] = TASKS,
        freeze_backbone: bool = True,
    ) -> None:
        super().__init__()
        if not tasks or any(task not in TASKS for task in tasks):
            raise ValueError(f"tasks must be out of {TASKS}, not {tuple(tasks)}")
        if total_steps < 1:
            raise ValueError(f"total_steps must be positive, not {total_steps}")
        self.total_steps = int(total_steps)
        self.momentum = float(momentum)
        self.temperature = float(temperature)
        self.contrastive_weight = float(contrastive_weight)
        self.tasks = tuple(tasks)
        self.freeze_backbone = freeze_backbone
        self.online = adapter
        self._freeze_online()
        shared = {id(adapter.detector.get_submodule(adapter.backbone)): None} if freeze_backbone else {}
        memo = {key: adapter.detector.get_submodule(adapter.backbone) for key in shared}
        self.target = copy.deepcopy(adapter, memo)
        self.target.requires_grad_(False)
        self.register_buffer("updated_at", torch.tensor(-1, dtype=torch.int64))
        self.train(self.training)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.online.detector.device

    def train(self, mode: bool = True) -> AlignDet:
        """A frozen backbone stays in evaluation: neither batch statistics nor dropped paths."""
        super().train(mode)
        if self.freeze_backbone:
            self.online.detector.get_submodule(self.online.backbone).eval()
        return self

    def forward(self, inputs: list[dict[str, Any]]) -> Any:
        """Dicts of the mapper -> weighted losses in training; plain dicts -> the online detector's output otherwise."""
        if not self.training:
            return self.online.detector(inputs)
        step = int(get_event_storage().iter)
        self.update_target(step)
        first, second = self.two_views(inputs)
        regression = "regression" in self.tasks
        online = self.online(first, with_losses=regression or bool(self.online.classification_losses))
        losses = {name: loss for name, loss in online.losses.items() if self._wanted(name)}
        if "classification" in self.tasks:
            with torch.no_grad(), EventStorage(step):  # what the twin logs is not the run's
                target = self.target(second, with_losses=False)
            losses["loss_contrastive"] = self.contrastive_weight * sum(
                ours.weight
                * box_contrastive_loss(ours.embeddings, ours.labels, theirs.embeddings, theirs.labels, self.temperature)
                for ours, theirs in zip(online.samples, target.samples)
            )
        return losses

    @torch.no_grad()
    def update_target(self, step: int) -> None:
        """Move the momentum detector towards the online one, once per optimiser step; parameters only, no buffers.

        It runs at the start of step t for the update after step t - 1, so that it needs no hook and an interrupted
        run, whose buffer ``updated_at`` is in the checkpoint, repeats nothing.
        """
        if step == int(self.updated_at) or step == 0:
            return
        self.updated_at.fill_(step)
        momentum = momentum_at(step - 1, self.total_steps, self.momentum)
        averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        for (name, source), target in zip(self.online.named_parameters(), self.target.parameters()):
            if source is target:
                continue
            if matches(name, [f"detector.{pattern}" for pattern in self.online.copied]):
                target.copy_(source)
            else:
                averaged[0].append(target)
                averaged[1].append(source)
        torch._foreach_lerp_(averaged[0], averaged[1], 1.0 - momentum)

    def _freeze_online(self) -> None:
        """No gradient for the backbone and for what the chosen tasks do not train."""
        adapter = self.online
        idle = list(adapter.unused)
        if self.freeze_backbone:
            idle.append(adapter.backbone)
        for task in TASKS:
            if task not in self.tasks:
                idle.extend(adapter.only.get(task, ()))
        for name, parameter in adapter.detector.named_parameters():
            if matches(name, idle):
                parameter.requires_grad_(False)
        if "classification" not in self.tasks:
            adapter.projector.requires_grad_(False)

    def _wanted(self, loss: str) -> bool:
        plain = loss.removeprefix("assistant_")
        is_classification = plain.startswith(self.online.classification_losses)
        return ("classification" if is_classification else "regression") in self.tasks

    @staticmethod
    def two_views(inputs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The views as an adapter takes them, with ids of proposals that are unique over the images of this process."""
        views: tuple[list, list] = ([], [])
        offset = 0
        for item in inputs:
            if "second_image" not in item:
                raise KeyError("AlignDet trains on two views of an image: set dataloader.train.mapper to TwoViewMapper")
            given = item["instances"]
            ids = torch.arange(offset, offset + len(given), device=given.gt_classes.device)
            for side, image, boxes in (
                (views[0], item["image"], given.gt_boxes),
                (views[1], item["second_image"], Boxes(item["second_boxes"])),
            ):
                instances = Instances(tuple(image.shape[1:]))
                instances.gt_boxes, instances.gt_classes, instances.gt_ids = boxes, given.gt_classes, ids
                side.append({"image": image, "instances": instances})
            offset += len(given)
        return views


class MomentumLength(HookBase):
    """Gives the momentum schedule the length of the run, which ``train.max_epochs`` decides after the model is built.

    In a config: ``train.hooks``.
    """

    trainer: Trainer

    def before_train(self) -> None:
        """Detectron2's."""
        self.trainer.raw_model.total_steps = int(self.trainer.max_iter)
