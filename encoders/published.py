"""Weights that are published on the Hugging Face hub, strictly."""

from typing import Any

import torch


def fetch(model_class: Any, name: str, config: Any = None) -> Any:
    """A model of transformers with the weights of the repository `name`, of the sizes of `config` or, without one, of
    those published there. Raises ValueError for missing or misshapen ones, of which transformers would only warn."""
    sizes = {} if config is None else {"config": config}
    body, found = model_class.from_pretrained(
        name, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True, **sizes
    )
    problems = [f"missing {key}" for key in sorted(found["missing_keys"])]
    problems += [
        f"{key} has shape {tuple(has)}, expected {tuple(wants)}" for key, has, wants in sorted(found["mismatched_keys"])
    ]
    if problems:
        raise ValueError(f"{name} does not fit the encoder's config: " + "; ".join(problems))
    return body
