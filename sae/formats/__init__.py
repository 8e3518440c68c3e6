"""Other tools' files: every module here has `write(sae, folder)` and `read(folder) -> SAE`."""

from sae.formats import saelens, sparsify

__all__ = ["saelens", "sparsify"]
