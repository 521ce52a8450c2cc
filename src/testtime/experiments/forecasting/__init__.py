"""The family "forecasting": sources and adapters that follow series online, with the leaking variant beside them."""
