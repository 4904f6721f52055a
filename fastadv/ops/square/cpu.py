"""The L-infinity Square Attack step on CPUs: numpy on the windows alone, all slots at once.

A window late in the attack holds some twenty elements; an image pass costs a hundred times that.
"""

import numpy as np

from fastadv.kernels import slots as columns
from fastadv.ops.square.windows import Windows

_ELEMENTS_AT_ONCE = 5120  # tested in one round: the fastest for 32 to 250 slots of small images
_CANDIDATE = 28  # what a candidate costs beside its window's elements, in elements
_MOST_AHEAD = 64  # candidates of a slot in one round


def _accept(loss, prediction, labels, best_loss, queries, wasted, slots, count):
    """(slots that go on, all accepted: slot, row, query; cursor of every slot)."""
    active = slots[:, columns.ACTIVE] != 0
    valid = (queries < count) & active[:, None]
    nan = np.isnan(loss)
    wrong = (prediction != labels[:, None]) & ~nan
    takes = valid & ((loss > best_loss[:, None]) | wrong)
    width = queries.shape[1]
    taken = np.where(takes.any(1), takes.argmax(1), width)
    considered = valid & (np.arange(width) <= taken[:, None])
    last = np.where(considered, queries, -2).max(1)
    last = np.where(considered.any(1), last, count - 1)
    slot = np.flatnonzero(taken < width)
    row = taken[slot]
    best_loss[slot] = loss[slot, row]
    wasted += (valid & ~considered).sum(1, dtype=wasted.dtype)
    fault = (considered & nan).any(1)
    slots[fault, columns.FAULT] |= columns.FAULT_NAN_LOGITS
    fooled = slot[wrong[slot, row]]
    slots[fooled, columns.SUCCESS_STEP] = slots[fooled, columns.STEP] = last[fooled] + 1
    slots[fooled, columns.ACTIVE] = 0
    active[fooled] = False
    return np.flatnonzero(active), slot, row, last[slot], last + 1


def _accept_one(loss, prediction, labels, best_loss, query, slots, count):
    """`_accept` where slots have one row: which go on, were evaluated, were accepted, (B,) bool."""
    active = slots[:, columns.ACTIVE] != 0
    evaluated = (query < count) & active
    wrong, nan = prediction != labels, loss != loss
    if np.count_nonzero(nan):
        wrong &= ~nan
        slots[evaluated & nan, columns.FAULT] |= columns.FAULT_NAN_LOGITS
    taken = ((loss > best_loss) | wrong) & evaluated
    np.copyto(best_loss, loss, where=taken)
    fooled = taken & wrong
    if np.count_nonzero(fooled):
        step = query[fooled] + 1
        slots[fooled, columns.SUCCESS_STEP] = slots[fooled, columns.STEP] = step
        slots[fooled, columns.ACTIVE] = 0
        active &= ~fooled
    return active, evaluated, taken


def square_linf(
    x_new,
    x_best,
    x,
    loss,
    prediction,
    labels,
    best_loss,
    queries,
    wasted,
    slots,
    restarts,
    geometry,
    signs,
    eps,
    eps_rows,
    lo,
    hi,
    count,
) -> None:
    """`fastadv.ops.square.linf`'s reference, bit for bit, on tensors of the CPU."""
    if x.numel() == 0:
        return
    windows = Windows(x_new, x_best, x, geometry, signs, eps, eps_rows, lo, hi)
    first = restarts.numpy().astype(np.int64) * count
    query, slot_state = queries.numpy(), slots.numpy()
    evaluated = loss.numpy(), prediction.numpy(), labels.numpy(), best_loss.numpy()
    if queries.shape[1] == 1:
        going = _step_one(windows, *evaluated, query[:, 0], slot_state, first, count)
    else:
        going = _step(windows, *evaluated, query, wasted.numpy(), slot_state, first, count)
    upcoming = query[going, 0]
    slot_state[going, columns.STEP] = upcoming
    slot_state[going, columns.ACTIVE] = upcoming < count


def _step_one(windows, loss, prediction, labels, best_loss, query, slots, first, count):
    """The step where every slot has one row; returns which slots go on."""
    active, evaluated, taken = _accept_one(loss, prediction, labels, best_loss, query, slots, count)
    slot = (evaluated & (query >= 0)).nonzero()[0]
    accepted = taken.take(slot)
    some = np.count_nonzero(accepted)
    for which, element in windows.elements(first.take(slot) + query.take(slot), slot):
        if some:
            own = element.take(accepted[which].nonzero()[0], 1)
            windows.best[own] = windows.new.take(own)
        windows.new[element] = windows.best.take(element)
    going = active.nonzero()[0]
    query[going] = _search_one(windows, first, going, query.take(going) + 1, count)
    return going


