"""Checkpoints as PyLate saves them, read by evalkit under a config read from them, against PyLate's own vectors.

The fixtures are written by scripts/parity_pylate_layouts.py in an environment of PyLate's own.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evalkit.config.compose import compose
from evalkit.config.settings import CONFIGS, CheckpointSource, EncoderConfig, from_mapping
from evalkit.errors import ModelError
from evalkit.models import metadata
from evalkit.models.encoder import checkpoints, load_encoders
from evalkit.models.infer import infer
from evalkit.operations import own_configs
from evalkit.run.canary import canary
from evalkit.run.identity import vector_facts

LAYOUTS = Path(__file__).parents[1] / "fixtures" / "parity" / "pylate_layouts"
KINDS = sorted(path.stem for path in LAYOUTS.glob("*.npz"))
TEXTS = ["hello world", "  the cat, the hat: a (b) [c]; d! e?  ", "hello, " * 30, ""]
"""Those of the script."""


def config_of(kind: str) -> EncoderConfig:
    values = infer(CheckpointSource(path=str(LAYOUTS / kind)), name=kind).values()
    return from_mapping(EncoderConfig, values, where="model")


def test_every_architecture_has_its_fixture():
    assert KINDS == ["bert", "modernbert", "qwen3", "xlm-roberta"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_pylate_saved_gives_pylates_vectors(kind):
    config = config_of(kind)
    found = checkpoints(config, config.dims)
    (encoder,) = load_encoders(config, found, device=torch.device("cpu"))
    theirs, worst = np.load(LAYOUTS / f"{kind}.npz"), 0.0
    for side, texts, documents in (
        ("query", encoder.tokenize_queries(TEXTS), False),
        ("document", encoder.tokenize_documents(TEXTS), True),
    ):
        vectors, counts = encoder.vectors(encoder.batch(texts, skip_punctuation=documents))[16]
        for place, ours in enumerate(vectors.split(counts.tolist())):
            wanted = torch.from_numpy(theirs[f"{side}_{place}"])
            assert ours.shape == wanted.shape, (side, TEXTS[place])
            worst = max([worst, *(ours - wanted).abs().flatten().tolist()])
    print(f"{kind}: max |Δ| against {', '.join(theirs['made_with'])}: {worst:.2e}")
    assert worst < 1e-5
    canary(encoder, found)


def test_what_the_files_say_is_in_the_config():
    bert = config_of("bert")
    assert (bert.query.marker, bert.query.max_tokens, bert.query.prompt) == ("[unused0]", 20, "the cat: ")
    assert (bert.document.marker, bert.document.max_tokens, bert.document.prompt) == ("[unused1]", 24, "the hat: ")
    assert (bert.query.expansion, bert.query.attend_to_expansion, bert.document.expansion) == (True, True, False)
    assert (bert.backbone, bert.architecture, bert.head, bert.dims) == ("bert", None, "dense", (16,))
    assert bert.skiplist_words == ("hello", ",", "notoken")
    xlm_r = config_of("xlm-roberta")
    assert (xlm_r.query.marker, xlm_r.query.expansion, xlm_r.architecture) == (None, False, "xlm-roberta")
    assert (xlm_r.skiplist, xlm_r.skiplist_words) == ("pylate", None)
    assert config_of("modernbert").query.marker == "[Q] "


def test_dims_with_dense_modules_of_their_own_share_a_backbone_that_is_equal(tmp_path):
    folder = shutil.copytree(LAYOUTS / "modernbert", tmp_path / "m")
    config = config_of("modernbert")
    head = torch.randn(8, 32, generator=torch.Generator().manual_seed(5))
    save_file({"linear.weight": head}, folder / "1_Dense" / "model.safetensors")
    values = json.loads((folder / "1_Dense" / "config.json").read_text("utf-8"))
    (folder / "1_Dense" / "config.json").write_text(json.dumps({**values, "out_features": 8}), encoding="utf-8")
    both = dataclasses.replace(config, checkpoints={**config.checkpoints, "8": CheckpointSource(path=str(folder))})
    (encoder,) = load_encoders(both, checkpoints(both, both.dims), device=torch.device("cpu"))
    (alone,) = load_encoders(config, checkpoints(config, config.dims), device=torch.device("cpu"))
    batch = encoder.batch(encoder.tokenize_documents(TEXTS), skip_punctuation=True)
    found, wanted = encoder.vectors(batch), alone.vectors(batch)
    assert {dim: vectors.shape[1] for dim, (vectors, _) in found.items()} == {16: 16, 8: 8}
    assert torch.equal(found[16][0], wanted[16][0])


def test_another_prompt_prefix_or_skiplist_is_another_system():
    """What is new in a config changes the store key or the run id; what says nothing new leaves both as they were."""
    run = compose(["model=demo", "dim=64"])
    config = config_of("bert")
    checkpoint = checkpoints(config, config.dims)[16]

    def facts(changed: EncoderConfig) -> dict[str, object]:
        return vector_facts(changed, run, checkpoint, 16, attention="sdpa/cpu", batch_tokens=64)

    plain = dataclasses.replace(config.query, prompt="")
    assert facts(config)["query"]["prompt"] == "the cat: "
    assert "prompt" not in facts(dataclasses.replace(config, query=plain))["query"]
    assert facts(config)["skiplist_words"] == ["hello", ",", "notoken"]
    assert "architecture" not in facts(config)
    assert facts(config_of("qwen3"))["architecture"] == "qwen3"


@pytest.mark.parametrize(
    ("word", "clause"),
    [
        ("model.query.marker=the", r'query_prefix "\[Q\] ", model\.query\.marker=the'),
        ("model.query.expansion=false", r"do_query_expansion true, model\.query\.expansion=false"),
        ("model.query.attend_to_expansion=true", r"attend_to_expansion_tokens false, .*attend_to_expansion=true"),
        ("model.skiplist=none", r"skiplist_words \[.*\], model\.skiplist=none"),
    ],
)
def test_a_config_that_contradicts_what_pylate_saved_is_refused_unless_it_is_meant(tmp_path, monkeypatch, word, clause):
    own_configs.new_model("house", str(LAYOUTS / "modernbert"), tmp_path)
    monkeypatch.setenv(CONFIGS, str(tmp_path))
    model = compose(["model=house", word]).model
    with pytest.raises(ModelError, match=f"config_sentence_transformers.json and the config contradict .*{clause}"):
        checkpoints(model, model.dims)
    meant = compose(["model=house", word, "model.verify=false", "model.document.max_tokens=64"]).model
    found = checkpoints(meant, meant.dims)
    assert metadata.differences(meant, found[16], 16).lengths == ("document_length 180, model.document.max_tokens=64",)
    assert "config_sentence_transformers.json has document_length 180" in metadata.notes(meant, found)[-1]
