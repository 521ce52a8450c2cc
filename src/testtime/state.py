"""The state of an adapter as a value: what moves, its initial values, its checks when it is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

import torch
from torch import Tensor, nn

from testtime.construction import Lock
from testtime.intake.journal import LARGE, Before, Journal
from testtime.intake.sharing import InitialState, Stateful, at_least_float32
from testtime.intake.trees import REGISTRATIONS, named_modules_of, names_of
from testtime.norm.layer import NormPolicy, advance
from testtime.parts.optimizers import MasterWeights, OptimizerFactory, initialised, scaled

__all__ = ["AdapterState", "all_finite"]

NEVER_NEGATIVE = ("clock", "step", "var", "exp_avg_sq", "max_exp_avg_sq", "square_avg")  # entries of a state


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether the norms of all tensors are finite; a NaN or infinity in one makes its norm so."""
    large = [t for t in tensors if t.numel() >= LARGE]
    norms = list(torch._foreach_norm(large)) if large else []
    for device in {t.device for t in tensors}:
        small = [t for t in tensors if t.numel() < LARGE and t.device == device]
        if small:
            flat = torch.cat([t if t.dim() == 1 else t.reshape(-1) for t in small])
            wide = torch.promote_types(flat.dtype, torch.float32)
            norms.append(torch.linalg.vector_norm(flat, dtype=wide))
    return all(math.isfinite(norm) for norm in norms)


def _refuse_loss_of_values(fn: Callable[[Tensor], Tensor]) -> None:
    """Refuse a function that moves tensors without their values: to the meta device, or as ``to_empty`` does.

    Raises:
        ValueError: it is one.
    """
    given = torch.zeros(8), torch.ones(8)  # fresh memory may hold the values of one, not of both
    found = [fn(tensor) for tensor in given]
    if found[0].is_meta:
        raise ValueError(
            "an adapter has a state, and tensors of the meta device have no values; move it elsewhere"
        )
    if any(a.is_floating_point() and a.tolist() != b.tolist() for a, b in zip(found, given, strict=True)):
        raise ValueError(
            "an adapter has a state, and to_empty() moves tensors without their values; move it with .to(device), or give "
            "the model its weights first and build the adapter on it"
        )


