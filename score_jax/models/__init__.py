"""Score networks: Flax modules whose `apply` is a score function once the parameters are bound.

score_fn = functools.partial(model.apply, {"params": params})
"""
