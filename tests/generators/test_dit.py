"""DiT and SiT: sizes as printed, the backbone and the samplers against independent ones, and that they learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel
from scipy.integrate import solve_ivp
from torch import Tensor

from vqbench.errors import Diverged, SpecError
from vqbench.generators import dit, sit
from vqbench.generators.base import Generator, build_generator
from vqbench.generators.networks.dit import DiT
from vqbench.generators.networks.guided import guided
from vqbench.generators.networks.noising import noise_of, variational_bound
from vqbench.generators.sit import euler_maruyama
from vqbench.seeds import torch_rng
from vqbench.specs import GeneratorSpec, OptimizerSpec, TokenSpec, TrainingSpec

SIZES = {"layers": 2, "width": 32, "heads": 2}
FAMILIES = pytest.mark.parametrize("family", [dit, sit], ids=["dit", "sit"])


def make_spec(family: Any, grid: int = 4, dim: int = 3, classes: int = 3, **options: Any) -> GeneratorSpec:
    optimizer = OptimizerSpec(name="adamw", lr=1e-3, betas=(0.9, 0.999))
    recipe = {"steps": 1, "batch_size": 4, "micro_batch": 4, "optimizer": optimizer, "class_drop": 0.1}
    tokens = TokenSpec(layout="raster", grid=grid, num_tokens=grid * grid, code_dim=dim, num_codes=16)
    return GeneratorSpec(
        family=family.__name__.rsplit(".", 1)[1], tokenizer="t", dataset="d", recipe="r", tokens=tokens, num_classes=classes,
        options={**family.OPTIONS, **options}, training=TrainingSpec(**recipe),
    )  # fmt: skip


def small_model(family: Any, **spec: Any) -> Any:
    """Random in every weight: the last layers start at zero, and would say nothing."""
    torch.manual_seed(0)
    model: Generator = family.build(make_spec(family, **{**SIZES, **spec})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


# ---- the backbone ------------------------------------------------------------------------------------------------------


@FAMILIES
def test_the_size_is_xl_s(family: Any) -> None:
    with torch.device("meta"):
        model = build_generator(make_spec(family, grid=16, dim=8, classes=1000))
    count = model.parameter_counts()["blocks"]
    assert count == pytest.approx(675e6, rel=0.02)
    assert count == sum(p.numel() for p in model.parameters())


@FAMILIES
def test_a_pass_costs_what_dit_s_paper_prints(family: Any) -> None:
    """DiT-XL/2 on latents of 32 x 32 x 4: 118.6 Gflops, a multiplication and an addition as one (Peebles and Xie, Table 4)."""
    with torch.device("meta"):
        model = build_generator(make_spec(family, grid=32, dim=4, classes=1000))
    assert model.forward_flops() == pytest.approx(2 * 118.6e9, rel=0.005)


def reference_of(network: DiT, outputs: int) -> DiTTransformer2DModel:
    """diffusers' DiT with the weights of ours."""
    other = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=3, out_channels=outputs, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=3, activation_fn="gelu-approximate", norm_type="ada_norm_zero",
    ).eval()  # fmt: skip
    state = dict(network.state_dict())
    found = {"pos_embed.proj.weight": state["embed.weight"], "pos_embed.proj.bias": state["embed.bias"]}
    for n in range(2):
        weights, biases = (state[f"blocks.{n}.attention.qkv.{kind}"].chunk(3) for kind in ("weight", "bias"))
        to = f"transformer_blocks.{n}"
        for part, weight, bias in zip("qkv", weights, biases, strict=True):
            found |= {f"{to}.attn1.to_{part}.weight": weight, f"{to}.attn1.to_{part}.bias": bias}
        names = {
            "attention.proj": "attn1.to_out.0",
            "mlp.0": "ff.net.0.proj",
            "mlp.2": "ff.net.2",
            "modulate": "norm1.linear",
        }
        for ours, theirs in names.items():
            for kind in ("weight", "bias"):
                found[f"{to}.{theirs}.{kind}"] = state[f"blocks.{n}.{ours}.{kind}"]
        for kind in ("weight", "bias"):  # theirs embeds time and class in every block; here they are the same
            found[f"{to}.norm1.emb.timestep_embedder.linear_1.{kind}"] = state[f"time.0.{kind}"]
            found[f"{to}.norm1.emb.timestep_embedder.linear_2.{kind}"] = state[f"time.2.{kind}"]
        found[f"{to}.norm1.emb.class_embedder.embedding_table.weight"] = state["classes.weight"]
    for ours, theirs in {"modulate": "proj_out_1", "out": "proj_out_2"}.items():
        for kind in ("weight", "bias"):
            found[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
    missing, unexpected = other.load_state_dict(found, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    for block in other.transformer_blocks:  # DiT's own frequencies end at a period of 10,000^(127/128)
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return other


@FAMILIES
def test_the_backbone_is_diffusers(family: Any) -> None:
    model = small_model(family, grid=8)
    outputs = 6 if family is dit else 3
    other = reference_of(model.network, outputs)
    x, labels = torch.randn(5, 3, 8, 8, generator=torch_rng(0)), torch.tensor([0, 1, 2, 3, 0])
    time = torch.tensor([0, 1, 77, 500, 999])
    with torch.no_grad():
        ours, theirs = model.network(x, time, labels), other(x, time, labels).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_positions_are_diffusers_sines() -> None:
    other = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=16, in_channels=3, out_channels=3, num_layers=1,
                                  sample_size=8, patch_size=2, num_embeds_ada_norm=3, norm_type="ada_norm_zero")  # fmt: skip
    torch.testing.assert_close(small_model(sit, grid=8).network.positions, other.pos_embed.pos_embed[0])


def test_blocks_start_as_identities_and_the_network_at_zero() -> None:
    model = dit.build(make_spec(dit, **SIZES))
    assert model.network(torch.randn(2, 3, 4, 4), torch.tensor([3, 9]), torch.tensor([0, 1])).abs().max() == 0
    x = torch.randn(2, 4, 32)
    assert torch.equal(model.network.blocks[0](x, torch.randn(2, 32)), x)


# ---- guidance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("some", [0, 2])
def test_guidance_by_hand_on_all_channels_and_on_some(some: int) -> None:
    model = small_model(dit)
    x, labels, time = torch.randn(2, 3, 4, 4), torch.tensor([0, 2]), torch.tensor(40)
    sampler = {"guidance": 4.0, "guided_channels": some}
    with torch.no_grad():
        found = guided(model.network, labels, 3, sampler, 3)(x, time)
        given, free = (model.network(x, time.expand(2), c) for c in (labels, torch.tensor([3, 3])))
    count = some or 3
    expected = torch.cat([(4 * given - 3 * free)[:, :count], given[:, count:]], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ---- training terms ----------------------------------------------------------------------------------------------------


def test_the_bound_is_the_divergence_of_the_posterior() -> None:
    """Against torch's KL of normal distributions, and the last step's likelihood against a numerical integral."""
    table = noise_of(50, 1e-4, 0.02, "linear")
    start, e = torch.randn(2, 3, 4, 4).clamp(-0.9, 0.9), torch.randn(2, 3, 4, 4)
    guess, share = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4) * 2 - 1
    for step in (1, 20, 49):
        a, before = table.signal[step] ** 2, table.signal[step - 1] ** 2
        beta = 1 - a / before
        now = (a.sqrt() * start + (1 - a).sqrt() * e).float()
        variance = beta * (1 - before) / (1 - a)
        of_start, of_now = before.sqrt() * beta / (1 - a), (1 - beta).sqrt() * (1 - before) / (1 - a)
        wide = torch.exp(variance.log() + (beta.log() - variance.log()) * (share.double() + 1) / 2)
        seen = (now - (1 - a).sqrt() * guess) / a.sqrt()
        true = torch.distributions.Normal(of_start * start + of_now * now, variance.sqrt())
        guessed = torch.distributions.Normal(of_start * seen + of_now * now, wide.sqrt())
        expected = torch.distributions.kl_divergence(true, guessed).mean() / np.log(2)
        found = variational_bound(table, start, now, torch.full((2,), step), guess, share)
        assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    a, now = table.signal[0] ** 2, (table.signal[0] * start + table.noise[0] * e).float()
    seen = (now - (1 - a).sqrt() * guess) / a.sqrt()
    wide = torch.exp(table.least[0] + (table.most[0] - table.least[0]) * (share.double() + 1) / 2)
    cells = torch.linspace(-1 / 255, 1 / 255, 4001, dtype=torch.float64)
    density = (
        torch.distributions.Normal(seen[..., None], wide.sqrt()[..., None]).log_prob(start[..., None] + cells).exp()
    )
    expected = -torch.trapezoid(density, cells).clamp_min(1e-12).log().mean() / np.log(2)
    found = variational_bound(table, start, now, torch.zeros(2, dtype=torch.int64), guess, share)
    assert found.item() == pytest.approx(expected.item(), rel=1e-2)


def test_the_bound_trains_the_variance_alone() -> None:
    model = small_model(dit)
    losses = model.losses(torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 2, 0]), torch_rng(0))
    out = model.network.out.weight
    gradient = torch.autograd.grad(losses["vb"], out, retain_graph=True)[0].unflatten(0, (4, 6))
    assert gradient[:, :3].abs().max() == 0 and gradient[:, 3:].abs().max() > 0
    gradient = torch.autograd.grad(losses["mse"], out)[0].unflatten(0, (4, 6))
    assert gradient[:, :3].abs().max() > 0 and gradient[:, 3:].abs().max() == 0


