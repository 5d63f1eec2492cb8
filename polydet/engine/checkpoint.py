"""Checkpoints that are written whole or not at all, and loaded with a ledger of what was and was not loaded."""

import contextlib
import logging
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from tabulate import tabulate
from torch import Tensor, nn

from polydet.files import whole_file, write_text
from polydet.model_file import ModelFileError, is_model_file, read_model_file

logger = logging.getLogger(__name__)

_CLASSWISE = re.compile(r"cls|class|label|logit|score|embed")
KeyMap = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or does not fit the model."""


@dataclass
class LoadLedger:
    """What loading weights did.

    Attributes:
        loaded: keys whose tensors were copied.
        transferred: ``key: (rows copied, rows of the model)`` of class-wise tensors, copied by class name.
        missing: keys of the model that the checkpoint lacks; they keep their initial values.
        unexpected: keys of the checkpoint that the model lacks.
        conflicts: ``key: (shape in the checkpoint, shape in the model)``; not copied.
        modules: ``module: (parameters loaded, parameters)`` for the model's top-level modules.
    """

    loaded: list[str] = field(default_factory=list)
    transferred: dict[str, tuple[int, int]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    conflicts: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    modules: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        """Share of the model's elements that came from the checkpoint, 0 to 1."""
        total = sum(count for _, count in self.modules.values())
        return sum(count for count, _ in self.modules.values()) / total if total else 1.0

    def table(self) -> str:
        """A row a module and a line a conflict, for logs."""
        rows = [[name, n, total, f"{100 * n / total:.1f} %"] for name, (n, total) in self.modules.items() if total]
        lines = [tabulate(rows, headers=["module", "loaded", "elements", "coverage"])]
        lines += [
            f"shape conflict, not loaded: {k} is {a} in the file, {b} here" for k, (a, b) in self.conflicts.items()
        ]
        lines += [f"by class name: {k}: {n} of {total} rows" for k, (n, total) in self.transferred.items()]
        for title, keys in (("not in the file", self.missing), ("only in the file", self.unexpected)):
            if keys:
                lines.append(f"{title} ({len(keys)}): {', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}")
        return "\n".join(lines)


