"""Analyses of finished cells: comparisons, other scoring rules, single queries, smaller storage."""
