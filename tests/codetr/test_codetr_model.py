"""The collaborative training: it vanishes for K = 0 and at inference, and sums to eq. 6."""

import copy

import pytest
import torch
from codetr_models import CLASSES, DIM, HEADS, LAYERS, base_arguments, batch, codetr
from fvcore.nn import FlopCountAnalysis
from torch import nn

from codetr import CoDETR, EncoderDetector, GroupedDETR, MultiScaleAdapter
from polydet.detr import DETR

KINDS = ["conditional", "dab", "deformable", "deformable_pp", "dino"]


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_without_heads_it_is_the_base_bit_by_bit(kind):
    base, co = DETR(**base_arguments(kind)), CoDETR(**base_arguments(kind), heads=())
    assert co.state_dict().keys() == base.state_dict().keys()
    results = []
    for model in (base, co):
        torch.manual_seed(1)
        losses = model(batch())
        sum(losses.values()).backward()
        results.append((losses, gradients(model)))
    assert results[0][0].keys() == results[1][0].keys()
    assert all(results[0][0][k].equal(results[1][0][k]) for k in results[0][0])
    assert all((a is None and b is None) or a.equal(b) for a, b in zip(results[0][1].values(), results[1][1].values()))
    with torch.no_grad():
        outputs = [m.eval()(batch()) for m in (base, co)]
    for a, b in zip(*outputs):
        assert a["instances"].pred_boxes.tensor.equal(b["instances"].pred_boxes.tensor)
        assert a["instances"].scores.equal(b["instances"].scores)


@pytest.mark.parametrize("kind", KINDS)
def test_base_losses_do_not_change_and_every_parameter_learns(kind):
    """The auxiliary branches only add: the matched, encoder and denoising losses are the base's."""
    base, co = DETR(**base_arguments(kind)), codetr(kind)
    co.load_state_dict(base.state_dict(), strict=False)
    torch.manual_seed(1)
    expected = base(batch())
    torch.manual_seed(1)
    found = co(batch())
    assert all(found[k].equal(v) for k, v in expected.items())
    added = found.keys() - expected.keys()
    for prefix in ("loss_aux0_faster_rcnn_rpn_cls", "loss_aux1_atss_quality", "loss_class_co0", "loss_giou_co1_0"):
        assert prefix in added
    assert len(added) == 4 + 3 + 2 * 3 * LAYERS
    sum(found.values()).backward()
    silent = [n for n, g in gradients(co).items() if g is None or not g.isfinite().all()]
    assert not silent


@pytest.mark.parametrize("kind", ["deformable", "dino"])
def test_inference_runs_the_base_alone(kind):
    co = codetr(kind).eval()
    names = set(dict(co.named_modules()))
    stripped = copy.deepcopy(co).without_auxiliary()
    assert stripped.state_dict().keys() == DETR(**base_arguments(kind)).state_dict().keys()
    assert any(n.startswith("collaborators") for n in names)
    with torch.no_grad():
        full, alone = co(batch()), stripped(batch())
    for a, b in zip(full, alone):
        assert a["instances"].pred_boxes.tensor.equal(b["instances"].pred_boxes.tensor)

    class Traced(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, image):
            found = self.model([{"image": image}])[0]["instances"]
            return found.pred_boxes.tensor, found.scores

    def flops(model):
        analysis = FlopCountAnalysis(Traced(model), torch.zeros(3, 64, 64)).unsupported_ops_warnings(False)
        return analysis.uncalled_modules_warnings(False).total()

    base = DETR(**base_arguments(kind)).eval()
    assert flops(co) == flops(base) > 0


