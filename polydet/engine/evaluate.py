"""Evaluation of one model on several datasets, each with its own label space and official metric."""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

from polydet.data import DatasetError, get_card
from polydet.engine.errors import ConfigError
from polydet.engine.labels import is_open_vocabulary
from polydet.engine.nonfinite import refuse_bad_weights
from polydet.engine.pictures import draw_predictions, save_panels
from polydet.engine.stopping import AgreedEvaluators, UntilAsked
from polydet.evaluation import AnswersPerImage, answer_by_size, build_evaluator, evaluator_of
from polydet.files import write_text
from polydet.text import LabelSpace, clean_name

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, dict[str, float]]]
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


class ClassMismatch(ValueError):
    """A dataset whose classes the model cannot predict."""


class RestrictedModel(nn.Module):
    """A closed-set model seen through the classes of one dataset: other predictions are dropped, ids renumbered.

    Args:
        model: predicts joint labels.
        joint_labels: joint label of each class of the dataset; -1 where the model has none.
    """

    def __init__(self, model: nn.Module, joint_labels: Sequence[int], num_labels: int) -> None:
        super().__init__()
        self.local: torch.Tensor
        self.model, self.training = model, model.training
        local = torch.full((num_labels,), -1, dtype=torch.long)
        for i, label in enumerate(joint_labels):
            if label >= 0:
                local[label] = i
        self.register_buffer("local", local, persistent=False)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Detectron2's inference contract; ``pred_classes`` index the dataset's classes."""
        outputs = self.model(batched_inputs)
        for output in outputs:
            instances = output["instances"]
            classes = self.local.to(instances.pred_classes.device)[instances.pred_classes]
            instances.pred_classes = classes
            output["instances"] = instances[classes >= 0]
        return outputs


class _Autocast(nn.Module):
    def __init__(self, model: nn.Module, autocast: Autocast) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast
        self.training = model.training  # the mode that an evaluation goes back to

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        with self.autocast():
            return answer_by_size(self.model, batched_inputs)


def evaluate(
    cfg: DictConfig,
    model: nn.Module,
    output_dir: str | Path,
    label_space: LabelSpace | None = None,
    autocast: Autocast = contextlib.nullcontext,
    pictures: int = 0,
) -> Results:
    """Evaluate on every dataset of ``cfg.dataloader.test_datasets``.

    A model with ``set_vocabulary`` is given the classes of each dataset; any other is restricted to the joint labels
    of the dataset's classes. Images of a batch are answered as they would be alone (`answer_by_size`).

    Args:
        cfg: the run's config; ``cfg.dataloader.test`` builds the loader of one dataset; see :func:`evaluators_of`.
        model: without DistributedDataParallel.
        output_dir: receives ``results.json``, ``results.txt`` and ``predictions.png``.
        label_space: labels that a closed-set model predicts.
        pictures: images per dataset in ``predictions.png``.

    Returns:
        ``{dataset: {task: {metric: value}}}``, metrics from 0 to 100; empty on other processes than the main one.

    Raises:
        ClassMismatch: a dataset none of whose classes the model knows.
        NonFiniteError: weights that are NaN or infinite.
        Interrupted: a signal came; in every process.
    """
    refuse_bad_weights(model, "evaluation")
    results: Results = {}
    panels = []
    for dataset in cfg.dataloader.test_datasets:
        loader_cfg = cfg.dataloader.test.copy()
        loader_cfg.dataset = dataset
        loader = instantiate(loader_cfg)
        with classes_of(model, dataset, label_space) as view:
            wrapped = _Autocast(view, autocast)
            logger.info("evaluating on %s", dataset)
            folder = str(Path(output_dir) / "inference" / dataset)
            evaluators = [build_evaluator(dataset, folder, kind) for kind in evaluators_of(cfg, dataset)]
            agreed = AgreedEvaluators([*evaluators, AnswersPerImage(dataset)])
            found = inference_on_dataset(wrapped, UntilAsked(loader), agreed)
            if pictures and comm.is_main_process():
                panels += draw_predictions(wrapped, loader, dataset, pictures)
        if comm.is_main_process():
            results[dataset] = _plain(found)
    if comm.is_main_process():
        write_results(results, Path(output_dir))
        if panels:
            save_panels(panels, Path(output_dir) / "predictions.png")
    comm.synchronize()
    return results


def evaluators_of(cfg: DictConfig, dataset: str) -> Sequence[Any]:
    """What ``cfg.dataloader.evaluators`` (optional) says of a dataset: kinds of :func:`build_evaluator`, None for the
    card's own."""
    kinds = cfg.dataloader.get("evaluators", {}).get(dataset)
    return kinds if isinstance(kinds, Sequence) and not isinstance(kinds, str) else [kinds]


