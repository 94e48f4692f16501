"""LoRA adapters by peft: nothing in the core may go round a module that an adapter wraps."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from mm_rwkv7.hf import MMRWKV7ForConditionalGeneration, RecurrentCache

Inputs = Callable[..., dict[str, Tensor]]
QUESTION = ("What is in the picture?", [0])
RANK = 4


@pytest.fixture
def adapted(hf_model: MMRWKV7ForConditionalGeneration) -> Any:
    """`tiny_model` with a LoRA on every linear layer of its language model; their B start at zero."""
    model = copy.deepcopy(hf_model)
    names = [name for name, module in model.named_modules() if ".lm." in name and isinstance(module, nn.Linear)]
    assert len(names) == 2 * 6 + 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))


def pairs(model: Any) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Each adapter's A and B."""
    return {
        name: (module.lora_A["default"].weight, module.lora_B["default"].weight)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def disturb(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for _, b in pairs(model).values():
        b.data.copy_(torch.randn(b.shape, generator=generator))


def read(model: Any, batch: dict[str, Tensor], whole: bool) -> Tensor:
    """Logits (1, T, V), in one go or token by token after the picture."""
    if whole:
        return model(**batch).logits
    ids, cache = batch["input_ids"], RecurrentCache()
    start = int((ids == ids[0, 3]).nonzero()[-1, 1]) + 1
    logits = [model(input_ids=ids[:, :start], pixel_values=batch["pixel_values"], past_key_values=cache).logits]
    logits += [model(input_ids=step, past_key_values=cache).logits for step in ids[:, start:].split(1, dim=1)]
    return torch.cat(logits, 1)


@pytest.mark.parametrize("whole", [True, False])
def test_no_path_goes_round_an_adapter(adapted: Any, inputs: Inputs, whole: bool) -> None:
    batch = inputs(QUESTION)
    plain = read(adapted, batch, whole).detach()
    disturb(adapted)
    for name, (a, b) in pairs(adapted).items():
        kept = b.data.clone()
        b.data.zero_()
        without = read(adapted, batch, whole).detach()
        b.data.copy_(kept)
        adapted.zero_grad()
        logits = read(adapted, batch, whole)
        assert (logits.detach() - without).abs().max() > 0.01, name
        logits[:, -1].log_softmax(-1)[:, 40].sum().backward()
        assert a.grad.norm() > 0, name
        assert b.grad.norm() > 0, name
    with adapted.disable_adapter():
        torch.testing.assert_close(read(adapted, batch, whole), plain)


def test_train_save_load_and_merge(
    adapted: Any, hf_model: MMRWKV7ForConditionalGeneration, inputs: Inputs, tmp_path: Path
) -> None:
    batch = inputs(QUESTION)
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == batch["input_ids"][0, 3], -100)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = adapted(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    adapted.eval().save_pretrained(tmp_path)
    logits = adapted(**batch).logits
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(hf_model), tmp_path)
    torch.testing.assert_close(loaded(**batch).logits, logits.detach())
    written = loaded.generate(**batch, do_sample=False)
    merged = loaded.merge_and_unload()
    assert type(merged) is MMRWKV7ForConditionalGeneration
    torch.testing.assert_close(merged(**batch).logits, logits, rtol=1e-5, atol=1e-3)
    assert torch.equal(merged.generate(**batch, do_sample=False), written)
    assert merged.state_dict().keys() == hf_model.state_dict().keys()


def test_a_checkpoint_has_no_adapters(adapted: Any, tmp_path: Path) -> None:
    model = adapted.base_model.model
    with pytest.raises(ValueError, match="merge the adapters first"):
        model.to_native(tmp_path / "native", "# adapted\n")
    with pytest.raises(ValueError, match=r"are not those of the config, such as .*: merge the adapters first"):
        model.save_pretrained(tmp_path / "hf")
    assert not any(tmp_path.iterdir())
