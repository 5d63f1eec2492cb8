"""A released file evaluated by the documented command, on a few pictures in COCO's layout."""

import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from released_names import shapes_of

ROOT = Path(__file__).resolve().parents[2]


def tiny_coco(root):
    """Two pictures of noise, one box each, COCO's 80 categories."""
    (root / "coco/annotations").mkdir(parents=True)
    (root / "coco/val2017").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in (1, 2):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(root / f"coco/val2017/{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64})
        box = [8, 8, 24, 16]
        annotations.append({"id": i, "image_id": i, "category_id": 90, "bbox": box, "area": 384, "iscrowd": 0})
    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "coco/annotations/instances_val2017.json").write_text(json.dumps(content))


def zoo_file(path):
    """Random weights under the zoo's names; the last class, a toothbrush, is what it always sees."""
    rng = np.random.default_rng(0)
    state = {}
    for key, shape in shapes_of("detectron2_faster_rcnn_r50_fpn").items():
        scale = (2 / max(np.prod(shape[1:]), 1)) ** 0.5 if len(shape) > 1 else 0
        state[key] = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        if key.endswith(("norm.weight", "running_var")):
            state[key] += np.float32(0.5)
    state["roi_heads.box_predictor.cls_score.weight"] *= np.float32(0)
    state["roi_heads.box_predictor.bbox_pred.weight"] *= np.float32(0)
    state["roi_heads.box_predictor.cls_score.bias"][79] = 5
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}))


def test_a_released_file_is_evaluated_by_one_command(tmp_path, monkeypatch):
    tiny_coco(tmp_path / "data")
    zoo_file(tmp_path / "model_final_280758.pkl")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "tools" / "lazyconfig_train_net.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    config = ROOT / "configs/released/detectron2_faster_rcnn_r50_fpn.py"
    arguments = [
        "--config-file",
        str(config),
        "--eval-only",
        f"train.init_checkpoint={tmp_path}/model_final_280758.pkl",
    ]
    arguments += [f"train.output_dir={tmp_path}/out", "dataloader.test.num_workers=0", "train.device=cpu"]
    arguments.append("model.proposal_generator.post_nms_topk=[50,50]")
    arguments += ["dataloader.test.mapper.augmentations.short=64", "dataloader.test.mapper.augmentations.max_size=96"]
    tool.main(tool.parse_args(arguments))
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["coco_2017_val"]["bbox"]["AP"] >= 0
    found = json.loads(next((tmp_path / "out/inference").rglob("*instances_results.json")).read_text())
    assert found and {item["category_id"] for item in found} == {90}
