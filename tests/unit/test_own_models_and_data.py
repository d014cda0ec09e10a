"""Configs made from a checkpoint's and a dataset's own files: what they say, what is assumed, what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from checkpoints import (
    bert_config,
    bert_tensors,
    write_bert_tokenizer,
    write_colbert_xm,
    write_colbertv2,
    write_files,
    write_jina_checkpoint,
    write_mdpr,
)
from fake_hub import FakeHub
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.config.compose import compose
from evalkit.config.settings import CONFIGS, CheckpointSource, EncoderConfig, from_mapping, group_files
from evalkit.errors import ConfigError, DatasetError, ModelError
from evalkit.models.checkpoint import _package_folder
from evalkit.models.encoder import checkpoints
from evalkit.models.infer import infer
from evalkit.operations import own_configs

LAYOUTS = Path(__file__).parents[1] / "fixtures" / "parity" / "pylate_layouts"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_data(folder, *, split="test", overlap=False):
    """Write four documents, three queries and judgements of two of them."""
    (folder / "qrels").mkdir(parents=True)
    documents = [
        ("d1", "Los gatos", "duermen"),
        ("d2", "", "hello"),
        ("q2" if overlap else "d3", "", "x"),
        ("d4", "", ""),
    ]
    lines = [json.dumps({"_id": i, "title": title, "text": text}) for i, title, text in documents]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    queries = [json.dumps({"_id": f"q{i}", "text": "gatos"}) for i in (1, 2, 3)]
    (folder / "queries.jsonl").write_text("\n".join(queries), encoding="utf-8")
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\nq2\td1\t0\n")
    return folder


def model_of(folder, **changed) -> EncoderConfig:
    found = infer(CheckpointSource(path=str(folder)), name="x")
    values = {**found.values(), **changed}
    return from_mapping(EncoderConfig, values, where="model")


def edited(folder, name, **changed):
    path = folder / name
    values = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**values, **changed}), encoding="utf-8")


def test_a_stanford_checkpoint_says_lengths_markers_masks_and_dim(tmp_path):
    folder = write_colbertv2(tmp_path, dim=16)
    edited(folder, "artifact.metadata", query_maxlen=48, doc_maxlen=220)
    model = model_of(folder)
    assert (model.kind, model.backbone, model.head, model.dims) == ("late_interaction", "bert", "linear", (16,))
    assert (model.query.max_tokens, model.query.marker) == (48, "[unused0]")
    assert (model.query.expansion, model.query.attend_to_expansion) == (True, False)
    assert (model.document.max_tokens, model.document.marker, model.skiplist) == (220, "[unused1]", "stanford")
    assert checkpoints(model, model.dims)  # nothing of it contradicts artifact.metadata


@pytest.mark.parametrize("name", ["demo", "all-minilm-l6-v2"])
def test_what_is_read_of_a_published_checkpoint_is_what_its_config_says(name):
    """Two configs that were written by hand, from the same files."""
    wanted = compose([f"model={name}"]).model
    dim, source = next(iter(wanted.checkpoints.items()))
    if _package_folder(source.package) is None:
        pytest.skip("the package that carries the weights is not installed")
    found = infer(CheckpointSource(package=source.package), name=name)
    read = from_mapping(EncoderConfig, found.values(), where="model")
    assert read.dims == (int(dim),)
    assert found.values()["checkpoints"] == {dim: {"package": source.package}}
    for key in ("kind", "backbone", "query", "document", "head", "pooling", "normalize", "skiplist"):
        assert getattr(read, key) == getattr(wanted, key), key
    # The demo's config.json says bfloat16, as jina-colbert-v2's does; its own YAML chooses float32.
    assert read.dtype == {"demo": "bfloat16"}.get(name, wanted.dtype)


def test_the_backbone_is_known_by_the_architecture_and_not_by_the_name_alone(tmp_path):
    jina = write_jina_checkpoint(tmp_path / "jina", dim=16)
    edited(jina, "artifact.metadata", dim=16, attend_to_mask_tokens=True, query_token_id="[QueryMarker]")
    assert model_of(jina).backbone == "jina_embeddings_v3"
    xmod = write_colbert_xm(tmp_path, dim=16)
    found = infer(CheckpointSource(path=str(xmod)), name="x").values()
    assert (found["backbone"], found["adapter"]) == ("xmod", {"en": "en_XX", "de": "de_DE"})


def test_of_two_adapters_for_a_language_the_first_is_taken_and_said(tmp_path):
    """XMOD has zh_CN and, later in its list, zh_TW. colbert-xm's own config takes the first."""
    xmod = write_colbert_xm(tmp_path, dim=16, languages=("en_XX", "zh_CN", "zh_TW"))
    fact = infer(CheckpointSource(path=str(xmod)), name="x").facts["adapter"]
    assert fact.value == {"en": "en_XX", "zh": "zh_CN"}
    assert fact.value["zh"] == compose(["model=colbert-xm", "dataset=miracl/zh"]).model.adapter
    assert fact.source == "config.json: languages; for zh the first of zh_CN, zh_TW"


