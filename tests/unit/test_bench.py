"""The bench at a tiny size: equal inputs, figures with their conditions and ceilings, what is missing said so."""

import argparse
import doctest
import itertools
import json
import os
import statistics
import subprocess
import sys

import bench
import numpy as np
import pytest
import torch
from peers import environments, plot, rounds, worker
from peers.rounds import Contender, Worker, WorkerError, fitting_size, tree, turns
from stages import figures, inputs, maxsim, measuring

from evalkit.kernels.cpu import registers
from evalkit.storage.trec import read_run
from evalkit.types import Document, Hit

ECHO = """
import json, sys
print(json.dumps({"ready": {"python": "x"}}), flush=True)
for line in sys.stdin:
    size = json.loads(line)["size"]
    if size == 13:
        sys.exit("ValueError: thirteen")
    print(json.dumps({"seconds": size / 10, "seen": size}), flush=True)
print(json.dumps({"peak_mib": 1.5}), flush=True)
"""


def options(**values):
    known = vars(bench.arguments().parse_args([]))
    assert set(values) <= set(known)
    return argparse.Namespace(**{**known, **values})


@pytest.fixture
def folder(tmp_path):
    """A collection of ten documents; q2 is judged on the last one alone, q3 is not judged."""
    home = tmp_path / "corpus"
    (home / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{i}", "title": "", "text": " ".join(["word"] * (i + 1))} for i in range(10)]
    (home / "corpus.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (home / "queries.jsonl").write_text("".join(f'{{"_id": "q{i}", "text": "word"}}\n' for i in (1, 2, 3)))
    (home / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td9\t1\n")
    return home


@pytest.fixture
def echo(tmp_path, monkeypatch):
    """A library whose worker answers a tenth of the size as its seconds, and dies of 13."""
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    monkeypatch.setattr(environments, "script", lambda _name: script)
    monkeypatch.setattr(environments, "OURS", ("echo",))
    return {"environments_dir": tmp_path / "none", "work": tmp_path / "work", "limit_s": 600}


def test_every_contender_of_a_case_gets_the_same_inputs(tmp_path, folder):
    chosen = options(corpus=folder, maxsim_queries=2, maxsim_documents=3)
    for stage in ("maxsim", "encode", "host", "checkpoint"):
        work = tmp_path / stage
        work.mkdir()
        for case in bench.STAGES[stage](chosen, work):
            assert len({contender.job["inputs"] for contender in case.contenders}) == 1
            assert case.reference in [contender.name for contender in case.contenders]


def test_every_contender_has_a_script_and_every_peer_its_pinned_requirements(tmp_path):
    cases = maxsim.maxsim(options(maxsim_queries=1, maxsim_documents=1), tmp_path)
    libraries = {contender.library for case in cases for contender in case.contenders}
    assert {"evalkit", "sentence-transformers", "maxsim-cpu", "late-interaction-kernels", "torch"} == libraries
    assert "pylate" in environments.peers()
    assert all(environments.script(library).exists() for library in libraries)
    for peer in environments.peers():
        assert any(line.startswith(f"{peer}==") for line in environments.block(peer)["dependencies"]), peer


def test_exact_maxsim_is_the_sum_of_each_query_vectors_best(tmp_path):
    for name, array in (
        ("queries", np.array([[[1, 0], [0, 2]]])),
        ("documents", np.array([[1, 0], [3, 1], [0, 5]])),
        ("lengths", np.array([2, 1])),
    ):
        np.save(tmp_path / f"{name}.npy", array.astype(np.int64 if name == "lengths" else np.float16))
    assert inputs.exact_maxsim(tmp_path, 1).tolist() == [[3 + 2, 0 + 10]]


def test_a_collection_has_evenly_spaced_documents_and_only_the_queries_judged_on_them(tmp_path, folder):
    laid = inputs.collection(options(corpus=folder, documents=5), tmp_path, default=None)
    ids = [json.loads(line)["_id"] for line in (laid / "corpus.jsonl").read_text().splitlines()]
    assert ids == ["d0", "d2", "d4", "d6", "d8"]
    assert [json.loads(line)["_id"] for line in (laid / "queries.jsonl").read_text().splitlines()] == ["q1"]
    assert (laid / "qrels" / "test.tsv").read_text() == "query-id\tcorpus-id\tscore\nq1\td0\t1\n"


def test_token_lengths_count_both_special_tokens(tmp_path, folder):
    assert inputs.token_lengths(folder).tolist() == [i + 3 for i in range(10)]


def test_flops_of_one_token_are_those_of_the_weights_and_its_attention_to_itself():
    weights = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert inputs.backbone_flops(np.array([1])) == 2 * (weights + 6 * 2 * 384)


def test_rounds_take_turns_and_no_place_is_always_the_same_contenders():
    orders = turns(["a", "b", "c"], 3)
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert [order[0] for order in orders] == ["a", "b", "c"]


def test_a_slow_contender_gets_a_smaller_round_and_a_fast_one_the_full_size():
    assert fitting_size(100, 8, probe_s=8.0, budget_s=2.0) == 8
    assert fitting_size(100, 8, probe_s=0.5, budget_s=2.0) == 32
    assert fitting_size(100, 8, probe_s=0.01, budget_s=2.0) == 100
    assert fitting_size(100, 8, probe_s=9.0, budget_s=None) == 100


def test_a_worker_answers_each_round_and_says_its_peak_at_the_end(echo):
    with Worker(Contender("one", "echo", {}), **echo) as worker:
        assert worker.facts == {"python": "x"}
        assert [worker.round(size)["seconds"] for size in (1, 5)] == [0.1, 0.5]
        assert worker.finish() == {"peak_mib": 1.5}


def test_a_worker_that_dies_is_reported_with_its_last_words(echo):
    with Worker(Contender("one", "echo", {}), **echo) as worker:
        with pytest.raises(WorkerError, match="exit status 1: ValueError: thirteen"):
            worker.round(13)
        assert worker.finish() == {}


def test_a_worker_that_does_not_answer_in_time_is_given_up(echo, tmp_path):
    (tmp_path / "echo.py").write_text("import sys; sys.stdin.read()")
    with pytest.raises(WorkerError, match=r"no answer in 0 s"):
        Worker(Contender("one", "echo", {}), **{**echo, "limit_s": 0.2})


def test_a_peer_without_an_environment_is_told_how_to_make_one(tmp_path):
    contender = Contender("PyLate", "pylate", {})
    with pytest.raises(WorkerError, match="no environment at pylate; create it with --install pylate"):
        Worker(contender, environments_dir=tmp_path, work=tmp_path, limit_s=1)


def test_a_process_and_its_children_are_one_tree():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in tree(os.getpid())
        child.communicate(b"\n")


def test_ratios_are_the_median_of_paired_rounds_and_know_of_smaller_sizes():
    case = a_case("ours", "theirs")
    contenders = {
        "ours": {"size": 4, "seconds": [1.0, 2.0, 4.0]},
        "theirs": {"size": 2, "seconds": [2.0, 2.0, 2.0]},
    }
    assert measuring.ratios(case, contenders) == {"theirs": 2.0}  # 4/1, 4/2 and 4/4 a second, against 2/2


def a_case(*names):
    return measuring.Case(
        name="tiny",
        contenders=tuple(Contender(name, "echo", {}) for name in names),
        reference=names[0],
        size=4,
        size_of="documents",
        unit="documents/s",
        work=float,
        flops=lambda size: size * 1e9,
        probe=2,
        inputs={"tokens": 7},
    )


def test_figures_have_conditions_inputs_ceilings_and_what_was_not_measured(tmp_path, monkeypatch, echo):
    ticks = itertools.count(1)

    class Counting(Worker):
        def round(self, size, *, save=None):
            answer = super().round(size, save=save)
            return {**answer, "ceilings": {"fp32 GEMM GFLOP/s": 50.0 * next(ticks)}}

    monkeypatch.setattr(measuring, "Worker", Counting)
    monkeypatch.setattr(measuring, "CEILINGS", Contender("ceilings", "echo", {}))
    case = a_case("evalkit", "peer")
    absent = Contender("absent", "pylate", {})
    whole = measuring.Case(**{**vars(case), "contenders": (*case.contenders, absent)})
    chosen = options(rounds=2, envs=tmp_path / "none", out=tmp_path)
    content = measuring.measured("encode", [whole], chosen, tmp_path)
    figures.save(tmp_path / "encode.json", content)
    read = json.loads((tmp_path / "encode.json").read_text())
    known = {"command", "date", "processor", "processors", "platform", "load_average_before"}
    assert known <= set(read["conditions"])
    tiny = read["cases"]["tiny"]
    assert tiny["inputs"] == {"tokens": 7, "documents": 4}
    assert tiny["ceilings"]["fp32 GEMM GFLOP/s"] > 0
    assert tiny["contenders"]["peer"]["seconds"] == [0.4, 0.4]
    assert tiny["contenders"]["peer"]["rate"] == 10.0
    shares = [10 / one["fp32 GEMM GFLOP/s"] for one in tiny["ceilings by round"]]
    assert tiny["contenders"]["peer"]["share_of_ceiling"] == pytest.approx(statistics.median(shares), abs=1e-3)
    assert tiny["evalkit is times"] == {"peer": 1.0}
    assert "no environment at pylate" in tiny["not measured"]["absent"]
    assert [panel.title for panel in plot.panels(tmp_path, ["maxsim", "encode"])] == ["encode: tiny"]
    plot.draw(tmp_path, ["encode"], tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_names_machine_dates_inputs_and_spread():
    conditions = {"processor": "Xeon", "processors": 2}
    case = {"inputs": {"documents": 2000, "dim": 128}, "contenders": {"a": {"rate": 10.0, "seconds": [1.0, 1.25]}}}
    dated = [plot.Panel("t", case, {**conditions, "date": day}) for day in ("2026-11-27", "2026-11-26")]
    assert plot.heading(dated)[0] == "Xeon, 2 processors; measured 2026-11-26 to 2026-11-27"
    assert plot.heading([plot.Panel("t", case, conditions)])[0] == "Xeon, 2 processors; date not recorded"
    assert plot.inputs(case) == "2,000 documents, dim 128, 2 rounds"
    assert plot.slowest(case["contenders"]["a"]) == 8.0
    assert plot.slowest({"rate": 10.0}) == 10.0


def test_values_are_held_against_the_exact_ones(tmp_path):
    exact = np.arange(24.0).reshape(2, 12)
    case = measuring.Case(**{**vars(a_case("ours")), "exact": lambda _queries: exact})
    wrong = exact.copy()
    wrong[1, 0] = 50
    np.save(tmp_path / "ours.npy", wrong)
    found = measuring.compared(case, "ours", tmp_path)
    assert found == {"largest_difference": 38.0, "queries_with_the_same_top_10": "1 of 2"}
    np.save(tmp_path / "ours.npy", exact[:, :3])
    assert measuring.compared(case, "ours", tmp_path) == {"differs": "shape [2, 3], wanted [2, 12]"}


def test_top_is_the_ten_best_best_first():
    assert measuring.top(np.arange(12.0)[None]) == [[11, 10, 9, 8, 7, 6, 5, 4, 3, 2]]


def test_the_examples_of_the_docstrings_hold():
    for module in (rounds, environments, plot):
        outcome = doctest.testmod(module)
        assert outcome.attempted
        assert not outcome.failed


def test_the_null_model_gives_every_token_a_row():
    forward = worker.null_forward(6, dtype=torch.bfloat16)
    hidden = forward(input_ids=torch.zeros(2, 3, dtype=torch.int64), attention_mask=None).last_hidden_state
    assert hidden.shape == (2, 3, 6)
    assert hidden.dtype == torch.bfloat16


def test_a_peers_run_file_is_one_that_evalkit_reads(tmp_path):
    worker.write_run(str(tmp_path / "run.trec"), {"q": [("d2", 1.5), ("d1", 1 / 3)]}, tag="peer")
    assert read_run(tmp_path / "run.trec") == {"q": [Hit("d2", 1.5), Hit("d1", pytest.approx(1 / 3))]}


def test_documents_are_joined_as_evalkit_joins_them(tmp_path):
    rows = [{"_id": "a", "title": "T", "text": " x "}, {"_id": "b", "title": "", "text": "y"}]
    (tmp_path / "corpus.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    joined = [Document(row["_id"], row["title"], row["text"]).joined() for row in rows]
    assert worker.read_documents(str(tmp_path)) == (["a", "b"], joined)


def test_the_shown_command_names_no_folder_of_the_machine():
    assert figures.shown(["--corpus", "/home/me/nfcorpus", "--out", "results/bench"])[1] == "nfcorpus"


def test_an_unknown_stage_and_a_missing_corpus_are_refused(monkeypatch, tmp_path):
    for words, message in (
        (["--stages", "maxsin"], "stage 'maxsin' unknown; wanted some of maxsim,encode,"),
        (["--stages", "maxsim,host"], "stage host wants --corpus DIR"),
    ):
        monkeypatch.setattr(sys, "argv", ["bench.py", *words, "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit, match=message):
            bench.main()
    assert not (tmp_path / "out").exists()


def test_the_kernels_and_the_plain_einsum_agree_with_the_exact_scores(tmp_path, monkeypatch):
    """One real case through real processes; what has no environment here is left out."""
    chosen = options(
        maxsim_queries=2, maxsim_documents=12, rounds=1, envs=tmp_path / "none", out=tmp_path, budget_s=0.1
    )
    monkeypatch.setattr(measuring, "CEILINGS", Contender("ceilings", "none", {}))
    ragged = maxsim.maxsim(chosen, tmp_path)[1]
    figures = measuring.measure(ragged, chosen, tmp_path / "ragged")
    pairs = ["int16"] if registers.multiplies_pairs() else []
    ours = {f"{name}{short}" for name in ("evalkit ", "evalkit exact search, ") for short in ("fp32", "bf16", *pairs)}
    assert set(figures["contenders"]) == {*ours, "torch padded einsum", "torch chunked einsum"}
    for name in ("evalkit fp32", "torch padded einsum", "torch chunked einsum"):
        assert figures["contenders"][name]["largest_difference"] < 1e-4
        assert figures["contenders"][name]["queries_with_the_same_top_10"] == "2 of 2"
    assert figures["contenders"]["evalkit bf16"]["largest_difference"] < 0.5
    assert all(figures["contenders"][f"evalkit {short}"]["largest_difference"] < 0.02 for short in pairs)
