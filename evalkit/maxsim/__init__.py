"""MaxSim as pure tensor functions: no datasets and no I/O.

The MaxSim score of a document is the sum, over the query's vectors, of each one's largest dot product with a vector
of the document (`reference`). A search of a shard has two stages. A kernel chosen by `choice` computes approximate
scores of all documents fast: `packed` in plain torch, the others in `evalkit.kernels`. `bounds` bounds the error of
these scores, so that every document which may be among the best is known; it is called nominated. `rescore` computes
the exact scores of the nominated documents. `evalkit.run.search` connects the stages.
"""
