"""docs/recall.md shows how an open_clip user writes a file for `eval --from-embeddings`: its lines, as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipcoco import recall_at_k
from clipcoco.runs.measure import evaluate_embeddings

PAGE = Path(__file__).parents[2] / "docs/recall.md"


@pytest.mark.filterwarnings("ignore")  # of the peer's own imports
def test_the_six_lines_for_open_clip_write_a_file_that_is_measured(tmp_path: Path, monkeypatch) -> None:
    open_clip = pytest.importorskip("open_clip", reason="installed by make test-all")
    [lines] = [
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "np.savez" in block
    ]
    assert len(lines.splitlines()) == 6
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        Image.new("RGB", (40, 32), (60 * number, 255 - 60 * number, 90)).save(f"{number}.png")
    vision = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    model = open_clip.CLIP(32, vision, text).eval()
    pairs = [(f"{number}.png", f"caption {n} of {number}") for n in range(2) for number in (2, 0, 1, 3)]
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    preprocess = open_clip.image_transform(32, is_train=False)
    with torch.enable_grad():  # which ends what the lines set
        exec(lines, {"model": model, "tokenizer": tokenizer, "preprocess": preprocess, "pairs": pairs})
    found = evaluate_embeddings(Path("theirs.npz"), ("own",)).result
    assert (found["images"], found["captions"]) == (4, 8)
    with torch.no_grad():
        pictures = torch.stack([preprocess(Image.open(f"{number}.png")) for number in range(4)])
        images = model.encode_image(pictures, normalize=True)
        texts = model.encode_text(tokenizer([text for _, text in pairs]), normalize=True)
    expected = recall_at_k(images, texts, np.array([2, 0, 1, 3] * 2))
    own = found["protocols"]["own"]
    assert [own["i2t"][f"r{k}"] for k in (1, 5, 10)] == [*expected.i2t.values()]
    assert [own["t2i"][f"r{k}"] for k in (1, 5, 10)] == [*expected.t2i.values()]
