"""Text towers inside a model: texts in, unit rows with gradient out.

``TextTower`` is what an open-vocabulary model trains with; ``polydet.text.TextEncoder`` is a frozen encoder outside it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polydet.text.encoders import TextEncoder, load_open_clip

logger = logging.getLogger(__name__)

_CACHED_TEXTS = 1 << 20


class TextTower(nn.Module):
    """A text encoder that is part of a model.

    Attributes:
        id: architecture and initial weights.
        dim: width D of the embeddings.
    """

    id: str
    dim: int

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Embeddings ``[len(texts), D]``: float32, unit rows, on the tower's device."""
        raise TypeError(f"{type(self).__name__} does not say how to encode")

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 1024) -> Tensor:
        """See ``TextEncoder.encode``: without gradient, on the CPU; the weights are those of this moment."""
        was_training = self.training
        self.eval()
        rows = [self(texts[i : i + batch_size]).float().cpu() for i in range(0, len(texts), batch_size)]
        self.train(was_training)
        return torch.cat(rows) if rows else torch.zeros(0, self.dim)


class FrozenTextTower(TextTower):
    """A frozen encoder as a tower: no parameters, nothing in checkpoints, each text encoded once.

    Args:
        encoder: any ``TextEncoder``.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.__dict__["encoder"] = encoder  # past nn.Module's registration, should it be a module
        self.id, self.dim = encoder.id, encoder.dim
        self.place: Tensor
        self.register_buffer("place", torch.zeros(0), persistent=False)  # follows .to(device)
        self._rows: dict[str, Tensor] = {}

    def forward(self, texts: Sequence[str]) -> Tensor:
        """See ``TextTower.forward``; no gradient."""
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if new:
            if len(self._rows) + len(new) > _CACHED_TEXTS:
                self._rows.clear()
                new = list(dict.fromkeys(texts))
            self._rows.update(zip(new, self.__dict__["encoder"].encode(new).unbind()))
        if not len(texts):
            return torch.zeros(0, self.dim, device=self.place.device)
        return torch.stack([self._rows[text] for text in texts]).to(self.place.device)


class OpenClipTextTower(TextTower):
    """Text transformer of an open_clip model, trainable, for short texts.

    Texts are cut to ``context_length`` tokens, start and end token included, and only the first positions and the
    corresponding causal mask exist; cut texts are counted in ``truncated``, and the first one is named in the log.

    Args:
        model_name: architecture known to ``open_clip.list_models()``.
        pretrained: weights tag of open_clip or the path of a checkpoint; None for random weights.
        context_length: tokens of a text.
        pooling: ``eot`` takes the end token (CLIP), ``mean`` averages the tokens of the text (DetCLIP).
        checkpointing: recompute activations in the backward pass.
        text_cfg: further fields of open_clip's ``CLIPTextCfg`` (a smaller transformer).

    Raises:
        ValueError: unknown architecture or pooling.
        RuntimeError: weights that cannot be found; the message says how to get them.
    """

    def __init__(
        self,
        model_name: str = "ViT-L-14-quickgelu",
        pretrained: str | None = "openai",
        context_length: int = 16,
        pooling: Literal["eot", "mean"] = "eot",
        checkpointing: bool = False,
        text_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        import open_clip
        from open_clip.model import _build_text_tower

        config = open_clip.get_model_config(model_name)
        if config is None:
            raise ValueError(f"open_clip knows no model {model_name!r}; see open_clip.list_models()")
        if pooling not in ("eot", "mean"):
            raise ValueError(f"pooling must be eot or mean, not {pooling!r}")
        settings = {**config["text_cfg"], **(text_cfg or {}), "context_length": context_length, "output_tokens": True}
        self.tower: Any = _build_text_tower(config["embed_dim"], settings, config.get("quick_gelu", False))
        self.tokenizer = open_clip.get_tokenizer(model_name, context_length=context_length)
        self.context_length, self.pooling = context_length, pooling
        self.id = f"trained:{model_name}:{context_length}:{pooling}"
        self.dim = int(config["embed_dim"])
        self.truncated = 0
        self._tokens: dict[str, Tensor] = {}
        if checkpointing:
            self.tower.set_grad_checkpointing(True)
        if pretrained is not None and torch.get_default_device().type != "meta":
            self._load(model_name, pretrained)

    def _load(self, model_name: str, pretrained: str) -> None:
        own = self.tower.state_dict()
        given = load_open_clip(model_name, pretrained).state_dict()
        prefix = "" if "positional_embedding" in given else "text."  # models with a custom text tower
        given = {key: given[prefix + key] for key in own if prefix + key in given}
        given["positional_embedding"] = given["positional_embedding"][: self.context_length]
        self.tower.load_state_dict(given)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids ``[n, context_length]``, on the CPU."""
        if len(self._tokens) > _CACHED_TEXTS:
            self._tokens.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._tokens]
        if new:
            ids = self.tokenizer(new)
            for index in (ids.argmax(dim=1) == self.context_length - 1).nonzero().flatten().tolist():
                self._count(new[index])  # the end token has the largest id: only texts that reach the end can be cut
            self._tokens.update(zip(new, ids.unbind()))
        return torch.stack([self._tokens[text] for text in texts])

    def _count(self, text: str) -> None:
        encode = getattr(self.tokenizer, "encode", None)
        length = len(encode(text)) + 2 if encode is not None else 0
        if length > self.context_length:
            self.truncated += 1
            if self.truncated == 1:
                logger.warning(
                    "texts of more than %d tokens are cut, the first one is %r (%d tokens)",
                    self.context_length,
                    text,
                    length,
                )

    def forward(self, texts: Sequence[str]) -> Tensor:
        """See ``TextTower.forward``."""
        weight = self.tower.token_embedding.weight
        if not len(texts):
            return weight.new_zeros(0, self.dim)
        ids = self.tokenize(texts).to(weight.device)
        pooled, tokens = self.tower(ids)
        if self.pooling == "mean":
            used = torch.arange(ids.shape[1], device=ids.device) <= ids.argmax(dim=1, keepdim=True)  # up to the end
            mean = (tokens * used[..., None]).sum(dim=1) / used.sum(dim=1, keepdim=True)
            projection = self.tower.text_projection
            pooled = projection(mean) if isinstance(projection, nn.Module) else mean @ projection
        return F.normalize(pooled.float(), dim=-1)
