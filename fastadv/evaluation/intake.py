"""The samples that a process reads: compared where they are known, cut into blocks where not."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from fastadv.evaluation.checkpoint import fingerprints
from fastadv.evaluation.samples import Pending, Rows, Samples
from fastadv.evaluation.share import Share
from fastadv.evaluation.state import Unfinished

Check = Callable[[Rows, torch.Tensor], None]


class Intake:
    """Blocks of a process's share of the data, with what is known of them if they were begun.

    Finished samples are compared and dropped; those of unfinished blocks wait until they are whole;
    so at most a batch, a block, the first finished block, and unfinished blocks are in memory.
    check: called once, if anything is known, with the first known samples and whether the model
    classified them rightly, before the first block is given out. Raises ValueError if the data are
    not those of the checkpoint `path`.
    """

    def __init__(
        self,
        samples: Samples,
        share: Share,
        begun: Sequence[Unfinished],
        path: Path | None,
        check: Check,
    ) -> None:
        self._samples, self._share, self._path, self._check = samples, share, path, check
        self._begun = [(part, Pending()) for part in begun]
        self._proof: Pending | None = Pending()  # None: checked

    def blocks(self) -> Iterator[tuple[Rows, Unfinished | None]]:
        size, missing = self._samples.block_size, Pending()
        for rows in self._samples.batches(self._share.takes):
            finished = self._share.are_finished(rows.ids)
            begun = self._share.are_begun(rows.ids)
            self._compare_finished(rows.where(finished))
            for whole, part in self._whole(rows.where(begun)):
                self._check_model(whole, part.clean_correct)
                yield whole, part
            fresh = rows.where(~finished & ~begun)
            if self._share.total is not None and len(fresh.ids):
                self._refuse(f"it has {self._share.total:,} samples, here are more")
            missing.add(fresh)
            while len(missing) >= size:
                self._check_model()
                yield missing.take(size), None
        if self._samples.seen < self._share.end:
            self._refuse(
                f"it has {self._share.end:,} samples or more, here are {self._samples.seen:,}"
            )
        self._check_model()
        if len(missing):
            yield missing.take(size), None

    def _compare_finished(self, rows: Rows) -> None:
        if len(rows.ids) == 0:
            return
        self._compare(rows, self._share.finished(rows.ids)["fingerprints"])
        if self._proof is not None:
            self._proof.add(rows)
            if len(self._proof) >= self._samples.block_size:
                self._check_model()

    def _whole(self, rows: Rows) -> Iterator[tuple[Rows, Unfinished]]:
        """The unfinished blocks whose last samples are among `rows`."""
        if len(rows.ids) == 0:
            return
        for part, pending in self._begun:
            pending.add(rows.where(torch.isin(rows.ids, part.ids)))
            if len(pending) == len(part.ids):
                whole = pending.take(len(pending))
                self._compare(whole, part.fingerprints)
                yield whole, part

    def _compare(self, rows: Rows, expected: torch.Tensor) -> None:
        differs = (fingerprints(*rows.columns[1:]) != expected).nonzero()[:, 0]
        if len(differs):
            self._refuse(
                f"sample {int(rows.ids[differs[0]])} was another one (a loader that shuffles, or "
                "files that changed)"
            )

    def _check_model(self, rows: Rows | None = None, correct: torch.Tensor | None = None) -> None:
        """By the finished samples that are at hand; else by these, which are of a begun block."""
        if self._proof is None:
            return
        if len(self._proof):
            rows = self._proof.take(self._samples.block_size)
            correct = self._share.finished(rows.ids)["clean_correct"]
        if rows is not None and correct is not None:
            self._proof = None
            self._check(rows, correct)

    def _refuse(self, reason: str) -> NoReturn:
        raise ValueError(
            f"checkpoint {self._path} belongs to other data: {reason}. Choose another path, or "
            "delete it to start again"
        )
