"""What a plan forecasts, and from what: never another corpus' counts, and never a number without a basis."""

import json

import pytest
from report_material import cell

from evalkit.config.compose import compose
from evalkit.operations import forecast
from evalkit.report import plans

DOCUMENT = {"max_tokens": 300, "marker": "[DocumentMarker]", "expansion": False, "attend_to_expansion": False}


def known(**changes):
    """A finished run of the demo: 1,000 documents with 100 vectors each."""
    protocol = {"document": DOCUMENT, "skiplist": "stanford", "dtype": "float32", "corpus": "of the small one"}
    values = {"model": "demo", "dim": 64, "dataset": "demo", "protocol": protocol}
    counts = {"documents": 1000, "document_vectors": 100_000, "queries": 200}
    return cell(**{**values, "counts": counts, **changes})


def planned(tmp_path, *words, runs):
    config = compose(["model=demo", "dim=64", *words, f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"])
    (found,) = forecast.look(config, runs)
    return found


def test_a_larger_corpus_is_sized_by_vectors_a_document_and_not_by_the_smaller_ones_count(tmp_path):
    found = planned(tmp_path, "dataset.demo.documents=20000", runs=[known()])
    assert found.vectors.value == 2_000_000
    assert found.vectors.basis == f"estimated from 100 a document in {known().run_id}"
    assert found.missing_bytes == 2_000_000 * 64 * 2
    assert "256.0 MB" in " ".join(plans.plan_table([found]).lines())


def test_a_run_that_cut_its_documents_elsewhere_is_no_basis(tmp_path):
    found = planned(tmp_path, "model.document.max_tokens=20", runs=[known()])
    assert found.vectors.value is None


def test_a_folder_that_is_not_surveyed_has_no_counts_of_another_folder(tmp_path):
    folder = tmp_path / "own"
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", ["d"]), ("queries", ["q"])):
        lines = [json.dumps({"_id": each, "text": each}) for each in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n", encoding="utf-8")
    words = ("dataset=folder", f"dataset.path={folder}")
    name = planned(tmp_path, *words, runs=[]).config.dataset.name
    found = planned(tmp_path, *words, runs=[known(dataset=name)])
    assert (found.documents, found.vectors.value, found.missing_bytes) == (None, None, None)
    assert found.vectors.basis == "unknown until a run has surveyed the corpus"


def test_a_time_that_is_not_known_says_what_would_tell_it(tmp_path):
    found = planned(tmp_path, runs=[])
    assert found.seconds.value is None
    (line,) = [line for line in plans.plan_lines([found]) if line.startswith("time")]
    assert "no run of this system was made on this machine" in line
    assert "evalkit run model=demo dim=64 dataset=demo gives a rate" in line


@pytest.mark.parametrize(("free", "said"), [(2_559_000_000, True), (2_561_000_000, False)])
def test_embeddings_that_take_much_of_the_disk_come_with_the_way_to_keep_none(tmp_path, monkeypatch, free, said):
    """256 MB of embeddings are more than a tenth of 2,559 MB and less than a tenth of 2,561 MB."""
    monkeypatch.setattr(plans, "free_bytes", lambda _folder: free)
    found = planned(tmp_path, "dataset.demo.documents=20000", runs=[known()])
    (line,) = [line for line in plans.plan_lines([found]) if line.startswith("disk")]
    assert ("store.keep=topk writes none of them" in line) == said
