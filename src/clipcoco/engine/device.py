"""Device, precision and determinism: each choice with the reason that is printed."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch

from clipcoco.config.messages import check_device
from clipcoco.cores import on_this_machine
from clipcoco.data.loader import EVALUATION_BATCH
from clipcoco.engine.model import DualEncoder
from clipcoco.errors import EnvironmentProblem, is_out_of_memory
from clipcoco.say import say_count
from clipcoco.shared import Shared

# On CUDA both may round float32 to TF32, convolutions by torch's default.
FLOAT32_ON_CUDA: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# glibc's: blocks from this size on come from the system and go back there, as does what is free above the second one.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_LARGEST_DEFAULTS = 32 * 2**20, 64 * 2**20  # where they come to rest by themselves


@dataclass(frozen=True)
class Device:
    """Where and in which precision the model runs; `description` says it, with reasons, to a person."""

    device: torch.device
    precision: str  # a key of DTYPES
    description: str

    @property
    def kind(self) -> str:
        """What decides the last bits of a result: the name of the GPU, or "cpu"."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def autocast(self) -> torch.autocast:
        dtype = DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def place(self, model: DualEncoder) -> DualEncoder:
        """Move the model there; images channels-last where that pays: not for float32 on a CPU, as measured."""
        model.to(self.device)
        if self.device.type == "cuda" or self.precision != "float32":
            model.visual.to(memory_format=torch.channels_last)
        return model

    def scaler(self) -> torch.amp.GradScaler:
        """It begins where float16's first gradients mostly fit, and goes on seeking the largest scale that does."""
        return torch.amp.GradScaler(self.device.type, init_scale=2.0**12, enabled=self.precision == "float16")

    def made_current(self) -> AbstractContextManager[object]:
        """Inside, also of what asks for no device: torch's thread that pins memory would begin a context on GPU 0."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def choose_device(name: str | None, precision: str) -> Device:
    """`name`: auto, cpu, mps, cuda or cuda:N; `precision`: auto or a key of DTYPES.

    Raises EnvironmentProblem when a device or a precision is asked for that this machine has not.
    """
    device, description = _device(name or "auto")
    fast, reason, possible = _precisions(device)
    if precision not in ("auto", *possible):
        others = " or ".join(possible)
        raise EnvironmentProblem(f"{precision} is not possible on {device} (train.precision). Use auto, {others}")
    chosen, why = (fast, reason) if precision == "auto" else (precision, "asked for")
    true_float32(device)
    return Device(device, chosen, f"{description}, {chosen} ({why})")


def choose_as_trained(name: str | None, trained: str) -> Device:
    """The device, in the precision that the model was trained in; float32 where it has not got that one."""
    device, description = _device(name or "auto")
    chosen = trained if trained in _precisions(device)[2] else "float32"
    true_float32(device)
    return Device(device, chosen, f"{description}, {chosen} (trained in {trained})")


def _device(name: str) -> tuple[torch.device, str]:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    check_device(name)
    device = torch.device(name)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return device, f"cpu, {say_count(threads, 'thread')}"
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise EnvironmentProblem(f"{name} is not available here (--device). Use --device auto or cpu")
        return device, "mps"
    ours, local = on_this_machine()
    index = device.index if device.index is not None else ours if local > 1 else 0
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices found"
        raise EnvironmentProblem(f"{name} is not available here: {found} (--device). Use --device auto or cpu")
    properties, many = torch.cuda.get_device_properties(index), torch.cuda.device_count()
    said = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if many > 1 and local == 1:
        said += f", 1 of {many} (all: torchrun --nproc-per-node {many} -m clipcoco ...)"
    return torch.device("cuda", index), said


def _precisions(device: torch.device) -> tuple[str, str, list[str]]:
    """The one that the device is fast at, why, and all that are possible."""
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
    return fast, reason, possible


def make_deterministic(seed: int, device: torch.device) -> None:
    """Equal bits from equal seeds on one machine. On a CPU equal thread counts are all that it takes."""
    torch.manual_seed(seed)
    choose_deterministic_kernels(device)


def choose_deterministic_kernels(device: torch.device) -> None:
    """What encoding takes, as nothing is drawn there."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    true_float32(device)


def true_float32(device: torch.device) -> None:
    """What is called float32 is float32: by torch's default convolutions on CUDA round to TF32, at 3e-4 of a vector."""
    if device.type == "cuda":
        for operation in FLOAT32_ON_CUDA:
            operation.fp32_precision = "ieee"


def training_in_memory(batch_size: int, device: Device) -> AbstractContextManager[None]:
    """Where there is not enough memory inside, say what a smaller batch would change."""
    half = batch_size // 2
    pieces = f"--set train.micro_batch_size={half} (the same negatives, more time)"
    smaller = f"train.batch_size={half} ({half - 1} negatives an image, not {batch_size - 1})"
    advice = f"{pieces}, or {smaller}" if half > 1 else "a smaller data.image_size or another --device"
    return in_memory(f"a training batch of {batch_size}", device, f"(train.batch_size). Try {advice}")


def encoding_in_memory(what: str, device: Device) -> AbstractContextManager[None]:
    """The same of an evaluation and of a frozen backbone's features: their batch is fixed."""
    advice = "(data.image_size). Try another --device, or a new run of smaller images"
    return in_memory(f"{what}, in batches of {EVALUATION_BATCH},", device, advice)


@contextmanager
def _heap_kept() -> Iterator[None]:
    """Inside, what a step gives back stays for the next one: the system would clear it anew, a fifth of a step."""
    try:
        library = ctypes.CDLL(None)
        kept = library.mallopt(_MMAP_THRESHOLD, 2**30) and library.mallopt(_TRIM_THRESHOLD, -1)
    except (AttributeError, OSError):  # another one than glibc
        kept = 0
    yield
    if kept:
        for threshold, size in zip((_MMAP_THRESHOLD, _TRIM_THRESHOLD), _LARGEST_DEFAULTS, strict=True):
            library.mallopt(threshold, size)
        library.malloc_trim(0)


_heap = Shared(_heap_kept)


@contextmanager
def in_memory(what: str, device: Device, advice: str) -> Iterator[None]:
    """Where there is not enough memory inside, raise EnvironmentProblem: what did not fit, where, and what helps."""
    try:
        with _heap if device.device.type == "cpu" else nullcontext():
            yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        free = ""
        if device.device.type == "cuda":
            with suppress(RuntimeError):  # of a GPU that is too full to be asked
                available, total = torch.cuda.mem_get_info(device.device)
                free = f", {available / 2**30:.1f} of {total / 2**30:.1f} GiB are free"
        message = f"{what} does not fit into the memory of {device.device}{free} {advice}"
        raise EnvironmentProblem(message) from error
