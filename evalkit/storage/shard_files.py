"""Shard files: written atomically and verified by checksum on reading.

A checkpoint of a shard has two files: NAME.safetensors has the arrays, and NAME.json, the manifest, is written last.
One folder has the shard's embeddings, another its top-k. NAME is the checksum of the shard's ids and texts, so corpora
that contain the same shard share its files. A shard without manifest is not finished. If the checksum of the manifest
or of the arrays does not match, the shard is damaged: this is logged, and the shard is computed again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evalkit.errors import StoreError
from evalkit.ragged import Ragged, ragged
from evalkit.storage import seal, untrusted
from evalkit.storage.paths import file_checksum, make_folder, publish, temporary, write_atomic, write_error

log = logging.getLogger(__name__)

FORMAT = 2
"""Version of the shard layout; a shard of another version is logged and computed again.

A manifest of version 1 had no checksum of its own, so that wrong times and counts could not be noticed.
"""


class Manifest(NamedTuple):
    """The verified content of a shard's manifest."""

    size_bytes: int
    """The size of the arrays' file."""
    checksum: str
    """The checksum of the arrays' file."""
    facts: Mapping[str, Any]
    """The position in the corpus, the identity of the cell, times and counts."""


class ShardVectors(NamedTuple):
    """The ids and the vectors of texts: rows [X, D] with N + 1 offsets."""

    ids: tuple[str, ...]
    vectors: Ragged


def save(folder: Path, name: str, arrays: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Checkpoint arrays and facts under a name: first the arrays, then the manifest, each synced and renamed.

    Several processes may save the same shard concurrently: the same texts give the same arrays, so any manifest fits.
    Raises StoreError if a file cannot be written.
    """
    make_folder(folder)
    path = folder / f"{name}.safetensors"
    unfinished = temporary(path)
    try:
        checksum = _write(unfinished, {key: array.contiguous() for key, array in arrays.items()})
        size_bytes = unfinished.stat().st_size
        publish(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error) from error
    finally:
        unfinished.unlink(missing_ok=True)
    manifest = {
        "format": FORMAT,
        "name": name,
        "size_bytes": size_bytes,
        "arrays_xxh3_128": checksum,
        "facts": dict(facts),
    }
    write_atomic(_manifest_path(folder, name), json.dumps(seal.seal(manifest), indent=1).encode())


_TYPES = {torch.float32: "F32", torch.int32: "I32", torch.float16: "F16", torch.uint8: "U8"}
"""The dtypes of shards, in the order in which safetensors stores arrays: the most strictly aligned first."""
_WRITE_BYTES = 16 << 20


def _write(path: Path, arrays: Mapping[str, Tensor]) -> str:
    """Write the bytes that `save_file` of safetensors would write, and sync. Return the file's checksum.

    The checksum is computed while writing: a GPU gives hundreds of megabytes per second, too much to read again.
    """
    if not all(array.dtype in _TYPES and array.device.type == "cpu" for array in arrays.values()):
        save_file(dict(arrays), path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        return file_checksum(path)
    kinds = list(_TYPES)
    ordered = sorted(arrays.items(), key=lambda entry: (kinds.index(entry[1].dtype), entry[0]))
    header, begin = {}, 0
    for name, array in ordered:
        end = begin + array.numel() * array.element_size()
        header[name] = {"dtype": _TYPES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = xxhash.xxh3_128()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for _, array in ordered:
            data = array.flatten().view(torch.uint8).numpy()
            for place in range(0, len(data), _WRITE_BYTES):
                block = data[place : place + _WRITE_BYTES].data
                digest.update(block)
                file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def finished(folder: Path, name: str) -> Mapping[str, Any] | None:
    """Return the facts of a shard, or None if it is unfinished. Only sizes are compared, so no array is read."""
    found = _complete_manifest(folder, name)
    return None if found is None else found.facts


def load(folder: Path, name: str) -> dict[str, Tensor] | None:
    """Return the arrays of a finished shard, or None if it is unfinished or damaged."""
    wanted = _complete_manifest(folder, name)
    if wanted is None:
        return None
    path = folder / f"{name}.safetensors"
    try:
        got = file_checksum(path)
        if got == wanted.checksum:
            return load_file(path)
    except (OSError, SafetensorError) as error:
        log.warning("%s: cannot be read (%s); the shard is redone", path, _reason(error))
        return None
    log.warning("%s: checksum is %s, the manifest says %s; the shard is redone", path, got, wanted.checksum)
    return None


def read_manifest(folder: Path, name: str) -> Manifest:
    """Read a shard's manifest.

    Raises FileNotFoundError if there is none, and StoreError, with a message of one line, if it is damaged.
    """
    path = _manifest_path(folder, name)
    try:
        values = untrusted.json_object(path.read_bytes())
        if (version := values.get("format")) != FORMAT:
            msg = f"its format is {version!r}, this evalkit reads {FORMAT}"
            raise ValueError(msg)
        values = seal.unseal(values)
        if values["name"] != name:
            msg = f"it is of shard {values['name']}, wanted {name}"
            raise ValueError(msg)
        return Manifest(int(values["size_bytes"]), str(values["arrays_xxh3_128"]), dict(values["facts"]))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path}: manifest damaged or not of this version ({_reason(error)})"
        raise StoreError(msg) from error


def _complete_manifest(folder: Path, name: str) -> Manifest | None:
    """Return the manifest of a shard whose files have the right sizes; log damage."""
    path = folder / f"{name}.safetensors"
    try:
        found = read_manifest(folder, name)
        return found if path.stat().st_size == found.size_bytes else None
    except FileNotFoundError:
        return None
    except (StoreError, OSError) as error:
        text = str(error) if isinstance(error, StoreError) else f"{path}: cannot be read ({_reason(error)})"
        log.warning("%s; the shard is redone", text)
        return None


def _manifest_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def vectors_to_arrays(shard: ShardVectors) -> dict[str, Tensor]:
    """Return a shard as named arrays. Ids become a JSON list in UTF-8, because their length varies."""
    return {
        "ids": pack_text(shard.ids),
        "lengths": shard.vectors.lengths_N.to(torch.int32),
        "vectors": shard.vectors.rows_XD,
    }


def vectors_from_arrays(arrays: Mapping[str, Tensor]) -> ShardVectors:
    """Undo `vectors_to_arrays`."""
    return ShardVectors(unpack_text(arrays["ids"]), ragged(arrays["vectors"], arrays["lengths"]))


def pack_text(texts: Sequence[str]) -> Tensor:
    """Return strings as one byte array.

    >>> unpack_text(pack_text(["a", "文"]))
    ('a', '文')
    """
    data = json.dumps(list(texts), ensure_ascii=False).encode()
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


def unpack_text(array: Tensor) -> tuple[str, ...]:
    """Undo `pack_text`."""
    return tuple(json.loads(array.numpy().tobytes()))