def read_checkpoint(path: str | os.PathLike[str], allow_pickle: bool = False) -> dict[str, Any]:
    """A checkpoint as ``{"model": state dict, ...}``.

    ``.safetensors`` and ``weights_only`` files are opened as they are; a file that needs pickle (Detectron2's ``.pkl``
    among them) only when ``allow_pickle`` says so, since a pickle can run code.

    Raises:
        CheckpointError: no such file, a damaged file, or one that needs pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist")
    if is_model_file(path):
        return _of_model_file(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            data: Any = load_file(path)
        elif path.suffix == ".pkl":
            data = _unpickle(path, allow_pickle)
        else:
            data = torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{str(path)!r} holds more than tensors, and opening it could run code: {error}. If you trust its source, "
            "say train.init.allow_pickle=True"
        ) from error
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"checkpoint {str(path)!r} is damaged: {type(error).__name__}: {error}") from error
    for key in ("model", "state_dict", "model_state"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            return {**data, "model": dict(data[key])}
    if not isinstance(data, Mapping) or not any(isinstance(v, Tensor) for v in data.values()):
        raise CheckpointError(f"checkpoint {str(path)!r} has no state dict (keys model, state_dict or tensors)")
    return {"model": dict(data)}


def _of_model_file(path: Path) -> dict[str, Any]:
    try:
        file = read_model_file(path)
    except ModelFileError as error:
        raise CheckpointError(str(error)) from error
    return {"model": file.state, "labels": file.header.get("labels")}


def _unpickle(path: Path, allow_pickle: bool) -> Any:
    if not allow_pickle:
        raise CheckpointError(
            f"{str(path)!r} is a pickle, which can run code; if you trust it: train.init.allow_pickle=True"
        )
    with path.open("rb") as file:
        data = pickle.load(file, encoding="latin1")
    state = data.get("model", data)
    return {"model": {k: torch.as_tensor(v) for k, v in state.items() if not isinstance(v, str)}}


def load_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    min_coverage: float = 0.5,
    key_map: KeyMap | None = None,
    class_names: tuple[Sequence[str], Sequence[str]] | None = None,
    skip: Sequence[str] = (),
) -> LoadLedger:
    """Copy what fits from ``state`` into ``model`` and report the rest.

    Args:
        model: receives the weights.
        state: tensors by name; a ``module.`` prefix is removed.
        min_coverage: least share of the model's elements that must be loaded.
        key_map: renames (or converts) the state dict first.
        class_names: (names in the checkpoint, names of the model): a tensor whose first dimension is the number of
            classes in its own world is copied row by row, by name.
        skip: prefixes of keys of the state dict that are left out.

    Raises:
        CheckpointError: coverage below ``min_coverage``; the message holds the ledger.
    """
    source = {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    if key_map is not None:
        source = key_map(source)
    source = {k: v for k, v in source.items() if not k.startswith(tuple(skip))} if skip else source
    target = model.state_dict()
    ledger = LoadLedger()
    chosen: dict[str, Tensor] = {}
    for key, value in source.items():
        if key not in target:
            ledger.unexpected.append(key)
            continue
        same_shape = target[key].shape == value.shape
        by_name = not same_shape or bool(_CLASSWISE.search(key))  # as many classes need not be the same classes
        rows = _rows_by_name(value, target[key], class_names) if by_name else None
        if rows is not None:
            chosen[key], ledger.transferred[key] = rows
        elif same_shape:
            chosen[key] = value
            ledger.loaded.append(key)
        else:
            ledger.conflicts[key] = (tuple(value.shape), tuple(target[key].shape))
    ledger.missing = [k for k in target if k not in chosen and k not in ledger.conflicts]
    _count_modules(model, ledger)
    if ledger.coverage < min_coverage:
        raise CheckpointError(
            f"only {100 * ledger.coverage:.1f} % of the model's weights are in the checkpoint, less than "
            f"train.init.min_coverage={min_coverage}:\n{ledger.table()}"
        )
    model.load_state_dict(chosen, strict=False)
    return ledger


def _rows_by_name(
    value: Tensor, target: Tensor, class_names: tuple[Sequence[str], Sequence[str]] | None
) -> tuple[Tensor, tuple[int, int]] | None:
    if class_names is None or value.dim() == 0 or value.shape[1:] != target.shape[1:]:
        return None
    old, new = ([name.replace("_", " ").lower() for name in names] for names in class_names)
    if old == new:
        return None
    extra = len(value) - len(old)  # one more row: background or no-object, last
    if extra not in (0, 1) or len(target) - len(new) != extra:
        return None
    row = {name: i for i, name in enumerate(old)}
    pairs = [(i, row[name]) for i, name in enumerate(new) if name in row]
    result = target.clone()
    for i, j in pairs:
        result[i] = value[j]
    if extra:
        result[-1] = value[-1]
    return result, (len(pairs), len(new))


def _count_modules(model: nn.Module, ledger: LoadLedger) -> None:
    loaded = set(ledger.loaded)
    counts: dict[str, list[int]] = {}
    for key, parameter in model.named_parameters():
        count = counts.setdefault(key.split(".")[0], [0, 0])
        count[1] += parameter.numel()
        if key in loaded:
            count[0] += parameter.numel()
        elif key in ledger.transferred:
            rows, total = ledger.transferred[key]
            count[0] += parameter.numel() * rows // max(total, 1)
    ledger.modules = {name: (n, total) for name, (n, total) in counts.items()}


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, but a file appears under its name only when it is complete.

    A run that is killed while it saves keeps its previous checkpoint; files open with ``weights_only``.  Where a run
    averages its weights, ``model`` is the average, as it is evaluated; those that are trained are in the trainer's
    state.

    Attributes:
        facts: what is written beside the weights; ``labels``, which class each row is of.
    """

    facts: dict[str, Any]

    def __init__(self, *args: Any, facts: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.facts = dict(facts or {})

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``{name}.pth`` and then ``last_checkpoint``, each under a temporary name first.

        Raises:
            OSError: the disk is full or not writable; the previous checkpoint is untouched.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = Path(self.save_dir) / f"{name}.pth"
        with getattr(self.checkpointables.get("trainer"), "averaged", contextlib.nullcontext)():
            data = {
                "model": self.model.state_dict(),
                **{k: v.state_dict() for k, v in self.checkpointables.items()},
                **self.facts,
                **kwargs,
            }
            with whole_file(path) as temporary:
                torch.save(data, temporary)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that a resumed run starts from."""
        write_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_checkpoint(filename)

    def _load_model(self, checkpoint: Any) -> Any:
        """Detectron2's only warns of keys and shapes that differ, and the run would go on from half a model."""
        stored = checkpoint.get("labels")
        if stored and self.facts.get("labels") and stored != self.facts["labels"]:
            raise CheckpointError(
                f"the checkpoint in {self.save_dir} was trained on other classes, or in another order, than the cards "
                "now name: --resume goes on with the same ones (train.init_checkpoint takes its rows by name)"
            )
        found = super()._load_model(checkpoint)
        lines = [f"{key}: {tuple(a)} in the file, {tuple(b)} here" for key, a, b in found.incorrect_shapes]
        shapes = {key for key, *_ in found.incorrect_shapes}
        lines += [f"not in the file: {key}" for key in found.missing_keys if key not in shapes]
        lines += [f"only in the file: {key}" for key in found.unexpected_keys]
        if lines:
            raise CheckpointError(
                f"the checkpoint in {self.save_dir} is of another model, --resume goes on with the same one "
                "(train.init_checkpoint starts from what fits of any):\n" + "\n".join(lines[:8])
            )
        return found
