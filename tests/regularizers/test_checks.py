"""Arguments of another sort are refused by name, in every public function that takes a tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from balora.regularizers import nlg, nlu
from balora.regularizers.spectral import singular_values, top_k_ratio, top_k_variance

GOOD = torch.ones(3, 4)
CALLS = {
    "nlg.consistency_loss": (lambda x: nlg.consistency_loss(x, GOOD), "logits"),
    "nlg.consistency_loss, reference": (
        lambda x: nlg.consistency_loss(GOOD, x),
        "reference_logits",
    ),
    "nlg.diversity_loss": (nlg.diversity_loss, "logits"),
    "nlg.diversity_loss, top-K": (lambda x: nlg.diversity_loss(x, top_k=2), "logits"),
    "nlg.svd_loss": (nlg.svd_loss, "logits"),
    "nlu.consistency_loss": (lambda x: nlu.consistency_loss(x, GOOD), "logits"),
    "nlu.consistency_loss, reference": (
        lambda x: nlu.consistency_loss(GOOD, x),
        "reference_logits",
    ),
    "nlu.diversity_loss": (nlu.diversity_loss, "logits"),
    "nlu.svd_loss": (nlu.svd_loss, "logits"),
    "singular_values": (singular_values, "matrix"),
    "top_k_ratio": (lambda x: top_k_ratio(x, 1), "sigma"),
    "top_k_variance": (lambda x: top_k_variance(x, 1), "sigma"),
}
WRONG = {
    "an array": (np.ones((3, 4)), "got a ndarray"),
    "lists": ([[1.0, 2.0]], "got a list"),
    "whole numbers": (torch.ones(3, 4, dtype=torch.int64), r"got a torch\.Tensor of torch\.int64"),
    "truth values": (torch.ones(3, 4, dtype=torch.bool), r"got a torch\.Tensor of torch\.bool"),
    "complex numbers": (GOOD.to(torch.complex64), r"got a torch\.Tensor of torch\.complex64"),
    "nothing": (None, "got a NoneType"),
}


@pytest.mark.parametrize(("value", "found"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(("call", "name"), CALLS.values(), ids=CALLS)
def test_what_is_no_tensor_of_floating_point_numbers_is_refused_by_name(call, name, value, found):
    with pytest.raises(TypeError, match=f"`{name}` must be a torch.Tensor of floating.* {found}"):
        call(value)
