"""Downloads from a hub on the loopback: resumed, proved by content, and refused in one line that says what to do."""

from pathlib import Path

import pytest
from checkpoints import write_jina_checkpoint
from fake_hub import FakeHub, Repository, address
from huggingface_hub import close_session, constants
from remote_checkpoints import write_own
from test_hub_copies import config, small_copy

from evalkit.config.compose import compose
from evalkit.config.settings import CheckpointSource
from evalkit.datasets.hub import _snapshot, load_hub
from evalkit.errors import DatasetError, ModelError, lines
from evalkit.models.checkpoint import PICKLE, WEIGHTS, resolve
from evalkit.models.encoder import checkpoints

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STEP = 1 << 14
"""Bytes that the client writes at a time, small here so that small files are cut off somewhere inside."""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", STEP)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    with FakeHub() as server:
        server.stand_in(monkeypatch, tmp_path / "hub")
        server.publish("o/n", write_jina_checkpoint(tmp_path / "n", dim=16, hidden=64), commit=COMMIT)
        yield server


def fetched(revision=COMMIT):
    return resolve(CheckpointSource(repo="o/n", revision=revision))


def partial(tmp_path, server):
    etag = address(server.repositories["o/n"].files[WEIGHTS])
    return tmp_path / "hub" / "models--o--n" / "blobs" / f"{etag}.incomplete"


def as_an_older_client_leaves_it(server, tmp_path, monkeypatch):
    """Take away the listing by which the client knows what a commit holds; an unpacked bundle has none either.

    It is kept in memory too, by its path; so the cache is moved.
    """
    (tmp_path / "hub").rename(tmp_path / "moved")
    for listing in (tmp_path / "moved").glob("*/trees/*"):
        listing.unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "moved"))
    server.asked.clear()


def refusal(error, action):
    with pytest.raises(error) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_repository_is_fetched_once_under_the_commit_of_its_branch(fake):
    for revision in (None, COMMIT):
        checkpoint = fetched(revision)
        assert checkpoint.revision == COMMIT
        assert (checkpoint.folder / WEIGHTS).read_bytes() == fake.repositories["o/n"].files[WEIGHTS]
    assert len(fake.gets(WEIGHTS)) == 1


def test_a_connection_that_breaks_is_gone_on_with_from_there(fake):
    fake.faults[WEIGHTS] = ("break", 5 * STEP)
    whole = len(fake.repositories["o/n"].files[WEIGHTS])
    assert (fetched().folder / WEIGHTS).stat().st_size == whole
    ranges = [each.range for each in fake.gets(WEIGHTS)]
    assert ranges == [None, *(f"bytes={start}-" for start in range(5 * STEP, whole, 5 * STEP))]
    assert len(ranges) > 2


def test_what_arrived_before_a_failure_is_never_asked_for_again(fake, tmp_path):
    fake.faults[WEIGHTS] = ("break", 3 * STEP)
    fake.fails_after = {WEIGHTS: 1}
    message = refusal(ModelError, fetched)
    assert f"o/n@{COMMIT}: the connection broke" in message
    assert "what has arrived is kept: run the same command again to go on" in message
    assert partial(tmp_path, fake).stat().st_size == 3 * STEP
    fake.faults.clear()
    fake.fails_after.clear()
    fake.asked.clear()
    assert (fetched().folder / WEIGHTS).read_bytes() == fake.repositories["o/n"].files[WEIGHTS]
    assert [each.range for each in fake.gets(WEIGHTS)] == [f"bytes={3 * STEP}-"]
    assert not partial(tmp_path, fake).exists()


def test_a_file_with_one_other_byte_is_refused_and_not_kept(fake, tmp_path):
    fake.faults[WEIGHTS] = ("damage", 1000)
    message = refusal(ModelError, fetched)
    wanted = address(fake.repositories["o/n"].files[WEIGHTS])
    assert f"o/n/{WEIGHTS}: got content " in message
    assert f"wanted {wanted}; it was damaged on its way and is not kept: run the same command again" in message
    assert not partial(tmp_path, fake).exists()
    fake.faults.clear()
    assert fetched().revision == COMMIT


def test_a_small_file_with_one_other_byte_is_refused_too(fake):
    fake.faults["config.json"] = ("damage", 10)
    assert "o/n/config.json: got content " in refusal(ModelError, fetched)


def test_a_truncated_file_that_claims_to_be_finished_is_refused(fake):
    fake.faults[WEIGHTS] = ("short", 10)
    assert "it was damaged on its way and is not kept" in refusal(ModelError, fetched)


