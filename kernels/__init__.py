"""Functions on tensors: second moments, factorisations, eliminations, selections. No configuration, no modules, no logging.

Letters that end a tensor's name give its shape:

    R  rows of a prunable matrix (outputs)             C  columns (inputs; a convolution is flattened to in/groups * kh * kw)
    B  entries of a block (consecutive in one row)     n  blocks of a layer
    K  gradients in a chunk; positions of a unit       N  samples
    G  tiles of a block (see ``patterns``); groups     U  units of a group
    S  units of all groups, one after another
    D  outputs of a sample                             P  positions along a dimension

A loss is in units of the calibration loss for one gradient. Names that end in ``_bytes``, ``_seconds`` or ``_ms`` are in these units.

**Meaning of H.** ``H`` is always the *mean* second moment in

    loss increase = 1/2 * delta^T H delta

For the block Fisher (CAP) ``H = 1/N sum g g^T`` with ``g`` the gradient of one calibration batch. For the layer Hessian (OBC, SparseGPT)
``H = 2/N sum x x^T`` with ``x`` the layer's input. Dampening is added to ``H`` (never to a sum), and ``A`` is always its inverse.
"""
