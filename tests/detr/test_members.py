"""Every member: a training step, inference, precision, padding, checkpointing, and bad input."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY

from polydet.detr import DETR, Encoder, EncoderLayer
from polydet.detr.decoder import decode_boxes

from .builders import CLASSES, DECODERS, DENSE, MEMBERS, QUERIES, batch, build

ALL = list(MEMBERS)
TWO_STAGE = ("deformable_two_stage", "deformable_pp", "dino")
DENOISING = ("dn_dab_deformable", "dino")


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("member", ALL)
def test_training_step(member: str) -> None:
    model = build(member)
    losses = model(batch())
    suffixes = [""] + (["_enc"] if member in TWO_STAGE else []) + (["_dn"] if member in DENOISING else [])
    expected = {
        f"loss_{kind}{suffix}{number}"
        for kind in ("class", "bbox", "giou")
        for suffix in suffixes
        for number in (["_0", "_1", ""] if suffix != "_enc" else [""])
    }
    assert set(losses) == expected
    assert all(v.ndim == 0 and torch.isfinite(v) for v in losses.values())
    total(losses).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # DistributedDataParallel needs no search for unused parameters


@pytest.mark.parametrize("member", ALL)
@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (QUERIES + 9, 1)], ids=["empty", "half-empty", "crowded"])
def test_any_number_of_objects(member: str, counts: tuple[int, int]) -> None:
    model = build(member)
    losses = model(batch(counts=counts))
    total(losses).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert set(losses) == set(model(batch()))  # processes must agree on the names
    if sum(counts) == 0:
        assert all(v == 0 for k, v in losses.items() if "class" not in k)


@pytest.mark.parametrize("member", ALL)
@pytest.mark.parametrize("sizes", [((1, 1), (40, 70)), ((3, 150), (120, 2)), ((33, 47),)], ids=str)
def test_any_image_size(member: str, sizes: tuple) -> None:
    model = build(member)
    total(model(batch(sizes, [1] * len(sizes)))).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        for x, out in zip(batch(sizes, [0] * len(sizes)), model(batch(sizes, [0] * len(sizes)))):
            instances = out["instances"]
            assert instances.image_size == (x["height"], x["width"])
            assert torch.isfinite(instances.pred_boxes.tensor).all()


@pytest.mark.parametrize("member", ALL)
def test_inference_contract(member: str) -> None:
    model = build(member).eval()
    inputs = [{k: v for k, v in x.items() if k != "instances"} for x in batch()]
    with torch.no_grad():
        outputs = model(inputs)
    for x, out in zip(inputs, outputs):
        found = out["instances"]
        assert found.image_size == (x["height"], x["width"])
        assert len(found) == (QUERIES if member == "detr" else 10)
        boxes = found.pred_boxes.tensor
        assert (boxes >= 0).all()
        assert (boxes[:, 0::2] <= x["width"]).all()
        assert (boxes[:, 1::2] <= x["height"]).all()
        assert ((found.pred_classes >= 0) & (found.pred_classes < CLASSES)).all()
        if member != "detr":
            assert (found.scores.diff() <= 0).all()
    without_sizes = [{"image": x["image"]} for x in inputs]
    with torch.no_grad():
        assert model(without_sizes)[0]["instances"].image_size == (48, 64)


@pytest.mark.parametrize("member", ALL)
def test_padding_does_not_change_an_image(member: str) -> None:
    """An image alone, and beside a larger one. Sizes are multiples of every stride, so that maps have whole cells;
    what is left is the convolutions' own border, hence the backbone's maps are compared through the transformer."""
    model = build(member).eval().double()
    alone, larger = batch(((64, 64),), (0,)), batch(((128, 192),), (0,), seed=1)
    with torch.no_grad():
        together = model.preprocess([*alone, *larger])
        memory = model.tokens(together)
        single = model.tokens(model.preprocess(alone))
        # give both the same feature values, so that only masks, positions and references can differ
        for padded, level in zip(memory.maps(), single.maps()):
            padded[0] = 7.0
            padded[0, :, : level.shape[2], : level.shape[3]] = level[0]
        results = []
        for m in (memory, single):
            encoded = model.encoder(m)
            results.append(model.decode(model.build_queries(encoded, None), encoded).boxes[-1, 0])
    torch.testing.assert_close(results[0], results[1], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("member", ALL)
def test_bf16_autocast(member: str) -> None:
    model = build(member)
    exact = total(model(batch(seed=4)))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch(seed=4))
    assert {v.dtype for v in losses.values()} == {torch.float32}
    total(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    if member not in DENOISING:  # whose noise is drawn anew
        assert total(losses).item() == pytest.approx(exact.item(), rel=0.15)


@pytest.mark.parametrize("member", ["detr", "deformable", "dino"])
def test_boxes_are_read_in_full_precision_under_autocast(member: str) -> None:
    model = build(member).eval()
    for head in model.box_heads:
        torch.nn.init.normal_(head.layers[-1].weight, std=0.4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        memory = model.encode(model.preprocess(batch()))
        queries = model.build_queries(memory, None)
        out = model.decoder(queries, memory, model.box_heads)
    with torch.no_grad():
        exact = decode_boxes(model.box_heads[-1](out.hidden[-1].float()), out.references[-1], torch.float32)
    torch.testing.assert_close(out.boxes[-1], exact, rtol=0, atol=1e-5)  # a hundredth of a pixel


@pytest.mark.parametrize("member", ALL)
def test_activation_checkpointing_changes_nothing(member: str) -> None:
    gradients = []
    for layers in (0, 2):
        model = build(member)
        model.encoder.checkpoint_layers = model.decoder.checkpoint_layers = layers
        torch.manual_seed(7)
        total(model(batch())).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("member", ALL)
def test_learns_one_batch(member: str) -> None:
    model = build(member)
    inputs = batch(((64, 64), (64, 64)), (2, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    first = None
    for _ in range(20):
        losses = {k: v for k, v in model(inputs).items() if "_dn" not in k and "_enc" not in k}
        first = first or float(total(losses).detach())
        optimizer.zero_grad()
        total(losses).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert float(total(losses).detach()) < 0.85 * first


def test_registered() -> None:
    assert META_ARCH_REGISTRY.get("DETR") is DETR


def test_refuses_images_that_are_not_finite_or_empty() -> None:
    model = build("dino")
    inputs = batch()
    inputs[1]["image"] = inputs[1]["image"].float()
    inputs[1]["image"][0, 3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"image_id=101, file_name=1\.jpg.*NaN"):
        model(inputs)
    inputs[1]["image"] = torch.zeros(3, 0, 10)
    with pytest.raises(ValueError, match="image_id=101.*no pixels"):
        model(inputs)


def test_refuses_boxes_without_area_and_foreign_labels() -> None:
    model = build("deformable")
    inputs = batch()
    inputs[0]["instances"].gt_boxes.tensor[1, 2] = inputs[0]["instances"].gt_boxes.tensor[1, 0]
    with pytest.raises(ValueError, match="image_id=100.*without area"):
        model(inputs)
    inputs = batch()
    inputs[0]["instances"].gt_classes[2] = CLASSES
    with pytest.raises(ValueError, match=f"image_id=100.*label {CLASSES}.*{CLASSES} classes"):
        model(inputs)


def test_diverged_weights_name_the_image() -> None:
    model = build("detr")
    with torch.no_grad():
        model.box_heads[0].layers[-1].bias[0] = float("nan")
    with pytest.raises(ValueError, match="image_id=100.*not finite"):
        model(batch())


def test_shared_heads_are_one_module() -> None:
    assert len(build("dino").box_heads) == 1
    assert len(build("deformable_pp").box_heads) == DECODERS


def test_encoder_norm_is_applied() -> None:
    norm = torch.nn.LayerNorm(DENSE["dim"])
    model = build("detr", encoder=Encoder(EncoderLayer(**DENSE), 1, norm=norm)).eval()
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.fill_(3.0)
        assert (model.encode(model.preprocess(batch())).tokens == 3.0).all()
