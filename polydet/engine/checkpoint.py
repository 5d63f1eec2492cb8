"""Checkpoints that are written whole or not at all."""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from polydet.files import write_text
from polydet.sealed import save_sealed
from polydet.weight_files import CheckpointError, read_checkpoint


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, but a file appears under its name only when it is complete.

    A run that is killed while it saves keeps its previous checkpoint; files open with ``weights_only``.  Where a run
    averages its weights, ``model`` is the average, as it is evaluated; those that are trained are in the trainer's
    state.

    Attributes:
        facts: what is written beside the weights; ``labels``, which class each row is of.
        metrics: digest of the run's ``metrics.json`` at the checkpoint that was taken.
    """

    facts: dict[str, Any]

    def __init__(self, *args: Any, facts: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.facts = dict(facts or {})
        self.metrics = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``{name}.pth`` and then ``last_checkpoint``, each under a temporary name first.

        Beside the weights stands a digest of ``metrics.json`` as it is, which a resumed run writes on.

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
            if (metrics := path.with_name("metrics.json")).is_file():
                data["metrics"] = hashlib.sha256(metrics.read_bytes()).hexdigest()
            save_sealed(data, path)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that a resumed run starts from."""
        write_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_checkpoint(filename)

    def take(self, checkpoint: dict[str, Any]) -> None:
        """Load the model's part of a checkpoint that was read.

        Raises:
            CheckpointError: it is of another model.
        """
        self._load_model(checkpoint)
        self.metrics = str(checkpoint.get("metrics", ""))

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
