"""The little of lm-eval 0.4.13 and lmms-eval 0.7.3 that the adapters stand on, for where they are not installed."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest


class CacheHook:
    def __init__(self) -> None:
        self.kept: list[tuple[str, Any, Any]] = []

    def add_partial(self, kind: str, request: Any, result: Any) -> None:
        self.kept.append((kind, request, result))


class TemplateLM:
    """What it does with a context and its continuation: one text is cut into tokens, then split."""

    def __init__(self) -> None:
        self.cache_hook = CacheHook()

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        found = []
        for request in requests:
            context, continuation = request.args
            before = self.tok_encode(context)
            found.append((request.args, before, self.tok_encode(context + continuation)[len(before) :]))
        return self._loglikelihood_tokens(found, disable_tqdm=True)


class LMMS:
    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@dataclass(frozen=True)
class GenerationResult:
    text: Any
    token_counts: Any = None


@dataclass(frozen=True)
class Instance:
    args: tuple[Any, ...]


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Put them where the adapters import from, and forget adapters that were imported with something else."""
    modules: dict[str, dict[str, Any]] = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"TemplateLM": TemplateLM},
        "lm_eval.api.registry": {"register_model": lambda name: lambda kind: kind},
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": LMMS},
        "lmms_eval.api.instance": {"GenerationResult": GenerationResult},
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        patch.setitem(sys.modules, name, module)
    for adapter in ("lm_eval", "lmms_eval"):
        patch.delitem(sys.modules, f"eval.adapters.{adapter}", raising=False)
