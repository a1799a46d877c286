import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fork_server import ForkServer, compile_once, draw_once, parse_once

for number in (signal.SIGINT, signal.SIGHUP):  # ignored behind `&` and by nohup: what tests start would inherit it
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda number, frame: None)

# A toy of which a step takes milliseconds: 48 images of 32 pixels, 3 epochs of 6 steps.
TOY = (
    "data.image_size=32",
    "model.text.layers=1",
    "model.text.width=32",
    "model.text.heads=2",
    "model.text.context_length=16",
    "model.text.vocab_size=400",
    "model.text.dropout=0.1",
    "model.projection_dim=16",
    "train.batch_size=8",
    "train.epochs=3",
    "train.lr=1e-3",
    "train.log_every_steps=1",
    "train.precision=float32",
    "data.crop_scale=[0.8, 1.0]",
    "model.temperature=0.07",
)
# With checkpoints of 36 MB, not 134: for runs that are about files. So small, it tells no picture from another.
LIGHT = (*TOY, "model.vision.backbone=mobilenet_v3_large")


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """Bit-equality is promised at one thread count; one is the cheapest for a toy."""
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _configuration(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whose folder may be linked is noted for the user, who is none of the tests'."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("configuration"))


@pytest.fixture(scope="session", autouse=True)
def _once(tmp_path_factory: pytest.TempPathFactory) -> None:
    draw_once(tmp_path_factory.mktemp("figures"))
    compile_once()
    parse_once()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded data set: 48 training and 24 validation scenes."""
    from clipcoco.prepare.scenes import draw_scenes

    root = tmp_path_factory.mktemp("scenes") / "data"
    draw_scenes(root, train=48, val=24, size=48)
    return root


@pytest.fixture(scope="session")
def clipcoco(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """The command line, in real processes."""
    server = ForkServer(tmp_path_factory.mktemp("processes"))
    yield server
    server.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A volume of 3 MB, where mounting is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True).returncode:
        pytest.skip("a small volume can't be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def other_volume(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than `tmp_path`."""
    volume = Path("/dev/shm")
    if not os.access(volume, os.W_OK) or volume.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    folder = Path(tempfile.mkdtemp(dir=volume))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data beside the checkout; a user's clone has none."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the real data are not beside this checkout")
    return folder
