"""Accuracy of a classifier on completed digits, and whether known pixels are kept.

    score-jax --mode=inpaint --number=200 --completions=1
    python benchmarks/inpainting_accuracy.py runs/digits/inpainting.npz

A support vector machine trained on the 1500 training digits classifies the originals and the
completed images. A second one, trained on the known pixels alone, gives the accuracy that is
possible without completion.
"""

import argparse

import numpy as np
from sklearn.svm import SVC

from score_jax.data.sources import digits


def main():
    """Prints the accuracies of a file of completions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="inpainting.npz of a workdir")
    with np.load(parser.parse_args().file, allow_pickle=False) as file:
        originals, completions = file["originals"], file["completions"]
        mask, labels = file["mask"], file["labels"]
    num_images, num_completions = completions.shape[:2]
    known = originals[:, None][:, :, mask]
    kept = bool((completions[:, :, mask] == known).all())

    data = digits()
    train = ((data.train + 0.5) / 17).astype(np.float32)
    whole = SVC(C=10).fit(train.reshape(len(train), -1), data.train_labels)
    partial = SVC(C=10).fit(train[:, mask], data.train_labels)

    def accuracy(classifier, x):
        found = classifier.predict(x.reshape(len(x), -1))
        return (found == np.repeat(labels, len(x) // num_images)).mean()

    completed = completions.reshape(num_images * num_completions, -1)
    print(
        f"{num_images} images, {num_completions} completions each; known pixels are exact: {kept}"
    )
    print(f"originals                      {accuracy(whole, originals):.3f}")
    print(f"completed images               {accuracy(whole, completed):.3f}")
    print(f"known pixels (own classifier)  {accuracy(partial, originals[:, mask]):.3f}")


if __name__ == "__main__":
    main()