def test_a_rest_that_is_longer_than_the_file_is_thrown_away(fake, tmp_path):
    path = partial(tmp_path, fake)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(len(fake.repositories["o/n"].files[WEIGHTS]) + 1))
    fetched()
    assert [each.range for each in fake.gets(WEIGHTS)] == [None]


def test_a_rest_of_other_content_is_found_out_at_the_end(fake, tmp_path):
    path = partial(tmp_path, fake)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(STEP))
    assert "got content " in refusal(ModelError, fetched)
    fetched()
    assert [each.range for each in fake.gets(WEIGHTS)] == [f"bytes={STEP}-", None]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_one_repository_that_is_closed_leaves_the_other_dims(fake, tmp_path, status):
    for dim, name in ((128, "jina-colbert-v2"), (64, "jina-colbert-v2-64")):
        model = compose(["model=jina-colbert-v2"]).model
        commit = model.checkpoints[str(dim)].revision
        fake.publish(f"jinaai/{name}", write_jina_checkpoint(tmp_path / name, dim=dim), commit=commit)
    fake.repositories["jinaai/jina-colbert-v2-96"] = Repository(COMMIT, {}, status=status)
    message = refusal(ModelError, lambda: checkpoints(model, model.dims))
    assert message.startswith(
        f"model jina-colbert-v2:96: jinaai/jina-colbert-v2-96@main: the hub answers {status}, as for "
    )
    assert "set HF_TOKEN to a token with access" in message
    assert message.endswith("can run: dim=128,64")


def test_a_revision_that_the_hub_does_not_know_is_named(fake):
    message = refusal(ModelError, lambda: fetched("f" * 40))
    assert message == f"o/n@{'f' * 40}: the repository has no such revision; check the revision in the model's config"


def test_a_pinned_checkpoint_that_is_there_is_used_without_asking_anybody(fake, tmp_path, monkeypatch):
    fetched()
    as_an_older_client_leaves_it(fake, tmp_path, monkeypatch)
    assert fetched().revision == COMMIT
    assert fake.asked == []
    fetched(None)  # what the branch is at by now, only the hub knows
    assert fake.asked


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.json", WEIGHTS])
def test_a_pinned_checkpoint_that_lacks_a_file_is_asked_for(fake, lost):
    path = fetched().folder / lost
    path.resolve().unlink()
    assert path.is_symlink()
    fake.asked.clear()
    assert (fetched().folder / lost).read_bytes() == fake.repositories["o/n"].files[lost]
    assert len(fake.gets(lost)) == 1


def test_pickled_weights_that_are_there_are_used_without_asking_anybody(fake, tmp_path, monkeypatch):
    files = fake.repositories["o/n"].files
    files[PICKLE] = files.pop(WEIGHTS)
    source = CheckpointSource(repo="o/n", revision=COMMIT)
    assert PICKLE in resolve(source, allow_pickle=True).checksums
    as_an_older_client_leaves_it(fake, tmp_path, monkeypatch)
    assert PICKLE in resolve(source, allow_pickle=True).checksums
    assert fake.asked == []


def test_how_much_code_a_commit_has_is_asked_every_time(fake, tmp_path):
    """Another program may have fetched the weights alone, and what code is there names what a run computes."""
    fake.publish("o/n", write_own(tmp_path / "own", trace=tmp_path / "ran"), commit=COMMIT)
    fetched()
    code = resolve(CheckpointSource(repo="o/n", revision=COMMIT), remote_code=True).code()
    assert set(code) == {"configuration_own.py", "modeling_own.py"}


def test_a_pinned_dataset_that_is_there_is_used_without_asking_anybody(fake, tmp_path, monkeypatch):
    """Behind a dead network the hub's client would try five times, with a warning each, and the run would wait."""
    fake.repositories["datasets/owner/small"] = Repository(COMMIT, small_copy())
    load_hub(config())
    as_an_older_client_leaves_it(fake, tmp_path, monkeypatch)
    assert [document.id for document in load_hub(config()).corpus.documents()] == [f"d{n}" for n in range(10)]
    assert fake.asked == []


@pytest.mark.parametrize("lost", ["README.md", "queries.jsonl", "corpus/corpus-00001-of-00002.parquet"])
def test_a_pinned_dataset_that_lacks_a_file_is_asked_for(fake, lost):
    fake.repositories["datasets/owner/small"] = Repository(COMMIT, small_copy())
    before = load_hub(config())
    folder = next(folder for folder in before.corpus.files[0].parents if folder.name == COMMIT)
    (folder / lost).resolve().unlink()
    fake.asked.clear()
    assert load_hub(config()) == before
    assert len(fake.gets(lost)) == 1


