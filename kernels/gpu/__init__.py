"""GPU halves of the ops, in Triton."""
