"""Files on disk: paths, atomic writes, shard files, TREC files, results, the Hub's cache.

`paths` names every file and writes it atomically. `keys` makes content addresses, and `seal` adds a checksum to a
JSON record. `shard_files` and `results` are built on these: the checkpoints of shards, and the folders of finished
cells. `trec` and `columns` parse run files and judgements, `untrusted` parses JSON and YAML that may be damaged, `hub`
downloads, and `offline` switches the network off.
"""
