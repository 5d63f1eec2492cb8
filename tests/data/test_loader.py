"""Loaders: the stream is a function of seed and position; skips are counted; samplers are exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from polydet.data import (
    ClassAwareSampler,
    DatasetError,
    DetectionMapper,
    FixedRatioSampler,
    RepeatFactorSampler,
    UniformSampler,
    Union,
    build_test_loader,
    build_train_loader,
    label_space_of,
)
from polydet.data import loader as loader_module
from polydet.data.augmentations import large_scale_jitter
from polydet.data.load import load_card
from polydet.data.samplers import IndexStream, class_aware_weights, image_counts, repeat_factors
from polydet.data.shapeworld import generate


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    patch = pytest.MonkeyPatch()
    patch.setenv("DETECTRON2_DATASETS", str(root))
    parts = {p: (w, dict.fromkeys(c, 15)) for p, (w, c) in generate.PARTS.items()}
    patch.setattr(generate, "PARTS", parts)
    for part in ("coco", "lvis", "wild"):
        generate.ensure_part(part)
    yield root
    patch.undo()


NAMES = ["shapes_coco_train", "shapes_lvis_train"]


def make(batch=4, **options):
    mapper = DetectionMapper(True, large_scale_jitter(64))
    return build_train_loader(NAMES, mapper, batch, **{"num_workers": 0, "seed": 3, **options})


def take(loader, count):
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


def same(a, b):
    assert [s["file_name"] for s in a] == [s["file_name"] for s in b]
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x["image"], y["image"])
        assert torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
        assert torch.equal(x["instances"].gt_classes, y["instances"].gt_classes)


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("sampler", [UniformSampler, lambda: RepeatFactorSampler(0.3)])
def test_resume_is_exact(world, sampler, grouping):
    whole = take(make(sampler=sampler(), aspect_ratio_grouping=grouping), 14)
    rest = take(make(sampler=sampler(), aspect_ratio_grouping=grouping, start_iter=9), 5)
    for a, b in zip(whole[9:], rest):
        same(a, b)
    other = take(make(sampler=sampler(), seed=4), 3)
    assert [s["file_name"] for b in other for s in b] != [s["file_name"] for b in whole[:3] for s in b]


def test_workers_change_nothing(world):
    for a, b in zip(take(make(), 6), take(make(num_workers=2), 6)):
        same(a, b)


def test_two_processes_share_one_batch(world, monkeypatch):
    whole = take(make(), 4)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(loader_module.comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(loader_module.comm, "get_rank", lambda rank=rank: rank)
        shares.append(take(make(), 4))
    for batch, first, second in zip(whole, *shares):
        same(batch[0::2], first)
        same(batch[1::2], second)
    with pytest.raises(ValueError, match="multiple of 2"):
        make(batch=3)


def test_global_random_state_is_left_alone(world):
    np.random.seed(0)
    torch.manual_seed(0)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(0)
    torch.manual_seed(0)
    take(make(), 1)
    assert (np.random.rand(), torch.rand(1)) == expected


def test_labels_are_joint(world):
    space = label_space_of(NAMES)
    union = Union(NAMES)
    assert len(space) == 8 + 32 == union.num_labels
    seen = set()
    for i in range(len(union)):
        record = union[i]
        low, high = (0, 8) if record["dataset_name"] == NAMES[0] else (8, 40)
        ids = [a["category_id"] for a in record["annotations"]]
        assert all(low <= k < high for k in ids + record.get("neg_category_ids", []))
        assert ids == union.labels[union.offsets[i] : union.offsets[i + 1]].tolist()
        assert union.datasets[union.owner[i]] == record["dataset_name"]
        seen.update(ids)
    assert seen & set(range(8)) and seen & set(range(8, 40))
    merged = label_space_of(NAMES, merge="name")
    assert len(merged) == 40, "no name is shared"
    with pytest.raises(TypeError, match="list of card names"):
        label_space_of("shapes_coco_train")


def test_grouped_batches_have_one_orientation(world, monkeypatch):
    monkeypatch.setattr(Union, "sizes", lambda self: (np.arange(len(self)) % 2 * 50 + 75, np.full(len(self), 100)))
    union = Union(NAMES)
    sampler = UniformSampler()
    sampler.bind(union)
    batches = loader_module._Batches(union, IndexStream(sampler, 0), 4, 0, True)
    iterator = iter(batches)
    for _ in range(20):
        assert len({index % 2 for _, index in next(iterator)}) == 1


def test_empty_images(world, bench):
    bench.card()
    assert [Union(["toy"])[i]["image_id"] for i in range(len(Union(["toy"])))] == [3, 7]
    assert len(Union(["toy"], filter_empty=False)) == 3
    bench.document["annotations"] = []
    bench.card()
    with pytest.raises(DatasetError, match="none with an annotation"):
        Union(["toy"])


def damage(world, count):
    """Break images of a copy of the COCO card's folder; returns their names."""
    folder = world / "shapeworld/v1/coco/train"
    backup = {}
    for path in sorted(folder.iterdir())[:count]:
        backup[path] = path.read_bytes()
        path.write_bytes(backup[path][:300])
    return backup


