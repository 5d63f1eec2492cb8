"""What a config says about each setting of the ledger, in the ledger's words (see `ledger_names`)."""

from collections.abc import Callable
from typing import Any

import timm
from detectron2.utils.registry import locate
from ledger_detectors import detector
from ledger_names import (
    BACKBONES,
    DATASETS,
    HEADS,
    IMAGES,
    ODINW,
    PRETRAIN,
    SAME,
    TEXT_ENCODERS,
    UNIONS,
    WEIGHTS,
    WEIGHTS_EPOCHS,
)
from ledger_row import Row, argument, build, load, merge_of, named, train_datasets
from omegaconf import OmegaConf

from metr.transfer import LR_STRATEGIES
from polydet.data import label_space_of

READERS: dict[str, Callable[[Row], Any]] = {}


def reads(*keys: str) -> Callable[[Callable[[Row], Any]], Callable[[Row], Any]]:
    def register(reader: Callable[[Row], Any]) -> Callable[[Row], Any]:
        READERS.update(dict.fromkeys(keys, reader))
        return reader

    return register


def at(path: str) -> Callable[[Row], Any]:
    """Reads one key of the config."""
    return lambda row: OmegaConf.select(row.cfg, path, throw_on_missing=True)


def hook(name: str) -> Callable[[Row], Any]:
    """Reads an argument of the run's only hook, the plateau schedule."""
    return lambda row: argument(row.cfg.train.hooks[0], name)


# ---- length, batch, learning rate

READERS.update(
    batch_size=at("dataloader.train.total_batch_size"),
    batch_size_image_text=at("dataloader.train.sources.pairs.total_batch_size"),
    lr=at("optimizer.lr"),
    weight_decay=at("optimizer.weight_decay"),
    warmup_iters=at("lr_multiplier.warmup_iters"),
    max_epochs=at("train.max_epochs"),
    optimizer=lambda row: named(row.cfg.optimizer),
    exit_tolerance_epochs=hook("stop_patience"),
    lr_decay_tolerance_epochs=hook("patience"),
    min_lr=hook("min_lr"),
)


@reads("gpus")
def gpus(row: Row) -> Any:
    """The machine is not the config's; but the batch must split over it."""
    batch, stated = row.cfg.dataloader.train.total_batch_size, row.stated["gpus"]
    return stated if batch % stated == 0 else f"a batch of {batch} does not split"


@reads("iterations")
def iterations(row: Row) -> int:
    assert row.cfg.train.max_epochs == 0, "the run is counted in epochs"
    return row.cfg.train.max_iter


@reads("epochs")
def epochs(row: Row) -> Any:
    return _epochs(row.cfg, row.stated["epochs"])


def _epochs(cfg: Any, stated: float) -> float:
    """Passes over the data; `stated` where schedules in iterations are within 2 % of it."""
    if cfg.train.max_epochs:
        return cfg.train.max_epochs
    images = sum(IMAGES[name] for name in train_datasets(cfg))
    passes = cfg.train.max_iter * cfg.dataloader.train.total_batch_size / images
    return stated if abs(passes / stated - 1) < 0.02 else round(passes, 2)


@reads("pretrain_epochs", "box_pretrain_epochs")
def pretrain_epochs(row: Row) -> Any:
    key = next(key for key in ("pretrain_epochs", "box_pretrain_epochs") if key in row.stated)
    return _epochs(load(row.started_from), row.stated[key])


@reads("schedule")
def schedule(row: Row) -> str:
    kind = row.cfg.lr_multiplier.kind
    if row.paper == "aligndet":  # optimiser steps at batch 16
        steps = row.cfg.train.max_iter * row.cfg.dataloader.train.total_batch_size / 16
        return "12k" if steps == 12_000 else f"{steps / 90_000:g}x"
    if row.cfg.train.get("hooks"):
        assert named(row.cfg.train.hooks[0]) == "PlateauSchedule" and kind == "constant"
        return f"auto-step decay x{hook('factor')(row):g}"
    return kind


