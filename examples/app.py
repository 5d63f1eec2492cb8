#!/usr/bin/env python
"""A trained model in an app: Detectron2's own DefaultPredictor and Visualizer, any words.

    python examples/app.py --run output/quickstart_scaledet --image photo.jpg
    python examples/app.py --run output/quickstart_scaledet --image photo.jpg --words ball brick wheel

Writes the picture beside the image (``photo.found.jpg``) and prints what was found.
"""

import argparse
from pathlib import Path

import cv2
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.utils.visualizer import Visualizer

from polydet import model_zoo
from polydet.data import DatasetError, read_image


def main() -> None:
    """Load, predict, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a run, or a config's name")
    parser.add_argument("--weights", help="checkpoint; default: the run's final weights")
    parser.add_argument("--image", required=True, type=Path)
    parser.add_argument("--words", nargs="+", help="what to look for; default: the classes of the training data")
    parser.add_argument("--min-score", type=float, default=0.3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    cfg = model_zoo.get_cfg(args.run, weights=args.weights, device=args.device, vocabulary=args.words)
    predictor = DefaultPredictor(cfg)
    try:
        image = read_image({"file_name": str(args.image)}, "BGR")  # upright, 8 bits, as in training
    except DatasetError as error:
        parser.error(str(error))
    instances = predictor(image)["instances"].to("cpu")
    # the words may change at any time; nothing is trained or loaded again:
    # predictor.model.set_vocabulary(["ball", "brick"])
    instances = instances[instances.scores >= args.min_score]

    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    boxes = instances.pred_boxes.tensor.tolist()
    for score, label, box in zip(instances.scores.tolist(), instances.pred_classes.tolist(), boxes):
        print(f"{score:.2f} {metadata.thing_classes[label]} {[round(x) for x in box]}")
    drawn = Visualizer(image[:, :, ::-1], metadata, scale=2.0).draw_instance_predictions(instances)
    path = args.image.with_suffix(".found.jpg")
    cv2.imwrite(str(path), drawn.get_image()[:, :, ::-1])
    print(f"{len(instances)} found, drawn in {path}")


if __name__ == "__main__":
    main()
