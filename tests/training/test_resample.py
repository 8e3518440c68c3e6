"""Resampling: which latents restart, from which values, and that they fire again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import normalize

from sae import SAE, UserError
from sae.autoencoder.losses import FVU, AuxK
from sae.autoencoder.sites import Autoencoder
from sae.autoencoder.sparsity import TopK
from sae.training import Learner, OptimConfig
from sae.training.resample import Resampler, sample_tokens
from sae.worlds import SparseSuperposition
from sae_kernels.codes import Codes
from tiny import all_rules, all_sites, penalties, random_batch, tiny_learner, tiny_sae

WIDTH, D_SAE = 6, 24
RULES = all_rules(D_SAE, k=4, JumpReLU={"threshold": 0.3})
SITES = all_sites(("a", "b"), ("c", "d"))
# MatchingPursuit is left out: its W_enc is a copy of W_dec, which the optimizer does not update.
CASES = [(rule, "Autoencoder") for rule in RULES if rule != "MatchingPursuit"]
CASES += [("TopK", site) for site in SITES if site != "Autoencoder"]
CASES += [("JumpReLU", "CrossLayerTranscoder"), ("Gated", "SkipTranscoder")]
DEAD = [1, 5, 6, 13, 22]  # in both groups of a site with two


def make_learner(
    rule="TopK", site="Autoencoder", *, dtype=torch.float64, seed=0, every=10, total=100
):
    sparsity, site = RULES[rule], SITES[site]
    losses = [FVU(), *penalties(sparsity, coefficient=1e-3)]
    if rule == "TopK" and site.groups == 1:
        losses.append(AuxK(k_aux=3))
    trained = tiny_learner(
        tiny_sae(sparsity, site, dict.fromkeys("abcd", WIDTH), dtype=dtype),
        losses,
        OptimConfig(lr=3e-3),
        total_steps=total,
        resample_every=every,
        seed=seed,
    )
    trained.initialise(random_batch(0, 512, dtype))
    return trained


@torch.no_grad()
def kill(trained: Learner, latents=DEAD, *, silence: bool = False) -> None:
    trained.dead.tokens_since_fired[latents] = 10**7
    if silence:
        trained.sae.b_enc[latents] = -50.0


def rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().t() if name == "W_enc" else tensor.detach()


def state_of(trained: Learner) -> dict[tuple[str, str], torch.Tensor]:
    """Return copies of all parameters and moments that have a row per latent."""
    tensors = {}
    for name, param in trained.sae.named_parameters():
        if name in ("W_enc", "b_enc", "W_dec", *trained.sae.sparsity.extra_params()):
            tensors[name, "value"] = rows(name, param).clone()
            for kind in ("exp_avg", "exp_avg_sq"):
                tensors[name, kind] = rows(name, trained.optimizer.state[param][kind]).clone()
    return tensors


def expected(trained: Learner, acts, tokens: dict[int, int]) -> dict[str, torch.Tensor]:
    """Return the expected parameters of the dead latents, computed latent by latent."""
    sae, site = trained.sae, trained.sae.site
    x, y = trained.scaled_pair(acts)
    residual = y - sae.decode(sae.encode_training(x).codes, x)
    norms = sae.W_enc.detach().norm(dim=0)
    new = {"W_enc": [], "b_enc": [], "W_dec": []}
    size = D_SAE // site.groups
    for latent in DEAD:
        group = latent // size
        alive = [n for n in range(group * size, (group + 1) * size) if n not in DEAD]
        norm = 0.2 * norms[alive].mean()
        if site.reads == site.predicts:
            direction = normalize(x[tokens[latent]] - sae.b_dec.detach(), dim=0)
            bias, writes = torch.zeros(()).double(), direction
        else:
            group_x = x[:, group * sae.d_in : (group + 1) * sae.d_in]
            direction = normalize(group_x[tokens[latent]] - group_x.mean(0), dim=0)
            bias = -norm * (direction @ group_x.mean(0))
            first = group * sae.d_out // site.groups
            writes = torch.zeros(sae.d_out).double()
            writes[first:] = normalize(residual[tokens[latent], first:].detach(), dim=0)
        new["W_enc"].append(norm * direction)
        new["b_enc"].append(bias)
        new["W_dec"].append(writes)
    for name in sae.sparsity.learned_params():
        start = sae.sparsity.extra_params()[name].start
        new[name] = [torch.tensor(start).double()] * len(DEAD)
    return {name: torch.stack(values) for name, values in new.items()}


def token_of(trained: Learner, acts, latent: int) -> int:
    """Return the token whose x lies along the encoder column of `latent`."""
    sae = trained.sae
    x, _ = trained.scaled_pair(acts)
    group = latent // (D_SAE // sae.site.groups)
    x = x[:, group * sae.d_in : (group + 1) * sae.d_in]
    tied = sae.site.reads == sae.site.predicts
    centred = x - (sae.b_dec.detach() if tied else x.mean(0))
    match = normalize(centred) @ normalize(sae.W_enc[:, latent].detach(), dim=0)
    assert match.max() > 1 - 1e-12, "an encoder column must have the direction of a token"
    return int(match.argmax())


@pytest.mark.parametrize(("rule", "site"), CASES)
def test_only_dead_latents_restart_from_their_tokens(rule, site):
    trained = make_learner(rule, site)
    for number in range(3):
        trained.step(random_batch(number))
    kill(trained)
    acts = random_batch(7)
    before, others = state_of(trained), {n: t.clone() for n, t in trained.sae.state_dict().items()}
    twin = copy.deepcopy(trained)
    trained.resample(acts)
    tokens = {latent: token_of(trained, acts, latent) for latent in DEAD}
    new = expected(twin, acts, tokens)
    after = state_of(trained)
    assert {name for name, _ in after} == set(new)
    living = [n for n in range(D_SAE) if n not in DEAD]
    for (name, kind), value in after.items():
        assert torch.equal(value[living], before[name, kind][living]), (name, kind)
        if kind == "value":
            torch.testing.assert_close(value[DEAD], new[name])
        else:
            assert before[name, kind][DEAD].abs().sum() > 0, "moments must differ from 0 before"
            assert not value[DEAD].any(), (name, kind)
    for name in others.keys() - new.keys():
        assert torch.equal(trained.sae.state_dict()[name], others[name]), name
    groups = trained.sae.site.groups
    for group in range(groups):  # no token is drawn twice in a group
        group_tokens = [tokens[n] for n in DEAD if n // (D_SAE // groups) == group]
        assert len(set(group_tokens)) == len(group_tokens)
    assert trained.pop_metrics()["resampled"] == len(DEAD)
    assert trained.resampler.waiting.nonzero().flatten().tolist() == DEAD


def test_masters_of_bfloat16_parameters_restart_too():
    trained = make_learner(dtype=torch.bfloat16)
    trained.step(random_batch(0, dtype=torch.bfloat16))
    kill(trained)
    trained.resample(random_batch(7, dtype=torch.bfloat16))
    for name in ("W_enc", "b_enc", "W_dec"):
        param = getattr(trained.sae, name)
        master = trained.optimizer.state[param]["master"]
        assert master.dtype == torch.float32
        assert torch.equal(master.to(torch.bfloat16), param)
    row_norms = trained.optimizer.state[trained.sae.W_dec]["master"][DEAD].norm(dim=1)
    torch.testing.assert_close(row_norms, torch.ones(len(DEAD)))


def test_tokens_are_drawn_by_squared_loss_without_replacement():
    squared_error = torch.tensor([1.0, 2.0, 0.0, 3.0])
    counts = torch.zeros(4)
    for seed in range(4000):
        counts[sample_tokens(squared_error, 1, torch.Generator().manual_seed(seed))] += 1
    torch.testing.assert_close(counts / 4000, squared_error**2 / 14, rtol=0, atol=0.03)
    tokens = sample_tokens(squared_error, 9, torch.Generator().manual_seed(0))
    assert sorted(tokens.tolist()) == [0, 1, 3], "a token without error must not be drawn"


def test_latents_silent_for_longest_restart_first_in_a_small_batch():
    trained = make_learner()
    trained.step(random_batch(0))
    kill(trained, list(range(12)))
    trained.dead.tokens_since_fired[[2, 3, 11]] += 1
    before = trained.sae.W_dec.detach().clone()
    trained.resample(random_batch(1, size=3))
    changed = (trained.sae.W_dec != before).any(1).nonzero().flatten().tolist()
    assert changed == [2, 3, 11]


def test_resampling_without_dead_latents_or_errors_changes_nothing():
    trained = make_learner()
    trained.step(random_batch(0))
    before = {n: t.clone() for n, t in trained.state_dict().items() if torch.is_tensor(t)}
    trained.resample(random_batch(1))  # no latent is dead
    kill(trained, list(range(D_SAE)))
    zeros = {hook: torch.zeros_like(t) for hook, t in random_batch(1).items()}
    with torch.no_grad():
        trained.shift.zero_()
        trained.sae.b_dec.zero_()
        trained.sae.b_enc.fill_(-1.0)
    trained.resample(zeros)  # no token has an error
    for name in ("W_enc", "W_dec"):
        assert torch.equal(trained.state_dict()[f"sae.{name}"], before[f"sae.{name}"])
    assert trained.pop_metrics()["resampled"] == 0


def test_draw_depends_on_seed_and_step():
    draws = []
    for seed, steps in ((0, 10), (0, 10), (1, 10), (0, 20)):
        trained = make_learner(seed=seed)
        trained.steps = steps
        kill(trained)
        trained.resample(random_batch(1))
        draws.append([token_of(trained, random_batch(1), latent) for latent in DEAD])
    assert draws[0] == draws[1]
    assert draws[0] != draws[2] and draws[0] != draws[3]


def test_latents_are_resampled_until_the_lr_falls():
    trained = make_learner(every=30, total=100)
    # The learning rate falls from step 80 on.
    assert [s for s in range(1, 101) if trained.resampler.due(s)] == [30, 60]
    trained.steps = 29
    kill(trained, silence=True)
    trained.step(random_batch(1))
    assert trained.steps == 30 and trained.pop_metrics()["resampled"] == len(DEAD)
    with pytest.raises(UserError, match="resample_every=81 never comes.*step 80"):
        make_learner(every=81)


def test_revived_counts_resampled_latents_that_fired_since():
    counter = Resampler(4, every=1, last=1)
    counter.waiting[[0, 1, 3]] = True
    counter.resampled += 3
    fire = lambda *latents: Codes(
        torch.ones(1, len(latents)), torch.tensor([latents]), d_sae=4
    ).fired()
    counter.count(fire(1, 2))
    assert counter.counts() == {"resampled": 3, "revived": 1}
    counter.count(fire(1, 2))
    assert counter.counts() == {"resampled": 3, "revived": 1}, "a latent counts once"
    counter.waiting[1] = True  # dead and resampled again
    counter.count(fire(1, 3))
    assert counter.counts()["revived"] == 3


def test_resumed_run_ends_with_the_same_bits():
    make = lambda: make_learner("JumpReLU", dtype=torch.float32, every=4, total=20)
    acts = [random_batch(n, dtype=torch.float32) for n in range(16)]

    def train(trained: Learner, steps: range) -> Learner:
        for number in steps:
            if number % 4 == 3:
                kill(trained, silence=True)
            elif number % 4 == 0:
                kill(trained, DEAD[:1], silence=True)  # one of those just resampled fires later
            elif number % 4 == 1:
                trained.sae.b_enc.data[DEAD[0]] = 0.0
            trained.step(acts[number])
        return trained

    straight = make()
    train(straight, range(5))
    assert straight.resampler.waiting.any() and straight.resampler.revived
    saved = copy.deepcopy((straight.state_dict(), straight.optimizer.state_dict()))
    train(straight, range(5, 16))
    resumed = make()
    resumed.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    train(resumed, range(5, 16))
    metrics = straight.pop_metrics()
    assert metrics["resampled"] == 4 * len(DEAD) and metrics["revived"] > len(DEAD)
    assert metrics == resumed.pop_metrics()
    for name, value in straight.state_dict().items():
        if torch.is_tensor(value):
            assert torch.equal(value, resumed.state_dict()[name]), name


STEPS, BATCH = 1000, 256


@pytest.fixture(scope="module")
def world() -> tuple[torch.Tensor, torch.Tensor]:
    """Return training and held-out samples with as many features as latents.

    With fewer features, surplus latents die again with TopK.
    """
    source = SparseSuperposition(d_in=32, n_features=128, mean_active=4.0)
    train = source.block("train", 0, STEPS * BATCH, 0).acts["world"]
    return train, source.block("held_out", 0, 16384, 0).acts["world"]


@pytest.mark.parametrize(
    ("losses", "resample_every", "revives"),
    [
        pytest.param([FVU()], None, False, id="neither", marks=pytest.mark.slow),
        pytest.param([FVU()], 20, True, id="resampling", marks=pytest.mark.slow),
        pytest.param([FVU(), AuxK(coefficient=1.0)], None, True, id="AuxK"),
    ],
)
def test_resampling_and_auxk_each_revive_half_of_the_latents(
    world, losses, resample_every, revives
):
    train, held_out = world
    trained = Learner(
        SAE(32, TopK(d_sae=128, k=4), site=Autoencoder(hook="world")),
        losses,
        OptimConfig(lr=4e-3),
        total_steps=STEPS,
        dead_after=2048,
        refresh_steps=10,
        resample_every=resample_every,
    )
    trained.initialise({"world": train[:4096]})
    with torch.no_grad():
        trained.sae.b_enc[64:] = -4.0  # pre-activations have a norm of 1, so a few still exceed 0
    dead_fraction = lambda: (
        1 - trained.predict({"world": held_out})[2].fired().double().mean().item()
    )
    assert dead_fraction() >= 0.4
    for acts in train.split(BATCH):
        trained.step({"world": acts})
    assert dead_fraction() < 0.05 if revives else dead_fraction() > 0.25
