"""Draw every corruption: ``python -m testtime.corruptions --out docs/corruptions.jpg``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from testtime.corruptions import CORRUPTIONS, EXTRA, corrupt
from testtime.errors import need_packages
from testtime.files import write_image

CELL = 128
LABEL = 128
HEADER = 20
SEVERITIES = (1, 3, 5)


def photographs() -> list[Tensor]:
    """Return the images of the three columns, (1, 3, H, W) each: a temple and a flower at 224 pixels, the temple at 32."""
    need_packages(PIL="demo", sklearn="demo")
    from PIL import Image
    from sklearn.datasets import load_sample_image

    columns = []
    for name, left, size in (("china.jpg", 130, 224), ("flower.jpg", 150, 224), ("china.jpg", 130, 32)):
        photo = Image.fromarray(load_sample_image(name)).crop((left, 20, left + 400, 420))
        pixels = np.array(photo.resize((size, size), Image.Resampling.BICUBIC))
        columns.append(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
    return columns


def draw(out: Path, frost: Path | None) -> None:
    """Draw the sheet: a row for each corruption, three severities of each photograph.

    Args:
        out: path of the picture.
        frost: folder with the original frost textures; None uses procedural ones.
    """
    columns = photographs()
    from PIL import Image, ImageDraw

    names = ("", *CORRUPTIONS, *EXTRA)
    width = LABEL + CELL * len(SEVERITIES) * len(columns)
    sheet = Image.new("RGB", (width, HEADER + CELL * len(names)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        top = HEADER + row * CELL
        pen.text((6, top + CELL // 2), name or "original", fill="black")
        for column, x in enumerate(columns):
            for k, severity in enumerate(SEVERITIES):
                left = LABEL + CELL * (column * len(SEVERITIES) + k)
                if row == 0:
                    kind = "cifar" if x.shape[2] == 32 else "imagenet"
                    pen.text((left + 6, 4), f"{kind}, severity {severity}", fill="black")
                y = corrupt(x, name, severity, seeds=[column], frost=frost) if name else x
                pixels = (y[0] * 255).round().byte().permute(1, 2, 0).numpy()
                how = Image.Resampling.NEAREST if x.shape[2] < CELL else Image.Resampling.LANCZOS
                sheet.paste(Image.fromarray(pixels).resize((CELL - 2, CELL - 2), how), (left, top))
    write_image(out, sheet, quality=82)  # PNG takes no notice of the quality


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m testtime.corruptions", description="Draw every corruption."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/corruptions.jpg"), help="the picture, .jpg or .png"
    )
    parser.add_argument("--frost", type=Path, help="folder with the original frost textures")
    arguments = parser.parse_args()
    draw(arguments.out, arguments.frost)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
