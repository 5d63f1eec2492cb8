"""docs/released.md is what the tool writes, of configs that exist."""

import importlib.util
from pathlib import Path

from polydet import model_zoo

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_current_and_its_configs_exist():
    spec = importlib.util.spec_from_file_location("released_tool", ROOT / "tools" / "released.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.PAGE.read_text() == tool.page()
    rows = [row for _, _, rows in tool.GROUPS for row in rows]
    known = set(model_zoo.list_configs())
    assert not {row[3] for row in rows} - known
    for folder in ("detr/", "released/"):
        unlisted = {name for name in known if name.startswith(folder)} - {row[3] for row in rows}
        assert unlisted <= {"released/co_deformable_mask_r50"}
