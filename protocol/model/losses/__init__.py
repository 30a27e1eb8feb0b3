"""The losses that pull an item's two embeddings together: one file each, one signature."""

from protocol.model.losses.loss import Loss, initial_bias, initial_scale, loss_by_name
from protocol.model.losses.same import same_things

__all__ = ["Loss", "initial_bias", "initial_scale", "loss_by_name", "same_things"]
