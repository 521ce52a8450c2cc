"""Pre-trained encoders of other libraries, by name, as baselines of the test space.

``huggingface:NAME`` is a vision transformer of Hugging Face transformers, ``timm:NAME`` one of timm; NAME is the name of the
model in that library, or for Hugging Face a folder. The library downloads and caches the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from testtime.errors import missing_extra
from testtime.space.segmenter import Encoder

__all__ = ["HuggingFaceEncoder", "TimmEncoder", "named_encoder"]


def named_encoder(name: str) -> Encoder:
    """Load an encoder by its library and name.

    Args:
        name: ``huggingface:NAME`` or ``timm:NAME``.

    Raises:
        ImportError: the library is not installed.
        ValueError: there is no such library, or the network is not a vision transformer.
        OSError: the library finds no weights of that name.
    """
    library, _, own = name.partition(":")
    if library == "huggingface" and own:
        try:
            from transformers import AutoImageProcessor, AutoModel
        except ImportError as error:
            raise missing_extra("transformers", "interop") from error
        processor = AutoImageProcessor.from_pretrained(own)
        return HuggingFaceEncoder(AutoModel.from_pretrained(own), processor.image_mean, processor.image_std)
    if library == "timm" and own:
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"{name} needs timm, which is not installed: pip install timm") from error
        return TimmEncoder(timm.create_model(own, pretrained=True, num_classes=0))
    raise ValueError(f"expected an encoder as huggingface:NAME or timm:NAME, got {name!r}")


@final
class HuggingFaceEncoder(nn.Module):
    """A vision transformer of Hugging Face transformers (ViT, DeiT, DINOv2, with registers or without) as an encoder.

    Args:
        model: model with an output ``last_hidden_state``, and with ``image_size``, ``patch_size`` and ``num_hidden_layers`` in
            its configuration; of a model with a head, the backbone is used.
        mean, std: mean and standard deviation of the training images: ``image_mean`` and ``image_std`` of the image processor.

    Tokens before those of the patches (class, distillation, registers) are dropped.

    Raises:
        ValueError: the model is not of that form.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model: Any = getattr(model, "base_model", model)
        config: Any = self.model.config
        try:
            side, patch = (
                (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
                for value in (config.image_size, config.patch_size)
            )
            self.dim, layers = int(config.hidden_size), int(config.num_hidden_layers)
        except AttributeError as error:
            raise ValueError(
                f"expected a vision transformer with a size of image and patch, got {type(model).__name__} ({error})"
            ) from error
        lists = [m for m in self.model.modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
        if not lists:
            raise ValueError(f"{type(model).__name__} has no list of {layers} blocks")
        self.size, self.grid = side, (side[0] // patch[0], side[1] // patch[1])
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._blocks = [lists[0]]  # in a list, so that it is not registered a second time

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of the model."""
        return self._blocks[0]

    @property
    def norm(self) -> nn.Module | None:
        """The final norm, where the model has one by a known name."""
        for name in ("layernorm", "norm"):
            found = getattr(self.model, name, None)
            if isinstance(found, nn.Module):
                return found
        return None

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, h*w, dim) of pictures (N, 3, H, W) in [0, 1]."""
        hidden = self.model(pixel_values=(images - self.mean) / self.std).last_hidden_state
        return hidden[:, hidden.shape[1] - self.grid[0] * self.grid[1] :]


@final
class TimmEncoder(nn.Module):
    """A vision transformer of timm (ViT, DeiT, DINOv2, MAE, CLIP's) as an encoder.

    Args:
        model: model with ``patch_embed``, ``blocks`` and ``forward_features``. Its prefix tokens (``num_prefix_tokens``) are
            dropped, and pictures are normalised with mean and standard deviation of its ``pretrained_cfg``.

    Raises:
        ValueError: the model is not of that form.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, network = model, cast(Any, model)
        try:
            embed, about = network.patch_embed, network.pretrained_cfg
            self.size: tuple[int, int] = tuple(embed.img_size)
            self.grid: tuple[int, int] = tuple(embed.grid_size)
            self.dim, self.before = int(network.embed_dim), int(network.num_prefix_tokens)
            self._blocks = [nn.ModuleList(network.blocks)]  # in a list, so that it is not registered twice
            mean, std = about["mean"], about["std"]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"expected a vision transformer of timm, got {type(model).__name__} ({error})"
            ) from error
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of the model."""
        return self._blocks[0]

    @property
    def norm(self) -> nn.Module | None:
        """The final norm."""
        found = getattr(self.model, "norm", None)
        return found if isinstance(found, nn.Module) else None

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, h*w, dim) of pictures (N, 3, H, W) in [0, 1]."""
        network: Any = self.model
        return network.forward_features((images - self.mean) / self.std)[:, self.before :]
