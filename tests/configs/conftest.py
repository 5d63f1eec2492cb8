"""Configs without weights, text encoders or datasets: on the meta device, with embeddings of the right width."""

import pytest
from made_up_text import random_embeddings

from polydet.data.shapeworld.real_layout import write_real_layout
from polydet.text import MiniLMEncoder, OpenClipEncoder


@pytest.fixture(scope="module")
def anywhere(tmp_path_factory):
    """Real layouts for the configs that count images per class; encoders that need no weights."""
    root = tmp_path_factory.mktemp("real")
    write_real_layout(root / "data", train=4, val=2)
    patch = pytest.MonkeyPatch()
    patch.setenv("DETECTRON2_DATASETS", str(root / "data"))
    patch.setenv("POLYDET_CACHE", str(root / "cache"))  # nothing made up enters the real cache
    for encoder in (OpenClipEncoder, MiniLMEncoder):
        patch.setattr(encoder, "encode", random_embeddings)
    yield root
    patch.undo()
