"""What is read and what is predicted. Adding a site: one file here, its test, one line below."""

from sae.autoencoder.sites.autoencode import Autoencode
from sae.autoencoder.sites.base import Site
from sae.autoencoder.sites.crosscode import Crosscode, CrossLayer
from sae.autoencoder.sites.transcode import SkipTranscode, Transcode

__all__ = ["Autoencode", "CrossLayer", "Crosscode", "Site", "SkipTranscode", "Transcode"]
