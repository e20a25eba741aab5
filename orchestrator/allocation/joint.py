"""Chooses widths of groups whose costs depend on pairs of groups, by constraint programming. The only file that imports ortools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy import ndarray

from workers.errors import ConfigError

SCALE = 1_000_000  # the budget, and the largest value, as integers
WORKERS = 2


def choose_jointly(
    values: Sequence[ndarray], costs: Sequence[ndarray], pairs: Mapping[tuple[int, int], ndarray], budget: float, seconds: float
) -> tuple[ndarray | None, bool]:
    """Returns the options, (G,) int64, with the largest value within the budget, and whether they are proven to be the best.

    The options are None if none were found in ``seconds``.

        max_p  sum_g I_g(p_g)     s.t.  sum_g T_g(p_g) + sum_gh T_gh(p_g, p_h) <= budget

    ``pairs`` maps two groups to their table (P_g, P_h). Costs are rounded up to a millionth of the budget, so that it is never exceeded.
    Raises: ConfigError if ortools is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise ConfigError("pruner.target.solver: joint needs ortools, which is not installed; run: pip install ortools") from error
    if budget <= 0:
        return None, False
    model = cp_model.CpModel()
    chosen = [[model.new_bool_var(f"{group}:{option}") for option in range(len(value))] for group, value in enumerate(values)]
    for options in chosen:
        model.add_exactly_one(options)
    terms = [
        _grid(cost, budget)[option] * is_chosen
        for cost, options in zip(costs, chosen, strict=True)
        for option, is_chosen in enumerate(options)
    ]
    for (g, h), table in pairs.items():
        # The pair costs at least its table entry when both options are chosen; a budget needs no more than this bound.
        grid = _grid(table, budget)
        low = int(grid.min())
        paid = model.new_int_var(low, int(grid.max()), f"{g}x{h}")
        for first, row in enumerate(grid):
            for second, cost in enumerate(row):
                if cost > low:
                    model.add(paid >= int(cost)).only_enforce_if([chosen[g][first], chosen[h][second]])
        terms.append(paid)
    model.add(sum(terms) <= SCALE)
    largest = max(float(np.abs(value).max()) for value in values) or 1.0
    model.maximize(
        sum(
            round(SCALE * float(value[option]) / largest) * is_chosen
            for value, options in zip(values, chosen, strict=True)
            for option, is_chosen in enumerate(options)
        )
    )
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds, solver.parameters.num_workers, solver.parameters.random_seed = seconds, WORKERS, 0
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, status == cp_model.INFEASIBLE
    options_G = [next(option for option, is_chosen in enumerate(options) if solver.value(is_chosen)) for options in chosen]
    return np.array(options_G, dtype=np.int64), status == cp_model.OPTIMAL


def _grid(costs: ndarray, budget: float) -> ndarray:
    return np.ceil(SCALE * costs / budget - 1e-9).astype(np.int64)