@reads("lr_drop_epoch")
def lr_drop_epoch(row: Row) -> Any:
    milestones = list(row.cfg.lr_multiplier.milestones)
    assert row.cfg.lr_multiplier.unit == "epoch" and row.cfg.lr_multiplier.gamma == 0.1
    return milestones[0] if len(milestones) == 1 else milestones


READERS.update(
    lr_backbone=lambda row: row.rate_of("backbone.bottom_up."),
    lr_encoder=lambda row: row.rate_of("encoder."),
    lr_decoder=lambda row: row.rate_of("decoder."),
    lr_query_and_heads=lambda row: row.rate_of("backbone.bottom_up.", "encoder.", "decoder.", others=True),
    lr_text=lambda row: row.rate_of("text_tower."),
)


@reads("lr_strategy")
def lr_strategy(row: Row) -> str:
    factors = dict(row.cfg.optimizer.params.lr_factors)
    return next((name.title() for name, known in LR_STRATEGIES.items() if known == factors), f"unknown: {factors}")


# ---- data

READERS.update(
    concepts=at("dataloader.train.sources.detection.mapper.num_concepts"),
    concepts_det=at("dataloader.train.sources.detection.mapper.num_concepts"),
    concepts_grounding=at("dataloader.train.sources.grounding.mapper.num_concepts"),
    data_fraction=lambda row: row.cfg.data.percent / 100,
    sampling=lambda row: {"RepeatFactorSampler": "repeat factor sampling"}.get(named(row.cfg.dataloader.train.sampler)),
)


@reads("train_datasets")
def read_train_datasets(row: Row) -> Any:
    stated = row.stated["train_datasets"]
    if stated[0].startswith("odinw13"):
        return [stated[0], *_odinw(row, stated[1:], "train")]
    unlabelled = named(row.cfg.dataloader.train) == "build_pretrain_loader"
    return _in_ledger_words(train_datasets(row.cfg), stated, " (no labels)" if unlabelled else "")


@reads("eval_datasets")
def eval_datasets(row: Row) -> Any:
    stated = row.stated["eval_datasets"]
    if "PascalVOC" in stated:
        return _odinw(row, stated, "val")
    found = _in_ledger_words(list(row.cfg.dataloader.test_datasets), stated)
    return stated if set(stated) <= set(found) else found  # a config may evaluate on more


def _odinw(row: Row, names: list[str], split: str) -> list[str]:
    """The stated sets that a run can be asked for: by `odinw.set`, or all at once as `dataloader.odinw13`."""
    cfg = row.cfg.copy()
    cards = {name: f"odinw_{ODINW.get(name, name)}_{split}" for name in names}
    if "odinw" not in cfg:
        return [name for name, card in cards.items() if card in cfg.dataloader.test_datasets]
    found = []
    for name, card in cards.items():
        cfg.odinw.set = ODINW.get(name, name)
        if card in (train_datasets(cfg) if split == "train" else cfg.dataloader.test_datasets):
            found.append(name)
    return found


def _in_ledger_words(cards: list[str], stated: list[str], suffix: str = "") -> list[str]:
    """`cards` under the names that `stated` uses for them; cards without such a name stay as they are."""
    found, left = [], list(cards)
    for union, card in UNIONS.items():
        if set(union) <= set(stated) and card in left:
            found += union
            left.remove(card)
    for name in stated:
        plain = name.removesuffix(suffix) if suffix else name
        for group in DATASETS.get(plain, [[plain]]):
            if set(group) <= set(left):
                found.append(name)
                left = [card for card in left if card not in group]
                break
    return found + left


@reads("eval_mode")
def eval_mode(row: Row) -> str:
    """Zero-shot: no dataset of the test is trained on. Direct transfer: tested elsewhere without fine-tuning."""
    trained = {name.split("_")[0] for name in train_datasets(row.cfg)}
    tested = {name.split("_")[0] for name in [*row.cfg.dataloader.test_datasets, *_all_odinw(row)]}
    if row.cfg.train.init_checkpoint or tested <= trained:
        return "trained on what it is tested on"
    return "zero-shot" if not tested & trained else "direct transfer"


