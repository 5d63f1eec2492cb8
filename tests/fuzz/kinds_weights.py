"""Checkpoints and caches: what was written, or a refusal; a cache may be made again."""

import json
import pickle

import numpy as np
import torch
from safetensors.torch import save_file

from aligndet.proposal_columns import ProposalColumns
from polydet.data import DatasetError
from polydet.data.arrays import DamagedArrays, load_arrays, save_arrays
from polydet.model_file import ModelFile, write_model_file
from polydet.sealed import save_sealed
from polydet.text.cache import load_embeddings, save_embeddings
from polydet.weight_files import CheckpointError, read_checkpoint
from tests.fuzz.campaign import Wrong, kind
from tests.fuzz.mutate import change_bytes

torch.manual_seed(0)
STATE = {"head.weight": torch.randn(4, 3), "head.bias": torch.randn(4), "steps": torch.tensor(7)}


class Weights:
    """One file of weights that carries sums of its bytes."""

    errors, file, share = CheckpointError, "", 0.7

    def __init__(self, folder):
        self.write(folder / self.file)
        self.data = (folder / self.file).read_bytes()

    def seed(self):
        return {self.file: self.data}

    def case(self, rng):
        return {self.file: change_bytes(self.data, rng)}

    def read(self, folder):
        return read_checkpoint(folder / self.file)["model"]

    def check(self, files, state):
        if set(state) != set(STATE) or any(not torch.equal(state[key], STATE[key]) for key in STATE):
            raise Wrong("other values than were saved")


@kind("pth")
class Pth(Weights):
    """torch.save."""

    file = "model.pth"

    def write(self, path):
        torch.save({"model": STATE, "iteration": 3, "labels": {"names": ["cat"]}}, path)


@kind("sealed")
class Sealed(Pth):
    """What a run writes: torch.save with a digest over every byte."""

    def write(self, path):
        save_sealed({"model": STATE, "iteration": 3}, path)


@kind("pickle")
class Pickle(Weights):
    """Detectron's pickles of arrays, which carry no sum: only that nothing runs and errors are named."""

    file = "model.pkl"

    def write(self, path):
        path.write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in STATE.items()}}))

    def check(self, files, state):
        if not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise Wrong("something else than tensors")


@kind("safetensors")
class Safetensors(Weights):
    """safetensors carry no sum either: values must be those of the bytes."""

    file = "weights.safetensors"

    def write(self, path):
        save_file(STATE, path)

    def check(self, files, state):
        data = files[self.file]
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        if set(header) != set(state):
            raise Wrong("other names")
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            raw = data[8 + length + start : 8 + length + stop]
            if raw != state[name].contiguous().numpy().tobytes() or list(state[name].shape) != entry["shape"]:
                raise Wrong(f"other values of {name}")


@kind("model_file")
class ModelSafetensors(Weights):
    """The model as one file, with a digest; a file that is none any more is read as plain safetensors."""

    file = "model.safetensors"

    def write(self, path):
        header = {"config": {"model": {}}, "labels": {"names": ["cat", "dog"]}}
        write_model_file(path, ModelFile(header, STATE, torch.ones(2, 3)))

    def read(self, folder):
        return read_checkpoint(folder / self.file)["model"]

    def check(self, files, state):
        if not (b'"polydet' in files[self.file][:4000] or b"digest" in files[self.file][:4000]):
            return
        super().check(files, {key: value for key, value in state.items() if key in STATE})


@kind("columns")
class Columns:
    """Memory-mapped arrays with checksums; one of the files is changed."""

    errors, share = (DamagedArrays, FileNotFoundError), 0.7
    named = ("columns",)
    arrays = {
        "boxes": np.arange(24, dtype=np.float32).reshape(6, 4),
        "flags": np.ones(6, np.uint8),
        "none": np.zeros(0),
    }
    meta = {"classes": ["cat", "dog"], "image_root": "/data"}

    def __init__(self, folder):
        whole = folder / "whole"
        whole.mkdir()
        save_arrays(whole, self.arrays, self.meta, "meta.json")
        self.files = {f"columns/{path.name}": path.read_bytes() for path in sorted(whole.iterdir())}

    def seed(self):
        return self.files

    def case(self, rng):
        name = rng.choice(sorted(self.files))
        return {**self.files, name: change_bytes(self.files[name], rng)}

    def read(self, folder):
        return load_arrays(folder / "columns", "meta.json")

    def check(self, files, result):
        arrays, meta = result
        if {k: meta[k] for k in self.meta} != self.meta or set(arrays) != set(self.arrays):
            raise Wrong("other columns")
        for name, array in self.arrays.items():
            if not np.array_equal(arrays[name], array):
                raise Wrong(f"other values of {name}")


@kind("proposal_columns")
class StoredProposals(Columns):
    """Proposals on disk."""

    errors = (DatasetError, FileNotFoundError)

    def __init__(self, folder):
        self.columns = ProposalColumns(
            boxes=np.arange(20, dtype=np.float32).reshape(5, 4), labels=np.zeros(5, np.uint16),
            offsets=np.array([0, 2, 5]), image_ids=np.array([4, 9]), sizes=np.array([[40, 60], [30, 20]], np.int32),
            file_names=["a.jpg", "b.jpg"], info={"num_labels": 1},
        )  # fmt: skip
        self.columns.save(folder / "p.columns")
        self.files = {f"p.columns/{path.name}": path.read_bytes() for path in sorted((folder / "p.columns").iterdir())}
        self.named = ("p.columns",)

    def read(self, folder):
        return ProposalColumns.load(folder / "p.columns")

    def check(self, files, columns):
        same = all(np.array_equal(getattr(columns, k), getattr(self.columns, k)) for k in ProposalColumns.ARRAYS)
        if not same or list(columns.file_names) != self.columns.file_names or columns.info != self.columns.info:
            raise Wrong("other proposals")


@kind("text_cache")
class TextCache:
    """Embeddings of words: a damaged file counts as absent."""

    errors, share = (), 0.7
    rows = torch.randn(3, 8)

    def __init__(self, folder):
        save_embeddings(folder, "words", self.rows)
        self.data = (folder / "words.safetensors").read_bytes()

    def seed(self):
        return {"words.safetensors": self.data}

    def case(self, rng):
        return {"words.safetensors": change_bytes(self.data, rng)}

    def read(self, folder):
        return load_embeddings(folder, "words", (3, 8))

    def check(self, files, rows):
        if rows is None:
            if files == self.seed():
                raise Wrong("a whole cache was not taken")
        elif not torch.equal(rows, self.rows):
            raise Wrong("other embeddings")
