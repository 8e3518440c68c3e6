"""The GPU half of each op, in Triton."""