def _all_odinw(row: Row) -> list[str]:
    sets = row.cfg.dataloader.get("odinw13")
    return list(sets.val) if sets else []


@reads("num_classes")
def num_classes(row: Row) -> int:
    return len(label_space_of(train_datasets(row.cfg), merge=merge_of(row.cfg)))


@reads("data_folds")
def data_folds(row: Row) -> int:
    """Below 100 % `data.fold` chooses the draw; there are as many as one asks for, and the protocol has five."""
    train = row.cfg.dataloader.train
    assert named(train) == "build_low_data_loader" and train.percent == row.cfg.data.percent
    assert load(row.run["config"], {**row.overrides, "data.fold": 5}).dataloader.train.fold == 5
    return 1 if train.percent == 100 else 5


@reads("proposals")
def proposals(row: Row) -> str:
    """The folder that tools/selective_search.py writes, beside the images or in them (as a dataset of its own)."""
    train = row.cfg.dataloader.train
    assert named(train) == "build_pretrain_loader"
    if train.proposals is None:
        return "selective search" if list(train.datasets) == ["imagenet_subset_proposals"] else "none"
    name = train.proposals.rsplit("/", 1)[-1]
    return "selective search" if name in ("coco_2017_train", "coco_2017_train_256") else name


@reads("in1k_repeat")
def in1k_repeat(row: Row) -> int:
    return _in1k(row).repeat


@reads("in1k_loss")
def in1k_loss(row: Row) -> str:
    return {"classification": "cross entropy"}[_in1k(row).mapper.task]


def _in1k(row: Row) -> Any:
    return next(s for s in row.cfg.dataloader.train.sources.values() if "imagenet1k_pairs_train" in s.datasets)


# ---- images


@reads("image_size")
def image_size(row: Row) -> Any:
    if row.paper == "aligndet":
        mapper = row.cfg.dataloader.train.mapper
        sizes = mapper.get("random_resize") or mapper.short_edge_lengths
        return f"{min(sizes)}-{max(sizes)}"
    call = row.augmentation
    if row.paper == "scaledet":
        return call.size
    if row.paper == "codetr":
        low, high = call.short
        assert call.style == "range"
        return f"random {low}x{call.max_size} to {high}x{call.max_size}"
    if row.paper == "detclipv2":
        return f"{argument(call, 'max_size')}x{max(argument(call, 'short'))}"
    return _metr_size(row)


def _metr_size(row: Row) -> str:
    """The size of the test; Query2Label is trained at it too."""
    size = _test_size(row)
    if named(row.augmentation) == "fixed_resize":
        assert size == f"{row.augmentation.height}x{row.augmentation.width}"
    else:
        assert argument(row.augmentation, "max_size") == 1333 and max(argument(row.augmentation, "short")) == 800
    return size


@reads("test_image_size")
def _test_size(row: Row) -> str:
    call = row.cfg.dataloader.test.mapper.augmentations
    if named(call) == "fixed_resize":
        return f"{call.height}x{call.width}"
    return f"{call.short}x{argument(call, 'max_size')}"


@reads("image_size_image_text")
def image_size_image_text(row: Row) -> str:
    call = row.cfg.dataloader.train.sources.pairs.mapper.mapper.augmentations
    return f"{call.height}x{call.width}"


@reads("augmentation")
def augmentation(row: Row) -> str:
    if named(row.cfg.dataloader.train.mapper) == "CopyPasteMapper":
        return "large-scale jitter with copy-paste"
    call = row.augmentation
    if named(call) == "large_scale_jitter" or named(call) == "resize_shortest_edge" and call.get("style") == "range":
        return "strong, trained to convergence"  # more than the detectors' default, which is one size
    if named(call) == "resize_shortest_edge" and list(call.short) == [640, 672, 704, 736, 768, 800]:
        return "standard Detectron2"
    return named(call)


