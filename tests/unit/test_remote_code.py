"""A checkpoint's own code: never run unless asked for, then pinned, recorded, said once, and held to its tensors."""

import json
import logging

import pytest
import torch
from checkpoints import REVISION, publish, write_colbertv2
from fake_hub import FakeHub
from remote_checkpoints import MODELING, set_config, write_code, write_own
from rich.console import Console
from safetensors.torch import load_file, save_file

from evalkit.config.compose import compose
from evalkit.config.settings import CheckpointSource
from evalkit.errors import ModelError
from evalkit.models import remote_code
from evalkit.models.encoder import checkpoints, load_encoders
from evalkit.operations import fetch
from evalkit.run import pipeline
from evalkit.run.identity import vector_facts

TEXTS = ["hello world", "a b c", "the the a . b , hello " * 12, ""]
CODE_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """One place for the copies that transformers imports code from: a package cannot move within a process."""
    with pytest.MonkeyPatch.context() as patch:
        place = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", place)
        patch.syspath_prepend(place)
        yield


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "the-code-ran"


def model_of(source, *, trust, dim=16, **changes):
    model = compose(["model=colbertv2"]).model
    changed = {"checkpoints": {str(dim): source}, "trust_remote_code": trust, **changes}
    return type(model)(**{**vars(model), **changed})


def load(source, *, trust=True, dim=16, **changes):
    model = model_of(source, trust=trust, dim=dim, **changes)
    (encoder,) = load_encoders(model, checkpoints(model, model.dims), device=torch.device("cpu"))
    return encoder


def at(folder):
    return CheckpointSource(path=str(folder))


def vectors(encoder):
    sides = ((encoder.tokenize_queries(TEXTS), False), (encoder.tokenize_documents(TEXTS), True))
    return torch.cat([encoder.vectors(encoder.batch(texts, skip_punctuation=docs))[16][0] for texts, docs in sides])


