"""`python -m training RECIPE [--data DIR] [--set key=value ...] [--dry-run]`"""

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train a model by a recipe.")
    parser.add_argument("recipe", help="a name in training/recipes/, or a YAML file")
    parser.add_argument("--data", help="folder of the parquet tables (see docs/training.md)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    options = parser.parse_args(arguments)

    from training.config import describe, load_recipe

    changes = [*options.set, *([f"data={options.data}"] if options.data else [])]
    try:
        run = load_recipe(options.recipe, changes)
        if options.dry_run:
            print(describe(run))
            return 0
        from mm_rwkv7.weights import choose_device
        from training.run import train

        print(train(run, choose_device(options.device)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