def write_minilm(folder, *, pooling="pooling_mode_mean_tokens", normal=True):
    """Write the layout of sentence-transformers/all-MiniLM-L6-v2."""
    folder.mkdir()
    size = write_bert_tokenizer(folder / "tokenizer.json")
    write_files(folder, bert_config("bert", size), bert_tensors(size, prefix=""))
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normal else [])]
    modules = [
        {"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    edited(folder, "1_Pooling/config.json", **{"pooling_mode_cls_token": False, pooling: True})
    edited(folder, "sentence_bert_config.json", max_seq_length=256, do_lower_case=False)
    edited(folder, "config_sentence_transformers.json", prompts={"query": "ask: ", "document": "read: "})
    return folder


def test_a_sentence_transformers_checkpoint_says_pooling_norm_length_and_prompts(tmp_path):
    model = model_of(write_minilm(tmp_path / "m"))
    assert (model.kind, model.pooling, model.normalize, model.head) == ("single_vector", "mean", True, "none")
    assert (model.dims, model.query.max_tokens, model.skiplist) == ((24,), 256, "none")
    assert (model.query.prompt, model.document.prompt) == ("ask: ", "read: ")
    plain = model_of(write_minilm(tmp_path / "n", pooling="pooling_mode_cls_token", normal=False))
    assert plain.pooling == "cls"


@pytest.mark.parametrize(
    ("similarity", "normalised", "assumed"),
    [
        ({}, True, True),
        ({"similarity_fn_name": None}, True, True),
        ({"similarity_fn_name": "cosine"}, True, False),
        ({"similarity_fn_name": "dot"}, False, False),
        ({"similarity_fn_name": "dot_product"}, False, False),
    ],
)
def test_vectors_are_compared_by_cosine_unless_the_files_say_dot_product(tmp_path, similarity, normalised, assumed):
    folder = write_minilm(tmp_path / "m", normal=False)
    edited(folder, "config_sentence_transformers.json", **similarity)
    found = infer(CheckpointSource(path=str(folder)), name="x")
    assert found.values()["normalize"] is normalised
    assert ("normalize true" in found.lines()[-1]) is assumed


@pytest.mark.parametrize(
    ("saved", "default", "wanted"),
    [
        ({"query": "ask: ", "document": "read: "}, None, ("ask: ", "read: ")),
        ({"query": "ask: ", "document": ""}, "query", ("ask: ", "")),
        ({"query": "", "document": "", "x": "read: "}, "x", ("", "")),
        ({"query": None, "document": None, "x": "read: "}, "x", ("", "")),
        ({"x": "read: "}, "x", ("", "")),
        ({"document": "", "passage": "read: ", "query": "ask: "}, None, ("ask: ", "")),
        ({"query": "ask: ", "passage": "read: "}, None, ("ask: ", "")),
        ({}, "query", ("", "")),
    ],
)
def test_the_prompts_of_a_single_vector_model_are_those_of_encode_query_and_encode_document(
    tmp_path, saved, default, wanted
):
    """What sentence-transformers 6.2.0 puts before the texts of each side, as measured."""
    folder = write_minilm(tmp_path / "m")
    edited(folder, "config_sentence_transformers.json", prompts=saved, default_prompt_name=default)
    model = model_of(folder)
    assert (model.query.prompt, model.document.prompt) == wanted
    lines = infer(CheckpointSource(path=str(folder)), name="x").lines()
    unused = [name for name in saved if name in {"x", "passage"}]
    assert [line.partition(": prompts ")[2] for line in lines if line.startswith("not used")] == unused


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"default_prompt_name": "gone"}, r"got default_prompt_name 'gone', wanted one of the file's prompts \(query"),
        ({"prompts": {"query": 3}}, "got prompts {'query': 3}, wanted texts by name"),
    ],
)
def test_prompts_that_are_no_texts_or_not_there_are_refused(tmp_path, changed, message):
    folder = write_minilm(tmp_path / "m")
    edited(folder, "config_sentence_transformers.json", **changed)
    with pytest.raises(ModelError, match=message):
        model_of(folder)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "got pooling .*, wanted mean or cls"),
        (
            "1_Pooling/config.json",
            {"include_prompt": False},
            "include_prompt false, wanted pooling over the whole text",
        ),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, "got pooling mean, cls, wanted mean or cls"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "got pooling lasttoken, wanted mean or cls"),
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": 1}, "got pooling mean, weightedmean, wanted"),
        ("1_Pooling/config.json", {"include_prompt": 0}, "include_prompt false, wanted pooling over the whole text"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "has do_lower_case true, wanted a tokenizer"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "got transformer_task 'fill-mask', wanted"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
            "got modality_config text .*pooler_output.*, wanted .*last_hidden_state",
        ),
        (
            "sentence_bert_config.json",
            {"tokenizer_args": {"do_lower_case": False}},
            "got tokenizer_args .*, wanted none",
        ),
        ("sentence_bert_config.json", {"model_args": {"rope_theta": 9}}, "got model_args .*rope_theta.*, wanted none"),
        ("sentence_bert_config.json", {"model_args": ["x"]}, "got model_args .*, wanted a JSON object"),
        (
            "config_sentence_transformers.json",
            {"model_type": "SparseEncoder"},
            "got model_type 'SparseEncoder', wanted",
        ),
        ("config_sentence_transformers.json", {"truncate_dim": 8}, "got truncate_dim 8, wanted vectors of all 24"),
        (
            "2_Normalize/config.json",
            {"module_input_name": "token_embeddings"},
            "Normalize .*module_input_name 'token_em",
        ),
        (
            "config_sentence_transformers.json",
            {"similarity_fn_name": "euclidean"},
            "got similarity_fn_name 'euclidean', wanted cosine or dot",
        ),
        (
            "config_sentence_transformers.json",
            {"similarity_fn_name": "manhattan"},
            "got similarity_fn_name 'manhattan', wanted cosine or dot",
        ),
        (
            "config.json",
            {"model_type": "house_bert"},
            "transformers .* has no class of its own for model_type 'house_bert'",
        ),
    ],
)
def test_what_no_config_can_describe_is_refused(tmp_path, name, changed, message):
    folder = write_minilm(tmp_path / "m")
    edited(folder, name, **changed)
    with pytest.raises(ModelError, match=message):
        model_of(folder)


