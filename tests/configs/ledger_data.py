"""What a config says about data and images, in the ledger's words (see `ledger_names`)."""

from typing import Any

from ledger_names import DATASETS, ODINW, UNIONS
from ledger_row import READERS, Row, argument, at, load, merge_of, named, reads, train_datasets

from polydet.data import label_space_of

# ---- data

READERS.update(
    concepts=at("dataloader.train.sources.detection.mapper.num_concepts"),
    concepts_det=at("dataloader.train.sources.detection.mapper.num_concepts"),
    concepts_grounding=at("dataloader.train.sources.grounding.mapper.num_concepts"),
    data_fraction=lambda row: row.cfg.data.percent / 100,
    sampling=lambda row: {"RepeatFactorSampler": "repeat factor sampling"}.get(named(row.cfg.dataloader.train.sampler)),
)


@reads("train_datasets")
def read_train_datasets(row: Row) -> Any:
    stated = row.stated["train_datasets"]
    if stated[0].startswith("odinw13"):
        return [stated[0], *_odinw(row, stated[1:], "train")]
    unlabelled = named(row.cfg.dataloader.train) == "build_pretrain_loader"
    return _in_ledger_words(train_datasets(row.cfg), stated, " (no labels)" if unlabelled else "")


@reads("eval_datasets")
def eval_datasets(row: Row) -> Any:
    stated = row.stated["eval_datasets"]
    if "PascalVOC" in stated:
        return _odinw(row, stated, "val")
    found = _in_ledger_words(list(row.cfg.dataloader.test_datasets), stated)
    return stated if set(stated) <= set(found) else found  # a config may evaluate on more


def _odinw(row: Row, names: list[str], split: str) -> list[str]:
    """The stated sets that a run can be asked for: by `odinw.set`, or all at once as `dataloader.groups.odinw13`."""
    cfg = row.cfg.copy()
    cards = {name: f"odinw_{ODINW.get(name, name)}_{split}" for name in names}
    if "odinw" not in cfg:
        return [name for name, card in cards.items() if card in cfg.dataloader.test_datasets]
    found = []
    for name, card in cards.items():
        cfg.odinw.set = ODINW.get(name, name)
        if card in (train_datasets(cfg) if split == "train" else cfg.dataloader.test_datasets):
            found.append(name)
    return found


def _in_ledger_words(cards: list[str], stated: list[str], suffix: str = "") -> list[str]:
    """`cards` under the names that `stated` uses for them; cards without such a name stay as they are."""
    found, left = [], list(cards)
    for union, card in UNIONS.items():
        if set(union) <= set(stated) and card in left:
            found += union
            left.remove(card)
    for name in stated:
        plain = name.removesuffix(suffix) if suffix else name
        for group in DATASETS.get(plain, [[plain]]):
            if set(group) <= set(left):
                found.append(name)
                left = [card for card in left if card not in group]
                break
    return found + left


@reads("eval_mode")
def eval_mode(row: Row) -> str:
    """Zero-shot: no dataset of the test is trained on. Direct transfer: tested elsewhere without fine-tuning."""
    trained = {name.split("_")[0] for name in train_datasets(row.cfg)}
    tested = {name.split("_")[0] for name in [*row.cfg.dataloader.test_datasets, *_all_odinw(row)]}
    if row.cfg.train.init_checkpoint or tested <= trained:
        return "trained on what it is tested on"
    return "zero-shot" if not tested & trained else "direct transfer"


def _all_odinw(row: Row) -> list[str]:
    sets = row.cfg.dataloader.get("groups", {}).get("odinw13")
    return list(sets.val) if sets else []


@reads("num_classes")
def num_classes(row: Row) -> int:
    return len(label_space_of(train_datasets(row.cfg), merge=merge_of(row.cfg)))


@reads("data_folds")
def data_folds(row: Row) -> int:
    """Below 100 % `data.fold` chooses the draw; there are as many as one asks for, and the protocol has five."""
    train = row.cfg.dataloader.train
    assert named(train) == "build_low_data_loader" and train.percent == row.cfg.data.percent
    assert load(row.run["config"], {**row.overrides, "data.fold": 5}).dataloader.train.fold == 5
    return 1 if train.percent == 100 else 5


@reads("proposals")
def proposals(row: Row) -> str:
    """The folder that tools/selective_search.py writes, beside the images or in them (as a dataset of its own)."""
    train = row.cfg.dataloader.train
    assert named(train) == "build_pretrain_loader"
    if train.proposals is None:
        return "selective search" if list(train.datasets) == ["imagenet_subset_proposals"] else "none"
    name = train.proposals.rsplit("/", 1)[-1]
    return "selective search" if name in ("coco_2017_train", "coco_2017_train_256") else name


@reads("in1k_repeat")
def in1k_repeat(row: Row) -> int:
    return _in1k(row).repeat


@reads("in1k_loss")
def in1k_loss(row: Row) -> str:
    return {"classification": "cross entropy"}[_in1k(row).mapper.task]


def _in1k(row: Row) -> Any:
    return next(s for s in row.cfg.dataloader.train.sources.values() if "imagenet1k_pairs_train" in s.datasets)


# ---- images


@reads("image_size")
def image_size(row: Row) -> Any:
    if row.paper == "aligndet":
        mapper = row.cfg.dataloader.train.mapper
        sizes = mapper.get("random_resize") or mapper.short_edge_lengths
        return f"{min(sizes)}-{max(sizes)}"
    call = row.augmentation
    if row.paper == "scaledet":
        return call.size
    if row.paper == "codetr":
        low, high = call.short
        assert call.style == "range"
        return f"random {low}x{call.max_size} to {high}x{call.max_size}"
    if row.paper == "detclipv2":
        return f"{argument(call, 'max_size')}x{max(argument(call, 'short'))}"
    return _metr_size(row)


def _metr_size(row: Row) -> str:
    """The size of the test; Query2Label is trained at it too."""
    size = _test_size(row)
    if named(row.augmentation) == "fixed_resize":
        assert size == f"{row.augmentation.height}x{row.augmentation.width}"
    else:
        assert argument(row.augmentation, "max_size") == 1333 and max(argument(row.augmentation, "short")) == 800
    return size


@reads("test_image_size")
def _test_size(row: Row) -> str:
    call = row.cfg.dataloader.test.mapper.augmentations
    if named(call) == "fixed_resize":
        return f"{call.height}x{call.width}"
    return f"{call.short}x{argument(call, 'max_size')}"


@reads("image_size_image_text")
def image_size_image_text(row: Row) -> str:
    call = row.cfg.dataloader.train.sources.pairs.mapper.mapper.augmentations
    return f"{call.height}x{call.width}"


@reads("augmentation")
def augmentation(row: Row) -> str:
    if named(row.cfg.dataloader.train.mapper) == "CopyPasteMapper":
        return "large-scale jitter with copy-paste"
    call = row.augmentation
    if named(call) == "large_scale_jitter" or named(call) == "resize_shortest_edge" and call.get("style") == "range":
        return "strong, trained to convergence"  # more than the detectors' default, which is one size
    if named(call) == "resize_shortest_edge" and list(call.short) == [640, 672, 704, 736, 768, 800]:
        return "standard Detectron2"
    return named(call)


@reads("multi_scale", "multi_scale_training")
def multi_scale(row: Row) -> bool:
    if named(row.cfg.dataloader.train.mapper) == "CopyPasteMapper":
        return True  # by its jitter
    short = argument(row.augmentation, "short")
    return not isinstance(short, int) and len(short) > 1
