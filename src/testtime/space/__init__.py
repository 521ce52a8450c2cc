"""Test-space training: a model pre-trained, without labels and on many modalities, in the very place it will work in."""
