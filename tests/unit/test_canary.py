"""The canary passes on sound checkpoints of every family and names the cause on spoilt ones."""

import dataclasses

import pytest
import torch
from checkpoints import DIM, FAMILIES, publish, write_colbertv2, write_jina_checkpoint
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.config.compose import compose
from evalkit.config.settings import EncoderConfig
from evalkit.errors import ConfigError, ModelError
from evalkit.models.encoder import checkpoints, load_encoders
from evalkit.run import canary, published_vectors
from evalkit.run.finding import HELLO, reloader, vectors_of, vocabulary_rows

HELD = ("jina-colbert-v2", "colbertv2")
"""The models that vectors are published for."""


def fixture_config(name, folder, **changes):
    model = compose([f"model={name}"]).model
    assert isinstance(model, EncoderConfig)
    dim = DIM if model.head == "linear" else 24
    source = dataclasses.replace(next(iter(model.checkpoints.values())), path=str(folder))
    return dataclasses.replace(
        model, **{"dtype": "float32", "allow_pickle": True, "checkpoints": {str(dim): source}, **changes}
    )


def write(name, folder):
    folder.mkdir(parents=True, exist_ok=True)
    FAMILIES[name](folder)
    return folder


def load(config):
    found = checkpoints(config, config.dims)
    (encoder,) = load_encoders(config, found, device=torch.device("cpu"))
    return encoder, reloader(encoder, found)


def findings(encoder, reload, published=None):
    yield from canary.examine(encoder)
    if published is not None:
        yield published_vectors.compare(encoder, published, reload=reload)


def failures(encoder, reload, published=None):
    return [finding for finding in findings(encoder, reload, published) if finding.verdict == "FAILED"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sound_checkpoint_of_every_family_passes(name, tmp_path):
    encoder, reload = load(fixture_config(name, write(name, tmp_path / "m")))
    assert failures(encoder, reload) == []


def test_a_query_that_leaves_no_room_for_masks_says_nothing_against_the_checkpoint():
    ((_, findings),) = canary.findings_of(compose(["model=demo", "model.query.max_tokens=6"]))
    assert [finding for finding in findings if finding.verdict == "FAILED"] == []
    assert not any("expansion vectors" in finding.question for finding in findings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_demo_passes_in_every_dtype(dtype):
    ((dims, findings),) = canary.findings_of(compose(["model=demo", f"model.dtype={dtype}"]))
    assert dims == (128, 96, 64)
    assert [finding for finding in findings if finding.verdict == "FAILED"] == []


def published_by(encoder, vocabulary, **more):
    """Return what this encoder measures, as if others had published it."""
    rows = {}
    for side, tokenize, documents in (
        ("query", encoder.tokenize_queries, False),
        ("document", encoder.tokenize_documents, True),
    ):
        (vectors_TD,) = vectors_of(encoder, tokenize([HELLO]), documents=documents)[DIM]
        rows[side] = tuple(tuple(float(value) for value in row[:5]) for row in vectors_TD)
    named = {"model": encoder.config.name, "dim": DIM, "vocabulary": vocabulary, "text": HELLO, "atol": 2e-3}
    return published_vectors.Published(**named, **rows, **more)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"rope_theta": 20_000.0}, "RoPE base: model.rope_theta=10000"),
        ({"attend": False}, "expansion attention: model.query.attend_to_expansion=true"),
        ({"swap": True}, r"marker ids: query \[QueryMarker\], document \[DocumentMarker\]"),
    ],
)
def test_the_setting_that_meets_the_published_vectors_is_named(tmp_path, changes, cause):
    folder = write("jina-colbert-v2", tmp_path / "m")
    right = fixture_config("jina-colbert-v2", folder)
    encoder, _ = load(right)
    published = published_by(encoder, vocabulary_rows(encoder))
    query, document = right.query, right.document
    wrong = dataclasses.replace(
        right,
        rope_theta=changes.get("rope_theta", "checkpoint"),
        query=dataclasses.replace(
            query,
            attend_to_expansion=changes.get("attend", True),
            marker=document.marker if "swap" in changes else query.marker,
        ),
        document=dataclasses.replace(document, marker=query.marker if "swap" in changes else document.marker),
    )
    found = failures(*load(wrong), published=published)
    assert [finding.question for finding in found] == ["published vectors of 'Hello World' in float32"]
    with pytest.raises(AssertionError, match=cause):
        raise AssertionError(found[0].cause)


