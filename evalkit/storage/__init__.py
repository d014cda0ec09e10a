"""Files on disk: paths, atomic writes, shard files, TREC files, results, the Hub's cache.

`paths` names every file and writes it atomically. `keys` makes content addresses, and `seal` adds a checksum to a
JSON record. `shard_files` has the checkpoints of shards. `results` has the folders of finished cells: its scores.json
there, and `trec`, `per_query_file` and `cell_config` the other files. `columns` parses lines of text formats,
`untrusted` JSON and YAML that may be damaged. `hub` downloads, and `network` switches the network off.
"""
