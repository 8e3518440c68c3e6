"""Sites: the hooks read and predicted. To add one: one file here, its test, one line below."""

from sae.autoencoder.sites.autoencoder import Autoencoder
from sae.autoencoder.sites.base import Site
from sae.autoencoder.sites.crosscoder import Crosscoder, CrossLayerTranscoder
from sae.autoencoder.sites.transcoder import SkipTranscoder, Transcoder

__all__ = [
    "Autoencoder",
    "CrossLayerTranscoder",
    "Crosscoder",
    "Site",
    "SkipTranscoder",
    "Transcoder",
]
