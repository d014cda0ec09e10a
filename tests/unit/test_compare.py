"""Runs side by side: differences, their sampling error, what is stored, and the plot."""

import re

import numpy as np
import pytest
import torch
from report_material import cell, late, put
from scipy.stats import ttest_rel

from evalkit.analysis import compare
from evalkit.analysis.precision import Narrowed, narrowed
from evalkit.errors import ConfigError, ScoreError
from evalkit.report import build, pareto, table, verbs


def noisy(shift, *, seed, queries=40):
    generator = np.random.default_rng(seed)
    base = np.random.default_rng(0).uniform(0.2, 0.6, queries)
    return {f"q{place}": float(value) for place, value in enumerate(base + generator.normal(shift, 0.02, queries))}


@pytest.fixture
def folder(tmp_path):
    for dim, shift in ((128, 0.0), (96, 0.001), (64, -0.05)):
        put(tmp_path, late(dim=dim), per_query=noisy(shift, seed=dim))
    return tmp_path


def cells():
    return [late(dim=dim) for dim in (128, 96, 64)]


def test_a_difference_has_its_p_value_and_its_interval(folder):
    level, worse = compare.compare(cells(), folder)
    assert (level.base.dim, level.other.dim, worse.other.dim) == (128, 96, 64)
    before, after = noisy(0.0, seed=128), noisy(-0.05, seed=64)
    assert worse.p == pytest.approx(ttest_rel(list(after.values()), list(before.values())).pvalue)
    assert worse.delta == pytest.approx(np.mean(list(after.values())) - np.mean(list(before.values())))
    assert worse.interval[0] < worse.delta < worse.interval[1] < 0
    assert level.interval[0] < 0 < level.interval[1]
    assert (worse.queries, worse.wins + worse.losses) == (40, 40)
    assert compare.compare(cells(), folder)[1].interval == worse.interval


def test_holm_corrects_over_every_comparison_of_the_table(folder):
    for dim in (128, 64):
        put(folder, late(dim=dim, dataset="beir/fiqa"), per_query=noisy(dim / 1e5, seed=dim))
    both = [*cells(), *(late(dim=dim, dataset="beir/fiqa") for dim in (128, 64))]
    found = compare.compare(both, folder)
    assert [(one.dataset, one.other.dim) for one in found] == [
        ("beir/nfcorpus", 96),
        ("beir/nfcorpus", 64),
        ("beir/fiqa", 64),
    ]
    # By hand: the least p three times, the next twice, the last once, none below the one before it.
    least, middle, last = sorted(found, key=lambda one: one.p)
    assert (least.p_holm, middle.p_holm) == (3 * least.p, max(3 * least.p, 2 * middle.p))
    assert last.p_holm == max(middle.p_holm, last.p)
    assert verbs.family_line(found) == "p (Holm): corrected over all 3 comparisons of this table"
    assert verbs.family_line(found[:1]) == "p (Holm): corrected over the one comparison of this table"


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        # Holm (1979) by hand: .005 × 4, .01 × 3, .03 × 2, and .04 × 1 raised to the .06 before it.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.5, 0.9], [1.0, 1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.3], [0.3]),
        ([], []),
    ],
)
def test_holm_gives_what_is_computed_by_hand(p_values, corrected):
    assert compare.holm(p_values) == pytest.approx(corrected)


