"""`mm-rwkv7 doctor`: what this machine offers, which path the model takes on it, and why."""

import platform
from dataclasses import dataclass, fields
from pathlib import Path

import mm_rwkv7


@dataclass(frozen=True)
class Diagnosis:
    """Versions, the device and path that `auto` chooses, and one line for every reason; None where torch fails."""

    python: str
    torch: str | None
    device: str | None
    wkv_path: str | None
    reasons: list[str]

    def table(self) -> str:
        """Each finding beside its name, for people."""
        lines = []
        for field in fields(self):
            value = getattr(self, field.name)
            findings = value if isinstance(value, list) else [value or "none"]
            names = [field.name, *[""] * (len(findings) - 1)]
            lines += [f"{name:10}{finding}" for name, finding in zip(names, findings, strict=True)]
        return "\n".join(lines)


def examine() -> Diagnosis:
    """Look, and change nothing. A torch that is missing or broken is a finding, not an error."""
    python = platform.python_version()
    model = _bundled_model()
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        return Diagnosis(python, None, None, None, [f"torch cannot be imported: {first}", model])

    from mm_rwkv7.ops import wkv_path, wkv_reason
    from mm_rwkv7.weights import choose_device

    device = choose_device("auto")
    path, against = wkv_path(device), wkv_reason(device)
    kernel = f"plain PyTorch: {against}" if against else "a kernel compiled for this machine"
    reasons = [_cuda(), _cpu(), f"WKV-7: {path}, {kernel}", _sound(), model]
    return Diagnosis(python, torch.__version__, str(device), path, reasons)


def _cuda() -> str:
    import torch

    from mm_rwkv7.ops import driver, nvrtc

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        capability = f"{properties.major}.{properties.minor}"
        against = driver.unavailable(0)
        kernels = f"no kernels: {against}" if against else "kernels compiled by NVRTC {}.{}".format(*nvrtc.version())
        return (
            f"CUDA device: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
            f"compute capability {capability}, torch built for CUDA {torch.version.cuda}; {kernels}"
        )
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return f"no CUDA device: torch.cuda.is_available() is False (torch is {built})"


def _cpu() -> str:
    import torch

    units = "with" if "amx_bf16" in _cpu_flags() else "without"
    level = torch.backends.cpu.get_cpu_capability()
    return f"CPU: {platform.machine()}, {level}, {units} bf16 matrix units (AMX), {torch.get_num_threads()} threads"


def _cpu_flags() -> set[str]:
    """What Linux says that the processor can do; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return set()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def _sound() -> str:
    """torchaudio fits only the torch that it was built for, and nothing keeps another from being installed."""
    try:
        import soundfile
        import torchaudio
    except (ImportError, OSError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        return f"no sound: soundfile or torchaudio cannot be imported: {first}"
    return f"sound: torchaudio {torchaudio.__version__}, libsndfile {soundfile.__libsndfile_version__}"


def _bundled_model() -> str:
    folder = Path(mm_rwkv7.__file__).parent / "nano"
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        return f"bundled model nano: {' and '.join(missing)} missing in {folder}"
    megabytes = (folder / "model.safetensors").stat().st_size / 1e6
    return f"bundled model nano: {megabytes:.0f} MB in {folder}"