def _step(windows, loss, prediction, labels, best_loss, query, wasted, slots, first, count):
    """The step for any number of rows; returns which slots go on."""
    width = query.shape[1]
    going, slot, row, accepted, cursor = _accept(
        loss.reshape(query.shape),
        prediction.reshape(query.shape),
        labels,
        best_loss,
        query,
        wasted,
        slots,
        count,
    )
    own = accepted >= 0
    slot, row, accepted = slot[own], row[own], accepted[own]
    windows.copy(first[slot] + accepted, windows.best, slot, windows.new, slot * width + row)
    # rows of x_new equal x_best again: their own windows, and the accepted one in the others
    which, k = ((query[going] >= 0) & (query[going] < count)).nonzero()
    which = going[which]
    windows.copy(
        first[which] + query[which, k], windows.new, which * width + k, windows.best, which
    )
    others = (np.arange(width) != row[:, None]) & (slots[slot, columns.ACTIVE] != 0)[:, None]
    which, k = others.nonzero()
    of = slot[which]
    windows.copy(first[of] + accepted[which], windows.new, of * width + k, windows.best, of)
    query[going] = count
    _search(windows, first, query, going, cursor[going].astype(np.int64), count)
    return going


def _ahead(slots: int, elements: int, width: int) -> int:
    """How many candidates of each slot to test at once: what amortises the calls of numpy."""
    return min(_MOST_AHEAD, max(width, _ELEMENTS_AT_ONCE // (slots * (elements + _CANDIDATE))))


def _candidates(windows, first, slot, cursor, width, count):
    """((slots, ahead) next queries of each slot, their pairs' slots, which exist and change
    something, what `proposals` says of them); pairs are flat.
    """
    begin = first.take(slot) + cursor
    elements = int(windows.table[begin[0], 2]) ** 2 * windows.channels
    ahead = _ahead(len(slot), elements, width)
    query, pair, index = cursor[:, None], slot, begin
    if ahead > 1:
        query = query + np.arange(ahead)
        pair = slot.repeat(ahead)
        index = (first.take(slot)[:, None] + np.minimum(query, count - 1)).ravel()
    changes = np.empty(len(index), bool)
    tested = list(windows.proposals(index, pair))
    for which, _, _, differs in tested:
        changes[which] = differs
    if ahead > 1:
        changes &= (query < count).ravel()
    return query, pair, changes, tested


def _search_one(windows, first, slot, cursor, count) -> np.ndarray:
    """Write each slot's next proposal that changes something; which query it is, or count."""
    upcoming = np.minimum(cursor, count)
    waiting = (upcoming < count).nonzero()[0]
    while len(waiting):
        cursor = upcoming.take(waiting)
        query, pair, found, tested = _candidates(
            windows, first, slot.take(waiting), cursor, 1, count
        )
        ahead = query.shape[1]
        if ahead == 1:
            # where nothing changes this writes what is there
            for _, element, stored, _ in tested:
                windows.new[element] = stored
            cursor += ~found
        else:
            best = np.arange(0, len(pair), ahead) + found.reshape(-1, ahead).argmax(1)
            chosen = np.zeros(len(pair), bool)
            chosen[best] = True
            _write(windows, tested, chosen)
            found = found.take(best)
            cursor = np.where(found, query.ravel().take(best), query[:, -1] + 1)
        upcoming[waiting] = np.minimum(cursor, count)
        waiting = waiting[~found & (cursor < count)]
    return upcoming


def _write(windows, tested, chosen, shift=None) -> None:
    """Store chosen proposals in x_new, `shift` rows below their slot's."""
    for which, element, stored, _ in tested:
        column = chosen[which].nonzero()[0]
        to = element.take(column, 1)
        if shift is not None:
            to += shift[which].take(column) * windows.size
        windows.new[to] = stored.take(column, 1)


def _search(windows, first, query, slot, cursor, count) -> None:
    """Write each slot's next proposals that change something, and which queries they are."""
    width = query.shape[1]
    found = np.zeros(len(slot), np.int64)
    while len(slot := slot[(unfinished := (found < width) & (cursor < count))]):
        found, cursor = found[unfinished], cursor[unfinished]
        candidate, pair, changes, tested = _candidates(windows, first, slot, cursor, width, count)
        ahead = candidate.shape[1]
        rank = found[:, None] + changes.reshape(-1, ahead).cumsum(1)
        kept = changes & (rank <= width).ravel()
        target = pair * width + rank.ravel() - 1
        _write(windows, tested, kept, target - pair)
        query.reshape(-1)[target[kept]] = candidate.ravel()[kept]
        found = np.minimum(rank[:, -1], width)
        cursor = cursor + ahead
