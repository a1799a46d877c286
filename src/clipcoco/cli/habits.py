"""What hands used to other programs type, and what it is called here: a hint for a wrong option or command."""

import shlex
from collections.abc import Sequence
from typing import Any

from clipcoco.config.load import load_config, preset_names
from clipcoco.config.messages import closest, expected, suggestion
from clipcoco.config.schema import SECTIONS
from clipcoco.errors import ConfigError

_COMMANDS = {
    "eval": "evaluate evaluation test val validate measure benchmark score",
    "train --preset NAME": "fit run start finetune fine-tune pretrain learn",
    "resume": "continue restart go-on",
    "prepare-data --preset NAME": "prepare download fetch get-data data dataset",
    "inspect-config": "config configs presets show inspect print-config cfg",
    'search "a dog on a sofa"': "predict infer inference query find retrieve",
    "runs": "ls list compare status history",
    "env": "info doctor check checks collect-env",
    "report": "plot plots html page summary",
    "export --format FORMAT --output FOLDER": "convert save onnx",
    "share": "publish send demo-page gradio streamlit serve app web browser",
}
_OPTIONS = {  # an option of ours, where the command has it: what others call it
    "--config": "c cfg config-file config-path conf yaml",
    "--preset": "p recipe",
    "--name": "n run-name exp-name experiment experiment-name project tag",
    "--set": "overrides override opts opt s cfg-options",
    "--device": "gpu gpus num-gpus n-gpus ngpus cuda use-cuda g accelerator devices device-id cpu no-cuda use-cpu",
    "--dry-run": "fast-dev-run dryrun smoke-test check test-run",
    "--plain": "quiet q silent no-progress no-tqdm disable-tqdm no-color",
    "--debug": "v verbose traceback",
    "--version": "v",
    "-k": "topk top-k top n num limit count",
    "--root": "data-dir data dest dir target output-dir output o",
    "--images": "image-dir images-dir image-folder img-dir pictures photos",
    "--val-fraction": "val val-split val-ratio",
    "--embeddings": "save-embeddings output output-file o",
    "--output": "output-dir out-dir out o dest dir save-dir folder",
    "--runs-dir": "output-dir out-dir output out o save-dir log-dir logdir work-dir workdir results-dir logs",
}
_RESUME = "resume resume-from resume-from-checkpoint continue"
_CHECKPOINT = "checkpoint ckpt ckpt-path checkpoint-path load run"
_ANSWERS = {  # a sentence where we have no such option: of these commands, and what others call it
    "Did you mean clipcoco {command} {name}?": f"resume report export share: {_RESUME} {_CHECKPOINT} model name preset",
    "Did you mean clipcoco eval {name}?": "eval: run name preset",
    "Did you mean --checkpoint {run}?": f"eval: {_RESUME} {_CHECKPOINT} model",
    "Did you mean --run {run}?": f"search: {_RESUME} {_CHECKPOINT} model",
    "Did you mean clipcoco inspect-config {name}?": "inspect-config: preset p config c cfg file",
    "To go on with a run: clipcoco resume {run}": f"train: {_RESUME}",
    "To go on with a run: clipcoco resume {run}; a new run with its weights: --init {run}": f"train: {_CHECKPOINT}",
    "Pictures are those of the setting data.root: data.root=FOLDER. It is made of your own by clipcoco "
    "prepare-data --images DIR": "train: images image-dir images-dir image-folder img-dir",
    "Training is counted in epochs: train.epochs=N": "train: steps max-steps num-steps iters max-iters iterations",
    "A run is never overwritten. Take another --name, or go on: "
    "clipcoco resume RUN": "train: overwrite force f exist-ok",
    "Curves are TensorBoard's: tensorboard --logdir runs": "train: wandb use-wandb wandb-project tensorboard tb mlflow",
    "Did you mean clipcoco resume? It takes the newest run": "resume: last latest newest auto",
    "Did you mean clipcoco runs A B?": "runs: compare diff",
}
_SWITCHES = ("--dry-run", "--plain", "--debug", "--version")
_LETTERS = {"b": "train.batch_size", "e": "train.epochs", "j": "data.workers", "w": "data.workers", "a": "arch"}
_WHOLE = {"data": "data.root", "model": "model.vision.backbone"}  # a section's name, where others have an option


