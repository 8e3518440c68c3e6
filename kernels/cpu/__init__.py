"""CPU halves of the ops, in plain PyTorch."""
