"""One reader for pictures of any bit depth, turn and size."""

import logging

import numpy as np
import pytest
from PIL import Image

from polydet.data import DatasetError, read_image, to_uint8
from polydet.data import images as module

RAMP = np.linspace(0, 1, 48 * 64).reshape(48, 64)


@pytest.fixture(autouse=True)
def _said(monkeypatch):
    monkeypatch.setattr(module, "_SAID", set())


def save(path, array):
    Image.fromarray(array).save(path)
    return {"file_name": str(path), "height": array.shape[0], "width": array.shape[1]}


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("a.png", (RAMP * 65535).astype(np.uint16)),
        ("a.tif", (RAMP * 65535).astype(np.uint16)),
        ("b.tif", (RAMP * 4095).astype(np.uint16)),
        ("c.tif", (RAMP * 255).astype(np.uint16)),
        ("d.tif", (RAMP * 65535).astype(np.int32)),
        ("e.tif", RAMP.astype(np.float32)),
        ("f.tif", (RAMP * 255).astype(np.float32)),
    ],
)
def test_deep_pictures_keep_their_grey_values(tmp_path, caplog, name, samples):
    """16, 12 and 32 bits were cut to white or black before."""
    with caplog.at_level(logging.WARNING):
        image = read_image(save(tmp_path / name, samples))
        read_image(save(tmp_path / name, samples))
    assert image.shape == (48, 64, 3) and image.dtype == np.uint8
    assert np.abs(image[:, :, 0] - RAMP * 255).max() <= 1.5 and (image[:, :, 0] == image[:, :, 2]).all()
    assert len(caplog.records) == 1 and name in caplog.text, "the rule is said once"


@pytest.mark.parametrize("samples", [RAMP * -1, RAMP * 1e6, np.where(RAMP > 0.5, np.nan, RAMP)])
def test_samples_without_a_rule_are_refused(tmp_path, samples):
    record = save(tmp_path / "x.tif", samples.astype(np.float32))
    with pytest.raises(DatasetError, match=r"x\.tif.*float32"):
        read_image(record)


def test_to_uint8():
    assert to_uint8(np.array([True, False])).tolist() == [255, 0]
    assert to_uint8(np.array([0, 1023], np.uint16)).tolist() == [0, 255]
    assert to_uint8(np.array([0.5])).tolist() == [128]
    for bad in (np.array(["a"]), np.array([1j]), np.zeros((0, 3), np.float32)):
        with pytest.raises(DatasetError):
            to_uint8(bad, "given array")


def exif(path, size, turn):
    image = Image.fromarray(np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3))
    tags = Image.Exif()
    tags[0x0112] = turn
    image.save(path, exif=tags)
    return image


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_turned_picture_annotated_as_stored_is_named(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    exif(path, (64, 48), 6)
    assert read_image({"file_name": str(path), "height": 64, "width": 48}).shape == (64, 48, 3)
    with pytest.raises(DatasetError, match="48x64 but annotated as 64x48.*\n.*\n?.*EXIF tag turns it by 90"):
        read_image({"file_name": str(path), "height": 48, "width": 64})


def test_size_is_compared_before_decoding(tmp_path, monkeypatch):
    record = save(tmp_path / "a.png", np.zeros((40, 50, 3), np.uint8))
    monkeypatch.setattr(module, "_decoded", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DatasetError, match="50x40 but annotated as 64x48"):
        read_image({**record, "height": 48, "width": 64})


def test_limit_of_pixels(tmp_path, monkeypatch):
    record = save(tmp_path / "a.png", np.zeros((40, 50, 3), np.uint8))
    monkeypatch.setenv(module.MAX_PIXELS_VARIABLE, "1999")
    with pytest.raises(DatasetError, match="POLYDET_MAX_IMAGE_PIXELS to the number"):
        read_image(record)
    monkeypatch.setenv(module.MAX_PIXELS_VARIABLE, "2000")
    before = Image.MAX_IMAGE_PIXELS
    assert read_image(record).shape == (40, 50, 3)
    assert before == Image.MAX_IMAGE_PIXELS
    monkeypatch.setenv(module.MAX_PIXELS_VARIABLE, "many")
    with pytest.raises(DatasetError, match="'many', not a number"):
        read_image(record)


def test_modes(tmp_path):
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 0] = 200
    for mode in ("RGB", "RGBA", "P", "CMYK"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.fromarray(colour).convert(mode).save(path)
        assert np.abs(read_image({"file_name": str(path)})[0, 0].astype(int) - [200, 0, 0]).max() <= 4, mode
    with pytest.raises(ValueError, match="image_format"):
        read_image({"file_name": str(path)}, "YUV-BT.601")