def test_files_whose_number_nobody_says_are_asked_for(fake):
    """`part-*` is whole with one file or with ten."""
    files = small_copy()
    for number in range(2):
        files[f"corpus/part-{number}.parquet"] = files.pop(f"corpus/corpus-0000{number}-of-00002.parquet")
    files["README.md"] = files["README.md"].replace(b"corpus-*", b"part-*")
    fake.repositories["datasets/owner/small"] = Repository(COMMIT, files)
    before = load_hub(config())
    before.corpus.files[1].unlink()
    assert load_hub(config()) == before


def test_a_hub_that_is_down_is_named_and_the_cache_is_enough_without_it(fake, monkeypatch):
    fetched(None)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for revision in (None, COMMIT):
        assert fetched(revision).revision == COMMIT
    message = refusal(ModelError, lambda: resolve(CheckpointSource(repo="o/other", revision=COMMIT)))
    assert f"o/other@{COMMIT}: not in the local Hugging Face cache and the hub could not be reached" in message


def test_a_token_that_no_request_can_carry_is_refused_before_one_is_made(fake, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ü")
    message = refusal(ModelError, fetched)
    assert message == (
        f"o/n@{COMMIT}: the token (HF_TOKEN) has a character that is not ASCII, wanted one as the hub gave it; "
        "copy it again"
    )
    assert not fake.asked


@pytest.mark.parametrize("address", ["garbage://x", "socks9://x", "http://[", "socks5://127.0.0.1:9"])
def test_a_proxy_that_is_none_is_one_line(fake, monkeypatch, address):
    monkeypatch.setenv("ALL_PROXY", address)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://hub.invalid")
    close_session()
    try:
        message = refusal(ModelError, fetched)
    finally:
        close_session()
    assert message.startswith(f"o/n@{COMMIT}: ")
    assert not fake.asked


def test_the_token_goes_to_the_hub_and_nowhere_else(fake, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with FakeHub() as elsewhere:
        elsewhere.repositories = fake.repositories
        fake.elsewhere = elsewhere.url
        fetched()
        assert elsewhere.gets(WEIGHTS)
        assert not any(each.token for each in elsewhere.asked)
    assert all(each.token for each in fake.asked if "/resolve/" in each.path)


def test_a_datasets_files_are_resumed_the_same_way(fake, tmp_path):
    content = bytes(range(256)) * 1000
    fake.repositories["datasets/o/d"] = Repository(COMMIT, {"corpus.jsonl": content, "README.md": b"x"})
    copy = compose(["dataset=xquad/en", "dataset.hub.repo=o/d", f"dataset.hub.revision={COMMIT}"]).dataset.hub
    fake.faults["corpus.jsonl"] = ("break", 3 * STEP)
    fake.fails_after = {"corpus.jsonl": 1}
    assert "the connection broke" in refusal(DatasetError, lambda: _snapshot(copy, ["*.jsonl"]))
    fake.faults.clear()
    fake.fails_after.clear()
    fake.asked.clear()
    assert (_snapshot(copy, ["*.jsonl"]) / "corpus.jsonl").read_bytes() == content
    assert [each.range for each in fake.gets("corpus.jsonl")] == [f"bytes={3 * STEP}-"]


def test_without_a_network_one_line_refuses_and_a_copy_in_the_cache_is_read(fake, monkeypatch, caplog):
    """The library itself would ask six times, twice over, and warn each time."""
    fetched()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", closed := "http://127.0.0.1:9")
    fake.asked.clear()
    assert fetched().folder.is_relative_to(Path(constants.HF_HUB_CACHE))
    message = refusal(ModelError, lambda: resolve(CheckpointSource(repo="o/other")))
    assert message.startswith(
        f"o/other@main: not in the local Hugging Face cache and the hub could not be reached ({closed}: Conn"
    )
    with pytest.raises(ModelError) as caught:
        resolve(CheckpointSource(repo="o/other"))
    told = lines(caught.value)
    assert [line.partition(":")[0] for line in told] == ["tried", "failed", "to do"]
    assert told[0] == "tried: o/other@main"
    assert "evalkit fetch --bundle FILE" in told[2]
    assert fake.asked == []
    assert caplog.records == []
