"""BM25 as Lucene computes it: text analysis and scoring."""
