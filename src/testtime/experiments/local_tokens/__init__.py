"""The family "local tokens": anomalies, walks and prompted masks by image-text pairs, with controls and ceilings."""
