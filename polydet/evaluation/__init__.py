"""Evaluators on Detectron2's interface."""

from polydet.evaluation.build import EVALUATORS, build_evaluator, evaluator_of
from polydet.evaluation.coco import CardCOCOEvaluator, coco_ground_truth
from polydet.evaluation.collect import DetectionEvaluator, Detections
from polydet.evaluation.limits import AnswersPerImage, beyond_limit
from polydet.evaluation.lvis import CardLVISEvaluator, FixedAPEvaluator
from polydet.evaluation.multilabel import MultiLabelEvaluator
from polydet.evaluation.openimages import OpenImagesEvaluator
from polydet.evaluation.report import summarise, unseen_classes, write_report
from polydet.evaluation.same_size import SameSize, answer_by_size

__all__ = [
    "EVALUATORS",
    "AnswersPerImage",
    "CardCOCOEvaluator",
    "CardLVISEvaluator",
    "DetectionEvaluator",
    "Detections",
    "FixedAPEvaluator",
    "MultiLabelEvaluator",
    "OpenImagesEvaluator",
    "SameSize",
    "answer_by_size",
    "beyond_limit",
    "build_evaluator",
    "coco_ground_truth",
    "evaluator_of",
    "summarise",
    "unseen_classes",
    "write_report",
]