@reads("multi_scale", "multi_scale_training")
def multi_scale(row: Row) -> bool:
    if named(row.cfg.dataloader.train.mapper) == "CopyPasteMapper":
        return True  # by its jitter
    short = argument(row.augmentation, "short")
    return not isinstance(short, int) and len(short) > 1


# ---- model

READERS.update(
    detector=detector,
    cem=lambda row: row.cfg.model.cem is not None,
    cem_layers=at("model.cem.num_layers"),
    topk=at("model.top_k"),
    mu_asl=at("model.asl_weight"),
    text_embedding_learnable=at("model.learnable_text"),
    decoder_layers=at("model.decoder.num_layers"),
    feature_levels=at("model.backbone.num_outs"),
    drop_path=at("model.backbone.bottom_up.drop_path_rate"),
    max_text_tokens=at("model.text_tower.context_length"),
    in1k_topk_proposals=at("model.classification_selection.k"),
    # DetCLIP's order: alignment + alpha centerness + beta regression + lambda contrast
    loss_alpha=at("model.head.quality_weight"),
    loss_beta=at("model.head.box_weight"),
    loss_lambda=at("model.pairs_weight"),
    lambda_1=at("model.lambda_1"),
    lambda_2=at("model.lambda_2"),
    soft_label_weight=at("model.roi_heads.label_loss.soft_weight"),
    tau=at("model.temperature"),
    test_time_augmentation=lambda row: row.cfg.model.tta is not None,
)


@reads("queries")
def queries(row: Row) -> int:
    """Of groups (H-DETR, Group-DETR) the first: the others leave after training."""
    model = row.cfg.model
    return model.group_sizes[0] if "group_sizes" in model else model.queries.num_queries


@reads("backbone")
def backbone(row: Row) -> str:
    name = row.bottom_up.name
    return next((ours for start, ours in BACKBONES.items() if name.split(".")[0].startswith(start)), name)


def _weights(row: Row) -> str:
    """What the image backbone's published weights were trained on; "" if it has none of its own."""
    weights = argument(row.bottom_up, "weights")
    if weights is None:
        return ""
    if weights == "timm":
        tag = timm.get_pretrained_cfg(row.bottom_up.name).tag
    else:
        tag = weights.rsplit("/", 1)[-1].split(".")[0]
    return next((name for name, tags in WEIGHTS.items() if tag in tags), tag)


@reads("pretrain")
def pretrain(row: Row) -> str:
    stated, found = row.stated["pretrain"], _weights(row)
    if stated == "not stated":
        return stated
    if row.started_from and row.paper != "aligndet":  # there `pretrain` is the backbone's alone
        found = ", ".join(filter(None, [found, *train_datasets(load(row.started_from))]))
    return stated if found in PRETRAIN[stated] else found


READERS["pretrain_config"] = lambda row: row.started_from
READERS["backbone_pretrain_epochs"] = lambda row: WEIGHTS_EPOCHS[_weights(row)]
READERS["align"] = lambda row: row.started_from.startswith("aligndet/pretrain_")


@reads("text_encoder")
def text_encoder(row: Row) -> str:
    encoder = row.cfg.model.get("text_tower") or row.cfg.model.text_encoder
    return TEXT_ENCODERS[encoder.model_name, encoder.pretrained]


@reads("sync_bn")
def sync_bn(row: Row) -> str:
    places = {
        "backbone": row.bottom_up.get("norm") == "sync",
        "FPN": row.model.backbone.get("norm") == "SyncBN",
    }
    return ", ".join(place for place, there in places.items() if there)


@reads("loss")
def loss(row: Row) -> str:
    if row.paper == "scaledet":
        return "hl+sl" if row.cfg.model.roi_heads.label_loss.soft_weight > 0 else "hl"
    return " + ".join({"classification": "contrastive"}.get(task, task) for task in row.cfg.model.tasks)


