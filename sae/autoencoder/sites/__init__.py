"""What is read and what is predicted. Adding a site: one file here, its test, one line below."""

from sae.autoencoder.sites.autoencode import Autoencode
from sae.autoencoder.sites.base import Site

__all__ = ["Autoencode", "Site"]
