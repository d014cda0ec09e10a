"""What happens to a run whose corpus, queries, judgements or checkpoint change under it, or after it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import evalkit.mteb
from evalkit import datasets
from evalkit.analysis import collected as collected_runs
from evalkit.analysis import explain, replay
from evalkit.config.compose import compose
from evalkit.config.settings import EncoderConfig, RunConfig
from evalkit.datasets import learned
from evalkit.datasets.folder import FolderCorpus
from evalkit.datasets.survey import ContentHash, ShardRange, read_shard, survey
from evalkit.errors import ChangedError, ConfigError, DeviationError, ModelError, ScoreError
from evalkit.models.checkpoint import resolve
from evalkit.operations import forecast
from evalkit.report import table
from evalkit.run import loaded, pipeline, rerank, reuse
from evalkit.storage import per_query_file, results, seal
from evalkit.storage.results import CellScores
from evalkit.types import Document

FOXES = [f"red fox {number}" for number in (1, 2, 3)]
REVERSED = ["fox 1", "red fox 2", "red red fox 3"]
AGAIN = "scored again"
"""In the line about a finished cell that is scored again, and in no other."""
LINE = "the judgements have changed since it was scored; its run file is scored again"


def write_corpus(folder: Path, texts: Sequence[str]) -> None:
    lines = [json.dumps({"_id": f"d{number}", "text": text}) for number, text in enumerate(texts, start=1)]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")


def write_qrels(folder: Path, relevant: str) -> None:
    (folder / "qrels" / "test.tsv").write_text(f"q1\t{relevant}\t1\n", encoding="utf-8")


def collection(folder: Path, texts: Sequence[str] = FOXES, *, relevant: str = "d1", query: str = "red fox") -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    write_corpus(folder, texts)
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": query}), encoding="utf-8")
    write_qrels(folder, relevant)
    return folder


def config_of(folder: Path, place: Path, *more: str) -> RunConfig:
    words = ["dataset=folder", f"dataset.path={folder}", f"results_dir={place}/results", f"cache_dir={place}/cache"]
    return compose([*([] if any(word.startswith("model=") for word in more) else ["model=bm25"]), *words, *more])


def run(config: RunConfig) -> tuple[CellScores, str]:
    """Return the only cell of a run, and what was said."""
    said = StringIO()
    (cell,) = pipeline.run(config, console=Console(file=said, width=1000))
    return cell, said.getvalue()


def after_survey(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something once, between the survey of a run and all else."""
    plan = pipeline.plan

    def acting(task: Any) -> Any:
        monkeypatch.setattr(pipeline, "plan", plan)
        act()
        return plan(task)

    monkeypatch.setattr(pipeline, "plan", acting)


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


@pytest.fixture
def foxes(tmp_path: Path) -> Path:
    return collection(tmp_path / "foxes")


# The corpus


@pytest.mark.parametrize("model", [["model=bm25"], ["model=demo", "dim=64"]])
def test_a_corpus_replaced_under_a_run_stops_it_and_leaves_nothing(
    foxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: list[str]
) -> None:
    config = config_of(foxes, tmp_path, *model)
    clean = run(config_of(foxes, tmp_path / "elsewhere", *model))[0]
    after_survey(monkeypatch, lambda: write_corpus(foxes, REVERSED))
    with pytest.raises(ChangedError) as caught:
        run(config)
    assert str(caught.value) == (
        "dataset folder/foxes: got other content for documents 1 to 3 (shard 1), wanted what the survey read: the "
        "corpus changed during the job or its survey is out of date; nothing of this shard was stored: leave the "
        "corpus alone and run the command again"
    )
    assert not files(tmp_path / "cache", "*.safetensors")
    assert not files(tmp_path / "results", "*")
    changed = run(config)[0]
    assert changed.run_id != clean.run_id
    write_corpus(foxes, FOXES)
    restored = run(config)[0]
    assert (restored.run_id, restored.metrics) == (clean.run_id, clean.metrics)


