"""`clipcoco env`: what a bug report needs to know of a machine. No secrets: never the value of a proxy or a token."""

import importlib.metadata
import importlib.util
import locale
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
from clipcoco.config.schema import BACKBONES
from clipcoco.console import open_terminal, say_bytes, show, summary_rows
from clipcoco.cores import cpu_quota, usable_cores
from clipcoco.errors import ExitCode
from clipcoco.version import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "pycocotools",
    "tokenizers",
    "tensorboard",
    "matplotlib",
    "jinja2",
    "typer",
    "rich",
    "pydantic",
    "pyyaml",
    "httpx2",
)
EXTRAS = ("open_clip_torch", "timm", "safetensors", "onnx", "onnxscript", "onnxruntime")
THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
LOCALE = ("LC_ALL", "LC_CTYPE", "LANG", "PYTHONIOENCODING", "PYTHONUTF8")
LOOKS = ("NO_COLOR", "FORCE_COLOR", "CI", "COLUMNS")
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
        return ExitCode.OK
    show(open_terminal().out, *summary_rows(_rows(found)))
    return ExitCode.OK


def environment() -> dict[str, Any]:
    """Plain values by topic; sizes in bytes, None for what can't be found out."""
    return {
        "clipcoco": {"version": __version__, "path": short(str(Path(__file__).parents[1]))},
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "path": short(sys.executable),
        },
        "system": {"platform": platform.platform(), "name": _system_name(), "container": _in_container()},
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "usable": usable_cores(), "quota": cpu_quota()},
        "memory": _memory(),
        "packages": {name: _version(name) for name in (*PACKAGES, *EXTRAS)},
        "torch_build": _torch_build(),
        "nvidia": _nvidia(),
        "disk": _disk(),
        "weights": _weights(),
        "locale": {"encoding": locale.getpreferredencoding(False), "stdout": sys.stdout.encoding, **_values(LOCALE)},
        "terminal": {
            "TERM": os.environ.get("TERM"),
            "size": "{}x{}".format(*shutil.get_terminal_size()),
            "is_a_terminal": {name: _is_terminal(name) for name in ("stdin", "stdout", "stderr")},
            **_values(LOOKS),
        },
        "threads": _values(THREADS),
        "proxies": [name for name in PROXIES if name in os.environ or name.upper() in os.environ],
    }


def short(text: str) -> str:
    """`text` with the home directory, which names the user, as ~."""
    home = os.path.expanduser("~").rstrip("/")
    return re.sub(rf"{re.escape(home)}(?=/|$)", "~", text) if home.startswith("/") else text


def _is_terminal(name: str) -> bool:
    stream = getattr(sys, name)
    return stream is not None and not stream.closed and stream.isatty()


def _values(names: tuple[str, ...]) -> dict[str, str]:
    """Those of harmless variables that are set."""
    return {name: short(os.environ[name][:100]) for name in names if name in os.environ}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _torch_build() -> dict[str, str | None]:
    """Version, CUDA and ROCm as torch's own file says: to import it takes seconds, or is what fails."""
    found: dict[str, str | None] = {"version": None, "cuda": None, "hip": None}
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        text = _read(str(Path(spec.origin).with_name("version.py")))
        for key, name in (("version", "__version__"), ("cuda", "cuda"), ("hip", "hip")):
            match = re.search(rf"^{name}\b[^=\n]*= *'([^'\n]*)'", text, re.MULTILINE)
            found[key] = match[1] if match else None
    return found


def _system_name() -> str | None:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read("/etc/os-release"), re.MULTILINE)
    return match[1] if match else platform.mac_ver()[0] or None


def _in_container() -> bool:
    return any(Path(path).exists() for path in ("/.dockerenv", "/run/.containerenv", "/singularity"))


