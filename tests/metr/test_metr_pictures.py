"""The picture of language-aware detection draws what its words find, and leaves the model as it was."""

import torch
from metr_parts import make_batch, tiny_metr

from metr.pictures import draw, language_panel, save


def test_a_panel_leaves_the_model_as_it_was(tmp_path):
    torch.manual_seed(0)
    model = tiny_metr().train()
    figure = language_panel(model, make_batch()[:2], [["cup"], ["cup", "zebra"]], threshold=0.0)
    assert len(figure.axes) == 4
    assert [axis.get_title() for axis in figure.axes[:2]] == ["[cup]", "[cup, zebra]"]
    assert model.training
    assert model.vocabulary is model.train_vocabulary
    save(figure, tmp_path / "new" / "panel.png")
    assert (tmp_path / "new" / "panel.png").stat().st_size > 1000


def test_boxes_are_drawn_in_the_colour_of_their_word():
    model = tiny_metr().eval()
    x = make_batch()[0]
    model.set_vocabulary(["cup"])
    with torch.no_grad():
        found = model([x])[0]["instances"][:1]
    x["image"][:] = 0
    blank = draw(x, found[:0], ["cup"], {})
    drawn = draw(x, found, ["cup"], {"cup": (1.0, 0.0, 0.0)})
    assert blank.max() == 0
    red = drawn[..., 0].astype(int) - drawn[..., 2]
    assert red.max() > 100