def test_losses_sum_to_equation_6():
    """L = sum_l (L_dec_l + lambda_1 sum_i L_dec_il + lambda_2 L_enc), term by term."""
    lambda_1, lambda_2 = 0.5, 3.0
    unit = codetr("deformable", lambda_1=1.0, lambda_2=1.0 / LAYERS)
    weighted = codetr("deformable", lambda_1=lambda_1, lambda_2=lambda_2)
    weighted.load_state_dict(unit.state_dict())
    torch.manual_seed(3)
    terms = unit(batch())
    torch.manual_seed(3)
    found = weighted(batch())
    assert terms.keys() == found.keys()
    total = 0.0
    for layer in range(LAYERS):
        suffix = f"_{layer}" if layer + 1 < LAYERS else ""
        kinds = ("class", "bbox", "giou")
        decoder = sum(terms[f"loss_{kind}{suffix}"] for kind in kinds)
        positive = sum(terms[f"loss_{kind}_co{i}{suffix}"] for kind in kinds for i in range(2))
        encoder = sum(v for k, v in terms.items() if k.startswith("loss_aux"))
        total = total + decoder + lambda_1 * positive + lambda_2 * encoder
    torch.testing.assert_close(sum(found.values()), total)
    for name, value in found.items():
        factor = lambda_2 * LAYERS if "_aux" in name else lambda_1 if "_co" in name else 1.0
        torch.testing.assert_close(value, factor * terms[name])


def test_switches_of_a_head():
    """`aux head only` and `pos queries only` of table 9."""
    only_head = codetr(heads=[{**HEADS[1], "queries": False}])
    losses = only_head(batch())
    assert not any("_co" in k for k in losses)
    assert any("_aux0_atss" in k for k in losses)
    only_queries = codetr(heads=[{**HEADS[1], "loss": False}])
    losses = only_queries(batch())
    assert not any("_aux" in k for k in losses)
    assert {"loss_class_co0", "loss_bbox_co0_0"} <= losses.keys()
    sum(losses.values()).backward()
    head = only_queries.collaborators.heads[0]
    assert all(not p.requires_grad for p in head.parameters())
    assert only_queries.collaborators.adapter.down[0][0].weight.grad is not None
    frozen = codetr("dino", [{**HEADS[1], "loss": False}], collaboration={"query_feature": False})
    sum(frozen(batch()).values()).backward()
    assert not [n for n, p in frozen.named_parameters() if p.requires_grad and p.grad is None]


def test_repeated_heads_have_their_own_weights():
    model = codetr(heads=["atss", "atss", {"name": "atss", "options": {"channels": 32}}])
    losses = model(batch())
    assert {f"loss_aux{i}_atss_cls" for i in range(3)} <= losses.keys()
    heads = model.collaborators.heads
    assert not heads[0].head.box_tower[0].weight.equal(heads[1].head.box_tower[0].weight)
    assert len(model.collaborators.queries.box_proj) == 3


@pytest.mark.parametrize("name", ["retinanet", "fcos", "paa", "gfl"])
def test_every_dense_head_collaborates(name):
    model = codetr("deformable_pp", heads=[{"name": name, "options": {"channels": 32}}])
    losses = model(batch())
    sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values())
    assert losses["loss_class_co0"] > 0


def test_batch_without_objects():
    model = codetr("dino")
    losses = model(batch(counts=(0, 0)))
    assert all(v.isfinite() for v in losses.values())
    assert losses["loss_bbox_co1"] == 0
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_auxiliary_branches_detect():
    """Table 11: every branch returns Detectron2 instances in the original image's pixels."""
    for branch in range(2):
        model = codetr("deformable_pp", eval_branch=branch).eval()
        with torch.no_grad():
            found = model(batch())
        for x in found:
            assert x["instances"].image_size[0] == 2 * (96, 80)[found.index(x)]
            assert len(x["instances"]) <= 100
            assert x["instances"].pred_classes.max() < CLASSES
    with pytest.raises(ValueError, match="eval_branch is 2, but the model has 2"):
        codetr(eval_branch=2)


