"""What torchrun starts in `test_distributed`: every recipe that is named, one after another."""

import sys

import torch

from training.config import load_recipe
from training.distributed import joined
from training.run import train_in

if __name__ == "__main__":
    with joined(torch.device("cpu")) as world:
        for recipe in sys.argv[1:]:
            train_in(world, load_recipe(recipe))
