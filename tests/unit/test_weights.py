"""Which weights a run had: each proof alone, what disproves it, and that no table or export is fooled."""

import csv
import dataclasses
import io
import json

import pytest
import yaml
from checkpoints import REVISION, publish, write_colbert_xm, write_jina_checkpoint, write_mdpr
from report_material import cell, late, published_weights, put
from typer.testing import CliRunner

from evalkit.analysis import comparability, replay
from evalkit.cli import app
from evalkit.config.compose import compose
from evalkit.config.settings import CheckpointSource, configs_dir
from evalkit.models import weights
from evalkit.models.backbones.native import count_parameters, read_tensors
from evalkit.models.checkpoint import resolve
from evalkit.report import build, verbs
from evalkit.report.verdicts import lines
from evalkit.run import published_vectors
from evalkit.storage import seal
from evalkit.types import Dataset

PUBLISHED = "published with jinaai/jina-colbert-v2@4cf816e5"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Stand in for the packaged configs: one system, `fixture`, with these facts of its weights."""

    def package(*, parameters=None, **source):
        folder = tmp_path / f"configs{len(list(tmp_path.iterdir()))}"
        (folder / "model").mkdir(parents=True)
        values = {"name": "fixture", "checkpoints": {"8": source}, "parameters": parameters}
        (folder / "model" / "fixture.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        monkeypatch.setattr(weights, "configs_dir", lambda: folder)

    return package


def small(folder):
    return write_jina_checkpoint(folder, dim=8)


def run_of(checkpoint, *, vectors_reproduced=False, **changes):
    """A run of `fixture` that recorded this checkpoint as the pipeline does."""
    facts = weights.record(
        "fixture",
        8,
        checkpoint,
        parameters=count_parameters(checkpoint, adapter=None),
        vectors_reproduced=vectors_reproduced,
    )
    facts |= changes
    assert json.loads(json.dumps(facts)) == facts
    protocol = {**cell().protocol, "checkpoint": dict(checkpoint.checksums)}
    return cell(model="fixture", dim=8, protocol=protocol, environment={"checkpoint": facts})


def test_a_copy_is_proved_by_the_checksums_that_the_packaged_config_names(tmp_path, package):
    checkpoint = resolve(CheckpointSource(path=str(small(tmp_path / "copy"))))
    package(repo="o/n", checksums=checkpoint.checksums)
    found = run_of(checkpoint)
    assert found.environment["checkpoint"]["proof"] == "checksums"
    assert weights.differing(found) == ()
    before_proofs = run_of(checkpoint, proof=None, parameters=None)
    assert weights.differing(before_proofs) == ()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_one_file_with_another_checksum_is_another_model(tmp_path, package, name):
    checkpoint = resolve(CheckpointSource(path=str(small(tmp_path / "copy"))))
    package(repo="o/n", checksums={**checkpoint.checksums, name: "0" * 32})
    found = run_of(checkpoint)
    assert found.environment["checkpoint"]["proof"] is None
    checksum = checkpoint.checksums["model.safetensors"][:8]
    assert weights.differing(found) == (
        f"weights are folder copy (model.safetensors xxh3 {checksum}…), published with o/n",
    )


def test_a_repository_is_proved_by_the_blobs_of_its_own_cache(cache, package):
    publish(cache, "o/n", small)
    package(repo="o/n", revision=REVISION)
    checkpoint = resolve(CheckpointSource(repo="o/n", revision=REVISION))
    assert checkpoint.addressed == {"config.json", "tokenizer.json", "model.safetensors"}
    found = run_of(checkpoint)
    assert found.environment["checkpoint"]["proof"] == "repository"
    assert "addressed" not in found.environment["checkpoint"]
    assert weights.differing(found) == ()
    package(repo="o/n")  # no commit is known: any commit of the repository is taken
    assert weights.differing(run_of(checkpoint)) == ()


@pytest.mark.parametrize("source", [{"repo": "o/n", "revision": "f" * 40}, {"repo": "o/other", "revision": REVISION}])
def test_another_commit_or_repository_is_not_the_published_one(cache, package, source):
    publish(cache, "o/n", small)
    package(**source)
    checkpoint = resolve(CheckpointSource(repo="o/n", revision=REVISION))
    found = run_of(checkpoint)
    assert found.environment["checkpoint"]["proof"] is None
    (line,) = weights.differing(found)
    assert line.startswith(f"weights are o/n@{REVISION[:8]} (model.safetensors xxh3 ")
    assert line.endswith(f", published with {source['repo']}@{source['revision'][:8]}")
    assert weights.differing(run_of(checkpoint, proof="repository")) == (line,)  # nor is it by saying so


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_plain_file_in_a_snapshot_proves_nothing(cache, package, name):
    snapshot = publish(cache, "o/n", small)
    content = (snapshot / name).read_bytes()
    (snapshot / name).unlink()
    (snapshot / name).write_bytes(content)
    package(repo="o/n", revision=REVISION)
    found = run_of(resolve(CheckpointSource(repo="o/n", revision=REVISION)))
    assert found.environment["checkpoint"]["proof"] is None
    (line,) = weights.differing(found)
    assert line.endswith(f", published with o/n@{REVISION[:8]}; nothing proves that its files are that commit's")


def test_a_link_to_another_repositorys_blob_proves_nothing(cache, package):
    snapshot, other = publish(cache, "o/n", small), publish(cache, "o/m", small)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to((other / "model.safetensors").resolve())
    package(repo="o/n", revision=REVISION)
    checkpoint = resolve(CheckpointSource(repo="o/n", revision=REVISION))
    assert checkpoint.addressed == {"config.json", "tokenizer.json"}
    assert run_of(checkpoint).environment["checkpoint"]["proof"] is None


def test_the_folder_of_a_snapshot_given_by_path_is_a_folder(cache, package):
    snapshot = publish(cache, "o/n", small)
    package(repo="o/n", revision=REVISION)
    assert run_of(resolve(CheckpointSource(path=str(snapshot)))).environment["checkpoint"]["proof"] is None


def test_a_repositorys_weights_are_refused_where_their_checksum_is_known_to_be_another(cache, package):
    publish(cache, "o/n", small)
    checkpoint = resolve(CheckpointSource(repo="o/n", revision=REVISION))
    package(repo="o/n", checksums={**checkpoint.checksums, "model.safetensors": "0" * 32})
    (line,) = weights.differing(run_of(checkpoint))
    assert line.endswith("published with o/n")
    package(repo="o/n", checksums={**checkpoint.checksums, "config.json": "0" * 32})  # laid out otherwise
    assert weights.differing(run_of(checkpoint)) == ()


def test_vectors_prove_a_copy_whose_checksums_nobody_knows(tmp_path, package):
    checkpoint = resolve(CheckpointSource(path=str(small(tmp_path / "copy"))))
    package(repo="o/n", revision=REVISION)
    found = run_of(checkpoint, vectors_reproduced=True)
    assert found.environment["checkpoint"]["proof"] == "vectors"
    assert weights.differing(found) == ()
    assert weights.differing(run_of(checkpoint)) != ()


def test_a_proof_of_other_files_than_the_run_id_names_is_none(tmp_path, package):
    checkpoint = resolve(CheckpointSource(path=str(small(tmp_path / "copy"))))
    package(repo="o/n", revision=REVISION)
    others = {**checkpoint.checksums, "model.safetensors": "0" * 32}
    assert weights.differing(run_of(checkpoint, vectors_reproduced=True, checksums=others)) != ()


@pytest.mark.parametrize(("parameters", "good"), [(1000, True), (1010, True), (991, True), (1011, False), (989, False)])
def test_a_count_is_held_to_the_published_one_within_a_hundredth(tmp_path, package, parameters, good):
    """1000 parameters were published: with 1% more or less it may be the same model, counted otherwise."""
    checkpoint = resolve(CheckpointSource(path=str(small(tmp_path / "copy"))))
    package(repo="o/n", revision=REVISION, parameters=1000)
    found = weights.differing(run_of(checkpoint, vectors_reproduced=True, parameters=parameters))
    assert (found == ()) == good
    if not good:
        assert f" of {parameters:,} parameters, published with o/n@{REVISION[:8]} of 1,000" in found[0]


def test_a_dim_that_nobody_published_has_no_published_weights(tmp_path, package):
    package(repo="o/n")
    found = dataclasses.replace(run_of(resolve(CheckpointSource(path=str(small(tmp_path / "copy"))))), dim=16)
    assert weights.differing(found)[0].endswith(", published with none at dim 16")


def test_bm25_has_no_weights_and_a_system_of_ones_own_is_compared_with_nothing():
    assert weights.differing(cell()) == ()
    assert weights.differing(cell(model="mine", dim=8, protocol={"checkpoint": {"model.safetensors": "1"}})) == ()
    (line,) = weights.differing(cell(dim=8, protocol={"checkpoint": {"model.safetensors": "1" * 32}}))
    assert line == "weights are unknown (model.safetensors xxh3 11111111…), published with none"


def test_parameters_are_the_floats_of_the_file_by_one_adapter(tmp_path):
    from safetensors.torch import load_file

    for name in ("xm", "mdpr"):
        (tmp_path / name).mkdir()
    xm = resolve(CheckpointSource(path=str(write_colbert_xm(tmp_path / "xm", dim=16))))
    tensors = load_file(xm.folder / "model.safetensors")
    german = sum(value.numel() for name, value in tensors.items() if ".adapter_modules.de_DE." in name)
    adapters = sum(value.numel() for name, value in tensors.items() if ".adapter_modules." in name)
    rest = sum(value.numel() for name, value in tensors.items() if value.is_floating_point()) - adapters
    assert 0 < german < adapters
    assert count_parameters(xm, adapter="de_DE") == rest + german
    pickled = resolve(CheckpointSource(path=str(write_mdpr(tmp_path / "mdpr"))), allow_pickle=True)
    floats = [value for value in read_tensors(pickled).values() if value.is_floating_point()]
    assert count_parameters(pickled, adapter=None) == sum(value.numel() for value in floats)
    assert count_parameters(resolve(compose(["model=demo"]).model.checkpoints["128"]), adapter=None) == 755_712


def test_jina_colbert_v2s_count_follows_from_its_shapes():
    hidden, inner, layers, vocabulary = 1024, 4096, 24, published_vectors.packaged()[0].vocabulary

    def linear(rows, columns):
        return rows * columns + rows

    layer = linear(3 * hidden, hidden) + linear(hidden, hidden) + linear(inner, hidden) + linear(hidden, inner)
    embeddings = vocabulary * hidden + hidden + 2 * hidden
    backbone = embeddings + layers * (layer + 4 * hidden) + linear(hidden, hidden)  # the pooler
    assert (backbone, 128 * hidden) == (559_366_144, 131_072)
    assert compose(["model=jina-colbert-v2"]).model.parameters == backbone + 128 * hidden == 559_497_216


@pytest.mark.parametrize("path", sorted((configs_dir() / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_checksums_of_a_config_are_those_of_the_files_that_it_installs(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for source in values.get("checkpoints", {}).values():
        if "checksums" in source:
            pytest.importorskip(source["package"].partition(":")[0], reason="the package with the weights")
            assert resolve(CheckpointSource(**source)).checksums == source["checksums"]


def unproved(**changes):
    """A run under jina-colbert-v2's name with other weights in the pinned snapshot, on the card's own dataset."""
    facts = {**published_weights(128), "proof": None, "checksums": {"model.safetensors": "deadbeef0"}}
    protocol = {**late().protocol, "checkpoint": facts["checksums"]}
    return late(value=0.05468, protocol=protocol, environment={**late().environment, "checkpoint": facts}, **changes)


def deviating():
    return late(value=0.05468, deviations=("dataset beir/nfcorpus: got 10 documents, wanted 3,633",))


def other_setting():
    return late(value=0.05468, query_tokens=16)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (unproved, "weights are jinaai/jina-colbert-v2@4cf816e5 (model.safetensors xxh3 deadbeef…), " + PUBLISHED),
        (deviating, "dataset beir/nfcorpus: got 10 documents, wanted 3,633"),
        (other_setting, "query.max_tokens is 16, published with 32"),
    ],
)
def test_a_run_that_differs_is_listed_and_enters_no_table_of_the_card(tmp_path, run, reason):
    put(tmp_path, run())
    put(tmp_path, cell())
    made = build.build(tmp_path)
    text = {name: data.decode() for name, data in made.files.items()}
    assert f"PROTOCOL-DIFFERS: {reason}" in text["tables/runs.md"]
    assert f'<div class="note">{reason}' in text["site/index.html"]
    assert [name for name in text if "jina-colbert-v2" in name] == []
    assert "tables/model-index/bm25.yaml" in text
    assert made.unwaived == made.problems == ()
    assert "0 of 57 cells of jina-colbert-v2 measured." in text["site/index.html"]
    assert "1 was measured and 1 holds: bm25 on beir/nfcorpus" in text["site/index.html"]
    assert "1 more was run under another protocol" not in text["site/index.html"]
    assert "0.05468" not in text["tables/beir.md"] + text["tables/matryoshka.md"]
    assert "1 of 13" not in text["tables/leaderboard.md"].partition("jina-colbert-v2:128")[2].partition("\n")[0]
    rows = list(csv.DictReader(io.StringIO(text["tables/cells.csv"])))
    verdicts = {row["verdict"] for row in rows if row["system"] == "jina-colbert-v2"}
    assert verdicts == {"NOT-RUN"}
    assert "jina-colbert-v2" not in text["tables/dims.md"]


def test_other_weights_take_no_cell_from_the_run_with_the_published_ones(tmp_path):
    put(tmp_path, late())
    put(tmp_path, unproved())
    made = build.build(tmp_path)
    assert made.problems == ()
    labels = [(row.cell.metrics["ndcg@10"], row.verdict.label) for row in made.rows]
    ours = [label for value, label in labels if value == 0.346]
    assert {label for value, label in labels if value == 0.05468} == {"PROTOCOL-DIFFERS"}
    assert ours.count("MATCH") == 1  # the card's; jina-reranker-v3 published another protocol
    assert "0.346 → 0.34600 MATCH" in made.files["tables/beir.md"].decode()
    assert "value: 0.346" in made.files["tables/model-index/jina-colbert-v2-128.yaml"].decode()


def test_a_rerun_of_other_weights_measures_no_deviation(tmp_path):
    put(tmp_path, unproved())
    put(tmp_path / "reruns" / "again", unproved())
    (problem,) = build.build(tmp_path).problems
    assert "got a cell that is not in the tables" in problem


def test_a_replay_and_a_comparison_tell_the_other_weights(tmp_path):
    put(tmp_path, unproved())
    material = replay.load(tmp_path, unproved())
    reproductions = replay.reproductions(material, replay.replay(material, "ndcg@10"), "ndcg@10")
    (reproduction,) = [one for one in reproductions if one.score.source == "card"]
    assert reproduction.verdict.label == "PROTOCOL-DIFFERS"
    assert reproduction.verdict.differs[0].startswith(
        "weights are jinaai/jina-colbert-v2@4cf816e5 (model.safetensors xxh3"
    )
    assert (verbs.system(unproved()), verbs.system(late())) == ("jina-colbert-v2:128 (deviates)", "jina-colbert-v2:128")


def test_a_run_is_exported_where_it_is_measured_as_one_of_its_publishers_did():
    """On ArguAna the card kept the query's own id and Anserini dropped it: either is somebody's protocol."""
    arguana = cell(dataset="beir/arguana", metrics={"ndcg@10": 0.4142}, protocol={**cell().protocol, "corpus": "1"})
    assert comparability.representative([arguana, other_setting()]) == (arguana,)


def edit(folder, **changes):
    (path,) = folder.rglob("scores.json")
    values = seal.read(path.read_bytes())
    path.write_text(json.dumps(seal.seal(values | changes)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": {**late().protocol, "query": {**late(query_tokens=32).protocol["query"]}}},
        {"split": "dev"},
        {"model": "colbertv2"},
        {"dim": 64},
        {"dataset": "beir/fiqa"},
    ],
    ids=["protocol", "split", "model", "dim", "dataset"],
)
def test_an_edited_run_is_named_by_its_file_and_left_out(tmp_path, changes):
    """A run with queries of 16 tokens whose protocol was changed to the published 32, and so on."""
    put(tmp_path, late(query_tokens=16))
    path = edit(tmp_path, **changes)
    put(tmp_path, cell())
    done = CliRunner().invoke(app, ["report", "--results-dir", str(tmp_path)])
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"evalkit: {path}: run_id is {late(query_tokens=16).run_id}, wanted ")
    assert "stated here: one of them was changed since the cell was computed; delete it and run the cell again" in line
    assert "jina" not in done.stdout
    assert not list((tmp_path / "tables").rglob("*jina*"))


def test_a_run_file_is_judged_by_what_is_declared_of_it():
    dataset = Dataset(
        name="beir/nfcorpus",
        source="fixture",
        split="test",
        language="en",
        main_metric="ndcg@10",
        drop_self=True,
        corpus=None,
        queries=(),
        qrels={},
        query_groups={},
    )

    def said(*words):
        config = compose(["model=jina-colbert-v2", "dim=128", "dataset=beir/nfcorpus", *words])
        (line,) = [line for line in lines(config, dataset, {"ndcg@10": 0.346}) if "(card " in line]
        return line

    assert said().startswith("ndcg@10\tMATCH (card 0.346 for jina-colbert-v2:128")
    assert f"PROTOCOL-DIFFERS: weights are /other, {PUBLISHED} (" in said("model.checkpoints.128.path=/other")
    reranker = "jina-reranker-v2-base-multilingual"
    assert f"PROTOCOL-DIFFERS: re-ranked by {reranker}, published without (" in said(f"reranker={reranker}")
