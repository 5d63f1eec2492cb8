"""Weights from any file into a model, with a ledger of what was and was not loaded, and no wrong load that passes."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polydet.engine.layouts import find_layout, rows_of_zoo
from polydet.engine.ledger import CLASSWISE, DERIVED, LoadLedger, problems_of
from polydet.engine.renamed import renamed_state
from polydet.weight_files import CheckpointError, read_checkpoint

logger = logging.getLogger(__name__)

KeyMap = Callable[[dict[str, Tensor]], dict[str, Tensor]]
ClassNames = tuple[Sequence[str], Sequence[str]]


def load_file(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    checkpoint: Mapping[str, Any] | None = None,
    complete: bool = True,
    names: Sequence[str] | None = None,
    key_map: KeyMap | None = None,
    **options: Any,
) -> LoadLedger:
    """Weights of a file into a model, whoever wrote the file.

    A released file is recognised by the names and shapes in it (`polydet.engine.layouts`) and renamed; rows of its
    class heads go to the model's classes by name.

    Args:
        path: see :func:`read_checkpoint`.
        checkpoint: what is in the file, where it has been read already.
        complete: as :func:`load_weights`.
        names: classes of the model in order, where it has fixed ones.
        key_map: renames (or converts) the state dict in place of what a layout would do.
        options: further arguments of :func:`load_weights`.

    Raises:
        CheckpointError: a file that cannot be read or does not fit; names the file and the remedy.
    """
    checkpoint = read_checkpoint(path) if checkpoint is None else checkpoint
    state = {k.removeprefix("module."): v for k, v in checkpoint["model"].items()}
    source = str(path)
    covers: tuple[str, ...] = ()
    left_out: dict[str, list[str]] = {}
    rows = rows_of_zoo(checkpoint)
    try:
        layout = find_layout(state, model) if key_map is None else None
        if layout is not None:
            source = f"{path}: {layout.name}"
            if layout.heed_name is not None:
                layout.heed_name(Path(path).name, model)
            converted = layout.convert(state, model)
            state, left_out, covers = converted.state, converted.left_out, tuple(converted.covers)
            rows = converted.row_names
        if rows is not None and names is not None and not options.get("class_names"):
            options["class_names"] = (rows, names)
        known = layout is not None  # then every tensor must have a place
        ledger = load_weights(model, state, complete=complete, key_map=key_map, covers=covers, known=known, **options)
    except (CheckpointError, ValueError, KeyError) as error:
        text = error.args[0] if error.args else error
        raise CheckpointError(f"{source} does not fit the model: {text}") from error
    ledger.source, ledger.left_out = source, left_out
    logger.info("weights from %s: %.1f %% of the model\n%s", source, 100 * ledger.coverage, ledger.table())
    return ledger


def load_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    min_coverage: float = 0.5,
    key_map: KeyMap | None = None,
    class_names: ClassNames | None = None,
    skip: Sequence[str] = (),
    fresh: Sequence[str] = (),
    complete: bool = False,
    covers: Sequence[str] = (),
    known: bool = False,
) -> LoadLedger:
    """Copy what fits from ``state`` into ``model`` and report the rest.

    Args:
        model: receives the weights.
        state: tensors by name; a ``module.`` prefix is removed.
        min_coverage: least share of each top-level module's elements that must be loaded.
        key_map: renames (or converts) the state dict first; what its attribute ``fresh`` names is added to ``fresh``.
        class_names: (names in the checkpoint, names of the model): a tensor whose first dimension is the number of
            classes in its own world is copied row by row, by name.
        skip: prefixes of keys of the state dict that are left out; the model's may then keep their initial values.
        fresh: prefixes of the model's keys that may keep their initial values.
        complete: nothing may keep its initial value, whatever ``min_coverage`` and ``fresh`` say (evaluation).
        covers: prefixes of the model that the file is of; without ``complete`` the rest is not judged.
        known: the names are the model's: one that it lacks is an error wherever it is.

    Raises:
        CheckpointError: a module below ``min_coverage``, a tensor of another shape, one that the model lacks although
            it has its module, a class without a row under ``complete``, or values that are NaN or of another type; the
            message holds remedy and ledger, and the model is as it was.
    """
    source = {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    source = renamed_state(source, model)
    if key_map is not None:
        source = key_map(source)
        fresh = [*fresh, *getattr(key_map, "fresh", ())]
    fresh = [*fresh, *skip]
    source = {k: v for k, v in source.items() if not k.startswith(tuple(skip))} if skip else source
    ledger, chosen = _match(model.state_dict(), source, class_names, _rows_by_place(model))
    _count_modules(model, ledger)
    _check_values(chosen, model.state_dict())
    problems = problems_of(model, ledger, min_coverage, [] if complete else list(fresh), complete, covers, known)
    if problems:
        raise CheckpointError("\n".join([*problems, ledger.table()]))
    model.load_state_dict(chosen, strict=False)
    return ledger


def _rows_by_place(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of tensors whose rows look like classes and are none, as the modules say in `rows_by_place`."""
    modules = model.named_modules()
    return tuple(
        f"{name}.{part}.".lstrip(".") for name, module in modules for part in getattr(module, "rows_by_place", ())
    )


