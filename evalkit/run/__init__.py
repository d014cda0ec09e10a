"""One evaluation: cells, the shard step, encoding, search and the flow that joins them."""
