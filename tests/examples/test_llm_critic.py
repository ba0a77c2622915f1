"""A critic over padded tokens learns, and padding is nothing to it, even full of NaN."""

import torch

import levelhead as lh


def test_it_learns_and_padding_moves_nothing(example):
    outcome = example("llm_critic").run(steps=60, scale=1000.0)
    assert outcome.explained > 0.6
    assert outcome.changed_by_padding < 1e-6
    assert 4500 < outcome.mean < 5700
    assert 250 < outcome.std < 550


def test_what_stands_in_the_padding_reaches_neither_statistics_nor_loss_nor_gradient(example):
    llm = example("llm_critic")
    torch.manual_seed(0)
    batch, seen = llm.draw(1000 * torch.randn(llm.VOCABULARY)), []
    hidden = llm.Trunk().bfloat16()(batch.tokens).detach()
    assert hidden.dtype == torch.bfloat16
    assert batch.targets[~batch.mask].isnan().all()
    for filler in (torch.nan, 0.0, 1e9):
        head = lh.PopArtValueHead(llm.HIDDEN)
        targets = batch.targets.where(batch.mask, filler)
        head.observe(targets, mask=batch.mask)
        loss = llm.loss_over_tokens(head, hidden, targets, batch.mask)
        seen.append((head.mean, head.std, loss, *torch.autograd.grad(loss, list(head.parameters()))))
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_the_loss_is_the_mean_over_tokens_alone(example):
    llm = example("llm_critic")
    head, mask = lh.LinearValueHead(4), torch.tensor([[True, False, False, False]])
    loss = llm.loss_over_tokens(head, torch.ones(1, 4, 4), torch.full((1, 4), 3.0), mask)
    assert loss.item() == 9.0  # of the one token, whose value is 0
