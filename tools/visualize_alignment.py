"""Before and after box-domain pre-training: t-SNE of annotated boxes and centres of predicted boxes.

python tools/visualize_alignment.py --config-file configs/aligndet/pretrain_faster_rcnn_r50_1x.py \
    --weights output/aligndet/pretrain_faster_rcnn_r50_1x/model_final.pth \
    --dataset coco_2017_val --classes person car chair --per-class 5000 --output pictures

RetinaNet ranks boxes by its classifier alone, which pre-training does not have: it gets the first picture only.
"""

import argparse
import json
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from detectron2.config import instantiate

from aligndet.adapters import DetectorAdapter
from aligndet.analysis import annotated_views, box_embeddings, draw_centres, draw_tsne
from aligndet.pretrainer import AlignDet
from polydet.data import prepare_cards
from polydet.engine import ConfigError, load_config, load_file
from polydet.engine.command import command
from polydet.engine.config import stage_config
from polydet.engine.distributed import resolve_device
from polydet.files import write_text


def build(cfg, weights=None):
    """The online detector of a pre-training config, fresh or from a checkpoint.

    Raises:
        ConfigError: the config is of something else than AlignDet's pre-training.
    """
    torch.manual_seed(int(cfg.train.seed))
    model = instantiate(cfg.model).to(resolve_device(cfg.train.device))
    if not isinstance(model, AlignDet):
        raise ConfigError(
            f"the config builds a {type(model).__name__}; the pictures compare before and after pre-training: "
            "take a pretrain_* config, or the stage of one with --stage"
        )
    if weights is not None:
        load_file(model, weights)
    return model.online


def main() -> None:
    """Draw both pictures and write their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", type=Path, required=True, help="config of the pre-training")
    parser.add_argument("--stage", help="its name, where the config has stages")
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint of the pre-training")
    parser.add_argument("--dataset", required=True, help="annotated card to look at")
    parser.add_argument("--classes", nargs="+", required=True)
    parser.add_argument("--per-class", type=int, default=5000)
    parser.add_argument("--images", type=int, default=4, help="images of the second picture")
    parser.add_argument("--boxes", type=int, default=100, help="boxes per image of the second picture")
    parser.add_argument("--short", type=int, default=800)
    parser.add_argument("--max-size", type=int, default=1333)
    parser.add_argument("--output", type=Path, required=True, help="folder")
    args = parser.parse_args()
    if len(args.classes) < 2:
        parser.error("--classes: name two or more, they are compared with each other")
    cfg = load_config(args.config_file)
    if args.stage:
        cfg = stage_config(cfg, args.stage)
        cfg.train.output_dir = str(args.weights.parent)
    elif "stages" in cfg:
        raise ConfigError(f"{args.config_file} has stages; name the one that pre-trains with --stage")
    prepare_cards([args.dataset])
    arms = {"before": build(cfg), "after": build(cfg, args.weights)}
    # read anew for each arm: thousands of images do not fit into memory together
    views = partial(annotated_views, args.dataset, args.classes, args.per_class, args.short, args.max_size)
    args.output.mkdir(parents=True, exist_ok=True)
    embedded = {title: box_embeddings(adapter, views()) for title, adapter in arms.items()}
    numbers = {"silhouette": draw_tsne(embedded, args.classes, args.output / "tsne.png")}
    if type(arms["after"]).ranked_boxes is DetectorAdapter.ranked_boxes:
        print(f"no centres.png: {type(arms['after'].detector).__name__} does not rank boxes without a classifier")
    else:
        shown = list(islice(views(), args.images))
        numbers["centres_in_objects"] = draw_centres(arms, shown, args.output / "centres.png", args.boxes)
    write_text(args.output / "numbers.json", json.dumps(numbers, indent=1))
    print(json.dumps(numbers))


if __name__ == "__main__":
    command(main, also=(ValueError,))
