"""Directional study of AlignDet on ShapeWorld: aligned against not, at 10 % and 100 % of the labels.

    python -m benchmarks.shapeworld.aligndet --work /tmp/study                      everything, three seeds
    python -m benchmarks.shapeworld.aligndet --work /tmp/study --detectors fcos --seeds 0 --percents 10
    python -m benchmarks.shapeworld.aligndet --work /tmp/study --report             table of what is there

(As a module: run by its path, this file would be imported in place of the package of the same name.)

Runs are the rows' own configs in small (ResNet-18, 64 channels, 128-pixel images; a DETR of 128 channels has 96-pixel
images and many more steps); finished ones are kept. Both arms start from one backbone, trained on object crops of
another dataset, and take the same number of fine-tuning steps; learning rates follow the authors' rule. The seed
changes pre-training, initialisation, order and the labels' fold. "of boxes" counts a box as right whatever its class.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from detectron2.config import LazyCall as L
from omegaconf import DictConfig
from tabulate import tabulate

from aligndet.clusters import cluster
from aligndet.proposal_columns import ProposalColumns
from aligndet.proposal_data import make_proposals
from benchmarks.shapeworld.report import boxes_alone, spread, write
from polydet.backbones import TimmBackbone
from polydet.data import load_card
from polydet.data.augmentations import resize_shortest_edge
from polydet.engine import load_config, run
from polydet.engine.image_domain import pretrain_backbone

CONFIGS = Path(__file__).parents[2] / "configs" / "aligndet"
TRAIN, VAL = "shapes_coco_train", "shapes_coco_val"
ROWS = {  # pre-training config, fine-tuning config without its arm
    "fcos": ("pretrain_fcos_r50_1x", "table2_fcos_r50_12k"),
    "faster_rcnn": ("pretrain_faster_rcnn_r50_1x", "table2_faster_rcnn_r50_12k"),
    "detr": ("pretrain_detr_r50_50ep", "table2_detr_r50_50ep"),
}
CLUSTERS, CHANNELS = 32, 64


def prepare(work: Path) -> None:
    """What all runs share: backbone, proposals, pseudo-classes."""
    pretrain_backbone("shapes_lvis_train", work / "backbone.safetensors")
    if (work / "clusters.columns" / "columns.json").is_file():
        return
    columns = make_proposals(TRAIN, work / "proposals", min_side=12)
    backbone = TimmBackbone("resnet18", ["res4"], str(work / "backbone.safetensors"))
    root = Path(load_card(TRAIN).image_root)
    cluster(columns, root, backbone, CLUSTERS, dim=64, sample=3000, feature="res4").save(work / "clusters.columns")
    ProposalColumns.load(work / "clusters.columns")


def shrink(detector: str, model: DictConfig) -> None:
    """ResNet-18 and narrow heads; the rest stays as published."""
    model.backbone.bottom_up.name = "resnet18"
    if detector == "detr":
        model.backbone.in_features = model.backbone.bottom_up.out_features = ["res3"]  # stride 32 leaves 20 tokens
        model.dim = 128
        model.position.temperature = 20.0  # DAB-DETR's: with 10000 few of so few channels tell the cells apart
        for part, layers in ((model.encoder, 2), (model.decoder, 3)):
            part.num_layers = layers
            part.layer.update(ffn_dim=256, dropout=0.0)
        model.queries.num_queries = 40
        return
    model.backbone.out_channels = CHANNELS
    if detector == "fcos":
        model.head.update(num_convs=2, size_prior=2.0)  # from 0, on the ReLU's edge, some short runs die
        return
    model.roi_heads.box_head.update(conv_dims=[CHANNELS, CHANNELS], fc_dims=[256])
    model.proposal_generator.anchor_generator.sizes = [[12], [24], [48], [96], [192]]
    model.proposal_generator.update(pre_nms_topk=(300, 200), post_nms_topk=(200, 100))
    model.roi_heads.batch_size_per_image = min(int(model.roi_heads.batch_size_per_image), 256)
    model.proposal_generator.batch_size_per_image = min(int(model.proposal_generator.batch_size_per_image), 1024)


def small_run(cfg: DictConfig, steps: int, detector: str) -> None:
    """Length, batch and clipping at this scale."""
    cfg.train.update(max_iter=steps, reference_batch_size=0, checkpoint_period=10_000, pictures=0)
    cfg.train.clip_grad.update(kind="norm", value=0.1 if detector == "detr" else 5.0)
    cfg.lr_multiplier.update(warmup_iters=20, warmup="linear", warmup_factor=0.1)
    cfg.dataloader.train.update(total_batch_size=8, num_workers=1, aspect_ratio_grouping=False)
    if detector == "detr":  # many small steps
        cfg.dataloader.train.total_batch_size = 4
        cfg.optimizer.lr = 2e-4


def resize(detector: str, train: bool) -> DictConfig:
    """Images of fine-tuning; a DETR's are smaller, so that it can have the steps that it takes."""
    return L(resize_shortest_edge)(short=96 if detector == "detr" else 128, max_size=256, flip=train)


