"""The config in a model file."""

import logging
import os
from typing import Any

from omegaconf import DictConfig

from polydet.engine.errors import ConfigError
from polydet.engine.trust import check_trusted
from polydet.model_file import THIS_FILE, ModelFileError, read_header

logger = logging.getLogger(__name__)


def load_model_config(path: str | os.PathLike[str]) -> DictConfig:
    """The config in a model file, ready to be built: labels, words and definitions come from the file.

    ``train.init_checkpoint`` is the file, so that an evaluation of this config takes its weights.

    Raises:
        ConfigError: a damaged file, or a call that a file may not make.
    """
    from polydet.engine.settings import defaults  # it stands on the reader of files

    try:
        header = read_header(path)
    except ModelFileError as error:
        raise ConfigError(str(error)) from error
    content = _with_path(header["config"], str(path))
    if header.get("labels"):
        content["labels"] = {"_target_": "polydet.text.stored_label_space", "file": str(path)}
    if isinstance(content.get("train"), dict):
        dropped = _drop_unknown(content["train"], defaults(), "train")
        if dropped:
            logger.info("%s was trained with settings that are no longer there: %s", path, ", ".join(dropped))
        content["train"]["init_checkpoint"] = str(path)
    return check_trusted(content, str(path))


def _drop_unknown(settings: dict[str, Any], known: dict[str, Any], prefix: str) -> list[str]:
    """Settings of the training say nothing about the use of a model: a file of an earlier version must still open."""
    dropped = []
    for key in list(settings):
        if key not in known:
            dropped.append(f"{prefix}.{key}")
            del settings[key]
        elif isinstance(known[key], dict) and known[key] and isinstance(settings[key], dict):
            dropped += _drop_unknown(settings[key], known[key], f"{prefix}.{key}")
    return dropped


def _with_path(node: Any, path: str) -> Any:
    if isinstance(node, list):
        return [_with_path(item, path) for item in node]
    if isinstance(node, dict):
        return {key: _with_path(item, path) for key, item in node.items()}
    return path if node == THIS_FILE else node
