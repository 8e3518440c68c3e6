"""The CPU half of each op, in plain PyTorch."""
