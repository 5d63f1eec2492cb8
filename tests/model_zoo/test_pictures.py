"""What a predictor makes of pictures of all kinds: the same as of the file, or a refusal by name."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from polydet.data import DatasetError, read_image, to_picture
from polydet.model_zoo import Predictor
from polydet.model_zoo.zoo import _check_pictures

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]
DEEP = (GREY.astype(np.uint16) << 8) | GREY  # 16 bits of the same brightness


class Sees(nn.Module):
    """Keeps what it is given."""

    def forward(self, batch):
        self.seen = [item["image"].permute(1, 2, 0).numpy() for item in batch]
        found = Instances((6, 8), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
        return [{"instances": found} for _ in batch]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (RGB, RGB),
        (GREY, np.stack([GREY] * 3, 2)),
        (GREY[:, :, None], np.stack([GREY] * 3, 2)),
        (np.dstack([RGB, GREY]), RGB),
        (RGB.astype(np.float32), RGB),
        (RGB.astype(np.float64) / 255, RGB),
        (RGB > 127, (RGB > 127) * np.uint8(255)),
        (DEEP, np.stack([GREY] * 3, 2)),
        (RGB[::-1, ::-1], RGB[::-1, ::-1]),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(np.dstack([RGB, GREY])), RGB),
        (Image.fromarray(GREY), np.stack([GREY] * 3, 2)),
        (Image.fromarray(DEEP), np.stack([GREY] * 3, 2)),
    ],
)
def test_pictures_become_what_their_file_would(image, expected, tmp_path):
    model = Sees()
    assert len(Predictor(model, short=0)([image])) == 1
    assert model.seen[0].dtype == np.uint8 and np.array_equal(model.seen[0], expected)
    if isinstance(image, Image.Image):
        image.save(tmp_path / "a.png")
        assert np.array_equal(read_image({"file_name": str(tmp_path / "a.png")}), expected)


def test_an_exif_tag_turns_a_pillow_image_as_it_turns_a_file(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        turned = to_picture(opened)
        assert opened.size == (8, 6)
    assert np.array_equal(turned, np.rot90(RGB, -1)) and np.array_equal(
        turned, read_image({"file_name": str(tmp_path / "a.png")})
    )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 4, 3), np.uint8), r"images\[1\]: array of shape \(0, 4, 3\) has no pixels"),
        (np.zeros((3, 6, 8), np.uint8), r"images\[1\]: array of shape \(3, 6, 8\) is no picture"),
        (np.zeros(5, np.uint8), "is no picture"),
        (np.zeros((1, 6, 8, 3), np.uint8), "is no picture"),
        (torch.zeros(6, 8, 3), r"images\[1\]: image is of type Tensor"),
        (None, "of type NoneType"),
        (np.full((2, 2, 3), np.nan), "samples from nan to nan"),
        (np.full((2, 2, 3), -1, np.int32), "samples from -1 to -1"),
        (np.full((2, 2, 3), 70000, np.int32), "samples from 70000"),
        (np.full((2, 2, 3), "a"), "samples of type"),
        (np.full((2, 2, 3), 1j), "samples of type complex"),
        ("absent.jpg", "absent.jpg"),
    ],
)
def test_what_is_no_picture_is_named(image, message):
    with pytest.raises(DatasetError, match=message):
        Predictor(Sees(), short=0)([RGB, image])


def test_one_picture_is_no_list():
    for image in (RGB, "a.jpg", Image.fromarray(RGB)):
        with pytest.raises(DatasetError, match="takes a list of images"):
            Predictor(Sees(), short=0)(image)
    assert Predictor(Sees(), short=0)([]) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.dstack([RGB, GREY]), r"shape \(4, 6, 8\), not 3 channels"),
        (np.stack([DEEP] * 3, 2).astype(np.float32), "not 0 to 255"),
        (RGB / 255.0, r"floats in 0\.\.1"),
        (np.full((6, 8, 3), np.nan), "samples from nan"),
        (np.zeros((0, 8, 3)), "not 3 channels"),
        (RGB, None),
        (np.zeros((6, 8, 3)), None),
        (np.full((6, 8, 3), 1.0), None),
    ],
)
def test_detectron2s_predictor_passes_on_only_pictures(image, message):
    item = {"image": torch.as_tensor(np.asarray(image, np.float32).transpose(2, 0, 1).copy())}
    if message is None:
        _check_pictures(SimpleNamespace(training=False), ([item],))
        return
    with pytest.raises(DatasetError, match=message):
        _check_pictures(SimpleNamespace(training=False), ([item],))
