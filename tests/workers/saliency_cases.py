"""Networks of a few hundred weights with units, and their saliencies from dense matrices."""

import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from workers.data.base import Batch
from workers.losses import Loss
from workers.models.structures.find import find_groups
from workers.models.structures.groups import Group, Kind, Slice
from workers.models.timm import TimmModel
from workers.pruners.sosp import SOSPH, SOSPI, Product
from workers.pruners.taylor import UnitTaylor
from workers.pruners.unit_baselines import UnitMagnitude, UnitRandom
from workers.pruners.units import Of, UnitTarget

TARGET = UnitTarget(0.5, Of.STRUCTURES, 1, 0.0)
EPSILON = 1e-2


def pruners(seed=0, normalise=False):
    return {
        "scaling": SOSPH(TARGET, False, Product.SCALING, EPSILON, normalise),
        "exact": SOSPH(TARGET, False, Product.EXACT, EPSILON, normalise),
        "sosp_i": SOSPI(TARGET, False),
        "taylor": UnitTaylor(TARGET, False, False),
        "magnitude": UnitMagnitude(TARGET, False),
        "random": UnitRandom(TARGET, False, seed),
    }


READERS = ("scaling", "exact", "sosp_i", "taylor")


class Net(nn.Module):
    """A body and a head, as a classifier of timm has."""

    def __init__(self, body, head):
        super().__init__()
        self.body, self.head = body, head

    def forward_features(self, images_NCHW):
        return self.body(images_NCHW)

    def forward(self, images_NCHW):
        return self.head(self.body(images_NCHW))


def group(name, kind, units, *produced, running=()):
    each_U1 = torch.arange(units)[:, None]

    def slices(tensors):
        return tuple(Slice(tensor, 0, each_U1) for tensor in tensors)

    return Group(name, kind, slices(produced), (), slices(running))


def perceptron():
    """Two hidden layers, and a unit that is two neurons in the second."""
    torch.manual_seed(0)
    net = Net(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 4)), nn.Linear(4, 3))
    pairs_U2 = torch.tensor([[0, 3], [4, 1]])  # neurons 2 and 5 are in no unit
    pairs = Group("body.3", Kind.NEURON, (Slice("body.3.weight", 0, pairs_U2), Slice("body.3.bias", 0, pairs_U2)), ())
    return net.double().eval(), [group("body.1", Kind.NEURON, 5, "body.1.weight", "body.1.bias"), pairs], (1, 3, 4)


def convolutional(statistics=True, norms=True):
    torch.manual_seed(1)
    convolutions = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)]
    bodies = [
        layer for conv in convolutions for layer in (conv, nn.BatchNorm2d(conv.out_channels, track_running_stats=statistics), nn.SiLU())
    ]
    net = Net(nn.Sequential(*bodies, nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(3, 3)).double().eval()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1 and tensor.dtype == torch.float64:
                tensor.add_(torch.randn(len(tensor)), alpha=0.3)
    groups = []
    for at, conv in ((0, convolutions[0]), (3, convolutions[1])):
        produced = [f"body.{at}.weight"] + ([f"body.{at}.bias", f"body.{at + 1}.weight", f"body.{at + 1}.bias"] if norms else [])
        running = [f"body.{at + 1}.running_mean", f"body.{at + 1}.running_var"] if statistics else []
        groups.append(group(f"body.{at}", Kind.CHANNEL, conv.out_channels, *produced, running=running))
    return net, groups, (3, 7, 7)


def transformer():
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 1.0, "num_classes": 3}
    family = TimmModel(name="vit_tiny_patch16_224", arguments=arguments, checkpoint=None, include=["*"], exclude=[])
    torch.manual_seed(2)
    model = family.build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model, find_groups(family, (3, 8, 8), streams=False), (3, 8, 8)


NETS = {"perceptron": perceptron, "convolutional": convolutional, "transformer": transformer}


def data(shape, sizes=(3, 4), seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(torch.randn(size, *shape, generator=generator, dtype=torch.float64), torch.randint(3, (size,), generator=generator))
        for size in sizes
    ]


def structure_matrix(model, groups):
    """``theta_s`` as columns (P, S) over the tensors that hold units, entry by entry, and the vector of all their weights (P,)."""
    names = list(dict.fromkeys(part.tensor for one in groups for part in one.produced))
    columns = []
    for one in groups:
        for unit in range(one.units):
            own = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
            for part in one.produced:
                for position in part.index_UK[unit].tolist():
                    place = (slice(None),) * part.dim + (position,)
                    own[part.tensor][place] = model.get_parameter(part.tensor).detach()[place]
            columns.append(torch.cat([own[name].reshape(-1) for name in names]))
    return names, torch.stack(columns, 1), torch.cat([model.get_parameter(name).detach().reshape(-1) for name in names])


def outputs_of(model, names, images, features=False):
    """The outputs as a function of the vector of weights."""

    def at(vector_P):
        sizes = [model.get_parameter(name).shape for name in names]
        parts = vector_P.split([size.numel() for size in sizes])
        tensors = {f"net.{name}": part.view(size) for name, part, size in zip(names, parts, sizes, strict=True)}
        return functional_call(Seen(model, features), tensors, (images,))

    return at


class Seen(nn.Module):
    def __init__(self, net, features):
        super().__init__()
        self.net, self.features = net, features

    def forward(self, images):
        return self.net.forward_features(images) if self.features else self.net(images)


@sdpa_kernel(SDPBackend.MATH)
def dense(model, groups, batches, loss):
    """``theta_s^T g`` and ``theta_s^T H theta_struct``: a dense Hessian, or Fisher and Gauss-Newton matrices by explicit Jacobians."""
    names, theta_PS, vector_P = structure_matrix(model, groups)
    total_P, total_PP = torch.zeros_like(vector_P), 0.0
    for images, labels in batches:
        at = outputs_of(model, names, images, loss is Loss.FEATURES)
        if loss is Loss.LABELS:
            value = lambda vector_P, at=at, labels=labels: cross_entropy(at(vector_P), labels, reduction="sum")  # noqa: E731
            total_P = total_P + grad(value)(vector_P)
            total_PP = total_PP + hessian(value)(vector_P)
            continue
        jacobian_NMP = jacrev(at)(vector_P).flatten(1, -2)
        if loss is Loss.FEATURES:
            total_PP = total_PP + sum(j.T @ j / len(j) for j in jacobian_NMP)
        else:
            for j, p in zip(jacobian_NMP, at(vector_P).softmax(1), strict=True):
                total_PP = total_PP + j.T @ (torch.diag(p) - torch.outer(p, p)) @ j
    return (theta_PS.T @ total_P).detach(), (theta_PS.T @ total_PP @ theta_PS.sum(1)).detach()


def measured(method, model, groups, batches, loss=Loss.LABELS, seed=0):
    return pruners()[method].collect(model, groups, lambda: iter(batches), loss, seed)


def distance(found_S, expected_S):
    return float((found_S - expected_S).norm() / expected_S.norm())


def silent(model, *units):
    with torch.no_grad():
        for unit in units:
            model.body[1].weight[unit], model.body[1].bias[unit] = 0.0, 0.0
    return model
