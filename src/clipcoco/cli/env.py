"""`clipcoco env`: what a bug report needs to know of a machine. No secrets: never the value of a proxy or a token."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipcoco.cli.options import Debug, Json, print_json
from clipcoco.config.backbones import BACKBONES, hub_folder
from clipcoco.console import open_terminal, say_bytes, show, summary_rows
from clipcoco.cores import cpu_quota, usable_cores
from clipcoco.errors import ExitCode
from clipcoco.version import __version__

PACKAGES = (
    *("torch", "torchvision", "numpy", "pillow", "pycocotools", "tokenizers", "tensorboard", "matplotlib", "jinja2"),
    *("typer", "rich", "pydantic", "pyyaml", "httpx2", "safetensors"),
    *("open_clip_torch", "timm", "onnx", "onnxscript", "onnxruntime"),  # of the extras
)
THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
LOOKS = ("LC_ALL", "LC_CTYPE", "LANG", "PYTHONIOENCODING", "PYTHONUTF8", "NO_COLOR", "FORCE_COLOR", "CI", "COLUMNS")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
SMI_SECONDS = 10.0  # a driver that hangs must not hang the report of it


def env(json_: Json = False, debug: Debug = False) -> int:
    """One block about this machine to paste into a bug report. No names of hosts or users, no secrets.

    [bold]clipcoco env[/bold]

    [bold]clipcoco env --json[/bold]
    """
    found = environment()
    if json_:
        print_json({"schema": 1, **found})
    else:
        show(open_terminal().out, *summary_rows((topic, _say(facts)) for topic, facts in found.items()))
    return ExitCode.OK


def environment() -> dict[str, Any]:
    """Plain values by topic; sizes in bytes, None for what can't be found out."""
    processor = _found(r"^model name\s*:\s*(.*)$", "/proc/cpuinfo")
    processor = processor or _run("sysctl", "-n", "machdep.cpu.brand_string")[0] or platform.machine()
    available = _found(r"^MemAvailable: *(\d+) kB", "/proc/meminfo")
    limit = _found(r"^(\d+)$", "/sys/fs/cgroup/memory.max")
    # As torch's own file says: to import it takes seconds, or is what fails.
    spec = importlib.util.find_spec("torch")
    build = Path(spec.origin).with_name("version.py") if spec and spec.origin else Path(os.devnull)
    names = {"version": "__version__", "cuda": "cuda", "hip": "hip"}
    weights = hub_folder()  # a name ends in digits of its SHA-256
    published = [name for facts in BACKBONES.values() for name in facts.published.values()]
    return {
        "clipcoco": {"version": __version__, "path": short(str(Path(__file__).parents[1]))},
        "python": {"version": platform.python_version(), "path": short(sys.executable)},
        "system": {"platform": platform.platform(), "name": _found(r'^PRETTY_NAME="?([^"\n]*)', "/etc/os-release")},
        "cpu": {"model": processor, "cores": os.cpu_count(), "usable": usable_cores(), "quota": cpu_quota()},
        "memory": {
            "total": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "available": int(available) * 1024 if available else None,
            "limit": int(limit) if limit else None,
            "shared": shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,  # for data workers
        },
        "packages": {name: _version(name) for name in PACKAGES},
        "torch_build": {key: _found(rf"^{name}\b[^=\n]*= *'([^'\n]*)'", build) for key, name in names.items()},
        "nvidia": _nvidia(),
        "disk": _disk(),
        "weights": {"folder": short(str(weights)), "files": {name: (weights / name).is_file() for name in published}},
        "terminal": {
            "TERM": os.environ.get("TERM"),
            "size": "{}x{}".format(*shutil.get_terminal_size()),
            "encoding": getattr(sys.stdout, "encoding", None),
            "is_a_terminal": {name: os.isatty(number) for number, name in enumerate(("stdin", "stdout", "stderr"))},
            **_values(LOOKS),
        },
        "threads": _values(THREADS),
        "proxies": [name for name in PROXIES if name in os.environ or name.upper() in os.environ],
    }


def short(text: str) -> str:
    """`text` with the home directory, which names the user, as ~."""
    home = os.path.expanduser("~").rstrip("/")
    return re.sub(rf"{re.escape(home)}(?=/|$)", "~", text) if home.startswith("/") else text


def _values(names: tuple[str, ...]) -> dict[str, str]:
    """Those of harmless variables that are set."""
    return {name: short(os.environ[name][:100]) for name in names if name in os.environ}


def _found(pattern: str, path: str | Path) -> str | None:
    """What the group of `pattern` matches in the file."""
    with suppress(OSError):
        match = re.search(pattern, Path(path).read_text(errors="replace"), re.MULTILINE)
        return match[1] if match else None
    return None


def _run(*command: str) -> tuple[str, str]:
    """What the command says, and why it says nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"no {command[0]}" if isinstance(error, FileNotFoundError) else str(error)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()[0]
        return "", f"{command[0]}: {said[:200]}"
    return done.stdout.strip(), ""


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _nvidia() -> dict[str, Any]:
    """Without torch, which may be what does not find the GPU."""
    said, trouble = _run("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    lines = [line.rsplit(", ", 1) for line in said.splitlines() if ", " in line]
    driver = _found(r"Module.*?\s(\d+\.\d[\d.]*)", "/proc/driver/nvidia/version")
    driver = driver or next((version for _, version in lines), None)
    return {"driver": driver, "gpus": [gpu for gpu, _ in lines], "trouble": trouble}


def _disk() -> dict[str, Any]:
    try:
        folder = Path.cwd()
        usage = shutil.disk_usage(folder)
    except OSError as error:  # the folder was deleted under our feet
        return {"folder": error.strerror, "free": None, "total": None}
    return {"folder": short(str(folder)), "free": usage.free, "total": usage.total}


def _say(facts: object) -> str:
    """Facts as a person reads them: "free 75.7 GB, total 270.6 GB"; what is not known is none."""
    match facts:
        case bool():
            return "yes" if facts else "no"
        case int():
            return say_bytes(facts) if facts > 10**6 else str(facts)
        case dict() if facts:
            return ", ".join(f"{name}{'=' if name.isupper() else ' '}{_say(fact)}" for name, fact in facts.items())
        case list() if facts:
            return ", ".join(facts)
    return str(facts or "none")