def _cpu_model() -> str | None:
    match = re.search(r"^model name\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    brand = _run("sysctl", "-n", "machdep.cpu.brand_string")[0] if sys.platform == "darwin" else ""
    return match[1] if match else brand or platform.machine() or None


def _memory() -> dict[str, int | None]:
    def kilobytes(name: str) -> int | None:
        match = re.search(rf"^{name}: *(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
        return int(match[1]) * 1024 if match else None

    limit = _read("/sys/fs/cgroup/memory.max").strip()
    total = kilobytes("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None
    return {
        "total": total,
        "available": kilobytes("MemAvailable"),
        "limit": int(limit) if limit.isdecimal() else None,
        "shared": shared,  # /dev/shm: what the data workers hand batches over in
    }


def _nvidia() -> dict[str, Any]:
    """Without torch, which may be what does not find the GPU."""
    match = re.search(r"Module.*?\s(\d+\.\d[\d.]*)", _read("/proc/driver/nvidia/version"))
    query = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    said, trouble = _run("nvidia-smi", *query)
    lines = [line.rsplit(", ", 1) for line in said.splitlines() if ", " in line]
    driver = match[1] if match else lines[0][1] if lines else None
    return {"driver": driver, "gpus": [gpu for gpu, _ in lines], "trouble": trouble}


def _run(*command: str) -> tuple[str, str]:
    """What the command says, and why it says nothing."""
    if shutil.which(command[0]) is None:
        return "", f"no {command[0]}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"{command[0]}: {type(error).__name__}"
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()[0]
        return "", f"{command[0]}: {said[:200]}"
    return done.stdout.strip(), ""


def _disk() -> dict[str, Any]:
    try:
        folder = Path.cwd()
        usage = shutil.disk_usage(folder)
    except OSError as error:  # the folder was deleted under our feet
        return {"folder": error.strerror, "free": None, "total": None}
    return {"folder": short(str(folder)), "free": usage.free, "total": usage.total}


def _weights() -> dict[str, Any]:
    """Where torch.hub keeps published weights, and which of them are there."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.path.expanduser(os.environ.get("TORCH_HOME", f"{cache}/torch")))
    folder = home / "hub" / "checkpoints"
    names = [name for _, _, published in BACKBONES.values() for name in published.values()]
    return {
        "TORCH_HOME": short(os.environ["TORCH_HOME"]) if "TORCH_HOME" in os.environ else None,
        "folder": short(str(folder)),
        "files": {name: (folder / name).is_file() for name in names},
    }


def _say_weights(weights: dict[str, Any]) -> str:
    """A name ends in the first digits of the file's SHA-256."""
    there, absent = (
        [name for name, is_there in weights["files"].items() if is_there is wanted] for wanted in (True, False)
    )
    looked = f"; looked for {', '.join(absent)}" if absent else ""
    return f"{weights['folder']} (TORCH_HOME moves it): {', '.join(there) or 'none'} there{looked}"


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    python, system, cpu, memory = found["python"], found["system"], found["cpu"], found["memory"]
    terminal, packages = found["terminal"], found["packages"]
    kind = "container" if system["container"] else None
    quota = f", quota {cpu['quota']:g}" if cpu["quota"] else ""
    sizes = [f"{say_bytes(size)} {name}" for name, size in memory.items() if size is not None]
    tty = " ".join(name for name, answer in terminal["is_a_terminal"].items() if answer)
    looks = [f"{name}={terminal[name]}" for name in LOOKS if name in terminal]
    there = [f"{name} {packages[name]}" for name in (*PACKAGES, *EXTRAS) if packages[name] and name != "torch"]
    missing = [name for name in PACKAGES if not packages[name]]
    return [
        ("clipcoco", f"{found['clipcoco']['version']} in {found['clipcoco']['path']}"),
        ("python", f"{python['version']} ({python['implementation']}), {python['path']}"),
        ("system", ", ".join(filter(None, (system["name"], system["platform"], kind)))),
        ("cpu", f"{cpu['model']}, {cpu['usable']} of {cpu['cores']} cores usable{quota}"),
        ("memory", ", ".join(sizes)),
        ("torch", _say_torch(found)),
        ("gpu", _say_gpu(found["nvidia"])),
        ("packages", ", ".join(there)),
        *([("missing", ", ".join(missing))] if missing else []),
        ("disk", _say_disk(found["disk"])),
        ("weights", _say_weights(found["weights"])),
        ("locale", ", ".join(f"{name} {value}" for name, value in found["locale"].items())),
        ("terminal", ", ".join([f"TERM {terminal['TERM']}", terminal["size"], f"tty: {tty or 'none'}", *looks])),
        ("threads", ", ".join(f"{name}={value}" for name, value in found["threads"].items()) or "no variable set"),
        ("proxies", ", ".join(f"{name} is set" for name in found["proxies"]) or "none"),
    ]


def _say_torch(found: dict[str, Any]) -> str:
    build = found["torch_build"]
    version = build["version"] or found["packages"]["torch"]
    if version is None:
        return "not installed"
    gpu = f"CUDA {build['cuda']}" if build["cuda"] else f"ROCm {build['hip']}" if build["hip"] else "no GPU"
    return f"{version}, built for {gpu}"


def _say_gpu(nvidia: dict[str, Any]) -> str:
    gpus = "; ".join(nvidia["gpus"]) or f"none ({nvidia['trouble'] or 'nvidia-smi names none'})"
    return f"{gpus}, driver {nvidia['driver'] or 'none'}"


def _say_disk(disk: dict[str, Any]) -> str:
    if disk["free"] is None:
        return str(disk["folder"])
    return f"{say_bytes(disk['free'])} of {say_bytes(disk['total'])} free at {disk['folder']}"
