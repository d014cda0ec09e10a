"""Smaller forms of stored vectors: what they keep, how large they are, and what a search of them must not change."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from report_material import late, put
from rich.console import Console

from evalkit.analysis import precision
from evalkit.analysis.compressed import FACTORS, WIDTHS, bytes_per_vector, narrowed, pooled, pooled_count
from evalkit.config.compose import compose
from evalkit.errors import ConfigError, ScoreError
from evalkit.report import pareto, verbs
from evalkit.run import pipeline
from evalkit.storage.shard_files import ShardVectors


def unit_vectors(count, dim, seed=0):
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize(("width", "most"), [("int8", 127), ("int4", 7)])
@given(seed=st.integers(0, 10_000), dim=st.integers(1, 65))
@settings(max_examples=25, deadline=None)
def test_a_code_is_off_by_at_most_half_a_step_and_its_scale(width, most, seed, dim):
    rows_XD = unit_vectors(3, dim, seed)
    off_XD = (narrowed(rows_XD, width) - rows_XD).abs()
    step_X1 = rows_XD.abs().amax(dim=1, keepdim=True) / most
    assert bool((off_XD <= 0.5001 * step_X1 + rows_XD.abs() * 2**-10).all())
    assert torch.equal(narrowed(torch.zeros(1, 3), width), torch.zeros(1, 3))


def test_binary_is_the_sign_of_each_value_at_norm_1():
    rows_XD = unit_vectors(20, 64)
    read_back = narrowed(rows_XD, "binary")
    assert torch.equal(read_back > 0, rows_XD > 0)
    torch.testing.assert_close(read_back.norm(dim=1), torch.ones(20))


def test_what_is_stored_as_it_was_is_unchanged():
    rows_XD = unit_vectors(5, 16).half()
    assert torch.equal(narrowed(rows_XD, "float16"), rows_XD)
    assert torch.equal(narrowed(rows_XD, "float32"), rows_XD.float())


def test_a_vector_of_an_odd_dim_fills_whole_bytes():
    assert [bytes_per_vector(63, width) for width in WIDTHS] == [252, 126, 63 + 2, 32 + 2, 8]


@given(length=st.integers(1, 40), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_pooling_keeps_the_first_vector_and_a_factor_th_of_the_others(length, seed):
    rows_TD = unit_vectors(length, 8, seed)
    for factor, vectors in zip(FACTORS, pooled(rows_TD, FACTORS), strict=True):
        assert len(vectors) == pooled_count(length, factor) == 1 + (length > 1) * max((length - 1) // factor, 1)
        assert torch.equal(vectors[0], rows_TD[0])
        if factor == 1 or length <= 2:
            assert torch.equal(vectors, rows_TD)
        assert float(vectors.norm(dim=1).max()) <= 1 + 1e-6  # a mean of vectors of norm 1


def test_equal_vectors_pool_into_themselves_and_a_mean_can_be_given_norm_1():
    pair = torch.eye(4)[:2]
    rows_TD = torch.cat([torch.eye(4)[3:], pair, pair])
    (vectors,) = pooled(rows_TD, [2])
    assert sorted(map(tuple, vectors[1:].tolist())) == sorted(map(tuple, pair.tolist()))
    (one,) = pooled(rows_TD, [4])
    torch.testing.assert_close(one[1], torch.tensor([0.5, 0.5, 0.0, 0.0]))
    (one,) = pooled(rows_TD, [4], normalized=True)
    torch.testing.assert_close(one[1].norm(), torch.tensor(1.0))


def test_slices_hold_every_document_once_and_no_more_vectors_than_allowed(monkeypatch):
    from evalkit.ragged import ragged

    monkeypatch.setattr(precision, "SLICE_VECTORS", 5)
    lengths = [2, 3, 1, 9, 1, 1]
    stored = ShardVectors(tuple("abcdef"), ragged(unit_vectors(17, 4), torch.tensor(lengths)))
    found = list(precision._slices(stored))
    assert [some.ids for some in found] == [("a", "b"), ("c",), ("d",), ("e", "f")]
    assert torch.equal(torch.cat([some.vectors.rows_XD for some in found]), stored.vectors.rows_XD)
    assert [some.vectors.lengths_N.tolist() for some in found] == [[2, 3], [1], [9], [1, 1]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("int7", None), "--stored-as 'int7' unknown; did you mean int8?"),
        ((None, "0"), r"--pool '0': wanted whole numbers from 1 \(not pooled\) to 16, as in --pool 1,2,4"),
        ((None, "2,1.5"), "--pool '1.5': wanted whole numbers"),
        ((None, "two"), "--pool 'two': wanted whole numbers"),
        ((None, "17"), "--pool '17': wanted whole numbers"),
    ],
)
def test_a_form_that_is_none_is_one_clear_line(words, said):
    with pytest.raises(ConfigError, match=said):
        precision.chosen_forms(*words)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frontier")
    words = ["model=demo", "dataset=demo", "dim=[128,64]", "dataset.demo.documents=60", "dataset.demo.queries=6"]
    config = compose([*words, f"results_dir={folder}/results", f"cache_dir={folder}/cache"])
    return folder / "results", config, pipeline.run(config, console=Console(quiet=True))


def measured(demo, cell, **settings):
    results_dir, config, cells = demo
    config = dataclasses.replace(config, dims=(cell.dim,))
    return precision.measure(config, cell, results_dir, console=Console(quiet=True), base=cells[0], **settings)


def test_the_stored_form_gives_the_run_again_whatever_the_slices(demo, monkeypatch):
    _, _, (base, small) = demo
    monkeypatch.setattr(precision, "SLICE_VECTORS", 700)
    (same,) = measured(demo, base, forms=precision.chosen_forms("float16,float32", "1"))
    assert (same.is_base, same.delta, same.p, same.value) == (True, 0.0, 1.0, base.metrics["ndcg@10"])
    assert same.bytes_per_document == 256 * base.counts["document_vectors"] / 60
    forms = measured(demo, small, forms=precision.chosen_forms("float16,binary", "1,2"))
    assert [(one.factor, one.width, one.bytes_per_vector) for one in forms] == [
        *((1, "float16", 128), (1, "binary", 8), (2, "float16", 128), (2, "binary", 8))
    ]
    assert forms[0].value == small.metrics["ndcg@10"]
    assert not any(one.is_base for one in forms)
    assert forms[0].bytes_per_document > 1.9 * forms[2].bytes_per_document
    whole = precision.corrected([[same], forms])
    assert whole[0] == [same]
    assert [one.p_holm >= one.p for one in whole[1]] == [True] * 4


def test_the_table_of_forms_fits_80_columns_and_marks_the_front(demo):
    _, _, cells = demo
    forms = precision.chosen_forms("float16,binary", "1,4", normalized=True)
    here = {cell.run_id: measured(demo, cell, forms=forms) for cell in cells}
    lines = list(verbs.frontier_table(cells, here).lines(80))
    assert len([line for line in lines if "float16" in line or "binary" in line]) == 8
    assert len(lines) <= 8 + 2  # one line a form, below a header of two at most
    assert max(map(len, lines)) <= 80
    assert "base" in next(line for line in lines if "float16" in line)
    assert any(line.endswith("*") for line in lines)
    said = verbs.frontier_lines(cells[0], normalized=True)
    assert "each cluster's mean given norm 1 again" in " ".join(said)
    assert max(map(len, said)) <= 80


def test_a_base_run_of_other_queries_is_refused(demo):
    results_dir, _, (base, _) = demo
    same_corpus = {**late().protocol, "corpus": base.protocol["corpus"]}
    other = dataclasses.replace(late(dataset="demo", protocol=same_corpus), counts={})
    put(results_dir, other)
    with pytest.raises(ScoreError, match=r"queries are judged in the base cell or here only, wanted the same"):
        precision.measure(
            dataclasses.replace(demo[1], dims=(128,)),
            base,
            results_dir,
            console=Console(quiet=True),
            base=other,
            forms=precision.chosen_forms("float16", "1"),
        )


def test_a_base_run_of_another_corpus_is_refused(demo):
    other = late(dataset="demo")
    with pytest.raises(ScoreError, match=r"differ in corpus \(f3bb\w+, \w+\)"):
        precision.measure(demo[1], demo[2][0], demo[0], console=Console(quiet=True), base=other)


def test_changed_judgements_are_no_loss_by_compression(tmp_path):
    """The forms are scored by the judgements of the stored values, until `run` scores the cell by the new ones."""
    write_folder(tmp_path / "words", relevant="d1")
    words = ["model=demo", "dim=64", "dataset=folder", f"dataset.path={tmp_path}/words", "dataset.language=en"]
    config = compose([*words, f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"])

    def as_stored(cell):
        (form,) = precision.measure(
            config,
            cell,
            tmp_path / "results",
            console=Console(quiet=True),
            forms=precision.chosen_forms("float16", "1"),
        )
        return form.value, form.delta

    (before,) = pipeline.run(config, console=Console(quiet=True))
    assert as_stored(before) == (before.metrics["ndcg@10"], 0.0)
    write_folder(tmp_path / "words", relevant="d2")
    assert as_stored(before) == (before.metrics["ndcg@10"], 0.0)
    (after,) = pipeline.run(config, console=Console(quiet=True))
    assert after.run_id == before.run_id
    assert after.metrics["ndcg@10"] != before.metrics["ndcg@10"]
    assert as_stored(after) == (after.metrics["ndcg@10"], 0.0)
    with pytest.raises(ScoreError, match=r"differ in judgements \(\w+, \w+\)"):
        precision.measure(config, after, tmp_path / "results", console=Console(quiet=True), base=before)


def write_folder(folder, *, relevant):
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    texts = {"d1": "red fox", "d2": "blue whale", "d3": "green tree"}
    lines = [json.dumps({"_id": name, "title": "", "text": text}) for name, text in texts.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "red fox"}', encoding="utf-8")
    judged = f"query-id\tcorpus-id\tscore\nq1\t{relevant}\t1\n"
    (folder / "qrels" / "test.tsv").write_text(judged, encoding="utf-8")


def test_many_forms_are_told_apart_by_shape_and_colour_and_the_stored_run_by_name(tmp_path):
    run = late(dim=128)
    forms = [
        precision.Narrowed(width, 130, 0.30 - 0.001 * factor, factor=factor, bytes_per_document=13_000 / factor)
        for width in ("int8", "int4", "binary")
        for factor in (1, 2, 3, 4, 8)
    ]
    panels = pareto.points([run], intervals={run.run_id: (0.3, 0.4)}, narrowed={run.run_id: forms})
    here = panels["beir/nfcorpus", "ndcg@10"]
    assert [point.form for point in here[:3]] == [("float16", 1), ("int8", 1), ("int8", 2)]
    assert [point.label for point in pareto._labelled(here)] == ["jina-colbert-v2:128"]
    pareto.draw([run], tmp_path / "x.svg", intervals={run.run_id: (0.3, 0.4)}, narrowed={run.run_id: forms})
    written = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert [f"<!-- {name} -->" in written for name in ("binary", "pool 8", "float32")] == [True, True, False]
    assert here[1].kilobytes == pytest.approx(13.0)
    assert math.isnan(precision.Narrowed("int8", 130).p)
