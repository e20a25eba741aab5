r"""Saliencies of units: the sums over data that pruners of units rank by.

``theta_s`` is everything that produces unit ``s`` (``Group.produced``: rows, biases, scales and shifts of norms), and ``theta_struct`` is
the sum of these vectors over all units of the given groups, which have no entry in common. Entries in no group do not change. ``g`` and
``H`` are the gradient and the Hessian of the loss, summed over samples. The model is in eval mode: with the statistics of a batch, the loss
would not depend on the scale of a filter before a norm, and all saliencies would vanish.

If the loss reads labels, samples without a label (-1) do not count. A batch without a sample that counts, or with a number that is not
finite, is skipped for all units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.saliency import add_gauss_newton_, unit_products
from workers.data.base import Batch
from workers.errors import SecateurError
from workers.losses import Loss, calibration_loss, forward, labelled, loss_increase
from workers.models.structures.groups import Group
from workers.numbers import derived_seed, finite
from workers.pruners.units import UnitSums

Batches = Callable[[], Iterator[Batch]]
Sums = dict[str, Tensor]

JACOBIAN_BYTES = 1 << 28  # memory of ``sosp_i`` for gradients of the weights, one for each output and sample


def sosp_h(model: nn.Module, groups: Sequence[Group], batches: Batches, loss: Loss, epsilon: float) -> UnitSums:
    r"""Returns ``gradient_S``, ``theta_s^T g``, and ``curvature_S``, ``theta_s^T H theta_struct``, from two gradients of each batch.

        g+-  gradient with theta_struct scaled by (1 +- epsilon)
        theta_s^T g = theta_s^T (g+ + g-) / 2               theta_s^T H theta_struct = theta_s^T (g+ - g-) / (2 epsilon)

    Source: Nonnenmacher et al. 2022 (arXiv 2110.11395), SOSP-H. Differs: the Hessian-vector product is a central difference. Its error is
    ``O(epsilon^2)``, because the direction is the weights themselves. It needs no second derivative, and the memory of one gradient.

    The loss is the one of ``loss_increase``. With ``labels`` it is the cross-entropy. With ``sampled`` and ``features`` it is a distance
    from the dense model, whose gradient at the dense weights is zero and whose Hessian is the Fisher or Gauss-Newton matrix, without the
    noise of drawn labels. The first-order term is then set to zero; the mean of the two gradients would only add an error.

    Where activations have kinks (ReLU), the difference includes those that switch between the two sets of weights. So does the real loss,
    but not the Hessian. With ``labels`` their share does not fall with ``epsilon``: on a ResNet-18 it is as large as the product itself.

    ``scale_S`` is the size of the terms that cancel in these sums, for ``kernels.saliency.vanishing``.
    """
    with _structure(model, groups) as parameters, _swapped(parameters) as (weights, put):
        scaled = [_scaled(groups, weights, 1 + side * epsilon) for side in (1, -1)]
        norm_S = unit_sums(groups, weights, weights).sqrt()

        def side(copies: Sums, dense: Tensor | None, images_NCHW: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
            put(copies)
            outputs = forward(loss, model, images_NCHW)
            if not finite(outputs):
                return None
            gradients = _gradients(loss_increase(loss, model, outputs.detach() if dense is None else dense, outputs, labels), parameters)
            return unit_sums(groups, weights, gradients), unit_sums(groups, gradients, gradients).sqrt()

        def of_batch(images_NCHW: Tensor, labels: Tensor, _: int) -> Sums:
            dense = None
            if loss is not Loss.LABELS:
                put(weights)
                with torch.no_grad():
                    dense = forward(loss, model, images_NCHW)
            sides = [sums for copies in scaled if (sums := side(copies, dense, images_NCHW, labels)) is not None]
            if len(sides) < 2:
                return {}
            (above_S, above_norm_S), (below_S, below_norm_S) = sides
            return {
                "gradient_S": (above_S + below_S) / 2 if loss is Loss.LABELS else torch.zeros_like(norm_S),
                "curvature_S": (above_S - below_S) / (2 * epsilon),
                "scale_S": norm_S * (above_norm_S + below_norm_S) / 2 * (1 + 0.5 / epsilon),
            }

        return _summed(_zeros(norm_S, "gradient_S", "curvature_S", "scale_S"), batches, loss, of_batch)


def sosp_h_exact(model: nn.Module, groups: Sequence[Group], batches: Batches, loss: Loss) -> UnitSums:
    """Returns the sums of ``sosp_h`` by differentiating twice: the reference. Takes more memory, and attention without fused kernels.

    Raises: SecateurError if an operation of the model cannot be differentiated twice.
    """
    with _structure(model, groups) as parameters, sdpa_kernel(SDPBackend.MATH):
        weights = {name: parameter.detach() for name, parameter in parameters.items()}
        direction = {name: copy.sub_(weights[name]) for name, copy in _scaled(groups, weights, 2.0).items()}
        norm_S = unit_sums(groups, weights, weights).sqrt()

        def of_batch(images_NCHW: Tensor, labels: Tensor, _: int) -> Sums:
            outputs = forward(loss, model, images_NCHW)
            if not finite(outputs):
                return {}
            gradients = _gradients(loss_increase(loss, model, outputs.detach(), outputs, labels), parameters, create_graph=True)
            along = torch.stack([(gradients[name] * direction[name]).sum() for name in parameters]).sum()
            try:
                products = _gradients(along, parameters)
            except RuntimeError as error:
                if "is not implemented" not in str(error):
                    raise
                raise SecateurError(
                    f"pruner.product: expected a model that can be differentiated twice for product=exact, got {type(model).__name__} "
                    f"({str(error).splitlines()[0]}); set pruner.product=scaling"
                ) from error
            gradient_norm_S, product_norm_S = (unit_sums(groups, tensors, tensors).sqrt() for tensors in (gradients, products))
            return {
                "gradient_S": unit_sums(groups, weights, gradients),
                "curvature_S": unit_sums(groups, weights, products),
                "scale_S": norm_S * (gradient_norm_S + product_norm_S / 2),
            }

        return _summed(_zeros(norm_S, "gradient_S", "curvature_S", "scale_S"), batches, loss, of_batch)


def sosp_i(model: nn.Module, groups: Sequence[Group], batches: Batches, loss: Loss) -> UnitSums:
    r"""Returns ``gauss_newton_SS``, ``sum_n J_n^T R_n J_n``, and ``gradient_S``, ``theta_s^T g = sum_n J_n^T (p_n - y_n)``.

        J_{n,s} = (d f_n / d theta) theta_s        R_n = diag(p_n) - p_n p_n^T

    ``J_n`` (D, S) holds the derivatives of a sample's logits by one scaling factor for each unit. ``R`` does not depend on the labels. With
    ``sampled`` labels the gradient is zero in expectation, and is set to zero.

    Source: Nonnenmacher et al. 2022 (arXiv 2110.11395), SOSP-I. Takes D backward passes for each sample, each with a gradient of all
    weights of the structures, and memory in ``S^2``. ``R`` is defined for logits only; the caller must not pass ``features``.
    """
    with _structure(model, groups) as parameters, sdpa_kernel(SDPBackend.MATH):
        weights = {name: parameter.detach() for name, parameter in parameters.items()}
        gated, factor_S = _gated(groups, weights)
        units = len(factor_S)
        pairs = max(1, JACOBIAN_BYTES // sum(weight.nbytes for weight in weights.values()))

        def zeros() -> Sums:
            return _zeros(factor_S, "gradient_S") | {"gauss_newton_SS": factor_S.new_zeros(units, units, dtype=torch.float64)}

        def logits_of(factor_S: Tensor, image_CHW: Tensor) -> Tensor:
            return torch.func.functional_call(model, gated(factor_S), (image_CHW[None],))[0]

        def of_batch(images_NCHW: Tensor, labels_N: Tensor, _: int) -> Sums:
            with torch.no_grad():
                logits_ND = model(images_NCHW)
            if not finite(logits_ND):
                return {}
            outputs, probability_ND = logits_ND.shape[1], logits_ND.softmax(1)
            error_ND = torch.zeros_like(probability_ND)
            if loss is Loss.LABELS:
                error_ND = probability_ND - nn.functional.one_hot(labels_N, outputs)
            jacobian = torch.func.jacrev(logits_of, chunk_size=min(pairs, outputs))
            by_sample = torch.func.vmap(jacobian, in_dims=(None, 0), chunk_size=max(1, pairs // outputs))
            sums = zeros()
            few = max(1, units // outputs)
            for image_NCHW, p_ND, e_ND in zip(*(t.split(few) for t in (images_NCHW, probability_ND, error_ND)), strict=True):
                jacobian_NDS = by_sample(factor_S, image_NCHW)
                add_gauss_newton_(sums["gauss_newton_SS"], jacobian_NDS, p_ND)
                sums["gradient_S"] += e_ND.flatten() @ jacobian_NDS.flatten(0, 1)
            return sums

        return _summed(zeros(), batches, loss, of_batch)


def taylor(model: nn.Module, groups: Sequence[Group], batches: Batches, loss: Loss, seed: int) -> UnitSums:
    r"""Returns ``absolute_S`` and ``squares_S``, the sums over batches of ``| sum_i theta_i g_i |`` and of its square.

    ``g`` is the gradient of the mean loss of a batch. If a group has batch norms, ``i`` runs over their scales and shifts, else over
    everything that produces the unit. Tied layers are added before the absolute value is taken. The loss is that of the block Fisher
    (``calibration_loss``), with its random draws seeded by ``seed``.

    Source: Molchanov et al. 2019 (arXiv 1906.10771), eq. 8, on norms, as HALP (Shen et al. 2022, arXiv 2110.10811) uses it.
    """
    scored = [_on_norms(group) for group in groups]
    with _structure(model, scored) as parameters:

        def of_batch(images_NCHW: Tensor, labels: Tensor, number: int) -> Sums:
            outputs = forward(loss, model, images_NCHW)
            if not finite(outputs):
                return {}
            gradients = _gradients(calibration_loss(loss, model, outputs, labels, derived_seed(seed, number)), parameters)
            change_S = unit_sums(scored, parameters, gradients)
            return {"absolute_S": change_S.abs(), "squares_S": change_S.square()}

        return _summed(_zeros(unit_sums(scored, parameters, parameters), "absolute_S", "squares_S"), batches, loss, of_batch)


def magnitude(model: nn.Module, groups: Sequence[Group]) -> UnitSums:
    """Returns ``squares_S``, the sum of the squared weights that produce each unit, and ``weights_S``, their number. Reads no data."""
    tensors = dict(model.named_parameters())
    return UnitSums({"squares_S": unit_sums(groups, tensors, tensors).cpu(), "weights_S": unit_weights(model, groups)}, 0, 0, 0)


def unit_weights(model: nn.Module, groups: Sequence[Group]) -> Tensor:
    """Returns how many weights produce each unit, float64 (S,)."""
    counts = []
    for group in groups:
        tensors = [(model.get_parameter(part.tensor), part) for part in group.produced]
        weights = sum(part.index_UK.shape[1] * (tensor.numel() // tensor.shape[part.dim]) for tensor, part in tensors)
        counts.append(torch.full((group.units,), float(weights), dtype=torch.float64))
    return torch.cat(counts)


@torch.no_grad()
def unit_sums(groups: Sequence[Group], left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """Returns ``sum_i left_i right_i`` over everything that produces a unit, float64 (S,). Tensors are given by name."""
    parts = [[unit_products(left[part.tensor], right[part.tensor], part.dim, part.index_UK) for part in group.produced] for group in groups]
    return torch.cat([torch.stack(part).sum(dim=0) for part in parts])


@contextmanager
def _structure(model: nn.Module, groups: Sequence[Group]) -> Iterator[Sums]:
    """Yields the parameters that hold structures, by name. In this context only they require gradients. Raises ValueError in train mode."""
    if any(module.training for module in model.modules()):
        raise ValueError("saliencies: expected a model in eval mode, got one in training mode; call model.eval()")
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    names = dict.fromkeys(part.tensor for group in groups for part in group.produced)
    try:
        model.requires_grad_(False)
        yield {name: model.get_parameter(name).requires_grad_(True) for name in names}
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextmanager
def _swapped(parameters: Mapping[str, Tensor]) -> Iterator[tuple[Sums, Callable[[Sums], None]]]:
    """Yields the tensors of the parameters, and a function that replaces them without a copy. On exit they are restored."""
    weights = {name: parameter.data for name, parameter in parameters.items()}

    def put(tensors: Sums) -> None:
        for name, parameter in parameters.items():
            parameter.data = tensors[name]

    try:
        yield weights, put
    finally:
        put(weights)


def _scaled(groups: Sequence[Group], weights: Mapping[str, Tensor], factor: float) -> Sums:
    """Returns copies of the weights with the entries of all units multiplied by ``factor``."""
    copies = {name: weight.clone() for name, weight in weights.items()}
    for group in groups:
        for part in group.produced:
            copy = copies[part.tensor]
            part.view(copy)[part.index_UK.reshape(-1).to(copy.device)] *= factor
    return copies


def _gated(groups: Sequence[Group], weights: Mapping[str, Tensor]) -> tuple[Callable[[Tensor], Sums], Tensor]:
    """Returns the weights as a function of one factor for each unit, and factors of one (S,), at which the weights are unchanged."""
    like = next(iter(weights.values()))
    units, first = sum(group.units for group in groups), 0
    unit_of: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        for part in group.produced:
            positions = weights[part.tensor].shape[part.dim]
            unit_P = unit_of.setdefault((part.tensor, part.dim), torch.full((positions,), units, device=like.device))
            unit_P[part.index_UK.to(like.device)] = torch.arange(first, first + group.units, device=like.device)[:, None]
        first += group.units

    def gated(factor_S: Tensor) -> Sums:
        with_others = torch.cat([factor_S, factor_S.new_ones(1)])  # the last factor is for entries that belong to no unit
        scaled = dict(weights)
        for (name, dim), unit_P in unit_of.items():
            shape = [1] * scaled[name].ndim
            shape[dim] = len(unit_P)
            scaled[name] = scaled[name] * with_others[unit_P].view(shape)
        return scaled

    return gated, like.new_ones(units)


def _on_norms(group: Group) -> Group:
    """Returns the group with only the scales and shifts of its batch norms in ``produced``; a group without any is not changed."""
    norms = {part.tensor.rpartition(".")[0] for part in group.running}
    parts = tuple(part for part in group.produced if part.tensor.rpartition(".")[0] in norms)
    return Group(group.name, group.kind, parts or group.produced, group.consumed, group.running)


def _gradients(value: Tensor, parameters: Mapping[str, Tensor], create_graph: bool = False) -> Sums:
    """Returns the gradients by name: zero if the value does not depend on a parameter."""
    gradients = torch.autograd.grad(value, list(parameters.values()), create_graph=create_graph, materialize_grads=True)
    return dict(zip(parameters, gradients, strict=True))


def _zeros(like_S: Tensor, *names: str) -> Sums:
    return {name: torch.zeros(len(like_S), dtype=torch.float64, device=like_S.device) for name in names}


def _summed(totals: Sums, batches: Batches, loss: Loss, of_batch: Callable[[Tensor, Tensor, int], Sums]) -> UnitSums:
    """Returns ``totals`` plus the sums that ``of_batch`` computes from images, labels and number (from 1) of each batch, on the CPU."""
    device = next(iter(totals.values())).device
    samples = used = skipped = 0
    for number, (images_NCHW, labels) in enumerate(batches(), 1):
        if loss is Loss.LABELS:
            known_N = labelled(labels)
            images_NCHW, labels = images_NCHW[known_N], labels[known_N]
        sums = of_batch(images_NCHW.to(device), labels.to(device), number) if len(labels) else {}
        if not sums or not all(finite(value) for value in sums.values()):
            skipped += 1
            continue
        totals = {name: total.add_(sums[name]) for name, total in totals.items()}
        samples, used = samples + len(labels), used + 1
    return UnitSums({name: total.cpu() for name, total in totals.items()}, samples, used, skipped)
