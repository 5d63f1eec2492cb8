"""What a fine-tuned detector takes from a pre-training run: a pure map from one state dict to another.

As ``train.init.key_map`` of a fine-tuning config it works on the pre-training checkpoint itself; as a command it
writes a checkpoint that the plain Detectron2 detector loads:

    python -m aligndet.transfer output/pretrain/model_final.pth aligned.pth --detector faster_rcnn
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from aligndet.adapters import ADAPTERS
from aligndet.modules import matches
from aligndet.released import from_release, is_release
from polydet.files import whole_file

PREFIX = "online.detector."


class PretrainedModules:
    """Select and rename the weights of a pre-training checkpoint.

    Every final predictor starts fresh, regression included, and so does what took no part (the mask head); the
    projector and the momentum detector are left behind. That is what the published scripts do (the paper's text drops
    the projector only: ``keep_predictors``, for what fits).

    Args:
        detector: a key of :data:`aligndet.adapters.ADAPTERS`.
        modules: groups that load (table 9), out of the adapter's: ``neck``, ``rpn`` and ``head``, or ``transformer``.
            None loads all.
        backbone: load the backbone too. After frozen pre-training these are the weights it started from.
        keep_predictors: also load the final predictors.
        fresh_fpn_norm: the detector has norms in its FPN (published: SyncBN) where pre-training had none, so that conv
            biases have no counterpart.

    Raises:
        ValueError: a detector or module that there is not.
    """

    def __init__(
        self,
        detector: str,
        modules: Sequence[str] | None = None,
        backbone: bool = True,
        keep_predictors: bool = False,
        fresh_fpn_norm: bool = False,
    ) -> None:
        if detector not in ADAPTERS:
            raise ValueError(f"no adapter for {detector!r}; there are {sorted(ADAPTERS)}")
        self.adapter = ADAPTERS[detector]
        groups = self.adapter.groups
        chosen = list(groups) if modules is None else list(modules)
        if unknown := [name for name in chosen if name not in groups]:
            raise ValueError(f"{detector} has no modules {unknown}; it has {list(groups)}")
        self.wanted = [prefix for name in chosen for prefix in groups[name]]
        if backbone:
            self.wanted.append(self.adapter.backbone)
        self.unwanted = [*self.adapter.unused, *(() if keep_predictors else self.adapter.predictors)]
        self.fresh_fpn_norm = fresh_fpn_norm
        left = [prefix for name in groups if name not in chosen for prefix in groups[name]]
        self.fresh = [pattern.split("*")[0] for pattern in (*self.unwanted, *left)]  # for the ledger of the load

    def __call__(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys of the whole pre-training model, ours or the authors' -> keys of the detector.

        Raises:
            KeyError: not a checkpoint of :class:`aligndet.AlignDet`.
            ValueError: the authors', of another kind of detector.
        """
        if is_release(state):
            state = from_release(state)
        online = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
        if not online:
            raise KeyError(
                f"the checkpoint has no key below {PREFIX!r}: it is not from AlignDet's pre-training "
                f"(first keys: {list(state)[:3]})"
            )
        return {key: value for key, value in online.items() if self._loads(key)}

    def _loads(self, key: str) -> bool:
        if not matches(key, self.wanted) or matches(key, self.unwanted):
            return False
        return not (self.fresh_fpn_norm and matches(key, ["backbone.fpn_*.bias", "backbone.top_block.p*.bias"]))


# for train.init.key_map = "aligndet.transfer:NAME"
FCOS = PretrainedModules("fcos", fresh_fpn_norm=True)
RETINANET = PretrainedModules("retinanet", fresh_fpn_norm=True)
FASTER_RCNN = PretrainedModules("faster_rcnn", fresh_fpn_norm=True)
MASK_RCNN = PretrainedModules("mask_rcnn", fresh_fpn_norm=True)
CASCADE = PretrainedModules("cascade")
DETR = PretrainedModules("detr")
FASTER_RCNN_NECK = PretrainedModules("faster_rcnn", ["neck"], fresh_fpn_norm=True)
FASTER_RCNN_NECK_RPN = PretrainedModules("faster_rcnn", ["neck", "rpn"], fresh_fpn_norm=True)
FASTER_RCNN_NECK_HEAD = PretrainedModules("faster_rcnn", ["neck", "head"], fresh_fpn_norm=True)


def export(checkpoint: Path, output: Path, key_map: PretrainedModules) -> Mapping[str, Tensor]:
    """Write the detector's weights of a pre-training checkpoint as ``{"model": ...}``; returns them."""
    data = torch.load(checkpoint, map_location="cpu", weights_only=True)
    weights = key_map(data.get("model", data))
    with whole_file(output) as temporary:
        torch.save({"model": weights}, temporary)
    return weights


def main() -> None:
    """Command line of :func:`export`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--detector", required=True, choices=sorted(ADAPTERS))
    parser.add_argument("--modules", nargs="*", help="groups that load; default all")
    parser.add_argument("--no-backbone", action="store_true")
    parser.add_argument("--keep-predictors", action="store_true")
    parser.add_argument("--fresh-fpn-norm", action="store_true", help="leave the biases of FPN convs out")
    args = parser.parse_args()
    key_map = PretrainedModules(
        args.detector, args.modules, not args.no_backbone, args.keep_predictors, args.fresh_fpn_norm
    )
    weights = export(args.checkpoint, args.output, key_map)
    print(f"{args.output}: {len(weights)} tensors, {sum(w.numel() for w in weights.values()) / 1e6:.1f} M elements")


if __name__ == "__main__":
    main()
