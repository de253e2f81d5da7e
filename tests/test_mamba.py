"""Mamba-2: the naive scan, the chunked scan and the single step agree, alone and inside the block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from world_model.mamba import Mamba2, Mamba2Config, MambaState, ssd_chunked, ssd_naive, ssd_step

LENGTHS = (1, 2, 15, 63, 100)
Scan = Callable[..., tuple[Tensor, Tensor]]
naive: Scan = ssd_naive
chunked: Scan = ssd_chunked


def make_inputs(ticks: int, batch: int = 2, with_state: bool = True, seed: int = 0) -> list[Tensor]:
    """x, dt, A, B, C and the state, float64, with heads 3, P 4, N 5; decays from weak to strong."""
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen, dtype=torch.float64)

    tensors = [normal(batch, ticks, 3, 4), torch.nn.functional.softplus(normal(batch, ticks, 3) - 2)]
    tensors += [-torch.tensor([0.3, 2.0, 16.0], dtype=torch.float64)]
    tensors += [normal(batch, ticks, 5), normal(batch, ticks, 5)]
    tensors += [normal(batch, 3, 4, 5)] if with_state else []
    return [t.requires_grad_() for t in tensors]


def repeated_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    ys = []
    for t in range(x.shape[1]):
        y, state = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], state)
        ys.append(y)
    return torch.stack(ys, 1), state


def results(scan: Scan, inputs: list[Tensor], **options: int) -> list[Tensor]:
    """Output, last state, and the gradient of a weighted sum of both for every input."""
    y, state = scan(*inputs, **options)
    weights = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t).cos() for t in (y, state)]
    loss = (y * weights[0]).sum() + (state * weights[1]).sum()
    return [y, state, *torch.autograd.grad(loss, inputs)]


def assert_all_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for got, want in zip(actual, expected, strict=True):
        assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ticks", LENGTHS)
def test_chunked_and_step_equal_naive_with_gradients(ticks: int) -> None:
    inputs = make_inputs(ticks)
    expected = results(naive, inputs)
    assert_all_close(results(repeated_step, inputs), expected)
    for chunk_size in (1, 7, 16, 32, 128):
        assert_all_close(results(chunked, inputs, chunk_size=chunk_size), expected)


def test_naive_matches_the_closed_form() -> None:
    x, dt, A, B, C, state = (t.detach() for t in make_inputs(3))
    y, _ = naive(x, dt, A, B, C, state)
    # y[2] for sequence 1, head 1, channel 2, written out from the definition
    decay = [float(torch.exp(dt[1, s + 1 : 3, 1].sum() * A[1])) for s in range(3)]
    want = float(torch.exp(dt[1, :, 1].sum() * A[1]) * (state[1, 1, 2] @ C[1, 2]))
    want += sum(decay[s] * float(dt[1, s, 1] * x[1, s, 1, 2] * (B[1, s] @ C[1, 2])) for s in range(3))
    assert float(y[1, 2, 1, 2]) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("chunk_size", (4, 32))
def test_no_state_is_a_zero_state(chunk_size: int) -> None:
    inputs = make_inputs(15, with_state=False)
    zero = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    expected = naive(*inputs, zero)
    assert_all_close(list(naive(*inputs)), list(expected))
    assert_all_close(list(chunked(*inputs, chunk_size=chunk_size)), list(expected))
    assert_all_close(results(chunked, inputs, chunk_size=chunk_size), results(naive, inputs))


def test_strong_decay_gives_finite_gradients_in_fp32() -> None:
    inputs = [t.detach().float() for t in make_inputs(32)]
    inputs[1] = inputs[1] + 10.0  # exp of the masked half would be exp(+5000)
    inputs = [t.requires_grad_() for t in inputs]
    for got, want in zip(results(chunked, inputs), results(naive, inputs), strict=True):
        assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_step_leaves_the_old_state_alone() -> None:
    x, dt, A, B, C, state = (t.detach() for t in make_inputs(1))
    before = state.clone()
    _, after = ssd_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], state)
    assert torch.equal(state, before) and not torch.equal(after, before)


@settings(max_examples=12, deadline=None)
@given(ticks=st.integers(1, 48), chunk_size=st.integers(1, 50), seed=st.integers(0, 999))
def test_chunked_equals_naive_at_any_length(ticks: int, chunk_size: int, seed: int) -> None:
    inputs = [t.detach() for t in make_inputs(ticks, batch=1, seed=seed)]
    assert_all_close(list(chunked(*inputs, chunk_size=chunk_size)), list(naive(*inputs)))


def make_block(dtype: torch.dtype = torch.float64, d_conv: int = 4) -> Mamba2:
    torch.manual_seed(0)
    return Mamba2(Mamba2Config(12, d_state=5, head_dim=4, expand=2, d_conv=d_conv, chunk_size=16)).to(dtype)


def by_steps(block: Mamba2, u: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
    ys = []
    for t in range(u.shape[1]):
        y, state = block.step(u[:, t], state)
        ys.append(y)
    return torch.stack(ys, 1), state


def by_two_parts(block: Mamba2, u: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
    cut = max(1, u.shape[1] // 3)
    y, state = block(u[:, :cut], state, return_state=True)
    if cut == u.shape[1]:
        return y, state
    y_rest, state = block(u[:, cut:], state, return_state=True)
    return torch.cat((y, y_rest), 1), state


BlockScan = Callable[[Mamba2, Tensor, MambaState], tuple[Tensor, MambaState]]


def block_results(block: Mamba2, way: BlockScan, u: Tensor, state: MambaState) -> list[Tensor]:
    leaves = [u, *state, *block.parameters()]
    y, end = way(block, u, state)
    grads = torch.autograd.grad((y * y.detach().cos()).sum() + end.ssm.sin().sum() + end.conv.sum(), leaves)
    return [y, *end, *grads]


@pytest.mark.parametrize("ticks", LENGTHS)
def test_block_forward_equals_steps_and_parts_with_gradients(ticks: int) -> None:
    block = make_block()
    u = torch.randn(2, ticks, 12, dtype=torch.float64, requires_grad=True)
    start = MambaState(*(torch.randn_like(t).requires_grad_() for t in block.init_state(2, dtype=u.dtype)))
    expected = block_results(block, lambda b, u, s: b(u, s, return_state=True), u, start)
    assert_all_close(block_results(block, by_steps, u, start), expected)
    assert_all_close(block_results(block, by_two_parts, u, start), expected)


@pytest.mark.parametrize("d_conv", (1, 4))
def test_block_without_state_starts_from_init_state(d_conv: int) -> None:
    block = make_block(d_conv=d_conv)
    u = torch.randn(2, 20, 12, dtype=torch.float64)
    y, end = by_steps(block, u, block.init_state(2, dtype=u.dtype))
    y_forward, end_forward = block(u, return_state=True)
    assert_all_close([block(u), y_forward, *end_forward], [y, y, *end])


def test_block_is_causal() -> None:
    block = make_block()
    u = torch.randn(1, 20, 12, dtype=torch.float64)
    changed = u.clone()
    changed[:, 11:] += 1.0
    same = (block(u) - block(changed)).abs().amax(-1)[0] < 1e-12
    assert same[:11].all() and not same[11:].any()


def test_conv_equals_torch_depthwise_conv1d() -> None:
    block = make_block()
    padded = torch.randn(2, 3 + 9, block.config.conv_dim, dtype=torch.float64)
    weight = block.conv_weight.T[:, None]
    want = torch.nn.functional.conv1d(
        padded.transpose(1, 2), weight, block.conv_bias, groups=padded.shape[-1]
    )
    assert_all_close([block._conv(padded, 9)], [torch.nn.functional.silu(want.transpose(1, 2))])


def test_bf16_autocast_is_close_and_keeps_the_state_in_fp32() -> None:
    block = make_block(torch.float32)
    u = torch.randn(4, 40, 12)
    y, end = block(u, return_state=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_low, end_low = block(u, return_state=True)
        y_step, end_step = by_steps(block, u, block.init_state(4))
        block(u).float().square().mean().backward()
    for state in (end_low, end_step):
        assert state.ssm.dtype == state.conv.dtype == torch.float32
    for got, want in ((y_low, y), (y_step, y), (end_low.ssm, end.ssm), (end_step.ssm, end.ssm)):
        assert float(((got.float() - want).norm() / want.norm()).detach()) < 0.02
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_autocast_does_not_round_the_state_update() -> None:
    inputs = [t.detach().float() for t in make_inputs(40)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = chunked(*inputs)
    assert_close(state, naive(*inputs)[1], rtol=1e-5, atol=1e-5)


def test_block_compiles_whole() -> None:
    block = make_block(torch.float32)
    u = torch.randn(2, 20, 12)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    state = block.init_state(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, end = compiled(u, state, return_state=True)
        want, want_end = block(u, state, return_state=True)
        grad = torch.autograd.grad(y.sum() + end.ssm.sum(), block.A_log)[0]
        want_grad = torch.autograd.grad(want.sum() + want_end.ssm.sum(), block.A_log)[0]
    for got, expected in ((y, want), (end.ssm, want_end.ssm), (grad, want_grad)):
        assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_initial_values_and_weight_decay_marks() -> None:
    torch.manual_seed(0)
    block = Mamba2(Mamba2Config(d_model=1024, head_dim=2))
    dt = torch.nn.functional.softplus(block.dt_bias.detach())
    assert 1e-3 * 0.999 < float(dt.min()) < 2e-3 and 5e-2 < float(dt.max()) < 1e-1 * 1.001
    assert float(dt.log().mean()) == pytest.approx(torch.tensor([1e-3, 1e-1]).log().mean().item(), abs=0.3)
    rate = block.A_log.detach().exp()
    assert 0.999 < float(rate.min()) < 2 and 15 < float(rate.max()) < 16.001
    marked = {n for n, p in block.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"A_log", "dt_bias", "D"}


@pytest.mark.parametrize("sizes", ({"d_model": 100}, {"d_model": 0}, {"d_model": 64, "chunk_size": 0}))
def test_impossible_shapes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"multiple of head_dim|at least 1"):
        Mamba2Config(**sizes)
