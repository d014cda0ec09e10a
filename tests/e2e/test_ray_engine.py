"""Workers on two Ray nodes of this machine: the same bytes as one process, and every fault at a known point."""

import dataclasses
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from random import Random

import pytest
from ray_steps import CannotLoad, Load
from rich.console import Console

from evalkit.config.compose import compose
from evalkit.engines import ray as engine
from evalkit.engines.ray_cluster import Resources
from evalkit.errors import ConfigError, EngineError, ModelError, StoreError
from evalkit.run import distributed, jobs, pipeline

pytest.importorskip("ray", reason="the extra evalkit[ray] is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's own sockets and processes
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

QUIET = Console(quiet=True)
SMALL = ["dataset.demo.documents=120", "dataset.demo.queries=16", "store.shard_tokens=4000"]


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two nodes with one processor each: a worker on either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token into the home folder
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        from ray.cluster_utils import Cluster

        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        started.add_node(num_cpus=1)
        yield started
        engine.close()
        started.shutdown()


@pytest.fixture
def pool(cluster):
    return engine.pool(asked(cluster))


def asked(cluster, **changes):
    values = {
        "address": cluster.address,
        "workers": 2,
        "gpus_per_worker": 0,
        "cpus_per_worker": 1,
        "object_bytes": 1 << 20,
    }
    return Resources(**{**values, **changes})


def done_with(pool, folder, works, **options):
    """What comes back for some pieces of work, by name."""
    load = Load(folder)
    pool.prepare(str(folder), load)
    pieces = (engine.WorkItem(name=f"piece {place}", work=work, size=1) for place, work in enumerate(works))
    return {answer.name: answer for answer in pool.map(str(folder), load, pieces, **options)}


def run(tmp_path, *words):
    places = [f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"]
    return pipeline.run(compose([*SMALL, *words, *places]), console=QUIET)


def files(folder):
    names = ("run.trec.gz", "per_query.tsv")
    return {path.relative_to(folder): path.read_bytes() for name in names for path in folder.rglob(name)}


# ---- the same bytes


@pytest.mark.parametrize("words", [["model=demo", "dim=[128,64]"], ["model=bm25"]], ids=["vectors", "bm25"])
def test_two_workers_on_two_nodes_give_the_bytes_of_one_process(cluster, tmp_path, words):
    alone = run(tmp_path / "local", *words)
    together = run(tmp_path / "ray", *words, "engine=ray", "engine.workers=2", f"engine.address={cluster.address}")
    assert [cell.run_id for cell in together] == [cell.run_id for cell in alone]
    assert [cell.metrics for cell in together] == [cell.metrics for cell in alone]
    assert files(tmp_path / "ray" / "results") == files(tmp_path / "local" / "results")
    assert together[0].counts["shards"] > 4
    assert together[0].environment["engine"] == "ray"
    assert together[0].environment["workers"] == 2
    assert together[0].environment["nodes"] == 2
    assert "engine" not in alone[0].environment


def test_workers_store_the_embeddings_that_one_process_stores(cluster, tmp_path):
    words = ["model=demo", "dim=64"]
    run(tmp_path / "local", *words)
    run(tmp_path / "ray", *words, "engine=ray", "engine.workers=2", f"engine.address={cluster.address}")
    stored = {
        side: {path.name: path.read_bytes() for path in (tmp_path / side / "cache" / "stores").rglob("*.safetensors")}
        for side in ("local", "ray")
    }
    assert len(stored["local"]) > 4
    assert stored["ray"] == stored["local"]
    assert [path.name for path in (tmp_path / "ray" / "cache").iterdir() if path.name.startswith(".")] == []


def test_what_is_on_disk_is_not_sent_to_a_worker(cluster, tmp_path, monkeypatch):
    words = ["model=demo", "dim=64", "store.keep=topk"]
    of_ray = ["engine=ray", "engine.workers=2", f"engine.address={cluster.address}"]
    run(tmp_path, *words)
    wanted = files(tmp_path / "results")
    for path in (tmp_path / "results").rglob("scores.json"):
        path.unlink()
    (gone, *_) = sorted((tmp_path / "cache" / "topk").glob("*/*.json"))
    gone.unlink()
    sent = []
    monkeypatch.setattr(distributed, "_shard_name", lambda shard: sent.append(shard.checksum) or "a shard")
    run(tmp_path, *words, *of_ray)
    assert sent == [gone.stem]
    assert files(tmp_path / "results") == wanted


# ---- workers


def test_every_piece_comes_back_with_what_the_driver_knew_when_it_was_sent(pool, tmp_path):
    answers = done_with(pool, tmp_path, range(20), latest=lambda: "known")
    assert {name: answer.result[:2] for name, answer in answers.items()} == {
        f"piece {number}": (2 * number, "known") for number in range(20)
    }


def test_workers_stay_and_load_a_step_once(pool, tmp_path):
    first = done_with(pool, tmp_path, range(6))
    second = done_with(pool, tmp_path, range(6))
    workers = {answer.result[2] for answer in (*first.values(), *second.values())}
    assert {path.name for path in tmp_path.glob("loaded *")} == {f"loaded {worker}" for worker in pool_pids(pool)}
    assert workers <= set(pool_pids(pool))


def pool_pids(pool):
    return [slot.facts.process_id for slot in pool._slots]


def test_a_bounded_number_of_pieces_is_under_way(pool, tmp_path):
    read, most, finished = 0, 0, 0

    def works():
        nonlocal read, most
        for number in range(40):
            read += 1
            most = max(most, read - finished)
            yield number

    load = Load(tmp_path)
    pool.prepare(str(tmp_path), load)
    pieces = (engine.WorkItem(name=str(work), work=work, size=1) for work in works())
    for _ in pool.map(str(tmp_path), load, pieces):
        finished += 1
    assert finished == 40
    assert most <= 2 * 2 + (2 + 2)  # two under way on each of two workers, and as many read ahead


def test_a_worker_that_dies_is_replaced_and_its_piece_done_again(pool, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        answers = done_with(pool, tmp_path, [1, "dies once", *range(2, 8)])
    assert all(isinstance(answer, engine.Done) for answer in answers.values())
    assert len(answers) == 8
    (said,) = [record.getMessage() for record in caplog.records]
    alone = said.startswith("piece 1 failed on ") and said.endswith(
        " and is tried again: the worker ended: its process is gone"
    )
    # A worker that was sent a second piece in the meantime: either could have ended it.
    with_another = said.startswith("worker on ") and " ended and is started again (its process is gone); " in said
    assert alone or (with_another and "piece 1" in said.partition("; ")[2])
    assert sum(state.deaths for state in pool.states()) == 1


def test_a_piece_that_ends_two_workers_is_reported_and_the_others_are_finished(pool, tmp_path):
    answers = done_with(pool, tmp_path, [1, "always dies", *range(2, 8)])
    failed = answers.pop("piece 1")
    assert isinstance(failed, engine.Failed)
    first, second = failed.reasons
    assert first.endswith(": the worker ended: its process is gone")
    assert first != second  # they name two processes
    assert {reason.partition("process ")[2].partition(")")[0] for reason in failed.reasons} <= {
        path.name.split()[-1] for path in tmp_path.glob("attempt always dies *")
    }
    assert sorted(answer.result[0] for answer in answers.values()) == [2, 4, 6, 8, 10, 12, 14]


def test_a_piece_that_raises_twice_is_reported_with_the_reason_in_a_line(pool, tmp_path):
    failed = done_with(pool, tmp_path, [1, "raises", 2])["piece 1"]
    assert isinstance(failed, engine.Failed)
    assert [reason.partition("): ")[2] for reason in failed.reasons] == ["ValueError: three is no even number"] * 2
    workers = {reason.partition(": ")[0] for reason in failed.reasons}
    assert len(workers) == 2


def test_a_worker_whose_disk_is_full_is_given_up_and_the_other_does_its_piece(pool, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        answers = done_with(pool, tmp_path, [1, "no space once", 2, 3])
    assert all(isinstance(answer, engine.Done) for answer in answers.values())
    (state,) = [state.state for state in pool.states() if state.state.startswith("given up")]
    assert state == "given up: /cache: could not be written (No space left on device)"
    assert any("is given up: /cache: could not be written" in record.getMessage() for record in caplog.records)


def test_no_worker_with_space_left_is_one_line(pool, tmp_path):
    with pytest.raises(EngineError) as caught:
        done_with(pool, tmp_path, ["no space"])
    message = str(caught.value)
    assert message.startswith("no worker is left (")
    assert message.count("could not be written (No space left on device)") == 2
    assert "\n" not in message


def test_a_node_that_goes_takes_one_piece_with_it(cluster, tmp_path):
    pool = engine.pool(asked(cluster))
    gone = []

    def take_a_node_away():
        if len(list(tmp_path.glob("waiting *"))) == 2 and not gone:
            gone.append(cluster.list_all_nodes()[-1])
            cluster.remove_node(gone[0], allow_graceful=False)
            (tmp_path / "go on").touch()

    answers = done_with(pool, tmp_path, ["waits", "waits", 1, 2], on_tick=take_a_node_away)
    assert [node.node_id in pool.nodes for node in gone] == [True]
    assert sorted(str(answer.result[0]) for answer in answers.values()) == ["2", "4", "waits", "waits"]
    assert len(list(tmp_path.glob("attempt waits *"))) == 2
    engine.close()
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()


@pytest.mark.parametrize("moment", ["while workers start", "while they load"])
def test_a_node_that_goes_before_the_first_shard_leaves_the_work_to_the_others(
    cluster, tmp_path, caplog, monkeypatch, moment
):
    engine.close()
    fitting, gone = engine.fitting_workers, []

    def take_a_node_away(*_):
        if not gone:
            gone.append(cluster.list_all_nodes()[-1])
            cluster.remove_node(gone[0], allow_graceful=False)

    def leaving(ray, resources):
        if engine_is_starting:
            take_a_node_away()
        return fitting(ray, resources)

    engine_is_starting = False
    monkeypatch.setattr(engine, "fitting_workers", leaving)
    shares = engine.worker_shares

    def shared(ray, resources):
        nonlocal engine_is_starting
        found = shares(ray, resources)
        engine_is_starting = moment == "while workers start"
        return found

    monkeypatch.setattr(engine, "worker_shares", shared)
    with caplog.at_level(logging.WARNING):
        pool = engine.pool(asked(cluster))
        take_a_node_away()
        answers = done_with(pool, tmp_path, [1, 2, 3])
    assert sorted(answer.result[0] for answer in answers.values()) == [2, 4, 6]
    assert pool.lacks_workers
    said = "1 of 2 workers are left" if moment == "while workers start" else "is given up: "
    assert said in caplog.text
    engine.close()
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()


@pytest.mark.long
def test_twenty_random_kills_cost_at_most_a_piece_each(cluster, tmp_path):
    engine.close()
    pool = engine.pool(asked(cluster))
    random, kills, killed, sent = Random(7), 20, [], []

    def kill_one():
        ready = [slot for slot in pool._slots if slot.ready and not slot.deaths_in_a_row and slot.done > slot.deaths]
        if ready and sum(slot.deaths for slot in pool._slots) == len(killed) < kills:
            killed.append(random.choice(ready).facts.process_id)
            os.kill(killed[-1], signal.SIGKILL)

    def works():
        while len(killed) < kills:
            sent.append(len(sent))
            yield sent[-1]

    results, left = [], works()
    while left:  # a piece whose worker was killed twice is reported, and done by the same command later
        tried = {}
        noted = (tried.setdefault(f"piece {place}", work) for place, work in enumerate(left))
        answers = done_with(pool, tmp_path, noted, on_tick=kill_one)
        left = [tried[name] for name, answer in answers.items() if isinstance(answer, engine.Failed)]
        results += [answer.result[0] for answer in answers.values() if isinstance(answer, engine.Done)]
    assert len(killed) == kills
    assert sorted(results) == [2 * number for number in sent]
    assert len(list(tmp_path.glob("attempt *"))) <= len(sent) + kills


# ---- what is refused


def test_a_worker_with_other_versions_is_refused_with_both_named(cluster, tmp_path, monkeypatch):
    engine.close()
    real = engine.versions()
    monkeypatch.setattr(engine, "versions", lambda: {**real, "torch": "1.0.0"})
    with pytest.raises(ConfigError) as caught:
        engine.pool(asked(cluster))
    assert f"has torch {real['torch']}, this process torch 1.0.0; install the same on every node" in str(caught.value)


def test_a_worker_that_cannot_load_is_named_with_the_reason(pool):
    with pytest.raises(ModelError) as caught:
        pool.prepare("cannot", CannotLoad())
    message = str(caught.value)
    assert message.startswith(f"worker on {socket.gethostname()} (process ")
    assert message.endswith("): checkpoint folder /nowhere does not exist")


def test_more_gpus_than_there_are_is_one_line(cluster):
    engine.close()
    with pytest.raises(ConfigError) as caught:
        engine.pool(asked(cluster, gpus_per_worker=1.0, workers=8))
    assert str(caught.value) == (
        "engine.workers=8 with engine.gpus_per_worker=1: Ray sees 0 GPUs on 2 nodes; wanted at most 0 workers, or "
        "engine.device=cpu"
    )


def test_more_processors_than_there_are_is_one_line(cluster):
    engine.close()
    with pytest.raises(ConfigError) as caught:
        engine.pool(asked(cluster, workers=3))
    assert str(caught.value) == (
        "engine.workers=3 with engine.cpus_per_worker=1: Ray has 2 CPUs on 2 nodes; wanted at most 2 workers"
    )


def test_an_address_where_nobody_answers_is_one_line(cluster):
    engine.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            engine.pool(asked(cluster, address=f"127.0.0.1:{port}"))
    assert str(caught.value).startswith(
        f"engine.address=127.0.0.1:{port}: no Ray cluster answers there (ConnectionRefusedError: "
    )


def test_ray_that_is_not_installed_is_one_line_with_the_remedy(monkeypatch):
    engine.close()
    monkeypatch.setitem(sys.modules, "ray", None)
    resources = Resources(address="auto", workers=1, gpus_per_worker=0, cpus_per_worker=1, object_bytes=1)
    with pytest.raises(EngineError) as caught:
        engine.pool(resources)
    assert str(caught.value).startswith("engine=ray: Ray is not installed (")
    assert str(caught.value).endswith("); pip install 'evalkit[ray]'")


def test_a_cache_that_a_worker_does_not_see_is_refused_before_anything_starts(cluster, tmp_path, monkeypatch):
    real = distributed.write_atomic

    def elsewhere(path, data):
        real(path, b"of another folder" if path.name.startswith(".shared-") else data)

    monkeypatch.setattr(distributed, "write_atomic", elsewhere)
    with pytest.raises(StoreError) as caught:
        run(tmp_path, "dim=64", "engine=ray", "engine.workers=2", f"engine.address={cluster.address}")
    assert f"cache_dir={tmp_path}/cache is not the folder that the driver sees" in str(caught.value)
    assert "store.keep=topk" in str(caught.value)
    assert not (tmp_path / "cache" / "stores").exists()


def test_a_second_driver_says_who_is_at_work_and_leaves(tmp_path):
    config = dataclasses.replace(compose(["dim=64"]), cache_dir=tmp_path)
    with (
        jobs.claimed(config, ["demo.test.demo-64.abc"]),
        pytest.raises(EngineError) as caught,
        jobs.claimed(config, ["demo.test.demo-64.abc"]),
    ):
        pytest.fail("two drivers have the same cell")
    message = str(caught.value)
    assert message.startswith(f"demo.test.demo-64.abc: {socket.gethostname()} {os.getpid()}, since ")
    assert message.endswith(" is computing it; wait until it is finished, or stop it (evalkit status)")
    assert list(Path(tmp_path / jobs.FOLDER).glob("*")) == []


def test_failed_shards_are_named_with_their_documents_and_reasons():
    failed = [engine.Failed("documents 1 to 20", ("a (process 1): x", "b (process 2): y"))]
    with pytest.raises(EngineError) as caught:
        distributed._raise_failures(failed, 3)
    assert str(caught.value) == (
        "1 of 4 shards failed twice (documents 1 to 20: a (process 1): x and b (process 2): y); the others are "
        "finished: the same command does only what is missing"
    )
