"""Members of the DETR family against their authors' code."""

import functools
import re

import pytest
from golden_check import check_detections, check_gradients, check_losses, detect, load_drawn, train_step
from golden_file import load_golden
from golden_models import small_row
from golden_noise import fixed_noise

from polydet.detr.checkpoint_maps import convert

NARROW = {
    "backbone.bottom_up.model_kwargs": {"base_width": 16},
    "encoder.num_layers": 1,
    "decoder.num_layers": 2,
    "postprocess.num": 60,
}
LOW = {
    f"{part}.layer.{name}": value
    for part in ("encoder", "decoder")
    for name, value in (("ffn_dim", 256), ("dropout", 0))
}
SMALL = {**NARROW, **LOW, "queries.num_queries": 40}
CROWDED = {"queries.select_padding": "always"}  # with more queries than an image has tokens outside the padding
DINO = {**NARROW, **CROWDED, "queries.num_queries": 320, "denoising.num_queries": 50}
MEMBERS = {
    "dino": ("metr/table2_dino_r50_12ep", DINO),
    "deformable_two_stage": (
        "common/models/deformable_detr_two_stage",
        {**SMALL, **CROWDED, "queries.num_queries": 300},
    ),
    "dab": ("common/models/dab_detr", SMALL),
    "dn_dab_deformable": ("common/models/dn_dab_deformable_detr", {**SMALL, "denoising.num_groups": 4}),
}


def authors_loss(name: str) -> str:
    """`loss_ce_dn_0` or `tgt_loss_ce_0` of the authors is `loss_class_dn_0` here, `_interm` is `_enc`."""
    name = re.sub(r"^tgt_(loss_[a-z]+)", r"\1_dn", name)
    return name.replace("loss_ce", "loss_class").replace("interm", "enc")


def steps():
    """Every member and step."""
    cases = [(member, step) for member in MEMBERS for step in ("padded", "empty")]
    return [pytest.param(*case, id="-".join(case)) for case in cases]


@functools.lru_cache(maxsize=1)
def built(member):
    golden = load_golden(member)
    row, changes = MEMBERS[member]
    model = small_row(row, {**changes, "num_classes": golden.num_classes})
    load_drawn(model, golden, convert)
    return model, golden


@pytest.mark.parametrize(("member", "step"), steps())
def test_a_training_step_and_its_detections_are_the_authors(member, step):
    model, golden = built(member)
    with fixed_noise():
        losses = train_step(model, golden.inputs(step))
    check_losses(golden, step, losses, authors_loss)
    check_gradients(golden, step, model, convert)
    check_detections(golden, step, detect(model, golden.inputs(step)))
