"""BM25 as Lucene computes it: analyzers and scoring."""
