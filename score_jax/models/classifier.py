"""A small convolutional classifier, whose last hidden layer measures distances of images."""

import flax.linen as nn
import jax.numpy as jnp

from score_jax.models.layers import Conv, flat_normal
from score_jax.typing import Array, Float, Images

SMALLEST = 4
"""Side of the feature maps at which halving ends."""


class Classifier(nn.Module):
    """Convolutions that halve the image until it is about 4x4 pixels, then a hidden layer.

    Attributes:
        num_classes: Number of classes.
        mean: Mean of the images.
        std: Standard deviation of the images; above 0.
        width: Features at full resolution, doubled at each halving up to four times that.
        num_features: Units of the hidden layer.
    """

    num_classes: int
    mean: float = 0.5
    std: float = 0.25
    width: int = 32
    num_features: int = 128

    @nn.compact
    def __call__(
        self, x: Images
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
        """Features after the hidden layer's rectifier, and logits of the classes."""
        normal = flat_normal(2.0)
        h = (jnp.asarray(x, jnp.float32) - self.mean) / self.std
        width = self.width
        h = nn.relu(Conv(width, kernel_init=normal)(h))
        while min(h.shape[1:3]) > SMALLEST:
            # An odd side gets one more row or column of zeros.
            odd = [(0, side % 2) for side in h.shape[1:3]]
            h = jnp.pad(h, ((0, 0), *odd, (0, 0)))
            width = min(2 * width, 4 * self.width)
            h = nn.relu(Conv(width, kernel_init=normal, halve=True)(h))
            h = nn.relu(Conv(width, kernel_init=normal)(h))
        hidden = nn.Dense(self.num_features, kernel_init=normal)(h.reshape(len(h), -1))
        features = nn.relu(hidden)
        return features, nn.Dense(self.num_classes, kernel_init=flat_normal(1.0))(features)
