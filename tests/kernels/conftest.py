"""Memory from torch.empty starts as NaN here: an output a kernel forgot cannot pass."""

from kernel_cases import poison as poison
