"""Which items of a batch are of the same thing, and so never each other's negatives."""

import torch


def same_things(numbers: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Which items share a caption or a group.

    ``numbers`` is int64 [n, k]: the numbers of each item's captions, -1 where it has fewer than
    k. ``groups`` is int64 [n]: the number of its patient, product or scene, -1 for none. Returns
    bool [n, n], symmetric, true on the diagonal; what A and B share and what B and C share need
    not be shared by A and C. Texts beside the items are further rows: take the first n rows of
    what comes back. Memory is that of the result, and n bytes for each number that recurs.
    """
    if numbers.ndim != 2 or groups.shape != numbers.shape[:1]:
        raise ValueError(
            f"expected numbers [n, k] and groups [n], got {list(numbers.shape)} and "
            f"{list(groups.shape)}"
        )
    same = torch.eye(len(numbers), dtype=torch.bool, device=numbers.device)
    _mark(same, numbers)
    _mark(same, groups[:, None])
    return same


def _mark(same: torch.Tensor, values: torch.Tensor) -> None:
    """Sets ``same`` for every two rows of ``values`` that have a value >= 0 in common.

    Each value's members are found once, then every row adds those of its own values: comparing
    all with all would take n x n x k x k.
    """
    found, which, counts = torch.unique(values, return_inverse=True, return_counts=True)
    met = (found >= 0) & (counts > 1)
    place = (met.cumsum(0) * met)[which]  # 0: the members of what nobody shares, none
    members = same.new_zeros(int(met.sum()) + 1, len(same))
    members[place, torch.arange(len(same), device=same.device)[:, None]] = True
    members[0] = False
    for column in place.T:
        same |= members[column]