class _Sent:
    """Stands for workers: keeps the names of the shards that the driver sent, and answers none of them."""

    cpus_per_worker = 1

    def __init__(self) -> None:
        self.names: list[str] = []

    def prepare(self, _key: str, _load: object) -> None:
        """Load nothing."""

    def map(self, _key: str, _load: object, pieces: Any, **_options: object) -> Any:
        for piece in pieces:
            self.names.append(piece.name)
            yield from ()


@pytest.mark.parametrize("model", [["model=bm25"], ["model=demo", "dim=64"]])
def test_a_driver_with_workers_sends_no_shard_that_is_not_as_surveyed(
    foxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: list[str]
) -> None:
    sent = _Sent()
    monkeypatch.setattr("evalkit.engines.ray.pool", lambda _resources: sent)
    after_survey(monkeypatch, lambda: write_corpus(foxes, REVERSED))
    with pytest.raises(
        ChangedError, match=r"got other content for documents 1 to 3 \(shard 1\), wanted what the survey"
    ):
        run(config_of(foxes, tmp_path, *model, "engine=ray", "engine.workers=1"))
    assert sent.names == []
    assert not files(tmp_path / "cache", "*.safetensors")
    assert not files(tmp_path / "results", "*")


def test_the_scores_of_a_replaced_corpus_are_its_own(
    foxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three equal texts d1 is first; where it lacks "red" it is last: 1 / log2(1 + 3) = .5."""
    after_survey(monkeypatch, lambda: write_corpus(foxes, REVERSED))
    with pytest.raises(ChangedError):
        run(config_of(foxes, tmp_path))
    assert run(config_of(foxes, tmp_path))[0].metrics["ndcg@10"] == pytest.approx(0.5)
    write_corpus(foxes, FOXES)
    assert run(config_of(foxes, tmp_path))[0].metrics["ndcg@10"] == pytest.approx(1.0)


def test_shards_before_the_change_stay_and_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight documents of 400 bytes, a shard of 1,000 estimated tokens each four of them: only the second changes."""
    texts = [f"red fox {number} " + "x" * 400 for number in range(8)]
    folder = collection(tmp_path / "long", texts)
    config = config_of(folder, tmp_path, "store.shard_tokens=1000")
    after_survey(monkeypatch, lambda: write_corpus(folder, [*texts[:-1], "red fox"]))
    with pytest.raises(ChangedError, match=r"to 8 \(shard"):
        run(config)
    kept = {path.stem for path in files(tmp_path / "cache" / "topk", "*.safetensors")}
    write_corpus(folder, texts)
    task = pipeline.prepare(config, console=Console(quiet=True))
    assert kept == {shard.checksum for shard in task.survey.shards[:-1]}
    assert kept


def test_a_corpus_cut_short_says_how_many_documents_there_were(
    foxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_survey(monkeypatch, lambda: write_corpus(foxes, FOXES[:2]))
    with pytest.raises(ChangedError, match="got 2 documents for documents 1 to 3"):
        run(config_of(foxes, tmp_path))


def test_a_stale_survey_is_dropped_so_that_the_next_run_is_right(
    foxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the same size and time is the same file to a fingerprint, but not to the reader of a shard."""
    monkeypatch.setattr(FolderCorpus, "fingerprint", lambda _self: "always the same")
    assert run(config_of(foxes, tmp_path))[0].metrics["ndcg@10"] == 1.0
    write_corpus(foxes, REVERSED)
    shutil.rmtree(tmp_path / "results")
    shutil.rmtree(tmp_path / "cache" / "topk")
    with pytest.raises(ChangedError):
        run(config_of(foxes, tmp_path))
    assert run(config_of(foxes, tmp_path))[0].metrics["ndcg@10"] == pytest.approx(0.5)


def test_a_corpus_that_changes_during_its_survey_is_not_cached(
    foxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = FolderCorpus.documents

    def documents(self: FolderCorpus, start: int = 0, stop: int | None = None) -> Any:
        yield from read(self, start, stop)
        write_corpus(foxes, REVERSED)

    monkeypatch.setattr(FolderCorpus, "documents", documents)
    with pytest.raises(ChangedError, match=r"folder/foxes: got a corpus that changed during its survey"):
        run(config_of(foxes, tmp_path))
    assert not files(tmp_path / "cache" / "surveys", "*")


def test_a_word_that_moves_from_the_title_to_the_text_is_another_shard(tmp_path: Path) -> None:
    """A model reads both joined; BM25 over fields reads them apart."""

    @dataclasses.dataclass
    class One:
        document: Document

        def fingerprint(self) -> str:
            return "one"

        def documents(self, start: int = 0, stop: int | None = None) -> Any:
            yield from [self.document][start:stop]

        def where(self, index: int) -> str:
            return str(index)

    corpus = One(Document("d", "red", "fox den"))
    found = survey(corpus, shard_tokens=1000, max_document_tokens=300, cache_dir=tmp_path, name="one")
    (shard,) = found.shards
    assert list(read_shard(corpus, shard, name="one")) == [corpus.document]
    corpus.document = Document("d", "red fox", "den")
    with pytest.raises(ChangedError, match=r"dataset one: got other content for documents 1 to 1"):
        list(read_shard(corpus, shard, name="one"))
    content = ContentHash()
    content.add(corpus.document)
    same = ShardRange(0, 0, 1, shard.checksum, content.hexdigest())
    assert list(read_shard(corpus, same, name="one")) == [corpus.document]


# Queries and judgements


def test_queries_and_judgements_are_read_once(foxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaced under a run they are those that it began with; the next run sees the new ones."""

    def replace() -> None:
        (foxes / "queries.jsonl").write_text('{"_id": "q1", "text": "3"}', encoding="utf-8")
        write_qrels(foxes, "d2")

    after_survey(monkeypatch, replace)
    first = run(config_of(foxes, tmp_path))[0]
    assert first.metrics["ndcg@10"] == 1.0
    assert replay.load(tmp_path / "results", first).qrels == {"q1": {"d1": 1}}
    second = run(config_of(foxes, tmp_path))[0]
    assert second.run_id != first.run_id
    assert second.metrics["ndcg@10"] == 0.0  # "3" finds d3 alone, and d2 is relevant


def test_changed_judgements_score_a_finished_run_again_without_a_search(
    foxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is d1, d2, d3. With d3 relevant, NDCG@10 is 1 / log2(1 + 3) = .5 and MRR@10 1/3."""
    config = config_of(foxes, tmp_path)
    before = run(config)[0]
    folder = tmp_path / "results" / "runs" / before.run_id
    run_file = (folder / results.RUN).read_bytes()
    write_qrels(foxes, "d3")

    def search(*_arguments: Any, **_settings: Any) -> Any:
        pytest.fail("searched again")

    monkeypatch.setattr(pipeline, "search", search)
    after, said = run(config)
    assert f"{before.run_id}: {LINE}" in said
    assert after.metrics == pytest.approx({"ndcg@10": 0.5, "mrr@10": 1 / 3, "recall@100": 1.0})
    assert results.read(folder / results.SCORES).metrics == after.metrics
    assert (folder / results.RUN).read_bytes() == run_file
    assert per_query_file.read(folder / results.PER_QUERY).column("ndcg@10").tolist() == pytest.approx([0.5])
    assert replay.load(tmp_path / "results", after).qrels == {"q1": {"d3": 1}}
    assert after.environment["scored_again"]["ranx"]
    assert AGAIN not in run(config)[1]
    write_qrels(foxes, "d1")
    assert run(config)[0].metrics == before.metrics


def test_another_main_metric_or_other_metrics_score_again(foxes: Path, tmp_path: Path) -> None:
    first = run(config_of(foxes, tmp_path))[0]
    second, said = run(config_of(foxes, tmp_path, "dataset.main_metric=mrr@10"))
    assert (second.run_id, second.main_metric) == (first.run_id, "mrr@10")
    assert "its main metric was ndcg@10, wanted mrr@10; its run file is scored again" in said
    third, said = run(config_of(foxes, tmp_path, "dataset.main_metric=mrr@10", "metrics=[recall@2]"))
    assert third.run_id == first.run_id
    assert list(third.metrics) == ["ndcg@10", "mrr@10", "recall@100", "recall@2"]
    assert third.metrics["recall@2"] == 1.0
    assert "it was scored with ndcg@10, mrr@10, recall@100, wanted ndcg@10, mrr@10, recall@100, recall@2" in said
    fourth, said = run(config_of(foxes, tmp_path, "dataset.main_metric=mrr@10"))
    assert fourth.metrics == third.metrics  # what was measured once is not lost
    assert AGAIN not in said
    saved = yaml.safe_load((tmp_path / "results" / "runs" / first.run_id / results.CONFIG).read_text("utf-8"))
    assert saved["metrics"] == list(third.metrics)
    shown = table.markdown(table.rows([third]))
    assert "| ndcg@10 | mrr@10 | recall@100 | recall@2 | compared |" in shown


def test_bm25_says_how_it_takes_a_language_that_is_not_given(foxes: Path, tmp_path: Path) -> None:
    _, said = run(config_of(foxes, tmp_path))
    assert "its language is not given, so bm25 analyses it as English; dataset.language=CODE" in said
    _, said = run(config_of(foxes, tmp_path, "dataset.language=es"))
    assert "language" not in said


@pytest.mark.parametrize(
    ("language", "model"), [("spanish", "bm25"), ("vi", "bm25"), ("es", "bm25-flat"), ("es", "bm25s")]
)
def test_bm25_says_where_it_analyses_another_language_as_english(
    foxes: Path, tmp_path: Path, language: str, model: str
) -> None:
    """A language without an analyzer, or none that evalkit knows, is analysed as English: other scores than es has."""
    _, said = run(config_of(foxes, tmp_path, f"dataset.language={language}", f"model={model}"))
    assert f"its language is {language}, and {model} analyses it as English; model.analyzer=NAME" in said


def test_a_run_with_a_reranker_is_refused_and_not_scored_without_it(foxes: Path, tmp_path: Path) -> None:
    name = "jina-reranker-v2-base-multilingual"
    message = f"reranker={name}: got a re-ranker, wanted none, .*; leave it out here, .*: evalkit rerank RUN"
    ((_, planned),) = forecast.combinations(["model=bm25", f"dataset.path={foxes}", f"reranker={name}"])
    assert isinstance(planned, ConfigError)
    with pytest.raises(ConfigError, match=message):
        run(config_of(foxes, tmp_path, f"reranker={name}"))
    assert not (tmp_path / "results").exists()
    with pytest.raises(ConfigError, match=message):
        evalkit.mteb.encoder("model=bm25", f"reranker={name}", f"cache_dir={tmp_path}")


def test_other_query_groups_score_again(foxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of the same names over other queries have other means: q1 scores 1, q2, whose document is absent, 0."""
    (foxes / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "red fox"}\n{"_id": "q2", "text": "red fox"}', encoding="utf-8"
    )
    (foxes / "qrels" / "test.tsv").write_text("q1\td1\t1\nq2\td1\t0\nq2\td9\t1\n", encoding="utf-8")
    load = datasets.SOURCES["folder"]

    def grouped(group: tuple[str, ...]) -> Callable[[Any], Any]:
        return lambda config: dataclasses.replace(load(config), query_groups={"some": group})

    sources = dict(datasets.SOURCES)
    monkeypatch.setattr(datasets, "SOURCES", sources)
    config = config_of(foxes, tmp_path, "dataset.counts.missing=1")
    sources["folder"] = grouped(("q1",))
    assert run(config)[0].groups["some"]["ndcg@10"] == 1.0
    assert AGAIN not in run(config)[1]
    sources["folder"] = grouped(("q1", "q2"))
    cell, said = run(config)
    assert cell.groups["some"]["ndcg@10"] == 0.5
    assert "the query groups have changed since it was scored" in said


def strip(path: Path) -> None:
    """Make a scores.json what an older version wrote."""
    values = seal.read(path.read_bytes())
    del values["environment"][results.QRELS_CHECKSUM]
    path.write_text(json.dumps(seal.seal(values)), encoding="utf-8")


def test_older_results_are_held_against_the_judgements_beside_them(foxes: Path, tmp_path: Path) -> None:
    config = config_of(foxes, tmp_path)
    folder = tmp_path / "results" / "runs" / run(config)[0].run_id
    strip(folder / results.SCORES)
    old = (folder / results.SCORES).read_bytes()
    assert AGAIN not in run(config)[1]
    assert (folder / results.SCORES).read_bytes() == old
    write_qrels(foxes, "d3")
    cell, said = run(config)
    assert cell.metrics["ndcg@10"] == pytest.approx(0.5)
    assert LINE in said


def test_older_results_without_judgements_are_scored_again_once(foxes: Path, tmp_path: Path) -> None:
    config = config_of(foxes, tmp_path)
    folder = tmp_path / "results" / "runs" / run(config)[0].run_id
    strip(folder / results.SCORES)
    (folder / results.QRELS).unlink()
    write_qrels(foxes, "d3")
    cell, said = run(config)
    assert cell.metrics["ndcg@10"] == pytest.approx(0.5)
    assert "its result does not record the judgements that it was scored with; its run file is scored again" in said
    assert AGAIN not in run(config)[1]


@pytest.mark.parametrize(("relevant", "value"), [("d1", 1.0), ("d3", 0.5)])
@pytest.mark.parametrize("older", [False, True])
def test_a_kill_while_scoring_again_leaves_no_scores_to_believe(
    foxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relevant: str, value: float, older: bool
) -> None:
    """Whichever judgements are asked for afterwards, those before or those of the killed run."""
    config = config_of(foxes, tmp_path)
    folder = tmp_path / "results" / "runs" / run(config)[0].run_id
    if older:
        strip(folder / results.SCORES)
    write_qrels(foxes, "d3")

    def killed(*_arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(reuse.metrics, "score", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    interrupted = results.read(folder / results.SCORES)
    with pytest.raises(ScoreError, match=r"got a cell whose scoring was interrupted, .*; run the cell again"):
        replay.load(tmp_path / "results", interrupted)
    write_qrels(foxes, relevant)
    cell, said = run(config)
    assert cell.metrics["ndcg@10"] == pytest.approx(value)
    assert LINE in said
    assert replay.load(tmp_path / "results", cell).qrels == {"q1": {relevant: 1}}


def test_without_its_run_file_a_run_with_other_judgements_is_searched_again(foxes: Path, tmp_path: Path) -> None:
    config = config_of(foxes, tmp_path)
    folder = tmp_path / "results" / "runs" / run(config)[0].run_id
    (folder / results.RUN).unlink()
    write_qrels(foxes, "d3")
    cell, said = run(config)
    assert cell.metrics["ndcg@10"] == pytest.approx(0.5)
    assert "and its run file cannot be read" in said
    assert "it is searched again" in said
    assert (folder / results.RUN).is_file()


# The checkpoint


@pytest.fixture
def own_checkpoint(tmp_path: Path) -> Path:
    """Return a copy of the demo checkpoint that may be written to."""
    model = compose(["model=demo"]).model
    assert isinstance(model, EncoderConfig)
    source = resolve(model.checkpoints["64"]).folder
    shutil.copytree(source, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def rewritten(path: Path) -> None:
    """Replace a file by a copy of itself, as an update would: another inode."""
    beside = path.with_name("beside")
    shutil.copyfile(path, beside)
    beside.replace(path)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_checkpoint_replaced_between_its_checksum_and_its_reading_is_refused(
    foxes: Path, tmp_path: Path, own_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    words = ["model=demo", "dim=64", f"model.checkpoints.64.path={own_checkpoint}"]
    search = pipeline.search

    def replacing(*arguments: Any, **settings: Any) -> Any:
        rewritten(own_checkpoint / name)
        return search(*arguments, **settings)

    monkeypatch.setattr(pipeline, "search", replacing)
    with pytest.raises(ModelError, match=rf"{name}: got a file that changed after its checksum was taken"):
        run(config_of(foxes, tmp_path, *words))
    assert not files(tmp_path / "cache", "*.safetensors")
    assert not files(tmp_path / "results", "*.json")


def test_a_checkpoint_replaced_while_it_encodes_stores_nothing(
    foxes: Path, tmp_path: Path, own_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights may stay mapped to their file, so that what is written into it changes them."""
    words = ["model=demo", "dim=64", f"model.checkpoints.64.path={own_checkpoint}"]

    def canary(*_arguments: Any) -> frozenset[int]:
        rewritten(own_checkpoint / "model.safetensors")
        return frozenset()

    monkeypatch.setattr(loaded, "canary", canary)
    with pytest.raises(ModelError, match=r"wanted the same file for the whole job; nothing more was stored"):
        run(config_of(foxes, tmp_path, *words))
    assert not files(tmp_path / "cache", "*.safetensors")
    assert not files(tmp_path / "results", "*.json")


# After the run


def test_explain_refuses_texts_that_the_run_did_not_read(foxes: Path, tmp_path: Path) -> None:
    config = config_of(foxes, tmp_path)
    cell = run(config)[0]
    material = replay.load(tmp_path / "results", cell)
    assert explain.text_flags(config, material, ["q1"]) == {"q1": ()}
    write_corpus(foxes, REVERSED)
    with pytest.raises(ChangedError, match=r"got corpus of checksum \w+ from folder foxes, wanted the run's \w+; give"):
        explain.text_flags(config, material, ["q1"])
    write_corpus(foxes, FOXES)
    (foxes / "queries.jsonl").write_text('{"_id": "q1", "text": "blue fox"}', encoding="utf-8")
    with pytest.raises(ChangedError, match="got queries of checksum"):
        explain.text_flags(config, material, ["q1"])


def test_replay_refuses_as_many_judgements_of_other_documents(foxes: Path, tmp_path: Path) -> None:
    cell = run(config_of(foxes, tmp_path))[0]
    (tmp_path / "results" / "runs" / cell.run_id / results.QRELS).unlink()
    assert replay.load(tmp_path / "results", cell).qrels == {"q1": {"d1": 1}}
    write_qrels(foxes, "d3")
    with pytest.raises(ScoreError, match=r"got judgements of checksum \w+ from folder/foxes, wanted the \w+ of its"):
        replay.load(tmp_path / "results", cell)


def test_a_run_is_reranked_over_its_own_corpus_alone(foxes: Path, tmp_path: Path) -> None:
    cell, _ = run(config_of(foxes, tmp_path))
    path = tmp_path / "results" / "runs" / cell.run_id / results.RUN

    class Lengths:
        def pairs(self, query: str, texts: Sequence[str]) -> list[str]:
            return [f"{query} {text}" for text in texts]

        def scores(self, pairs: Sequence[str]) -> list[float]:
            return [float(len(pair)) for pair in pairs]

    def reranked() -> dict[str, Any]:
        return rerank.rerank(
            results.read_run(path),
            datasets.load(config_of(foxes, tmp_path).dataset),
            Lengths(),
            depth=3,
            batch_tokens=100,
            advance=lambda *_: None,
            corpus=results.corpus_of(path),
        )

    assert {hit.document_id for hit in reranked()["q1"]} == {"d1", "d2", "d3"}
    write_corpus(foxes, REVERSED)
    with pytest.raises(ScoreError, match=rf"from folder foxes, wanted {cell.protocol['corpus']}, over which the run"):
        reranked()
    other = tmp_path / "other.trec.gz"
    shutil.copy(path, other)
    assert results.corpus_of(other) is None


def test_documents_with_a_title_alone_are_counted_where_bm25_leaves_them_out(tmp_path: Path) -> None:
    folder = collection(tmp_path / "titles")
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(f'\n{{"_id": "{name}", "title": "{name}", "text": " "}}' for name in ("t1", "t2"))
    counts = run(config_of(folder, tmp_path))[0].counts
    assert (counts["documents"], counts["title_only_documents"], counts["empty_documents"]) == (5, 2, 0)
    one_field = run(config_of(folder, tmp_path, "model=bm25-flat"))[0].counts
    assert "title_only_documents" not in one_field


# What a dataset was held against


@pytest.fixture
def collected(foxes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is read as a collection of ir-datasets."""
    sources = dict(datasets.SOURCES)
    load = sources["folder"]

    def collection_of(config: Any) -> Any:
        read = load(dataclasses.replace(config, path=str(foxes)))
        return dataclasses.replace(read, source="ir_datasets 0.5.11 own/foxes")

    sources["ir_datasets"] = collection_of
    monkeypatch.setattr(datasets, "SOURCES", sources)
    return foxes


def collected_config(place: Path, *more: str) -> RunConfig:
    words = ["dataset=ir-datasets", "dataset.ir_datasets_id=own/foxes", f"results_dir={place}/results"]
    return compose(["model=bm25", *words, f"cache_dir={place}/cache", *more])


def test_a_second_read_of_a_collection_is_held_against_the_first(collected: Path, tmp_path: Path) -> None:
    first = run(collected_config(tmp_path))[0]
    assert first.environment["dataset_verified"] == "nothing"
    shutil.rmtree(tmp_path / "results")
    assert run(collected_config(tmp_path))[0].environment["dataset_verified"] == "learned"
    write_corpus(collected, REVERSED)
    (kept,) = files(tmp_path / "cache" / "corpora", "*")
    with pytest.raises(DeviationError) as caught:
        run(collected_config(tmp_path))
    assert str(caught.value).endswith(
        f"from ir_datasets 0.5.11 own/foxes, wanted {first.protocol['corpus']}, which the first complete read had, so "
        f"some id, title or text differs, or their order; repair the data, delete {kept} if the first copy was the "
        "wrong one, or accept and record the deviation with dataset.verify=false"
    )
    accepted = run(collected_config(tmp_path, "dataset.verify=false"))[0]
    assert len(accepted.deviations) == 1
    assert json.loads(kept.read_text(encoding="utf-8"))["checksum"] == first.protocol["corpus"]
    kept.unlink()
    assert run(collected_config(tmp_path))[0].deviations == ()


def test_an_own_folder_may_change(foxes: Path, tmp_path: Path) -> None:
    run(config_of(foxes, tmp_path))
    write_corpus(foxes, REVERSED)
    assert run(config_of(foxes, tmp_path))[0].environment["dataset_verified"] == "nothing"
    assert not files(tmp_path / "cache" / "corpora", "*")


def test_a_corpus_that_deviates_is_not_remembered(collected: Path, tmp_path: Path) -> None:
    assert collected.is_dir()
    words = ["dataset.counts.documents=4", "dataset.verify=false"]
    cell = run(collected_config(tmp_path, *words))[0]
    assert cell.environment["dataset_verified"] == "counts"
    assert not files(tmp_path / "cache" / "corpora", "*")


def test_the_strongest_proof_is_named(tmp_path: Path) -> None:
    config = collected_config(tmp_path).dataset
    known = learned.Learned("c", tmp_path)
    counted = dataclasses.replace(config, counts=dataclasses.replace(config.counts, documents=3))
    assert learned.verified(config, None) == "nothing"
    assert learned.verified(counted, None) == "counts"
    assert learned.verified(counted, known) == "learned"
    assert learned.verified(dataclasses.replace(counted, checksum="c"), known) == "checksum"


# Costs, and names


def test_costs_that_are_lost_are_said(foxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The top-k of the only shard is deleted between the search and the result."""
    words = ["model=demo", "dim=64"]
    whole = run(config_of(foxes, tmp_path / "whole", *words))[0]
    assert whole.counts["document_vectors"] > 0
    assert "shards_without_costs" not in whole.counts
    finish = pipeline.finish

    def finishing(*arguments: Any, **settings: Any) -> Any:
        shutil.rmtree(tmp_path / "cache" / "topk")
        return finish(*arguments, **settings)

    monkeypatch.setattr(pipeline, "finish", finishing)
    cell, said = run(config_of(foxes, tmp_path, *words))
    assert cell.metrics == whole.metrics
    assert cell.counts["shards_without_costs"] == 1
    assert "document_vectors" not in cell.counts
    assert "the manifests of 1 of 1 shards no longer state their costs" in said
    assert "document_vectors" in said


def test_a_path_without_a_dataset_is_a_folder_and_never_the_demo(foxes: Path) -> None:
    config = compose(["model=bm25", f"dataset.path={foxes}"]).dataset
    assert (config.name, config.sources, config.demo) == ("folder/foxes", ("folder",), None)
    with pytest.raises(ConfigError, match=r"'demo' is generated, not read from a folder: got dataset\.path=.*=folder"):
        compose(["model=bm25", "dataset=demo", f"dataset.path={foxes}"])


def test_two_folders_are_two_datasets_in_a_report(tmp_path: Path) -> None:
    for name in ("foxes", "wolves"):
        run(config_of(collection(tmp_path / name), tmp_path))
    found = collected_runs.collect(tmp_path / "results", checksums={})
    assert [cell.dataset for cell in found.cells] == ["folder/foxes", "folder/wolves"]
    assert found.problems == ()


def test_two_ids_of_ir_datasets_are_two_datasets() -> None:
    words = ["model=bm25", "model.b={default: 0.4, ir-datasets/wikir/en1k/test: 0.9}", "dataset=ir-datasets"]
    first, second = (compose([*words, f"dataset.ir_datasets_id={name}"]) for name in ("wikir/en1k/test", "cranfield"))
    assert (first.dataset.name, second.dataset.name) == ("ir-datasets/wikir/en1k/test", "ir-datasets/cranfield")
    assert (first.model.b, second.model.b) == (0.9, 0.4)
    assert compose(["dataset=ir-datasets"]).dataset.name == "ir-datasets"
    with pytest.raises(ConfigError, match=r"dataset\.name=None: wanted text"):
        compose(["dataset=beir/nfcorpus", "dataset.name=null"])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/my corpus/", "folder/my_corpus"),
        ("/data/a/../größe", "folder/größe"),
        ("/data/a(b)=c", "folder/a_b_c"),
        ("/", "folder"),
        ("/data/" + "x" * 200, "folder/" + "x" * 50),
    ],
)
def test_a_folders_name_is_made_safe_for_run_ids(path: str, name: str) -> None:
    assert compose(["dataset=folder", f"dataset.path={path}"]).dataset.name == name


def test_a_given_name_is_taken(foxes: Path) -> None:
    assert compose(["dataset=folder", f"dataset.path={foxes}", "dataset.name=mine"]).dataset.name == "mine"
