"""What makes pairwise ops and contrastive losses fast; nothing here is public.

`reference` is the specification, in plain PyTorch; `formulas` its pairs of points, with analytic
derivatives; `streaming` and `triton` evaluate those block by block; `registry` makes them ops of
PyTorch and picks one.
"""
