"""Everything on disk: paths, atomic files, shard files, TREC runs, results, the Hub's cache."""