def say_usage(error: Any, words: Sequence[str]) -> str:
    """The sentence for a usage error of typer's, which vendors click, so no class to name; `words` were typed."""
    context = error.ctx
    command = context.info_name if context is not None and context.parent is not None else ""
    known = [name for one in context.command.params for name in one.opts] if context is not None else []
    said, hint = " ".join(error.format_message().split()).rstrip("."), None
    if wrong := getattr(error, "option_name", None) if hasattr(error, "possibilities") else None:
        typed, value = _typed(wrong, words)
        said, hint = f"no option {typed} (clipcoco {command})".replace(" )", ")"), _option(typed, value, command, known)
    elif said.startswith("No such command"):
        typed = next((word for word in words if not word.startswith("-")), "-")
        said, hint = f"no command '{typed}' (clipcoco)", _command(typed, list(context.command.commands))
    elif said.startswith("Got unexpected extra argument"):
        stray = next((word for word in reversed(words) if word in preset_names() or "=" in word), "")
        hint = f"Did you mean {'--set' if '=' in stray else '--preset'} {shlex.quote(stray)}?" if stray else None
    elif said.startswith("Missing option") and error.param is not None and error.param.help:
        said += f" ({error.param.help.rstrip('.')})"
    return f"{said}. {hint or f'See clipcoco {command} --help'.replace('  ', ' ')}"


def _typed(wrong: str, words: Sequence[str]) -> tuple[str, str | None]:
    """The option as it was typed, and its value if there was one."""
    for typed, after in zip(words, [*words[1:], "-"], strict=True):
        option, equals, value = typed.partition("=")
        if option == wrong or (not wrong.startswith("--") and option.startswith(wrong)):
            return option, value or (None if equals or after.startswith("-") else after)
    return wrong, None


def _command(typed: str, known: Sequence[str]) -> str | None:
    if typed in preset_names():
        return f"Did you mean clipcoco train --preset {typed}?"
    meant = next(
        (ours for ours, theirs in _COMMANDS.items() if typed.lower().replace("_", "-") in theirs.split()), None
    )
    meant = meant or closest(typed, known, 0.6)
    return f"Did you mean clipcoco {meant}?" if meant else None


def _option(typed: str, value: str | None, command: str, known: Sequence[str]) -> str | None:
    name = typed.lstrip("-").lower().replace("_", "-")
    given = shlex.quote(value) if value else None
    for said, words in _ANSWERS.items():
        commands, theirs = words.split(": ")
        if command in commands.split() and name in theirs.split():
            return said.format(command=command, name=given or "NAME", run=given or "RUN")
    same = closest(f"--{name}", known, 0.85)
    ours = same or next((ours for ours in _OPTIONS if ours in known and name in _OPTIONS[ours].split()), None)
    if ours is None:
        return _setting(name, value, command, known)
    if ours == "--device" != same:
        given = _device(name, value)
    shown = f"{ours} {given}" if given and ours not in _SWITCHES else ours
    also = " It is the folder of all runs; --name NAME is this one's"
    return f"Did you mean {shown}?{also if ours == '--runs-dir' != same and '--name' in known else ''}"


def _device(name: str, value: str | None) -> str:
    if "cpu" in name or name.startswith("no-") or value in ("cpu", "mps"):
        return "cpu" if value != "mps" else "mps"
    return f"cuda:{value}" if value and value.isdecimal() and not name.endswith("s") else "cuda"


def _setting(name: str, value: str | None, command: str, known: Sequence[str]) -> str | None:
    """A setting has the name: what to type for it, with the value where the setting can have that."""
    bare, off = name.removeprefix("no-"), name.startswith("no-")
    key = suggestion(_LETTERS.get(bare, bare))
    key = _WHOLE.get(key or "", key)
    if key is None or "--set" not in known:
        return None
    if key in SECTIONS:
        return f"Its settings are {key}.NAME: clipcoco inspect-config demo shows them"
    what = f"It is the setting {key}"
    if command in ("eval", "search", "export", "share") and not key.startswith("data."):
        return f"{what}, which comes with the checkpoint"
    change = f"{key}={'false' if off else value or 'true'}"
    try:
        load_config("base", overrides=[change])
    except ConfigError:
        return f"{what}: {key}=VALUE, {expected(key)}".replace(", text", ", as imagenet-v1")
    option = f"--{key.rpartition('.')[2].replace('_', '-')}"
    if option in known and value:
        return f"Did you mean {option} {shlex.quote(value)}?"
    return f"{what}: {'--set ' if command in ('search', 'prepare-data') else ''}{shlex.quote(change)}"