def _match(
    target: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    class_names: ClassNames | None,
    by_place: tuple[str, ...] = (),
) -> tuple[LoadLedger, dict[str, Tensor]]:
    ledger = LoadLedger()
    chosen: dict[str, Tensor] = {}
    for key, value in source.items():
        if key not in target:
            if not DERIVED.search(key):
                ledger.unexpected.append(key)
            continue
        if key.startswith(by_place) and value.shape[1:] == target[key].shape[1:]:
            chosen[key] = torch.cat((value.to(target[key]), target[key][len(value) :]))[: len(target[key])]
            ledger.loaded.append(key)
            continue
        same_shape = target[key].shape == value.shape
        by_name = not same_shape or bool(CLASSWISE.search(key))  # as many classes need not be the same classes
        rows = _rows_by_name(value, target[key], class_names) if by_name else None
        if rows is not None:
            chosen[key], ledger.transferred[key] = rows
        elif same_shape:
            chosen[key] = value
            ledger.loaded.append(key)
        else:
            ledger.conflicts[key] = (tuple(value.shape), tuple(target[key].shape))
    found = chosen.keys() | ledger.conflicts.keys()
    ledger.missing = [k for k in target if k not in found and not DERIVED.search(k)]
    return ledger, chosen


def _rows_by_name(
    value: Tensor, target: Tensor, class_names: ClassNames | None
) -> tuple[Tensor, tuple[int, int]] | None:
    """Rows of ``value`` for the rows of ``target``; None for tensors that have no row a class."""
    if class_names is None or value.dim() == 0 or value.shape[1:] != target.shape[1:]:
        return None
    old, new = ([_plain(name) for name in names] for names in class_names)
    if old == new and value.shape == target.shape:
        return None
    # one row more is background, no object, or a label table's word for an unknown label: last
    extras = len(value) - len(old), len(target) - len(new)
    if extras not in ((0, 0), (1, 1), (1, 0)):
        return _rows_of_groups(value, target, class_names)
    row = {name: i for i, name in enumerate(old) if name}
    pairs = [(i, row[name]) for i, name in enumerate(new) if name in row]
    result = target.clone()
    for i, j in pairs:
        result[i] = value[j].to(result)
    if extras == (1, 1):
        result[-1] = value[-1].to(result)
    return result, (len(pairs), len(new))


def _rows_of_groups(value: Tensor, target: Tensor, class_names: ClassNames) -> tuple[Tensor, tuple[int, int]] | None:
    """Several rows a class: the four of a box (box predictors that are not class-agnostic), or one an anchor.

    The rows of a box lie together; in RetinaNet's head those of an anchor do, all classes of the first anchor first.
    """
    old, new = class_names
    each = len(value) // max(len(old), 1)
    if each < 2 or len(value) != each * len(old) or len(target) != each * len(new):
        return None
    if each == 4:
        found = _rows_by_name(value.unflatten(0, (-1, 4)), target.unflatten(0, (-1, 4)), class_names)
        return None if found is None else (found[0].flatten(0, 1), found[1])
    theirs, ours = (x.unflatten(0, (each, -1)).transpose(0, 1) for x in (value, target))
    found = _rows_by_name(theirs, ours, class_names)
    return None if found is None else (found[0].transpose(0, 1).flatten(0, 1), found[1])


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


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


def _check_values(chosen: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse values that no training leaves; where the model itself counts in integers, so may the file."""
    for key, value in chosen.items():
        if DERIVED.search(key) or value.numel() == 0 or not own[key].is_floating_point():
            continue
        if not value.is_floating_point() and not value.is_complex():
            raise CheckpointError(
                f"{key} is {str(value.dtype).removeprefix('torch.')}: weights of a quantised model, or of another kind"
            )
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{key} has values that are NaN or infinite: the training that wrote it diverged")
