import pytest
from scaledet_parts import make_embeddings


@pytest.fixture(autouse=True)
def text_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYDET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def embeddings():
    return make_embeddings()
