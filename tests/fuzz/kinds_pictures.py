"""Image files: the pixels of Pillow alone, or a refusal."""

import io

import numpy as np
from PIL import Image, ImageOps

from polydet.data import DatasetError, read_image
from tests.fuzz.campaign import Wrong, kind
from tests.fuzz.mutate import change_bytes


@kind("picture")
class Picture:
    """JPEG with an EXIF turn, PNG (grey, palette, 16 bits), TIFF, BMP, WebP, GIF."""

    errors, named, share = DatasetError, ("picture",), 0.7

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        colour = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
        exif = Image.Exif()
        exif[274] = 6
        deep = Image.fromarray(rng.integers(0, 4000, (12, 16), np.uint16))
        self.files = [
            self.saved(colour, "JPEG", exif=exif), self.saved(colour, "JPEG"), self.saved(colour, "PNG"),
            self.saved(colour.convert("P"), "PNG"), self.saved(colour.convert("L"), "PNG"), self.saved(deep, "PNG"),
            self.saved(deep, "TIFF"), self.saved(colour, "BMP"), self.saved(colour, "WEBP", lossless=True),
            self.saved(colour.convert("P"), "GIF"), self.saved(colour, "TIFF"),
        ]  # fmt: skip

    @staticmethod
    def saved(image, form, **options):
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return buffer.getvalue()

    def seed(self):
        return {"picture": self.files[1]}

    def case(self, rng):
        return {"picture": change_bytes(rng.choice(self.files), rng)}

    def read(self, folder):
        try:
            known = {"height": 12, "width": 16}
            return read_image({"file_name": str(folder / "picture"), "image_id": 1, "dataset_name": "fuzzed", **known})
        except DatasetError as error:
            if "annotated as" not in str(error):
                raise
            return read_image({"file_name": str(folder / "picture")})

    def check(self, files, pixels):
        with Image.open(io.BytesIO(files["picture"])) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode.startswith(("I", "F")):
                grey = np.asarray(upright).astype(np.float64)
                depth = next(d for d in (8, 10, 12, 14, 16) if grey.max() < 2**d)
                expected = np.repeat(grey[:, :, None] / (2**depth - 1) * 255, 3, 2)
                if np.abs(pixels - expected).max() > 0.51:
                    raise Wrong("other pixels of a deep picture")
            elif not np.array_equal(pixels, np.asarray(upright.convert("RGB"))):
                raise Wrong("other pixels")
