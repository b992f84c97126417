"""Small networks, many in parallel: a leading net axis turns R trainings into one batch of matrix products.

Two hidden layers of this size alone use neither a core nor a GPU fully; a stack of them does. Losses are summed over
the net axis, so the nets' gradients are independent, and Adam works entry by entry.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from testbed.core import seeds


class Nets(torch.nn.Module):
    """Fully connected nets: (net, batch, in) → (net, batch, out), LayerNorm and ReLU after each hidden layer."""

    def __init__(self, net_seeds: Sequence[int], sizes: Sequence[int], last_scale: float = 1.0) -> None:
        """`net_seeds`: one for each net, which begins the same in any stack. `last_scale`: the output layer's scale."""
        super().__init__()
        scales = [*[1.0] * (len(sizes) - 2), last_scale]
        self.weights = torch.nn.ParameterList(
            _uniform(net_seeds, f"layer {i}", (a, b), scale * a**-0.5)
            for i, (a, b, scale) in enumerate(zip(sizes[:-1], sizes[1:], scales, strict=True))
        )
        self.biases = torch.nn.ParameterList(torch.zeros(len(net_seeds), 1, b) for b in sizes[1:])
        self.scales = torch.nn.ParameterList(torch.ones(len(net_seeds), 1, b) for b in sizes[1:-1])
        self.shifts = torch.nn.ParameterList(torch.zeros(len(net_seeds), 1, b) for b in sizes[1:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = list(zip(self.biases, self.weights, strict=True))
        for (bias, weight), scale, shift in zip(layers[:-1], self.scales, self.shifts, strict=True):
            x = torch.baddbmm(bias, x, weight)
            x = torch.relu(torch.nn.functional.layer_norm(x, x.shape[-1:]) * scale + shift)
        bias, weight = layers[-1]
        return torch.baddbmm(bias, x, weight)


class Twins(torch.nn.Module):
    """Two nets a run with the same input – two critics, or two actors: (run, batch, in) → (2, run, batch, out)."""

    def __init__(self, run_seeds: Sequence[int], name: str, sizes: Sequence[int], last_scale: float = 1.0) -> None:
        super().__init__()
        both = [seeds.derive(s, name, i) for i in range(2) for s in run_seeds]
        self.nets = Nets(both, sizes, last_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.nets(x.repeat(2, 1, 1))
        return out.unflatten(0, (2, -1))


class Lstms(torch.nn.Module):
    """One-layer LSTMs with a linear output: (time, net, batch, in) → (net, batch, out) after the last step."""

    def __init__(self, net_seeds: Sequence[int], n_in: int, hidden: int, n_out: int) -> None:
        super().__init__()
        n = len(net_seeds)
        self.hidden = hidden
        self.weight = _uniform(net_seeds, "lstm", (n_in + hidden, 4 * hidden), hidden**-0.5)
        bias = torch.zeros(n, 1, 4 * hidden)
        bias[..., hidden : 2 * hidden] = 1.0  # forget gates open
        self.bias = torch.nn.Parameter(bias)
        self.out = Nets(net_seeds, (hidden, n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(*x.shape[1:3], self.hidden, device=x.device)
        c = torch.zeros_like(h)
        for now in x:
            i, f, g, o = torch.baddbmm(self.bias, torch.cat([now, h], -1), self.weight).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        out: torch.Tensor = self.out(h)
        return out


def _uniform(net_seeds: Sequence[int], name: str, shape: tuple[int, ...], bound: float) -> torch.nn.Parameter:
    drawn = []
    for seed in net_seeds:
        generator = torch.Generator().manual_seed(seeds.derive(seed, name))
        drawn.append((2 * torch.rand(shape, generator=generator) - 1) * bound)
    return torch.nn.Parameter(torch.stack(drawn))


@torch.no_grad()
def follow(target: torch.nn.Module, source: torch.nn.Module, tau: float) -> None:
    """Move a target net by τ towards its source."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)


def adam(module: torch.nn.Module, rate: float, eps: float = 1e-8) -> torch.optim.Adam:
    """Return Adam over a module's parameters, one kernel for all of them."""
    return torch.optim.Adam(module.parameters(), lr=rate, eps=eps, fused=True)


def descend(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Take one step that lowers a loss."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
