"""Checkpoints with their own Python code, in the layouts that occur on the Hub."""

from __future__ import annotations

import json
from pathlib import Path

from checkpoints import write_colbertv2

CONFIGURATION = """
from transformers import BertConfig


class OwnConfig(BertConfig):
    pass
"""
MODELING = """
import pathlib

import torch
from transformers import BertModel

from .configuration_own import OwnConfig

pathlib.Path({trace!r}).touch()


class OwnModel(BertModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("scale", torch.full((1,), 1.0), persistent=False)

    def forward(self, input_ids, attention_mask):
        bias = (1.0 - attention_mask) * 0.0  # as old code does; fails on truth values
        assert bias.shape == input_ids.shape
        out = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        out.last_hidden_state = out.last_hidden_state * self.scale
        return out
"""
"""BERT as remote code: its results are known, its trace file proves that it ran, its buffer is in no file."""


def write_code(folder: Path, *, trace: Path, modeling: str = MODELING) -> Path:
    """Write the two Python files of a repository with code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "configuration_own.py").write_text(CONFIGURATION, encoding="utf-8")
    (folder / "modeling_own.py").write_text(modeling.format(trace=str(trace)), encoding="utf-8")
    return folder


def write_own(folder: Path, *, trace: Path, dim: int = 16, code: str = "", modeling: str = MODELING) -> Path:
    """Write the layout of colbert-ir/colbertv2.0 with its own code, or with that of the repository `code`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_colbertv2(folder, dim=dim)
    prefix = f"{code}--" if code else ""
    set_config(
        folder,
        auto_map={
            "AutoConfig": f"{prefix}configuration_own.OwnConfig",
            "AutoModel": f"{prefix}modeling_own.OwnModel",
        },
    )
    return folder if code else write_code(folder, trace=trace, modeling=modeling)


def set_config(folder: Path, **values: object) -> None:
    """Change values of config.json; None removes one."""
    path = folder / "config.json"
    changed = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}), encoding="utf-8")
