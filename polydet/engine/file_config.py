"""The config in a model file."""

import os
from typing import Any

from omegaconf import DictConfig

from polydet.engine.errors import ConfigError
from polydet.engine.trust import check_trusted
from polydet.model_file import THIS_FILE, ModelFileError, read_header


def load_model_config(path: str | os.PathLike[str]) -> DictConfig:
    """The config in a model file, ready to be built: labels, words and definitions come from the file.

    ``train.init_checkpoint`` is the file, so that an evaluation of this config takes its weights.

    Raises:
        ConfigError: a damaged file, or a call that a file may not make.
    """
    try:
        header = read_header(path)
    except ModelFileError as error:
        raise ConfigError(str(error)) from error
    content = _with_path(header["config"], str(path))
    if header.get("labels"):
        content["labels"] = {"_target_": "polydet.text.stored_label_space", "file": str(path)}
    if isinstance(content.get("train"), dict):
        content["train"]["init_checkpoint"] = str(path)
    return check_trusted(content, str(path))


def _with_path(node: Any, path: str) -> Any:
    if isinstance(node, list):
        return [_with_path(item, path) for item in node]
    if isinstance(node, dict):
        return {key: _with_path(item, path) for key, item in node.items()}
    return path if node == THIS_FILE else node
