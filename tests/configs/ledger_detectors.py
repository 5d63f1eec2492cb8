"""The detector that a config builds, by the parts it names."""

from ledger_names import HEADS
from ledger_row import Row, named, target

from detclipv2 import DetCLIPv2
from polydet.dense import ATSSHead, OneStageDetector


def detector(row: Row) -> str:
    return {
        "scaledet": _scaledet,
        "codetr": _codetr,
        "aligndet": _aligndet,
        "detclipv2": _detclipv2,
    }[row.paper](row)


def _scaledet(row: Row) -> str:
    parts = named(row.model.proposal_generator), named(row.model.roi_heads)
    return {("CenterNetProposals", "TextCascadeROIHeads"): "CenterNet2"}.get(parts, str(parts))


def _detclipv2(row: Row) -> str:
    head = target(row.model.head)
    known = target(row.model) in (DetCLIPv2, OneStageDetector)
    return "ATSS" if known and issubclass(head, ATSSHead) else head.__name__


def _aligndet(row: Row) -> str:
    name = named(row.model)
    if name == "GeneralizedRCNN":
        return "Mask R-CNN" if "mask_head" in row.model.roi_heads else "Faster R-CNN"
    return {"CompositeRCNN": "CBNet v2"}.get(name, name)


def _codetr(row: Row) -> str:
    base, kind = _base(row), named(row.model)
    if kind == "EncoderDetector":
        return f"{HEADS[row.model.heads[0]]} head on the {base} encoder"
    if kind == "GroupedDETR":
        return f"Group-DETR ({base})" if row.model.average else "H-Deformable-DETR"
    assert kind in ("DETR", "CoDETR"), kind
    return base


def _base(row: Row) -> str:
    model = row.model
    position = named(model.decoder.query_position) if model.decoder.query_position else ""
    if "num_levels" not in model.encoder.layer:  # dense attention over one map
        assert list(model.backbone.in_features) == ["res5"]
        return {"ConditionalPosition": "Conditional-DETR-C5", "ModulatedAnchorPosition": "DAB-DETR-C5"}[position]
    if model.denoising is not None:
        assert (model.queries.content, model.queries.position) == ("learned", "anchor") and model.denoising.contrastive
        jitter = named(row.cfg.dataloader.train.mapper) == "CopyPasteMapper"
        return "DINO-Deformable-DETR++" if jitter else "DINO-Deformable-DETR"
    if named(model.queries) == "LearnedQueries":
        assert not model.decoder.refine
        return "Deformable-DETR"
    assert model.queries.content == "learned" and model.decoder.look_forward_twice
    assert model.decoder.layer.dropout == 0.0
    return "Deformable-DETR++"