def test_a_checkpoint_that_does_not_say_how_it_makes_vectors_is_refused_with_what_would(tmp_path):
    with pytest.raises(
        ModelError, match=r"no file says how vectors are made .* artifact\.metadata .*modules\.json with Pool"
    ):
        model_of(write_mdpr(tmp_path))


def test_a_module_that_is_not_known_is_refused_by_its_name(tmp_path):
    folder = write_minilm(tmp_path / "m")
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    modules.append({"idx": 9, "path": "9_LSTM", "type": "sentence_transformers.models.LSTM"})
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(
        ModelError, match="got a module LSTM in '9_LSTM', wanted Transformer, Pooling, Dense, Normalize"
    ):
        model_of(folder)


def write_dense(folder, path="2_Dense", **changed):
    values = {"in_features": 24, "out_features": 24, "bias": True, "activation_function": "torch.nn.Tanh"}
    edited(folder, f"{path}/config.json", **{**values, **changed})


def ordered(folder, *kinds, library="sentence_transformers.models"):
    """Write modules.json with these modules in this order."""
    entries = [
        {"idx": place, "path": "" if kind == "Transformer" else f"{place}_{kind}", "type": f"{library}.{kind}"}
        for place, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(entries), encoding="utf-8")


@pytest.mark.parametrize(
    "kinds",
    [
        ("Transformer", "Pooling", "Normalize", "Dense"),
        ("Transformer", "Pooling", "Dense", "Normalize", "Dense"),
        ("Transformer", "Pooling", "Pooling"),
        ("Transformer", "Normalize", "Pooling"),
        ("Pooling", "Transformer"),
    ],
)
def test_modules_in_another_order_than_evalkits_are_refused(tmp_path, kinds):
    folder = write_minilm(tmp_path / "m")
    ordered(folder, *kinds)
    for place, kind in enumerate(kinds):
        if kind == "Pooling":
            edited(folder, f"{place}_Pooling/config.json", pooling_mode="mean")
        if kind == "Dense":
            write_dense(folder, f"{place}_Dense")
    with pytest.raises(
        ModelError, match=rf"modules\.json: got the modules {', '.join(kinds)}, wanted Tr.* in this order"
    ):
        model_of(folder)


