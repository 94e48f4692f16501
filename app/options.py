"""Options that several commands of `mm-rwkv7` share, named once."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class DType(StrEnum):
    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


Model = Annotated[
    str,
    typer.Option(help="nano (bundled), hf:OWNER/REPOSITORY[/FILE], or a checkpoint's folder or file.", metavar="MODEL"),
]
ModelNames = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="As for `ask`, nano if not given. Given several times, they can be chosen by name, and the first is the "
        "usual one.",
        metavar="MODEL",
    ),
]
ModelsOpen = Annotated[
    int | None,
    typer.Option(
        "--models-open", min=1, help="Models in memory at once, all if not given; for another, an idle one is closed."
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Another name that clients may call this server by; repeatable."),
]
OnDevice = Annotated[Device, typer.Option(help="Where to compute; auto takes a GPU if there is one.")]
InType = Annotated[
    DType,
    typer.Option(
        "--dtype",
        help="Precision of the weights; auto is bf16 on a GPU, else fp32. int8 rounds the language model's matrices. "
        "`inspect` tells what a file is stored in.",
    ),
]
Document = Annotated[Path | None, typer.Option(metavar="FILE", help="A text of any length, read before the question.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Bound of an answer; the model's own if not given.")]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest tokens of this mass.")]
TopK = Annotated[int, typer.Option(help="Sample from this many likeliest tokens; 0 is all.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]
