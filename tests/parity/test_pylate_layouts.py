"""Checkpoints as PyLate saves them, read by evalkit under a config read from them, against PyLate's own vectors.

The fixtures are written by scripts/parity_pylate_layouts.py in an environment of PyLate's own.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from evalkit.config.settings import CheckpointSource, EncoderConfig, from_mapping
from evalkit.models.encoder import checkpoints, load_encoders
from evalkit.models.infer import infer
from evalkit.run.canary import canary

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
