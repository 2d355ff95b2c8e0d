"""Networks: ours by name, and a user's own."""

from distill_core.models.apply import (
    CONSTANTS,
    apply_model,
    count_parameters,
    features,
    has_public_part,
    init_model,
)
from distill_core.models.cnn import CNN
from distill_core.models.create import MODEL_NAMES, TEXT_MODELS, create_model
from distill_core.models.mobilenetv2 import MobileNetV2
from distill_core.models.resnet import ResNet
from distill_core.models.resnetc import ResNetC
from distill_core.models.resnext import ResNeXt
from distill_core.models.scattering import Scattering
from distill_core.models.shufflenetv2 import ShuffleNetV2
from distill_core.models.text.decoder import Decoder
from distill_core.models.text.transformer import Transformer
from distill_core.models.watch import watched

__all__ = [
    "CNN",
    "CONSTANTS",
    "MODEL_NAMES",
    "TEXT_MODELS",
    "Decoder",
    "MobileNetV2",
    "ResNeXt",
    "ResNet",
    "ResNetC",
    "Scattering",
    "ShuffleNetV2",
    "Transformer",
    "apply_model",
    "count_parameters",
    "create_model",
    "features",
    "has_public_part",
    "init_model",
    "watched",
]