class AdapterState(Stateful):
    """The half of an adapter that holds what moves: adapted parameters, moving buffers, optimizer state, count of steps.

    ``state_dict`` copies it, ``load_state_dict`` is a transaction, ``reset`` loads the initial state.

    Args:
        model: the tree that the adapter works on.
        seed: random seed; every draw is a function of (seed, steps, purpose).

    Attributes:
        clock: number of steps taken, an int64 scalar on the CPU.
        taught: initial values that ``prepare`` changed; None for methods without.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.clock = torch.zeros((), dtype=torch.int64)
        self.taught: InitialState | None = None
        self._adapted: list[nn.Parameter] = []
        self._places: tuple[int, list[tuple[Any, Any]]] | None = None  # of parameters and optimizer state
        self._names: tuple[int, list[str]] | None = None  # of the adapted, and the registrations then
        self._masters = MasterWeights([])
        self._optimizer: torch.optim.Optimizer | None = None
        self._initial: dict[str, Tensor] | None = None
        self._lock = Lock()
        self._journal = Journal()

    def adapt(self, parameters: Iterable[nn.Parameter], optimizer: OptimizerFactory) -> None:
        """Declare, in ``__init__``, the adapted parameters and their optimizer; they stop sharing memory with the source model.

        Args:
            parameters: parameters of ``self.model``.
            optimizer: factory of the optimizer, such as :func:`testtime.adam`.

        Raises:
            TypeError: the optimizer is no factory, or something among the parameters is none.
            ValueError: there are no parameters, or one is not in ``self.model``.
        """
        if not callable(optimizer):
            raise TypeError(
                "optimizer= is a function that makes an optimizer of a list of parameters, such as testtime.adam(1e-3) or "
                f"functools.partial(torch.optim.AdamW, lr=1e-3), got {type(optimizer).__name__}"
            )
        adapted = list(parameters)
        if not adapted:
            raise ValueError(
                f"{type(self).__name__} adapts the scale and shift of normalisation layers, and this model has none; "
                "expected BatchNorm, LayerNorm, GroupNorm, RMSNorm or InstanceNorm layers with affine=True"
            )
        self._refuse_strangers(adapted)
        self._adapted = adapted
        for p in self._adapted:
            p.data = p.data.clone()
            p.requires_grad_(True)
        self._masters, self._places = MasterWeights(self._adapted), None
        self._optimizer = initialised(optimizer(self._masters.weights), self._masters.weights)

    def _refuse_strangers(self, parameters: Sequence[Any]) -> None:
        """Refuse parameters that are none of ``self.model``: predictions would not depend on them, or they are the caller's."""
        name, own = type(self).__name__, {id(p) for p in self.model.parameters()}
        for p in parameters:
            if not isinstance(p, nn.Parameter):
                raise TypeError(f"{name}: adapt() takes parameters of self.model, got {type(p).__name__}")
            if id(p) not in own:
                raise ValueError(
                    f"{name} adapts a parameter {tuple(p.shape)} that is not in self.model, the adapter's own copy; take "
                    "those of the copy, such as self.model.parameters() or norm_affine(self.model); a new parameter belongs to "
                    "a module around the model, which is passed to super().__init__(module)"
                )

    def remember_birth(self) -> None:
        """Declare, last in ``__init__``, that ``prepare`` changes the initial state; the state then holds those changes."""
        self.taught = InitialState(self._moving(learned=False))

    def reset(self) -> None:
        """Return to the initial state: parameters, statistics, memory, optimizer, randomness. ``prepare`` is kept."""
        with self._lock:
            self._restore({**self._initial_state(), **(self.taught.known() if self.taught else {})})

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        """Return what moves, by name, as independent tensors: enough to continue the run in another process."""
        self._initial_state()
        state = {f"{prefix}{k}": v.detach().clone() for k, v in self._moving(learned=True).items()}
        if destination is None:
            return state
        destination.update(state)
        return destination

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Continue from a saved state, whatever this adapter has processed before.

        Raises:
            TypeError: it is no mapping of names to tensors.
            ValueError: the state is of another method, model or setting, or holds values that are not finite; the message
                names what differs. The adapter is then as before.
        """
        with self._lock:
            self._initial_state()
            before = Journal().before(self._parts(learned=True).values())
            try:
                self._restore(self._checked(state_dict))
            except BaseException:
                self._undo(before)
                raise

    def train(self, mode: bool = True) -> Self:
        """Change nothing: an adapter has one mode."""
        return self

    def moving(self) -> dict[str, Tensor]:
        live = {"clock": self.clock, **super().moving()}
        weights = self._masters.weights
        for name, p, master in zip(self._adapted_names(), self._adapted, weights, strict=True):
            live[f"model.{name}"] = p
            if master is not p:
                live[f"master.{name}"] = master
            for key, value in (self._optimizer.state[master] if self._optimizer else {}).items():
                live[f"optimizer.{name}.{key}"] = value
        return live

    def _fixed_places(self) -> list[tuple[Any, Any]]:
        entries = sum(map(len, self._optimizer.state.values())) if self._optimizer else 0
        if self._places is None or self._places[0] != entries:
            found: list[tuple[Any, Any]] = []
            weights = self._masters.weights
            for i, (p, master) in enumerate(zip(self._adapted, weights, strict=True)):
                found += [(self._adapted, i)] if master is p else [(self._adapted, i), (weights, i)]
                state = self._optimizer.state[master] if self._optimizer else {}
                found += [(state, key) for key in state]
            self._places = entries, found
        return self._places[1]

    def _moving_elsewhere(self) -> dict[str, Tensor]:
        return {"clock": self.clock, **super().moving()}

    def restore(self, name: str, value: Tensor) -> None:
        self.restore_all({name: value})

    def restore_all(self, values: Mapping[str, Tensor]) -> None:
        live = self.moving()
        fixed = [name for name in values if name not in self._buffers]
        for name in values.keys() & self._buffers.keys():
            super().restore(name, values[name])
        for name in fixed:
            if live[name].shape != values[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(live[name].shape)}, the saved state {tuple(values[name].shape)}"
                )
        if fixed:
            with torch.no_grad():
                torch._foreach_copy_([live[name] for name in fixed], [values[name] for name in fixed])

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        raise TypeError(
            "an adapter cannot be wrapped in DistributedDataParallel: every rank would adapt by itself and their states "
            "would differ; run one adapter in one process"
        )

    def _move(self, gradients: Sequence[Tensor | None], rate: float) -> None:
        """Take a step of the optimizer along these gradients of the adapted parameters, at a factor of its learning rates."""
        if self._optimizer is None:
            raise RuntimeError(f"{type(self).__name__} called update() without adapt() in its __init__")
        with self._masters.stepping(gradients), scaled(self._optimizer, rate):
            self._optimizer.step()

    def _adapted_names(self) -> list[str]:
        """The names of the adapted parameters in the model, in their order."""
        if self._names is None or self._names[0] != REGISTRATIONS.count:
            self._names = REGISTRATIONS.count, names_of(self.model, self._adapted) if self._adapted else []
        return self._names[1]

    def _initial_state(self) -> dict[str, Tensor]:
        if self._initial is None:
            with torch.inference_mode(False):
                self._initial = {k: v.detach().clone() for k, v in self._moving(learned=False).items()}
        return self._initial

    def _undo(self, before: Before) -> None:
        advance(self, accept=False)
        before.undo()

    def _parts(self, *, learned: bool) -> dict[str, Stateful]:
        parts = named_modules_of(self, Stateful)
        return {f"{name}." if name else "": m for name, m in parts if learned or not m.learned}

    def _moving(self, *, learned: bool) -> dict[str, Tensor]:
        return {p + k: v for p, m in self._parts(learned=learned).items() for k, v in m.moving().items()}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        with torch.inference_mode(False):
            for prefix, module in self._parts(learned=True).items():
                names = [name for name in module.moving() if prefix + name in state]
                if names:
                    module.restore_all({name: state[prefix + name] for name in names})

    def _checked(self, state: Mapping[str, Any]) -> dict[str, Tensor]:
        """A saved state that fits, converted to the types and devices of this adapter.

        Raises:
            TypeError: it is no mapping.
            ValueError: names, kinds, shapes or values do not fit.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"expected a state as state_dict() returns it, got {type(state).__name__}")
        live = self._moving(learned=True)
        state = {**state, **self._presents(state)}
        missing, foreign = sorted(live.keys() - state.keys()), sorted(map(str, state.keys() - live.keys()))
        if missing or foreign:
            raise ValueError(
                f"this state does not belong to this {type(self).__name__}: {len(missing)} entries are missing "
                f"(first {missing[:3]}), {len(foreign)} are unknown (first {foreign[:3]}); build the adapter with the "
                "same model and arguments as the one that was saved"
            )
        grows = {
            prefix + name
            for prefix, m in self._parts(learned=True).items()
            if not isinstance(m, NormPolicy)
            for name in m.moving()
            if (name in m._buffers or m.replaced) and m.grows(name)
        }
        return {name: _fitting(name, state[name], now, name in grows) for name, now in live.items()}

    def _presents(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of a saved state whose form has changed since, in the present form."""
        changed = {
            p: m for p, m in self._parts(learned=True).items() if type(m).present is not Stateful.present
        }
        found = {}
        for prefix, module in changed.items():
            own = {name: state[prefix + name] for name in module.moving() if prefix + name in state}
            if (own or module.added) and all(
                isinstance(v, Tensor) and v.layout == torch.strided and not v.is_meta for v in own.values()
            ):
                with suppress(KeyError):  # an entry is missing that every version has: it is reported
                    found.update({prefix + name: v for name, v in module.present(own).items()})
        return found

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        _refuse_loss_of_values(fn)
        super()._apply(fn, recurse)
        self._masters.follow(fn, self._optimizer)
        self._journal, self._places = Journal(), None
        for state in self._optimizer.state.values() if self._optimizer else ():
            state.update({k: at_least_float32(v, fn) for k, v in state.items()})
        if self._initial is not None:
            live = self._moving(learned=False)
            initial = {k: v.to(live[k].device, live[k].dtype) for k, v in self._initial.items() if k in live}
            for k in live.keys() - initial.keys():  # the float32 copies of what became half precision
                initial[k] = initial[k.replace("master.", "model.", 1)].float()
            self._initial = initial
        return self


def _fitting(name: str, value: Any, live: Tensor, grows: bool) -> Tensor:
    """An entry of a saved state in the type and on the device of the adapter's own.

    Raises:
        ValueError: it is no tensor, of another kind or shape, or holds NaN or infinity.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} in the saved state is a {type(value).__name__}, expected a tensor")
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise ValueError(
            f"{name} in the saved state is a {value.layout} tensor on {value.device}, expected dense values"
        )
    # A buffer that grows may get its shape and type from the first batch.
    unknown = grows and not (live.numel() and value.numel())
    kinds = [(v.is_floating_point(), v.dtype == torch.bool) for v in (value, live)]
    if not unknown and kinds[0] != kinds[1]:
        raise ValueError(f"{name} is {live.dtype}, the saved state's {value.dtype}")
    if not (unknown or value.shape == live.shape or (grows and 0 < value.dim() == live.dim())):
        raise ValueError(f"{name} has shape {tuple(live.shape)}, the saved state's {tuple(value.shape)}")
    fits = value.to(live.device) if unknown else value.to(live.device, live.dtype)
    if fits.is_floating_point() and bool(fits.isnan().any() if grows else ~fits.isfinite().all()):
        raise ValueError(
            f"{name} in the saved state holds NaN or infinity; it is damaged, or was saved after a failure"
        )
    if name.rpartition(".")[2] in NEVER_NEGATIVE and bool((fits < 0).any()):
        raise ValueError(f"{name} in the saved state is negative, which it can never be; it is damaged")
    return fits
