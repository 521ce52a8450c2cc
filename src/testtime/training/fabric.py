"""Lightning Fabric, for training on several devices or processes."""

from __future__ import annotations

from typing import Any

from testtime.errors import missing_extra

__all__ = ["launch_fabric"]


def launch_fabric(device: str, devices: int, precision: str) -> Any:
    """Return a launched ``lightning.fabric.Fabric`` for :class:`testtime.training.loop.Training`.

    Args:
        device: kind of the devices, "cpu" or "cuda".
        devices: number of processes that share each batch.
        precision: "float32" or "bfloat16".

    Raises:
        ImportError: Lightning Fabric is not installed.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise missing_extra("lightning-fabric", "train") from error
    fabric = Fabric(
        accelerator=device.partition(":")[0],
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="bf16-mixed" if precision == "bfloat16" else "32-true",
    )
    fabric.launch()
    return fabric
