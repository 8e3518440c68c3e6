"""Fixtures: tiny models on text, and an SAE for them."""

from text_models import make_source, model_folders, sae, text_file

__all__ = ["make_source", "model_folders", "sae", "text_file"]
