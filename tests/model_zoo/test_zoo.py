"""Names, and the bridge to yacs."""

import pickle
from pathlib import Path

import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY

from polydet import model_zoo
from polydet.engine import CheckpointError, ConfigError, save_config
from polydet.engine.published import skip_published_weights


def test_names_are_configs_without_their_parts():
    names = model_zoo.list_configs()
    assert "quickstart/scaledet" in names and "scaledet_swinb" in names
    assert not any("common/" in name for name in names)
    assert model_zoo.config_path("quickstart/scaledet") == model_zoo.config_path("quickstart/scaledet.py")


def test_unknown_names_come_with_near_ones():
    with pytest.raises(ConfigError, match="quickstart/scaledet"):
        model_zoo.config_path("quickstart/scaldet")


def test_yacs_config_says_what_default_predictor_reads():
    cfg = model_zoo.get_cfg("scaledet_swinb", weights="model.pth", vocabulary=["cat", "dog"])
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT) == (800, 1333, "RGB")
    assert (
        cfg.POLYDET.WEIGHTS == "model.pth"
        and cfg.MODEL.WEIGHTS == ""
        and cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    )
    assert list(cfg.POLYDET.VOCABULARY) == ["cat", "dog"]
    assert model_zoo.get_cfg("quickstart/scaledet", overrides=["train.seed=3"]).POLYDET.OVERRIDES == ["train.seed=3"]


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_no_path_opens_a_pickle(tmp_path, suffix):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "proof",)

    file = tmp_path / f"evil{suffix}"
    file.write_bytes(pickle.dumps({"model": Evil(), "__author__": "me", "matching_heuristics": True}))
    small = "quickstart/codetr"
    with pytest.raises(CheckpointError):
        model_zoo.get(small, weights=file)
    with pytest.raises(CheckpointError):
        DefaultPredictor(model_zoo.get_cfg(small, weights=file))
    cfg = model_zoo.get_cfg(small)
    cfg.MODEL.WEIGHTS = str(file)
    with pytest.raises(ConfigError, match="get_cfg.*weights"):
        DefaultPredictor(cfg)
    assert not (tmp_path / "proof").exists()


def test_a_predictor_refuses_weights_of_half_the_model(tmp_path):
    state = model_zoo.get("quickstart/codetr", overrides=["model.backbone.bottom_up.weights=null"]).state_dict()
    half = dict(list(state.items())[: len(state) // 2])
    torch.save({"model": half}, tmp_path / "half.pth")
    cfg = model_zoo.get_cfg("quickstart/codetr", weights=tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match="would be random"):
        DefaultPredictor(cfg)


@pytest.mark.parametrize("name", ["scaledet_swinb", "detclipv2_swint"])
def test_the_config_that_a_run_saves_needs_no_published_weights_before_its_own(name, tmp_path):
    save_config(model_zoo.get_config(name), tmp_path / "config.yaml")
    cfg = model_zoo.get_config(tmp_path)
    assert cfg.model.backbone.bottom_up.weights
    skip_published_weights(cfg.model)
    assert cfg.model.backbone.bottom_up.weights is None
    assert cfg.model.get("text_tower", {"pretrained": None})["pretrained"] is None


def test_a_config_of_stages_says_which_folder_to_name(tmp_path):
    for build in (model_zoo.get, model_zoo.get_cfg):
        with pytest.raises(ConfigError, match="aligndet/pretrain or ./output/quickstart_aligndet/finetune"):
            build("quickstart/aligndet")
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="near: .*/finetune"):
        model_zoo.get_cfg(tmp_path)
