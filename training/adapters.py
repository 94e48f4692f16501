"""LoRA: low-rank adapters on the language model's linear maps, by PEFT, and its vectors trained in full.

A stage leaves `adapter/`: PEFT's own `adapter_config.json` and `adapter_model.safetensors`, which
`PeftModel.from_pretrained` puts onto the `lm` of the model that the stage began with, and `vectors.safetensors`, which
PEFT has no place for. The run's model has both merged into it.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.whole import replacing
from training.packed import PackedStage
from training.settings import StageConfig

ADAPTER = "default"
PREFIX = "base_model.model."  # of every name in PEFT's files


class LoRAStage(PackedStage):
    def __init__(self, model: MMRWKV7, config: StageConfig) -> None:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel

        super().__init__(model, config)
        assert config.lora is not None
        chosen = config.lora
        maps = [name for name, module in model.lm.blocks.named_modules() if isinstance(module, nn.Linear)]
        if unknown := set(chosen.maps) - {name.rpartition(".")[2] for name in maps}:
            raise ValueError(
                f"stage {config.name!r} adapts {sorted(unknown)}, expected some of receptance, key, value, output"
            )
        self.settings = LoraConfig(
            r=chosen.rank,
            lora_alpha=chosen.alpha,  # type: ignore[arg-type]
            lora_dropout=chosen.dropout,
            target_modules=list(chosen.maps),
        )
        training = {id(p) for p in model.parameters() if p.requires_grad}
        in_lm = {id(p) for p in model.lm.parameters()}
        # PEFT exchanges the linear maps inside the language model; the wrapper is for merging only.
        self.__dict__["tuner"] = LoraModel(model.lm, {ADAPTER: self.settings}, ADAPTER)
        for parameter in model.parameters():
            if id(parameter) not in in_lm and id(parameter) in training:
                parameter.requires_grad_(True)
        for parameter in vectors(model.lm).values():
            parameter.requires_grad_(True)
        self.left: dict[str, dict[str, Tensor]] = {}

    def finish(self) -> None:
        """Take note of the adapter, then merge it."""
        lm = self.model.lm
        lora = {n: p for n, p in lm.named_parameters() if ".lora_" in n}
        named = {PREFIX + name.replace(f".{ADAPTER}.", "."): tensor for name, tensor in lora.items()}
        self.left = {"adapter_model": _copied(named), "vectors": _copied(vectors(lm))}
        self.__dict__["tuner"].merge_and_unload()

    def export(self, folder: Path) -> None:
        from safetensors.torch import save_file

        with replacing(folder / "adapter") as draft:
            self.settings.save_pretrained(str(draft))
            for name, tensors in self.left.items():
                save_file(tensors, draft / f"{name}.safetensors", {"format": "pt"})


def vectors(lm: RWKV7) -> dict[str, nn.Parameter]:
    """What is small and no matrix product: mixes, offsets, norms, the bonus."""
    return {n: p for n, p in lm.named_parameters() if p.ndim == 1 or n.endswith(".r_k")}


def _copied(tensors: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
