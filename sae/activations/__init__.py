"""Sources of activations, and the stream that shuffles them into batches.

This package knows nothing about autoencoders.
"""

from sae.activations.activation_data import ActivationData, HeldOutBatches
from sae.activations.batch import Batch, PositionCounts, Split
from sae.activations.builtin_text import BuiltinText
from sae.activations.capabilities import KnownFeatures, LabelledNetwork, TextModel
from sae.activations.model import ActivationModel, ModelOutput
from sae.activations.model_activations import ModelActivations
from sae.activations.provenance import Provenance, text_provenance
from sae.activations.source import Source
from sae.activations.stream import Stream
from sae.activations.text import FileText, HuggingFaceText, Text
from sae.activations.tokens import Contexts, PositionRule

__all__ = [
    "ActivationData",
    "ActivationModel",
    "Batch",
    "BuiltinText",
    "Contexts",
    "FileText",
    "HeldOutBatches",
    "HuggingFaceText",
    "KnownFeatures",
    "LabelledNetwork",
    "ModelActivations",
    "ModelOutput",
    "PositionCounts",
    "PositionRule",
    "Provenance",
    "Source",
    "Split",
    "Stream",
    "Text",
    "TextModel",
    "text_provenance",
]
