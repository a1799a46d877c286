"""The towers are those of open_clip and timm, name by name, so that an export is a copy."""

import pytest
import torch

from clipcoco.data.tokenizer import END, PAD
from clipcoco.engine.model import build
from test_model import captions, toy

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")  # of the peers' own imports
def test_the_text_tower_gives_the_same_embeddings_in_open_clip():
    transformer = pytest.importorskip("open_clip.transformer", reason="installed by make test-all")
    torch.manual_seed(0)
    tower = ("layers=3", "width=64", "heads=4", "context_length=32", "pool=end")
    config = toy(*(f"model.text.{setting}" for setting in tower))
    ours = build(config, 300).eval().text
    theirs = transformer.TextTransformer(
        context_length=32,
        vocab_size=300,
        width=64,
        heads=4,
        layers=3,
        output_dim=16,
        pool_type="eos",
        eos_id=END,
        pad_id=PAD,
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    rows = [[1, *torch.randint(3, 300, (n,)).tolist(), END] for n in (1, 5, 12, 30)]
    tokens = captions(*rows, length=32)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens.long()), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_the_image_tower_gives_the_same_features_in_timm(backbone):
    timm = pytest.importorskip("timm", reason="installed by make test-all")
    torch.manual_seed(0)
    ours = build(toy(f"model.vision.backbone={backbone}"), 300).eval().visual.trunk
    theirs = timm.create_model(backbone, pretrained=False, num_classes=0).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)