def check_evaluators(cfg: DictConfig) -> None:
    """Refuse, before anything is trained, what ``cfg.dataloader.evaluators`` or a test card says wrongly.

    Raises:
        ConfigError: no such card, evaluator or setting.
    """
    for dataset in dict.fromkeys([*cfg.dataloader.test_datasets, *cfg.dataloader.get("evaluators", {})]):
        try:
            for kind in evaluators_of(cfg, dataset):
                evaluator_of(dataset, kind)
        except DatasetError as error:
            raise ConfigError(f"dataloader.evaluators.{dataset}: {error}") from error


@contextlib.contextmanager
def classes_of(model: nn.Module, dataset: str, label_space: LabelSpace | None) -> Any:
    """``model`` predicting the classes of ``dataset`` inside the block."""
    classes = get_card(dataset).classes or ()
    if is_open_vocabulary(model):
        model.set_vocabulary(list(classes))  # type: ignore[operator]
        try:
            yield model
        finally:
            model.set_vocabulary(None)  # type: ignore[operator]
        return
    if label_space is None:
        yield model
        return
    labels = joint_labels(label_space, dataset, classes)
    if labels == list(range(len(label_space))):
        yield model
    else:
        yield RestrictedModel(model, labels, len(label_space))


def joint_labels(label_space: LabelSpace, dataset: str, classes: Sequence[str]) -> list[int]:
    """Joint label of each class of a dataset: those of a training dataset with the same classes, else by name.

    Raises:
        ClassMismatch: no class has a label.
    """
    for trained in label_space.datasets:
        if label_space.names_of(trained) == tuple(classes):
            return label_space.mapping(trained).tolist()
    by_name: dict[str, int] = {}
    for i, name in enumerate(label_space.names):
        by_name.setdefault(clean_name(name).lower(), i)
    labels = [by_name.get(clean_name(name).lower(), -1) for name in classes]
    missing = [name for name, label in zip(classes, labels) if label < 0]
    if len(missing) == len(classes):
        raise ClassMismatch(
            f"none of the {len(classes)} classes of {dataset} ({', '.join(classes[:5])} ...) is among the "
            f"{len(label_space)} labels the model was trained on ({', '.join(label_space.names[:5])} ...)"
        )
    if missing:
        logger.warning(
            "%s: the model has no label for %d of %d classes, they count as never found: %s%s",
            dataset,
            len(missing),
            len(classes),
            ", ".join(missing[:8]),
            " ..." if len(missing) > 8 else "",
        )
    return labels


def write_results(results: Results, output_dir: Path) -> None:
    """``results.json`` and a table in ``results.txt`` and the log; NaN metrics become null in the json."""
    clean = {
        dataset: {task: {k: None if math.isnan(v) else v for k, v in m.items()} for task, m in tasks.items()}
        for dataset, tasks in results.items()
    }
    table = results_table(results)
    write_text(output_dir / "results.json", json.dumps(clean, indent=2))
    write_text(output_dir / "results.txt", table + "\n")
    logger.info("results\n%s", table)


def results_table(results: Results) -> str:
    """A row a dataset and task, Detectron2's summary metrics (per-class ones left out)."""
    rows, columns = [], ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "mAP")
    for dataset, tasks in results.items():
        for task, metrics in tasks.items():
            rows.append([dataset, task, *(f"{metrics[c]:.1f}" if c in metrics else "" for c in columns)])
    used = [i for i in range(2 + len(columns)) if i < 2 or any(row[i] for row in rows)]
    headers = ("dataset", "task", *columns)
    table = tabulate([[row[i] for i in used] for row in rows], headers=[headers[i] for i in used])
    return "\n".join([table, *_notes(results)])


def _notes(results: Results) -> list[str]:
    """What keeps a metric below 100 whatever the model does."""
    return [
        f"{dataset} {task}: {metrics['objects_beyond_max_dets']:.0f} objects cannot be found, as only "
        f"{metrics['max_dets']:.0f} detections of an image count (max_dets in the card or in dataloader.evaluators)"
        for dataset, tasks in results.items()
        for task, metrics in tasks.items()
        if metrics.get("objects_beyond_max_dets")
    ]


def _plain(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    plain: dict[str, dict[str, float]] = {}
    for task, metrics in found.items():
        if isinstance(metrics, Mapping):
            plain[task] = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
        else:
            plain.setdefault("summary", {})[task] = float(metrics)
    return plain
