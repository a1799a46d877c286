import math
from pathlib import Path

import pytest
import torch
import torchvision

from clipcoco.config.backbones import BACKBONES
from clipcoco.config.derive import count_parameters
from clipcoco.config.load import load_config
from clipcoco.config.schema import ModelConfig
from clipcoco.data.loader import Batch
from clipcoco.engine.model import build
from clipcoco.engine.weights import file_sha256, pretrained_backbone, read_weights
from clipcoco.errors import CheckpointError, EnvironmentProblem
from conftest import TOY


def toy(*changes: str) -> ModelConfig:
    return load_config("demo", overrides=[*TOY, *changes]).config.model


def random_images(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def captions(*rows: list[int], length: int = 16) -> torch.Tensor:
    return torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int32)


def batch_of(images: torch.Tensor, tokens: torch.Tensor) -> Batch:
    return Batch(images, None, tokens, torch.arange(len(images)), ())


def test_embeddings_are_float32_unit_vectors_of_the_shared_space():
    model = build(toy(), 300).eval()
    images, texts, temperature = model(batch_of(random_images(3), captions([1, 7, 2], [1, 9, 8, 2], [1, 2])))
    assert images.shape == texts.shape == (3, 16)
    assert images.dtype == texts.dtype == torch.float32
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
    assert temperature.item() == pytest.approx(0.07)


def test_bfloat16_autocast_still_gives_float32_embeddings():
    model = build(toy(), 300).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images, texts, _ = model(batch_of(random_images(2), captions([1, 7, 2], [1, 9, 8, 2])))
    assert images.dtype == texts.dtype == torch.float32


