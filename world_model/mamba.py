"""Mamba-2 (SSD) in plain torch: a naive scan, a chunked scan for training, one step for play.

Source: Dao and Gu, "Transformers are SSMs" (2024), sections 5 to 7. The paper's symbols and the names here:

    paper   here             meaning
    X       x_BTHP           input of the state space, per head
    Delta   dt_BTH           step size, positive (after softplus)
    A       A_H              decay rate, negative, one scalar a head: decay of a tick is exp(dt * A)
    B       B_BTN            what is written into the state; shared by all heads (one group)
    C       C_BTN            what is read from the state; shared by all heads
    h       state_BHPN       the recurrent state: h[t] = exp(dt A) h[t-1] + dt x B^T,  y = h C
    L       decay_BHTS       L[t, s]: decay from tick s to tick t, 0 for s > t (the 1-semiseparable mask)
    D       D                skip from x to y, one scalar a head
    z       z_BTI            gate of the output

Axes: B batch (clips x tokens), T and S time, D d_model, I d_inner = H * P, H heads, P head_dim, N d_state,
K d_conv, C conv channels (x, B and C side by side).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DT_MIN, DT_MAX = 1e-3, 1e-1
"""Range of the step size at initialisation (log-uniform)."""
A_MIN, A_MAX = 1.0, 16.0
"""Range of -A at initialisation (uniform)."""
NORM_EPS = 1e-5


def _at_least_fp32(tensor: Tensor) -> Tensor:
    """Decays and state never go below fp32; float64 stays, so that tests can be tight."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _zero_state(x_BTHP: Tensor, B_BTN: Tensor) -> Tensor:
    batch, _, heads, head_dim = x_BTHP.shape
    dtype = torch.promote_types(x_BTHP.dtype, torch.float32)
    return x_BTHP.new_zeros(batch, heads, head_dim, B_BTN.shape[-1], dtype=dtype)


