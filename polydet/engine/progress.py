"""What a run tells while it runs: one moving line on a terminal, plain lines elsewhere; metrics as json lines."""

import hashlib
import json
import logging
import sys
from pathlib import Path

from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage
from tqdm import tqdm

from polydet.files import write_bytes

logger = logging.getLogger(__name__)


class TerminalProgress(EventWriter):
    """A tqdm line with losses, learning rate and time left."""

    def __init__(self, start_iter: int, max_iter: int) -> None:
        self._bar = tqdm(total=max_iter, initial=start_iter, unit="it", dynamic_ncols=True, smoothing=0.05)

    def write(self) -> None:
        storage = get_event_storage()
        values = {name: value for name, (value, _) in storage.latest().items()}
        shown = {"loss": f"{values.get('total_loss', 0.0):.3f}", "lr": f"{values.get('lr', 0.0):.2e}"}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(storage.iter + 1 - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def build_writers(output_dir: str | Path, start_iter: int, max_iter: int) -> list[EventWriter]:
    """Progress, ``metrics.json`` (a line each time) and TensorBoard, in Detectron2's form."""
    progress = TerminalProgress(start_iter, max_iter) if sys.stderr.isatty() else CommonMetricPrinter(max_iter)
    # window 1: the value of the step itself, so that a resumed run writes what an uninterrupted one does
    metrics = JSONWriter(str(Path(output_dir) / "metrics.json"), window_size=1)
    return [progress, metrics, TensorboardXWriter(str(output_dir))]


def drop_metrics_from(path: Path, start_iter: int, digest: str = "") -> None:
    """Remove what a killed run wrote at or after ``start_iter`` (and a torn last line): the resumed run writes it.

    Args:
        digest: SHA-256 of what should be left; another one is warned about.
    """
    kept = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            step = json.loads(line)["iteration"]
            if step < start_iter:
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            continue
    left = b"".join(line + b"\n" for line in kept)
    if digest and hashlib.sha256(left).hexdigest() != digest:
        logger.warning("%s is not what the run wrote before step %d: its curves are wrong there", path, start_iter)
    if path.is_file():
        write_bytes(path, left)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of ``metrics.json``, oldest first; an absent file is an empty list."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
