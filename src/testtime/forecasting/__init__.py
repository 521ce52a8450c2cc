"""Forecasting: series that reveal their own past, sources, and adapters that learn from what has arrived.

A window is the last ``length + horizon`` observations (N, L + H, D). A :class:`Forecaster` forecasts the next ``horizon``
steps from the last ``length`` of it. An adapter learns on ``x[:, :L]`` -> ``x[:, L:]``, whose truth has arrived, and then
forecasts: there is no queue, no label in ``step``, and the future is not in its arguments. The windows of a batch are in
the order of time and are taken one after the other, so that no forecast depends on a later window of its batch; the law
``no_future`` of :mod:`testtime.laws` tries it.

- series and files: :func:`read_csv`, :func:`read_ett`, :func:`read_buses`, :func:`read_libcity`, :class:`Series`
- sources: :class:`SeasonalNaive`, :class:`NLinear` (:func:`fit_nlinear`), :class:`GRUNetwork`, :class:`GraphNetwork`,
  :class:`Fracast`, or any module (N, L, D) -> (N, H, D)
- adapters: :class:`testtime.methods.ADCSD`, :class:`OutputBias`, :class:`ScaleShift`, :class:`GatedCalibration`,
  :class:`NormTuning`; :class:`testtime.methods.BNAdapt` where the source has BatchNorm layers
- evaluation: :func:`forecast_online`, :func:`errors_of`
"""

from typing import TYPE_CHECKING

from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.forecasting.calibration import GatedCalibration
    from testtime.forecasting.corrected import Corrected, forecaster_of, in_turn, revealed_loss
    from testtime.forecasting.forecaster import Forecast, Forecaster
    from testtime.forecasting.foundation import Fracast
    from testtime.forecasting.graph import GraphNetwork, normalised_graph
    from testtime.forecasting.layouts import read_buses, read_ett, read_libcity
    from testtime.forecasting.linear import NLinear, SeasonalNaive, fit_nlinear
    from testtime.forecasting.norm_tuning import NormTuning
    from testtime.forecasting.online import errors_of, forecast_online, origins
    from testtime.forecasting.output import OutputBias, ScaleShift
    from testtime.forecasting.recurrent import GRUNetwork
    from testtime.forecasting.series import Series, read_csv, windows_of

__all__ = ["Corrected", "Forecast", "Forecaster", "Fracast", "GRUNetwork", "GatedCalibration", "GraphNetwork"]
__all__ += ["NLinear", "NormTuning", "OutputBias", "ScaleShift", "SeasonalNaive", "Series", "errors_of"]
__all__ += ["fit_nlinear", "forecast_online", "forecaster_of", "in_turn", "normalised_graph", "origins"]
__all__ += ["read_buses", "read_csv", "read_ett", "read_libcity", "revealed_loss", "windows_of"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "calibration": "GatedCalibration",
        "corrected": "Corrected forecaster_of in_turn revealed_loss",
        "forecaster": "Forecast Forecaster",
        "foundation": "Fracast",
        "graph": "GraphNetwork normalised_graph",
        "layouts": "read_buses read_ett read_libcity",
        "linear": "NLinear SeasonalNaive fit_nlinear",
        "norm_tuning": "NormTuning",
        "online": "errors_of forecast_online origins",
        "output": "OutputBias ScaleShift",
        "recurrent": "GRUNetwork",
        "series": "Series read_csv windows_of",
    },
)