def test_holm_rejects_what_its_step_down_rule_rejects():
    """The rule as Holm wrote it: from the least p on, reject while p <= alpha / (hypotheses left)."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        p_values = (generator.random(generator.integers(1, 9)) ** 3).tolist()
        rejected = set()
        for place, index in enumerate(np.argsort(p_values)):
            if p_values[index] > 0.05 / (len(p_values) - place):
                break
            rejected.add(int(index))
        assert {index for index, p in enumerate(compare.holm(p_values)) if p <= 0.05} == rejected


def test_a_single_query_proves_nothing_and_a_constant_difference_everything():
    assert compare.paired_p([0.1], [0.9]) == 1.0
    assert compare.paired_p([0.5, 0.25], [0.75, 0.5]) == 0.0


def test_runs_on_different_queries_are_not_compared(folder):
    put(folder, late(dim=64), per_query={"other": 0.1})
    with pytest.raises(ScoreError, match="41 queries are in one only; wanted the same judged queries"):
        compare.compare([late(dim=128), late(dim=64)], folder)


def test_one_run_alone_has_nothing_beside_it(folder):
    with pytest.raises(ScoreError, match="wanted two or more on one dataset"):
        compare.compare([late()], folder)


def test_a_metric_that_was_not_measured_is_named(folder):
    with pytest.raises(ScoreError, match=r"metric 'ndcg@20' was not measured; did you mean ndcg@10"):
        compare.compare(cells(), folder, metric="ndcg@20")
    with pytest.raises(ScoreError, match="metric 'map' was not measured"):
        compare.measured(late(), "map")
    assert compare.measured(late(), None) == "ndcg@10"


def test_runs_are_chosen_by_id_system_or_dataset():
    known = [cell(), *cells()]
    assert [one.dim for one in compare.choose(known, ["jina-colbert-v2"])] == [128, 96, 64]
    assert [one.model for one in compare.choose(known, ["bm25", "jina-colbert-v2-64"])] == ["bm25", "jina-colbert-v2"]
    assert len(compare.choose(known, [])) == len(compare.choose(known, ["beir/nfcorpus"])) == 4
    assert compare.one(known, "jina-colbert-v2-96").dim == 96
    with pytest.raises(ScoreError, match=r"cell 'bm26' unknown; .*evalkit ls runs"):
        compare.choose(known, ["bm26"])
    with pytest.raises(ScoreError, match="cell 'jina-colbert-v2' names 3: "):
        compare.one(known, "jina-colbert-v2")


def test_a_name_that_a_system_shares_with_a_dataset_is_the_systems():
    known = [cell(dataset="demo"), cell(model="demo", dim=64, dataset="demo")]
    assert [one.model for one in compare.choose(known, ["demo"])] == ["demo"]
    assert [one.model for one in compare.choose(known, ["dataset=demo"])] == ["bm25", "demo"]


def test_storage_is_counted_in_bytes_of_what_is_stored():
    assert compare.storage(late(dim=96)) == (192, 19200.0, 192000)
    assert compare.storage(cell()) is None
    uncounted = late(dim=64)
    assert compare.storage(cell(dim=64, protocol=uncounted.protocol)) == (128, None, None)
    wide = late(protocol={**uncounted.protocol, "stored_dtype": "float32"})
    assert compare.storage(wide).per_vector == 512


def test_the_plot_is_the_same_bytes_each_time(tmp_path):
    for name in ("one.svg", "two.svg", "plot.png"):
        pareto.draw(cells(), tmp_path / name)
    text = (tmp_path / "one.svg").read_bytes()
    assert text == (tmp_path / "two.svg").read_bytes()
    assert b"<svg" in text
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_starts_at_zero_and_says_what_its_marks_mean(tmp_path):
    found = cells()
    pareto.draw(found, tmp_path / "plot.svg", intervals={run.run_id: (0.3, 0.4) for run in found})
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    written = re.findall(r"<!-- (.*?) -->", text)  # each text of the drawing, as matplotlib notes it
    assert {"no other is smaller and better", "another is", "95 % over queries"} <= set(written)
    assert any("quality against storage" in one for one in written)
    assert "0.00" in written or "0.0" in written


def test_a_narrower_storage_stands_beside_the_run_in_the_plot():
    run = late(dim=64)
    same = Narrowed("float16", 128, 0.346, 0.0, (0.0, 0.0), 1.0)
    int8 = Narrowed("int8", 66, 0.345, -0.001, (-0.002, 0.0), 0.2)
    found = pareto.points([run, cell()], intervals={run.run_id: (0.3, 0.4)}, narrowed={run.run_id: [same, int8]})
    assert found == {
        ("beir/nfcorpus", "ndcg@10"): [
            (12.8, 0.346, "jina-colbert-v2:64", (0.3, 0.4), ("float16", 1)),
            (6.6, 0.345, "jina-colbert-v2:64 int8", None, ("int8", 1)),
        ]
    }


def test_cells_of_two_main_metrics_share_no_axis(tmp_path):
    """One system's cells on a dataset can differ in `dataset.main_metric`."""
    by_mrr = late(dim=64, dataset="mine", main_metric="mrr@10")  # .5
    cells = [late(dataset="mine"), late(dim=96, dataset="mine", value=0.3), by_mrr]
    found = pareto.points(cells, intervals={}, narrowed={})
    assert {key: [point.quality for point in panel] for key, panel in found.items()} == {
        ("mine", "mrr@10"): [0.5],
        ("mine", "ndcg@10"): [0.346, 0.3],
    }
    for one in cells:
        put(tmp_path, one)
    page = build.build(tmp_path).files["site/index.html"].decode()
    (drawn,) = re.findall(r'aria-label="Measured: jina-colbert-v2 on mine: ([^"]*)"', page)
    assert drawn == "dim 96, 19.2 kB per passage, 0.30000; dim 128, 25.6 kB per passage, 0.34600"
    pareto.draw(cells, tmp_path / "plot.svg")
    written = re.findall(r"<!-- (.*?) -->", (tmp_path / "plot.svg").read_text(encoding="utf-8"))
    assert {"ndcg@10", "mrr@10"} <= set(written)


