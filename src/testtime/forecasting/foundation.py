"""Fracast: a zero-shot forecaster from the package ``fracast``, as a source; it is imported when it is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from testtime.errors import DataError

__all__ = ["Fracast"]

ROWS = 32  # series that are forecast at once, which bounds the memory
KEPT = 256  # encodings of padding that are remembered, 0.7 MB each


@final
class Fracast(nn.Module):
    """The median of Fracast-0 (85,001 parameters, Apache-2.0) for each series by itself.

    The network forecasts 48 steps; more are forecast from its own median, as its package does. Every window is scaled to
    [0, 1] by its least and greatest value. It needs ``pip install fracast``; its weights are in the package.

    Args:
        horizon: H, number of steps.

    Raises:
        ImportError: the package is not installed.

    Cost: the network reads 2,048 steps, and a shorter window is padded at its beginning. What the encoder makes of the
    padding depends on the periods that it finds in a window and on nothing else of it, so that it is computed once for each
    set of periods and remembered (as long as the weights stay): a forecast from 96 observations takes 6 ms for each series
    on one core, and 60 ms where the periods are new. With a version of the package whose encoder has other parts, the whole
    window is encoded every time.

    Reference: github.com/ztxtech/fracast-0.
    """

    def __init__(self, horizon: int) -> None:
        super().__init__()
        try:
            from fracast import FracastModel
        except ImportError as error:
            raise ImportError(
                "the source fracast needs its package: pip install fracast (Apache-2.0, 0.4 MB with weights)"
            ) from error
        found: Any = FracastModel.from_pretrained(weights="fp32")
        self.core, self.head = found.core, found.head
        self.context, self.block, self.horizon = found.context_length, found.horizon, horizon
        self.median = min(range(len(found.quantiles)), key=lambda i: abs(found.quantiles[i] - 0.5))
        self._weights, self._kept = torch.empty(0), dict[tuple[int, ...], list[Tensor]]()
        self._apart = self._agrees()

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Whether padding that is encoded apart gives the states of the package's encoder: not in every version of it."""
        weight = next(self.core.parameters())
        steps = torch.arange(self.context, device=weight.device)[None]
        valid = steps >= self.context - 96
        values = ((0.5 + 0.5 * (steps * 0.5236).sin()) * valid).to(weight.dtype)
        expected = self.core(values[:, None], valid[:, None], valid[:, None].to(values.dtype))
        try:
            return torch.allclose(self._encode_apart(values, valid, 96), expected, rtol=0, atol=1e-4)
        except (ImportError, AttributeError, TypeError, ValueError, RuntimeError):
            return False
        finally:
            self._weights, self._kept = torch.empty(0), {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is remembered out of copies and files."""
        return {**self.__dict__, "_kept": {}}

    def forward(self, x: Tensor) -> Tensor:
        """Return the forecast (N, H, D) of windows (N, L, D), L from 8."""
        n, length, channels = x.shape
        if length < 8:
            raise DataError(f"fracast needs 8 observations or more, got {length}")
        rows = x.transpose(1, 2).reshape(n * channels, length)
        done: list[Tensor] = []
        while sum(part.shape[1] for part in done) < self.horizon:
            done.append(torch.cat([self._median(part) for part in rows.split(ROWS)]))
            rows = torch.cat([rows, done[-1]], dim=1)
        forecast = torch.cat(done, dim=1)[:, : self.horizon]
        return forecast.reshape(n, channels, self.horizon).transpose(1, 2)

    def _median(self, rows: Tensor) -> Tensor:
        """The median (R, 48) of the next block of rows (R, T)."""
        tail = rows[:, -self.context :]
        low, high = tail.amin(1, keepdim=True), tail.amax(1, keepdim=True)
        span = (high - low).clamp_min(1e-5)
        values = rows.new_zeros(len(rows), 1, self.context)
        valid = torch.zeros(len(rows), 1, self.context, dtype=torch.bool, device=rows.device)
        values[:, 0, self.context - tail.shape[1] :] = (tail - low) / span
        valid[:, :, self.context - tail.shape[1] :] = True
        hidden = self._encode(values[:, 0], valid[:, 0], tail.shape[1])
        quantiles = self.head.forward_horizon(
            hidden, last_obs=values[:, 0, -1:], ctx=values[:, 0], ctx_mask=valid[:, 0]
        )
        return quantiles[..., self.median] * span + low

    def _encode(self, values: Tensor, valid: Tensor, length: int) -> Tensor:
        """The encoder's states (R, 2048, 64) of values (R, 2048), of which the last ``length`` are valid."""
        learned = torch.is_grad_enabled() and any(p.requires_grad for p in self.core.parameters())
        apart = self._apart and not learned and not torch.compiler.is_compiling()
        if apart and self.context - length >= 2 * max(self.core.dilations()):
            return self._encode_apart(values, valid, length)
        return self.core(values[:, None], valid[:, None], valid[:, None].to(values.dtype))

    def _encode_apart(self, values: Tensor, valid: Tensor, length: int) -> Tensor:
        """The same with the padding from :meth:`_padding`, by private parts of the package."""
        periods = self._periods(values, valid)
        padding = self._padding(periods, length)
        x = self._embed(values[:, -length:], periods, self.context - length)
        for stage, dilation in enumerate(self.core.dilations()):
            x = self.core.scale(x, dilation)
            before = [kept[stage] for kept in padding]
            x = self.core.block(_joined(before, x), min(dilation, length))[:, -length:]
        return _joined([kept[-1] for kept in padding], self.core.norm(x))

    def _padding(self, periods: Tensor, length: int) -> list[list[Tensor]]:
        """For each row of periods (R, K): the steps before the window that each stage reads, and the states of the padding."""
        weights = parameters_to_vector(p.detach() for p in self.core.parameters())
        alike = (self._weights.device, self._weights.dtype) == (weights.device, weights.dtype)
        if not (alike and self._weights.equal(weights)):
            self._weights, self._kept = weights, {}
        found: list[list[Tensor]] = []
        for row in periods:
            name = (length, *row.tolist())
            kept = self._kept.pop(name, None)
            self._kept[name] = self._encode_padding(row[None], length) if kept is None else kept
            found.append(self._kept[name])
        for name in list(self._kept)[:-KEPT]:  # the latest are at the end
            del self._kept[name]
        return found

    @torch.inference_mode(False)
    @torch.no_grad()
    def _encode_padding(self, periods: Tensor, length: int) -> list[Tensor]:
        """What :meth:`_padding` remembers for periods (1, K): alone, so that no bit of it depends on other windows."""
        start = self.context - length
        x, found = self._embed(self._weights.new_zeros(1, start), periods.clone(), 0), list[Tensor]()
        for dilation in self.core.dilations():
            x = self.core.scale(x, dilation)
            begins = (start - 2 * dilation, start - dilation)
            found.append(torch.cat([x[0, begin : begin + min(dilation, length)] for begin in begins]))
            x = self.core.block(x, dilation)
        return [*found, self.core.norm(x)[0]]

    def _embed(self, values: Tensor, periods: Tensor, first: int) -> Tensor:
        """What the encoder reads (R, T, 64) at T steps from the step ``first``, 0 for those of the padding."""
        from fracast._core.periodic.official_encoding import _phase_encoding, _recency_encoding

        steps = torch.arange(first, first + values.shape[1], device=values.device).expand(len(values), -1)
        observed = torch.full_like(values, first > 0)
        features = [values[..., None], observed[..., None], _recency_encoding(steps, self.context)]
        phase = _phase_encoding(steps, periods, self.core.periodic.n_harm)
        x = self.core.in_proj(torch.cat(features, dim=-1).to(values.dtype))
        return x + self.core.periodic.proj(phase.to(values.dtype))

    def _periods(self, values: Tensor, valid: Tensor) -> Tensor:
        """The periods (R, K) of values (R, T) that the encoder finds; 0 where there are fewer."""
        from fracast._core.periodic.seasonal_fill import detect_periods

        own = self.core.periodic
        with torch.no_grad():
            return detect_periods(values, valid, top_k=own.top_k, min_period=own.min_period, alpha=own.alpha)


def _joined(before: Sequence[Tensor], after: Tensor) -> Tensor:
    """Join sequences (T, D) and what follows each of them (R, S, D) to (R, T + S, D)."""
    pieces = [piece for pair in zip(before, after, strict=True) for piece in pair]
    return torch.cat(pieces).view(len(after), -1, after.shape[-1])
