"""What a finished run says beyond its scores: comparisons, other rules, single queries, narrower storage."""
