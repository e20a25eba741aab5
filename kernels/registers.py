"""The vector registers of this processor."""

from __future__ import annotations

import llvmlite.binding as llvm

REGISTER_BITS = 512 if llvm.get_host_cpu_features().get("avx512f") else 256
FUSED = ("contract",)  # flags of LLVM: a product and a sum may be one instruction
