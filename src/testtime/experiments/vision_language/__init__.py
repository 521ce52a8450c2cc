"""The family "vision-language": zero-shot classifiers under shifts, with the cheap controls of prompt tuning beside it."""
