"""A batch of 256 at once, in pieces of 32, and by open_clip's --accum-freq 8: memory, time, and the gradient.

    python benchmarks/pieces.py [SIZE]          # the side of the images, 96 pixels by default; needs clipcoco[peers]

The same ResNet-50 and Transformer, pretrained as far as BatchNorm is concerned, in float32 without dropout; each way in
a process of its own, in turn. Memory is what a step adds to that process's peak; open_clip's loop is its own, as it is.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from clipcoco.config.load import load_config
from clipcoco.data.loader import Batch
from clipcoco.engine.device import choose_device
from clipcoco.engine.loss import LOSSES
from clipcoco.engine.model import build
from clipcoco.engine.optim import build_optimizer, set_learning_rate
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Schedule, Training, gradient, start_epoch

BATCH, PIECE, ROUNDS = 256, 32, 3
WAYS = {
    "32 pairs, the memory to compare with": (PIECE, PIECE),
    "256 pairs at once": (BATCH, BATCH),
    "256 pairs in pieces of 32": (BATCH, PIECE),
    "256 pairs, open_clip --accum-freq 8": (BATCH, 0),
}


def prepared(size: int, batch: int, piece: int) -> tuple[Training, Batch]:
    words = [f"data.image_size={size}", "model.text.dropout=0", f"train.batch_size={batch}", "train.precision=float32"]
    config = load_config("base", overrides=words).config
    torch.manual_seed(0)
    model, device = build(config.model, 10_000), choose_device("cpu", "float32")
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    tokens = torch.randint(3, 10_000, (batch, 16), dtype=torch.int32)
    tokens[:, 0], tokens[:, -1] = 1, 2
    training = Training(
        model=model,
        loss=LOSSES["infonce"],
        optimizer=build_optimizer(model, 1e-4, 0.01, 1.0),
        scaler=device.scaler(),
        device=device,
        schedule=Schedule(config.train, 0, 1000, 0, 0, 1000),
        state=TrainState(micro_batch_size=piece),
        loader=None,  # type: ignore[arg-type]
        features=None,
        evaluate=lambda: None,
        save=lambda best, epoch: None,
    )
    start_epoch(model, 0, 0)
    return training, Batch(images, None, tokens, torch.arange(batch), ())


class Theirs(nn.Module):
    """Our model as open_clip's loop wants one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.logit_scale = model, model.logit_scale

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        found = self.model(Batch(images, None, tokens, torch.arange(len(images)), ()))
        return {"image_features": found[0], "text_features": found[1], "logit_scale": 1 / found[2]}


class Kept(torch.optim.Optimizer):
    """Leaves weights and gradients as they are, so that the gradient of a step can be looked at."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.0})

    def step(self, closure: Any = None) -> None:
        self.found = {id(one): one.grad.clone() for group in self.param_groups for one in group["params"]}


def accumulated(training: Training, batch: Batch) -> dict[str, Tensor]:
    from open_clip.loss import ClipLoss
    from open_clip_train.train import train_one_epoch

    model, optimizer = Theirs(training.model), Kept(training.model.parameters())
    pieces = [(piece.images, piece.tokens) for piece in batch.split(PIECE)]
    loader = SimpleNamespace(num_batches=len(pieces), num_samples=BATCH)
    loader = type("Loader", (list,), vars(loader))(pieces)
    arguments = SimpleNamespace(
        device="cpu", precision="fp32", accum_freq=BATCH // PIECE, distill=False, skip_scheduler=True, horovod=False,
        grad_clip_norm=None, batch_size=PIECE, world_size=1, rank=0, local_rank=0, distributed=False, wandb=False,
        log_every_n_steps=10**9, log_local=False, world_batch_size=BATCH,
    )  # fmt: skip
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    train_one_epoch(model, data, ClipLoss(), 0, optimizer, None, None, None, arguments)
    return {name: optimizer.found[id(one)] for name, one in training.model.named_parameters()}


def measure(size: int, batch: int, piece: int, save: str) -> dict[str, Any]:
    """Seconds of each round, and the MiB that training adds to the peak."""
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    training, pairs = prepared(size, batch, piece)
    set_learning_rate(training.optimizer, 0.0)  # moments as in training, and the same weights in every round
    for _ in range(ROUNDS):
        training.optimizer.zero_grad()
        began = time.monotonic()
        if piece:
            gradient(training, pairs)
            found = {name: one.grad for name, one in training.model.named_parameters() if one.grad is not None}
        else:
            found = accumulated(training, pairs)
        seconds.append(time.monotonic() - began)
        training.optimizer.step()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    torch.save(found, save)
    return {"seconds": seconds, "mib": peak}


def main() -> None:
    if sys.argv[1:2] == ["--way"]:
        size, batch, piece = map(int, sys.argv[2:5])
        print(json.dumps(measure(size, batch, piece, sys.argv[5])))
        return
    import tempfile

    size = sys.argv[1] if sys.argv[1:] else "96"
    rows, exact = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (batch, piece) in WAYS.items():
            command = [sys.executable, __file__, "--way", size, str(batch), str(piece), f"{folder}/{name}"]
            rows[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            rows[name]["of"] = torch.load(f"{folder}/{name}")
    whole = rows["256 pairs at once"]
    for name, row in rows.items():
        if row["of"].keys() == whole["of"].keys() and "256" in name:
            far = {
                key: float((row["of"][key] - one).abs().max() / one.abs().max().clamp(min=1e-30))
                for key, one in whole["of"].items()
            }
            scale = float(row["of"]["logit_scale"] / whole["of"]["logit_scale"])
            exact[name] = f"{max(v for k, v in far.items() if k != 'logit_scale'):.0e} | {scale:.4f}"
    small = rows["32 pairs, the memory to compare with"]["mib"]
    print(f"ResNet-50 at {size} px, torch {torch.__version__}, {torch.get_num_threads()} threads, float32\n")
    print("| way | MiB | x those of 32 | seconds, by round | x at once | gradient off by | temperature's x |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        seconds = statistics.median(row["seconds"])
        ratio = f"{seconds / statistics.median(whole['seconds']):.2f}" if "256" in name else ""
        told = " ".join(f"{one:.1f}" for one in row["seconds"])
        print(
            f"| {name} | {row['mib']:,.0f} | {row['mib'] / small:.2f} | {told} | {ratio} | {exact.get(name, ' | ')} |"
        )


if __name__ == "__main__":
    main()
