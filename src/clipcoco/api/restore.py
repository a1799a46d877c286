"""What training and encoding set for the whole process, and how it is brought back."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from clipcoco.engine.device import FLOAT32_ON_CUDA
from clipcoco.errors import EnvironmentProblem
from clipcoco.shared import Shared


@contextmanager
def _kernels_brought_back() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    rounding = [operation.fp32_precision for operation in FLOAT32_ON_CUDA]
    yield
    now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if now != (deterministic, warn_only):  # to be told so, torch imports its compiler, which takes a second and a half
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.backends.cudnn.benchmark = benchmark
    for operation, precision in zip(FLOAT32_ON_CUDA, rounding, strict=True):
        operation.fp32_precision = precision
    if workspace is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    else:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace


@contextmanager
def _defaults_brought_back() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    method = multiprocessing.get_start_method(allow_none=True)  # torch's loader asks, and so fixes it
    initialized = torch.cuda.is_initialized()
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    torch.set_default_dtype(torch.float32)
    with torch.random.fork_rng(range(torch.cuda.device_count()) if initialized else []):
        yield
    torch.set_default_dtype(dtype)
    multiprocessing.set_start_method(method, force=True)
    if not initialized:  # its generators begin later, from the seed that they would have had
        torch.cuda.manual_seed_all(torch.initial_seed())
    if mps is not None:
        torch.mps.set_rng_state(mps)


_kernels, _defaults = Shared(_kernels_brought_back), Shared(_defaults_brought_back)


@contextmanager
def kernels_restored() -> Iterator[None]:
    """Afterwards torch's choice of kernels is as it was. Nothing else is touched: other threads may draw meanwhile."""
    try:
        with _kernels:
            yield
    except RuntimeError as error:
        if "CUBLAS_WORKSPACE_CONFIG" not in str(error):
            raise
        raise EnvironmentProblem(  # torch looked for it once, before we could set it
            "the GPU was used in this process before clipcoco, in a way that can't give equal bits "
            "(CUBLAS_WORKSPACE_CONFIG). Set it to :4096:8 before the first use, or load or train first"
        ) from error


@contextmanager
def globals_restored() -> Iterator[None]:
    """Inside, torch's own defaults that our code builds on; afterwards all that it sets is as it was before."""
    with kernels_restored(), _defaults, torch.inference_mode(False), torch.enable_grad():
        yield