def test_labels_of_points_that_lie_close_cover_neither_each_other_nor_a_point():
    from matplotlib import pyplot as plt

    close = [
        pareto.Point(x, y, f"jina-colbert-v2-{x:g}", None)
        for x, y in ((12, 0.346), (12.2, 0.3461), (12.4, 0.346), (6, 0.345), (6.1, 0.3449), (25, 0.3462), (1, 0.34))
    ]
    figure, axis = plt.subplots(figsize=(4.6, 3.6))
    try:
        axis.scatter([point.kilobytes for point in close], [point.quality for point in close])
        axis.set_xlim(left=0)
        boxes = [text.get_window_extent() for text in pareto.label(axis, close)]
        marks = axis.transData.transform([(point.kilobytes, point.quality) for point in close])
    finally:
        plt.close(figure)
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * len(close)  # itself
    assert not any(box.contains(*mark) for box in boxes for mark in marks)


def test_a_plot_needs_vectors_and_a_known_format(tmp_path):
    with pytest.raises(ConfigError, match=r"got format '\.gif', wanted one of \.svg, \.png, \.pdf"):
        pareto.draw(cells(), tmp_path / "plot.gif")
    with pytest.raises(ScoreError, match="got no cell with a count of its vectors"):
        pareto.draw([cell()], tmp_path / "plot.svg")


def test_int8_is_off_by_at_most_half_a_step_and_its_scale():
    vectors_XD = torch.nn.functional.normalize(torch.randn(50, 64, generator=torch.Generator().manual_seed(1)))
    off = (narrowed(vectors_XD, "int8") - vectors_XD).abs()
    step_X1 = vectors_XD.abs().amax(dim=1, keepdim=True) / 127
    assert bool((off <= 0.5 * step_X1 + vectors_XD.abs() * 2**-10).all())
    assert torch.equal(narrowed(torch.zeros(1, 3), "int8"), torch.zeros(1, 3))
    assert torch.equal(narrowed(vectors_XD.half(), "float16"), vectors_XD.half())


def test_the_paired_test_is_ranxs_students_test():
    from ranx.statistical_tests import paired_student_t_test

    base, other = list(noisy(0.0, seed=1).values()), list(noisy(0.01, seed=2).values())
    assert compare.paired_p(base, other) == pytest.approx(float(paired_student_t_test(base, other)[0]), rel=1e-12)


def test_a_normal_interval_is_near_the_bootstraps():
    values = list(noisy(0.0, seed=1, queries=400).values())
    assert compare.normal_interval(values) == pytest.approx(compare.bootstrap_interval(values), abs=0.002)


def test_where_nothing_was_run_yet_the_command_to_run_is_named(tmp_path):
    for words in ([], ["demo-64"]):
        with pytest.raises(ScoreError, match=r"^got no finished cell; run one first, for example: evalkit run "):
            compare.choose([], words)


def test_runs_of_a_sweep_over_a_setting_are_told_apart_by_it_in_every_table(tmp_path):
    swept = [cell(protocol={**cell().protocol, "k1": k1}) for k1 in (0.8, 0.9)]
    for place, one in enumerate(swept):
        put(tmp_path, one, per_query=noisy(0.0, seed=place))

    def notes(made):
        return list(dict.fromkeys((row.cells[0], *row.notes[:1]) for row in made.rows))

    labels = [("bm25", "k1=0.8"), ("bm25", "k1=0.9")]
    assert notes(verbs.comparison_table(compare.compare(swept, tmp_path))) == labels
    assert notes(verbs.costs_table(swept)) == labels
    assert notes(table.terminal(table.rows(swept))) == labels
    alone = "".join(table.terminal(table.rows([swept[0], late()])).lines())
    assert "bm25 " in alone
    assert "k1=" not in alone
