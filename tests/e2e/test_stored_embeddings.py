"""What results/README.md says of stored embeddings: its lines open a shard that a run has left."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from rich.console import Console

from evalkit.config.compose import compose
from evalkit.run import pipeline
from evalkit.storage import shard_files

README = (Path(__file__).parents[2] / "results" / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    small = ("dataset.demo.documents=40", "dataset.demo.queries=4")
    words = ("model=demo", "dim=64", *small, f"results_dir={folder}/results", f"cache_dir={folder}/cache")
    pipeline.run(compose(words), console=Console(quiet=True))
    return next((folder / "cache" / "stores").glob("*/*.safetensors"))


class Plaid:
    """PyLate's index, as far as what is put into it."""

    def __init__(self, index_folder, index_name):
        self.documents = {}

    def add_documents(self, documents_ids, documents_embeddings):
        self.documents |= dict(zip(documents_ids, documents_embeddings, strict=True))


def test_two_lines_open_a_shard_in_numpy_in_torch_and_for_pylate(shard):
    stored = shard_files.vectors_from_arrays(shard_files.load(shard.parent, shard.stem))
    rows, at = stored.vectors.rows_XD, stored.vectors.offsets_N.tolist()
    wanted = {name: rows[begin:end] for name, begin, end in zip(stored.ids, at[:-1], at[1:], strict=True)}
    assert len(wanted) == 40
    assert len(BLOCKS) == 3
    for opening in BLOCKS[:2]:
        names = {
            "json": json,
            "numpy": np,
            "safetensors": safetensors,
            "path": str(shard),
            "pylate": SimpleNamespace(indexes=SimpleNamespace(PLAID=Plaid)),
        }
        for block in (opening, BLOCKS[2]):
            assert len(block.splitlines()) == 2
            exec(block, names)
        found = names["index"].documents
        assert list(found) == list(wanted)
        for name, vectors_TD in wanted.items():
            assert torch.equal(torch.as_tensor(found[name]), vectors_TD)


def test_a_shards_arrays_are_those_that_the_text_names(shard):
    arrays = safetensors.numpy.load_file(shard)
    assert set(arrays) == {"vectors", "lengths", "ids"}
    assert all(f"`{name}`" in README for name in arrays)
    assert [str(arrays[name].dtype) for name in ("vectors", "lengths", "ids")] == ["float16", "int32", "uint8"]