def test_bad_images_are_replaced_counted_and_limited(world, caplog):
    backup = damage(world, 3)
    try:
        loader = make()
        batches = take(loader, 16)
        assert all(len(batch) == 4 for batch in batches)
        assert set(loader.skipped) == {str(path) for path in backup}
        assert "skipped image 3 of at most 20" in caplog.text and "cannot be read" in caplog.text
        for a, b in zip(batches, take(make(num_workers=2), 16)):
            same(a, b)
        with pytest.raises(DatasetError, match="max_skipped=2") as error:
            take(make(max_skipped=2, num_workers=1), 16)
        assert ".jpg" in str(error.value)
    finally:
        for path, data in backup.items():
            path.write_bytes(data)


@pytest.mark.parametrize(("given", "limit"), [(0, 0), (0.2, 3), (0.0, 0), (1, 1), (20, 20), (20.0, 20)])
def test_skipped_images_are_counted_in_numbers_or_as_a_share(world, given, limit):
    assert build_test_loader("shapes_coco_val", DetectionMapper(False, []), 0, max_skipped=given).max_skipped == limit
    assert make(max_skipped=given).max_skipped == (limit if given >= 1 else int(given * len(Union(NAMES))))


@pytest.mark.parametrize("given", [-1, 1.5, True])
def test_other_numbers_of_skipped_images_are_refused(world, given):
    with pytest.raises(ValueError, match=f"max_skipped={given} is neither"):
        build_test_loader("shapes_coco_val", DetectionMapper(False, []), 0, max_skipped=given)


def test_a_set_without_a_readable_image_is_not_evaluated(world):
    loader = build_test_loader("shapes_coco_val", DetectionMapper(False, []), 0)
    few = build_test_loader("shapes_coco_val", DetectionMapper(False, []), 0, max_skipped=0.2)
    folder = world / "shapeworld/v1/coco/val"
    folder.rename(folder.with_name("away"))
    try:
        with pytest.raises(DatasetError, match=r"none of the 15 images of 'shapes_coco_val'.*does not exist"):
            list(loader)
        with pytest.raises(DatasetError, match="max_skipped=3"):
            list(few)
    finally:
        folder.with_name("away").rename(folder)


def test_all_images_bad(world):
    backup = damage(world, 15)
    try:
        loader = build_train_loader(NAMES[:1], DetectionMapper(True, []), 2, num_workers=0)
        with pytest.raises(DatasetError, match="in a row"):
            take(loader, 1)
    finally:
        for path, data in backup.items():
            path.write_bytes(data)


def test_a_failing_mapper_names_the_image(world):
    def fail(record):
        raise KeyError("x")

    with pytest.raises(RuntimeError, match=r"mapping .*\.jpg of shapes_"):
        take(build_train_loader(NAMES, fail, 2, num_workers=0), 1)


def test_mapper_may_decline(world):
    mapper = DetectionMapper(True, [])
    seen = take(build_train_loader(NAMES, lambda r: mapper(r) if r["image_id"] % 2 else None, 4, num_workers=0), 5)
    assert all(s["image_id"] % 2 for batch in seen for s in batch)


