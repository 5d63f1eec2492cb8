"""The paper's measurements against literal versions, and the merging of augmented detections."""

import math

import pytest
import torch
from codetr_models import HEADS, batch, codetr
from detectron2.structures import Boxes, Instances
from torch import nn

from codetr.analysis import (
    IoFIoB,
    attention_score,
    discriminability,
    instability,
    matched_objects,
    query_distances,
    run_image,
    splat,
)
from codetr.gradcam import HeadDistances, activation_map, head_maps, kl_divergence
from codetr.tta import BoxVotingTTA, box_voting


def test_discriminability_is_equation_7():
    torch.manual_seed(0)
    maps = [torch.randn(3, 8, 6), torch.randn(3, 4, 3)]
    found = discriminability(maps, (8, 6))
    expected = torch.zeros(8, 6)
    for m in maps:
        norm = torch.tensor(
            [[math.sqrt(sum(v**2 for v in m[:, y, x].tolist())) for x in range(m.shape[2])] for y in range(m.shape[1])]
        )
        norm = norm / norm.max()
        expected += nn.functional.interpolate(norm[None, None], size=(8, 6), mode="bilinear")[0, 0] / 2
    torch.testing.assert_close(found, expected)
    assert found.max() <= 1


def test_iof_iob_is_equation_8():
    torch.manual_seed(1)
    curve = IoFIoB(points=5)
    images = [([[1, 2, 4, 6], [3, 3, 7, 5]], torch.rand(8, 9)), ([], torch.rand(8, 9))]
    for boxes, score in images:
        curve.update(score, torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    thresholds = curve.thresholds().tolist()
    everything = torch.cat([score for _, score in images]).flatten()
    assert thresholds[0] == 0 and thresholds[-1] == 1
    assert thresholds[1:-1] == pytest.approx(everything.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist(), abs=0.02)
    hits, areas = torch.zeros(2, 5), [0, 0]
    for boxes, score in images:
        for y in range(8):
            for x in range(9):
                background = not any(b[0] <= x < b[2] and b[1] <= y < b[3] for b in boxes)
                areas[background] += 1
                for k, threshold in enumerate(thresholds):
                    hits[int(background), k] += float(score[y, x] > threshold)
    iof, iob = curve.curve()
    torch.testing.assert_close(iof.float(), hits[0] / areas[0])
    torch.testing.assert_close(iob.float(), hits[1] / areas[1])
    assert iof[0] == 1 and iof[-1] == 0


def test_scores_that_lie_close_together_are_told_apart():
    """Those of a small model lie between 0.9948 and 0.9995: evenly spaced thresholds saw a diagonal."""
    torch.manual_seed(0)
    ranks = torch.rand(64, 64)
    ranks[10:40, 10:40] += 0.5
    box = torch.tensor([[10.0, 10.0, 40.0, 40.0]])
    wide, narrow = IoFIoB(), IoFIoB()
    wide.update(ranks / 1.5, box)
    narrow.update(0.9948 + ranks / 1.5 * 0.0047, box)
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[10:40, 10:40] = True
    expected = float((ranks[inside][:, None] > ranks[~inside]).float().mean())
    for curve in (wide, narrow):
        assert curve.area() == pytest.approx(expected, abs=0.01) and 0.8 < expected < 0.95
    hair = IoFIoB()
    hair.update(1 - (1 - ranks / 1.5) * 2e-6, box)
    assert hair.area() == pytest.approx(expected, abs=0.05), "and those that differ in the last digits"
    assert narrow.iof_at(0.2) == pytest.approx(wide.iof_at(0.2), abs=0.01) and wide.iof_at(0.2) > 0.6
    assert IoFIoB().area() == pytest.approx(0)  # nothing was added


def test_curve_of_a_perfect_and_a_blind_score():
    perfect, blind = IoFIoB(), IoFIoB()
    box = torch.tensor([[10.0, 10.0, 20.0, 30.0]])
    score = torch.zeros(40, 40)
    score[10:30, 10:20] = 1
    perfect.update(score * 0.9, box)
    torch.manual_seed(0)
    blind.update(torch.rand(40, 40), box)
    assert perfect.iof_at(0.2) == pytest.approx(1.0)
    assert blind.iof_at(0.2) == pytest.approx(0.2, abs=0.08)


def test_splat_is_the_transpose_of_bilinear_sampling():
    torch.manual_seed(2)
    points, weights, image = torch.rand(30, 2), torch.rand(30), torch.randn(5, 7)
    grid = (points * 2 - 1)[None, :, None]
    sampled = nn.functional.grid_sample(
        image[None, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    expected = (sampled.flatten() * weights).sum()
    torch.testing.assert_close((splat(points, weights, (5, 7)) * image).sum(), expected)


@pytest.mark.parametrize("kind", ["deformable", "deformable_pp", "dino"])
def test_run_image_sees_the_last_layer(kind):
    model = codetr(kind).eval()
    result = run_image(model, batch()[0])
    locations, weights = result.sampling
    assert locations.shape == (1, 20, 4, 2, 4, 2)
    torch.testing.assert_close(weights.sum(dim=(-1, -2)), torch.ones(1, 20, 4))
    heat = attention_score(locations[0], weights[0], result.memory.layout.spatial_shapes[0], result.size)
    assert heat.shape == result.size and 0 < heat.max() <= 1
    objects = matched_objects(model, result)
    assert sorted(objects[objects >= 0].tolist()) == [0, 1, 2]


def test_instability_counts_changes():
    before = [torch.tensor([-1, 0, 1]), torch.tensor([0, -1])]
    assert instability(before, before) == 0
    assert instability(before, [torch.tensor([0, -1, 1]), torch.tensor([0, -1])]) == 1.0


def test_query_distribution():
    model = codetr("deformable").eval()
    found = query_distances(model, batch()[0])
    assert len(found["positive"][0]) == 3 and len(found["negative"][0]) == 17
    assert len(found["custom"]) == 2
    for centers, owner in zip([*found["positive"], *found["custom"]], found["object"]):
        assert len(centers) == len(owner) > 0
        assert owner.max() < 3
    # customised queries of ATSS lie inside their object
    target = model.prepare_targets([batch()[0]])[0].boxes
    inside = (found["custom"][1] - target[found["object"][2], :2]).abs() <= target[found["object"][2], 2:] / 2
    assert inside.all()
    with pytest.raises(ValueError, match="no positive queries"):
        query_distances(codetr("deformable", heads=()), batch()[0])


def test_grad_cam_of_a_linear_score():
    """For score = sum(w . feature) over a region, the map is relu(w . feature) everywhere."""
    torch.manual_seed(3)
    feature = torch.randn(4, 6, 5)
    weight = torch.randn(4)
    gradient = weight[:, None, None].expand_as(feature)
    expected = torch.einsum("c,chw->hw", weight, feature).relu().flatten() + 1e-8
    torch.testing.assert_close(activation_map([feature], [gradient]), expected / expected.sum())


def test_head_distances_are_equations_9_and_10():
    torch.manual_seed(4)
    images = [{n: torch.rand(6).softmax(0) for n in ("0:atss", "1:fcos", "2:gfl", "detr")} for _ in range(3)]
    distances = HeadDistances()
    for maps in images:
        distances.update(maps)

    def literal(a, b):
        return sum(sum(p * math.log(p / q) for p, q in zip(m[a].tolist(), m[b].tolist())) for m in images) / 3

    assert distances.pair("0:atss", "1:fcos") == pytest.approx(literal("0:atss", "1:fcos"), rel=1e-5)
    expected = sum(literal("0:atss", n) + literal(n, "0:atss") for n in ("1:fcos", "2:gfl")) / 4
    assert distances.average("0:atss") == pytest.approx(expected, rel=1e-5)
    assert distances.heads() == ["0:atss", "1:fcos", "2:gfl", "detr"]
    assert kl_divergence(images[0]["detr"], images[0]["detr"]) == 0


def test_head_maps_of_a_model():
    model = codetr("deformable_pp").eval()
    maps = head_maps(model, batch()[0])
    assert list(maps) == ["detr", "0:faster_rcnn", "1:atss"]
    for cam in maps.values():
        assert cam.shape == (12 * 12,)
        assert cam.sum() == pytest.approx(1.0, abs=1e-5)
    distances = HeadDistances()
    distances.update(maps)
    assert distances.average("1:atss") > 0
    single = codetr("deformable", HEADS[1:]).eval()
    distances = HeadDistances()
    distances.update(head_maps(single, batch()[0]))
    assert distances.average("0:atss") == pytest.approx(
        (distances.pair("0:atss", "detr") + distances.pair("detr", "0:atss")) / 2
    )
    assert head_maps(model, batch(counts=(0, 1))[0]) == {}


def test_box_voting():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    scores = torch.tensor([0.6, 0.2, 0.5, 0.4])
    classes = torch.tensor([0, 0, 1, 0])
    kept, voted = box_voting(boxes, scores, classes)
    assert kept.tolist() == [0, 2, 3]
    torch.testing.assert_close(voted[0], torch.tensor([0.25, 0.0, 10.25, 10.0]))  # 0.6 and 0.2 of the two
    assert voted[1].equal(boxes[2]) and voted[2].equal(boxes[3])
    assert box_voting(boxes[:0], scores[:0], classes[:0])[1].shape == (0, 4)


def test_augmented_detections_come_back_to_the_original():
    """A detector that finds the bright square finds it at every size and mirrored, at one place."""

    def bright(inputs):
        x = inputs[0]
        rows, columns = (x["image"][0] > 128).nonzero().unbind(1)
        sy, sx = x["height"] / x["image"].shape[1], x["width"] / x["image"].shape[2]
        box = [columns.min() * sx, rows.min() * sy, (columns.max() + 1) * sx, (rows.max() + 1) * sy]
        found = Instances((x["height"], x["width"]))
        found.pred_boxes = Boxes(torch.tensor([box]))
        found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([1])
        return [{"instances": found}]

    image = torch.zeros(3, 60, 90, dtype=torch.uint8)
    image[:, 10:30, 20:40] = 255
    tta = BoxVotingTTA(short_sides=(60, 120), max_size=400)
    found = tta(bright, [{"image": image, "height": 60, "width": 90}])[0]["instances"]
    assert len(found) == 1
    torch.testing.assert_close(found.pred_boxes.tensor[0], torch.tensor([20.0, 10, 40, 30]), atol=0.6, rtol=0)


def test_model_with_test_time_augmentation():
    model = codetr("deformable_pp", tta=BoxVotingTTA(short_sides=(64, 96), max_size=128, max_detections=7)).eval()
    found = model(batch())
    assert [x["instances"].image_size for x in found] == [(192, 96), (160, 96)]
    assert all(0 < len(x["instances"]) <= 7 for x in found)