def test_another_head_is_told_from_a_wrong_setting(tmp_path):
    encoder, _ = load(fixture_config("jina-colbert-v2", write("jina-colbert-v2", tmp_path / "one")))
    published = published_by(encoder, vocabulary_rows(encoder))
    other = write_jina_checkpoint(tmp_path / "other", dim=DIM, head_seed=99)
    (found,) = failures(*load(fixture_config("jina-colbert-v2", other)), published=published)
    assert "weights or head" in found.cause


def test_the_published_vectors_are_carried_whole():
    jina, colbertv2 = published_vectors.packaged()
    for published in (jina, colbertv2):
        assert (published.dim, len(published.query), len(published.document)) == (128, 32, 5)
        assert {len(row) for row in (*published.query, *published.document)} == {5}
    assert (jina.model, jina.atol, colbertv2.model, colbertv2.atol) == ("jina-colbert-v2", 0.002, "colbertv2", 0.001)
    assert jina.query[0] == (0.0477, 0.0255, -0.2224, -0.1085, -0.03)
    assert colbertv2.document[1] == (0.0005, -0.0163, -0.0127, 0.2165, 0.1517)


def test_each_model_is_held_to_its_own_published_vectors(tmp_path, monkeypatch):
    """One list serves several models; nothing is published for a third."""
    encoders = {name: load(fixture_config(name, write(name, tmp_path / name)))[0] for name in HELD}
    figures = tuple(published_by(one, vocabulary_rows(one)) for one in encoders.values())
    monkeypatch.setattr(published_vectors, "packaged", lambda: figures)
    for name, encoder in encoders.items():
        assert canary.canary(encoder, checkpoints(encoder.config, encoder.config.dims)) == {DIM}, name
    third, _ = load(fixture_config("jina-colbert-v1-en", write("jina-colbert-v1-en", tmp_path / "third")))
    (finding,) = published_vectors.findings(third, checkpoints(third.config, third.config.dims))
    assert finding.verdict == "skipped"
    assert finding.measured == f"none are published for jina-colbert-v1-en at {DIM}"


@pytest.mark.parametrize("name", HELD)
def test_a_datasets_longer_queries_are_no_other_weights(tmp_path, monkeypatch, name):
    """ColBERTv2 has 300 tokens for a query of ArguAna; its figures are of 32."""
    config = fixture_config(name, write(name, tmp_path))
    encoder, _ = load(config)
    published = published_by(encoder, vocabulary_rows(encoder))
    monkeypatch.setattr(published_vectors, "packaged", lambda: (published,))
    longer, _ = load(dataclasses.replace(config, query=dataclasses.replace(config.query, max_tokens=64)))
    assert canary.canary(longer, checkpoints(config, config.dims)) == {DIM}


def test_colbertv2_with_its_masks_attended_to_misses_its_figures(tmp_path):
    right = fixture_config("colbertv2", write("colbertv2", tmp_path))
    encoder, _ = load(right)
    published = published_by(encoder, vocabulary_rows(encoder))
    attended = dataclasses.replace(right.query, attend_to_expansion=True)
    wrong = dataclasses.replace(right, query=attended, verify=False)
    (found,) = failures(*load(wrong), published=published)
    assert found.cause == (
        "expansion attention: model.query.attend_to_expansion=false, which reproduces the published vectors"
    )


def test_a_state_of_the_repository_is_named_where_it_meets_the_figures(tmp_path):
    config = fixture_config("jina-colbert-v2", write("jina-colbert-v2", tmp_path))
    unattended = dataclasses.replace(config, query=dataclasses.replace(config.query, attend_to_expansion=False))
    encoder, _ = load(unattended)
    published = published_by(encoder, vocabulary_rows(encoder))
    (found,) = failures(*load(config), published=published)
    assert "its repository changed attend_to_mask_tokens from true to false and back" in found.cause