def pretraining(work: Path, detector: str, steps: int) -> DictConfig:
    """The pre-training config in small."""
    cfg = load_config(CONFIGS / f"{ROWS[detector][0]}.py")
    # the momentum detector's start fades to exp(-6), as it does in 3000 steps of the paper's 0.996
    cfg.model.momentum = min(0.996, max(0.0, 1 - 12 / steps))
    model = cfg.model.adapter.detector
    shrink(detector, model)
    model.backbone.bottom_up.weights = str(work / "backbone.safetensors")
    small_run(cfg, steps, detector)
    loader = cfg.dataloader.train
    loader.datasets = [TRAIN]
    loader.proposals = str(work / ("clusters" if detector == "detr" else "proposals"))
    loader.mapper.update(short_edge_lengths=[112, 128, 144], max_size=256)
    if detector == "detr":
        loader.mapper.short_edge_lengths = [88, 96, 104]
        model.num_classes = CLUSTERS
        loader.mapper.max_proposals = 20
    return cfg


def finetuning(work: Path, detector: str, percent: float, fold: int, steps: int, aligned: Path | None) -> DictConfig:
    """A table 2 config in small."""
    arm = "align" if aligned else "base"
    cfg = load_config(CONFIGS / f"{ROWS[detector][1]}_{arm}.py", [f"data.percent={percent}", f"data.fold={fold}"])
    shrink(detector, cfg.model)
    cfg.model.backbone.bottom_up.weights = str(work / "backbone.safetensors")
    small_run(cfg, steps, detector)
    cfg.train.init_checkpoint = str(aligned) if aligned else ""
    loader = cfg.dataloader
    loader.train.datasets, loader.test_datasets = [TRAIN], [VAL]
    loader.train.mapper.augmentations = resize(detector, train=True)
    loader.test.mapper.augmentations = resize(detector, train=False)
    loader.test.update(batch_size=10, num_workers=1)
    return cfg


def jobs(args: argparse.Namespace) -> dict[str, tuple[int, Callable[[], DictConfig]]]:
    """Name -> seed and config, in the order they must run."""
    found: dict[str, tuple[int, Callable[[], DictConfig]]] = {}
    for seed in args.seeds:
        for detector in args.detectors:
            factor = args.detr_factor if detector == "detr" else 1
            name = f"pretrain-{detector}-{seed}"
            found[name] = (
                seed,
                lambda d=detector, f=factor: pretraining(args.work, d, f * args.pretrain_steps),
            )
            checkpoint = args.work / name / "model_final.pth"
            for percent in args.percents:
                for arm, start in (("base", None), ("align", checkpoint)):
                    found[f"{detector}-{arm}-{percent}-{seed}"] = (
                        seed,
                        lambda d=detector, p=percent, s=seed, c=start, f=factor: finetuning(
                            args.work, d, p, s + 1, f * args.tune_steps, c
                        ),
                    )
    return found


def collect(work: Path) -> dict[str, dict[str, dict[int, dict[str, float]]]]:
    """``{detector percent: {arm: {seed: {metric: value}}}}`` of finished runs."""
    found: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    for path in sorted(work.glob("*-*-*-*/results.json")):
        detector, arm, percent, seed = path.parent.name.split("-")
        metrics = json.loads(path.read_text())[VAL]["bbox"]
        kept = {key: metrics[key] or 0.0 for key in ("AP", "AP50", "AP75")}
        kept |= {f"{key} of boxes": value for key, value in boxes_alone(path.parent, VAL).items()}
        found.setdefault(f"{detector} {percent} %", {}).setdefault(arm, {})[int(seed)] = kept
    return found


def report(work: Path) -> str:
    """Both arms and their paired difference, per detector and share of the labels."""
    rows = []
    for setting, arms in collect(work).items():
        base, align = arms.get("base", {}), arms.get("align", {})
        shared = sorted(set(base) & set(align))
        for metric in ("AP", "AP50", "AP50 of boxes") if shared else ():
            one, other = ([a[s][metric] for s in shared] for a in (base, align))
            differences = [b - a for a, b in zip(one, other)]
            by_seed = ", ".join(f"{d:+.1f}" for d in differences)
            rows.append([setting, metric, spread(one), spread(other), spread(differences), by_seed])
    headers = ["detector, labels", "metric", "not aligned", "aligned", "difference", "by seed"]
    return tabulate(rows, headers=headers, tablefmt="github")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--detectors", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--percents", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--pretrain-steps", type=int, default=100)
    parser.add_argument("--tune-steps", type=int, default=120)
    parser.add_argument("--detr-factor", type=int, default=30, help="DETR takes this many times the steps, of 4 images")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--output", type=Path, help="write the numbers as json and the table as md there")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.report:
        prepare(args.work)
        for name, (seed, make) in jobs(args).items():
            cfg = make()
            cfg.train.update(seed=seed, output_dir=str(args.work / name))
            run(cfg, resume=True)
    text = report(args.work)
    print(text)
    steps = {"pretrain": args.pretrain_steps, "tune": args.tune_steps, "detr_factor": args.detr_factor}
    write(args.output, {"steps": steps, "results": collect(args.work)}, text)


if __name__ == "__main__":
    main()
