"""One thread a test process: two OpenMP threads on shared cores can be ten times slower than one."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def no_cards_left_behind():
    """Dataset cards that a module registers go with it: the registry is one per process, the files are not."""
    registry = sys.modules.get("polydet.data.card")
    before = set(registry._CARDS) if registry else None
    yield
    registry = sys.modules.get("polydet.data.card")
    if registry is None or before is None:
        return
    for name in set(registry._CARDS) - before:
        del registry._CARDS[name]
        registry.DatasetCatalog.remove(name)
