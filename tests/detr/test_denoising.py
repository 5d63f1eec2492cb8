"""Denoising groups: what they hold, whom they see, and that they leave no trace in inference."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

from polydet.detr import Denoising, Targets
from polydet.detr.queries import denoising_mask
from polydet.layers import cxcywh_to_xyxy

from .builders import CLASSES, DECODERS, QUERIES, batch, build


def targets(counts: tuple[int, ...], seed: int = 0) -> list[Targets]:
    g = torch.Generator().manual_seed(seed)
    return [
        Targets(
            torch.randint(0, CLASSES, (n,), generator=g),
            torch.rand(n, 4, generator=g) * torch.tensor([0.3, 0.3, 0.2, 0.2]) + torch.tensor([0.35, 0.35, 0.05, 0.05]),
        )
        for n in counts
    ]


def test_contrastive_groups_hold_a_near_and_a_far_copy_of_every_object() -> None:
    objects = targets((3, 1, 0))
    noised = Denoising(CLASSES, 8, num_queries=10, label_noise=0.0, box_noise=0.5)(objects)
    groups = 10 // 3
    assert noised.group_size == 6
    assert noised.num_queries == groups * 6
    assert noised.content.shape == (3, 18, 8)
    assert len(noised.query) == groups * 4  # positives: one an object and group
    for image, query, target in zip(noised.image, noised.query, noised.target):
        box, near = objects[image].boxes[target], noised.references[image, query]
        far = noised.references[image, query + 3]
        half = box[2:].repeat(2) / 2
        move = (cxcywh_to_xyxy(near) - cxcywh_to_xyxy(box)).abs() / half
        assert (move <= 0.5 + 1e-5).all()
        move = (cxcywh_to_xyxy(far) - cxcywh_to_xyxy(box)).abs() / half
        assert (move >= 0.5 - 1e-5).all()
        assert (move <= 1.0 + 1e-5).all()
    used = torch.zeros(3, 18, dtype=torch.bool)
    used[noised.image, noised.query] = True
    used[noised.image, noised.query + 3] = True
    assert not noised.content[~used].any()
    assert not used[2].any()


def test_contents_are_the_classes_and_some_are_flipped() -> None:
    torch.manual_seed(0)
    objects = targets((20,))
    plain = Denoising(CLASSES, 8, num_queries=100, label_noise=0.0)
    noised = plain(objects)
    expected = plain.label_embedding(objects[0].labels[noised.target])
    torch.testing.assert_close(noised.content[0, noised.query], expected)
    flipping = Denoising(CLASSES, 8, num_queries=2000, label_noise=0.25)
    noised = flipping(objects)
    same = (noised.content[0, noised.query] == flipping.label_embedding(objects[0].labels[noised.target])).all(-1)
    assert 1 - same.float().mean() == pytest.approx(0.25 * (1 - 1 / CLASSES), abs=0.03)


def test_plain_groups_hold_positives_with_an_indicator() -> None:
    objects = targets((2, 4))
    noised = Denoising(CLASSES, 8, num_groups=5, box_noise=0.4, contrastive=False, indicator=True)(objects)
    assert noised.num_queries == 5 * 4
    assert noised.group_size == 4
    assert len(noised.query) == 5 * 6
    assert (noised.content[noised.image, noised.query, -1] == 1).all()
    box = torch.stack([objects[i].boxes[t] for i, t in zip(noised.image, noised.target)])
    moved = noised.references[noised.image, noised.query] - box
    assert (moved[:, :2].abs() <= 0.4 * box[:, 2:] / 2 + 1e-5).all()
    assert (moved[:, 2:].abs() <= 0.4 * box[:, 2:] + 1e-5).all()


def test_slots_without_an_object_are_left_out_of_the_loss_of_plain_groups() -> None:
    """DN-DETR's loss reads the known queries only; DINO's calls the others background."""
    gradients = {}
    for member in ("dn_dab_deformable", "dino"):
        model = build(member)
        inputs = batch(counts=(3, 1))
        objects = model.prepare_targets(inputs)
        memory = model.encode(model.preprocess(inputs))
        queries = model.build_queries(memory, objects)
        predictions = model.decode(queries, memory)
        branch = next(b for b in model.branches(predictions, queries, objects) if b.name == "dn")
        loss = model.criterion(branch)["loss_class_dn"]
        gradients[member] = torch.autograd.grad(loss, branch.predictions.logits)[0][-1].any(-1)  # [B, D]
    plain = gradients["dn_dab_deformable"].unflatten(1, (2, 3))
    assert plain[0].all() and plain[1, :, 0].all() and not plain[1, :, 1:].any()
    assert gradients["dino"].all()


@pytest.mark.parametrize("member", ["dn_dab_deformable", "dino"])
def test_queries_are_made_without_waiting_for_the_gpu(member: str) -> None:
    class NoWaiting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            masks = args[1] if name.startswith("index") else []
            sized_by_values = any(m is not None and m.dtype == torch.bool for m in masks)
            assert name not in ("nonzero", "_local_scalar_dense") and not sized_by_values, name
            return function(*args, **(kwargs or {}))

    model = build(member)
    objects = model.prepare_targets(batch())
    memory = model.encode(model.preprocess(batch()))
    with NoWaiting():
        queries = model.build_queries(memory, objects)
    assert queries.denoising.num_queries


def test_no_noise_keeps_boxes() -> None:
    objects = targets((2,))
    noised = Denoising(CLASSES, 8, num_queries=2, box_noise=0.0)(objects)
    torch.testing.assert_close(noised.references[0, noised.query], objects[0].boxes[noised.target])


def test_no_objects_give_no_queries_but_keep_the_table_in_the_graph() -> None:
    denoising = Denoising(CLASSES, 8)
    noised = denoising(targets((0, 0)))
    assert noised.num_queries == 0
    noised.content.sum().backward()
    assert denoising.label_embedding.weight.grad is not None


def test_groups_shrink_to_one_when_there_are_many_objects() -> None:
    noised = Denoising(CLASSES, 8, num_queries=10)(targets((30,)))
    assert noised.num_queries == 60


@pytest.mark.parametrize("see_matching", [True, False])
def test_mask(see_matching: bool) -> None:
    blocked = denoising_mask(6, 3, 4, torch.device("cpu"), see_matching)
    groups = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    for row, a in enumerate(groups):
        for column, b in enumerate(groups):
            expected = a != b
            if see_matching and b == 2:
                expected = False
            assert bool(blocked[row, column]) == expected, (row, column)


@pytest.mark.parametrize("member", ["dino", "dn_dab_deformable"])
def test_matching_queries_never_see_denoising_queries(member: str) -> None:
    model = build(member).double()
    objects = model.prepare_targets(batch())
    memory = model.encode(model.preprocess(batch()))
    predictions = []
    for seed in (1, 2):  # other noise
        torch.manual_seed(seed)
        queries = model.build_queries(memory, objects)
        predictions.append(model.decode(queries, memory))
    count = queries.denoising.num_queries
    without = model.decode(model.build_queries(memory, None), memory)
    assert without.boxes.shape[2] == QUERIES
    for p in predictions:
        torch.testing.assert_close(p.boxes[:, :, count:], without.boxes)
        torch.testing.assert_close(p.logits[:, :, count:], without.logits)
    assert not torch.equal(predictions[0].boxes[:, :, :count], predictions[1].boxes[:, :, :count])


@pytest.mark.parametrize("see_matching", [True, False])
def test_denoising_queries_see_matching_queries_only_if_asked(see_matching: bool) -> None:
    model = build("dino", denoising=Denoising(CLASSES, 64, 6, see_matching=see_matching)).double()
    objects = model.prepare_targets(batch())
    memory = model.encode(model.preprocess(batch()))
    queries = model.build_queries(memory, objects)
    count = queries.denoising.num_queries
    before = model.decode(queries, memory).logits[:, :, :count]
    queries.content = torch.cat((queries.content[:, :count], queries.content[:, count:] + 1.0), dim=1)
    after = model.decode(queries, memory).logits[:, :, :count]
    assert torch.allclose(before, after) != see_matching


def test_groups_do_not_see_each_other() -> None:
    model = build("dino").double()
    objects = model.prepare_targets(batch())
    memory = model.encode(model.preprocess(batch()))
    queries = model.build_queries(memory, objects)
    size = queries.denoising.group_size
    before = model.decode(queries, memory).logits
    content = queries.content.clone()
    content[:, :size] += 1.0
    queries.content = content
    after = model.decode(queries, memory).logits
    torch.testing.assert_close(before[:, :, size:], after[:, :, size:])
    assert not torch.allclose(before[:, :, :size], after[:, :, :size])


@pytest.mark.parametrize("member", ["dino", "dn_dab_deformable"])
def test_removing_denoising_changes_nothing_in_inference(member: str) -> None:
    model = build(member).eval()
    with torch.no_grad():
        before = model(batch())
        model.denoising = None
        after = model(batch())
    for a, b in zip(before, after):
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
        assert torch.equal(a["instances"].scores, b["instances"].scores)


def test_negatives_are_background_in_the_loss() -> None:
    """With every weight but the classification's at zero, only positives may be told to be objects."""
    model = build("dino")
    torch.manual_seed(0)
    inputs = batch(counts=(3, 2))
    objects = model.prepare_targets(inputs)
    memory = model.encode(model.preprocess(inputs))
    queries = model.build_queries(memory, objects)
    predictions = model.decode(queries, memory)
    branch = next(b for b in model.branches(predictions, queries, objects) if b.name == "dn")
    logits = branch.predictions.logits
    gradient = torch.autograd.grad(model.criterion(branch)["loss_class_dn"], logits)[0][DECODERS - 1]
    pulled_up = (gradient < 0).any(-1)
    expected = torch.zeros_like(pulled_up)
    expected[queries.denoising.image, queries.denoising.query] = True
    assert torch.equal(pulled_up, expected)


