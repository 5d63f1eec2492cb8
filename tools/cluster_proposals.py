"""Give proposals the pseudo-classes that DETR's pre-training matches with: RoI features, PCA, k-means.

python tools/cluster_proposals.py --dataset coco_2017_train --proposals proposals/coco_2017_train \
    --output proposals/coco_2017_train_256
"""

import argparse
from pathlib import Path

from aligndet.clusters import cluster
from aligndet.proposal_columns import ProposalColumns
from polydet.backbones import TimmBackbone
from polydet.data import load_card, prepare_cards
from polydet.engine.command import command
from polydet.engine.distributed import resolve_device


def main() -> None:
    """Cluster the proposals of one dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proposals", type=Path, required=True, help="path without suffix, from selective_search.py")
    parser.add_argument("--output", type=Path, required=True, help="path without suffix")
    parser.add_argument("--dataset", help="card whose images they are")
    parser.add_argument("--root", type=Path, help="or: folder of the images")
    parser.add_argument("--backbone", default="resnet50.tv_in1k", help="timm model")
    parser.add_argument("--weights", default="timm", help="file of its weights, or 'timm'")
    parser.add_argument("--feature", default="res5")
    parser.add_argument("--clusters", type=int, default=256)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--sample", type=int, default=100_000, help="proposals to fit PCA and k-means on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="also write COCO json")
    args = parser.parse_args()
    if (args.dataset is None) == (args.root is None):
        parser.error("give either --dataset or --root")
    if args.weights in ("", "none", "None"):
        parser.error("--weights: features of a backbone without weights mean nothing; give a file, or 'timm'")
    if args.dataset:
        prepare_cards([args.dataset])
    root = args.root or Path(load_card(args.dataset).image_root)
    columns = ProposalColumns.load(Path(f"{args.proposals}.columns"))
    backbone = TimmBackbone(args.backbone, [args.feature], args.weights).to(resolve_device(args.device))
    result = cluster(columns, root, backbone, args.clusters, args.dim, args.sample, args.feature, args.seed)
    result.save(Path(f"{args.output}.columns"))
    if args.json:
        result.write_coco(Path(f"{args.output}.json"))
    print(f"{args.output}.columns: {len(result.boxes)} proposals of {len(result)} images, {args.clusters} clusters")


if __name__ == "__main__":
    command(main, also=(ValueError, RuntimeError))
