"""ScaleDet's detector with hard labels alone, which is Detic's, against Detic on CenterNet2."""

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.utils.events import EventStorage
from golden_body import Body
from golden_check import check_detections, check_gradients, check_losses, detect, load_drawn, train_step
from golden_file import load_golden
from golden_models import CONFIGS
from golden_rules import draw

from polydet.backbones import fpn_p3_p7
from polydet.engine import load_config
from polydet.text import LabelSpace, Vocabulary
from scaledet.checkpoint import from_detic

CHANNELS = 64
LOSSES = {"centernet_loc": "centernet_box", "centernet_agn_": "centernet_", "loss_cls": "loss_hard"}


def key_map(state):
    """The layout of Detic's files."""
    return from_detic(state, torch.nn.Identity()).state


def our_loss(name):
    for theirs, ours in LOSSES.items():
        name = name.replace(theirs, ours)
    return name


@pytest.fixture(scope="module")
def golden():
    return load_golden("detic")


@pytest.fixture(scope="module")
def build(golden):
    def build(**label_loss):
        cfg = load_config(CONFIGS / "scaledet" / "table8_scaledet_r50_l_c_hl_only.py").model
        cfg._set_flag("allow_objects", True)
        cfg.backbone = fpn_p3_p7(Body(), CHANNELS)
        text = torch.nn.functional.normalize(torch.from_numpy(draw("text", golden.header["text"])))
        names = tuple(f"thing {i}" for i in range(len(text)))
        cfg.update(label_space=LabelSpace({"lvis": names}), text_encoder=None)
        cfg.vocabulary = LazyCall(Vocabulary)(names=names, templates=("{}",), encoder_id="drawn", embeddings=text)
        cfg.image_counts = golden.header["image_counts"]
        cfg.proposal_generator.head.in_channels = cfg.roi_heads.in_channels = CHANNELS
        cfg.proposal_generator.post_nms_topk = (500, 100)
        cfg.roi_heads.update(text_dim=text.shape[1], fc_dims=(48, 48), batch_size_per_image=4096)
        cfg.roi_heads.test_topk_per_image = 100
        cfg.roi_heads.label_loss.update(**label_loss)
        model = instantiate(cfg)
        load_drawn(model, golden, key_map, may_lack=["_extra_state"])
        return model

    return build


@pytest.fixture(scope="module")
def model(build):
    return build()


def check_step(golden, model, step):
    with EventStorage():
        losses = train_step(model, golden.inputs(step))
    check_losses(golden, step, losses, our_loss)
    check_gradients(golden, step, model, key_map)


@pytest.mark.parametrize("step", ["train", "empty", "nothing"])
def test_a_training_step_is_detics(golden, model, step):
    check_step(golden, model, step)


def test_the_federated_loss_is_detics(golden, build):
    counts = golden.header["image_counts"]
    check_step(golden, build(federated="sampled", federated_count=sum(c > 0 for c in counts)), "federated")


def test_detections_are_detics(golden, model):
    check_detections(golden, "test", detect(model, golden.inputs("test")))
