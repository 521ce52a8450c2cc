"""What aTLAS learns on source data: task vectors, and how much of them is added to a network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.intake.sharing import Stateful, duplicate
from testtime.norm import batch_statistics
from testtime.source.passes import passes_over

__all__ = [
    "Batches",
    "TaskVectors",
    "block_names",
    "fine_tuned",
    "task_vectors_of",
    "train_task_vectors",
    "unscaled",
    "with_task_vectors",
]


Batches = Collection[tuple[Tensor, Tensor]]
"""Batches of images (N, C, H, W) and class indices (N,)."""


@final
class TaskVectors(Stateful):
    """A network and its task vectors; it answers as the network does until the coefficients have moved.

    Args:
        network: theta_0.
        blocks: the names of the B parameters that the vectors are of.
        tasks: the names of the T vectors.
        vectors: (T, P), the blocks of a vector one after the other; None while they are to be learned.

    Attributes:
        coefficients: lambda, (T, B), zero at first, at least in float32.
        scaled: False answers as the network does.
    """

    vectors: Tensor

    def __init__(
        self,
        network: nn.Module,
        blocks: Sequence[str],
        tasks: Sequence[str],
        vectors: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network, self.tasks, self.scaled, self.learned = network, tuple(tasks), True, vectors is None
        self.blocks = [network.get_parameter(name) for name in blocks]
        first = self.blocks[0].detach()
        zeros = first.new_zeros(
            len(self.tasks), len(blocks), dtype=torch.promote_types(first.dtype, torch.float32)
        )
        self.coefficients = nn.Parameter(zeros, requires_grad=False)
        width = sum(p.numel() for p in self.blocks)
        self.register_buffer("vectors", first.new_zeros(0, width) if vectors is None else vectors)

    def moving(self) -> dict[str, Tensor]:
        return super().moving() if self.learned else {}

    def forward(self, x: Tensor) -> Any:
        if not self.scaled or not len(self.vectors):
            return self.network(x)
        names = {id(p): name for name, p in self.network.named_parameters()}
        parts = self.vectors.split([p.numel() for p in self.blocks], dim=1)
        weights = {}
        for p, scale, part in zip(self.blocks, self.coefficients.unbind(1), parts, strict=True):
            moved = (scale[:, None] * part).sum(dim=0).view_as(p)
            weights[names[id(p)]] = (p + moved).to(p.dtype)
        return torch.func.functional_call(self.network, weights, (x,))


@contextmanager
def unscaled(vectors: TaskVectors) -> Iterator[None]:
    """Inside, the network answers as theta_0."""
    vectors.scaled = False
    try:
        yield
    finally:
        vectors.scaled = True


def block_names(model: nn.Module, skip: Sequence[str] | None) -> list[str]:
    """The names of the parameters that task vectors are of."""
    if skip is None:
        skip = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1:]
    names = [
        name
        for name, p in model.named_parameters()
        if p.is_floating_point() and not any(f".{part}." in f".{name}." for part in skip)
    ]
    if not names:
        raise ValueError(
            f"leaving out {', '.join(skip)} leaves this model no parameters for task vectors; pass skip=() to take all"
        )
    return names


def task_vectors_of(model: nn.Module) -> TaskVectors | None:
    """Return the task vectors of a model; None if it has none."""
    return next((m for m in model.modules() if isinstance(m, TaskVectors)), None)


def with_task_vectors(
    model: nn.Module,
    fine_tuned: Mapping[str, nn.Module | Mapping[str, Tensor]],
    skip: Sequence[str] | None = None,
) -> TaskVectors:
    """A network with the task vectors of networks that were fine-tuned from it.

    Args:
        model: theta_0; it is left as it is.
        fine_tuned: fine-tuned networks of the same form, or their state dictionaries, by task.
        skip: parts of dotted names; parameters whose name holds one have no task vector, and stay as they are in ``model``.
            None leaves out the last linear layer, the head.

    Raises:
        ValueError: there is no task, a network has other parameters than ``model``, or ``skip`` leaves out all.

    >>> net, tuned = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, n)) for n in (2, 5))
    >>> with_task_vectors(net, {"fog": tuned, "snow": tuned.state_dict()}).vectors.shape
    torch.Size([2, 112])
    """
    if not fine_tuned:
        raise ValueError("expected at least one fine-tuned network, by the name of its task, got none")
    network = duplicate(model).eval().requires_grad_(False)
    blocks, vectors = block_names(network, skip), []
    for task, tuned in fine_tuned.items():
        weights = tuned.state_dict() if isinstance(tuned, nn.Module) else tuned
        own = {name: network.get_parameter(name) for name in blocks}
        differ = [n for n, p in own.items() if n not in weights or weights[n].shape != p.shape]
        if differ:
            raise ValueError(
                f"the network of task {task!r} has other parameters than the model: {len(differ)} are missing or of another "
                f"shape, first {', '.join(differ[:3])}; expected one that was fine-tuned from it, or name in skip what is not "
                "to be composed"
            )
        vectors.append(torch.cat([(weights[n].detach().to(p) - p).flatten() for n, p in own.items()]))
    return TaskVectors(network, blocks, list(fine_tuned), torch.stack(vectors))


def train_task_vectors(
    model: nn.Module,
    tasks: Mapping[str, Batches],
    passes: int = 1,
    rate: float = 1e-5,
    decay: float = 0.1,
    skip: Sequence[str] | None = None,
    norm: Callable[[nn.Module], nn.Module] = batch_statistics,
    folder: str | Path | None = None,
    title: str | None = "task vector",
) -> TaskVectors:
    """A network with task vectors: it is fine-tuned on one task after the other, each time from the start, by AdamW.

    A task is any labelled data set of the model's classes: a domain, or the source set under a corruption.

    Args:
        model: theta_0; it is left as it is.
        tasks: labelled batches, images (N, C, H, W) and labels (N,), by task; a loader that shuffles works too.
        passes: number of passes over the batches.
        rate: the learning rate, 1e-5 where task vectors were introduced (of CLIP); a small network wants more.
        decay: weight decay, 0.1 there.
        skip: parts of names of frozen parameters without task vectors, see :func:`with_task_vectors`.
        norm: the policy of the BatchNorm layers while fine-tuning: the one the network is to be adapted under.
        folder: for a checkpoint of each task after every pass, from which the same call continues; None for none.
        title: title of the progress bar; None for none.

    Returns:
        the network as it was, in evaluation mode, with its task vectors.

    Raises:
        ValueError: there is no task, ``skip`` leaves out all, a loss is not finite, or a file in the folder belongs to another
            training.

    Reference: Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023 (there with a warm-up and a cosine schedule).

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> examples = [(torch.rand(8, 3, 4, 4), torch.randint(2, (8,)))] * 3
    >>> train_task_vectors(net, {"fog": examples, "snow": examples}, title=None).tasks
    ('fog', 'snow')
    """
    if not tasks:
        raise ValueError("expected at least one task, as labelled batches by its name, got none")
    network = duplicate(model).eval().requires_grad_(False)
    blocks = block_names(network, skip)
    tree = norm(TaskVectors(network, blocks, list(tasks)))
    vectors = [
        fine_tuned(
            tree,
            batches,
            passes,
            rate,
            decay,
            title and f"{title} {task}",
            None if folder is None else Path(folder) / f"{task}.safetensors",
            {"kind": "train_task_vectors", "task": task, "rate": rate, "decay": decay},
        )
        for task, batches in tasks.items()
    ]
    return TaskVectors(network, blocks, list(tasks), torch.stack(vectors))


def fine_tuned(
    tree: nn.Module,
    batches: Batches,
    passes: int,
    rate: float,
    decay: float,
    title: str | None = None,
    file: Path | None = None,
    described: Mapping[str, Any] | None = None,
) -> Tensor:
    """What training changes in the blocks, (P,), of a network that holds its :class:`TaskVectors`; it stays as it is."""
    tuned = duplicate(tree).requires_grad_(False)
    part = task_vectors_of(tuned)
    assert part is not None
    part.scaled = False
    before = [p.detach().clone() for p in part.blocks]
    for p in part.blocks:
        p.requires_grad_(True)
    for _ in passes_over(
        batches,
        passes,
        tuned,
        torch.optim.AdamW(part.blocks, rate, weight_decay=decay),
        lambda x, y: F.cross_entropy(tuned(x), y),
        lambda _: rate,
        title,
        file,
        described,
    ):
        pass
    return torch.cat([(p.detach() - b).flatten() for p, b in zip(part.blocks, before, strict=True)])
