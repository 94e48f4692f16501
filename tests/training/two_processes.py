"""What torchrun starts in `test_distributed`: every recipe that is named, one after another."""

import sys

import torch

from training.config import load_recipe
from training.run import train

if __name__ == "__main__":
    for recipe in sys.argv[1:]:
        train(load_recipe(recipe), torch.device("cpu"))
