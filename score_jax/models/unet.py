"""A small U-Net for small images, draft."""
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
class UNet(nn.Module):
    sigmas: tuple
    width: int = 24
    @nn.compact
    def __call__(self, x, level):
        sigma = jnp.asarray(self.sigmas, jnp.float32)[level][:, None, None, None]
        t = jnp.sqrt(sigma**2 + 0.35**2)
        h = nn.Conv(self.width, (3, 3))((x - 0.3) / t)
        h = h + nn.Dense(self.width)(jnp.log(sigma))
        h = nn.Conv(x.shape[-1], (3, 3), kernel_init=nn.initializers.zeros)(nn.silu(h))
        return -(x - 0.3) / t**2 + 0.35 / (t * sigma) * h
