"""Vectors of two processors differ in their last bits: a result says which instructions ran, a mixture is told."""

import logging

import torch

from evalkit.config.compose import compose
from evalkit.run import environment
from evalkit.run.shard_step import log_other_arithmetic


def test_a_result_names_the_instructions_of_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert environment.environment(torch.device("cpu"))["instruction_set"] == "AVX2"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert environment.instruction_set(torch.device("cpu")) == "AVX2, ONEDNN_MAX_CPU_ISA=SSE41"
    assert environment.instruction_set(torch.device("cuda")) is None


def test_attention_without_its_kernel_is_other_arithmetic_under_the_same_key(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    config = compose(["model=demo", "dim=64"])
    monkeypatch.setattr(environment.attention, "kernel_problem", lambda: "")
    assert environment.arithmetic(config, torch.device("cpu")) == "AVX2"
    monkeypatch.setattr(environment.attention, "kernel_problem", lambda: "no compiler")
    assert environment.arithmetic(config, torch.device("cpu")) == "AVX2, attention by torch"
    assert environment.arithmetic(config, torch.device("cuda")) is None


def test_a_mixture_is_told_once_and_equal_or_unknown_ones_are_not(caplog):
    log_other_arithmetic.cache_clear()
    with caplog.at_level(logging.WARNING):
        for stored, here in (("AVX512", "AVX2"), ("AVX512", "AVX2"), ("AVX2", "AVX2"), (None, "AVX2"), ("AVX2", None)):
            log_other_arithmetic(stored, here)
    (record,) = caplog.records
    assert "computed with AVX512, this process has AVX2: last bits of vectors can" in record.getMessage()
