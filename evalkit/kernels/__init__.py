"""Code written for one kind of processor, each kernel with a plain fallback elsewhere."""
