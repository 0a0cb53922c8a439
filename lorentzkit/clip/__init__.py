"""Hyperbolic CLIP as a model of transformers, into which published checkpoints load.

`HyperbolicCLIPModel` is a ViT and a causal text transformer whose features become points of one
space: CLIP, MERU, HyCoCLIP and ATMG, by ``config.objective``. ``python -m lorentzkit.clip.convert``
makes one of a published checkpoint. Needs ``pip install 'lorentzkit[clip]'``.
"""

try:
    import transformers
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ImportError(
        "lorentzkit.clip needs transformers: pip install 'lorentzkit[clip]'"
    ) from error

from lorentzkit.clip.configuration import HyperbolicCLIPConfig
from lorentzkit.clip.modeling import HyperbolicCLIPModel, HyperbolicCLIPOutput
from lorentzkit.clip.processing import HyperbolicCLIPProcessor, tokenizer_from_bpe

_name = HyperbolicCLIPConfig.model_type
transformers.AutoConfig.register(_name, HyperbolicCLIPConfig, exist_ok=True)
transformers.AutoModel.register(HyperbolicCLIPConfig, HyperbolicCLIPModel, exist_ok=True)
transformers.AutoModelForZeroShotImageClassification.register(
    HyperbolicCLIPConfig, HyperbolicCLIPModel, exist_ok=True
)
transformers.AutoProcessor.register(HyperbolicCLIPConfig, HyperbolicCLIPProcessor, exist_ok=True)

__all__ = [
    "HyperbolicCLIPConfig",
    "HyperbolicCLIPModel",
    "HyperbolicCLIPOutput",
    "HyperbolicCLIPProcessor",
    "tokenizer_from_bpe",
]
