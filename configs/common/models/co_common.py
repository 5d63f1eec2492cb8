"""What every Co-DETR has beyond its base."""

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from codetr import CoDETR
from polydet.detr import QualityFocalLoss

K1, K2 = ("atss",), ("faster_rcnn", "atss")


def collaborative(model: DictConfig, heads: tuple[str, ...] = K2, **collaboration: object) -> DictConfig:
    """Turn a member of the DETR family into a Co-DETR; without heads it stays the base, bit by bit."""
    model._target_ = CoDETR
    model.heads = list(heads)
    model.lambda_1 = 1.0
    model.lambda_2 = 2.0
    model.collaboration = {
        "max_queries": 300,
        "min_queries": 9,
        "pad_with_negatives": True,  # the released code; False: "no negative queries" of section 3.5
        "negatives": "all",  # the released code; "background": of the image alone
        "query_feature": True,  # eq. 4; the released Co-DINO leaves the feature out
        "head_embedding": "none",  # "scalar" in the released R50 Co-Deformable, "vector" as it was meant
        **collaboration,
    }
    model.eval_branch = None
    model.tta = None
    model.class_counts = None
    model.federated_classes = 50
    return model


def co_deformable(model: DictConfig, heads: tuple[str, ...] = K2, head_embedding: str = "scalar") -> DictConfig:
    """Co-Deformable-DETR from a Deformable-DETR."""
    return collaborative(model, heads, head_embedding=head_embedding)


def co_dino(model: DictConfig, heads: tuple[str, ...] = K2, quality: bool = True) -> DictConfig:
    """Co-DINO from DINO; `quality` adds quality focal loss and soft-NMS (tables 4 to 6, not table 3)."""
    collaborative(model, heads, query_feature=False)
    model.encoder.checkpoint_layers = max(model.encoder.checkpoint_layers, 4)
    if quality:
        model.criterion.class_loss = L(QualityFocalLoss)(beta=2.0)
        model.postprocess.update(num="${..queries.num_queries}", soft_nms_iou=0.8, max_detections=300)
    return model
