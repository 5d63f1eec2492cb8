"""tools/tables.py: pages are what the ledger says, results belong to exact rows, values are traced to their file."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from ledger_row import load
from omegaconf import OmegaConf

from polydet import model_zoo
from polydet.engine.config import REQUIRED_KEYS

ROOT = Path(__file__).resolve().parents[2]
HEADLINES = {
    "scaledet_swinb": "scaledet/table2_scaledet_swin_b_openclip",
    "metr_r50_12ep": "metr/table2_metr_r50_12ep",
    "codetr_co_dino_r50": "codetr/table4_co_dino_5scale_r50_12ep",
    "codetr_co_dino_vitl": "codetr/table5_co_dino_vit_l_o365_coco_12ep",
    "aligndet_fcos_r50": "aligndet/table2_fcos_r50_90k_align",
    "detclipv2_swint": "detclipv2/supp_table5_detclipv2_swin_t_o365_goldg_cc15m",
}


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("tables_tool", ROOT / "tools" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ledger(tool):
    return tool.read_ledger()


def test_pages_in_docs_are_up_to_date(tool, ledger, tmp_path):
    committed = ROOT / "docs" / "tables"
    if (committed / "measured.json").is_file():
        shutil.copy(committed / "measured.json", tmp_path)
    tool.write_pages(ledger, tmp_path, {})
    stale = [p.name for p in tmp_path.iterdir() if p.read_text() != (committed / p.name).read_text()]
    assert not stale, f"{stale}: run python tools/tables.py --write docs/tables"
    assert {p.name for p in committed.iterdir()} == {p.name for p in tmp_path.iterdir()}


def test_results_belong_to_the_row_that_was_run_and_to_no_other(tool, ledger, tmp_path):
    runs = {
        "row": ["train.output_dir=out", "data.percent=5"],
        "shorter": ["data.percent=5", "train.max_iter=10"],
        "grid": [],
    }
    for name, overrides in runs.items():
        folder = tmp_path / name
        folder.mkdir()
        config = "/any/where/configs/aligndet/table2_fcos_r50_12k_base.py"
        (folder / "run.json").write_text(json.dumps({"config_file": config, "overrides": overrides}))
        result = {"coco_2017_val": {"bbox": {"AP": len(name), "AP50": 1.0}}}
        (folder / "results.json").write_text(json.dumps(result))
    (tmp_path / "no_file").mkdir()
    (tmp_path / "no_file" / "run.json").write_text(json.dumps({"config_file": None, "overrides": []}))
    found = tool.read_runs(ledger, tmp_path)
    assert found == {
        "aligndet/table2_fcos_r50_12k_base.py data.percent=5": {"coco_2017_val/bbox": 3},
        "aligndet/table2_fcos_r50_12k_base.py": {"coco_2017_val/bbox": 4},
    }
    tool.write_pages(ledger, tmp_path / "pages", found)
    tool.write_pages(ledger, tmp_path / "pages", {})  # kept
    page = (tmp_path / "pages" / "aligndet.md").read_text()
    assert page.count("coco_2017_val/bbox 3") == page.count("coco_2017_val/bbox 4") == 1


def test_a_page_shows_the_paper_ours_and_departures(tool, ledger, tmp_path):
    tool.write_pages(ledger, tmp_path, {})
    page = (tmp_path / "aligndet.md").read_text()
    assert "not run" in page and "left out: DETReg" in page
    assert "**iterations** of `pretrain_mask_rcnn_simmim_*`: The published run has batch 32" in page


def test_explain_names_the_file_that_set_a_value(tool, capsys):
    tool.explain("scaledet/table2_scaledet_swin_b_clip", "")
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[2:] if line.strip()}
    base = "configs/scaledet/table1_scaledet_r50_l_c_o365_oid.py"
    assert lines["train.max_iter"][1:] == ["750000", base]
    assert lines["train.output_dir"][-1] == "configs/scaledet/table2_scaledet_swin_b_clip.py"
    assert lines["dataloader.train.mapper.augmentations.size"][1:] == [
        "896",
        "configs/scaledet/table2_scaledet_swin_b_clip.py",
    ]
    assert lines["train.log_period"][-1] == "configs/common/train.py"


def test_an_unknown_table_names_near_ones(tool, ledger):
    with pytest.raises(SystemExit, match="near: .*scaledet/table_2"):
        tool.show_table(ledger, "scaledet/tabel_2", {})


@pytest.mark.parametrize("name", HEADLINES)
def test_headlines_are_their_rows(name):
    def settings(config):
        cfg = load(f"{config}.py")
        plain = {key: OmegaConf.to_container(cfg[key], resolve=False) for key in REQUIRED_KEYS}
        plain["train"].pop("output_dir")
        return plain

    assert settings(name) == settings(HEADLINES[name])
    assert name in model_zoo.list_configs()