@pytest.mark.parametrize("tower", [("pool=mean", "layers=1"), ("pool=mean", "layers=0"), ("pool=end", "layers=1")])
def test_what_stands_behind_the_end_token_changes_nothing(tower):
    model = build(toy(*(f"model.text.{change}" for change in tower)), 300).eval()
    short = captions([1, 7, 8, 2], length=8)
    padded = captions([1, 7, 8, 2], length=16)
    rubbish = captions([1, 7, 8, 2, 55, 66, 77], length=16)
    embeddings = [model.encode_texts(tokens) for tokens in (short, padded, rubbish)]
    torch.testing.assert_close(embeddings[0], embeddings[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(embeddings[1], embeddings[2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("layers", [0, 2])
def test_the_mean_is_one_more_block_with_uniform_attention(layers):
    shallow = build(toy(f"model.text.layers={layers}", "model.text.pool=mean"), 300).eval()
    deep = build(toy(f"model.text.layers={layers + 1}", "model.text.pool=end"), 300).eval()
    for parameter in shallow.text.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    deep.text.load_state_dict(shallow.text.state_dict(), strict=False)
    last, width = deep.text.transformer["resblocks"][-1], 32
    with torch.no_grad():
        if not layers:
            deep.text.positional_embedding.zero_()
        deep.text.token_embedding.weight *= (
            math.sqrt(width) if layers else 1
        )  # as the blocks of the shallow one read it
        last.ln_1.load_state_dict(shallow.text.ln_mean.state_dict())
        for parameter in (*last.attn.parameters(), *last.mlp.parameters()):
            parameter.zero_()
        last.attn.in_proj_weight[2 * width :] = torch.eye(width)
        last.attn.out_proj.weight.copy_(torch.eye(width))
    tokens = captions([1, 7, 8, 9, 10, 2], [1, 2], [1, 5, 5, 2])
    torch.testing.assert_close(shallow.encode_texts(tokens), deep.encode_texts(tokens), rtol=0, atol=1e-6)


def test_read_out_by_the_mean_a_deep_tower_starts_as_its_own_bag_of_words():
    torch.manual_seed(0)
    deep = build(toy("model.text.layers=3", "model.text.pool=mean"), 300).eval()
    bag = build(toy("model.text.layers=0", "model.text.pool=mean"), 300).eval()
    with torch.no_grad():
        deep.text.positional_embedding.zero_()
    bag.text.load_state_dict(deep.text.state_dict(), strict=False)
    bag.text.embedding_scale = deep.text.embedding_scale
    tokens = captions([1, 7, 8, 9, 10, 2], [1, 5, 5, 2])
    torch.testing.assert_close(deep.encode_texts(tokens), bag.encode_texts(tokens), rtol=0, atol=1e-6)
    # and it leaves that start at once: after the branches' outputs, keys and values get their gradient
    for steps in range(2):
        deep.zero_grad()
        deep.encode_texts(tokens)[0, 0].backward()
        block = deep.text.transformer["resblocks"][0]
        moved = [block.attn.out_proj.weight, block.mlp.c_proj.weight, *([block.attn.in_proj_weight] if steps else [])]
        assert all(parameter.grad.abs().sum() > 0 for parameter in moved)
        with torch.no_grad():
            for parameter in deep.text.parameters():
                parameter -= 0.1 * parameter.grad


def test_a_tower_without_layers_is_blind_to_order_and_one_with_layers_is_not():
    for layers, blind in ((0, True), (2, False)):
        model = build(toy(f"model.text.layers={layers}"), 300).eval()
        for parameter in model.text.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        one, other = model.encode_texts(captions([1, 7, 8, 9, 2], [1, 9, 7, 8, 2]))
        assert torch.allclose(one, other, atol=1e-6) == blind


def test_training_encodes_captions_by_length_and_gives_what_encode_texts_gives():
    model = build(toy("model.text.dropout=0"), 300)
    rows = torch.randint(3, 300, (100, 14)).tolist()
    tokens = captions(*([1, *row[: 1 + number * 7 % 14], 2] for number, row in enumerate(rows)))
    weights = torch.rand(100, 16)
    images, gradients = random_images(100), []
    for texts in (model(batch_of(images, tokens))[1], model.encode_texts(tokens)):
        gradients.append(torch.autograd.grad((texts * weights).sum(), list(model.text.parameters())))
    for grouped, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(grouped, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(batch_of(images, tokens))[1], model.encode_texts(tokens), rtol=0, atol=1e-6)


def test_every_token_before_the_end_token_matters():
    model = build(toy(), 300).eval()
    before, after = model.encode_texts(captions([1, 7, 8, 9, 2], [1, 5, 8, 9, 2]))
    assert (before - after).abs().max() > 1e-3


def test_the_temperature_is_clamped_at_a_hundredth():
    model = build(toy(), 300)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    model.clamp_temperature()
    assert model.logit_scale.item() == pytest.approx(math.log(100))


def test_a_fixed_temperature_is_not_trained():
    model = build(toy("model.learn_temperature=false"), 300)
    assert not model.logit_scale.requires_grad


@pytest.mark.parametrize("name", [*sorted(BACKBONES), "demo", "base"])
def test_the_parameter_count_of_inspect_config_is_the_models(name):
    config = toy(f"model.vision.backbone={name}") if name in BACKBONES else load_config(name).config.model
    with torch.device("meta"):
        model = build(config, 700)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config, 700)


def test_a_pretrained_backbone_keeps_its_batchnorm_still():
    still, moving = build(toy("model.vision.weights=imagenet-v1"), 300), build(toy(), 300)
    for model in (still, moving):
        model.train()
        model(batch_of(random_images(4), captions(*[[1, 7, 2]] * 4)))
    assert still.visual.trunk.bn1.running_mean.abs().max() == 0
    assert moving.visual.trunk.bn1.running_mean.abs().max() > 0


class TestWeights:
    @pytest.fixture
    def donor(self):
        return torchvision.models.resnet18().state_dict()

    def save(self, tmp_path, state):
        path = tmp_path / "weights.pt"
        torch.save(state, path)
        return toy(f"model.vision.weights={path}").vision

    def test_none_gives_none(self):
        assert pretrained_backbone(toy().vision) is None

    def test_a_torchvision_file_is_taken_without_its_classifier(self, tmp_path, donor):
        state = pretrained_backbone(self.save(tmp_path, donor))
        assert "fc.weight" not in state
        model = build(toy(), 300)
        model.visual.trunk.load_state_dict(state)
        torch.testing.assert_close(model.visual.trunk.layer4[1].conv2.weight, donor["layer4.1.conv2.weight"])

    def test_a_file_from_before_batchnorm_counted_is_taken(self, tmp_path, donor):
        old = {name: value for name, value in donor.items() if not name.endswith("num_batches_tracked")}
        model = build(toy(), 300)
        model.visual.trunk.load_state_dict(pretrained_backbone(self.save(tmp_path, old)))
        torch.testing.assert_close(model.visual.trunk.conv1.weight, donor["conv1.weight"])
        assert model.visual.trunk.bn1.num_batches_tracked == 0

    def test_another_backbone_is_refused(self, tmp_path):
        vision = self.save(tmp_path, torchvision.models.resnet34().state_dict())
        with pytest.raises(CheckpointError, match="holds no resnet18 weights"):
            pretrained_backbone(vision)

    @pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut off"])
    def test_other_files_are_refused(self, tmp_path, content):
        path = tmp_path / "weights.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="weights"):
            pretrained_backbone(toy(f"model.vision.weights={path}").vision)

    def test_published_weights_are_those_of_the_published_sum(self, tmp_path, donor, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.value
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        torch.save(donor, folder / entry.url.rsplit("/", 1)[1])
        vision = toy("model.vision.weights=imagenet-v1").vision
        with pytest.raises(CheckpointError, match=r"begins with .*, not f37072fd.*Remove it"):
            pretrained_backbone(vision)
        digits = file_sha256(folder / "resnet18-f37072fd.pth")[:8]
        (folder / "resnet18-f37072fd.pth").rename(folder / f"resnet18-{digits}.pth")
        monkeypatch.setattr(entry, "url", f"https://nowhere/resnet18-{digits}.pth")
        torch.testing.assert_close(pretrained_backbone(vision)["conv1.weight"], donor["conv1.weight"])

    def test_a_flipped_bit_is_seen(self, tmp_path, donor):
        vision = self.save(tmp_path, donor)
        path = Path(vision.weights)
        whole = path.read_bytes()
        for place in range(100_000, len(whole), len(whole) // 5):
            flipped = bytearray(whole)
            flipped[place] ^= 4
            path.write_bytes(flipped)
            with pytest.raises(CheckpointError, match="damaged"):
                pretrained_backbone(vision)

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("conv1.weight", float("nan"), "not finite"),
            ("bn1.running_var", -1.0, "negative"),
            ("bn1.bias", float("-inf"), "not finite"),
        ],
    )
    def test_weights_of_no_use_are_refused(self, tmp_path, donor, name, value, said):
        donor[name].fill_(value)
        with pytest.raises(CheckpointError, match=f"{name} is {said}"):
            pretrained_backbone(self.save(tmp_path, donor))

    def test_a_file_of_torchs_old_kind_has_no_sums_and_says_so(self, tmp_path, donor):
        vision = self.save(tmp_path, donor)
        assert read_weights(vision).checked == "whole by its own sums"
        torch.save(donor, vision.weights, _use_new_zipfile_serialization=False)
        assert "without sums" in read_weights(vision).checked
        assert pretrained_backbone(vision).keys() <= donor.keys()

    def test_without_network_the_error_names_both_ways_out(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
        with pytest.raises(EnvironmentProblem) as error:
            pretrained_backbone(toy("model.vision.weights=imagenet-v1").vision)
        assert str(tmp_path / "hub" / "checkpoints" / "resnet18-") in str(error.value)
        assert "--set model.vision.weights=none" in str(error.value)
