"""What the page is made of: cells counted once, commands, boards, hits and plots."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from report_material import cell, late, put
from test_report import contrast, variables

from evalkit.config.compose import compose
from evalkit.config.settings import DemoSize
from evalkit.datasets.demo import load_demo
from evalkit.report import boards, build, commands, hits, page, plot
from evalkit.report.card import System, card_tables, judge, leaderboard
from evalkit.report.rounding import signed
from evalkit.run.identity import texts_checksum
from evalkit.scoring import published
from evalkit.storage import cell_config, per_query_file, results
from evalkit.types import Hit


@pytest.fixture(scope="module")
def configs():
    return commands.packaged()


# ---- cells


def test_the_card_has_143_cells_57_of_them_its_own_model_s():
    judged = judge([])
    printed = [one for one in judged if one.score.source == "card"]
    answer = boards.answer(judged)
    # BEIR 13 + MS MARCO 1 + MIRACL 18 + mMARCO 13 at dim 128, and 6 at each of 96 and 64; the Matryoshka table prints
    # six of dim 128 again.
    assert len(answer.own) == 13 + 1 + 18 + 13 + 6 + 6 == 57
    assert (len(printed), len(answer.cells), len(answer.others)) == (149, 143, 86)
    (nfcorpus,) = [one for one in answer.own if (one.score.dim, one.score.dataset) == (128, "beir/nfcorpus")]
    assert nfcorpus.score.table == "beir"


def test_a_run_under_another_protocol_is_no_measurement():
    answer = boards.answer(judge([cell(), late(dim=64, query_tokens=16)]))
    assert boards.measured(answer.own) == ()
    assert boards.tally(answer.own) == {"NOT-RUN": 57}
    (bm25,) = boards.measured(answer.others)
    assert (bm25.score.system, bm25.verdict.label, boards.holding(answer.cells)) == ("bm25", "MATCH", 1)


# ---- the leaderboard and the own boards


def bm25_on_beir(change=0.0, count=13):
    """The card's BM25 on BEIR as measured, each value off by so much."""
    found = []
    for score in published.published_scores():
        if (score.source, score.table, score.system) == ("card", "beir", "bm25"):
            protocol = {**cell().protocol, **{k: v for k, v in score.settings.items() if k != "split"}}
            value = {"ndcg@10": score.value + change}
            found.append(cell(dataset=score.dataset, protocol=protocol, metrics=value))
    return found[:count]


def mean_of_bm25(cells):
    judged = judge(cells)
    tables = card_tables(judged)
    board = leaderboard(tables, cells)
    return boards.means(board, boards.card_cells(judged))[System("bm25", None), "beir"]


def test_a_measured_mean_has_a_delta_and_a_verdict():
    # The card's rows give .4402, and .440 is what it states.
    mean = mean_of_bm25(bm25_on_beir())
    assert (mean.verdict, round(mean.delta, 4)) == ("MATCH", 0.0002)
    lower = mean_of_bm25(bm25_on_beir(change=-0.01))
    assert (lower.verdict, round(lower.delta, 4)) == ("LOWER", -0.0098)


def test_a_part_of_a_collection_has_verdicts_and_no_mean():
    mean = mean_of_bm25(bm25_on_beir(count=2))
    assert (mean.published, mean.measured, mean.verdict) == (0.440, None, None)
    assert (mean.run, mean.of, mean.counts) == (2, 13, {"MATCH": 2})


