"""i3d-train in double precision, where sums in another order differ by nothing that grows (see `tests.golden`)."""

import torch

from train.cli import train_command

if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    train_command()
