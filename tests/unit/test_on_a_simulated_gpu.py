"""Where tensors live on a GPU, what is computed there, and how often the host waits: without one (simulated_gpu)."""

import dataclasses

import pytest
import torch
from checkpoints import DIM, FAMILIES
from rich.console import Console
from simulated_gpu import CPU, GPU, Launches, OnGpu, inner, simulated_gpu, waits
from torch.nn import functional

from evalkit.config.compose import compose
from evalkit.kernels.gpu import elementwise_kernel
from evalkit.maxsim import choice
from evalkit.models import attention, elementwise
from evalkit.models.encoder import checkpoints, load_encoders
from evalkit.ragged import ragged
from evalkit.ranking import floors, no_hits
from evalkit.run import pipeline
from evalkit.run.encode import Encoding, encode
from evalkit.run.search import search_shard
from evalkit.storage import trec
from evalkit.storage.shard_files import ShardVectors

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("a GPU is here: nothing need be simulated", allow_module_level=True)

from evalkit.kernels.gpu import pieces, tensor_core

TEXTS = ["hello world", "a b c", "the the a . b , hello " * 12, "", "b a c", "hello, hello! " * 7, "a b c"]


def rotate(query, key, cos, sin, _period, **_):
    for part in (query, key):
        part.copy_(elementwise.reference_rotated(part.float(), cos.float(), sin.float()))


def add_norm(rows, others, weight, bias, *, eps, width, **_):
    total = rows.float() + others.float()
    rows.copy_(functional.layer_norm(total, (width,), weight.float(), bias.float(), eps))


def by_text(query, key, value, packing, scale):
    """What torch's packed kernel gives, which wants all of these on the GPU."""
    assert all(isinstance(part, OnGpu) for part in (query, key, value, packing.offsets_q, packing.offsets_k))
    plain = packing._replace(offsets_q=inner(packing.offsets_q), offsets_k=inner(packing.offsets_k), attended_Y=None)
    with torch._C._DisableTorchDispatch():
        return OnGpu(attention._by_text(inner(query), inner(key), inner(value), plain, scale))


@pytest.fixture
def kernels(monkeypatch):
    """The GPU's kernels, which look at where their arguments are; the elementwise ones by torch, which is faster."""
    found = {
        "rotate": Launches(elementwise_kernel.rotate, instead=rotate),
        "add_norm": Launches(elementwise_kernel.add_norm, instead=add_norm),
        "maxsim": Launches(tensor_core.maxsim),
    }
    for name in ("rotate", "add_norm"):
        monkeypatch.setattr(elementwise_kernel, name, found[name])
    monkeypatch.setattr(tensor_core, "maxsim", found["maxsim"])
    monkeypatch.setattr(attention, "_KERNELS", {"varlen": by_text})
    caches = (attention.probe, attention._varlen_options, elementwise.probe, tensor_core.shared_bytes_of, choice.probe)
    for cached in caches:
        cached.cache_clear()
    yield found
    for cached in caches:
        cached.cache_clear()


def loaded(name, folder, *, device, dtype):
    folder.mkdir(exist_ok=True)
    FAMILIES[name](folder)
    model = compose([f"model={name}"]).model
    source = dataclasses.replace(next(iter(model.checkpoints.values())), path=str(folder))
    source = {str(DIM if model.head == "linear" else 24): source}
    model = dataclasses.replace(model, dtype=dtype, allow_pickle=True, checkpoints=source, verify=False)
    (encoder,) = load_encoders(model, checkpoints(model, model.dims), device=device)
    return encoder


def encoded(encoder, texts=TEXTS, *, batch_tokens=4096, **options):
    ids = [str(place) for place in range(len(texts))]
    options = {"documents": True, "storage": torch.float16, "batch_tokens": batch_tokens, **options}
    ((_, shard),) = encode(ids, encoder.tokenize_documents(texts), encoder, Encoding(**options)).items()
    return shard


