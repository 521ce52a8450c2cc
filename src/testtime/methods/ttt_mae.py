r"""TTT-MAE: keep learning, on the test image, to fill in what of it is hidden.

With the encoder :math:`f`, which the task head shares, the decoder :math:`g` of the masked autoencoder, random places
:math:`V_j` of which a quarter of the patches is shown, and the patches :math:`\hat x_p`, each less its mean and over its
deviation,

.. math::
    \min_{\theta_f} \; \frac{1}{N B} \sum_{i=1}^{N} \sum_{j=1}^{B} \frac{1}{|\bar V_j|} \sum_{p \notin V_j}
    \frac{1}{3 s^2} \big\lVert g(f(x_{i, V_j}))_p - \hat x_{i, p} \big\rVert^2

A step:
    1. predict the images whole;
    2. show the encoder B copies of each under B masks, and let the decoder fill in the rest;
    3. move the encoder once down the squared error, the decoder and the head staying as they are; answer with 1.

The paper takes 20 steps on an image, from the source each time, and answers after the last: ``Episodic(Repeat(ttt_mae, 20))``
on batches of one image. On larger batches that is one encoder for all images of the batch.

The network is given with its autoencoder, ``Assisted(network, autoencoder)``, where some part of the network is
``autoencoder.encoder`` itself: ``Segmenter(autoencoder.encoder, head)``, say. The paper trains the head on the frozen encoder.

Departures:
    The paper's copies are one centre crop of the image, and so they are here: the image itself. Its learning rate is
    1e-2 for 256 copies, hence 5e-3 for 128; with another number of copies choose the rate accordingly.
    All images of a batch get the same B masks, so that an image is treated alike at every place of its batch.
    The answer of a step is the forward before its update, the paper's that after the last step: ``Repeat`` gives it.

Cost: one forward, and for each image B forwards and backwards of a quarter of its patches through the encoder and of all
through the decoder; ``cost`` counts a copy as that quarter of an image: 33 forwards and 32 backwards a step.

Reference: Gandelsman, Sun, Chen and Efros, Test-Time Training with Masked Autoencoders, NeurIPS 2022. Used as Singh, Garjani
et al. do (Multimodality as Supervision, table 7).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.models.assisted import Assisted, MaskedBranch
from testtime.norm import observing, source_statistics
from testtime.parts.optimizers import OptimizerFactory, sgd
from testtime.parts.randomness import generator

__all__ = ["TTTMAE"]


@final
class TTTMAE(Adapter):
    """Keep learning to fill in what is hidden of an image.

    Args:
        model: any network of images (N, 3, H, W) in [0, 1] of the encoder's size, with the autoencoder whose encoder is part
            of it: ``Assisted(network, autoencoder)``.
        optimizer: moves the encoder; the paper's is SGD of momentum 0.9.
        copies: B, the masks of a step; the paper's is 128.
        norm: the policy of the BatchNorm layers.
        seed: random seed of the masks.

    Raises:
        ValueError: the model comes without its autoencoder, the autoencoder's encoder is no part of the network, or copies
            is below 1.

    >>> from testtime import Episodic, Repeat
    >>> from testtime.space.mae import MaskedAutoencoder
    >>> from testtime.space.segmenter import ConvNeXtHead, Segmenter
    >>> autoencoder = MaskedAutoencoder("tiny", (32, 32), 8)
    >>> network = Segmenter(autoencoder.encoder, ConvNeXtHead(96, (4, 4), classes=5, width=8, sub=2, depth=1))
    >>> ttt_mae = Episodic(Repeat(TTTMAE(Assisted(network, autoencoder), copies=4), 2))  # the paper's: 128, 20
    >>> y = ttt_mae(torch.rand(1, 3, 32, 32))
    >>> y.shape, y.updated
    (torch.Size([1, 5, 32, 32]), True)
    """

    name, label = "ttt-mae", "TTT-MAE"
    needs = ("branch", "images")
    venue = "NeurIPS 2022"
    paper = "Gandelsman, Sun, Chen and Efros, Test-Time Training with Masked Autoencoders"
    stochastic = True
    cost: tuple[float, float] = (33, 32)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(5e-3, momentum=0.9),  # noqa: B008 - a frozen value
        copies: int = 128,
        norm: Callable[[nn.Module], nn.Module] = source_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        if copies < 1:
            raise ValueError(f"copies counts the masks of a step and is at least 1, got {copies}")
        self.optimizer, self.copies, self.norm = optimizer, copies, norm
        found = [
            m for m in self.model.modules() if isinstance(m, Assisted) and isinstance(m.branch, MaskedBranch)
        ]
        if not found:
            raise ValueError(
                "TTTMAE needs the autoencoder that the network's encoder comes from: expected "
                f"Assisted(network, autoencoder), got {type(model).__name__}"
            )
        autoencoder = found[0].branch
        assert isinstance(autoencoder, MaskedBranch)
        self._autoencoder, encoder = autoencoder, autoencoder.encoder
        if not any(m is encoder for m in found[0].network.modules()):
            raise ValueError(
                f"the autoencoder's encoder is no part of this {type(found[0].network).__name__}; build the network on it, "
                "as in Segmenter(autoencoder.encoder, head)"
            )
        shown = copies * autoencoder.visible / autoencoder.places
        self.cost = (1 + shown, shown)
        self.adapt(encoder.parameters(), optimizer)

    def step(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        with observing(self.model), torch.no_grad():
            y = self.model(x)
        shown = self._autoencoder.masks(self.copies, generator(self.seed, int(self.clock), "masks"))
        copies = x.repeat_interleave(self.copies, 0)
        self.update(self._autoencoder.loss(copies, shown.repeat(len(x), 1)))
        return y
