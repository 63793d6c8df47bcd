"""Anchored adapters on PEFT: PiSSA, and other starts, with the base model left untouched."""

from balora.anchored.beside import BASE_UNTOUCHED
from balora.anchored.create import add_adapter, get_balora_model, naming_targets, started_by_peft
from balora.anchored.layer import ANCHOR_BUFFERS, difference_factors, reference_mode
from balora.anchored.model import (
    anchor_adapter,
    anchors_aside,
    check_adapter,
    initialise,
    lora_layers,
    only_adapter,
)
from balora.anchored.save import ADAPTER_FILE, ANCHOR_FILE
from balora.anchored.svd import PrincipalComponents, principal_components, randomized_svd

__all__ = [
    "ADAPTER_FILE",
    "ANCHOR_BUFFERS",
    "ANCHOR_FILE",
    "BASE_UNTOUCHED",
    "PrincipalComponents",
    "add_adapter",
    "anchor_adapter",
    "anchors_aside",
    "check_adapter",
    "difference_factors",
    "get_balora_model",
    "initialise",
    "lora_layers",
    "naming_targets",
    "only_adapter",
    "principal_components",
    "randomized_svd",
    "reference_mode",
    "started_by_peft",
]
