"""COCO-style AP for any card, by pycocotools through Detectron2."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from polydet.data import get_card, load_card
from polydet.data.readers.annotation_columns import valid_mask
from polydet.data.readers.json_file import load_json
from polydet.evaluation.limits import beyond_limit
from polydet.files import write_bytes

__all__ = ["CardCOCOEvaluator", "coco_ground_truth"]

logger = logging.getLogger(__name__)


class CardCOCOEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator for a card in any format.

    COCO files are scored as they are; what pycocotools needs and a file lacks (annotation ids, `area`, `iscrowd`,
    `info`; the box as mask where others have masks) is filled in. Without any mask there is no `segm` result. Other
    formats are scored on the annotations that the reader gives. Results: AP, AP50, AP75, APs, APm, APl and
    `AP-<class>`, from 0 to 100.

    Args:
        dataset_name: card name.
        output_dir: where predictions (and converted ground truth) are written.
        tasks: `bbox`, `segm`; None: what the predictions have.
        max_dets: detections that count of each class in an image; None: 100, COCO's. Where objects are beyond it,
            that is logged and stands in the results (`objects_beyond_max_dets`).
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        tasks: tuple[str, ...] | None = None,
        max_dets: int | None = None,
    ):
        self._table = table = load_card(dataset_name)  # also brings the metadata up to date
        self._place = {table.image_id(i): i for i in range(len(table))}
        card = get_card(dataset_name)
        meta = MetadataCatalog.get(dataset_name)
        native = card.format == "coco" and len(card.json_files) == 1 and not card.options.get("exclude_images_of")
        if not native:
            folder = Path(output_dir) if output_dir is not None else None
            if folder is None:
                raise ValueError(f"{dataset_name} is not one COCO file, so its evaluation needs an output_dir")
            meta.__dict__.pop("json_file", None)
            meta.json_file = str(write_ground_truth(dataset_name, folder / f"{dataset_name}_coco_format.json"))
            meta.__dict__.pop("thing_dataset_id_to_contiguous_id", None)
            meta.thing_dataset_id_to_contiguous_id = {k + 1: k for k in range(len(card.classes or ()))}
        options = {"max_dets_per_image": max_dets, "use_fast_impl": False}
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                super().__init__(dataset_name, tasks, True, output_dir, **options)
            except KeyError as error:  # the reader does without annotation ids, pycocotools' index does not
                if error.args != ("id",):
                    raise
                with _numbered(meta):
                    super().__init__(dataset_name, tasks, True, output_dir, **options)
            self._complete(meta.thing_dataset_id_to_contiguous_id, meta.thing_classes)
        if not len(table.labels):
            self._do_evaluation = False

    def evaluate(self, img_ids: Any = None) -> Any:
        """As Detectron2's; predictions are kept in the card's order, whatever the batches were."""
        self._predictions.sort(key=lambda prediction: self._place.get(prediction["image_id"], len(self._place)))
        return super().evaluate(img_ids)

    def _complete(self, ids: dict[Any, int], classes: list[str]) -> None:
        """Fill in what pycocotools needs; categories in the order of their ids, named as the card names them."""
        api = self._coco_api
        api.dataset.setdefault("info", {})
        annotations = api.dataset.get("annotations", [])
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number  # pycocotools takes a match with id 0 for none, and needs numbers
            x, y, w, h = annotation["bbox"]
            if not all(map(math.isfinite, (x, y, w, h))):
                annotation["bbox"] = [0.0, 0.0, 0.0, 0.0]
                annotation["ignore"] = annotation["iscrowd"] = 1
                w = h = 0.0
            annotation.setdefault("area", w * h)
            annotation.setdefault("iscrowd", 0)
        self._complete_masks(annotations)
        api.dataset["categories"] = [{"id": id_, "name": classes[k]} for id_, k in sorted(ids.items())]
        api.createIndex()
        self._names_by_id = [classes[k] for _, k in sorted(ids.items())]

    def _complete_masks(self, annotations: list[dict[str, Any]]) -> None:
        """Masks as the reader takes them; the box where an annotation has none but others have."""
        masks = [valid_mask(annotation.get("segmentation")) for annotation in annotations]
        without = [a for a, mask in zip(annotations, masks) if mask is None]
        self._has_masks = len(without) < len(annotations)
        if not self._has_masks:
            return
        for annotation, mask in zip(annotations, masks):
            x, y, w, h = annotation["bbox"]
            annotation["segmentation"] = mask or [[x, y, x + w, y, x + w, y + h, x, y + h]]
        self._boxes_as_masks = len(without)

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        """What the predictions have and the annotations too."""
        tasks = super()._tasks_from_predictions(predictions)
        name = self._metadata.name
        if "segm" in tasks and not self._has_masks:
            logger.warning("%s has no masks: the predicted ones are not scored", name)
            tasks = [task for task in tasks if task != "segm"]
        elif "segm" in tasks and self._boxes_as_masks:
            logger.warning("%s: %d annotations have no valid mask: their box is it", name, self._boxes_as_masks)
        return tasks

    def _derive_coco_results(self, coco_eval: Any, iou_type: str, class_names: Any = None) -> dict[str, float]:
        """Per-class results in the order of category ids, which is pycocotools' order."""
        results = super()._derive_coco_results(coco_eval, iou_type, self._names_by_id)
        return {**results, **beyond_limit(self._table, self._max_dets_per_image[-1], per_class=True)}


@contextlib.contextmanager
def _numbered(meta: Any) -> Iterator[None]:
    """Let a dataset's metadata name a temporary copy of its COCO file whose annotations have ids."""
    original = meta.json_file
    document = load_json(Path(original))
    for number, annotation in enumerate(document["annotations"], 1):
        annotation["id"] = number
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / Path(original).name
        copy.write_text(json.dumps(document))
        meta.__dict__.pop("json_file")
        meta.json_file = str(copy)
        try:
            yield
        finally:
            meta.__dict__.pop("json_file")
            meta.json_file = original


def coco_ground_truth(dataset_name: str) -> dict[str, Any]:
    """A card's annotations as a COCO document; category ids are contiguous ids + 1. Crowd and group-of are iscrowd."""
    table, card = load_card(dataset_name), get_card(dataset_name)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(len(table)):
        record = table.record(i)
        images.append({"id": record["image_id"], "height": record["height"], "width": record["width"]})
        images[-1]["file_name"] = record["file_name"]
        for annotation in record["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record["image_id"],
                    "category_id": annotation["category_id"] + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": annotation["iscrowd"],
                    **({"segmentation": annotation["segmentation"]} if "segmentation" in annotation else {}),
                }
            )
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(card.classes or ())]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def write_ground_truth(dataset_name: str, path: Path) -> Path:
    """Write `coco_ground_truth` (the main process writes, the others wait)."""
    import orjson
    from detectron2.utils import comm

    if comm.is_main_process():
        write_bytes(path, orjson.dumps(coco_ground_truth(dataset_name)))
    comm.synchronize()
    return path