def ssd_naive(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    state_BHPN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence as written in the paper, one tick after the other. The reference for the fast paths.

    Returns y_BTHP (dtype of x) and the state after the last tick (fp32, or float64 for float64 inputs).
    `state_BHPN` is the state before the first tick, zero if None.
    """
    x, dt, A, B, C = (_at_least_fp32(t) for t in (x_BTHP, dt_BTH, A_H, B_BTN, C_BTN))
    state = _zero_state(x_BTHP, B_BTN) if state_BHPN is None else _at_least_fp32(state_BHPN)
    ys = []
    for t in range(x.shape[1]):
        decay_BH = torch.exp(dt[:, t] * A)
        write_BHP = dt[:, t, :, None] * x[:, t]
        state = decay_BH[..., None, None] * state + write_BHP[..., None] * B[:, t, None, None, :]
        ys.append((state * C[:, t, None, None, :]).sum(-1))
    return torch.stack(ys, dim=1).to(x_BTHP.dtype), state


def ssd_chunked(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    state_BHPN: Tensor | None = None,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """The same results as `ssd_naive` from masked matrix products over chunks of `chunk_size` ticks.

    T need not be a multiple of `chunk_size`: the last chunk is shorter. Under autocast the operands of the
    products inside a chunk may be bf16; the decays, and the state from chunk to chunk, stay fp32.
    """
    y_BTHP, state = _scan_chunks(x_BTHP, dt_BTH, A_H, B_BTN, C_BTN, state_BHPN, chunk_size, want_state=True)
    assert state is not None
    return y_BTHP, state


def _scan_chunks(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    state_BHPN: Tensor | None,
    chunk_size: int,
    want_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """`ssd_chunked`, without the last state (None) where nobody wants it: training on whole clips."""
    assert chunk_size > 0 and x_BTHP.shape[1] > 0, (chunk_size, x_BTHP.shape)
    dt, A, B, C = (_at_least_fp32(t) for t in (dt_BTH, A_H, B_BTN, C_BTN))
    write_BTHP = dt[..., None] * x_BTHP
    log_decay_BTH = dt * A
    state = None if state_BHPN is None else _at_least_fp32(state_BHPN)
    pieces = list(zip(*(t.split(chunk_size, dim=1) for t in (write_BTHP, log_decay_BTH, B, C)), strict=True))
    ys = []
    for i, (write, log_decay, B_chunk, C_chunk) in enumerate(pieces):
        cum_BHT = log_decay.transpose(1, 2).cumsum(-1)
        ys.append(_chunk_output(write, cum_BHT, B_chunk, C_chunk, state))
        if want_state or i + 1 < len(pieces):
            state = _chunk_state(write, cum_BHT, B_chunk, state)
    y_BTHP = ys[0] if len(ys) == 1 else torch.cat(ys, dim=1)
    return y_BTHP.to(x_BTHP.dtype), state if want_state else None


def _chunk_output(
    write_BTHP: Tensor, cum_BHT: Tensor, B_BTN: Tensor, C_BTN: Tensor, state_BHPN: Tensor | None
) -> Tensor:
    """y of one chunk: what its own ticks wrote, plus what is left of the state before it."""
    batch, ticks, heads, head_dim = write_BTHP.shape
    # Masked before exp: above the diagonal the sums are positive, exp could overflow (inf * 0 in backward).
    future_TS = torch.ones(ticks, ticks, dtype=torch.bool, device=cum_BHT.device).triu(1)
    decay_BHTS = (cum_BHT[..., :, None] - cum_BHT[..., None, :]).masked_fill_(future_TS, -math.inf).exp_()
    scores_BTS = C_BTN @ B_BTN.transpose(1, 2)
    y_BHTP = (decay_BHTS * scores_BTS[:, None]) @ write_BTHP.transpose(1, 2)
    y_BTHP = y_BHTP.transpose(1, 2)
    if state_BHPN is None:
        return y_BTHP
    # C is the same for all heads: one product over (head, P) together instead of one a head.
    read_BTI = C_BTN @ state_BHPN.flatten(1, 2).transpose(1, 2)
    read_BTHP = read_BTI.view(batch, ticks, heads, head_dim)
    return y_BTHP + cum_BHT.exp().transpose(1, 2)[..., None] * read_BTHP


def _chunk_state(write_BTHP: Tensor, cum_BHT: Tensor, B_BTN: Tensor, state_BHPN: Tensor | None) -> Tensor:
    """The state after one chunk."""
    batch, _, heads, head_dim = write_BTHP.shape
    total_BH = cum_BHT[..., -1]
    left_BTH = (total_BH[..., None] - cum_BHT).exp().transpose(1, 2)
    kept_BTI = (write_BTHP * left_BTH[..., None]).flatten(2)
    # Small errors in the state would add up over a session, so this product is never bf16.
    with torch.autocast(device_type=write_BTHP.device.type, enabled=False):
        state = (kept_BTI.transpose(1, 2) @ B_BTN).view(batch, heads, head_dim, -1)
    if state_BHPN is None:
        return state
    return state + total_BH.exp()[..., None, None] * state_BHPN


def ssd_step(
    x_BHP: Tensor, dt_BH: Tensor, A_H: Tensor, B_BN: Tensor, C_BN: Tensor, state_BHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """One tick: y_BHP (dtype of x) and a new state (at least fp32). `state_BHPN` itself is left as it was."""
    x, dt, A, B, C, state = (_at_least_fp32(t) for t in (x_BHP, dt_BH, A_H, B_BN, C_BN, state_BHPN))
    decayed = state * torch.exp(dt * A)[..., None, None]
    state = torch.addcmul(decayed, (dt[..., None] * x)[..., None], B[:, None, None, :])
    return (state * C[:, None, None, :]).sum(-1).to(x_BHP.dtype), state


@dataclass(frozen=True)
class Mamba2Config:
    """Shape of one Mamba-2 block.

    Raises ValueError where a size is not positive or `head_dim` does not divide `expand * d_model`.
    """

    d_model: int
    d_state: int = 16
    head_dim: int = 32
    expand: int = 1
    d_conv: int = 4
    chunk_size: int = 32

    def __post_init__(self) -> None:
        for name in ("d_model", "d_state", "head_dim", "expand", "d_conv", "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.d_inner % self.head_dim:
            raise ValueError(
                f"expand * d_model is {self.d_inner}, not a multiple of head_dim {self.head_dim}; "
                "change one of them"
            )

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def heads(self) -> int:
        return self.d_inner // self.head_dim

    @property
    def conv_dim(self) -> int:
        """Channels that pass the convolution: x, B and C."""
        return self.d_inner + 2 * self.d_state


class MambaState(NamedTuple):
    """All that a block remembers between ticks. Constant size."""

    conv: Tensor
    """(B, d_conv - 1, conv_dim): the last inputs of the convolution, oldest first."""
    ssm: Tensor
    """(B, H, P, N) fp32."""


def _without_weight_decay(values: Tensor) -> nn.Parameter:
    parameter = nn.Parameter(values)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter


class Mamba2(nn.Module):
    """One Mamba-2 block over time: projection, short causal convolution, SSD, gated norm, projection.

    `forward` over T ticks gives what T calls of `step` give, and leaves the same state. No residual and no
    norm before: they belong to the caller.
    """

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.config = config
        heads, d_inner = config.heads, config.d_inner
        self.in_proj = nn.Linear(config.d_model, d_inner + config.conv_dim + heads, bias=False)
        bound = 1 / math.sqrt(config.d_conv)
        self.conv_weight = nn.Parameter(torch.empty(config.d_conv, config.conv_dim).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.zeros(config.conv_dim))
        dt = torch.exp(torch.empty(heads).uniform_(math.log(DT_MIN), math.log(DT_MAX)))
        self.dt_bias = _without_weight_decay(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        self.A_log = _without_weight_decay(torch.empty(heads).uniform_(A_MIN, A_MAX).log())
        self.D = _without_weight_decay(torch.ones(heads))
        self.norm_weight = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=False)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> MambaState:
        """The state before the first tick. `dtype` is that of the convolution tail; ssm is at least fp32."""
        cfg = self.config
        return MambaState(
            conv=torch.zeros(batch, cfg.d_conv - 1, cfg.conv_dim, device=device, dtype=dtype),
            ssm=torch.zeros(
                *(batch, cfg.heads, cfg.head_dim, cfg.d_state),
                device=device,
                dtype=torch.promote_types(dtype, torch.float32),
            ),
        )

    def forward(
        self, u_BTD: Tensor, state: MambaState | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, MambaState]:
        """(B, T, D) -> (B, T, D), T >= 1; with `return_state` also the state after the last tick.

        `state` is the state before the first tick (zeros if None); it is left as it was.
        """
        z_BTI, in_BTC, dt_BTH = self._project(u_BTD)
        ticks, tail = u_BTD.shape[1], self.config.d_conv - 1
        if state is None:
            padded = F.pad(in_BTC, (0, 0, tail, 0))
        else:
            padded = torch.cat((state.conv.to(in_BTC.dtype), in_BTC), dim=1)
        x_BTHP, B_BTN, C_BTN = self._split_conv(self._conv(padded, ticks))
        y_BTHP, ssm = _scan_chunks(
            *(x_BTHP, dt_BTH, self._A(), B_BTN, C_BTN),
            state_BHPN=None if state is None else state.ssm,
            chunk_size=self.config.chunk_size,
            want_state=return_state,
        )
        y_BTD = self._finish(y_BTHP, x_BTHP, z_BTI)
        if ssm is None:
            return y_BTD
        conv_dtype = ssm.dtype if state is None else state.conv.dtype
        # A copy: a view would keep the whole clip in memory as long as the state lives.
        return y_BTD, MambaState(conv=padded[:, ticks:].to(conv_dtype, copy=True), ssm=ssm)

    def step(self, u_BD: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """One tick: (B, D) -> (B, D) and the new state. `state` itself is left as it was."""
        z_BI, in_BC, dt_BH = self._project(u_BD)
        window_BKC = torch.cat((state.conv.to(in_BC.dtype), in_BC[:, None]), dim=1)
        x_BHP, B_BN, C_BN = self._split_conv(self._conv(window_BKC, 1)[:, 0])
        y_BHP, ssm = ssd_step(x_BHP, dt_BH, self._A(), B_BN, C_BN, state.ssm)
        y_BD = self._finish(y_BHP, x_BHP, z_BI)
        return y_BD, MambaState(conv=window_BKC[:, 1:].to(state.conv.dtype, copy=True), ssm=ssm)

    def _A(self) -> Tensor:
        return -torch.exp(_at_least_fp32(self.A_log))

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., D) -> gate (..., I), input of the convolution (..., C), dt (..., H) in at least fp32."""
        cfg = self.config
        z, conv_in, raw_dt = self.in_proj(u).split((cfg.d_inner, cfg.conv_dim, cfg.heads), dim=-1)
        return z, conv_in, F.softplus(_at_least_fp32(raw_dt) + self.dt_bias)

    def _conv(self, padded: Tensor, ticks: int) -> Tensor:
        """(B, d_conv - 1 + ticks, C) -> (B, ticks, C), causal, then silu.

        Shifted multiplies: on a CPU the backward pass of a depthwise F.conv1d is many times slower.
        """
        out = self.conv_bias + padded[:, :ticks] * self.conv_weight[0]
        for k in range(1, self.config.d_conv):
            out = torch.addcmul(out, padded[:, k : k + ticks], self.conv_weight[k])
        return F.silu(out)

    def _split_conv(self, conv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., C) -> x (..., H, P), B (..., N), C (..., N)."""
        cfg = self.config
        x, B, C = conv.split((cfg.d_inner, cfg.d_state, cfg.d_state), dim=-1)
        return x.unflatten(-1, (cfg.heads, cfg.head_dim)), B, C

    def _finish(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Skip, gate, norm, projection: y and x (..., H, P), z (..., I) -> (..., D)."""
        skipped = (y + self.D[:, None] * x).flatten(-2)
        gated = _at_least_fp32(skipped * F.silu(z))
        normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + NORM_EPS)
        return self.out_proj((normed * self.norm_weight).to(z.dtype))
