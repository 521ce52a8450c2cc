"""One torch thread in every test: the machine may be small, and the numbers are the same."""

import torch

torch.set_num_threads(1)