@pytest.mark.parametrize(
    ("attends", "state"),
    [
        (True, "is true, the other state is model.query.attend_to_expansion=false"),
        (False, "is false, one of its states"),
    ],
)
def test_check_names_the_states_of_a_repository(attends, state):
    config = compose(["model=jina-colbert-v2", f"model.query.attend_to_expansion={str(attends).lower()}"]).model
    (finding,) = canary._variants(config)
    assert (finding.verdict, finding.measured) == ("ok", f"query.attend_to_expansion {state}")
    assert list(canary._variants(compose(["model=colbertv2"]).model)) == []


def test_a_stand_in_is_not_held_to_the_published_figures(tmp_path):
    encoder, reload = load(fixture_config("jina-colbert-v2", write("jina-colbert-v2", tmp_path)))
    published = published_vectors.packaged()[0]
    found = findings(encoder, reload, published)
    verdicts = {finding.question: finding.verdict for finding in found}
    assert verdicts["ids of known tokens"] == "skipped"
    assert verdicts["published vectors of 'Hello World' in float32"] == "skipped"


def test_a_head_of_zeros_is_named(tmp_path):
    encoder, reload = load(fixture_config("colbertv2", write("colbertv2", tmp_path)))
    spoilt = dataclasses.replace(encoder, heads={DIM: torch.zeros_like(encoder.heads[DIM])})
    assert "head missing or zero: a vector has no length" in {finding.cause for finding in failures(spoilt, reload)}


def test_vectors_that_are_not_finite_are_laid_to_a_damaged_weight_or_to_the_dtype(tmp_path):
    folder = write("colbertv2", tmp_path)
    encoder, reload = load(fixture_config("colbertv2", folder))
    for number, cause in ((torch.nan, "weights: the head of 16 holds NaN"), (torch.inf, "dtype: float32 overflows")):
        spoilt = dataclasses.replace(encoder, heads={DIM: torch.full_like(encoder.heads[DIM], number)})
        assert any(finding.cause.startswith(cause) for finding in failures(spoilt, reload))
    half, reload = load(fixture_config("colbertv2", folder, dtype="float16"))
    spoilt = dataclasses.replace(half, heads={DIM: half.heads[DIM] * 1e6})
    assert "dtype: float16 overflows; model.dtype=float32" in {finding.cause for finding in failures(spoilt, reload)}


def test_a_model_that_ignores_its_attention_mask_is_found(tmp_path):
    encoder, reload = load(fixture_config("colbertv2", write("colbertv2", tmp_path)))
    forward = encoder.module.forward
    encoder.module.forward = lambda input_ids, **_: forward(input_ids=input_ids)
    causes = {finding.cause for finding in failures(encoder, reload)}
    assert "expansion attention: the attention mask does not reach the model" in causes
    assert "padding: padded tokens are attended to" in causes


def test_a_tokenizer_with_other_ids_than_the_published_is_found(tmp_path, monkeypatch):
    encoder, reload = load(fixture_config("colbertv2", write("colbertv2", tmp_path)))
    monkeypatch.setattr(canary, "vocabulary_rows", lambda encoder: 30522)
    (found,) = failures(encoder, reload)
    assert "[CLS] is 4, wanted 101" in found.measured
    assert found.cause.startswith("marker ids")


def test_the_canary_stops_a_run_with_the_cause(tmp_path):
    config = fixture_config("colbertv2", write("colbertv2", tmp_path))
    found = checkpoints(config, config.dims)
    (encoder,) = load_encoders(config, found, device=torch.device("cpu"))
    assert canary.canary(encoder, found) == frozenset()
    spoilt = dataclasses.replace(encoder, heads={DIM: torch.zeros_like(encoder.heads[DIM])})
    with pytest.raises(ModelError, match=r"fails the canary, query norms at 16: .* likeliest cause: head missing"):
        canary.canary(spoilt, found)


