"""What a config says about length, batch and learning rate, in the ledger's words (see `ledger_names`)."""

from typing import Any

from ledger_names import IMAGES
from ledger_row import READERS, Row, at, hook, load, named, reads, train_datasets

from metr.transfer import LR_STRATEGIES

READERS.update(
    batch_size=at("dataloader.train.total_batch_size"),
    batch_size_image_text=at("dataloader.train.sources.pairs.total_batch_size"),
    lr=at("optimizer.lr"),
    weight_decay=at("optimizer.weight_decay"),
    warmup_iters=at("lr_multiplier.warmup_iters"),
    max_epochs=at("train.max_epochs"),
    optimizer=lambda row: named(row.cfg.optimizer),
    exit_tolerance_epochs=lambda row: hook("stop_patience")(row) * row.cfg.train.eval_period_epochs,
    lr_decay_tolerance_epochs=lambda row: hook("patience")(row) * row.cfg.train.eval_period_epochs,
    min_lr=hook("min_lr"),
)


@reads("gpus")
def gpus(row: Row) -> Any:
    """The machine is not the config's; but the batch must split over it."""
    batch, stated = row.cfg.dataloader.train.total_batch_size, row.stated["gpus"]
    return stated if batch % stated == 0 else f"a batch of {batch} does not split"


@reads("iterations")
def iterations(row: Row) -> int:
    assert row.cfg.train.max_epochs == 0, "the run is counted in epochs"
    return row.cfg.train.max_iter


@reads("epochs")
def epochs(row: Row) -> Any:
    return _epochs(row.cfg, row.stated["epochs"])


def _epochs(cfg: Any, stated: float) -> float:
    """Passes over the data; `stated` where schedules in iterations are within 2 % of it."""
    if cfg.train.max_epochs:
        return cfg.train.max_epochs
    images = sum(IMAGES[name] for name in train_datasets(cfg))
    passes = cfg.train.max_iter * cfg.dataloader.train.total_batch_size / images
    return stated if abs(passes / stated - 1) < 0.02 else round(passes, 2)


@reads("pretrain_epochs", "box_pretrain_epochs")
def pretrain_epochs(row: Row) -> Any:
    key = next(key for key in ("pretrain_epochs", "box_pretrain_epochs") if key in row.stated)
    return _epochs(load(row.started_from), row.stated[key])


@reads("schedule")
def schedule(row: Row) -> str:
    kind = row.cfg.lr_multiplier.kind
    if row.paper == "aligndet":  # optimiser steps at batch 16
        steps = row.cfg.train.max_iter * row.cfg.dataloader.train.total_batch_size / 16
        return "12k" if steps == 12_000 else f"{steps / 90_000:g}x"
    if row.cfg.train.get("hooks"):
        assert named(row.cfg.train.hooks[0]) == "PlateauSchedule" and kind == "constant"
        return f"auto-step decay x{hook('factor')(row):g}"
    return kind


@reads("lr_drop_epoch")
def lr_drop_epoch(row: Row) -> Any:
    milestones = list(row.cfg.lr_multiplier.milestones)
    assert row.cfg.lr_multiplier.unit == "epoch" and row.cfg.lr_multiplier.gamma == 0.1
    return milestones[0] if len(milestones) == 1 else milestones


READERS.update(
    lr_backbone=lambda row: row.rate_of("backbone.bottom_up."),
    lr_encoder=lambda row: row.rate_of("encoder."),
    lr_decoder=lambda row: row.rate_of("decoder."),
    lr_query_and_heads=lambda row: row.rate_of("backbone.bottom_up.", "encoder.", "decoder.", others=True),
    lr_text=lambda row: row.rate_of("text_tower."),
)


@reads("lr_strategy")
def lr_strategy(row: Row) -> str:
    factors = dict(row.cfg.optimizer.params.lr_factors)
    return next((name.title() for name, known in LR_STRATEGIES.items() if known == factors), f"unknown: {factors}")