def test_the_simulation_refuses_what_cuda_refuses(monkeypatch):
    with simulated_gpu(monkeypatch):
        there, here = torch.arange(6.0, device="cuda").view(2, 3), torch.ones(2, 3)
        assert there.device == GPU
        assert there.sum(0).cpu().tolist() == [3.0, 5.0, 7.0]
        assert there[torch.tensor([1])].device == GPU
        assert here.to("cuda").to(CPU).device == CPU
        with pytest.raises(RuntimeError, match="add: expected all tensors to be on the same device"):
            there + here
        with pytest.raises(AssertionError, match="a tensor of the host, indices of the GPU"):
            here[there[0].long()]
        with pytest.raises(TypeError, match=r"use Tensor\.cpu"):
            there.numpy()


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_the_cpus_vectors(name, dtype, resident, tmp_path, monkeypatch, kernels):
    wanted = encoded(loaded(name, tmp_path / "m", device=CPU, dtype="float32"))
    with simulated_gpu(monkeypatch):
        encoder = loaded(name, tmp_path / "m", device=GPU, dtype=dtype)
        assert encoder.attention == (
            "varlen" if dtype == "bfloat16" and encoder.config.backbone != "jina_bert" else "sdpa"
        )
        found = encoded(encoder, resident=resident)
        assert found.vectors.rows_XD.device == (GPU if resident else CPU)
        vectors_XD = found.vectors.rows_XD.cpu()
    assert found.vectors.lengths_N.tolist() == wanted.vectors.lengths_N.tolist()
    error = (vectors_XD.float() - wanted.vectors.rows_XD.float()).norm(dim=1).max()
    assert error < (0.1 if dtype == "bfloat16" else 5e-3)
    fused = encoder.config.backbone in elementwise.BACKBONES
    assert (kernels["add_norm"].count > 1) == fused  # one launch is the probe's
    assert (kernels["rotate"].count > 1) == (encoder.config.backbone == "jina_embeddings_v3")


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_host_waits_once_a_batch_and_for_no_text(name, resident, tmp_path, monkeypatch, kernels):
    with simulated_gpu(monkeypatch):
        encoder = loaded(name, tmp_path / "m", device=GPU, dtype="bfloat16")
        encoded(encoder)
        for count, batch_tokens in ((4, 4096), (40, 4096), (40, 64)):
            texts = [f"hello {'world ' * (place % 4)}{'a b ' * (place // 4)}" for place in range(count)]
            batches = []
            waits.clear()
            options = {"batch_tokens": batch_tokens, "resident": resident}
            encoded(encoder, texts, **options, on_batch=lambda *done, batches=batches: batches.append(done))
            assert waits.pop("event") == len(batches)
            assert (+waits).total() <= (3 if resident else 0), waits  # whether the shard's vectors are finite


def test_of_padded_texts_transformers_asks_once_a_batch_whether_any_is_masked(tmp_path, monkeypatch, kernels):
    with simulated_gpu(monkeypatch):
        encoder = loaded("jina-colbert-v2", tmp_path / "m", device=GPU, dtype="float32")
        encoded(encoder)
        waits.clear()
        encoded(encoder)
        batches = waits.pop("event")
        assert set(+waits) == {"is_nonzero"}
        assert waits["is_nonzero"] <= batches


# Triton's interpreter does not multiply bf16, which it would have to for fp32 vectors.
@pytest.mark.parametrize(
    ("maxsim", "dtype"),
    [
        ("triton", torch.float16),
        ("packed", torch.float16),
        ("auto", torch.float16),
        ("packed", torch.float32),
        ("auto", torch.float32),
    ],
)
def test_hits_are_the_cpus_and_of_fp16_vectors_to_the_bit(maxsim, dtype, monkeypatch, kernels):
    generator = torch.Generator().manual_seed(0)
    query_lengths, lengths = torch.tensor([32, 5, 40]), torch.randint(1, 50, (60,), generator=generator)
    pool = functional.normalize(torch.randn(80, 48, generator=generator), dim=1).to(dtype)  # few vectors, many ties
    queries, shard = (
        ShardVectors(
            tuple(f"{kind}{place:02d}" for place in range(len(counts))),
            ragged(pool[torch.randint(0, 80, (int(counts.sum()),), generator=generator)], counts),
        )
        for kind, counts in (("q", query_lengths), ("d", lengths))
    )
    floor_Q = floors(no_hits(), queries=3, depth=20)
    wanted = search_shard(queries, shard, depth=20, floor_Q=floor_Q, device=CPU)
    with simulated_gpu(monkeypatch):
        for rows_XD in (shard.vectors.rows_XD, shard.vectors.rows_XD.to(GPU)):
            waits.clear()
            there = shard._replace(vectors=shard.vectors._replace(rows_XD=rows_XD))
            found = search_shard(queries, there, depth=20, floor_Q=floor_Q, device=GPU, maxsim=maxsim)
            assert found.query_H.tolist() == wanted.query_H.tolist()
            if dtype == torch.float16:
                assert found.id_H.tolist() == wanted.id_H.tolist()
                assert found.score_H.tolist() == wanted.score_H.tolist()
            else:  # whose sums float64 rounds: equal documents may change places
                assert found.score_H == pytest.approx(wanted.score_H, rel=1e-6)
    assert bool(kernels["maxsim"].count) == (maxsim == "triton" or (maxsim == "auto" and dtype == torch.float16))


