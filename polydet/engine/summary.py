"""What was run, where, how long it took and what it needed."""

import json
import logging
import platform
import resource
import sys
from pathlib import Path

import detectron2
import torch
from detectron2.utils import comm
from omegaconf import DictConfig

from polydet.files import write_text

logger = logging.getLogger(__name__)


def write_summary(cfg: DictConfig, file: Path, seconds: float, evaluation: bool = False) -> None:
    """Write config file, overrides, time in seconds, peak memory in MiB, device and versions as json; log them.

    Of an ``evaluation`` that is what it was called with itself, and which weights it looked at; the training's stand in
    the ``run.json`` of the training.
    """
    cuda = torch.cuda.is_available()
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    scale = 1 if sys.platform == "darwin" else 1024
    source = cfg.get("source", {})
    called = source.get("loaded", source) if evaluation else source
    summary = {
        "config_file": called.get("file"),
        "stage": source.get("stage"),
        "overrides": list(called.get("overrides", [])),
        **({"weights": cfg.train.init_checkpoint} if evaluation else {}),
        "seconds": round(seconds, 1),
        "peak_host_memory_mib": round(peak * scale / 2**20),  # the largest of this process and its workers
        "peak_device_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
        "processes": comm.get_world_size(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
    }
    write_text(file, json.dumps(summary, indent=2))
    logger.info("run: %s", summary)
