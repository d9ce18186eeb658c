"""The table of docs/studies/solvers.md: errors of solvers on the toy mixture's own flow.

    python docs/tools/solver_errors.py

The velocity is the closed form, so that nothing but the solver errs; the exact ends are those of
DOP853 at a tolerance of 1e-10. AMED is trained for three seeds, on noise of its own.
"""

from statistics import mean, stdev

import torch

from fewstep.experiments.data import DATA
from fewstep.experiments.data.toy import HasMixture, coefficients
from fewstep.objectives import LinearPath, ProbabilityPath, TrigPath
from fewstep.objectives.core.amed import Amed, solve, train
from fewstep.objectives.core.samplers import integrate

NFE = (2, 4, 8)
CALLS = {"euler": 1, "dpmpp": 1, "heun": 2, "midpoint": 2}  # of the network, a step
SEEDS = range(3)


def row(path: ProbabilityPath) -> dict[str, list[str]]:
    """By solver: the RMS error per coordinate at each NFE."""
    data = DATA["gaussians"]
    assert isinstance(data, HasMixture)
    mixture, at = data.mixture(), coefficients(path)

    def field(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return mixture.velocity(x, *at(t))

    def noise(n: int, seed: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed)
        return path.start(torch.randn(n, 2, generator=g, dtype=torch.float64))

    start = noise(2048, 1000)
    exact = mixture.flow_map(start, path.t_max, 0.0, at)

    def error(end: torch.Tensor) -> float:
        return float((end - exact).square().mean().sqrt())

    errors: dict[str, list[str]] = {}
    for solver, calls in CALLS.items():
        ends = [integrate(field, start, path.times(n // calls), solver, path=path) for n in NFE]
        errors[solver] = [f"{error(end):.3f}" for end in ends]
    for scale in (0.01, 0.2):
        cells = []
        for n in NFE:
            times, found = path.times(n // 2), []
            for seed in SEEDS:
                g, settings = torch.Generator().manual_seed(seed), Amed(scale=scale)
                trained, *_ = train(field, noise(256, seed), None, times, settings, g)
                found.append(error(solve(field, trained, start, times)))
            cells.append(f"{mean(found):.3f} ± {stdev(found):.3f}")
        errors[f"amed, scale {scale:g}"] = cells
    return errors


if __name__ == "__main__":
    torch.manual_seed(0)
    for path in (LinearPath(), TrigPath(0.5)):
        print(f"\n{path}\n\n| solver | {' | '.join(f'NFE {n}' for n in NFE)} |")
        print(f"| --- |{' ---: |' * len(NFE)}")
        for solver, cells in row(path).items():
            print(f"| {solver} | {' | '.join(cells)} |")