# ---- samplers ----------------------------------------------------------------------------------------------------------


def test_ddpm_by_hand() -> None:
    model, labels, steps = small_model(dit, timesteps=100), torch.tensor([0, 1]), 10
    found = model.sample(labels, torch_rng(1), {"steps": steps, "guidance": 1.0, "guided_channels": 0})
    left = noise_of(100, 1e-4, 0.02, "linear").signal ** 2
    times = np.linspace(0, 99, steps).round()[::-1].astype(int)
    rng = torch_rng(1)
    x = torch.randn(2, 3, 4, 4, generator=rng)
    for n, time in enumerate(times):
        with torch.no_grad():
            e, share = model.network(x, torch.full((2,), int(time)), labels).chunk(2, dim=1)
        now, before = left[time], left[times[n + 1]] if n + 1 < steps else torch.tensor(1.0, dtype=torch.float64)
        beta = 1 - now / before
        start = (x - (1 - now).sqrt() * e) / now.sqrt()
        mean = before.sqrt() * beta / (1 - now) * start + (now / before).sqrt() * (1 - before) / (1 - now) * x
        if n + 1 == steps:
            x = mean.float()
            break
        least, most = (beta * (1 - before) / (1 - now)).log(), beta.log()
        deviation = torch.exp(0.5 * (least + (most - least) * (share + 1) / 2))
        x = (mean + deviation * torch.randn(x.shape, generator=rng)).float()
    # the library's shares of noise are float32, which leaves 1 - a(t) four digits where t is small
    assert (found - x).abs().max() < 3e-4 * x.abs().max()


