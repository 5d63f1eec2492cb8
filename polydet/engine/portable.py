"""A run's config and model as one file that needs no card, no data and no text encoder; see ``docs/model_file.md``."""

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_type_hints

import detectron2
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from polydet.data.card import find_card
from polydet.engine.config import DEFAULT_OUTPUT, ConfigError
from polydet.engine.labels import cards_of, label_space, labels_of, test_size, trained_words
from polydet.engine.published import skip_published_weights
from polydet.engine.renamed import renamed_state
from polydet.engine.thresholds import thresholds_in
from polydet.engine.trust import check_trusted, objects_in, plain_config
from polydet.model_file import THIS_FILE, ModelFile, ModelFileError, write_model_file
from polydet.text import LabelSpace
from polydet.weight_files import CheckpointError

logger = logging.getLogger(__name__)

NAME = "model.safetensors"
_VALUES = (int, float, str, bool, np.ndarray, LabelSpace)
_PACKAGES = ("polydet", "torch", "timm", "open_clip_torch")


def save_model_file(
    cfg: DictConfig,
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    operating: Mapping[str, float] | None = None,
    licence: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model``, which ``cfg`` built, as one file.

    Args:
        cfg: the run's config.
        model: its weights are written as they are now.
        path: of the file.
        operating: class name -> score from which on a detection of it counts, chosen on validation data.
        licence: terms of the weights.
        provenance: further facts about where the weights are from.

    Raises:
        ConfigError: a config with objects that a file cannot say, or labels that are not those of ``cfg``.
        OSError: see :func:`polydet.files.whole_file`.
    """
    space = label_space(cfg)
    names = trained_words(cfg)
    words, embeddings = _words(model, names)
    content = portable_config(cfg, model, names)
    header: dict[str, Any] = {
        "config": content,
        "classes": list(words["names"] if words else space.names if space else ()),
        "labels": None if space is None else labels_of(space),
        "words": words,
        "input": {"format": cfg.model.get("input_format", "RGB") or "RGB", "size": test_size(cfg)},
        "thresholds": asdict(thresholds_in(content["model"])),
        "operating": dict(operating) if operating else None,
        "licence": licence,
        "provenance": {**_provenance(cfg), **(provenance or {})},
    }
    check_trusted(content, str(path))
    state = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    write_model_file(path, ModelFile(header, state, embeddings))
    logger.info("the model as one file: %s (%d classes)", path, len(header["classes"]))


def leave_model_file(cfg: DictConfig, model: nn.Module, folder: Path, results: Mapping[str, Any]) -> None:
    """What a training leaves for use, ``model.safetensors``; a model that a file cannot hold leaves a line in the log.

    Args:
        results: of the last evaluation, kept with the weights.
    """
    if not getattr(model, "detects", True):
        return  # a pre-training
    kept = ("AP", "AP50", "mAP")
    scores = {
        dataset: {task: {k: v for k, v in metrics.items() if k in kept} for task, metrics in tasks.items()}
        for dataset, tasks in results.items()
    }
    try:
        save_model_file(cfg, model, folder / NAME, provenance={"results": scores})
    except (ConfigError, ModelFileError) as error:
        logger.warning("%s is not written, the run's folder opens with its cards: %s", folder / NAME, error)
    except OSError:
        raise
    except Exception:  # a training that has ended has ended, whatever a user's own parts do here
        logger.exception("%s is not written, the run's folder opens with its cards", folder / NAME)


def refuse_differences(model: nn.Module, state: Mapping[str, Tensor], file: str | os.PathLike[str]) -> None:
    """A model file holds one model whole, and nothing else.

    Raises:
        CheckpointError: keys that one of them lacks, or shapes that differ.
    """
    own, state = model.state_dict(), renamed_state(state, model)
    lines = [f"only in the file: {key}" for key in state if key not in own]
    lines += [f"not in the file: {key}" for key, value in own.items() if isinstance(value, Tensor) and key not in state]
    both = ((key, tuple(state[key].shape), tuple(own[key].shape)) for key in state if key in own)
    lines += [f"{key}: {a} in the file, {b} here" for key, a, b in both if a != b]
    if lines:
        raise CheckpointError(f"{file} is of another model:\n" + "\n".join(lines[:8]))


def portable_config(cfg: DictConfig, model: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """``cfg`` as plain data, without what only the machine of the training has.

    Interpolations in ``model`` and ``dataloader.test`` are resolved.  In ``model``, calls that give a value (a number
    of classes, a label space) become the value; a class with a method ``portable(node, names)`` says how it is written
    (a text encoder, definitions).

    Raises:
        ConfigError: objects that a file cannot say.
    """
    cfg = cfg.copy()
    cfg._set_flag("allow_objects", True)
    skip_published_weights(cfg.model)
    content = plain_config(cfg)
    for key in ("source", "labels"):
        content.pop(key, None)
    for key in ("model", "dataloader.test"):
        if OmegaConf.select(cfg, key) is None:
            continue
        parent, _, name = key.rpartition(".")
        values: Any = OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True)
        resolved = plain_config(OmegaConf.create({name: values}, flags={"allow_objects": True}))[name]
        (content[parent] if parent else content)[name] = resolved
    if objects := objects_in(content):
        raise ConfigError(f"a model file cannot say {', '.join(objects)}")
    content["model"] = _portable(content["model"], names, label_space(cfg), model)
    content["train"].update(output_dir=DEFAULT_OUTPUT, init_checkpoint="")
    content["train"].get("init", {}).update(key_map="", class_names=[], skip=[])
    return content


def _portable(node: Any, names: Sequence[str], space: LabelSpace | None, live: Any = None) -> Any:
    if isinstance(node, list):
        return [_portable(item, names, space) for item in node]
    if not isinstance(node, dict):
        return node
    target = locate(node["_target_"]) if isinstance(node.get("_target_"), str) else None
    if target is not None and _gives_value(target):
        return _plain_value(instantiate(OmegaConf.create(node)), space, node["_target_"])
    if target is not None and hasattr(target, "portable"):
        live = instantiate(OmegaConf.create(node)) if live is None else live
        node = live.portable(node, names)
        if node.get("file") == THIS_FILE:
            return node
    return {key: _portable(item, names, space) for key, item in node.items()}


def _gives_value(target: Any) -> bool:
    if not inspect.isfunction(target):
        return False
    given = get_type_hints(target).get("return")
    return inspect.isclass(given) and issubclass(given, _VALUES)


def _plain_value(value: Any, space: LabelSpace | None, target: str) -> Any:
    if isinstance(value, LabelSpace):
        if space is None or value.names != space.names:
            raise ConfigError(f"{target} in the model has other labels than dataloader.train.datasets")
        return {"_target_": "polydet.text.stored_label_space", "file": THIS_FILE}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _words(model: nn.Module, names: Sequence[str]) -> tuple[dict[str, Any] | None, Tensor | None]:
    """What a model that is asked for words knows of them, and their embeddings."""
    if not hasattr(model, "export_words"):
        return None, None
    training = model.training
    model.eval()
    with torch.no_grad():
        vocabulary, more = model.export_words(names)  # type: ignore[operator]
    model.train(training)
    words = {"names": list(vocabulary.names), "templates": list(vocabulary.templates), "encoder": vocabulary.encoder_id}
    return {**words, **more}, vocabulary.embeddings


def _provenance(cfg: DictConfig) -> dict[str, Any]:
    """Config, overrides, versions, and the datasets with their terms."""
    source = cfg.get("source") or {}
    file = Path(str(source.get("file", "")))
    datasets = [find_card(name) for name in cards_of(cfg)]
    return {
        "config": "/".join(file.parts[-3:]),
        "stage": source.get("stage"),
        "overrides": [str(text) for text in source.get("overrides", [])],
        "start": Path(str(cfg.train.init_checkpoint or "")).name,
        "datasets": [{"name": c.name, "from": c.url or c.about, "licence": c.licence} for c in datasets],
        "versions": {"detectron2": detectron2.__version__, **{name: _version(name) for name in _PACKAGES}},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
