r"""Replay: consistency on texts that the pre-trained model writes itself, or on given ones.

Eq. 10 of BA-LoRA (arXiv 2408.04556), read for whole texts, is

.. math::
    \mathrm{KL}(P_p \,\|\, P_f) = \mathbb{E}_{x \sim P_p} \sum_t
    \mathrm{KL}\left(P_p(\cdot | x_{<t}) \,\|\, P_f(\cdot | x_{<t})\right)

with the expectation over texts of the pre-trained model :math:`P_p`. They are sampled once,
before the first step; the inner divergence is computed exactly, over the whole vocabulary, beside
the task in every n-th step.
"""