def test_the_ode_is_scipys() -> None:
    model, labels = small_model(sit), torch.tensor([0, 2])
    sampler = {**sit.SAMPLER, "guidance": 2.0, "rtol": 1e-6, "atol": 1e-7}
    found = model.sample(labels, torch_rng(1), sampler)
    network = guided(model.network, labels, 3, sampler, 3)
    first = torch.randn(2, 3, 4, 4, generator=torch_rng(1))

    def velocity(time: float, flat: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(flat).float().view(2, 3, 4, 4), torch.tensor(time)).double().numpy().ravel()

    expected = solve_ivp(velocity, (0, 1), first.double().numpy().ravel(), method="RK45", rtol=1e-6, atol=1e-7).y[:, -1]
    np.testing.assert_allclose(found.numpy().ravel(), expected, rtol=1e-3, atol=1e-3)


def test_the_solver_of_the_ode_chooses_its_steps() -> None:
    model = small_model(sit)
    assert model.steps(sit.SAMPLER) == "adaptive" and model.steps({**sit.SAMPLER, "method": "sde"}) == 250
    assert small_model(dit).steps(dit.SAMPLER) == 250


def test_an_ode_without_an_end_is_said_in_a_line() -> None:
    model = small_model(sit)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(torch.nan)
    with pytest.raises(
        Diverged, match=r"the ODE cannot be solved to rtol .* guidance is too strong, or set method: sde"
    ):
        model.sample(torch.zeros(1, dtype=torch.int64), torch_rng(0), dict(sit.SAMPLER))


def test_the_sde_ends_in_the_data_s_distribution() -> None:
    """One Gaussian, whose velocity is known exactly: v = E[x - e | x_t]. Both samplers must end in it."""
    mean, deviation, count = 1.5, 0.5, 20_000

    def velocity(time: Tensor, x: Tensor) -> Tensor:
        t = float(time)
        variance = (1 - t) ** 2 + (t * deviation) ** 2
        return mean + (t * deviation**2 - (1 - t)) / variance * (x - t * mean)

    rng = torch_rng(0)
    found = euler_maruyama(velocity, torch.randn(count, generator=rng), rng, 250, 0.04)
    assert found.mean().item() == pytest.approx(mean, abs=0.02) and found.std().item() == pytest.approx(
        deviation, abs=0.02
    )