def test_test_loader(world, caplog):
    loader = build_test_loader("shapes_coco_val", DetectionMapper(False, []), num_workers=1, batch_size=2)
    batches = list(loader)
    assert len(batches) == len(loader) == 8
    ids = [s["image_id"] for b in batches for s in b]
    assert ids == list(range(1, 16)) and all("instances" not in s for b in batches for s in b)
    path = sorted((world / "shapeworld/v1/coco/val").iterdir())[4]
    data = path.read_bytes()
    path.write_bytes(b"")
    try:
        samples = [s for b in loader for s in b]
        assert samples[4]["image"].shape == (3, 160, 192) and not samples[4]["image"].any()
        assert list(loader.skipped) == [str(path)] and path.name in caplog.text
    finally:
        path.write_bytes(data)


def test_test_batches_hold_one_size(world, monkeypatch):
    table = load_card("shapes_coco_val")
    heights = np.array([5, 7, 5, 0, 7, 5, 5, 5, 0, 7, 7, 5, 7, 9, 5], np.int32)
    monkeypatch.setattr("polydet.data.loader.load_card", lambda name: replace(table, heights=heights))
    # places of the images: a batch stands where its first image does; nothing is known of images 3 and 8
    expected = [[0, 2, 5], [1, 4, 9], [3], [6, 7, 11], [8], [10, 12], [13], [14]]
    loader = build_test_loader("shapes_coco_val", lambda record: {"image_id": record["image_id"]}, 0, batch_size=3)
    assert [[item["image_id"] - 1 for item in batch] for batch in loader] == expected and len(loader) == 8
    with pytest.raises(ValueError, match="batch_size=0"):
        build_test_loader("shapes_coco_val", lambda record: record, 0, batch_size=0)


def test_test_loader_splits_over_processes(world, monkeypatch):
    from detectron2.data.samplers import distributed_sampler

    ids = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed_sampler.comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(distributed_sampler.comm, "get_rank", lambda rank=rank: rank)
        loader = build_test_loader("shapes_wild_val", DetectionMapper(False, []), num_workers=0)
        ids.append([s["image_id"] for b in loader for s in b])
    assert ids[0] and ids[1] and sorted(ids[0] + ids[1]) == list(range(1, 16))


@st.composite
def labelled(draw):
    num_labels = draw(st.integers(1, 40))
    images = draw(st.lists(st.lists(st.integers(0, num_labels - 1), max_size=6), min_size=1, max_size=60))
    return num_labels, images


@settings(max_examples=150, deadline=None)
@given(labelled(), st.floats(1e-4, 1.0), st.sampled_from([1, 3, 1 << 20]))
def test_repeat_factors_are_detectron2s(data, threshold, chunk):
    num_labels, images = data
    offsets = np.cumsum([0] + [len(x) for x in images]).astype(np.int64)
    labels = np.array([label for x in images for label in x], np.int32)
    dicts = [{"annotations": [{"category_id": label} for label in x]} for x in images]
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, threshold)
    from polydet.data import samplers

    old, samplers._CHUNK = samplers._CHUNK, chunk
    try:
        ours = repeat_factors(offsets, labels, num_labels, threshold)
        counts = image_counts(offsets, labels, num_labels)
    finally:
        samplers._CHUNK = old
    assert ours.dtype == np.float32 and np.array_equal(ours, theirs.numpy())
    assert counts.tolist() == [sum(label in x for x in images) for label in range(num_labels)]


class Columns:
    """The label columns of a union, from a list of labels per image."""

    def __init__(self, images, num_labels, owner=None):
        self.offsets = np.cumsum([0] + [len(x) for x in images]).astype(np.int64)
        self.labels = np.array([label for x in images for label in x], np.int32)
        self.num_labels = num_labels
        self.owner = np.zeros(len(images), np.int64) if owner is None else np.asarray(owner)

    def __len__(self):
        return len(self.offsets) - 1


