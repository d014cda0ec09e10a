"""Every model config is valid, says where its facts are from, and is listed."""

import dataclasses
import re

import pytest
from checkpoints import publish, write_colbertv2
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.config.compose import compose
from evalkit.config.settings import Bm25Config, group_names
from evalkit.models.checkpoint import resolve
from evalkit.run.identity import vector_facts

CARD = {"jina-colbert-v2", "jina-colbert-v1-en", "colbertv2", "colbert-xm", "mdpr", "bm25"}


def test_every_system_of_the_card_has_a_config():
    assert set(group_names("model")) >= CARD


@pytest.mark.parametrize("name", group_names("model"))
def test_a_model_config_is_named_like_its_file_and_gives_its_sources(name):
    model = compose([f"model={name}"]).model
    assert model.name == name
    assert model.source
    if not isinstance(model, Bm25Config):
        assert model.trust_remote_code is False
        assert model.allow_pickle is False
        for source in model.checkpoints.values():
            assert source.revision is None or re.fullmatch(r"[0-9a-f]{40}", source.revision)


V2, V2_64 = "4cf816e5e2b03167b132a3c847a9ecd48ba708e1", "7c9f323b61e6f96754300dea81bb51c3cc1d3f34"
COLBERT, XM = "c1e84128e85ef755c096a95bdb06b47793b13acf", "960de711799d210957d18df59c14c59a439b608a"


@pytest.mark.parametrize(
    ("name", "revisions", "query", "document", "rest"),
    [
        (
            "jina-colbert-v2",
            {128: V2, 96: None, 64: V2_64},
            (32, "[QueryMarker]", True, True),
            (300, "[DocumentMarker]"),
            ("jina_embeddings_v3", "tokens", True, "stanford", "bfloat16"),
        ),
        (
            "jina-colbert-v1-en",
            {128: None},
            (32, "[unused0]", True, False),
            (300, "[unused1]"),
            ("jina_bert", "tokens", True, "stanford", "float32"),
        ),
        (
            "colbertv2",
            {128: COLBERT},
            (32, "[unused0]", True, False),
            (300, "[unused1]"),
            ("bert", "tokens", True, "stanford", "float32"),
        ),
        (
            "colbert-xm",
            {128: XM},
            (32, "<unk> .", True, True),
            (256, "<unk> ."),
            ("xmod", "tokens", True, "stanford", "float32"),
        ),
        ("mdpr", {768: None}, (256, None, False, False), (256, None), ("bert", "cls", False, "none", "float32")),
    ],
)
def test_a_system_of_the_card_is_set_up_as_its_checkpoint_was_trained(name, revisions, query, document, rest):
    """The facts once more, by hand: other tests load whatever a config says, so a slip in it would move a column."""
    model = compose([f"model={name}", "dataset=beir/fiqa"]).model
    assert {dim: model.checkpoints[str(dim)].revision for dim in model.dims} == revisions
    rules = model.query
    assert (rules.max_tokens, rules.marker, rules.expansion, rules.attend_to_expansion) == query
    assert (model.document.max_tokens, model.document.marker) == document
    assert (model.backbone, model.pooling, model.normalize, model.skiplist, model.dtype) == rest


@pytest.mark.parametrize("name", group_names("reranker"))
def test_a_reranker_config_is_named_like_its_file_and_pins_a_commit(name):
    reranker = compose([f"reranker={name}"]).reranker
    assert (reranker.name, len(reranker.checkpoint.revision)) == (name, 40)


def test_the_list_of_models_shows_sizes_lengths_commits_and_what_is_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    revision = "c1e84128e85ef755c096a95bdb06b47793b13acf"
    publish(tmp_path, "colbert-ir/colbertv2.0", write_colbertv2, revision=revision)
    lines = CliRunner().invoke(app, ["ls", "models", "--wide"], env={"COLUMNS": "240"}).output.splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert "109.6 M" in rows["colbertv2"]
    assert re.search(r"yes +32–300 +180–300 +float32 +c1e84128 +MIT", rows["colbertv2"])
    assert re.search(r"128, 96, 64 +559\.5 M +no +32 +300 .*4cf816e5, not pinned, 7c9f323b", rows["jina-colbert-v2"])
    assert re.search(r" yes .*in the package", rows["demo"])


def test_only_half_precision_of_the_rope_backbone_is_keyed_by_exact_frequencies():
    for words, keyed in (([], False), (["model.dtype=bfloat16"], True)):
        config = compose(["model=demo", "dim=64", *words])
        checkpoint = resolve(config.model.checkpoints["64"])
        facts = vector_facts(config.model, config, checkpoint, 64, attention="sdpa/cpu", batch_tokens=2048)
        assert ("rope_frequencies" in facts) is keyed


def test_the_dims_that_share_a_projection_are_in_the_store_key_of_each():
    config = compose(["model=demo"])
    checkpoint = resolve(config.model.checkpoints["64"])
    facts = vector_facts(config.model, config, checkpoint, 64, attention="sdpa/cpu", batch_tokens=99)
    assert facts["heads"] == [128, 96, 64]
    alone = dataclasses.replace(config.model, checkpoints={"64": config.model.checkpoints["64"]})
    others = vector_facts(alone, config, checkpoint, 64, attention="sdpa/cpu", batch_tokens=99)
    assert others == {name: fact for name, fact in facts.items() if name != "heads"}


def test_one_setting_of_a_dims_checkpoint_is_changed_and_the_others_stay():
    commit = "0123456789abcdef0123456789abcdef01234567"
    words = [f"model.checkpoints.96.revision={commit}", f"model.checkpoints.96.code_revision={commit}"]
    changed = compose(["model=jina-colbert-v2", *words]).model.checkpoints
    assert list(changed) == ["128", "96", "64"]
    assert (changed["96"].repo, changed["96"].revision) == ("jinaai/jina-colbert-v2-96", commit)
    assert changed["96"].code_revision == commit