def test_the_sde_is_sit_s_general_one() -> None:
    """willisma/SiT:transport, written out: its drift (velocity + diffusion x score), its score from the velocity and the
    path's coefficients, Euler-Maruyama steps in integrators.py and a last mean step; the same noise, random weights."""
    model, labels, steps, last = small_model(sit), torch.tensor([0, 2]), 25, 0.04
    sampler = {**sit.SAMPLER, "method": "sde", "steps": steps, "last_step": last, "guidance": 2.0}
    found = model.sample(labels, torch_rng(1), sampler)
    network, rng = guided(model.network, labels, 3, sampler, 3), torch_rng(1)
    x = torch.randn(2, 3, 4, 4, generator=rng).double()

    def drift(x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            velocity = network(x.float(), t.float()).double()
        signal, d_signal, sigma, d_sigma = t, torch.ones(()), 1 - t, -torch.ones(())  # path.py, ICPlan
        ratio = signal / d_signal
        score = (ratio * velocity - x) / (sigma**2 - ratio * d_sigma * sigma)  # get_score_from_velocity
        return velocity + diffusion(t) * score

    def diffusion(t: Tensor) -> Tensor:
        return 1 - t  # compute_diffusion, form "sigma"

    times = torch.linspace(0, 1 - last, steps, dtype=torch.float64)
    gap = times[1] - times[0]
    for t in times[:-1]:
        noise = torch.randn(x.shape, generator=rng)
        x = x + drift(x, t) * gap + (2 * diffusion(t)).sqrt() * noise * gap.sqrt()
    x = x + drift(x, times[-1]) * last
    assert (found - x).abs().max() < 1e-5 * x.abs().max()


@FAMILIES
def test_samples_follow_the_rng_and_have_the_encoders_scale(family: Any) -> None:
    model, labels = small_model(family), torch.tensor([0, 1, 2])
    sampler = {**family.SAMPLER, "steps": 5, "guidance": 1.5}
    first = model.sample(labels, torch_rng(1), sampler)
    assert first.shape == (3, 3, 4, 4) and torch.equal(model.sample(labels, torch_rng(1), sampler), first)
    assert not torch.equal(model.sample(labels, torch_rng(2), sampler), first)
    model.begin(torch.randn(64, 3, 4, 4) * 7)
    assert model.scale.deviation.item() == pytest.approx(7, rel=0.05)
    torch.testing.assert_close(model.sample(labels, torch_rng(1), sampler), first * model.scale.deviation)


@FAMILIES
def test_a_scale_of_none_measures_nothing(family: Any) -> None:
    model = small_model(family, scale="none")
    model.begin(torch.randn(8, 3, 4, 4) * 7)
    assert model.scale.deviation == 1
    with pytest.raises(SpecError, match="scale is 'sd'; "):
        small_model(family, scale="sd")


@FAMILIES
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": 0.5}, "guidance is 0.5"),
        ({"guided_channels": 4}, "the latents have 3"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_sampler_options_out_of_range_are_refused(family: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        small_model(family).sample(torch.tensor([0]), torch_rng(0), {**family.SAMPLER, **change})


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown method 'odd'; did you mean 'ode'"):
        small_model(sit).sample(torch.tensor([0]), torch_rng(0), {**sit.SAMPLER, "method": "odd"})


@FAMILIES
def test_sizes_that_do_not_fit_are_refused(family: Any) -> None:
    for change, message in (
        ({"patch": 3}, "patch 3 does not divide"),
        ({"heads": 5}, "multiple of 4 and of the 5 heads"),
    ):
        with pytest.raises(SpecError, match=message):
            family.build(make_spec(family, **{**SIZES, **change}))


@FAMILIES
def test_it_learns_a_pattern_for_each_class(family: Any) -> None:
    torch.manual_seed(0)
    model = family.build(make_spec(family, **{**SIZES, "width": 64}))
    patterns = torch.randn(3, 3, 4, 4, generator=torch_rng(7))
    labels = torch.arange(3).repeat(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.begin(patterns)
    for step in range(700 if family is dit else 250):
        losses = model.losses(patterns[labels], labels, torch_rng(step))
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    sampler = {**family.SAMPLER, "steps": 50, "guidance": 1.0}
    found = model.eval().sample(torch.arange(3), torch_rng(0), sampler)
    apart = (found - patterns).square().mean((1, 2, 3)) / patterns.square().mean()
    assert apart.max() < 0.15, apart