def test_a_dense_module_on_tokens_before_pooling_is_refused(tmp_path):
    folder = write_minilm(tmp_path / "m")
    ordered(folder, "Transformer", "Dense", "Pooling")
    edited(folder, "2_Pooling/config.json", pooling_mode="mean")
    names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    write_dense(folder, "1_Dense", **names)
    with pytest.raises(ModelError, match="got the modules Transformer, Dense, Pooling, wanted Transformer, Pooling"):
        model_of(folder)
    ordered(folder, "Transformer", "Pooling", "Dense")
    write_dense(folder, **names)
    with pytest.raises(
        ModelError, match=r"modules\.json: got a Dense module in '2_Dense' with module_input_name 'token_"
    ):
        model_of(folder)
    write_dense(folder, module_input_name="sentence_embedding", module_output_name=None)
    assert model_of(folder).head == "dense"


def test_a_dense_module_without_an_activation_is_refused_as_libraries_assume_different_ones(tmp_path):
    folder = write_minilm(tmp_path / "m")
    ordered(folder, "Transformer", "Pooling", "Dense")
    edited(folder, "2_Dense/config.json", in_features=24, out_features=24)
    with pytest.raises(ModelError, match=r"2_Dense/config\.json: got no activation_function, wanted its name"):
        model_of(folder)


def test_a_pylate_layout_keeps_its_order_of_modules(tmp_path):
    folder = shutil.copytree(LAYOUTS / "modernbert", tmp_path / "m")
    ordered(folder, "Transformer", "Dense", "Normalize")
    assert model_of(folder).head == "dense"
    ordered(folder, "Transformer", "Normalize", "Dense")
    shutil.copytree(folder / "1_Dense", folder / "2_Dense")
    with pytest.raises(
        ModelError, match="got the modules Transformer, Normalize, Dense, wanted Transformer, then Dense"
    ):
        model_of(folder)


def test_a_module_of_the_checkpoints_own_code_or_in_another_folder_is_refused(tmp_path):
    folder = write_minilm(tmp_path / "m")
    ordered(folder, "Transformer", "Pooling", library="custom_st")
    with pytest.raises(ModelError, match=r"got the module custom_st\.Transformer, wanted a class of sentence_transfor"):
        model_of(folder)
    entry = {"idx": 0, "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    (folder / "modules.json").write_text(json.dumps([entry]), encoding="utf-8")
    with pytest.raises(
        ModelError, match="got a Transformer module in '0_Transformer', wanted it in the checkpoint's own"
    ):
        model_of(folder)


def test_a_tokenizer_without_a_limit_leaves_the_architectures(tmp_path):
    folder = write_minilm(tmp_path / "m")
    (folder / "sentence_bert_config.json").unlink()
    edited(folder, "tokenizer_config.json", model_max_length=int(1e30))  # as transformers writes it
    assert model_of(folder).query.max_tokens == 400
    edited(folder, "tokenizer_config.json", model_max_length=32)
    assert model_of(folder).query.max_tokens == 32


def test_a_truncation_that_cuts_nothing_off_is_no_truncation(tmp_path):
    folder = write_minilm(tmp_path / "m")
    edited(folder, "config_sentence_transformers.json", truncate_dim=24)
    assert model_of(folder).dims == (24,)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_the_length_is_read_from_the_files_of_older_versions_too(tmp_path, kind):
    folder = write_minilm(tmp_path / "m")
    name = f"sentence_{kind}_config.json"
    edited(folder, name, max_seq_length=12)
    assert model_of(folder).query.max_tokens == 256  # sentence_bert_config.json is read first
    (folder / "sentence_bert_config.json").write_text("{}", encoding="utf-8")  # unless it is empty
    assert model_of(folder).document.max_tokens == 12
    edited(folder, name, do_lower_case=True)
    with pytest.raises(ModelError, match=f"{name} has do_lower_case true"):
        model_of(folder)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("1_Dense/config.json", {"activation_function": "house.Swish2"}, "activation_function 'house.Swish2'"),
        ("1_Dense/config.json", {"activation_function": "house.GELU"}, r"'house\.GELU'.*wanted torch\.nn\.GELU"),
        ("1_Dense/config.json", {"dropout": 0.1}, "got dropout, which is not a known key of a Dense module"),
        ("1_Dense/config.json", {"in_features": 31}, r"wanted .*\(16, 31\)"),
    ],
)
def test_a_dense_module_that_is_not_what_its_config_says_is_refused(tmp_path, name, changed, message):
    folder = shutil.copytree(LAYOUTS / "modernbert", tmp_path / "m")
    model = model_of(folder)
    edited(folder, name, **changed)
    from evalkit.models.dense import load_dense

    with pytest.raises(ModelError, match=message):
        load_dense(checkpoints(model, model.dims)[16])


