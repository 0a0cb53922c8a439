"""Losses on points of hyperbolic space: as functions, and the sums papers make of them as modules.

A loss of pairs (`contrastive_loss`, `entailment_loss`, `centroid_loss`) is a function of points.
What a paper minimises is a module: `CLIPLoss`, `MERULoss` and `ATMGLoss` are called alike;
`HyCoCLIPLoss` takes points of boxes as well.
"""

from lorentzkit.losses.compositional import HyCoCLIPLoss
from lorentzkit.losses.contrastive import Targets, contrastive_loss
from lorentzkit.losses.objectives import ATMGLoss, CLIPLoss, MERULoss
from lorentzkit.losses.terms import centroid_loss, entailment_loss

__all__ = [
    "ATMGLoss",
    "CLIPLoss",
    "HyCoCLIPLoss",
    "MERULoss",
    "Targets",
    "centroid_loss",
    "contrastive_loss",
    "entailment_loss",
]
