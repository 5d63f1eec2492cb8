"""What DETRs share in fine-tuning: fewer, narrower layers where it has to be fast, a slower backbone."""

from .run import AUTO, dataloader, lr_multiplier, optimizer, recipe_of, start_from_imagenet, train

dataloader.train.merge = "name"
optimizer.params.lr_factors = {r"^backbone\.bottom_up\.": 0.1}


def fit(model, **keys):
    """Leave the sizes of a DETR to the recipe; -> the node ``recipe``.  ``keys``: further quantities of the model."""
    published = dict(ffn_dim=model.encoder.layer.ffn_dim, queries=model.queries.num_queries)
    model.dim = AUTO
    for part in (model.encoder, model.decoder):
        part.num_layers = AUTO
        part.layer.ffn_dim = AUTO
        part.layer.dropout = 0.0
    model.decoder.num_layers = "${model.encoder.num_layers}"
    model.decoder.layer.ffn_dim = "${model.encoder.layer.ffn_dim}"
    model.queries.num_queries = AUTO
    if model.get("denoising"):
        model.denoising.num_queries = AUTO
        keys["noised_queries"] = "model.denoising.num_queries"
    return recipe_of(
        lr=(5e-4, 1e-4),
        keys=dict(
            **start_from_imagenet(model.backbone.bottom_up, model),
            dim="model.dim",
            layers="model.encoder.num_layers",
            ffn_dim="model.encoder.layer.ffn_dim",
            queries="model.queries.num_queries",
            **keys,
        ),
        **published,
    )
