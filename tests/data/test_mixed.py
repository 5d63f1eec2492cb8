"""Several loaders in turn: one source a step, epochs over all of them, exact resume."""

from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from polydet.data import DetectionMapper, SubsetSampler, build_mixed_loader
from polydet.data import loader as loader_module
from polydet.data.augmentations import large_scale_jitter
from polydet.data.mixed import SourceOrder
from polydet.data.shapeworld import generate


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("DETECTRON2_DATASETS", str(tmp_path_factory.mktemp("world")))
    patch.setattr(generate, "PARTS", {p: (w, dict.fromkeys(c, 12)) for p, (w, c) in generate.PARTS.items()})
    for part in ("coco", "phrases", "captions"):
        generate.ensure_part(part)
    yield
    patch.undo()


def sources(**changes):
    mapper = DetectionMapper(True, large_scale_jitter(48))
    made = {
        "boxes": {"datasets": ["shapes_coco_train"], "mapper": mapper, "total_batch_size": 4},
        "phrases": {"datasets": ["shapes_phrases_train"], "mapper": mapper, "total_batch_size": 2},
        "captions": {
            "datasets": ["shapes_captions_train"],
            "mapper": mapper,
            "total_batch_size": 6,
            "filter_empty": False,
        },
    }
    for name, change in changes.items():
        made[name].update(change)
    return {name: {"num_workers": 0, **source} for name, source in made.items()}


def take(loader, count):
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


def name_of(batch):
    (name,) = {item["dataset_name"] for item in batch}
    return name


def test_each_step_holds_one_source_and_an_epoch_all_of_them():
    loader = build_mixed_loader(sources(), total_batch_size=4, seed=1)
    batches = take(loader, 22)
    sizes = {"shapes_coco_train": 4, "shapes_phrases_train": 2, "shapes_captions_train": 6}
    assert all(len(batch) == sizes[name_of(batch)] for batch in batches)
    for epoch in (batches[:11], batches[11:]):
        assert Counter(map(name_of, epoch)) == {
            "shapes_coco_train": 3,
            "shapes_phrases_train": 6,
            "shapes_captions_train": 2,
        }
        for name in sizes:
            seen = [item["file_name"] for batch in epoch if name_of(batch) == name for item in batch]
            assert len(set(seen)) == len(seen) == 12
    assert [name_of(b) for b in batches[:11]] != [name_of(b) for b in batches[11:]]
    assert loader.images_per_epoch == 44  # eleven steps of the run's batch size


@pytest.mark.parametrize("start", [1, 5, 11, 17])
def test_resume_is_exact(start):
    whole = take(build_mixed_loader(sources(), 4, seed=2), start + 4)[start:]
    rest = take(build_mixed_loader(sources(), 4, seed=2, start_iter=start), 4)
    for a, b in zip(whole, rest):
        assert [x["file_name"] for x in a] == [x["file_name"] for x in b]
        assert all(torch.equal(x["image"], y["image"]) for x, y in zip(a, b))


def test_processes_draw_from_the_same_source(monkeypatch):
    whole = take(build_mixed_loader(sources(), 4, seed=3), 6)
    for rank in (0, 1):
        monkeypatch.setattr(loader_module.comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(loader_module.comm, "get_rank", lambda rank=rank: rank)
        for batch, share in zip(whole, take(build_mixed_loader(sources(), 4, seed=3), 6)):
            assert [x["file_name"] for x in share] == [x["file_name"] for x in batch][rank::2]


def test_repeats_and_fixed_numbers_of_batches():
    loader = build_mixed_loader(
        sources(boxes={"repeat": 3}, phrases={"batches_per_epoch": 0}, captions={"batches_per_epoch": 5}), 4
    )
    assert dict(zip(loader.order.names, loader.order.counts.tolist())) == {"boxes": 9, "captions": 5}


def test_sources_see_different_random_numbers():
    mapper = DetectionMapper(True, large_scale_jitter(48))
    same = {"datasets": ["shapes_coco_train"], "mapper": mapper, "total_batch_size": 4, "num_workers": 0}
    loader = build_mixed_loader({"a": same, "b": same}, 4)
    first, second = (next(iter(loader.loaders[name])) for name in "ab")
    assert [x["file_name"] for x in first] != [x["file_name"] for x in second]


def test_sources_of_a_config_are_built():
    source = {**sources()["boxes"], "mapper": L(DetectionMapper)(is_train=True, augmentations=[])}
    config = OmegaConf.create({"boxes": source}, flags={"allow_objects": True})
    assert len(take(build_mixed_loader(config, 4), 1)[0]) == 4


def test_wrong_sources_are_named():
    with pytest.raises(ValueError, match="at least one source"):
        build_mixed_loader({}, 4)
    with pytest.raises(ValueError, match=r"lacks \['shapes_captions_train', 'shapes_phrases_train'\]"):
        build_mixed_loader(sources(), 4, datasets=["shapes_coco_train"])
    with pytest.raises(TypeError, match="batchsize"):
        build_mixed_loader(sources(boxes={"batchsize": 4}), 4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 40), st.integers(0, 2**32))
def test_order_can_be_entered_anywhere(counts, step, seed):
    order = SourceOrder({f"s{i}": c for i, c in enumerate(counts)}, seed)
    stream = order.since(0)
    past = Counter(next(stream) for _ in range(step))
    assert {name: past[name] for name in order.names} == order.drawn(step)
    later = order.since(step)
    assert [next(stream) for _ in range(10)] == [next(later) for _ in range(10)]
    assert np.array_equal(np.bincount(order.epoch(0), minlength=len(counts)), counts)


def test_a_subset_is_the_same_in_every_epoch_and_run():
    sampler, again = SubsetSampler(30), SubsetSampler(30)
    sampler.bind(range(100))
    again.bind(range(100))
    assert sampler.images_per_epoch == 30
    epochs = [sampler.epoch(seed, epoch) for seed, epoch in ((0, 0), (0, 1), (5, 0))]
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1 and len({tuple(epoch) for epoch in epochs}) == 3
    assert np.array_equal(again.epoch(0, 0), epochs[0])
    other = SubsetSampler(30, subset_seed=1)
    other.bind(range(100))
    assert set(other.epoch(0, 0)) != set(epochs[0])
    everything = SubsetSampler(1000)
    everything.bind(range(100))
    assert sorted(everything.epoch(0, 0)) == list(range(100))