def test_federated_classes_leave_others_alone():
    """FedLoss: a class that is neither present nor drawn gets no classification gradient from decoder branches."""
    model = CoDETR(**base_arguments("deformable"), heads=HEADS[1:], class_counts=[1.0, 0.0, 5.0], federated_classes=1)
    data = batch(counts=(1, 1))  # class 0 only
    losses = model(data)
    sum(v for k, v in losses.items() if "_aux" not in k).backward()
    bias = model.class_heads[-1].bias.grad
    assert bias[0] != 0 and bias[1] == 0 and bias[2] == 0
    with pytest.raises(ValueError, match="class_counts has 2 entries for 3 classes"):
        CoDETR(**base_arguments("deformable"), class_counts=[1.0, 2.0])


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="plain DETR has none"):
        codetr("detr")
    with pytest.raises(ValueError, match="unknown auxiliary head 'atts'"):
        codetr(heads=["atts"])
    with pytest.raises(ValueError, match="with the keys.*'lose'"):
        codetr(heads=[{"name": "atss", "lose": False}])
    with pytest.raises(ValueError, match="strides double, got \\[8, 32\\]"):
        MultiScaleAdapter([8, 32], DIM)
    with pytest.raises(ValueError, match="needs gt_masks"):
        codetr(heads=["mask_rcnn"])(batch())


def test_adapter_strides_and_sizes():
    maps = [torch.randn(1, 32, 13, 10), torch.randn(1, 32, 7, 5)]
    adapter = MultiScaleAdapter([8, 16], 32)
    pyramid = adapter(maps)
    assert adapter.strides == (8, 16, 32)
    assert pyramid[0] is maps[0] and pyramid[2].shape == (1, 32, 4, 3)
    single = MultiScaleAdapter([32], 32)
    assert single.strides == (8, 16, 32, 64, 128)
    assert [tuple(x.shape[-2:]) for x in single([torch.randn(1, 32, 5, 6)])] == [
        (20, 24),
        (10, 12),
        (5, 6),
        (3, 3),
        (2, 2),
    ]
    # the finer level is a convolution of the bilinearly doubled map
    coarse = torch.randn(1, 32, 5, 6)
    up = torch.nn.functional.interpolate(coarse, size=(10, 12), mode="bilinear", align_corners=False)
    assert single([coarse])[1].equal(single.up[0](up))


def test_bfloat16_step():
    model = codetr("dino")
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch())
    assert all(v.isfinite() and v.dtype == torch.float32 for v in losses.values())
    sum(losses.values()).backward()


@pytest.mark.parametrize("head", HEADS)
def test_head_alone_on_the_encoder(head):
    """Table 11's K = 0: no decoder, the head's loss with weight 1."""
    model = EncoderDetector(**base_arguments("deformable_pp"), heads=[head])
    assert not any(
        n.startswith(("decoder", "queries", "class_heads", "collaborators.queries")) for n in model.state_dict()
    )
    losses = model(batch())
    assert all("_aux0_" in k for k in losses)
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    model.eval()
    with torch.no_grad():
        assert len(model(batch())) == 2
    with pytest.raises(ValueError, match="one head, got"):
        EncoderDetector(**base_arguments("deformable_pp"), heads=HEADS)


@pytest.mark.parametrize("kind", ["deformable", "deformable_pp"])
def test_query_groups(kind):
    """Groups do not see each other, each is matched alone, and inference runs the first."""
    arguments = base_arguments(kind)
    model = GroupedDETR(**arguments, group_sizes=[12, 8], repeats=[1, 2], average=True)
    losses = model(batch())
    assert {"loss_class", "loss_class_group1", "loss_giou_group1_0"} <= losses.keys()
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    memory = model.encode(model.preprocess(batch()))
    queries = model.build_queries(memory, model.prepare_targets(batch()))
    before = model.decode(queries, memory).boxes[:, :, :12]
    queries.content = torch.cat([queries.content[:, :12], queries.content[:, 12:] + 1], dim=1)
    torch.testing.assert_close(model.decode(queries, memory).boxes[:, :, :12], before)
    branches = model.branches(model.decode(queries, memory), queries, model.prepare_targets(batch()))
    assert [b.name for b in branches][-2:] == ["", "group1"]
    assert len(branches[-1].targets[0]) == 2 * len(branches[-2].targets[0])
    model.eval()
    assert model.build_queries(memory, None).content.shape[1] == 12
    assert len(model(batch())) == 2
    with pytest.raises(ValueError, match="do not divide the 20 queries"):
        GroupedDETR(**base_arguments(kind), group_sizes=[12, 9], repeats=[1, 2], average=True)
    with pytest.raises(ValueError, match="use one of them"):
        GroupedDETR(**base_arguments("dino"), group_sizes=[20], repeats=[1], average=True)
