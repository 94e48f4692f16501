"""A language model as a folder under the names of flash-linear-attention, which llama.cpp's converter reads.

Letters: D width, R rank.
"""

import json
from importlib.resources import files
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from mm_rwkv7.interop.fla import LOW_RANK, VECTOR, spell
from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config

VOCABULARY = "rwkv_vocab_v20230424.txt"


def write_fla(model: RWKV7, folder: Path) -> None:
    """Config, weights as they are, and the World vocabulary, cut to the model's rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(model.config), indent=2), "utf-8")
    lines = (files("pyrwkv_tokenizer") / VOCABULARY).read_text("utf-8").splitlines(keepends=True)
    (folder / VOCABULARY).write_text("".join(lines[: model.config.vocab_size - 1]), "utf-8")
    tensors = {spell(name): _laid_out(name, tensor) for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _laid_out(name: str, tensor: Tensor) -> Tensor:
    if LOW_RANK.search(name):
        tensor = tensor.t()  # (D, R) here, (R, D) there
    elif VECTOR.search(name):
        tensor = tensor[None, None]
    return tensor.contiguous()


def _config(config: RWKV7Config) -> dict[str, object]:
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "head_dim": config.head_size,
        "intermediate_size": config.hidden,
        "norm_eps": 1e-5,
        "hidden_act": "sqrelu",
        "decay_low_rank_dim": config.decay_rank,
        "a_low_rank_dim": config.iclr_rank,
        "v_low_rank_dim": config.value_rank,
        "gate_low_rank_dim": config.gate_rank,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
    }
