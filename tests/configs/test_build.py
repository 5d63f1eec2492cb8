"""Every config loads strictly and its model, optimiser and schedule can be built."""

import pytest
from detectron2.config import instantiate
from ledger_row import build
from omegaconf import open_dict

from polydet import model_zoo
from polydet.engine import load_config
from polydet.engine.config import stage_config
from polydet.engine.trust import check_trusted, plain_config

CARDS = ["dataloader.train.datasets=[coco_2017_train]", "dataloader.test_datasets=[coco_2017_val]"]
GROUPS = sorted({name.split("/")[0] if "/" in name else "." for name in model_zoo.list_configs()})


def configs(group):
    names = model_zoo.list_configs()
    return [n for n in names if n.startswith(f"{group}/") or (group == "." and "/" not in n)]


def runs(cfg):
    return [stage_config(cfg, s) for s in cfg.stages if "model" in cfg.stages[s]] if "stages" in cfg else [cfg]


@pytest.mark.parametrize("group", GROUPS)
def test_every_config_builds(anywhere, group):
    broken = {}
    for name in configs(group):
        try:
            for cfg in runs(load_config(model_zoo.config_path(name), CARDS if group == "finetune" else [])):
                check_trusted(plain_config(cfg), "config.yaml")  # as a run saves it, its folder may be opened
                model = build(cfg)
                optimizer_cfg = cfg.optimizer.copy()
                optimizer_cfg.params.model = model
                instantiate(optimizer_cfg)
                schedule = cfg.lr_multiplier.copy()
                with open_dict(schedule):
                    schedule.max_iter, schedule.iters_per_epoch = 100000, 7000.0
                assert 0 < instantiate(schedule)(0.0) <= 1
        except Exception as error:
            broken[name] = f"{type(error).__name__}: {error}"
    assert not broken, "\n".join(f"{name}: {why[:300]}" for name, why in broken.items())


def test_every_run_of_the_ledger_has_its_config_or_a_reason():
    import yaml

    ledger = yaml.safe_load((model_zoo.zoo.config_root() / "tables.yaml").read_text())
    without = {
        key
        for key, run in ledger["runs"].items()
        if not (model_zoo.zoo.config_root() / run["config"]).is_file() and not run.get("left_out")
    }
    assert not without, sorted(without)
    used = {
        row["run"] for p in ledger["papers"].values() for t in p["tables"].values() for row in t["rows"] if "run" in row
    }
    assert used == set(ledger["runs"])