def test_a_dense_module_changes_the_vectors_and_so_the_checkpoints_checksums(tmp_path):
    folder = shutil.copytree(LAYOUTS / "modernbert", tmp_path / "m")
    model = model_of(folder)
    before = checkpoints(model, model.dims)[16].checksums
    assert {"1_Dense/config.json", "1_Dense/model.safetensors", "modules.json"} <= set(before)
    (folder / "1_Dense" / "model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"lacks 1_Dense/model\.safetensors; wanted every Dense module of modules\.json"
    ):
        checkpoints(model, model.dims)


def test_new_model_writes_a_config_that_composes_and_says_where_each_fact_is_from(tmp_path, monkeypatch):
    monkeypatch.setenv(CONFIGS, str(tmp_path))
    done = CliRunner().invoke(app, ["new", "model", "house", "--from", str(LAYOUTS / "bert")])
    assert done.exit_code == 0, done.output
    path = tmp_path / "model" / "house.yaml"
    assert done.stdout.splitlines()[0] == str(path)
    assert "next: evalkit check model=house" in done.stdout
    text = path.read_text("utf-8")
    assert "backbone: bert  # config.json: model_type" in text
    assert "'16': {path: " in text
    assert "licence: unknown  # assumed" in text
    model = compose(["model=house"]).model
    assert (model.query.prompt, model.skiplist_words) == ("the cat: ", ("hello", ",", "notoken"))
    again = CliRunner().invoke(app, ["new", "model", "house", "--from", str(LAYOUTS / "bert")])
    assert "is there already; wanted a new name" in str(again.exception)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("bm25", "bert", r"model 'bm25' is a config already \(.*bm25\.yaml\); wanted a name of its own"),
        ("../bm25", "bert", r"model '\.\./bm25': wanted letters, digits, - and _"),
        ("x y", "bert", "model 'x y': wanted letters"),
        ("house", "gone", r"got '.*gone', wanted the folder of a checkpoint, or a hub repository as OWNER/NAME"),
    ],
)
def test_a_name_or_a_place_that_will_not_do_is_refused(tmp_path, name, source, message):
    with pytest.raises(ConfigError, match=message):
        own_configs.new_model(name, str(LAYOUTS / source), tmp_path)


