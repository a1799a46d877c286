import math

import torch
import torch.nn.functional as F

from clipcoco.engine.loss import LOSSES

infonce = LOSSES["infonce"].of


def literal_loss(images, texts, temperature):
    """The definition, one pair at a time."""
    size, total = len(images), 0.0
    for own in range(size):
        for queries, gallery in ((images, texts), (texts, images)):
            scores = [torch.dot(queries[own], gallery[other]) / temperature for other in range(size)]
            total = total - scores[own] + torch.stack(scores).exp().sum().log()
    return total / (2 * size)


def leaves(seed=0, size=5):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(size, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    made.append(torch.tensor(0.07, dtype=torch.float64))
    return [leaf.requires_grad_() for leaf in made]


def test_loss_and_gradients_equal_the_literal_double_loop():
    results = []
    for loss_of in (infonce, literal_loss):
        images, texts, temperature = leaves()
        loss = loss_of(F.normalize(images, dim=1), F.normalize(texts, dim=1), temperature)
        loss.backward()
        results.append([loss.detach(), images.grad, texts.grad, temperature.grad])
    for ours, literal in zip(*results, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-12, atol=1e-12)


def test_a_model_that_knows_nothing_is_at_chance():
    same = F.normalize(torch.ones(64, 8), dim=1)
    assert math.isclose(infonce(same, same, torch.tensor(0.07)), math.log(64), rel_tol=1e-6)


def test_matching_pairs_cost_nearly_nothing():
    pairs = torch.eye(8)
    assert infonce(pairs, pairs, torch.tensor(0.01)) < 1e-6