def test_repeats_are_rounded_at_random():
    data = Columns([[0]] * 99 + [[1]], 2)
    sampler = RepeatFactorSampler(0.05)
    sampler.bind(data)
    expected = np.sqrt(0.05 / 0.01)
    assert sampler.images_per_epoch == pytest.approx(99 + expected, rel=1e-6)
    repeats = [(sampler.epoch(0, e) == 99).sum() for e in range(300)]
    assert set(repeats) == {2, 3} and abs(np.mean(repeats) - expected) < 0.1
    assert np.array_equal(sampler.epoch(5, 2), sampler.epoch(5, 2))
    assert not np.array_equal(sampler.epoch(5, 2)[:50], sampler.epoch(5, 3)[:50])


def test_stream_positions():
    sampler = RepeatFactorSampler(0.3)
    sampler.bind(Columns([[0]] * 10 + [[1]], 2))
    stream = IndexStream(sampler, 1)
    whole = [pair for pair, _ in zip(stream.from_position(0), range(100))]
    assert [p for p, _ in whole] == list(range(100))
    for start in (0, 1, 10, 11, 12, 13, 57, 80):
        assert next(stream.from_position(start)) == whole[start]


def test_class_aware_draws_labels_equally_often():
    images = [[0]] * 90 + [[1]] * 9 + [[2], []]
    sampler = ClassAwareSampler(epoch_size=30_000)
    sampler.bind(Columns(images, 3))
    drawn = sampler.epoch(0, 0)
    shares = [np.mean([label in images[i] for i in drawn[:6000]]) for label in range(3)]
    assert np.allclose(shares, 1 / 3, atol=0.03) and 100 not in drawn
    weights = class_aware_weights(Columns([[0, 0, 1], [1], [2]], 3).offsets, np.array([0, 0, 1, 1, 2]), 3)
    np.testing.assert_allclose(weights, [1 + 0.5, 0.5, 1])
    with pytest.raises(ValueError, match="no image has a label"):
        ClassAwareSampler().bind(Columns([[], []], 3))


def test_fixed_ratios():
    images = [[0]] * 500 + [[1]] * 40 + [[2]] * 10
    owner = [0] * 500 + [1] * 50
    sampler = FixedRatioSampler([1, 3], class_aware=[1], epoch_size=20_000)
    sampler.bind(Columns(images, 3, owner))
    drawn = sampler.epoch(3, 1)
    shares = [np.mean(drawn < 500), np.mean((drawn >= 500) & (drawn < 540)), np.mean(drawn >= 540)]
    np.testing.assert_allclose(shares, [0.25, 0.375, 0.375], atol=0.015)
    assert sampler.images_per_epoch == 20_000 and np.array_equal(drawn, sampler.epoch(3, 1))
    sampler = FixedRatioSampler()
    sampler.bind(Columns(images, 3, owner))
    assert len(sampler.epoch(0, 0)) == 550 and abs(np.mean(sampler.epoch(0, 0) < 500) - 0.5) < 0.1
    for bad in ([1], [1, -1], [0, 0]):
        with pytest.raises(ValueError, match="ratios"):
            FixedRatioSampler(bad).bind(Columns(images, 3, owner))
    with pytest.raises(ValueError, match="class_aware"):
        FixedRatioSampler(class_aware=[2]).bind(Columns(images, 3, owner))


@settings(max_examples=80, deadline=None)
@given(labelled(), st.sampled_from([1, 4, 1 << 20]))
def test_class_aware_weights(data, chunk):
    from polydet.data import samplers

    num_labels, images = data
    columns = Columns(images, num_labels)
    counts = [sum(label in x for x in images) for label in range(num_labels)]
    old, samplers._CHUNK = samplers._CHUNK, chunk
    try:
        ours = class_aware_weights(columns.offsets, columns.labels, num_labels)
    finally:
        samplers._CHUNK = old
    np.testing.assert_allclose(ours, [sum(1 / counts[label] for label in set(x)) for x in images])


def test_realised_ratios_are_told(world):
    loader = make(sampler=FixedRatioSampler([3, 1]))
    take(loader, 60)
    assert sum(loader.images_drawn.values()) == 240
    assert abs(loader.images_drawn[NAMES[0]] / 240 - 0.75) < 0.1
    text = loader.describe_drawn()
    assert "shapes_coco_train 7" in text and "of 40 labels seen" in text and "in fewest" in text