def refusal(source, **settings):
    with pytest.raises(ModelError) as caught:
        load(source, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_code_beside_the_weights_is_not_run_unless_asked_for(tmp_path, trace):
    folder = write_own(tmp_path / "own", trace=trace)
    encoder = load(at(folder), trust=False)
    assert not trace.exists()
    assert not any("py" in name for name in checkpoints(encoder.config, (16,))[16].checksums)
    load(at(folder))
    assert trace.exists()


def test_native_class_and_own_code_give_the_same_vectors_on_the_same_weights(tmp_path, trace):
    """Also a buffer that no file has holds what its constructor computes: with any other scale, vectors would move."""
    folder = write_own(tmp_path / "own", trace=trace)
    worst = float((vectors(load(at(folder))) - vectors(load(at(folder), trust=False))).abs().max())
    print(f"max |Δ| of own code against the native class: {worst:.2e}")
    assert worst < 1e-6


def test_a_buffer_that_no_file_has_is_what_its_constructor_makes_it(tmp_path, trace):
    folder = write_own(tmp_path / "own", trace=trace, modeling=MODELING.replace("(1,), 1.0", "(1,), 2.0"))
    assert load(at(folder)).module.inner.scale.tolist() == [2.0]


def test_the_code_is_in_the_checksums_the_store_key_and_the_result(tmp_path, trace):
    source = at(write_own(tmp_path / "own", trace=trace))
    places = [f"results_dir={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}"]
    small = ["dataset=demo", "dataset.demo.documents=150", "dataset.demo.queries=50"]
    config = compose(["model=colbertv2", *small, *places])
    keys = []
    for trust in (False, True):
        model = model_of(source, trust=trust)
        changed = type(config)(**{**vars(config), "model": model, "dims": (16,)})
        facts = vector_facts(model, changed, checkpoints(model, (16,))[16], 16, attention="sdpa/cpu", batch_tokens=99)
        keys.append(facts)
    assert "trust_remote_code" not in keys[0]
    assert keys[1]["trust_remote_code"] is True
    assert set(keys[1]["checkpoint"]) - set(keys[0]["checkpoint"]) == {"configuration_own.py", "modeling_own.py"}
    (scores,) = pipeline.run(changed, console=Console(quiet=True))
    (path,) = (tmp_path / "results").rglob("scores.json")
    recorded = json.loads(path.read_text(encoding="utf-8"))
    assert recorded["protocol"]["trust_remote_code"] is True
    assert "modeling_own.py" in recorded["environment"]["checkpoint"]["checksums"]
    assert "trust_remote_code: true" in (path.parent / "config.yaml").read_text(encoding="utf-8")
    assert 0 <= scores.metrics["ndcg@10"] <= 1


def test_running_others_code_is_said_once(tmp_path, trace, caplog):
    remote_code._warn_once.cache_clear()
    source = at(write_own(tmp_path / "own", trace=trace))
    with caplog.at_level(logging.WARNING):
        load(source)
        load(source)
    said = [record.getMessage() for record in caplog.records if "own code" in record.getMessage()]
    what = "model colbertv2: running the checkpoint's own code, as model.trust_remote_code=true allows"
    assert said == [f"{what}: configuration_own.py, modeling_own.py of {tmp_path / 'own'}"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_checkpoint_runs_its_own_code_offline_at_the_pinned_commit(hub, trace):
    publish(hub, "o/n", lambda folder: write_own(folder, trace=trace))
    encoder = load(CheckpointSource(repo="o/n", revision=REVISION))
    assert trace.exists()
    native = load(CheckpointSource(repo="o/n", revision=REVISION), trust=False)
    assert torch.allclose(vectors(encoder), vectors(native), atol=1e-6, rtol=0)


def test_own_code_of_a_hub_checkpoint_at_no_named_commit_is_refused(hub, trace):
    publish(hub, "o/n", lambda folder: write_own(folder, trace=trace))
    for unpinned in (None, "main"):
        message = refusal(CheckpointSource(repo="o/n", revision=unpinned))
        assert message.startswith("model colbertv2:16: o/n: its code is in o/n, and nothing says at which commit")
        assert "model.checkpoints.DIM.revision=COMMIT (40 hex digits)" in message
    assert not trace.exists()


def test_code_of_another_repository_must_be_pinned_and_is_then_run_at_that_commit(hub, trace):
    publish(hub, "o/n", lambda folder: write_own(folder, trace=trace, code="o/code"))
    publish(hub, "o/code", lambda folder: write_code(folder, trace=trace), revision=CODE_COMMIT)
    for unpinned in (None, "main"):
        message = refusal(CheckpointSource(repo="o/n", revision=REVISION, code_revision=unpinned))
        assert "o/n: its code is in o/code, and nothing says at which commit; read that code, then pin it" in message
        assert "model.checkpoints.DIM.code_revision=COMMIT (40 hex digits)" in message
    assert not trace.exists()
    source = CheckpointSource(repo="o/n", revision=REVISION, code_revision=CODE_COMMIT)
    encoder = load(source)
    assert trace.exists()
    assert torch.allclose(vectors(encoder), vectors(load(source, trust=False)), atol=1e-6, rtol=0)
    checkpoint = checkpoints(encoder.config, (16,))[16]
    assert set(checkpoint.code()) == {
        f"o/code@{CODE_COMMIT}/configuration_own.py",
        f"o/code@{CODE_COMMIT}/modeling_own.py",
    }


def test_code_of_another_repository_moves_with_the_bundle(hub, trace):
    publish(hub, "o/n", lambda folder: write_own(folder, trace=trace, code="o/code"))
    publish(hub, "o/code", lambda folder: write_code(folder, trace=trace), revision=CODE_COMMIT)
    source = CheckpointSource(repo="o/n", revision=REVISION, code_revision=CODE_COMMIT)
    files = fetch._stored_files(checkpoints(model_of(source, trust=True), (16,))[16])
    assert {path.name for path in files} >= {"model.safetensors", "configuration_own.py", "modeling_own.py"}
    assert not trace.exists()


def test_code_in_several_other_repositories_is_refused(hub, trace):
    def write(folder):
        write_own(folder, trace=trace, code="o/code")
        set_config(folder, auto_map={"AutoConfig": "o/a--a.A", "AutoModel": "o/b--b.B"})

    publish(hub, "o/n", write)
    message = refusal(CheckpointSource(repo="o/n", revision=REVISION, code_revision=CODE_COMMIT))
    assert "its code is in several repositories (o/a, o/b), wanted one at most" in message


def test_code_is_fetched_only_when_it_is_to_run(tmp_path, trace, monkeypatch):
    with FakeHub() as server:
        server.stand_in(monkeypatch, tmp_path / "hub")
        server.publish("o/n", write_own(tmp_path / "own", trace=trace), commit=REVISION)
        for trust in (False, True):
            checkpoints(model_of(CheckpointSource(repo="o/n", revision=REVISION), trust=trust), (16,))
            assert len(server.gets("modeling_own.py")) == int(trust)
    assert not trace.exists()


def test_a_checkpoint_without_code_of_its_own_is_refused(tmp_path):
    write_colbertv2(tmp_path, dim=16)
    assert "config.json names no code of the checkpoint's own (auto_map.AutoModel)" in refusal(at(tmp_path))


def test_code_that_auto_map_names_and_nobody_fetched_is_refused(tmp_path, trace):
    folder = write_own(tmp_path / "own", trace=trace)
    for path in folder.glob("*.py"):
        path.unlink()
    assert f"got no Python file in {folder}, wanted modeling_own.OwnModel" in refusal(at(folder))


def changed(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return at(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"), "missing encoder.layer.1.output.dense.bias"),
        (lambda t: t.update({"bert.extra.weight": torch.ones(1)}), "unexpected bert.extra.weight"),
        (
            lambda t: t.update({"bert.embeddings.LayerNorm.bias": torch.ones(3)}),
            "mis-shaped embeddings.LayerNorm.bias is (3,), wanted (24,)",
        ),
    ],
)
def test_every_tensor_is_accounted_for_by_own_code_too(tmp_path, trace, change, complaint):
    source = changed(write_own(tmp_path / "own", trace=trace), change)
    assert refusal(source).endswith(f"the checkpoint does not fit its own code: {complaint}")


@pytest.mark.parametrize(
    ("modeling", "complaint"),
    [
        (MODELING + "\nimport a_package_that_nobody_has\n", "a_package_that_nobody_has"),
        (MODELING + "\nraise RuntimeError('two\\nlines')\n", "RuntimeError: two lines"),
        (MODELING.replace("return out", "return out.last_hidden_state"), "has no attribute 'last_hidden_state'"),
        (
            MODELING.replace("return out", "out.last_hidden_state = out.last_hidden_state[:, 0]\n        return out"),
            "last_hidden_state is (1, 24), wanted (1, 2, hidden size) for two tokens",
        ),
    ],
)
def test_code_that_fails_is_one_line(tmp_path, trace, modeling, complaint):
    message = refusal(at(write_own(tmp_path / "own", trace=trace, modeling=modeling)))
    assert "the checkpoint's own code fails (" in message
    assert complaint in message
    assert message.endswith("leave model.trust_remote_code out to use the native class, if there is one")


def test_settings_that_cannot_reach_own_code_are_refused(tmp_path, trace):
    source = at(write_own(tmp_path / "own", trace=trace))
    assert "model.rope_theta and model.adapter do not apply to the checkpoint's own code" in refusal(
        source, rope_theta=20_000.0
    )
    assert "got skiplist=stanford for pooling mean" in refusal(source, pooling="mean", skiplist="stanford")
    assert not trace.exists()


def test_dims_with_other_code_run_apart(tmp_path, trace):
    """Equal weights under other code are another model."""
    one = write_own(tmp_path / "one", trace=trace, dim=16)
    other = write_own(tmp_path / "other", trace=trace, dim=8, modeling=f"{MODELING}\n# another\n")
    same = write_own(tmp_path / "same", trace=trace, dim=12)
    model = model_of(at(one), trust=True)
    sources = {"16": at(one), "12": at(same), "8": at(other)}
    model = type(model)(**{**vars(model), "checkpoints": sources})
    encoders = load_encoders(model, checkpoints(model, (16, 12, 8)), device=torch.device("cpu"))
    assert [tuple(encoder.heads) for encoder in encoders] == [(16, 12), (8,)]
