"""The training step equals a dense one in float64; its state, metrics and errors."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from sae import SAE, UserError
from sae.autoencoder.losses import FVU, L0, L1, MSE, AuxK
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import JumpReLU, TopK
from sae.training import Learner, OptimConfig
from sae.training.cuda_graph import GraphedStep
from sae.training.step import DeadLatents
from sae_kernels import reference
from sae_kernels.codes import Codes

D_IN, D_SAE, K = 10, 37, 4
OPTIM = OptimConfig(lr=3e-3, warmup=0.3, decay=0.3)


def learner(*, dtype=torch.float64, dead_after=96, k_aux=3, refresh_steps=1, total=20) -> Learner:
    sae = SAE(D_IN, TopK(d_sae=D_SAE, k=K), site=Autoencoder(hook="h"), seed=1, dtype=dtype)
    return Learner(
        sae,
        [FVU(), AuxK(coefficient=0.5, k_aux=k_aux)],
        OPTIM,
        total_steps=total,
        dead_after=dead_after,
        refresh_steps=refresh_steps,
    )


def batches(n: int, dtype=torch.float64) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    # Low-rank data off the origin: some latents never fire on it, so AuxK has dead latents.
    mixing = torch.randn(3, D_IN, generator=generator, dtype=torch.float64)
    draw = lambda: torch.randn(32, 3, generator=generator, dtype=torch.float64) @ mixing + 2.0
    return [{"h": draw().to(dtype)} for _ in range(n)]


class DenseTwin:
    """The same training with dense autograd over [batch, d_sae] and torch.optim.Adam."""

    def __init__(self, sae: SAE, scale: float, shift: torch.Tensor) -> None:
        self.scale, self.shift = scale, shift
        self.p = {n: v.detach().clone().requires_grad_() for n, v in sae.named_parameters()}
        self.adam = torch.optim.Adam(self.p.values(), lr=OPTIM.lr)
        self.silent_for = torch.zeros(D_SAE, dtype=torch.int64)

    def loss(self, x: torch.Tensor, *, dead_after: int, k_aux: int) -> torch.Tensor:
        p = self.p
        pre_acts = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
        top = pre_acts.topk(K, dim=1)
        acts = torch.zeros_like(pre_acts).scatter(1, top.indices, top.values.relu())
        x_hat = acts @ p["W_dec"] + p["b_dec"]
        self.acts = acts.detach()
        loss = (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
        dead = self.silent_for >= dead_after
        self.dead = int(dead.sum())
        if self.dead:
            e = (x - x_hat).detach()
            masked = pre_acts.relu().masked_fill(~dead, 0.0)
            top = masked.topk(k_aux, dim=1)
            e_hat = torch.zeros_like(masked).scatter(1, top.indices, top.values) @ p["W_dec"]
            aux = (e - e_hat).pow(2).sum() / (e - e.mean(0)).pow(2).sum()
            loss = loss + 0.5 * min(self.dead / k_aux, 1) * aux
        return loss

    def step(self, x: torch.Tensor, lr: float, clip_norm: float | None, **kw) -> float:
        x = x * self.scale + self.shift
        loss = self.loss(x, **kw)
        self.adam.zero_grad()
        loss.backward()
        if clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.p.values(), clip_norm)
            assert norm > clip_norm, "the gradient must be clipped"
        W, g = self.p["W_dec"], self.p["W_dec"].grad
        with torch.no_grad():
            g -= (g * W).sum(1, keepdim=True) / W.pow(2).sum(1, keepdim=True) * W
            self.adam.param_groups[0]["lr"] = lr
            self.adam.step()
            W /= W.norm(dim=1, keepdim=True)
            self.silent_for += len(x)
            self.silent_for[self.acts.gt(0).any(0)] = 0
        return loss.item()


@pytest.mark.parametrize("clip_norm", [None, 0.05], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("k_aux", [3, 30], ids=["more-dead-than-k_aux", "fewer-dead-than-k_aux"])
def test_step_equals_dense_training(k_aux, clip_norm):
    ours = learner(k_aux=k_aux)
    ours.optimizer.clip_norm = clip_norm
    data = batches(12)
    ours.initialise(data[0])
    twin = DenseTwin(ours.sae, ours.scale["h"], ours.shifts()["h"])
    deaths = []
    for batch in data:
        loss = twin.step(batch["h"], _lr(ours), clip_norm, dead_after=96, k_aux=k_aux)
        ours.step(batch)
        deaths.append(twin.dead)
        assert ours.pop_metrics()["loss"] == pytest.approx(loss, rel=1e-9)
        for name, value in ours.sae.named_parameters():
            torch.testing.assert_close(value.detach(), twin.p[name].detach(), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(ours.dead.tokens_since_fired, twin.silent_for)
    assert max(deaths) > 3, "latents must die, or the test does not check AuxK"


def _lr(ours: Learner) -> float:
    from sae.training.optim_config import warmup_decay

    return OPTIM.lr * warmup_decay(ours.steps, 20, warmup=OPTIM.warmup, decay=OPTIM.decay)


def test_auxk_has_gradients_for_dead_latents_only():
    ours = learner()
    data = batches(2)
    ours.initialise(data[0])
    ours.dead.tokens_since_fired[:5] = 1000
    ours.dead.tokens_since_fired[4] = 0  # on the list, but it has fired since
    ours.dead.dead_list = torch.arange(5)
    forward, _ = ours(data[1])
    AuxK(k_aux=3)(forward).backward()
    for name, weight in (("W_enc", ours.sae.W_enc.t()), ("W_dec", ours.sae.W_dec)):
        parts = getattr(ours.sae, name).row_grads
        grad = reference.dense_gradient(weight.shape, None, parts)
        moved = grad.abs().sum(1) > 0
        assert moved[:4].any(), f"AuxK must reach {name}"
        assert not moved[4:].any(), f"AuxK must not change {name} of live latents"
    assert ours.sae.b_enc.grad[:4].abs().sum() > 0


def test_decoder_rows_keep_norm_one():
    ours = learner(dtype=torch.float32)
    data = batches(5, torch.float32)
    ours.initialise(data[0])
    for batch in data:
        ours.step(batch)
    torch.testing.assert_close(ours.sae.W_dec.norm(dim=1), torch.ones(D_SAE), rtol=1e-6, atol=1e-6)


def test_scaled_activations_have_their_center_at_zero_and_mean_norm_sqrt_width():
    ours = learner()
    data = batches(1)[0]
    ours.initialise(data)
    x, _ = ours.scaled_pair(data)
    assert x.norm(dim=1).mean().item() == pytest.approx(math.sqrt(D_IN))
    # At the geometric median the directions to all rows add up to 0.
    assert (x / x.norm(dim=1, keepdim=True)).mean(0).norm() < 1e-5
    assert not ours.sae.b_dec.any() and not ours.sae.b_enc.any()


@pytest.mark.parametrize("offset", [0.0, 5.0, 1e4])
def test_scale_and_shift_by_hand(offset):
    rows = torch.full((1, D_IN), offset, dtype=torch.float64).repeat(4, 1)
    rows[0, 0] += 3
    rows[1, 0] -= 3
    rows[2, 1] += 5
    rows[3, 1] -= 5  # the center is `offset`, and the distances to it are 3, 3, 5, 5
    ours = learner()
    ours.initialise({"h": rows})
    assert ours.scale["h"] == pytest.approx(math.sqrt(D_IN) / 4, rel=1e-12)
    expected = torch.full((D_IN,), -offset * math.sqrt(D_IN) / 4, dtype=torch.float64)
    torch.testing.assert_close(ours.shifts()["h"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "message"), [(0.0, "all zero.*h"), (0.3, "all rows.* of h are the same")]
)
def test_initialise_refuses_activations_that_do_not_differ(value, message):
    with pytest.raises(UserError, match=message):
        learner().initialise({"h": torch.full((9, D_IN), value, dtype=torch.float64)})


def test_one_row_is_enough_for_the_scale():
    ours = learner()
    ours.initialise({"h": torch.full((1, D_IN), 0.3, dtype=torch.float64)})
    assert ours.scale["h"] == pytest.approx(1 / 0.3)


def test_export_reconstructs_raw_activations():
    ours = learner()
    data = batches(6)
    ours.initialise(data[0])
    for batch in data:
        ours.step(batch)
    x = data[0]["h"]
    scale, shift = ours.scale["h"], ours.shifts()["h"]
    torch.testing.assert_close(ours.export()(x), (ours.sae(x * scale + shift) - shift) / scale)


def test_resumed_learner_continues_with_the_same_bits():
    data = batches(12, torch.float32)
    straight = learner(dtype=torch.float32, refresh_steps=4)
    straight.initialise(data[0])
    logged = []
    for i, batch in enumerate(data):
        straight.step(batch)
        if i == 6:  # between two refreshes and between two logs
            saved = copy.deepcopy(straight.state_dict())
            moments = copy.deepcopy(straight.optimizer.state_dict())
        if i % 5 == 4:
            logged.append(straight.pop_metrics())

    resumed = learner(dtype=torch.float32, refresh_steps=4)
    resumed.load_state_dict(saved)
    resumed.optimizer.load_state_dict(moments)
    assert resumed.steps == 7 and resumed.tokens == 7 * 32
    for i in range(7, 12):
        resumed.step(data[i])
        if i % 5 == 4:
            assert resumed.pop_metrics() == logged[-1]
    for name, value in straight.state_dict().items():
        if torch.is_tensor(value):
            assert torch.equal(value, resumed.state_dict()[name]), name


def test_logging_does_not_change_training():
    data = batches(8, torch.float32)
    plain, logging = learner(dtype=torch.float32), learner(dtype=torch.float32)
    for ours in (plain, logging):
        ours.initialise(data[0])
        for batch in data:
            ours.step(batch)
            if ours is logging:
                ours.pop_metrics()
                ours.pop_metrics()
    for (name, a), b in zip(
        plain.sae.state_dict().items(), logging.sae.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert torch.equal(plain.dead.tokens_since_fired, logging.dead.tokens_since_fired)


def test_metrics_are_averages_over_the_steps_since_the_last_log():
    data = batches(3)
    ours, logged_each_step = learner(), learner()
    for trained in (ours, logged_each_step):
        trained.initialise(data[0])
    singles = []
    for batch in data:
        ours.step(batch)
        logged_each_step.step(batch)
        singles.append(logged_each_step.pop_metrics())
    averages = ours.pop_metrics()
    for name in ("loss", "l0"):
        assert averages[name] == pytest.approx(sum(s[name] for s in singles) / 3)
    assert min(s["fvu"] for s in singles) < averages["fvu"] < max(s["fvu"] for s in singles)


def count_and_refresh(dead: DeadLatents, codes: Codes, step: int) -> None:
    dead.count(codes)
    dead.refresh(step)


def test_list_of_dead_latents_is_bounded_and_has_the_oldest():
    dead = DeadLatents(6, dead_after=10, refresh_steps=2, max_listed=2)
    fire = lambda *latents: Codes(torch.ones(5, len(latents)), torch.tensor([latents] * 5), d_sae=6)
    count_and_refresh(dead, fire(0, 1, 2), 1)
    count_and_refresh(dead, fire(0, 1), 2)
    assert dead.dead_list.tolist() == [3, 4]  # 3, 4, 5 are silent for 10 tokens; two fit
    count_and_refresh(dead, fire(0, 3), 3)
    assert dead.still_dead().tolist() == [False, True]
    assert float(dead.dead_fraction()) == pytest.approx(3 / 6)  # 2 (10 tokens), 4 and 5
    dead.tokens_since_fired.copy_(torch.tensor([0, 20, 50, 30, 0, 40]))
    count_and_refresh(dead, fire(0), 4)
    assert dead.dead_list.tolist() == [2, 5], "those silent for longest are listed"


def test_micro_batches_of_one_step_are_counted_together():
    dead = DeadLatents(3, dead_after=5, refresh_steps=1, max_listed=3)
    first, second = (Codes(torch.ones(5, 1), torch.tensor([[n]] * 5), d_sae=3) for n in (0, 1))
    assert dead.count(first, second).tolist() == [True, True, False]
    assert dead.tokens_since_fired.tolist() == [0, 0, 10]


def test_latents_with_a_code_of_zero_do_not_fire():
    dead = DeadLatents(3, dead_after=5, refresh_steps=1, max_listed=3)
    count_and_refresh(
        dead, Codes(torch.tensor([[1.0, 0.0]] * 5), torch.tensor([[0, 1]] * 5), d_sae=3), 1
    )
    assert dead.tokens_since_fired.tolist() == [0, 5, 5]


@pytest.mark.parametrize(
    "settings", [{"lr": -1.0}, {"lr": math.nan}, {"eps": 0.0}, {"warmup": 1.5}, {"decay": -0.1}]
)
def test_optimizer_settings_out_of_range_are_named(settings):
    with pytest.raises(UserError) as error:
        OptimConfig(**settings)
    assert error.value.message.startswith(f"model.optim.{next(iter(settings))}=")


def test_cuda_graph_is_refused_without_a_gpu():
    with pytest.raises(UserError, match="cuda_graph=True needs a CUDA device"):
        GraphedStep(learner())


@pytest.mark.parametrize("name", ["adam", "signum"])
def test_micro_batches_equal_one_batch_if_losses_are_means_over_tokens(name):
    """In float64, and with clipping, counters, a controlled coefficient and resampling."""
    large, micro = (
        Learner(
            SAE(D_IN, JumpReLU(d_sae=D_SAE), site=Autoencoder(hook="h"), dtype=torch.float64),
            [MSE(), L0(coefficient=1e-2, target_l0=5.0)],
            OptimConfig(name=name, lr=3e-3, clip_norm=0.5),
            total_steps=20,
            dead_after=60,
            refresh_steps=1,
            resample_every=5,
        )
        for _ in range(2)
    )
    data = batches(30)
    for trained in (large, micro):
        trained.initialise(data[0])
        trained.sae.b_enc.data[:6] = -50.0
    for first in range(0, 30, 3):
        large.step({"h": torch.cat([batch["h"] for batch in data[first : first + 3]])})
        micro.step(*data[first : first + 3])
        assert torch.equal(large.dead.tokens_since_fired, micro.dead.tokens_since_fired)
        ours, theirs = micro.pop_metrics(), large.pop_metrics()
        ours.pop("fvu"), theirs.pop("fvu")  # the variance is around the mean of each micro-batch
        assert ours == pytest.approx(theirs, rel=1e-9)
    assert micro.steps == 10 and micro.tokens == large.tokens == 960
    assert large.resampler.resampled > 0
    for (key, a), b in zip(
        large.sae.state_dict().items(), micro.sae.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=key)


def test_weighted_loss_terms_are_logged_and_add_up_to_the_loss():
    sae = SAE(D_IN, TopK(d_sae=D_SAE, k=K), site=Autoencoder(hook="h"), dtype=torch.float64)
    terms = [FVU(), AuxK(coefficient=0.5), L1(coefficient=0.1), L1(coefficient=0.2)]
    trained = Learner(sae, terms, OPTIM, total_steps=20, dead_after=32, refresh_steps=1)
    data = batches(8)
    trained.initialise(data[0])
    for number in range(0, 8, 2):  # two micro-batches per step
        trained.step(*data[number : number + 2])
    row = trained.pop_metrics()
    names = ["loss_fvu", "loss_auxk", "loss_l1", "loss_l1_2"]
    assert [name for name in row if name.startswith("loss_")] == names
    assert all(row[name] > 0 for name in names)
    assert sum(row[name] for name in names) == pytest.approx(row["loss"], rel=1e-12)
    assert row["loss_l1_2"] == pytest.approx(2 * row["loss_l1"], rel=1e-12)
