"""The rules that draw the goldens' weights and images, and the files as a whole."""

import numpy as np
import torch
from golden_file import DATA, batch, digest, load_golden
from golden_rules import draw, draw_image

FIRST_ROW = [0.94859, 0.6796873, 0.9676681]
IMAGE_SUMS = [16153, 17524, 11481]


def test_a_name_determines_its_numbers():
    """Literal values: a change of numpy, platform or rule would void every file."""
    np.testing.assert_array_equal(draw("a.weight", (2, 3)), draw("a.weight", (2, 3)))
    np.testing.assert_allclose(draw("a.weight", (2, 3))[0], FIRST_ROW, rtol=1e-6)
    assert not np.array_equal(draw("a.weight", (2, 3)), draw("b.weight", (2, 3)))
    assert draw_image("a", 9, 11).sum(axis=(1, 2)).tolist() == IMAGE_SUMS
    assert (draw("bn.running_var", (64,)) > 0).all()
    np.testing.assert_allclose(draw("a.bias", (3,), [("bias", 2.0, -1.0)]), 2 * draw("a.bias", (3,)) - 1, rtol=1e-6)


def test_objects_lie_in_their_image():
    for x in batch("any", [[30, 50, 9], [40, 20, 0]], 4):
        boxes = x["instances"].gt_boxes.tensor
        assert x["image"].shape[1:] == (x["height"], x["width"])
        assert ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, :2] >= 0)).all()
        assert (boxes[:, 2] <= x["width"]).all() and (boxes[:, 3] <= x["height"]).all()


def test_a_digest_tells_gradients_of_one_norm_apart():
    gradient = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    first, other, frozen = digest({"a": gradient}), digest({"a": gradient.flip(0)}), digest({"a": None})
    assert np.isclose(first[0, 0], other[0, 0]) and not np.allclose(first[0, 1:], other[0, 1:], rtol=0.1)
    assert np.isnan(frozen).all()


def test_files_are_small_and_say_where_they_come_from():
    files = sorted(DATA.glob("*.npz"))
    assert 0 < sum(file.stat().st_size for file in files) < 300 * 1024
    for file in files:
        header = load_golden(file.stem).header
        source = header["source"]
        exact = source["commit"] if "release" not in source else source["blob"]  # git's id of the first function's file
        assert source["repository"].startswith("https://github.com/") and len(exact) == 40
        assert header["source"]["functions"] and header["how"]
        assert file.stem in (DATA.parent / "README.md").read_text()