@reads("trained_modules")
def trained_modules(row: Row) -> list[str]:
    """Of the detector under pre-training, by what has a gradient; everything after the neck is the head."""
    return [part for part, learns in _parts(row).items() if learns]


@reads("frozen_modules")
def frozen_modules(row: Row) -> list[str]:
    return [part for part, learns in _parts(row).items() if not learns]


def _parts(row: Row) -> dict[str, bool]:
    """backbone, neck, head -> whether any parameter of it is trained."""
    found = {"backbone": False, "neck": False, "head": False}
    for name, parameter in build(row.cfg).online.detector.named_parameters():
        part = "head" if not name.startswith("backbone.") else "neck"
        found["backbone" if name.startswith("backbone.bottom_up.") else part] |= parameter.requires_grad
    return found


@reads("loaded_modules")
def loaded_modules(row: Row) -> list[str]:
    """The parts whose weights the key map of the start keeps."""
    key_map = locate(row.cfg.train.init.key_map.replace(":", "."))
    if row.paper == "aligndet":
        keys = {
            "backbone": "online.detector.backbone.bottom_up.x",
            "neck": "online.detector.backbone.fpn_lateral2.weight",
            "rpn": "online.detector.proposal_generator.rpn_head.conv.weight",
            "head": "online.detector.roi_heads.box_head.fc1.weight",
        }
    else:
        keys = {
            "backbone": "backbone.bottom_up.x",
            "encoder": "encoder.layers.0.x",
            "decoder": "decoder.layers.0.x",
            "cem": "cem.x",
            "language": "language.x",
            "heads": "class_heads.x",
            "boxes": "box_heads.x",
        }
    kept = key_map(dict.fromkeys(keys.values()))
    return [part for part, key in keys.items() if key.removeprefix("online.detector.") in kept]


# ---- Co-DETR's heads


def _heads(row: Row) -> list[dict[str, Any]]:
    return [{"name": h} if isinstance(h, str) else dict(h) for h in row.cfg.model.get("heads", ())]


@reads("K")
def number_of_heads(row: Row) -> int:
    return len(_heads(row))


@reads("aux_heads")
def aux_heads(row: Row) -> list[str]:
    """In the ledger's order: ours has Faster R-CNN first, as the released weights."""
    found, stated = [HEADS[head["name"]] for head in _heads(row)], row.stated["aux_heads"]
    return stated if sorted(found) == sorted(stated) else found


@reads("aux_head_loss")
def aux_head_loss(row: Row) -> bool:
    return all(head.get("loss", True) for head in _heads(row))


@reads("customized_positive_queries")
def customized_positive_queries(row: Row) -> bool:
    return all(head.get("queries", True) for head in _heads(row))


@reads("cls_loss")
def cls_loss(row: Row) -> str:
    counted = named(row.cfg.model.class_counts) == "class_image_counts"
    return "FedLoss" if counted and row.cfg.model.federated_classes == 50 else "all classes"


@reads("aux_loss")
def aux_loss(row: Row) -> str:
    return {"QualityFocalLoss": "quality_focal_loss"}.get(named(row.cfg.model.criterion.class_loss), "focal loss")


@reads("eval_branch")
def eval_branch(row: Row) -> str:
    branch = row.cfg.model.get("eval_branch")
    return "decoder" if branch is None else HEADS[_heads(row)[branch]["name"]]


@reads("nms")
def nms(row: Row) -> bool:
    """Of the decoder only where soft-NMS is asked for; of the dense and R-CNN heads always."""
    if row.cfg.model.get("eval_branch") is not None or named(row.cfg.model) == "EncoderDetector":
        return True
    return row.cfg.model.postprocess.get("soft_nms_iou") is not None


def read(key: str, row: Row) -> Any:
    """What the config says about `key`, as plain Python; the ledger's own words where they mean the same."""
    value = READERS[key](row)
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return row.stated[key] if SAME.get((key, str(row.stated[key])), object()) == value else value