def test_what_the_card_has_no_cells_of_stands_on_its_own_boards():
    protocol = {**cell().protocol, "k1": 1.5, "b": 0.75, "fields": ["contents"], "analyzer": "bm25s"}
    protocol |= {"lengths": "exact", "unmatched": "fill"}
    xquad = [
        cell(
            model="bm25s", protocol=protocol, dataset=f"xquad/{language}", language=language, metrics={"ndcg@10": value}
        )
        for language, value in (("en", 0.96494), ("es", 0.4))
    ]
    ours = [
        cell(),
        cell(model="mine", metrics={"ndcg@10": 0.2}),
        cell(dataset="demo", metrics={"ndcg@10": 0.3}),
        *xquad,
    ]
    found = {board.title: board for board in boards.own_boards(ours, judge(ours))}
    assert list(found) == ["BEIR: cells that the card does not have", "demo", "XQuAD"]
    assert found["BEIR: cells that the card does not have"].systems == (System("mine", None),)
    board, system = found["XQuAD"], System("bm25s", None)
    assert board.means[system] == pytest.approx((0.96494 + 0.4) / 2)
    assert board.entries[system, "xquad/en"].judged.verdict.label == "MATCH"
    assert board.entries[system, "xquad/es"].judged.delta == pytest.approx(0.4 - 0.95169)


def test_a_system_without_every_dataset_stands_behind_those_with_all():
    ours = [
        cell(model=model, dataset=f"xquad/{language}", metrics={"ndcg@10": value})
        for model, language, value in (("whole", "en", 0.1), ("whole", "es", 0.3), ("part", "en", 0.9))
    ]
    (board,) = boards.own_boards(ours, judge(ours))
    assert [system.name for system in board.systems] == ["whole", "part"]
    assert board.means[System("part", None)] is None


# ---- the heatmap


def test_the_heatmap_gives_each_dim_s_share_of_the_greatest():
    (card,) = boards.heatmaps(card_tables(judge([])), [])
    column = card.columns.index(("beir/nfcorpus", "ndcg@10"))
    shares = {dim: row[column] for dim, row in card.rows}
    assert card.base == 128
    assert shares[128] == (0.346, 1.0)
    assert shares[96] == (0.340, pytest.approx(0.340 / 0.346))
    assert shares[64] == (0.347, pytest.approx(0.347 / 0.346))


def test_a_system_measured_at_two_dims_has_a_heatmap_with_gaps():
    ours = [late(value=0.4), late(dim=64, value=0.3), late(dataset="beir/fiqa", dim=64, value=0.2)]
    _, measured = boards.heatmaps(card_tables(judge([])), ours)
    assert [name for name, _ in measured.columns] == ["beir/fiqa", "beir/nfcorpus"]
    assert measured.rows == ((128, (None, (0.4, 1.0))), (64, (None, (0.3, pytest.approx(0.75)))))


# ---- commands


def test_every_cell_of_the_card_has_a_command_that_composes(configs):
    cells = boards.answer(judge([])).cells
    assert {one.score.dataset for one in cells} <= set(configs.datasets)
    asked = {}
    for one in cells:
        asked.setdefault((one.score.system, one.score.dim), one.score)
    assert len(asked) == 8
    for (system, dim), score in asked.items():
        program, verb, *words = commands.command(system, dim, score.dataset, configs).split()
        run = compose(words)
        assert (program, verb, run.model.name, run.dataset.name) == ("evalkit", "run", system, score.dataset)
        assert dim is None or list(run.dims) == [dim]


def saved(*words):
    return cell_config.plain(compose(list(words)))


def test_a_run_as_packaged_needs_no_further_words(configs):
    made = saved("model=bm25", "dataset=msmarco/dev-small")  # its k1 and b are those of MS MARCO
    run = cell(dataset="msmarco/dev-small", split="dev")
    assert commands.run_command(run, made, configs) == "evalkit run model=bm25 dataset=msmarco/dev-small"
    arguana = cell(model="colbertv2", dim=128, dataset="beir/arguana")  # its queries have 300 tokens there
    made = saved("model=colbertv2", "dim=128", "dataset=beir/arguana")
    assert commands.run_command(arguana, made, configs) == "evalkit run model=colbertv2 dim=128 dataset=beir/arguana"


def test_a_run_of_another_split_of_ir_datasets_names_id_and_split(configs):
    identifier = "dataset.ir_datasets_id=beir/fiqa/dev"
    made = saved("model=bm25", "dataset=ir-datasets", identifier, "dataset.split=dev")
    run = cell(dataset="ir-datasets/beir/fiqa/dev", split="dev")
    name = "dataset.name=ir-datasets/beir/fiqa/dev"
    words = f"evalkit run model=bm25 dataset=ir-datasets {name} {identifier} dataset.split=dev"
    assert commands.run_command(run, made, configs) == words


