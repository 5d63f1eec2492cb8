"""The oracle study on cases that can be counted by hand."""

import json

import numpy as np
import pytest

from metr.oracle import Objects, bounds, kept_adaptive, kept_uniform, rank_in_group, study

CASE = Objects(
    image=np.array([0, 0, 0, 0, 1, 1, 1]),
    category=np.array([2, 2, 2, 0, 0, 1, 1]),
    area=np.array([100.0, 5000.0, 900.0, 10.0, 20000.0, 40.0, 50.0]),
)


def test_largest_boxes_are_kept():
    assert rank_in_group(CASE).tolist() == [2, 0, 1, 0, 0, 1, 0]
    assert kept_uniform(CASE, 2).tolist() == [False, True, True, True, True, True, True]


def test_more_categories_than_top_k():
    """Image 0 keeps category 2 (three objects), image 1 keeps category 1 (two)."""
    assert kept_uniform(CASE, 5, top_k=1).tolist() == [True, True, True, False, False, True, True]


def test_adaptive_finds_one_of_each_category_first():
    assert kept_adaptive(CASE, 3).tolist() == [False, True, True, True, True, True, True]
    assert kept_adaptive(CASE, 2).tolist() == [False, True, False, True, True, False, True]


def test_bounds_of_a_hand_count():
    result = bounds(CASE, kept_uniform(CASE, 1))
    assert result["recall"] == pytest.approx(100 * 4 / 7)
    assert result["recall_small"] == pytest.approx(100 * 2 / 5)
    assert result["recall_medium"] == 100
    assert result["recall_large"] == 100
    assert result["class_recall"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 3) / 3)
    assert result["AP"] == pytest.approx(100 * (1 + 51 / 101 + 34 / 101) / 3)


def test_the_study_names_its_rows_and_refuses_nothing():
    rows = study(CASE, [1, 2], num_queries=4, top_k=2)
    assert list(rows) == [
        "best 1 of a category",
        "best 2 of a category",
        "uniform: 2 categories x 2",
        "adaptive: 4 queries",
    ]
    empty = np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match="no objects"):
        study(Objects(empty, empty, empty.astype(float)), [1])


def test_the_tool_reads_any_coco_file(tmp_path, capsys):
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location(
        "oracle_recall", Path(__file__).parents[2] / "tools" / "oracle_recall.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    boxes = [[0, 0, 10, 10], [20, 20, 8, 8], [40, 40, 5, 5]]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}],
        "categories": [{"id": 7, "name": "cup"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 7, "bbox": b, "area": b[2] * b[3], "iscrowd": int(i == 2)}
            for i, b in enumerate(boxes)
        ],
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
    out = tmp_path / "out.json"
    tool.main(tool.parse_args([str(tmp_path / "data.json"), "--keep", "1", "--output", str(out)]))
    (rows,) = json.loads(out.read_text()).values()
    assert rows["best 1 of a category"]["recall"] == 50
    assert "2 objects in 1 images" in capsys.readouterr().out
