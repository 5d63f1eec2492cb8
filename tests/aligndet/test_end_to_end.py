"""The quickstart's stages through the engine, two steps each, on a dozen small pictures."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_configs import ROOT

from polydet.data import DatasetCard
from polydet.engine import load_config, run
from polydet.engine.image_domain import object_crops, pretrain_backbone


@pytest.fixture
def stages(card, tmp_path):
    overrides = [
        f"train.output_dir={tmp_path / 'run'}",
        f"stages.backbone.run.dataset={card.name}",
        "stages.backbone.run.iterations=2",
        "stages.backbone.run.batch_size=4",
        f"stages.proposals.run.dataset={card.name}",
        "stages.proposals.run.workers=1",
    ]
    for name in ("pretrain", "finetune"):
        overrides += [
            f"stages.{name}.dataloader.train.datasets=[{card.name}]",
            f"stages.{name}.dataloader.train.num_workers=0",
            f"stages.{name}.dataloader.train.total_batch_size=2",
            f"stages.{name}.train.max_iter=2",
            f"stages.{name}.train.device=cpu",
            f"stages.{name}.train.pictures=0",
        ]
    overrides += [
        f"stages.finetune.dataloader.test_datasets=[{card.name}]",
        "stages.finetune.dataloader.test.num_workers=0",
    ]
    return load_config(ROOT / "quickstart" / "aligndet.py", overrides)


def test_pipeline_runs_and_the_backbone_arrives_unchanged(stages, card: DatasetCard, tmp_path):
    results = run(stages)
    out = tmp_path / "run"
    assert "AP" in results[card.name]["bbox"]
    assert (out / "proposals.columns" / "columns.json").is_file()
    pretrained = torch.load(out / "pretrain" / "model_final.pth", weights_only=True)["model"]
    prefix = "online.detector.backbone.bottom_up.body."
    for key, value in load_file(out / "backbone.safetensors").items():
        if prefix + key in pretrained:  # the stem's last maps are not used
            assert torch.equal(pretrained[prefix + key], value), key
    assert prefix + "layer4.0.bn1.running_mean" in pretrained
    assert int(pretrained["updated_at"]) == 1  # at the start of the second step
    log = (out / "finetune" / "log.txt").read_text()
    assert "weights from" in log and "only in the file" not in log and "shape conflict" not in log
    losses = [json.loads(line) for line in (out / "pretrain" / "metrics.json").read_text().splitlines()]
    assert {"loss_contrastive", "loss_fcos_loc", "loss_fcos_ctr"} <= set(losses[-1])
    written = {path: path.stat().st_mtime_ns for path in out.glob("*/model_final.pth")}
    run(stages, resume=True)  # finished stages are left alone
    assert len(written) == 2 and all(path.stat().st_mtime_ns == time for path, time in written.items())


def test_backbone_from_crops_is_kept(card, tmp_path):
    crops, labels = object_crops(card.name, size=32)
    assert crops.shape == (12, 3, 32, 32) and labels.tolist() == [0] * 12
    first = pretrain_backbone(card.name, tmp_path / "b.safetensors", iterations=2, batch_size=4, crop_size=32)
    written = (tmp_path / "b.safetensors").stat().st_mtime_ns
    again = pretrain_backbone(card.name, tmp_path / "b.safetensors", iterations=2, batch_size=4, crop_size=32)
    assert first == again and (tmp_path / "b.safetensors").stat().st_mtime_ns == written
    pretrain_backbone(card.name, tmp_path / "b.safetensors", iterations=3, batch_size=4, crop_size=32)
    assert (tmp_path / "b.safetensors").stat().st_mtime_ns > written
