"""Every model config is valid, says where its facts are from, and is listed."""

import re
from types import SimpleNamespace

import pytest
from checkpoints import publish, write_colbertv2, write_jina_checkpoint
from huggingface_hub.errors import RepositoryNotFoundError
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.compose import compose
from evalkit.config import Bm25Config, group_names
from evalkit.errors import ModelError
from evalkit.models.encoder import checkpoints

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


@pytest.mark.parametrize("name", group_names("reranker"))
def test_a_reranker_config_is_named_like_its_file_and_pins_a_commit(name):
    reranker = compose([f"reranker={name}"]).reranker
    assert (reranker.name, len(reranker.checkpoint.revision)) == (name, 40)


def test_the_list_of_models_shows_sizes_lengths_commits_and_what_is_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    revision = "c1e84128e85ef755c096a95bdb06b47793b13acf"
    publish(tmp_path, "colbert-ir/colbertv2.0", write_colbertv2, revision=revision)
    lines = CliRunner().invoke(app, ["ls", "models"], terminal_width=240).output.splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert "109.6 M" in rows["colbertv2"]
    assert re.search(r"32–300 +180–300 +float32 +c1e84128 +yes +MIT", rows["colbertv2"])
    assert re.search(
        r"128, 96, 64 +559\.4 M +32 +300 .*4cf816e5, not pinned, 7c9f323b +no, no, no", rows["jina-colbert-v2"]
    )
    assert re.search(r"in the package.* yes, yes, yes", rows["demo"])


def test_a_private_repository_names_itself_the_token_and_the_dims_that_can_run(tmp_path, monkeypatch):
    whole = {dim: write_jina_checkpoint(tmp_path / str(dim), dim=dim) for dim in (128, 64)}

    def answer(repo, **_):
        if repo == "jinaai/jina-colbert-v2-96":
            raise RepositoryNotFoundError("401 Client Error", response=SimpleNamespace(headers={}, request=None))
        return str(whole[64 if repo.endswith("-64") else 128])

    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    model = compose(["model=jina-colbert-v2"]).model
    with pytest.raises(ModelError) as caught:
        checkpoints(model, model.dims)
    message = str(caught.value)
    assert "jinaai/jina-colbert-v2-96@main" in message
    assert "HF_TOKEN" in message
    assert message.endswith("can run: dim=128,64")
    assert "\n" not in message
