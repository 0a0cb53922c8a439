"""What makes pairwise ops and contrastive losses fast; nothing here is public.

`problems` has the types of arguments and results. `registry` makes the functions ops of PyTorch and
picks a backend: `reference`, the specification in plain PyTorch; `streaming`, in blocks that fit
the cache; `triton`, in kernels.
"""
