"""Pictures of any bit depth and turn as uint8 RGB: one reader for training, evaluation, tools and applications."""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from polydet.data.errors import DatasetError

__all__ = ["MAX_PIXELS_VARIABLE", "exif_turn", "read_image", "to_picture", "to_uint8"]

logger = logging.getLogger(__name__)

MAX_PIXELS_VARIABLE = "POLYDET_MAX_IMAGE_PIXELS"
_MAX_PIXELS = 178_956_970  # where Pillow itself refuses: half a GiB of RGB
_DEPTHS = (8, 10, 12, 14, 16)  # bits a sample of cameras, scanners and microscopes
_WIDE_MODES = ("I", "F")  # and "I;16", "I;16B", ...: more than eight bits a sample
_SAID: set[str] = set()
_PILLOW_LIMIT = threading.Lock()


def read_image(record: dict[str, Any], image_format: str = "RGB") -> np.ndarray:
    """The image of a dataset dict, uint8 [H, W, 3], turned upright by its EXIF tag.

    ``file_offset`` and ``file_size``, where given, say which bytes of the file hold it (a member of a tar shard); of
    a file with several frames the first is read.  Samples of more than eight bits become eight by `to_uint8`; the
    rule is logged once.  The size is compared with the dict's before pixels are decoded.

    Args:
        record: ``file_name`` and, where known, ``height``, ``width``, ``image_id``, ``dataset_name``.
        image_format: order of the channels, ``RGB`` or ``BGR``.

    Raises:
        DatasetError: naming the file, if it is missing, no image, truncated, larger than the limit
            (``POLYDET_MAX_IMAGE_PIXELS``), of samples that have no rule, or of another size than the dict says.
    """
    if image_format not in ("RGB", "BGR"):
        raise ValueError(f"image_format is {image_format!r}: RGB or BGR")
    name = record["file_name"]
    try:
        with _open(_source(record)) as opened:
            _check_size(opened, record)
            image = _decoded(opened, name)
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:
        raise _error(
            record,
            f"image is larger than the limit of {_max_pixels():,} pixels ({error})",
            f"if the file is meant to be so large, set {MAX_PIXELS_VARIABLE} to the number of pixels to allow",
        ) from error
    except Exception as error:  # Pillow raises almost anything on a broken file
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        remedy = "fetch the image again or remove it from the annotations"
        if "\\" in str(name):
            remedy = "the name has the separator of Windows: write '/' in its place"
        raise _error(record, f"image cannot be read ({reason})", remedy) from error
    return np.ascontiguousarray(image[:, :, ::-1]) if image_format == "BGR" else image


