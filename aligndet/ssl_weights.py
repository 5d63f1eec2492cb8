"""Self-supervised backbone checkpoints as their authors publish them -> files that timm models load.

    python -m aligndet.ssl_weights moco_v2 moco_v2_800ep_pretrain.pth.tar weights/resnet50_mocov2.safetensors

Each map is a pure function of the state dict; `TimmBackbone(weights=FILE)` reads the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from polydet.engine import read_checkpoint
from polydet.files import whole_file

StateDict = Mapping[str, Tensor]


def _below(state: StateDict, prefix: str, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Keys below a prefix, without it; fails where there are none."""
    found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    found = {k: v for k, v in found.items() if not k.startswith(without or ("\0",))}
    if not found:
        raise KeyError(f"no key of the checkpoint starts with {prefix!r}; the first ones are {list(state)[:3]}")
    return found


def moco_v2(state: StateDict) -> dict[str, Tensor]:
    """MoCo v2: the query encoder, without its projection (``fc``)."""
    return _below(state, "module.encoder_q.", ("fc.",))


def pixpro(state: StateDict) -> dict[str, Tensor]:
    """PixPro: the encoder that is trained by gradient (``encoder_k`` is its average)."""
    return _below(state, "module.encoder.", ("fc.",))


def swav(state: StateDict) -> dict[str, Tensor]:
    """SwAV: everything but projection head and prototypes; with or without DistributedDataParallel's prefix."""
    plain = {k.removeprefix("module."): v for k, v in state.items()}
    return _below(plain, "", ("projection_head.", "prototypes.", "fc."))


def simmim(state: StateDict) -> dict[str, Tensor]:
    """SimMIM's Swin: the encoder without mask token and decoder, in Microsoft's naming.

    timm renames it and interpolates the position tables from SimMIM's window 6 to the detector's window 7.
    """
    encoder = _below(state, "encoder.", ("mask_token",))
    return {k: v for k, v in encoder.items() if not k.endswith(("relative_position_index", "attn_mask"))}


KINDS: dict[str, Callable[[StateDict], dict[str, Tensor]]] = {
    "moco_v2": moco_v2,
    "pixpro": pixpro,
    "simmim": simmim,
    "swav": swav,
}


def convert(kind: str, checkpoint: Path, output: Path) -> dict[str, Tensor]:
    """Read an author's checkpoint, map it and write a .safetensors file; returns what was written.

    Raises:
        KeyError: the file is not of this kind.
        polydet.engine.CheckpointError: it cannot be read.
    """
    data = read_checkpoint(checkpoint)["model"]
    weights = {k: v.contiguous() for k, v in KINDS[kind](data).items()}
    with whole_file(output) as temporary:
        save_file(weights, temporary)
    return weights


def main() -> None:
    """Command line of :func:`convert`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path, help="a .safetensors file")
    args = parser.parse_args()
    weights = convert(args.kind, args.checkpoint, args.output)
    print(f"{args.output}: {len(weights)} tensors")


if __name__ == "__main__":
    main()
