"""Test-space training: self-supervised multimodal pre-training on the space in which a model is deployed."""