def test_a_run_with_other_settings_names_each(configs):
    words = [
        "model.k1=0.8",
        "model.fields={default:[contents]}",
        "search.depth=200",
        "store.keep=topk",
        "engine.threads=1",
    ]
    made = saved("model=bm25", "dataset=beir/nfcorpus", *words)
    command = commands.run_command(cell(), made, configs)
    assert command == (
        "evalkit run model=bm25 dataset=beir/nfcorpus model.k1=0.8 'model.fields={default:[contents]}' "
        "search.depth=200 store.keep=topk"
    )


def test_a_run_of_other_weights_or_of_a_folder_says_where_they_are(configs):
    weights = saved("model=demo", "dim=64", "model.checkpoints.64.path=/weights/mine")
    assert commands.run_command(cell(model="demo", dim=64, dataset="demo"), weights, configs) == (
        "evalkit run model=demo dim=64 dataset=demo model.checkpoints.64.path=/weights/mine"
    )
    folder = saved("model=bm25", "dataset=folder", "dataset.path=/data/my set", "dataset.name=mine")
    command = commands.run_command(cell(dataset="mine"), folder, configs)
    assert command.startswith("evalkit run model=bm25 dataset=folder dataset.name=mine 'dataset.path=/data/my set'")


def test_a_run_without_readable_settings_has_the_command_of_its_cell(configs):
    assert commands.run_command(cell(), None, configs) == "evalkit run model=bm25 dataset=beir/nfcorpus"


# ---- hits


def read(folder, run):
    table = per_query_file.read(folder / "runs" / run.run_id / results.PER_QUERY)
    return hits.read(folder, run, table)


def ranking(*names):
    return [Hit(name, float(len(names) - place)) for place, name in enumerate(names)]


def test_hits_have_their_judgements_and_the_rank_of_the_first_relevant(tmp_path):
    run = cell()
    names = [f"d{place}" for place in range(12)]
    put(
        tmp_path,
        run,
        run={"q1": ranking(*names), "q2": ranking("x")},
        qrels={"q1": {"d1": 0, "d10": 2, "elsewhere": 1}, "q2": {"y": 1}},
    )
    found = read(tmp_path, run)
    assert found["q1"].documents == tuple(names[:10])
    assert found["q1"].grades == (None, 0, *[None] * 8)
    assert (found["q1"].relevant, found["q1"].first) == (2, 11)
    assert found["q2"] == hits.QueryHits(("x",), (None,), 1, 0)


def test_hits_without_stored_judgements_say_nothing_of_them(tmp_path):
    run = cell()
    path = put(tmp_path, run, run={"q1": ranking("a", "b")})
    (path / results.QRELS).unlink()
    assert read(tmp_path, run) == {"q1": hits.QueryHits(("a", "b"), (), None, 0), "q2": hits.QueryHits((), (), None, 0)}


def test_hits_are_those_of_the_lowest_queries_in_the_table_s_order(tmp_path, monkeypatch):
    run = cell()
    put(tmp_path, run, per_query={"a": 0.5, "b": 0.9, "c": 0.1}, run={"a": ranking("d"), "b": ranking("d")})
    monkeypatch.setattr(hits, "SHOWN_QUERIES", 2)
    assert list(read(tmp_path, run)) == ["a", "c"]
    monkeypatch.setattr(hits, "MOST_QUERIES", 2)
    assert read(tmp_path, run) == {}


def test_a_damaged_run_file_costs_only_the_hits(tmp_path):
    run = cell()
    path = put(tmp_path, run)
    (path / results.RUN).write_bytes(b"not gzip")
    assert read(tmp_path, run) == {}


