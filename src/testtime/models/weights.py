"""Weights from safetensors and npz files into a model, with errors that say what differs; never a pickle."""

from collections.abc import Container, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from testtime.data.bounded import read_arrays
from testtime.errors import DataError, WeightsError
from testtime.models.preprocessed import Preprocessed

PICKLED = {".pt", ".pth", ".th", ".tar", ".ckpt", ".bin", ".pkl", ".t7"}
PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
_BESIDE = "optimizer optimizers lr_scheduler scheduler scaler ema model_ema ema_model epoch step iteration"
BESIDE = frozenset(_BESIDE.split())
"""First parts of the names of what lies beside weights."""
SHOWN = 5


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or .npz file by name.

    Args:
        path: the file.

    Raises:
        WeightsError: if the file is missing, damaged, or of a kind that would need a pickle to be executed.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if path.is_dir():
        raise WeightsError(f"{path}: a folder; give the path of a .safetensors or .npz file of weights in it")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give the path of a .safetensors or .npz file of weights")
    if kind in PICKLED:
        raise WeightsError(
            f"{path}: testtime reads no pickled checkpoint, because reading one can run code; convert it once"
            f" with: python -m testtime.models.convert {path} {path.with_suffix('.safetensors')}"
        )
    try:
        if kind == ".safetensors":
            return load_file(path)
        if kind == ".npz":
            return {name: torch.from_numpy(array) for name, array in read_arrays(path).items()}
    except DataError as error:
        raise WeightsError(str(error)) from error
    except (SafetensorError, ValueError, TypeError, OSError, EOFError) as error:
        raise WeightsError(f"{path}: damaged or not a {kind} file ({error}); fetch it again") from error
    raise WeightsError(f"{path}: unknown kind {kind!r}; expected .safetensors or .npz")


def strip_prefixes(state: Mapping[str, Tensor], own: Container[str]) -> dict[str, Tensor]:
    """Return the state under the names of a model.

    Wrappers put prefixes before names, in any order: ``module.`` (data parallel), ``model.`` and ``net.`` (own
    wrappers) and ``_orig_mod.`` (``torch.compile``, which may stand within a name too). What training keeps
    beside the weights, such as an optimizer's tensors or a moving average (EMA), is left out.

    Args:
        state: tensors by name.
        own: names of the model's tensors.

    Raises:
        WeightsError: if two tensors get one name.

    >>> state = {"module.model.fc.bias": torch.zeros(1), "optimizer.step": torch.ones(1)}
    >>> list(strip_prefixes(state, {"fc.bias"}))
    ['fc.bias']
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        short = _stripped(name, own)
        if short not in own and name.split(".")[0] in BESIDE:
            continue
        if short in found:
            raise WeightsError(
                f"two tensors of the file are {short!r} without their prefixes, one of them {name!r}; keep one of them"
            )
        found[short] = value
    return found


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Copy the weights of a file into the model and return the model, in eval mode.

    Args:
        model: a network, or one in `Preprocessed`, whose inner network then receives the weights.
        path: a .safetensors or .npz file. Prefixes of wrappers are removed (:func:`strip_prefixes`); buffers
            ``mu`` and ``sigma`` (RobustBench) become the normalisation of a `Preprocessed` model; the
            counters ``num_batches_tracked`` may be absent. Weights of half precision become the model's type.

    Raises:
        WeightsError: if the file cannot be read, a key is missing or unexpected, a shape differs, a weight is not
            a finite number, or the file holds a normalisation and the model has none.
    """
    state = read_weights(path)
    inner = model.model if isinstance(model, Preprocessed) else model
    own = inner.state_dict()
    mean, std = (_take(state, name) for name in ("mu", "sigma"))
    try:
        state = strip_prefixes(state, own)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    _check(path, state, inner)
    _check_numbers(path, state, own)
    if mean is not None and std is not None:
        _adopt(path, model, mean, std)
    with torch.no_grad():
        for key, value in state.items():
            own[key].copy_(value.reshape(own[key].shape))
    return model.eval()


def _stripped(name: str, own: Container[str]) -> str:
    """The name without prefixes of wrappers, unless the model has it with them."""
    name = name.replace("._orig_mod.", ".")
    while name not in own:
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            break
        name = name.removeprefix(prefix)
    return name


def _take(state: dict[str, Tensor], name: str) -> Tensor | None:
    """Remove and return the buffer of this name, whatever its prefix."""
    key = next((key for key in state if key.split(".")[-1] == name), None)
    return None if key is None else state.pop(key)


def _adopt(path: str | Path, model: nn.Module, mean: Tensor, std: Tensor) -> None:
    """Make the file's normalisation the model's."""
    if not mean.isfinite().all() or not std.isfinite().all() or not (std > 0).all():
        raise WeightsError(
            f"{path}: expected a normalisation of finite numbers and deviations above 0, found mu "
            f"{mean.flatten().tolist()} and sigma {std.flatten().tolist()}"
        )
    if isinstance(model, Preprocessed) and mean.numel() == model.mean.numel() == std.numel():
        model.mean.copy_(mean.view_as(model.mean))
        model.std.copy_(std.view_as(model.std))
        return
    raise WeightsError(
        f"{path}: holds a normalisation (mu {mean.flatten().tolist()}, sigma {std.flatten().tolist()})"
        " that the model has no place for; wrap it first: normalised(model, mean, std)"
    )


def _check(path: str | Path, state: Mapping[str, Tensor], inner: nn.Module) -> None:
    """Compare keys and shapes, and report the first differences."""
    own = inner.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    differ = [key for key, value in state.items() if key in own and _differ(value, own[key])]
    shapes = [f"{key} {tuple(state[key].shape)}, expected {tuple(own[key].shape)}" for key in differ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    lines = [f"{len(keys)} {what}: {_first(keys)}" for what, keys in found.items() if keys]
    if lines:
        classifier = classifier_name(inner)
        advice = "Choose the architecture, depth, width and number of classes that the file was trained with"
        if (
            classifier
            and not missing
            and not unexpected
            and {key.rpartition(".")[0] for key in differ} == {classifier}
        ):
            there, here = (len(weights[differ[0]]) for weights in (state, own))
            advice = f"The file's classifier {classifier} has {there} classes, the model's {here}: build it for {there}"
        raise WeightsError(f"{path}: does not fit {type(inner).__name__}; {'; '.join(lines)}. {advice}")


def classifier_name(model: nn.Module) -> str:
    """The name of the last linear layer."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else ""


def _check_numbers(path: str | Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not finite, or whole numbers where the model has real ones."""
    whole = [
        key for key, value in state.items() if own[key].is_floating_point() and not value.is_floating_point()
    ]
    if whole:
        kinds = ", ".join(sorted({str(state[key].dtype) for key in whole}))
        raise WeightsError(
            f"{path}: expected floats, found {kinds} in {_first(whole)}; quantised weights are not read"
        )
    wrong = [
        key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if wrong:
        raise WeightsError(
            f"{path}: expected finite numbers, found NaN or infinity in {len(wrong)} tensors: {_first(wrong)}; the "
            "training that wrote them has diverged, or the file is damaged: take an earlier checkpoint"
        )


def _differ(value: Tensor, own: Tensor) -> bool:
    """Whether shapes differ; a scalar may come as an array of one."""
    return value.shape != own.shape and not value.numel() == own.numel() == 1


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
