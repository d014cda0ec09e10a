"""Kernels and helpers for CPUs."""
