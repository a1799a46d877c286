"""What each of several processes does in tests/test_distributed.py: a toy's steps, noted in a file of its own."""

import hashlib
import os
from pathlib import Path

import torch

from clipcoco.config.load import load_config
from clipcoco.data import loader
from clipcoco.engine import evaluate, features
from clipcoco.engine.distributed import join
from clipcoco.engine.model import build
from clipcoco.engine.optim import learning_rate
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import gradient, start_epoch, train_step, update
from clipcoco.runs.plan import read_parts
from clipcoco.runs.training import build_training
from conftest import TOY


def main() -> None:
    """Steps in float64, up to ten in float32, one whose gradient is spoilt on the last process alone."""
    group = join()
    count = int(os.environ["STEPS"])
    double, kept = steps(group, torch.float64, count)
    single, _ = steps(group, torch.float32, min(2 * count, 10))
    found = {"float64": double, "float32": single, "gradient": kept, "skipped": spoilt(group)}
    found |= {"embeddings": embedded(group), "features": filled(group)}
    torch.save(found, Path(os.environ["FOUND"]) / f"{group.size}-{group.rank}.pt")
    group.end(0)


def toy(group, dtype):
    """41 images in batches of 12, in pieces of 3."""
    changes = (
        *TOY,
        # BatchNorm over 3 single places, as of 32 px, makes 1e-9 of rounding within a dozen steps.
        f"data.image_size={64 if int(os.environ['STEPS']) > 4 else 32}",
        f"data.root={os.environ['ROOT']}",
        "train.batch_size=12",
        "train.micro_batch_size=3",
        f"train.captions_per_image={3 if dtype == torch.float64 else 1}",
    )
    config = load_config("demo", overrides=(*changes, "data.train_fraction=0.85")).config
    parts = read_parts(config, "cpu", "float32", None, group=group)
    assert len(parts.train_table.files) == 41
    # With these weights, for with others a ReLU at its edge makes 1e-4 of one process's own 1e-7 too.
    torch.manual_seed(2)
    model, state = build(config.model, parts.tokenizer.vocab_size), TrainState(micro_batch_size=parts.micro_batch)
    run = build_training(parts, model, state, None, lambda event: None, lambda: None)
    run.model.to(dtype)
    start_epoch(run.model, 0, 0)
    return run, parts


def steps(group, dtype, count):
    """The loss, norm and rows of each step, and the first gradient."""
    run, noted, first = toy(group, dtype)[0], [], {}
    # From scratch BatchNorm and Adam's first steps make 1e-2 of float32's 1e-7: float64 shows that it is rounding.
    run.model.visual.pretrained = dtype == torch.float32
    start_epoch(run.model, 0, 0)
    per_epoch = run.loader.steps_per_epoch
    while run.state.step < count:
        batches = run.loader.epoch(run.state.step // per_epoch)
        for batch in batches:
            loss = gradient(run, batch)
            first = first or {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
            loss, norm, _ = update(run, loss, learning_rate(run.state.step, 10**6, 0, 1e-4))
            noted.append((loss, norm, batch.image_ids.tolist()))
            run.state.step += 1
            if run.state.step == count:
                break
    return noted, first


def spoilt(group):
    """A step whose gradient the last process makes infinite: its norm, and whether any weight or statistic moved."""
    run, _ = toy(group, torch.float32)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    if group.rank == group.size - 1:
        run.model.text.text_projection.register_hook(lambda grad: grad * float("inf"))
    step = train_step(run, next(run.loader.epoch(0)), 1e-3)
    moved = [name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])]
    return step.grad_norm, moved


def embedded(group):
    """The training split by the model as it begins, in batches of 8 that are shared."""
    evaluate.EVALUATION_BATCH = loader.EVALUATION_BATCH = 8
    run, parts = toy(group, torch.float32)
    inputs = evaluate.Inputs(parts.config.data, parts.train_table, parts.tokens[0], 0)
    found = evaluate.embed(run.model, inputs, parts.device, lambda event: None, lambda: None, group)
    return found.images, found.texts


def filled(group):
    """The SHA-256 of the file of features that all of them fill."""
    features.EVALUATION_BATCH = 8
    run, parts = toy(group, torch.float32)
    root, source = Path(os.environ["FOUND"]) / f"root-{group.size}", parts.source
    root.mkdir(exist_ok=True)
    key = features.feature_key(parts.config, "0", parts.device, source, True)
    encode, table = run.model.eval().visual.features, parts.train_table
    features.cache_features(encode, key, table, root, source, 0, parts.device, lambda event: None, lambda: None, group)
    (file,) = root.rglob("*.f16")
    return hashlib.sha256(file.read_bytes()).hexdigest()
