"""The L0 step in float64, by a sort of what moving each entry, or pixel, gains."""

import torch


def exact_step(x_adv, grad, x, step_size, eps, *, pixels=False, bounds=(0.0, 1.0)):
    """(B, ...) in float64. step_size, eps: numbers or (B,) tensors."""
    start, g, clean = (t.double().reshape(len(t), -1) for t in (x_adv, grad, x))
    step, count = (torch.as_tensor(v, device=x.device).expand(len(x)) for v in (step_size, eps))
    g = g.nan_to_num(0.0)
    z = start + step.double()[:, None] * g / g.abs().sum(1, keepdim=True).clamp(min=1e-300)
    moved = z if bounds is None else z.clamp(*bounds)
    gain = (z - clean).square() - (z - moved).square()
    positions = gain.view(len(x), x.shape[1] if pixels else 1, -1).sum(1)
    result = clean.clone()
    for row, k in enumerate(count.long().tolist()):
        order = positions[row].argsort(descending=True, stable=True)[:k]
        kept = torch.zeros_like(positions[row], dtype=torch.bool)
        kept[order] = True
        kept = kept.expand(gain[row].numel() // len(kept), -1).reshape(-1)
        result[row] = torch.where(kept, moved[row], clean[row])
    return result.view(x.shape)


def changed(x_adv, x, *, pixels=False):
    """How many entries, or pixels, of each sample have other bits than x."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    differs = x_adv.contiguous().view(integer) != x.contiguous().view(integer)
    return (differs.any(1) if pixels else differs).reshape(len(x), -1).sum(1)
