"""What a plan forecasts, and from what: never another corpus' counts, and never a number without a basis."""

import dataclasses
import json
import math

import pytest
import torch
from report_material import cell

from evalkit.config.compose import compose
from evalkit.operations import forecast, outlook, probe
from evalkit.operations.device_rates import device_named
from evalkit.report import plans
from evalkit.run import environment

DOCUMENT = {"max_tokens": 300, "marker": "[DocumentMarker]", "expansion": False, "attend_to_expansion": False}


def known(**changes):
    """A finished run of the demo: 1,000 documents with 100 vectors each."""
    protocol = {"document": DOCUMENT, "skiplist": "stanford", "dtype": "float32", "corpus": "of the small one"}
    values = {"model": "demo", "dim": 64, "dataset": "demo", "protocol": protocol}
    counts = {"documents": 1000, "document_vectors": 100_000, "queries": 200}
    return cell(**{**values, "counts": counts, **changes})


def planned(tmp_path, *words, runs):
    config = compose(["model=demo", "dim=64", *words, f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"])
    (found,) = forecast.forecast_cells(config, runs)
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


def test_a_run_of_weights_of_another_size_is_no_basis(tmp_path):
    """The demo's weights were run under the name of jina-colbert-v2, and its forecast was made from that run."""
    own = compose(["model=demo"]).model.parameters
    as_run = [known(environment={"checkpoint": {"parameters": count}}) for count in (own, own * 100)]
    assert [planned(tmp_path, "dataset.demo.documents=20000", runs=[run]).vectors.value for run in as_run] == [
        2_000_000,
        None,
    ]


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
    assert found.vectors.basis == "unknown until a job has surveyed the corpus"


@pytest.mark.parametrize("setting", ["dataset.path", "model.checkpoints.64.path"])
def test_a_folder_that_no_file_system_takes_is_a_reason_and_no_error(tmp_path, setting):
    """A record of such a run is looked at by every list of the cache."""
    place = f"{tmp_path}/{'n' * 300}"
    words = [f"{setting}={place}", *(["dataset=folder"] if setting == "dataset.path" else [])]
    found = planned(tmp_path, *words, runs=[])
    assert found.state == "cannot run"
    assert found.problem.startswith(place)
    assert found.problem.endswith(": File name too long")


def test_times_that_are_not_known_say_once_what_would_tell_them(tmp_path):
    found = [planned(tmp_path, f"dataset.demo.documents={size}", runs=[]) for size in (100, 200)]
    assert [cell.seconds.value for cell in found] == [None, None]
    (line,) = [line for line in plans.plan_lines(found) if line.startswith("time")]
    assert line.startswith("time unknown: run with --probe here")
    assert not any(line.startswith("forecast") for line in plans.plan_lines(found))


def here(**seconds):
    """A finished run of this machine, with its seconds."""
    facts = environment.environment(torch.device("cpu"))
    return known(environment=facts, wall_s={"encode_and_search": 30.0, **seconds})


def test_a_run_of_few_shards_prepares_kernels_once_and_a_larger_one_does_not_pay_for_it_by_shard(tmp_path):
    """100,000 vectors in 4 shards: encoding 10 s; search 5 s, of which one shard took 4.25, the others .25 each."""
    run = here(encode=10.0, search=5.0, slowest_search=4.25)
    run = dataclasses.replace(run, counts={**run.counts, "shards": 4})
    found = planned(tmp_path, "dataset.demo.documents=20000", runs=[run])
    assert found.search_s == pytest.approx(20 * 4 * 0.25)
    assert found.seconds.value == pytest.approx(200 + 4.25 + 20)
    assert found.seconds.basis.startswith("at 10,000 vectors/s, as ")


def test_a_rate_of_another_machine_dtype_or_number_of_threads_is_no_basis(tmp_path):
    run = here(encode=10.0, search=5.0)
    for name in ("processor", "threads", "instruction_set"):
        other = dataclasses.replace(run, environment={**run.environment, name: "other"})
        assert planned(tmp_path, runs=[other]).seconds.value is None
    other = dataclasses.replace(run, protocol={**run.protocol, "dtype": "bfloat16"})
    assert planned(tmp_path, runs=[other]).seconds.value is None


def test_documents_of_another_dataset_are_compared_by_their_tokens(tmp_path):
    """BM25 on 1,000 documents of nfcorpus in 10 s: 1,591 characters each; fiqa has documents of another length."""
    facts = environment.environment(None)
    run = known(model="bm25", dim=None, dataset="beir/nfcorpus", environment=facts, wall_s={"encode_and_search": 10.0})
    run = dataclasses.replace(run, counts={"documents": 1000, "queries": 1}, protocol={})
    places = (f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache")
    config = compose(["model=bm25", "dataset=beir/fiqa", *places])
    (found,) = forecast.forecast_cells(config, [run])
    share = config.dataset.mean_characters / 1591
    assert found.seconds.value == pytest.approx(config.dataset.counts.documents / 100 * share)
    own = dataclasses.replace(run, dataset="beir/fiqa")
    (found,) = forecast.forecast_cells(config, [run, own])
    assert found.seconds.value == pytest.approx(config.dataset.counts.documents / 100)
    (found,) = forecast.forecast_cells(compose(["model=bm25", "dataset=demo", *places]), [run])
    assert found.seconds.value is None  # of the demo's length nothing is known


# ---- a probe


def test_a_probe_measures_tokens_bytes_and_time_of_the_datasets_own_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "DOCUMENTS", 48)
    monkeypatch.setattr(probe, "WARMUP_DOCUMENTS", 16)
    config = compose(["model=demo", "dim=[128,64]", "dataset.demo.documents=2000", "dataset.demo.queries=5"])
    config = dataclasses.replace(config, cache_dir=tmp_path / "cache", results_dir=tmp_path / "results")
    probed = probe.probe(config, probe.Loader())
    assert (probed.dataset, probed.corpus_documents, probed.queries) == ("demo", 2000, 5)
    assert probed.documents == 48
    assert 48 * 60 < probed.vectors < probed.tokens < 48 * 300
    for dim in (128, 64):
        assert probed.stored_bytes[dim] > probed.vectors * dim * 2
        assert probed.encode_s[dim] > 0
    assert not list(tmp_path.iterdir())
    cells = forecast.forecast_cells(config, [known()], probed=probed)
    vectors = probed.vectors / 48 * 2000
    assert [cell.vectors.value for cell in cells] == [pytest.approx(vectors)] * 2
    assert [cell.stored_bytes for cell in cells] == [round(probed.stored_bytes[dim] / 48 * 2000) for dim in (128, 64)]
    assert cells[0].seconds.value == pytest.approx(
        2000 / 48 * (probed.encode_s[128] + probed.search_s[128]) + probed.queries_s
    )
    assert cells[0].seconds.basis.endswith("measured on 48 of its documents")
    assert "time at " in "\n".join(plans.plan_lines(cells))


def test_a_probe_that_would_take_long_encodes_fewer_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "WARMUP_DOCUMENTS", 16)
    config = compose(["model=demo", "dim=64", "dataset.demo.queries=5", f"cache_dir={tmp_path}"])
    assert probe.probe(config, probe.Loader(), limit_s=0.0).documents == probe.WARMUP_DOCUMENTS


def test_a_probe_of_bm25_reads_the_dataset_alone(tmp_path):
    config = compose(["model=bm25", "dataset.demo.documents=300", "dataset.demo.queries=20", f"cache_dir={tmp_path}"])
    probed = probe.probe(config, probe.Loader())
    assert (probed.documents, probed.vectors) == (300, 0)
    (found,) = forecast.forecast_cells(config, [], probed=probed)
    assert found.seconds.value == pytest.approx(probed.encode_s[None] + probed.search_s[None])
    # No checkpoint is read and no kernel compiled before its first document; reading for the survey comes on top.
    started = outlook.BM25_START_S + outlook.PER_PASS_S
    assert outlook.total([found]).wall_s[1] == pytest.approx(started + found.seconds.value + probed.read_s)


# ---- in all and by dataset


def test_the_dims_of_a_pass_share_its_encoding_and_workers_share_its_shards(tmp_path):
    """A dim: 200 s of encoding, 20 and 40 of search. Two dims together: 260 s."""
    run = dataclasses.replace(here(encode=10.0, search=1.0), counts={**known().counts, "shards": 1})
    words = ["model=demo", "dim=[128,64]", "dataset.demo.documents=20000", f"results_dir={tmp_path}/r"]
    cells = forecast.forecast_cells(compose([*words, f"cache_dir={tmp_path}/c"]), [run])
    assert [cell.search_s for cell in cells] == [pytest.approx(40), pytest.approx(20)]
    (row,) = outlook.by_dataset(cells)
    assert row.device_s == pytest.approx(260)
    assert row.wall_s[1] == pytest.approx(outlook.START_S + outlook.PER_PASS_S + 260)
    shards = round(20000 * 300 / 125_000)  # nothing is known of the length of the demo's documents: the longest
    assert row.wall_s[8] == pytest.approx(outlook.START_S + outlook.PER_PASS_S + 260 * math.ceil(shards / 8) / shards)
    assert row.wall_s[64] == pytest.approx(outlook.START_S + outlook.PER_PASS_S + 260 / shards)


def test_only_the_remaining_shards_are_spread_over_the_workers(tmp_path):
    """Of 8 shards of 10 s each, 6 are finished: the 2 others take 20 s on one worker, and 10 s on two or more."""
    whole = planned(tmp_path, "dataset.demo.documents=20000", runs=[known()])
    half = whole._replace(shards=8, done=6, seconds=forecast.Amount(20.0, "measured"), search_s=0.0)
    (row,) = outlook.by_dataset([half])
    extra = outlook.START_S + outlook.PER_PASS_S
    assert (row.device_s, row.wall_s[1], row.wall_s[8]) == (20.0, extra + 20.0, extra + 10.0)


def test_a_forecast_is_rounded_once(monkeypatch):
    """12.46 of anything is 12: rounded to 12.5 first, it would become 13."""
    hours = 12.46 * 3600
    row = outlook.Outlook(
        "mine",
        tokens=12.46e6,
        device_s=hours,
        wall_s={1: hours, 8: 4.46 * 60, 64: 9.96 * 3600},
        disk_bytes=12.46e9,
        memory_bytes=4.46e9,
        device_bytes=None,
        untimed=0,
        unsized=0,
    )
    monkeypatch.setattr(outlook, "by_dataset", lambda _cells, *, device: [row])
    (line,) = plans.outlook_table([]).rows
    assert line.cells == ("mine", "12 M", "12 h", "12 h", "4 min", "10 h", "12 GB", "4.5 GB")


def test_a_selection_is_forecast_by_dataset_and_in_all_at_80_columns():
    words = ["model=jina-colbert-v2", "dim=[128,64]", "store.keep=topk"]
    device = device_named("h100")
    cells = [
        cell
        for name in ("beir/webis-touche2020", "msmarco/dev-small")
        for cell in forecast.forecast_cells(compose([*words, f"dataset={name}"]), named_device=device)
    ]
    text = list(plans.outlook_table(cells, device=device).lines(80))
    assert " ".join(text[0].split()) == "dataset tokens work 1 worker on 8 on 64 disk"  # memory is that of all
    assert [line.split()[0] for line in text[1:]] == ["beir/webis-touche2020", "msmarco/dev-small", "all"]
    assert max(map(len, text)) <= 80
    said = "\n".join(plans.plan_lines(cells, device=device))
    assert "not measured by us" in said
    assert "GPU-hours of work; with start and reading" in said
    assert plans.plan_problems(cells, device=device) == []


def test_what_does_not_fit_is_refused_with_the_settings_that_would(tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "free_bytes", lambda _folder: 600_000_000)
    words = ["model=demo", "dim=[128,64]", "dataset.demo.documents=20000", f"results_dir={tmp_path}/r"]
    cells = forecast.forecast_cells(compose([*words, f"cache_dir={tmp_path}/c"]), [known()])
    (problem,) = plans.plan_problems(cells)
    assert "embeddings need 768.0 MB, 600.0 MB are free; set store.keep=topk" in problem
    assert "fewer dims (dim=64 would write 256.0 MB)" in problem
    monkeypatch.setattr(plans, "free_bytes", lambda _folder: 1e12)
    monkeypatch.setattr(outlook, "host_bytes", lambda: 1e8)
    (problem,) = plans.plan_problems(cells)
    assert "needed, 100.0 MB available; set store.shard_tokens=N lower" in problem


@pytest.mark.parametrize(("free", "said"), [(2_559_000_000, True), (2_561_000_000, False)])
def test_embeddings_that_take_much_of_the_disk_come_with_the_way_to_keep_none(tmp_path, monkeypatch, free, said):
    """256 MB of embeddings are more than a tenth of 2,559 MB and less than a tenth of 2,561 MB."""
    monkeypatch.setattr(plans, "free_bytes", lambda _folder: free)
    found = planned(tmp_path, "dataset.demo.documents=20000", runs=[known()])
    (line,) = [line for line in plans.plan_lines([found]) if line.startswith("disk")]
    assert ("store.keep=topk writes none of them" in line) == said
