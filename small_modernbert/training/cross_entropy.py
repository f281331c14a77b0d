"""Cross-entropy over a large vocabulary without holding all its logits.

Logits, softmax and both gradients of the decoder are computed chunk by chunk in the forward pass,
so that the peak is one chunk's logits, whatever the batch (the idea of Cut Cross-Entropy, arXiv
2411.09009, and of Liger Kernel, arXiv 2410.10989, in plain torch).
"""

import torch

CHUNK = 1_024  # positions at once: 200 MB of fp32 logits at 50,368 entries


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the sum over positions of -log softmax(hidden @ weight.T + bias)[label], fp32.

    Args:
        hidden: `(positions, hidden_size)` fp32.
        weight: `(vocabulary, hidden_size)` fp32, the decoder's.
        bias: `(vocabulary,)`, or None.
        labels: `(positions,)` int64.
        dtype: of the matrix products; softmax and sums are fp32.
    """
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels, dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        table = weight.detach().to(dtype)
        learns = any(ctx.needs_input_grad)
        into_hidden, into_weight = torch.empty_like(hidden), None
        into_bias = None if bias is None else torch.zeros_like(bias)
        total = hidden.new_zeros(())
        for begin in range(0, len(hidden), CHUNK):
            rows = slice(begin, begin + CHUNK)
            chosen, wanted = hidden[rows].detach().to(dtype), labels[rows, None]
            logits = (chosen @ table.T).float()
            if bias is not None:
                logits += bias
            norm = torch.logsumexp(logits, dim=1, keepdim=True)
            total += (norm - logits.gather(1, wanted)).sum()
            if not learns:
                continue
            slopes = logits.sub_(norm).exp_()
            slopes.scatter_add_(1, wanted, torch.full_like(norm, -1.0))
            if into_bias is not None:
                into_bias += slopes.sum(dim=0)
            slopes = slopes.to(dtype)
            into_hidden[rows] = slopes @ table
            product = slopes.T @ chosen
            into_weight = product.float() if into_weight is None else into_weight.add_(product)
        ctx.save_for_backward(into_hidden, into_weight, into_bias)
        return total

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        scaled = [None if part is None else part.mul_(gradient) for part in ctx.saved_tensors]
        return *scaled, None, None
