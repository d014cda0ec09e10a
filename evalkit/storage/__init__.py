"""Files on disk: paths, atomic writes, shard files, TREC files, results, the Hub's cache."""
