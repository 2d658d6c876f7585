"""SamplingHead's estimate of the softmax in training; eval mode is in the contract."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import sampling
from mhe_fairseq.heads.group_sample import sample_groups, systematic
from mhe_fairseq.heads.sampling import PARTS, VARIANTS, SamplingHead
from tests.heads.oracle import codebooks, features_for, targets_for

DIM = 5
SPREAD = Codebook((4, 4), torch.tensor([0, 1, 2, 6, 5, 14, 9, 10, 11, 8, 15]))  # sizes 3, 2, 4, 2
every_variant = pytest.mark.parametrize("variant", VARIANTS)
#: The contract's tests are of the variant "shared".
the_papers_variants = pytest.mark.parametrize("variant", ["own", "batch"])


def groups_of(book: Codebook) -> Tensor:
    """(V,) first digits, numbered without the empty ones."""
    return book.digits(torch.arange(len(book)))[:, 0].unique(return_inverse=True)[1]


def build(
    book: Codebook, variant: str = "shared", groups: int = 1, seed: int = 1, tied: nn.Embedding | None = None
) -> SamplingHead:
    torch.manual_seed(seed)
    head = SamplingHead(DIM, book, groups=groups, variant=variant, tied=tied).double()
    if tied is None:
        nn.init.normal_(head.table.linear.weight, std=1.0)
    return head


def fix_sample(monkeypatch: pytest.MonkeyPatch, groups: list[int]) -> None:
    """Every part of a batch draws the same groups, counted among those that are not sure."""
    monkeypatch.setattr(sampling, "sample_groups", lambda *_: [torch.tensor(groups).long()] * PARTS)


def samples_of(head: SamplingHead, count: int) -> list[Tensor]:
    """The groups that the rows of a batch are scored on, drawn or sure."""
    sure, drawn = (head.inclusion == 1).nonzero()[:, 0], (head.inclusion < 1).nonzero()[:, 0]
    ends = torch.linspace(0, count, PARTS + 1).long().diff().tolist()
    samples = sample_groups(head.inclusion[drawn], head._generator(), PARTS)
    return [
        torch.cat([sure, drawn[sample]])
        for rows, sample in zip(ends, samples, strict=True)
        for _ in range(rows)
    ]


def dense_estimate(
    head: SamplingHead, x: Tensor, target: Tensor, weight: Tensor, sampled: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """nll and smooth of the training estimate, written out over an N x V table of logits."""
    group = groups_of(head.codebook)
    gold = group[target].unsqueeze(1)
    logits = x @ weight.T
    is_gold = group == gold
    log_weight = torch.full_like(logits, -torch.inf)
    if head.variant == "shared":
        for row, sample in zip(log_weight, sampled, strict=True):
            row[torch.isin(group, sample)] = 0.0
        log_weight = log_weight - head.inclusion.log()[group]
    elif head.variant == "batch":
        log_weight[:, torch.isin(group, gold)] = 0.0
    log_weight = torch.where(is_gold, 0.0, log_weight)
    log_z = (logits + log_weight).logsumexp(dim=1)
    if head.variant == "shared":
        mean = logits.mean(dim=1)
    else:
        scored = log_weight.isfinite()
        mean = (logits * scored).sum(dim=1) / scored.sum(dim=1)
    return log_z - logits.gather(1, target.unsqueeze(1)).squeeze(1), log_z - mean


# ---- evaluation: the plain softmax


@every_variant
def test_eval_mode_is_the_softmax(variant: str) -> None:
    head = build(SPREAD, variant).eval()
    x, target = features_for(7, DIM, torch.float64, 1), targets_for(SPREAD, 7, 1)
    expected = torch.log_softmax(x @ head.table.weight.T, dim=-1)
    picked = expected.gather(1, target.unsqueeze(1)).squeeze(1)
    loss = head(x, target)
    torch.testing.assert_close(loss.nll, -picked)
    torch.testing.assert_close(loss.smooth, -expected.mean(dim=1))
    head.train()
    torch.testing.assert_close(head.log_prob(x, target), picked)
    torch.testing.assert_close(head.log_probs(x), expected)


def test_evaluation_holds_a_few_rows_of_logits_only() -> None:
    book = Codebook((32, 32))
    head = build(book, groups=2).eval()
    largest = Largest()
    with torch.no_grad(), largest:
        head(features_for(4096, DIM, torch.float64, 0), targets_for(book, 4096, 0), accuracy=True)
    assert largest.numel <= 4096 * 1024 / 4


# ---- the sample


def test_frequent_tokens_are_sampled_more_and_the_first_group_always() -> None:
    head = SamplingHead(DIM, Codebook((64, 64)), groups=8)
    assert float(head.inclusion[0]) == 1.0
    assert bool((head.inclusion.diff() <= 0).all())
    # Never so rarely that its weight explodes: at least half of equal chances.
    assert float(head.inclusion[-1]) > 0.5 * 8 / 64 * 0.9


def all_samples(inclusion: Tensor) -> list[tuple[float, list[int]]]:
    """Every outcome of ``sample_groups`` with its probability: all orders, all stretches of the shift."""
    outcomes = []
    orders = list(itertools.permutations(range(len(inclusion))))
    for order in orders:
        ends = inclusion[list(order)].cumsum(0)
        cuts = torch.cat([torch.tensor([0.0, 1.0]).double(), ends - ends.floor()]).sort().values
        for low, high in zip(cuts[:-1], cuts[1:], strict=True):
            if high - low > 1e-12:
                sample = systematic(inclusion, torch.tensor(order), (low + high) / 2)
                outcomes.append((float(high - low) / len(orders), sample.tolist()))
    return outcomes


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_normaliser_is_unbiased(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of Z_hat over all samples, each with its probability, is Z."""
    head = build(SPREAD, groups=groups)
    target = torch.arange(len(SPREAD))
    x = features_for(len(SPREAD), DIM, torch.float64, 3)
    logits = x @ head.table.weight.T
    outcomes = all_samples(head.inclusion[head.inclusion < 1])
    assert math.isclose(sum(p for p, _ in outcomes), 1.0)
    assert len({tuple(s) for _, s in outcomes}) > 1
    mean = torch.zeros(len(target), dtype=torch.float64)
    for probability, sample in outcomes:
        fix_sample(monkeypatch, sample)
        log_z = head(x, target).nll + logits.gather(1, target.unsqueeze(1)).squeeze(1)
        mean += probability * log_z.exp()
    torch.testing.assert_close(mean, logits.exp().sum(dim=1))


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_smoothing_term_has_the_exact_mean_logit(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """smooth - log Z_hat is minus the mean logit of all V tokens, whatever was sampled."""
    head = build(SPREAD, groups=groups)
    target, x = torch.arange(len(SPREAD)), features_for(len(SPREAD), DIM, torch.float64, 3)
    logits = x @ head.table.weight.T
    for _, sample in all_samples(head.inclusion[head.inclusion < 1])[::5]:
        fix_sample(monkeypatch, sample)
        loss = head(x, target)
        log_z = loss.nll + logits.gather(1, target.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(loss.smooth - log_z, -logits.mean(dim=1))


def test_the_sample_depends_on_the_update_only() -> None:
    book = Codebook((16, 8))
    x, target = features_for(6, DIM, torch.float64, 0), targets_for(book, 6, 0)
    one, two = build(book, groups=2), build(book, groups=2)
    losses = []
    for update in range(6):
        one.set_num_updates(update)
        torch.rand(update)  # the global generator plays no part
        losses.append(one(x, target).nll.sum().item())
    two.set_num_updates(4)
    assert two(x, target).nll.sum().item() == losses[4]
    assert len(set(losses)) > 3


# ---- training loss and gradients


@given(
    book=codebooks(max_vocab=200, min_heads=2),
    variant=st.sampled_from(VARIANTS),
    count=st.sampled_from([0, 1, 2, 9, 37]),
    smoothing=st.booleans(),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_training_estimate_and_gradients_are_the_dense_ones(
    book: Codebook, variant: str, count: int, smoothing: bool, seed: int, data: st.DataObject
) -> None:
    number = len(groups_of(book).unique())
    assume(variant != "shared" or number > 1)
    head = build(book, variant, data.draw(st.integers(1, max(1, number - 1))), seed)
    head.set_num_updates(seed)
    sampled = samples_of(head, count) if variant == "shared" else []
    target = targets_for(book, count, seed)
    scale = torch.arange(1.0, count + 1, dtype=torch.float64)

    def total(nll: Tensor, smooth: Tensor | None) -> Tensor:
        return (nll * scale).sum() + (0.0 if smooth is None else 0.3 * (smooth * scale).sum())

    x = features_for(count, DIM, torch.float64, seed).requires_grad_()
    loss = head(x, target, smoothing=smoothing, accuracy=True)
    weight, y = head.table.weight.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    nll, smooth = dense_estimate(head, y, target, weight, sampled)
    torch.testing.assert_close(loss.nll, nll)
    torch.testing.assert_close(loss.stats["sampled_nll"], nll.detach())
    assert (loss.smooth is None) is not smoothing
    if smoothing:
        torch.testing.assert_close(loss.smooth, smooth)
    total(loss.nll, loss.smooth).backward()
    total(nll, smooth if smoothing else None).backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(head.table.linear.weight.grad, weight.grad, atol=1e-9, rtol=1e-7)


@the_papers_variants
def test_gradients_by_finite_differences(variant: str) -> None:
    head = build(SPREAD, variant, groups=2)
    head.set_num_updates(3)
    target = torch.tensor([0, 5, 9, 9])

    def loss(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.func.functional_call(head, {"table.linear.weight": weight}, (x, target))
        return out.nll, out.smooth

    x = features_for(4, DIM, torch.float64, 0).requires_grad_()
    weight = head.table.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (x, weight))


@the_papers_variants
def test_every_parameter_gets_a_gradient_even_from_no_tokens(variant: str) -> None:
    head = build(SPREAD, variant)
    x = torch.zeros(0, DIM, dtype=torch.float64, requires_grad=True)
    loss = head(x, torch.zeros(0, dtype=torch.long), accuracy=True)
    (loss.nll.sum() + loss.smooth.sum()).backward()
    for parameter in head.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


@every_variant
def test_sampled_accuracy_is_of_the_scored_tokens(variant: str) -> None:
    head = build(SPREAD, variant)
    x = features_for(40, DIM, torch.float64, 1)
    best = head.log_probs(x).argmax(dim=-1)
    # The best of all tokens is the best of any of them.
    assert head(x, best, accuracy=True).stats["sampled_accuracy"].eq(1).all()
    worst = head.log_probs(x).argmin(dim=-1)
    assert head(x, worst, accuracy=True).stats["sampled_accuracy"].eq(0).all()
    assert "accuracy" in head.eval()(x, best, accuracy=True).stats


@every_variant
def test_it_learns_what_the_softmax_learns(variant: str) -> None:
    """A deterministic successor for every token: soon certain, in the exact evaluation too."""
    book = Codebook((8, 8), vocab_size=60)
    torch.manual_seed(0)
    table = nn.Embedding(60, 16)
    head = SamplingHead(16, book, groups=2, variant=variant)
    optimiser = torch.optim.Adam([*table.parameters(), *head.parameters()], lr=0.05)
    tokens = torch.arange(60)
    for update in range(150):
        head.set_num_updates(update)
        loss = head(table(tokens), (tokens * 7 + 3) % 60).nll.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    exact = head.eval()(table(tokens), (tokens * 7 + 3) % 60).nll.mean().item()
    # The own group alone is not told apart from the others, by design: it trains features, not a classifier.
    assert exact < 0.1 or variant == "own"


# ---- cost


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor made, and how many tensors were made of at least ``count_from``."""

    def __init__(self, count_from: int = 1 << 60) -> None:
        super().__init__()
        self.numel, self.count, self.count_from = 0, 0, count_from
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and not func.is_view:
                storage = tensor.untyped_storage()
                self.numel = max(self.numel, storage.nbytes() // tensor.element_size())
                if tensor.numel() >= self.count_from and not func._schema.name.endswith("_"):
                    self.count += 1
        return out


def test_a_step_makes_no_table_of_logits_and_one_gradient_of_the_weights() -> None:
    book = Codebook((64, 64), torch.randperm(4096, generator=torch.Generator().manual_seed(0)))
    head = SamplingHead(16, book, groups=4)
    head.set_num_updates(1)
    x = features_for(2048, 16, torch.float32, 0).requires_grad_()
    target = targets_for(book, 2048, 0)
    largest = Largest(count_from=4096 * 16)
    with largest:
        loss = head(x, target)
        (loss.nll.sum() + 0.1 * loss.smooth.sum()).backward()
    # The shared logits are N x G x 64; the table would be N x 4096.
    assert largest.numel <= 2048 * 4 * 64
    made = Largest(count_from=4096 * 16)
    narrow = features_for(64, 16, torch.float32, 0).requires_grad_()
    with made:
        loss = head(narrow, target[:64])
        (loss.nll.sum() + 0.1 * loss.smooth.sum()).backward()
    assert made.count <= 2, "a V x d tensor for each group?"


# ---- tied, dtypes, state


def test_tied_is_the_same_as_untied_with_the_same_weights() -> None:
    embedding = nn.Embedding(len(SPREAD), DIM, padding_idx=1).double()
    tied, own = build(SPREAD, groups=2, tied=embedding), build(SPREAD, groups=2)
    with torch.no_grad():
        own.table.linear.weight.copy_(embedding.weight)
    target, x = torch.arange(len(SPREAD)), features_for(len(SPREAD), DIM, torch.float64, 1)
    for head in (tied, own):
        head.set_num_updates(5)
        loss = head(x, target)
        (loss.nll.sum() + 0.1 * loss.smooth.sum()).backward()
    torch.testing.assert_close(embedding.weight.grad, own.table.linear.weight.grad)
    torch.testing.assert_close(tied(x, target).nll, own(x, target).nll)
    torch.testing.assert_close(tied.log_probs(x), own.log_probs(x))
    assert list(tied.state_dict()) == ["codebook_slots", "codebook_lengths"] and not list(tied.parameters())
    assert tied.output_parameters() == 0 and own.output_parameters() == len(SPREAD) * DIM


def test_a_tied_head_follows_the_embedding_of_its_model() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(len(SPREAD), DIM)
            self.head = SamplingHead(DIM, SPREAD, groups=2, tied=self.embedding)

    model = Model()
    assert sorted(model.state_dict()) == [
        "embedding.weight",
        "head.codebook_lengths",
        "head.codebook_slots",
    ]
    copied = copy.deepcopy(model).double()
    with torch.no_grad():
        copied.embedding.weight.zero_()
    x = features_for(2, DIM, torch.float64, 0)
    uniform = torch.full((2, len(SPREAD)), -math.log(len(SPREAD)), dtype=torch.float64)
    torch.testing.assert_close(copied.head.log_probs(x), uniform)
    assert not torch.allclose(model.head.log_probs(x.float()).double(), uniform)


@the_papers_variants
def test_half_precision_is_close_and_arithmetic_is_single(variant: str) -> None:
    exact = build(SPREAD, variant, groups=2)
    half = copy.deepcopy(exact).to(torch.bfloat16)
    target, x = torch.arange(len(SPREAD)), features_for(len(SPREAD), DIM, torch.float64, 1)
    losses = []
    for head, features in ((exact, x), (half, x.bfloat16())):
        head.set_num_updates(2)
        loss = head(features, target)
        loss.nll.sum().backward()
        losses.append(loss)
    assert losses[1].nll.dtype == losses[1].smooth.dtype == torch.float32
    torch.testing.assert_close(losses[1].nll.double(), losses[0].nll, atol=0.1, rtol=0.05)
    torch.testing.assert_close(losses[1].smooth.double(), losses[0].smooth, atol=0.1, rtol=0.05)
    weight = half.table.linear.weight
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(weight.grad.double(), exact.table.linear.weight.grad, atol=0.1, rtol=0.1)


def test_autocast() -> None:
    head = build(SPREAD, groups=2).float()
    head.set_num_updates(2)
    target, x = torch.arange(len(SPREAD)), features_for(len(SPREAD), DIM, torch.float32, 1)
    plain = head(x, target).nll
    for features in (x, x.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            nll = head(features, target).nll
        nll.sum().backward()
        assert nll.dtype == torch.float32
        torch.testing.assert_close(nll, plain, atol=0.1, rtol=0.05)


def test_an_adopted_codebook_changes_the_groups() -> None:
    shuffled = Codebook((4, 4), torch.randperm(16, generator=torch.Generator().manual_seed(1))[:11])
    trained, fresh = build(shuffled, groups=2, seed=1), build(Codebook((4, 4), vocab_size=11), seed=2)
    fresh.adopt_codebook = True
    fresh.groups = 2
    fresh.load_state_dict(trained.state_dict())
    x, target = features_for(6, DIM, torch.float64, 0), targets_for(shuffled, 6, 0)
    for head in (trained, fresh):
        head.set_num_updates(7)
    torch.testing.assert_close(fresh(x, target).nll, trained(x, target).nll)


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 0}, r"groups must be 1\.\.3, got 0"),
        ({"groups": 4}, r"groups must be 1\.\.3, got 4"),
        ({"groups": -1}, r"groups must be 1\.\.3, got -1"),
        ({"variant": "union"}, "one of shared, own, batch; got 'union'"),
        ({"groups": 1, "tied": nn.Embedding(10, DIM)}, r"cannot be tied to an embedding of \(10, 5\)"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(MHEError, match=message):
        SamplingHead(DIM, SPREAD, **arguments)  # type: ignore[arg-type]


def test_one_digit_or_one_group_is_refused() -> None:
    with pytest.raises(MHEError, match="two lengths such as 128,256; got one length, 11"):
        SamplingHead(DIM, Codebook((11,)), groups=1)
    with pytest.raises(MHEError, match="at least two groups of tokens, the codebook has 1"):
        SamplingHead(DIM, Codebook((1, 11)), groups=1)
    # The groups that are empty do not count.
    with pytest.raises(MHEError, match=r"groups must be 1\.\.1, got 2"):
        SamplingHead(DIM, Codebook((4, 4), torch.tensor([0, 1, 2, 12])), groups=2)
    for variant in ("own", "batch"):
        SamplingHead(DIM, Codebook((2, 8)), variant=variant)  # groups play no part


@pytest.mark.parametrize(
    ("lengths", "drawn"),
    # An eighth of the tokens; 2,048 where that is less; 8,192 where it is more; all groups but one.
    [((128, 256), 16), ((1024, 64), 128), ((64, 128), 16), ((512, 512), 16), ((16, 8), 15), ((2, 8), 1)],
)
def test_groups_that_are_drawn_by_default(lengths: tuple[int, int], drawn: int) -> None:
    assert SamplingHead(DIM, Codebook(lengths)).groups == drawn
