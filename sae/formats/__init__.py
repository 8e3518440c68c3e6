"""Files of other tools. To add a format: one file here, its test, one line below.

Each format is a module with `write(sae, folder)` and `read(folder) -> SAE`.
"""

from sae.formats import saelens, sparsify

FORMATS = {
    "saelens": saelens,
    "sparsify": sparsify,
}
"""The modules by the name of the tool; `tests/formats/test_every_format.py` tests each of them."""

__all__ = ["FORMATS", "saelens", "sparsify"]
