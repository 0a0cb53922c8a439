"""`streaming` in kernels for GPUs: the same functions, for float32 tensors.

Nothing else imports Triton. `prepare` makes the operands in plain PyTorch; `points` holds the
formulas of a pair, `tiles` the h of a tile of pairs, `kernels`, `selection` and `products` the
kernels, `launch` the functions. `rows` and the modules `row_*` are of vectors side by side.
"""

from lorentzkit.fused.triton.launch import (
    log_sums,
    log_sums_gradients,
    matrix,
    matrix_gradients,
    topk,
)

__all__ = ["log_sums", "log_sums_gradients", "matrix", "matrix_gradients", "topk"]
