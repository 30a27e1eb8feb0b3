"""Large batches on small memory: GradCache (Gao et al., arXiv:2101.06983, section 3).

A contrastive loss needs all embeddings of a batch at once, but the memory goes to what the
encoders keep for the way back. So the batch is embedded in chunks that keep nothing; the loss
gives the gradient of every embedding; and each chunk is embedded again, alone, to carry its part
of that gradient on to the parameters. The result is that of the whole batch, for one more
forward pass: memory follows the chunk, and the n x m similarities of the loss.
"""

from collections.abc import Callable, Sequence

import torch

from protocol.errors import TrainingError

# How far two passes over one chunk may differ in a coordinate of a unit vector: well above what
# a processor's order of summation does, well below what dropout does.
_TOLERANCE = 1e-4


def backward(
    images: Sequence[Callable[[], torch.Tensor]],
    texts: Sequence[Callable[[], torch.Tensor]],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Adds the gradients of ``loss`` over all chunks to the parameters; returns it, detached.

    Each callable embeds one chunk as float32 [c, d]. It is called twice and must give the same
    both times: draw augmentations before, switch dropout off, and let nothing mix the items of a
    chunk (batch normalisation in training mode does). ``loss`` is called once, with the
    embeddings of all images [n, d] and of all texts [m, d] in the order of the chunks; what it
    uses besides, such as the temperature, gets its gradient there. A chunk that needs no
    gradient is fine. With one chunk of each there is nothing to save, and each is embedded once.

    Raises TrainingError where a chunk is embedded otherwise the second time, ValueError where
    there are no chunks.
    """
    if not images or not texts:
        raise ValueError(f"expected chunks, got {len(images)} of images, {len(texts)} of texts")
    if len(images) == len(texts) == 1:
        value = loss(images[0](), texts[0]())
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()
    encoders = [*images, *texts]
    with torch.no_grad():
        embeddings = [encode().detach().requires_grad_() for encode in encoders]
    value = loss(torch.cat(embeddings[: len(images)]), torch.cat(embeddings[len(images) :]))
    value.backward()  # type: ignore[no-untyped-call]
    for encode, chunk in zip(encoders, embeddings, strict=True):
        _carry_on(encode(), chunk)
    return value.detach()


def _carry_on(again: torch.Tensor, before: torch.Tensor) -> None:
    """Sends the gradient of the embeddings ``before`` down the graph of the same ones ``again``."""
    if again.shape != before.shape or ((again - before).abs() > _TOLERANCE).any():
        raise TrainingError(
            "a chunk of the batch was embedded twice, with different results",
            "use an encoder without dropout, or train without chunks (chunk-size 0)",
        )
    if again.requires_grad and before.grad is not None:
        again.backward(before.grad)  # type: ignore[no-untyped-call]
