"""What every run has: where it writes, how long it trains, how it starts.  See docs/training.md for each key."""

train = dict(
    output_dir="./output",
    seed=0,
    device="auto",  # cuda where there is one, else cpu
    max_iter=90000,  # optimiser steps; ignored when max_epochs > 0
    max_epochs=0.0,  # passes over the union of the training datasets
    reference_batch_size=0,  # batch that optimizer.lr is meant for: a run with another one prints the linear rule
    init_checkpoint="",  # weights to start from; "stage:NAME" takes an earlier stage's
    init=dict(
        min_coverage=0.5,  # least share of each top-level module that must come from init_checkpoint
        fresh=[],  # prefixes of the model's keys that may start afresh
        key_map="",  # "module:function" on the state dict
        class_names=[],  # names of the checkpoint's classes, to carry class rows over by name
        skip=[],  # prefixes of the checkpoint's keys that are left out
    ),
    amp=dict(dtype="float32"),  # float32, bfloat16 or float16
    grad_accumulation=1,
    clip_grad=dict(kind="none", value=0.0),  # none, norm or value
    ema=dict(enabled=False, decay=0.9999, warmup=False),
    ddp=dict(find_unused_parameters=False),
    checkpoint_period=5000,
    max_checkpoints=3,
    best_metric="",  # e.g. coco_2017_val/bbox/AP: keeps model_best.pth
    eval_period=0,  # steps between evaluations; 0: at the end only
    eval_period_epochs=0.0,  # the same in epochs, in place of eval_period
    log_period=20,
    pictures=8,  # images a dataset in predictions.png; 0 for none
    sentinels=dict(ground_truth=50, zero_loss=100, frozen_period=1000),
)
