"""`clipcoco train --preset demo` as one flat script: the same parts and the same bits, to copy and to change.

    python docs/loop.py FOLDER [SETTING=VALUE ...]        # as in: python docs/loop.py loop train.epochs=2

Stopped anywhere, the same command goes on after the last whole epoch. FOLDER holds checkpoints like any other:
`clipcoco eval --checkpoint FOLDER/best.pt`, `clipcoco search "a red circle" --run FOLDER/best.pt`.
Left to `clipcoco train`: saves within an epoch, early stops, signals, locks, steps that are not finite, images that
can't be read, frozen backbones and their cached features, records and the report.
"""

import sys
from pathlib import Path

import torch

from clipcoco.config.derive import resolve_backbone_lr_scale, resolve_warmup
from clipcoco.config.load import load_config, to_plain
from clipcoco.data.loader import EVALUATION_BATCH, TrainingLoader
from clipcoco.data.split import open_splits
from clipcoco.data.tokenizer import Tokenizer
from clipcoco.data.workers import choose_workers
from clipcoco.engine.checkpoint import load, save
from clipcoco.engine.device import choose_device, make_deterministic
from clipcoco.engine.evaluate import Inputs, embed, in_order, validation_loss
from clipcoco.engine.loss import LOSSES, text_keys
from clipcoco.engine.model import build
from clipcoco.engine.optim import build_optimizer, learning_rate, restore_moments, set_learning_rate
from clipcoco.engine.recall import recall_table
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import step_seed, temperature
from clipcoco.prepare.scenes import draw_scenes, to_be_drawn

# ---- Settings: the preset's, then the command line's; a checkpoint of an earlier start ------------------
folder, *changes = sys.argv[1:] or ["loop"]
loaded = load_config("demo", overrides=changes)
config, last = loaded.config, Path(folder, "last.pt")
saved = load(last) if last.exists() else None
if saved and saved["config"] != to_plain(config):
    sys.exit(f"{folder} was begun with other settings. Give the same ones, or another folder")
assert config.model.vision.weights == "none", "a pretrained backbone begins frozen: runs/training.py has the ways"

# ---- Data: images with their captions, the tokenizer learnt from those, a gallery that training never sees
if to_be_drawn(loaded):
    draw_scenes(config.data.folder)
train, val = open_splits(config.data, "train", "val")
context, vocab_size = config.model.text.context_length, config.model.text.vocab_size
tokenizer = Tokenizer.from_plain(saved["tokenizer"]) if saved else Tokenizer.train(train.table.captions, vocab_size)
train_tokens, val_tokens = (tokenizer.encode(split.table.captions, context) for split in (train, val))

# ---- Device: its precision, kernels that repeat their bits, and batches for it ---------------------------
device = choose_device(None, config.train.precision)
make_deterministic(config.seed, device.device)
batch_size, is_cuda = config.train.batch_size, device.device.type == "cuda"
largest = max(batch_size, EVALUATION_BATCH)
workers, _ = choose_workers(config.data.workers, device.device.type, config.data.image_size, largest)
loader = TrainingLoader(
    config.data, train.table, train_tokens, batch_size, config.seed, workers, pin_memory=is_cuda,
    captions=config.train.captions_per_image,
)  # fmt: skip
gallery = Inputs(config.data, val.table, val_tokens, workers)

# ---- Model, loss, optimiser, schedule --------------------------------------------------------------------
model = device.place(build(config.model, tokenizer.vocab_size))  # the first weights come of the seed
loss = LOSSES["infonce"]  # of the three the one without a warm-up or a bias of its own
backbone_lr_scale = resolve_backbone_lr_scale(config.train, config.model.vision.weights)
optimizer = build_optimizer(model, config.train.lr, config.train.weight_decay, backbone_lr_scale)
scaler = device.scaler()  # for the gradients of float16; others pass as they are
total_steps = loader.steps_per_epoch * config.train.epochs
warmup_steps = resolve_warmup(config.train.warmup_steps, total_steps)
state = TrainState(precision=device.precision, frozen_epochs=0)
print(f"{device.description}: {config.train.epochs} epochs x {loader.steps_per_epoch} steps x {batch_size} images")

# ---- Resume: weights, moments, position. Order, captions, views and dropout follow from seed and position -
if saved:
    model.load_state_dict(saved["model"])
    restore_moments(optimizer, saved["optimizer"])
    scaler.load_state_dict(saved["scaler"])
    state = TrainState.from_plain(saved["state"])
last.parent.mkdir(parents=True, exist_ok=True)

for epoch in range(state.evaluated_epochs, config.train.epochs):
    model.train()
    for batch in loader.epoch(epoch):
        # ---- One step: encode B images and their captions, compare all with all, follow the gradient -----
        torch.manual_seed(step_seed(config.seed, state.step))  # of dropout
        with device.autocast():
            images, texts, tau = model(batch.to(device.device))  # unit vectors, (B,D) twice, and the temperature
        nats = loss.of(images, texts, tau, keys=text_keys(batch.tokens))  # equal captions are no negatives
        scaler.scale(nats).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip)
        set_learning_rate(optimizer, learning_rate(state.step, total_steps, warmup_steps, config.train.lr))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        model.clamp_temperature()
        state.step += 1
        if state.step % config.train.log_every_steps == 0:  # of this step alone; the command logs means
            print(f"step {state.step}  loss {nats.item():.9g}", flush=True)

    # ---- An epoch's end: embed the gallery, rank every pair, and save ------------------------------------
    embedded = embed(model, gallery, device, report=lambda event: None, stop=lambda: None)
    assert embedded is not None  # nothing stops it
    val_loss = validation_loss(in_order(embedded, val.table.order), loss, batch_size, temperature(model))
    table = recall_table(embedded.images, embedded.texts, embedded.owners)
    state.evaluated_epochs = epoch + 1
    if table.r1 > state.best_r1:
        state.best_r1, state.best_epoch = table.r1, epoch + 1
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "state": state.to_plain(),
        "config": to_plain(config),
        "tokenizer": tokenizer.to_plain(),
    }
    save(last.parent, content, best=state.best_epoch == epoch + 1, epoch=None, keep=0)

    # ---- The table, beside what a random order would reach -----------------------------------------------
    print(f"epoch {epoch + 1}  validation loss {val_loss:.9g}  {table.images} images, {table.captions} captions")
    print("                    R@1     R@5    R@10   median rank")
    named = {"image -> text": table.i2t, "text -> image": table.t2i}
    for name, found in {**named, **{f"chance, {way}": level for way, level in table.chance.items()}}.items():
        cutoffs = "".join(f"{found[cutoff]:8.2f}" for cutoff in ("r1", "r5", "r10"))
        print(f"  {name:13}{cutoffs}{found['median_rank']:14g}", flush=True)
