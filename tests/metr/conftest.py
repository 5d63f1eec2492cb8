import pytest


@pytest.fixture(autouse=True)
def text_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYDET_CACHE", str(tmp_path / "cache"))
