"""LVIS AP through Detectron2 and the lvis package."""

from __future__ import annotations

import types
from typing import Any

import lvis.eval
import numpy as np
from detectron2.evaluation import LVISEvaluator

from polydet.data import load_card

__all__ = ["CardLVISEvaluator"]


class CardLVISEvaluator(LVISEvaluator):
    """Detectron2's LVISEvaluator for an LVIS-format card; at most 300 detections per image, as LVIS prescribes.

    Results: AP, AP50, AP75, APs, APm, APl, APr, APc, APf from 0 to 100.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, max_dets_per_image: int = 300):
        load_card(dataset_name)  # checks the file and brings the metadata up to date
        super().__init__(dataset_name, None, True, output_dir, max_dets_per_image=max_dets_per_image)

    def evaluate(self) -> Any:
        """Gathered results on the main process."""
        if not hasattr(lvis.eval.np, "float"):  # lvis 0.5.3 uses a name that numpy removed
            lvis.eval.np = types.SimpleNamespace(**{**vars(np), "float": float})
        return super().evaluate() or {}
