"""How often a classifier names completed digits as the originals' class, and that what is known is kept.

The classifier, a support vector machine on the 1500 training digits, sees whole images: true ones, completed ones, and, for what the known
pixels alone say, one that is trained on the known pixels.

Command: python main.py --mode=inpaint --number=200 --completions=1 && python benchmarks/inpainting_accuracy.py runs/digits/inpainting.npz
"""

import sys

import numpy as np
from sklearn.svm import SVC

from score_jax.data.sources import digits


def main(path):
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    mask, labels, completions = found["mask"], found["labels"], found["completions"]
    kept = np.array_equal(completions[:, :, mask], np.repeat(found["originals"][:, None], completions.shape[1], 1)[:, :, mask])
    data = digits()
    train = ((data.train + 0.5) / 17).astype(np.float32)

    def accuracy(classifier, x):
        return (classifier.predict(x.reshape(len(x), -1)) == np.repeat(labels, len(x) // len(labels))).mean()

    whole = SVC(C=10).fit(train.reshape(len(train), -1), data.train_labels)
    half = SVC(C=10).fit(train[:, mask], data.train_labels)
    print(f"{len(labels)} images, {completions.shape[1]} completions each; known pixels exact: {kept}")
    print(f"true images                       {accuracy(whole, found['originals']):.3f}")
    print(f"completed images                  {accuracy(whole, completions.reshape(-1, *completions.shape[2:])):.3f}")
    print(f"known pixels only (trained on it) {accuracy(half, found['originals'][:, mask]):.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
