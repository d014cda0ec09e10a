"""What a checkpoint's artifact.metadata says is held against the config: contradictions stop, lengths are told."""

import dataclasses
import io
import json

import pytest
import torch
from checkpoints import write_colbert_xm, write_colbertv2, write_jina_checkpoint
from rich.console import Console
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.config.compose import compose
from evalkit.errors import ModelError
from evalkit.models import metadata
from evalkit.models.checkpoint import METADATA
from evalkit.models.encoder import checkpoints, load_encoders
from evalkit.run import pipeline

DIM = 16
ST_CONFIG = {
    "query_token_id": "[QueryMarker]",
    "doc_token_id": "[DocumentMarker]",
    "dim": DIM,
    "doc_maxlen": 300,
    "query_maxlen": 32,
    "mask_punctuation": True,
    "attend_to_mask_tokens": True,
    "similarity": "cosine",
}


def jina(folder, **said):
    write_jina_checkpoint(folder, dim=DIM)
    (folder / METADATA).write_text(json.dumps({**ST_CONFIG, **said}), encoding="utf-8")
    return folder


def model_of(name, folder, *words):
    model = compose([f"model={name}", "model.dtype=float32", *words]).model
    source = dataclasses.replace(next(iter(model.checkpoints.values())), path=str(folder))
    return dataclasses.replace(model, checkpoints={str(DIM): source})


def found(model):
    return checkpoints(model, (DIM,))


@pytest.mark.parametrize(
    ("said", "words", "clause"),
    [
        (
            {},
            ["model.query.attend_to_expansion=false"],
            "attend_to_mask_tokens true, model.query.attend_to_expansion=f",
        ),
        ({"attend_to_mask_tokens": False}, [], "attend_to_mask_tokens false, model.query.attend_to_expansion=true"),
        ({}, ["model.skiplist=none"], "mask_punctuation true, model.skiplist=none"),
        ({"mask_punctuation": False}, [], "mask_punctuation false, model.skiplist=stanford"),
        ({"dim": 128}, [], "dim 128, dim=16"),
        ({"query_token_id": "[DocumentMarker]"}, [], r'query_token_id "\[D.*\]", model.query.marker=\[QueryMarker\]'),
        ({}, ["model.document.marker=null"], r'doc_token_id "\[DocumentMarker\]", model.document.marker=null'),
        ({}, ["model.normalize=false"], 'similarity "cosine", model.normalize=false'),
        ({"similarity": "dot"}, [], 'similarity "dot", model.normalize=true'),
    ],
)
def test_a_contradiction_is_one_line_with_both_sides_and_the_setting(tmp_path, said, words, clause):
    folder = jina(tmp_path, **said)
    with pytest.raises(ModelError, match=rf"contradict each other: {clause}.*model\.verify=false") as caught:
        found(model_of("jina-colbert-v2", folder, *words))
    assert "\n" not in str(caught.value)


def test_lengths_of_an_evaluation_are_told_and_absent_or_open_keys_are_nothing(tmp_path):
    model = model_of("jina-colbert-v2", jina(tmp_path, doc_maxlen=180, dim=None), "model.query.max_tokens=300")
    assert metadata.notes(model, found(model)) == [
        "artifact.metadata has query_maxlen 32, model.query.max_tokens=300",
        "artifact.metadata has doc_maxlen 180, model.document.max_tokens=300",
    ]
    (tmp_path / METADATA).write_text("{}", encoding="utf-8")
    assert metadata.notes(model, found(model)) == []
    (tmp_path / METADATA).unlink()
    assert metadata.notes(model, found(model)) == []


def test_a_metadata_file_that_is_no_json_object_is_refused(tmp_path):
    folder = jina(tmp_path)
    (folder / METADATA).write_text("[]", encoding="utf-8")
    with pytest.raises(ModelError, match=r"artifact\.metadata: not JSON \(got a list, wanted a JSON object\)"):
        found(model_of("jina-colbert-v2", folder))


def test_markers_are_compared_by_the_id_that_stanford_colbert_takes(tmp_path):
    """ColBERT-XM names BERT's markers, which its vocabulary has not: both become <unk>, as its config says."""
    write_colbert_xm(tmp_path, dim=DIM)
    said = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]"}
    (tmp_path / METADATA).write_text(json.dumps(said), encoding="utf-8")
    found(model_of("colbert-xm", tmp_path, "model.adapter=en_XX"))
    with pytest.raises(ModelError, match=r'query_token_id "\[unused0\]", model\.query\.marker=<s>'):
        found(model_of("colbert-xm", tmp_path, "model.adapter=en_XX", "model.query.marker='<s>'"))


def test_a_deliberate_override_loads_and_is_recorded_in_the_result(tmp_path):
    words = ["model=demo", "dim=64", "model.query.attend_to_expansion=false", "model.verify=false"]
    small = ["dataset.demo.documents=150", "dataset.demo.queries=50"]
    places = [f"results_dir={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}"]
    console = Console(record=True, width=200, file=io.StringIO())
    (cell,) = pipeline.run(compose([*words, *small, *places]), console=console)
    line = "artifact.metadata has attend_to_mask_tokens true, model.query.attend_to_expansion=false"
    assert cell.deviations == (line,)
    assert f"demo: {line}" in console.export_text()
    assert "verify: false" in next((tmp_path / "results").rglob("config.yaml")).read_text(encoding="utf-8")


def test_the_switch_alone_moves_no_run_id_and_deviates_in_nothing(tmp_path):
    model = model_of("jina-colbert-v2", jina(tmp_path), "model.verify=false")
    assert metadata.differences(model, found(model)[DIM], DIM) == ((), ())
    (encoder,) = load_encoders(model, found(model), device=torch.device("cpu"))
    assert tuple(encoder.heads) == (DIM,)


def test_the_check_tells_what_the_checkpoint_says_of_itself(tmp_path):
    output = CliRunner().invoke(app, ["check", "model=demo", "dim=64", "model.query.max_tokens=40"]).output
    assert "the checkpoint's own settings: artifact.metadata has query_maxlen 32, model.query.max_tokens=40" in output
    refused = CliRunner().invoke(app, ["check", "model=demo", "dim=64", "model.skiplist=none"])
    assert refused.exit_code == 1
    assert "mask_punctuation true, model.skiplist=none" in refused.output


def test_colbertv2_on_arguana_is_loaded_with_its_length_told(tmp_path):
    write_colbertv2(tmp_path, dim=DIM)
    model = model_of("colbertv2", tmp_path, "dataset=beir/arguana")
    assert metadata.notes(model, found(model)) == ["artifact.metadata has query_maxlen 32, model.query.max_tokens=300"]
