"""Two processes taken apart: at no moment is what they have done lost or counted twice."""

from pathlib import Path

import pytest
import torch
from ensemble_runs import BATCH, ensemble, problem, without_times

import fastadv
from fastadv.evaluation import Status, evaluate
from fastadv.evaluation.processes import Place
from fastadv.evaluation.share import Share
from fastadv.evaluation.state import State
from fastadv.evaluation.together import Wanted, _Work

WORLD = 2  # 20 samples each, in blocks of 16 and 4
PLAIN = fastadv.Execution(batching="plain")  # passes do not depend on who shares a batch


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def whole():
    torch.set_num_threads(1)
    return run()


def run(path=None, **more):
    p = problem()
    return evaluate(
        p.model, (p.x, p.y), ensemble(), batch_size=BATCH, checkpoint=path, execution=PLAIN, **more
    )


def started(path: Path, watch=False, data=None) -> list[tuple[_Work, Share]]:
    """Both processes, after they have told each other what they found."""
    p = problem()
    works = []
    for rank in range(WORLD):
        wanted = Wanted(p.model, data or (p.x, p.y), ensemble(), BATCH, path, PLAIN, watch)
        works.append(_Work(wanted, Place(rank, WORLD)))
    founds = [work.look() for work in works]
    return [(work, Share(Place(rank, WORLD), founds)) for rank, work in enumerate(works)]


def killed(monkeypatch, call, *, saves: int, after: bool = True) -> None:
    """`call`, right before or after a save, counted from 1."""
    original, count = State.save, 0

    def save(self, where):
        nonlocal count
        count += 1
        if count == saves and not after:
            raise Killed
        original(self, where)
        if count == saves:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(State, "save", save)
        with pytest.raises(Killed):
            call()


def begun_in(path: Path) -> list[tuple[int, int]]:
    """(first sample, attacks done) of the begun blocks of a file."""
    saved = torch.load(path, weights_only=True)
    return [(int(part["ids"][0]), len(part["stages"])) for part in saved["unfinished"]]


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_keeps_what_another_process_goes_on_with(whole, tmp_path, monkeypatch):
    path, files = tmp_path / "c.pt", [tmp_path / f"c.rank{rank}of2.pt" for rank in range(WORLD)]
    for saves, (work, share) in enumerate(started(path), start=1):
        killed(monkeypatch, lambda work=work, share=share: work.attack(share), saves=saves)
    assert [begun_in(file) for file in files] == [[(0, 1)], [(1, 2)]]
    both = started(path)
    # the furthest is given out first, so that each gets the other's
    assert [[int(one.ids[0]) for one in share.begun] for _, share in both] == [[1], [0]]
    work, share = both[0]
    work.attack(share)  # the other one is killed before it has saved
    assert begun_in(files[0]) == [(0, 1)]
    running: list[Status] = []
    report = run(path, progress=running.append)
    assert running[0].attack == "APGD-T"  # after the one attack that was carried out
    assert without_times(report.to_json()) == without_times(whole.to_json())
    assert files_in(tmp_path) == ["c.pt"]


@pytest.mark.parametrize("moment", ["before the save", "after the save", "after one removal"])
def test_killed_while_files_are_united_nothing_is_lost_or_counted_twice(
    whole, tmp_path, monkeypatch, moment
):
    path = tmp_path / "c.pt"
    for work, share in started(path):
        work.attack(share)
    files = ["c.rank0of2.pt", "c.rank1of2.pt"]
    assert files_in(tmp_path) == files
    if moment == "after one removal":
        original = Path.unlink

        def unlink(self, missing_ok=False):
            original(self, missing_ok=missing_ok)
            if self.name == files[0]:
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", unlink)
            with pytest.raises(Killed):
                run(path)
        assert files_in(tmp_path) == ["c.pt", files[1]]
    else:
        killed(monkeypatch, lambda: run(path), saves=1, after=moment == "after the save")
        assert files_in(tmp_path) == [*(["c.pt"] if moment == "after the save" else []), *files]
    report = run(path)
    assert without_times(report.to_json()) == without_times(whole.to_json())
    assert files_in(tmp_path) == ["c.pt"]


def test_progress_is_of_the_share_of_the_first_process(tmp_path):
    path = tmp_path / "c.pt"
    seen: list[Status] = []
    work, share = started(path, seen.append)[0]
    work.attack(share)
    assert [status.done for status in seen if not status.attack] == [16, 20]
    assert {status.expected for status in seen} == {20}
    # half of the finished ones, and of the 20 that are missing
    again: list[Status] = []
    work, share = started(path, again.append)[0]
    work.attack(share)
    assert again[0].done == 10 and again[-1].done == 20
    assert {status.expected for status in again} == {20}


def test_every_process_compares_a_part_of_what_is_finished(tmp_path):
    """Sample 7 is the second's."""
    path, p = tmp_path / "c.pt", problem()
    for work, share in started(path):
        work.attack(share)
    x = p.x.clone()
    x[7] = x[7].flip(0)
    (first, its_share), (second, other) = started(path, data=(x, p.y))
    assert first.attack(its_share).blocks == []
    with pytest.raises(ValueError, match="belongs to other data: sample 7 was another one"):
        second.attack(other)