def test_the_canary_of_a_run_in_bfloat16_settles_the_rope_base_in_fp32(tmp_path, monkeypatch):
    folder = write("jina-colbert-v2", tmp_path / "m")
    exact, _ = load(fixture_config("jina-colbert-v2", folder))
    published = published_by(exact, vocabulary_rows(exact))
    monkeypatch.setattr(published_vectors, "packaged", lambda: (published,))
    config = fixture_config("jina-colbert-v2", folder, dtype="bfloat16")
    encoder, _ = load(config)
    assert canary.canary(encoder, checkpoints(config, config.dims)) == {DIM}

    near = dataclasses.replace(config, rope_theta=10_500.0)
    encoder, reload = load(near)
    assert failures(encoder, reload) == []  # in bfloat16 this base is as good as the right one
    with pytest.raises(ModelError, match=r"in float32: .* RoPE base: model\.rope_theta=10000"):
        canary.canary(encoder, checkpoints(near, near.dims))


def test_another_dim_is_held_to_the_published_vectors_by_the_head_that_is_on_disk(tmp_path, monkeypatch):
    folder = write("jina-colbert-v2", tmp_path / "published")
    exact, _ = load(fixture_config("jina-colbert-v2", folder))
    published = published_by(exact, vocabulary_rows(exact))
    monkeypatch.setattr(published_vectors, "packaged", lambda: (published,))
    write_jina_checkpoint(tmp_path / "small", dim=8)

    def model_of(place, **changes):
        config = fixture_config("jina-colbert-v2", place, **changes)
        small = dataclasses.replace(config.checkpoints[str(DIM)], path=str(tmp_path / "small"))
        return dataclasses.replace(config, checkpoints={**config.checkpoints, "8": small})

    def verdicts(config):
        found = checkpoints(config, (8,))
        (encoder,) = load_encoders(config, found, device=torch.device("cpu"))
        return list(published_vectors.findings(encoder, found))

    for dtype, times in (("float32", 1), ("bfloat16", 2)):
        assert [finding.verdict for finding in verdicts(model_of(folder, dtype=dtype))] == ["ok"] * times
    config = model_of(folder)
    found = checkpoints(config, (8,))
    (encoder,) = load_encoders(config, found, device=torch.device("cpu"))
    assert canary.canary(encoder, found) == frozenset()  # the backbone is met, but nothing is known of the head of 8
    wrong = verdicts(model_of(folder, rope_theta=20_000.0))
    assert [finding.cause for finding in wrong] == [
        "RoPE base: model.rope_theta=10000, which reproduces the published vectors"
    ]
    other = write_jina_checkpoint(tmp_path / "other", dim=DIM, seed=7)
    for place in (other, tmp_path / "nowhere"):
        (unsettled,) = verdicts(model_of(place))
        assert unsettled.verdict == "skipped"
        assert f"those at {DIM} settle the RoPE base (10000.0)" in unsettled.measured
        assert f"evalkit fetch model=jina-colbert-v2 dim={DIM}" in unsettled.measured


def test_the_canary_reads_no_weights_again_where_no_figures_are_published(tmp_path, monkeypatch):
    config = fixture_config("jina-colbert-v2", write("jina-colbert-v2", tmp_path), dtype="bfloat16")
    encoder, _ = load(config)
    monkeypatch.setattr(
        "evalkit.run.finding.load_encoders", lambda *_a, **_k: pytest.fail("the weights were read again")
    )
    canary.canary(encoder, checkpoints(config, config.dims))


def test_a_model_without_vectors_has_nothing_to_check():
    with pytest.raises(ConfigError, match="'bm25' has no checkpoint to check; wanted a model with vectors"):
        list(canary.findings_of(compose(["model=bm25"])))


def test_the_verb_prints_every_answer_and_exits_by_them(tmp_path, monkeypatch):
    passed = CliRunner().invoke(app, ["check", "model=demo", "dim=64"])
    assert (passed.exit_code, "expansion vectors at 64: 19 masks" in passed.output) == (0, True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def zero_head(folder):
        from safetensors.torch import load_file, save_file

        write_colbertv2(folder)
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors | {"linear.weight": torch.zeros(128, 24)}, folder / "model.safetensors")

    publish(tmp_path, "colbert-ir/colbertv2.0", zero_head, revision="c1e84128e85ef755c096a95bdb06b47793b13acf")
    failed = CliRunner().invoke(app, ["check", "model=colbertv2"])
    assert failed.exit_code == 1
    assert "likeliest cause: head missing or zero" in failed.output
    assert "nothing should be encoded with this model yet" in failed.output