def test_only_the_demo_s_queries_have_texts_and_only_where_they_are_the_run_s():
    queries = load_demo(DemoSize(documents=60, queries=4, seed=7)).queries
    run = cell(dataset="demo", protocol={**cell().protocol, "queries": texts_checksum(queries)})
    made = saved("model=bm25", "dataset=demo", "dataset.demo.documents=60", "dataset.demo.queries=4")
    assert hits.texts(run, made) == {query.id: query.text for query in queries}
    assert hits.texts(cell(dataset="demo"), made) == {}
    assert hits.texts(run, saved("model=bm25", "dataset=beir/nfcorpus")) == {}
    assert hits.texts(run, None) == {}


# ---- plots


def panel(*points):
    return plot.svg(plot.Plot("t", "kB", "NDCG@10", (plot.Series("s", points),)))


def test_both_axes_start_at_zero():
    drawn = panel(plot.Point(100, 0.599, "a"), plot.Point(200, 0.589, "b"))
    ticks = re.findall(r'<text class="tick"[^>]*>([\d.]+)<', drawn)
    assert ticks == ["0.0", "0.2", "0.4", "0.6", "0", "50", "100", "150", "200"]


def test_a_point_that_another_beats_is_hollow():
    drawn = panel(plot.Point(100, 0.6, "a"), plot.Point(200, 0.5, "b", best=False))
    assert re.findall(r"<circle( class=\"hollow\")? cx", drawn) == ["", ' class="hollow"']


def test_labels_of_close_points_do_not_cover_each_other():
    points = [(200.0, 45.0, 55.0, 60.0), (210.0, 45.0, 55.0, 60.0), (220.0, 46.0, 56.0, 60.0)]
    places = plot._label_places(points)
    assert len({y for _, y, _ in places}) == 3
    edges = plot._label_places([(455.0, 45.0, 55.0, 60.0), (60.0, 45.0, 55.0, 60.0)])
    assert [anchor for _, _, anchor in edges] == ["end", "start"]


def test_a_label_stands_above_its_point_s_interval():
    drawn = panel(plot.Point(100, 0.3, "a", interval=(0.2, 0.4)))
    top = min(float(end) for end in re.search(r'class="bar"[^>]*y1="([\d.]+)" y2="([\d.]+)"', drawn).groups())
    assert float(re.search(r'y="([\d.]+)"[^>]*>a</text>', drawn)[1]) < top


def test_differences_lie_about_zero_and_reach_a_fiftieth_at_least():
    drawn = plot.differences(plot.Differences("t", "Δ", (plot.Difference("dim 64", 0.001, (-0.002, 0.004)),)))
    assert re.findall(r">([+-]?[\d.]+)</text>", drawn)[:5] == ["-0.02", "-0.01", "0", "+0.01", "+0.02"]
    assert 'aria-label="t: dim 64, +0.0010, -0.0020 to +0.0040"' in drawn


def test_a_plot_rounds_its_values_as_the_tables_do():
    """As floats, .00035 and .123455 are a little less than on paper."""
    (row,) = re.findall(r">([+-][\d.]+)</text>\s*</g>", plot.differences(differences(0.00035)))
    assert row == signed(0.00035, 4) == "+0.0004"
    drawn = plot.differences(differences(-0.00001))
    assert ">+0.0000</text>" in drawn
    assert "t: dim 64, +0.0000, +0.0000 to +0.0000" in drawn
    drawn = panel(plot.Point(100, 0.123455, "a"))
    assert "s, a: 0.12346 at 100 kB" in drawn
    assert "a, 100 kB, 0.12346" in drawn


def differences(value):
    return plot.Differences("t", "Δ", (plot.Difference("dim 64", value, (value, value)),))


# ---- the page


def test_two_results_of_a_cell_have_two_names_where_the_page_compares_them(tmp_path):
    for tokens in (32, 16):
        put(tmp_path, late(query_tokens=tokens))
    text = build.build(tmp_path).files["site/index.html"].decode()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])
    assert {run_id: run["system"] for run_id, run in data["runs"].items()} == {
        late(query_tokens=tokens).run_id: f"jina-colbert-v2:128 (query.max_tokens={tokens})" for tokens in (32, 16)
    }


