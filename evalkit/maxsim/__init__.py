"""MaxSim as pure tensor functions: no datasets and no I/O.

The MaxSim score of a document is the sum, over the query's vectors, of each one's largest dot product with a vector
of the document (`reference`). A search of a shard has two stages. First, a kernel chosen by `choice` computes
approximate scores of all documents: `packed` in plain torch, the others in `evalkit.kernels`. `bounds` bounds the error
of these scores, so that every document that may be among the best is found; these documents are called nominated. Then
`rescore` computes the exact scores of the nominated documents. `evalkit.run.search` connects the stages.
"""
