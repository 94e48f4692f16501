"""`python -m training.bundle RUN --out DIR`: a run's model in half precision, with a card that holds its scores."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mm_rwkv7 import checkpoint
from mm_rwkv7.command import Parser, run_command
from mm_rwkv7.pipeline import Pipeline
from training.config import RECIPES, RunConfig, load_recipe
from training.models import picture_side
from training.run import data_of
from training.score import score, table

CARD = RECIPES / "nano.md"


def bundle(run: Path, data: str, out: Path, limit: int) -> None:
    """Write `run`'s model to `out` in fp16, score it as it stands there, and put the scores into its card."""
    config: RunConfig = load_recipe(str(run / "config.yaml"), [f"data={data}"])
    checkpoint.save(checkpoint.load(run / "model"), out, "", torch.float16)
    pipeline = Pipeline.from_pretrained(out)
    sources = data_of(config)
    scores = score(pipeline, sources, limit)
    (out / "README.md").write_text(_card(config, pipeline, table(scores), len(sources["emoji"].labels)), "utf-8")
    print(table(scores))


def _card(config: RunConfig, pipeline: Pipeline, scores: str, emoji: int) -> str:
    from mm_rwkv7.synthetic.scenes import WORDS

    millions = {
        name: sum(parameter.numel() for parameter in part.parameters()) / 1e6
        for name, part in pipeline.model.named_children()
    }
    shares = [
        f"{stage.name} {stage.steps} x {stage.batch} pictures ({json.dumps(stage.data)})" for stage in config.stages
    ]
    return CARD.read_text(encoding="utf-8").format(
        parameters=sum(millions.values()),
        **millions,
        side=picture_side(config),
        tokens=pipeline.model.image_tokens,
        words=len(WORDS),
        emoji=emoji,
        scores=scores,
        steps=sum(stage.steps for stage in config.stages),
        stages="; ".join(shares),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m training.bundle", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run of the recipe nano")
    parser.add_argument("--data", default="../shared/data", help="folder of the parquet tables")
    parser.add_argument("--out", default="mm_rwkv7/nano", type=Path, help="where the checkpoint goes")
    parser.add_argument("--limit", default=1000, type=int, help="pictures of each source to score at most")
    return run_command(parser, arguments, lambda o: bundle(o.run, o.data, o.out, o.limit))


if __name__ == "__main__":
    sys.exit(main())