def to_uint8(values: np.ndarray, source: object = "image") -> np.ndarray:
    """Samples of any type as uint8, by their range; the rule is logged once for each kind.

    uint8 and bool (as 0 and 255) as they are; other integers as if they had 8, 10, 12, 14 or 16 bits, the fewest that
    hold the largest sample; floats in 0..1 times 255; floats in 0..255 rounded.

    Args:
        values: any shape.
        source: what to call it in messages.

    Raises:
        DatasetError: negative, not finite or larger samples, or another type.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.kind not in "uif" or not values.size:
        raise DatasetError(f"image has samples of type {values.dtype} and shape {values.shape}", file=source)
    low, high = float(values.min()), float(values.max())
    found = f"image has {values.dtype} samples from {low:g} to {high:g}"
    if not np.isfinite([low, high]).all() or low < 0 or high > 65535:
        raise DatasetError(found, file=source, remedy="no rule makes 8 bits of them: save it with 8 or 16 bits")
    if values.dtype.kind == "f":
        if high > 255:
            raise DatasetError(found, file=source, remedy="save floats in 0..1 or 0..255, or 16-bit integers")
        scale, rule = (255.0, "0..1 becomes 0..255") if high <= 1 else (1.0, "0..255 is rounded")
        _say(f"{values.dtype} {rule}", "%s: %s: %s, here and in pictures like it", source, found, rule)
        return np.rint(values * scale).astype(np.uint8)
    depth = next(depth for depth in _DEPTHS if high < 2**depth)
    rule = f"read as {depth} bits a sample and scaled to 8"
    _say(f"{values.dtype} {depth}", "%s: %s: %s, here and in pictures like it", source, found, rule)
    most = 2**depth - 1
    return ((values.astype(np.uint32) * 255 + most // 2) // most).astype(np.uint8)


def to_picture(image: Any, source: object = "image") -> np.ndarray:
    """An array or a Pillow image as uint8 RGB [H, W, 3], by the rules that files are read by.

    Grey ([H, W], [H, W, 1]) is repeated, a fourth channel (alpha) is left out, samples become eight bits by
    `to_uint8`; a Pillow image is turned upright by its EXIF tag.

    Args:
        image: array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] in RGB, or a Pillow image.
        source: what to call it in messages.

    Raises:
        DatasetError: another type or shape, no pixels, or samples that have no rule.
    """
    if isinstance(image, Image.Image):
        image = _decoded(image.copy(), str(source))
    if not isinstance(image, np.ndarray):
        remedy = "give an array [H, W, 3], a Pillow image or a file"
        raise DatasetError(f"image is of type {type(image).__name__}", file=source, remedy=remedy)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or not image.size:
        what = "has no pixels" if image.ndim == 3 and not image.size else "is no picture"
        remedy = "give rows, columns and 1, 3 or 4 channels, in this order"
        raise DatasetError(f"array of shape {tuple(image.shape)} {what}", file=source, remedy=remedy)
    eight = to_uint8(image[:, :, :3], source)
    return np.ascontiguousarray(np.repeat(eight, 3, axis=2) if eight.shape[2] == 1 else eight)


def exif_turn(opened: Image.Image) -> int:
    """The EXIF orientation of an opened picture, 1 (upright) to 8; values that EXIF does not define count as 1."""
    turn = opened.getexif().get(ExifTags.Base.Orientation, 1)
    return turn if turn in range(1, 9) else 1


def _source(record: dict[str, Any]) -> Any:
    if "file_offset" not in record:
        return record["file_name"]
    with open(record["file_name"], "rb") as handle:
        handle.seek(record["file_offset"])
        return io.BytesIO(handle.read(record["file_size"]))


def _decoded(opened: Image.Image, name: str) -> np.ndarray:
    """Pixels as uint8 RGB [H, W, 3], upright."""
    if exif_turn(opened) != 1:
        _say("exif", "%s: its EXIF tag turns it; it and pictures like it are read upright, as boxes must be", name)
    ImageOps.exif_transpose(opened, in_place=True)
    if opened.mode.startswith(_WIDE_MODES):
        grey = to_uint8(np.asarray(opened), name)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(opened.convert("RGB"))


def _check_size(opened: Image.Image, record: dict[str, Any]) -> None:
    """Compare the header's size with the annotated one, where that is known.

    Pixels of a picture turned by 90 degrees must be annotated as it stands upright: that is how it is shown and read.
    """
    if not (record.get("width") and record.get("height")):
        return
    size, expected = opened.size, (record["width"], record["height"])
    remedy = "correct the annotation's size; its boxes would not fit"
    if expected not in (size, size[::-1]):  # before the EXIF tag, which may stand behind the pixels
        raise _size_error(record, size, expected, remedy)
    if exif_turn(opened) in (5, 6, 7, 8):
        size = size[::-1]
        remedy = (
            "its EXIF tag turns it by 90 degrees and the annotations are of the pixels as stored: "
            "remove the tag from the file (or turn the pixels and the boxes)"
        )
    if expected != size:
        raise _size_error(record, size, expected, remedy)


def _size_error(record: dict[str, Any], size: tuple[int, int], expected: tuple[int, int], remedy: str) -> DatasetError:
    what = f"image is {size[0]}x{size[1]} but annotated as {expected[0]}x{expected[1]} (width x height)"
    return _error(record, what, remedy)


def _error(record: dict[str, Any], what: str, remedy: str) -> DatasetError:
    where = f"image id {record.get('image_id')} of {record.get('dataset_name')}" if "image_id" in record else None
    return DatasetError(what, file=record["file_name"], where=where, remedy=remedy)


def _max_pixels() -> int:
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if text and not text.isdigit():
        raise DatasetError(f"{MAX_PIXELS_VARIABLE} is {text!r}, not a number of pixels")
    return int(text) if text else _MAX_PIXELS


def _open(source: Any) -> Image.Image:
    """Open a picture under our limit of pixels: Pillow, whose limit is a global, refuses at twice its own."""
    limit = _max_pixels()
    with _PILLOW_LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (limit + 1) // 2
        try:
            with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
                opened = Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    if opened.width * opened.height > limit:  # Pillow's is even
        opened.close()
        raise Image.DecompressionBombError(f"{opened.width * opened.height} pixels")
    return opened


def _say(kind: str, message: str, *args: object) -> None:
    """Log a rule the first time that it is used in this process."""
    if kind not in _SAID:
        _SAID.add(kind)
        logger.warning(message, *args)
