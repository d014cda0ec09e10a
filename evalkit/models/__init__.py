"""Models: from the name of a checkpoint to an encoder on a device, and re-rankers.

`checkpoint` locates a model's files and identifies them by content, and `tokens` has the rules for its token ids.
`encoder` loads it: a class of `backbones` (or the checkpoint's `remote_code`) with its heads (`dense` has those of
several layers). `attention` and `elementwise` choose the kernels. `reranker` loads a re-ranker.

`metadata` compares the settings saved with a checkpoint with the config, `weights` proves that weights are the
published ones, and `infer` writes a config for a new checkpoint. `demo/` has the weights of the demo.
"""