def test_new_dataset_counts_and_takes_the_checksum_that_a_run_asserts(tmp_path, monkeypatch):
    monkeypatch.setenv(CONFIGS, str(tmp_path))
    folder = write_data(tmp_path / "data", split="dev", overlap=True)
    words = [
        "new",
        "dataset",
        "team/tickets",
        "--from",
        str(folder),
        "--language",
        "es",
        "--cache-dir",
        str(tmp_path / "c"),
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    dataset = compose(["dataset=team/tickets"]).dataset
    assert (dataset.split, dataset.language, dataset.path) == ("dev", "es", str(folder))
    assert (dataset.counts.documents, dataset.counts.queries, dataset.counts.judgements) == (4, 2, 3)
    assert len(dataset.checksum) == 32
    text = (tmp_path / "dataset" / "team" / "tickets.yaml").read_text("utf-8")
    assert "drop_self: false  # assumed; 1 of the query ids are document ids too" in text


def test_a_language_that_nobody_gave_is_said_to_be_taken_for_english(tmp_path, monkeypatch):
    monkeypatch.setenv(CONFIGS, str(tmp_path))
    words = ["new", "dataset", "tickets", "--from", str(write_data(tmp_path / "d")), "--cache-dir", str(tmp_path / "c")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "language unknown: BM25 will analyse the texts as English" in done.stderr
    assert compose(["dataset=tickets"]).dataset.language == "unknown"


def test_a_folder_without_judgements_or_of_another_split_is_refused_with_what_it_has(tmp_path):
    folder = write_data(tmp_path / "d", split="train")
    with pytest.raises(DatasetError, match="got judgements of train, wanted those of split 'test'; choose one of them"):
        own_configs.datasets.infer(folder, name="x", split="test")
    shutil.rmtree(folder / "qrels")
    with pytest.raises(DatasetError, match=r"got corpus\.jsonl, queries\.jsonl, wanted a BEIR-format folder"):
        own_configs.datasets.infer(folder, name="x")


def named(words, monkeypatch):
    said = []
    changed, configs = own_configs.with_temporary_configs(words, say=said.append)
    if configs is not None:
        monkeypatch.setenv(CONFIGS, str(configs))
    return changed, said


def test_folders_in_place_of_names_are_read_and_what_was_read_is_said(tmp_path, monkeypatch):
    shutil.copytree(LAYOUTS / "bert", tmp_path / "check point")
    write_data(tmp_path / "my_data")
    monkeypatch.chdir(tmp_path)
    changed, said = named(["model=./check point,bm25", "dataset=./my_data", "dim=16"], monkeypatch)
    assert changed == ["model=given/check-point,bm25", "dataset=given/folder/my_data", "dim=16"]
    config = compose(["model=given/check-point", *changed[1:]])
    assert (config.model.name, config.dims, config.model.head) == ("check-point", (16,), "dense")
    assert (config.dataset.name, config.dataset.path) == ("folder/my_data", str(tmp_path / "my_data"))
    assert said[0] == "model check-point, made from ./check point"
    assert "  config.json: backbone bert, dtype float32" in said
    assert "  assumed (no file says so): language unknown, drop_self false, main_metric ndcg@10" in said
    _, said = named(["dataset=./my_data", "dataset.language=no", "dataset.drop_self=true"], monkeypatch)
    assert any("language no (as you said), drop_self true (as you said)" in line for line in said)
    assert "  assumed (no file says so): main_metric ndcg@10" in said
    same = compose(["dataset=folder", f"dataset.path={tmp_path / 'my_data'}"]).dataset
    assert same.name == config.dataset.name  # one folder is one dataset, however it is named


def test_a_repository_in_place_of_a_name_is_pinned_at_the_commit_that_was_read(tmp_path, monkeypatch):
    with FakeHub() as server:
        server.stand_in(monkeypatch, tmp_path / "hub")
        server.publish("o/House-ColBERT", LAYOUTS / "bert", commit=COMMIT)
        changed, _ = named(["model=o/House-ColBERT"], monkeypatch)
        assert not server.gets("model.safetensors")  # what says what it is has no weights in it
        model = compose(changed).model
        assert (model.name, model.checkpoints["16"].revision) == ("House-ColBERT", COMMIT)
        found = checkpoints(model, model.dims)[16]
    assert found.origin == "o/House-ColBERT"
    assert {"2_Dense/model.safetensors", "model.safetensors"} <= set(found.checksums)


def test_a_default_name_that_a_config_has_is_refused_and_one_may_be_given(tmp_path, monkeypatch):
    folder = shutil.copytree(LAYOUTS / "bert", tmp_path / "demo")
    with pytest.raises(ConfigError, match=r"got 'demo' as its name, which a config has .*model\.name=NAME"):
        named([f"model={folder}"], monkeypatch)
    changed, _ = named([f"model={folder}", "model.name=mine"], monkeypatch)
    assert compose(changed).model.name == "mine"


def test_a_repository_that_a_config_reads_is_answered_with_that_config(monkeypatch):
    monkeypatch.setattr(own_configs, "group_names", lambda group: ("colbertv2.0",))
    monkeypatch.setattr(own_configs, "group_files", lambda group: {"colbertv2.0": group_files(group)["colbertv2"]})
    with pytest.raises(
        ConfigError, match=r"got a repository that a config reads, wanted that config: model=colbertv2\.0"
    ):
        own_configs._refuse_taken("model", "colbertv2.0", "x", CheckpointSource(repo="colbert-ir/colbertv2.0"))


def test_misspelt_names_stay_names(monkeypatch):
    words = ["model=jina-colbret-v2", "dataset=beir/nfcorpsu", "dataset.path=/x/y", "model=glob(*)"]
    assert named(words, monkeypatch) == (words, [])


def test_a_written_config_is_yaml_whatever_its_values_hold(tmp_path):
    values = {
        "marker": "[Q] ",
        "sign": "# no: comment",
        "words": ["'", '"', "\\", "$", "no"],
        "switch": False,
        "none": None,
    }
    text = own_configs._yaml("title", {key: (value, "a # b\nc") for key, value in values.items()})
    assert yaml.safe_load(text) == values
