"""What each merge rule makes of dense deltas, entry by entry, written from the papers."""

import numpy as np


def trim(delta, density):
    """The floor(density n) largest entries."""
    flat = delta.T.ravel()
    order = sorted(range(flat.size), key=lambda place: (-abs(flat[place]), place))
    kept = np.zeros(flat.size)
    for place in order[: max(1, int(density * flat.size + 1e-9))]:
        kept[place] = flat[place]
    return kept.reshape(delta.T.shape).T


def drop(delta, density, numbers):
    """Entries whose number is below the density, over the density."""
    return np.where(numbers < density, delta / density, 0.0)


def mag_prune(delta, density, epsilon, numbers):
    """Entries of each output kept with a probability that rises with their rank."""
    got = np.zeros_like(delta)
    n = len(delta)
    for column in range(delta.shape[1]):
        for rank, row in enumerate(sorted(range(n), key=lambda row: abs(delta[row, column]))):
            chance = density - epsilon + (2 * epsilon * rank / (n - 1) if n > 1 else epsilon)
            if numbers[row, column] < chance:
                got[row, column] = delta[row, column] / chance
    return got


def add(deltas, weights, normalize=False):
    """The weighted sum."""
    total = sum(weight * delta for weight, delta in zip(weights, deltas, strict=True))
    return total / sum(weights) if normalize else total


def elect(deltas, weights, how, normalize=False):
    """The disjoint mean, entry by entry."""
    got = np.zeros_like(deltas[0])
    for place in np.ndindex(*got.shape):
        values = [(np.sign(weight) * delta[place], abs(weight)) for delta, weight in zip(deltas, weights, strict=True) if weight]
        mass = {
            "total": sum(value for value, _ in values),
            "weighted": sum(value * size for value, size in values),
            "frequency": sum(np.sign(value) for value, _ in values),
        }[how]
        sign = 1 if mass >= 0 else -1
        chosen = [(value, size) for value, size in values if value * sign > 0]
        if chosen:
            got[place] = sum(value * size for value, size in chosen) / (sum(size for _, size in chosen) if normalize else len(chosen))
    return got
