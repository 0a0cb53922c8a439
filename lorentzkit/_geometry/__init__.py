"""The geometry of paired vectors: invariants, scalar formulas, sums of vectors.

An op is three steps: `invariants` measures vectors (products, lengths, the angle between them),
scalar formulas turn those numbers into a value or into coefficients, and `vectors.combine` adds the
vectors up with the coefficients. Only the first and the last step touch N x D numbers.
"""
