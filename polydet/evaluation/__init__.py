"""Evaluators on Detectron2's interface."""

from polydet.evaluation.build import EVALUATORS, build_evaluator
from polydet.evaluation.coco import CardCOCOEvaluator, coco_ground_truth
from polydet.evaluation.lvis import CardLVISEvaluator

__all__ = ["EVALUATORS", "CardCOCOEvaluator", "CardLVISEvaluator", "build_evaluator", "coco_ground_truth"]
