"""What a config says about each setting of the ledger, in the ledger's words (see `ledger_names`)."""

from typing import Any

import ledger_data  # noqa: F401  (its readers)
import ledger_schedule  # noqa: F401
import timm
from detectron2.utils.registry import locate
from ledger_detectors import detector
from ledger_names import BACKBONES, HEADS, PRETRAIN, SAME, TEXT_ENCODERS, WEIGHTS, WEIGHTS_EPOCHS
from ledger_row import READERS, Row, argument, at, build, load, named, reads, train_datasets
from omegaconf import OmegaConf

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
    federated=at("model.roi_heads.label_loss.federated"),
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
            "cem": "queries.cem.x",
            "language": "class_heads.language.x",
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
