"""Device, precision and determinism: each choice with the reason that is printed."""

import os
from dataclasses import dataclass

import torch

from clipcoco.errors import ConfigError, EnvironmentProblem

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Device:
    """Where and in which precision the model runs; `description` says it, with reasons, to a person."""

    device: torch.device
    precision: str  # a key of DTYPES
    description: str

    def autocast(self) -> torch.autocast:
        dtype = DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)

    @property
    def channels_last(self) -> bool:
        """Measured: it pays in half precision and on tensor cores, not for float32 on a CPU."""
        return self.device.type == "cuda" or self.precision != "float32"

    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")


def choose_device(name: str | None, precision: str) -> Device:
    """`name`: auto, cpu, mps, cuda or cuda:N; `precision`: auto or a key of DTYPES.

    Raises EnvironmentProblem when a device or a precision is asked for that this machine has not.
    """
    device, description = _device(name or "auto")
    chosen, reason = _precision(device, precision)
    return Device(device, chosen, f"{description}, {chosen} ({reason})")


def _device(name: str) -> tuple[torch.device, str]:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"no device '{name}' (--device). Choose auto, cpu, cuda, cuda:N or mps")
    if device.type == "cpu":
        return device, f"cpu, {torch.get_num_threads()} threads"
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise EnvironmentProblem(f"{name} is not available here (--device). Use --device auto or cpu")
        return device, "mps"
    index = device.index or 0
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"{name} is not available here, {torch.cuda.device_count()} CUDA devices are (--device). "
            f"Use --device auto or cpu"
        )
    properties = torch.cuda.get_device_properties(index)
    return torch.device("cuda", index), f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _precision(device: torch.device, asked: str) -> tuple[str, str]:
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        fast = "bfloat16" if capability >= (8, 0) else "float16" if capability >= (7, 0) else "float32"
        reason = f"fast at compute capability {capability[0]}.{capability[1]}"
        possible = ["float32", "float16"] + (["bfloat16"] if capability >= (8, 0) else [])
    elif device.type == "mps":
        fast, reason, possible = "float32", "half precision is untested on mps", ["float32"]
    else:
        # Other CPUs emulate bfloat16, slower than float32; none is fast at float16 training.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        units = [unit for unit in ("amx_bf16", "avx512_bf16") if capabilities.get(unit)]
        fast = "bfloat16" if units else "float32"
        reason = f"the CPU has {units[0]}" if units else "the CPU has no bfloat16 units"
        possible = ["float32", "bfloat16"]
    if asked == "auto":
        return fast, reason
    if asked not in possible:
        raise EnvironmentProblem(
            f"{asked} is not possible on {device} (train.precision). Use auto, {' or '.join(possible)}"
        )
    return asked, "asked for"


def make_deterministic(seed: int, device: torch.device) -> None:
    """Equal bits from equal seeds on one machine. On a CPU equal thread counts are all that it takes."""
    torch.manual_seed(seed)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        # the CPU allocator raises a plain RuntimeError
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
