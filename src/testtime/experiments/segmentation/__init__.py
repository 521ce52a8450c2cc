"""The family "segmentation": adapters on logits of each pixel, on road scenes at dusk and on rendered rooms."""