def test_small_shards_time_the_tilings_as_soon_as_their_work_adds_up(monkeypatch, kernels):
    monkeypatch.setattr(tensor_core, "_TIMED", {})
    monkeypatch.setattr(tensor_core, "_OPERATIONS", {})
    slow = tensor_core.Tiling(32, 4, 2)
    monkeypatch.setattr(tensor_core, "_time_tilings", lambda *_: slow)
    documents = ragged(torch.ones(64, 16).half(), torch.tensor([64]))
    with simulated_gpu(monkeypatch):
        laid = pieces.document_pieces(documents._replace(rows_XD=documents.rows_XD.to(GPU)), piece=16)
        work = 2 * 16 * 128 * 32  # operations per query piece, over 128 rows with those that fill the tile
        options = {"worth_timing": 2.5 * 100 * work}
        found = [tensor_core.fastest(laid, query_count=100, **options) for _ in range(4)]
        assert tensor_core.fastest(laid, query_count=1, **options).warps == 4  # another kind of work, counted apart
    assert found == [tensor_core.Tiling(64, 8, 3)] * 2 + [slow] * 2


def test_a_run_whose_kernel_cannot_be_compiled_ends_in_the_same_ranking_and_says_why(tmp_path, monkeypatch, kernels):
    def broken(*_, **__):
        raise RuntimeError("PassManager::run failed")

    words = ["model=demo", "dim=64", "dataset.demo.documents=30", "dataset.demo.queries=5"]
    places = [f"results_dir={tmp_path / 'r'}", f"cache_dir={tmp_path / 'c'}"]
    monkeypatch.setattr(tensor_core, "launch", broken)
    monkeypatch.setattr(choice, "_GIVEN_UP", {})
    with simulated_gpu(monkeypatch):
        (cell,) = pipeline.run(compose([*words, *places, "engine.device=cuda"]), console=Console(quiet=True))
    assert cell.environment["maxsim_given_up"] == (
        "Triton's MaxSim kernel for 64 numbers of float16 is unusable here (RuntimeError: PassManager::run failed); "
        "packed is used instead"
    )
    assert cell.metrics["ndcg@10"] > 0.5


@pytest.mark.parametrize(("keep", "dtype"), [("embeddings", "float32"), ("topk", "bfloat16")])
def test_a_whole_run_ends_in_the_cpus_ranking(keep, dtype, tmp_path, monkeypatch, kernels):
    words = ["model=demo", "dim=[128,64]", "dataset.demo.documents=30", "dataset.demo.queries=5"]

    def run(device, *more):
        places = [f"results_dir={tmp_path / device / 'r'}", f"cache_dir={tmp_path / device / 'c'}"]
        cells = pipeline.run(compose([*words, *places, f"engine.device={device}", *more]), console=Console(quiet=True))
        hits = [trec.read_run(tmp_path / device / "r" / "runs" / cell.run_id / "run.trec.gz") for cell in cells]
        return cells, hits

    wanted_cells, wanted = run("cpu")
    with simulated_gpu(monkeypatch):
        cells, found = run("cuda", f"model.dtype={dtype}", f"store.keep={keep}")
    for cell, wanted_cell, ours, theirs in zip(cells, wanted_cells, found, wanted, strict=True):
        assert cell.protocol["attention"] == ("varlen/cuda" if dtype == "bfloat16" else "sdpa/cuda")
        assert cell.protocol["elementwise"] == "triton"
        assert not [name for name in cell.environment if "given_up" in name]
        assert cell.metrics == pytest.approx(wanted_cell.metrics, abs=0.05 if dtype == "bfloat16" else 1e-9)
        for query, hits in theirs.items():
            best = {hit.document_id: hit.score for hit in ours[query]}
            assert best[hits[0].document_id] == pytest.approx(hits[0].score, rel=2e-2)