def test_needs_four_dimensional_references() -> None:
    model = build("deformable", denoising=Denoising(CLASSES, 64))
    with pytest.raises(ValueError, match="4-d references"):
        model(batch())
    model = build("detr", denoising=Denoising(CLASSES, 64))
    with pytest.raises(ValueError, match="4-d references"):
        model(batch())


def divisors(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    objects = targets(((1,), (20,))[rank])
    found = {}
    for kind in ("objects", "pairs", "local"):
        noised = Denoising(CLASSES, 8, normalizer=kind)(objects)
        found[kind] = noised.normalizer.item()
        assert len(noised.query) == (100, 100)[rank]
    torch.save(found, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_normalizers_of_the_authors_on_two_processes(tmp_path) -> None:
    """One image with 1 object and one with 20, 100 pairs in each; values of the authors' codes."""
    mp.start_processes(divisors, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    assert (first["objects"], second["objects"]) == (1050.0, 52.5)  # DINO: 10.5 objects, times 100 and 5 groups
    assert (first["pairs"], second["pairs"]) == (100.0, 100.0)  # Co-DINO
    assert (first["local"], second["local"]) == (100.0, 100.0)  # DN-DETR
    with pytest.raises(ValueError, match="pairs, objects or local"):
        Denoising(CLASSES, 8, normalizer="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("member", ["dino", "dn_dab_deformable"])
def test_the_normalizer_divides_the_denoising_losses(member: str) -> None:
    model = build(member)
    inputs = batch(counts=(3, 1))
    objects = model.prepare_targets(inputs)
    queries = model.build_queries(model.encode(model.preprocess(inputs)), objects)
    assert queries.denoising.normalizer == len(queries.denoising.query)  # one process: all kinds are the pairs
    predictions = model.decode(queries, model.encode(model.preprocess(inputs)))
    losses = []
    for divisor in (1.0, 4.0):
        queries.denoising.normalizer = torch.tensor(divisor)
        branch = next(b for b in model.branches(predictions, queries, objects) if b.name == "dn")
        losses.append(model.criterion(branch))
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name] * 4)
