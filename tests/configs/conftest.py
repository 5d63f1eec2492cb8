"""Configs without weights, text encoders or datasets: on the meta device, with embeddings of the right width."""

import pytest
import torch
import torch.nn.functional as F

from polydet.data.shapeworld.real_layout import write_real_layout
from polydet.text import MiniLMEncoder, OpenClipEncoder


def random_embeddings(encoder, texts):
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(len(texts), encoder.dim, generator=generator, device="cpu"), dim=-1)


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
