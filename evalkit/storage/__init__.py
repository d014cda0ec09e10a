"""Files on disk: paths, atomic writes, shard files, TREC runs, results, the Hub's cache."""