def test_the_page_names_the_command_of_a_run_by_its_own_settings(tmp_path):
    run = cell()
    path = tmp_path / "runs" / run.run_id
    path.mkdir(parents=True)
    made = saved("model=bm25", "dataset=beir/nfcorpus", "search.depth=200")
    (path / results.CONFIG).write_text(yaml.safe_dump(made), encoding="utf-8")
    put(tmp_path, run)
    made = build.build(tmp_path).files["site/index.html"].decode()
    assert "<code>evalkit run model=bm25 dataset=beir/nfcorpus search.depth=200</code>" in made
    assert "<code>evalkit run model=jina-colbert-v2 dim=96 dataset=msmarco/dev-small</code>" in made


@pytest.mark.parametrize("data", [b"\xff", b"a: !!int x", b"[" * 100_000])
def test_a_run_whose_settings_are_damaged_has_the_command_of_its_cell(tmp_path, data):
    put(tmp_path, run := cell())
    (tmp_path / "runs" / run.run_id / results.CONFIG).write_bytes(data)
    made = build.build(tmp_path).files["site/index.html"].decode()
    assert "<code>evalkit run model=bm25 dataset=beir/nfcorpus</code>" in made


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_shade_of_the_heatmap_is_read_at_wcag_aa(tmp_path, theme):
    put(tmp_path, cell())
    made = build.build(tmp_path).files["site/index.html"].decode()
    colours = variables(made, theme)
    shades = re.findall(r"\.(up|k\d)\{background:color-mix\(in srgb,var\(--(\w+)\) (\d+)%,var\(--panel\)\)\}", made)
    assert [name for name, _, _ in shades] == ["up", "k1", "k2", "k3", "k4"]
    for _, colour, percent in shades:
        assert contrast(colours["ink"], mixed(colours[colour], colours["panel"], int(percent) / 100)) >= 4.5


def mixed(one, other, share):
    """A colour of #rrggbb or #rgb, so much of one in the other."""
    wide = [
        value.lstrip("#") if len(value) > 4 else "".join(2 * digit for digit in value[1:]) for value in (one, other)
    ]
    parts = [[int(value[place : place + 2], 16) for place in (0, 2, 4)] for value in wide]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in zip(*parts, strict=True))


def test_a_place_among_documents_takes_two_bytes_until_there_are_too_many():
    few, many = ({str(place): place for place in range(count)} for count in (65_534, 65_536))
    assert (page._index_bytes(few), page._index_bytes(many)) == (2, 3)
    places = np.array([[1, 70_000, page.NO_DOCUMENT]], dtype="<u4")
    assert page._low_bytes(places, 3).tobytes() == b"\x01\0\0" + b"\x70\x11\x01" + b"\xff\xff\xff"
    assert page._low_bytes(np.array([[258]], dtype="<u4"), 2).tobytes() == b"\x02\x01"


def test_the_committed_page_stays_below_a_megabyte():
    assert (Path(__file__).parents[2] / "results" / "site" / "index.html").stat().st_size < 1_000_000


def test_provenance_names_the_engine_its_workers_and_their_devices():
    alone = cell(environment={"device": "NVIDIA L4", "processor": "Xeon"})
    assert page.engine_line(alone) == "engine local: one process on NVIDIA L4"
    assert page.engine_line(cell(environment={"processor": "Xeon"})) == "engine local: one process on Xeon"
    facts = {"engine": "ray", "workers": 3, "nodes": 2, "worker_devices": ["NVIDIA L4", "NVIDIA H100", "NVIDIA L4"]}
    assert page.engine_line(cell(environment=facts)) == (
        "engine ray: 3 workers on 2 nodes, 1 × NVIDIA H100, 2 × NVIDIA L4"
    )
    assert page.engine_line(cell(environment={"engine": "ray"})) == (
        "engine ray: ? workers on ? nodes, devices not recorded"
    )
