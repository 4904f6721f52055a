"""Who does what of a half finished evaluation: each sample once, by any number of processes."""

import random

import pytest
import torch

from fastadv.attacks.call.result import Cost
from fastadv.evaluation.processes import Place, files_of, path_of
from fastadv.evaluation.share import Begun, Found, Share, disjoint, joined_columns, joined_sums
from fastadv.evaluation.state import COLUMNS, Block, State, Unfinished

STAGE = {"name": "A", "attack": "a", "attacked": 2, "broken": 1, "seconds": 0.5, "forwards": 3}


def block(*ids: int, **more) -> Block:
    columns = {name: torch.tensor(ids).to(kind) for name, kind in COLUMNS.items()}
    return Block(columns, **{"forwards": len(ids), **more})


def found(*blocks: Block, begun: tuple = (), total: int | None = None, **more) -> Found:
    headers = [Begun(torch.tensor(ids), stages) for ids, stages in begun]
    return Found(
        **{"model": "m", "attack": "a", "n": None, **more},
        total=total,
        blocks=list(blocks),
        begun=headers,
    )


def shares(world: int, *founds: Found) -> list[Share]:
    """As each process works it out; all files on one disk if `founds` is one."""
    everything = founds if len(founds) > 1 else founds * world
    return [Share(Place(rank, world), everything) for rank in range(world)]


def random_history(seed: int, n: int) -> tuple[list[list[int]], list[tuple[list[int], int]]]:
    """Finished blocks and begun ones, which share no sample, of some of n samples."""
    generator = random.Random(seed)
    ids = generator.sample(range(n), n)
    parts, start = [], 0
    while start < n:
        size = generator.randint(1, 9)
        parts.append(sorted(ids[start : start + size]))
        start += size
    kinds = [generator.choice(["finished", "begun", "missing"]) for _ in parts]
    finished = [part for part, kind in zip(parts, kinds, strict=True) if kind == "finished"]
    begun = [
        (part, generator.randint(1, 3))
        for part, kind in zip(parts, kinds, strict=True)
        if kind == "begun"
    ]
    return finished, begun


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_every_sample_is_taken_by_one_process(seed, world):
    n = 97
    finished, begun = random_history(seed, n)
    ours = shares(world, found(*(block(*ids) for ids in finished), begun=tuple(begun)))
    taken = torch.stack([share.takes(torch.arange(n)) for share in ours])
    assert taken.sum(0).tolist() == [1] * n
    # by an oracle that counts one by one
    known = {i: "finished" for ids in finished for i in ids}
    known |= {i: "begun" for ids, _ in begun for i in ids}
    numbers = {"finished": 0, "missing": 0}
    for i in range(n):
        kind = known.get(i, "missing")
        if kind != "begun":
            assert bool(taken[numbers[kind] % world, i]), (i, kind)
            numbers[kind] += 1
        assert [bool(share.are_finished(torch.tensor([i]))) for share in ours] == [
            kind == "finished"
        ] * world
    whole = [one.ids.tolist() for share in ours for one in share.begun]
    assert sorted(whole) == sorted(ids for ids, _ in begun)
    for share in ours:
        for one in share.begun:
            assert bool(share.takes(one.ids).all()) and bool(share.are_begun(one.ids).all())
    counts = [len(share.begun) for share in ours]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("cut", [1, 10])
def test_shares_do_not_depend_on_how_the_data_are_cut(cut):
    finished, begun = random_history(1, 60)
    for share in shares(3, found(*(block(*ids) for ids in finished), begun=tuple(begun))):
        parts = [share.takes(ids) for ids in torch.arange(60).split(cut)]
        assert torch.equal(torch.cat(parts), share.takes(torch.arange(60)))


def test_nothing_found_is_every_other_sample():
    first, second = shares(2, found())
    assert first.takes(torch.arange(5)).tolist() == [True, False, True, False, True]
    assert second.takes(torch.arange(5)).tolist() == [False, True, False, True, False]


def test_the_copy_of_a_begun_block_with_most_attacks_behind_it_goes_on():
    (share,) = shares(1, found(begun=(([1, 2], 1), ([1, 2], 3), ([1, 2], 2))))
    assert [(one.ids.tolist(), one.stages) for one in share.begun] == [([1, 2], 3)]


def test_a_begun_block_that_another_file_has_finished_is_not_begun():
    (share,) = shares(1, found(block(1, 2), begun=(([1, 2], 3), ([2, 3], 1))))
    assert share.begun == [] and share.takes(torch.arange(4)).all()


def test_a_begun_block_goes_to_a_process_that_has_its_file():
    """Without a common disk: each process knows of all blocks, and holds what it has read."""
    ours = shares(3, found(begun=(([0], 1),)), found(), found(begun=(([0], 1), ([1], 1), ([2], 1))))
    assert [[one.ids.tolist() for one in share.begun] for share in ours] == [[[0]], [], [[1], [2]]]


def test_a_block_in_two_files_counts_once():
    one, again = block(3, 4, forwards=5, seconds=1.0), block(3, 4, forwards=5, seconds=1.0)
    blocks = disjoint([one, block(1, forwards=7), again])
    assert [b.ids.tolist() for b in blocks] == [[1], [3, 4]]
    assert joined_sums(blocks)["forwards"] == 12


def test_rows_are_in_the_order_of_the_data():
    columns = joined_columns([block(4, 7), block(0, 5), block(2)])
    for name, column in columns.items():
        assert torch.equal(column, torch.tensor([0, 2, 4, 5, 7]).to(COLUMNS[name]))
    assert joined_columns([])["distance"].dtype == torch.float64


def test_seconds_are_those_of_the_slowest_of_the_processes_that_ran_at_once():
    def of(rank, world, seconds):
        stage = {**STAGE, "seconds": seconds / 2}
        cost = Cost(model_seconds=seconds / 4, denied=3)._asdict()
        return block(
            rank,
            rank=rank,
            world=world,
            seconds=seconds,
            stages=[stage],
            warnings={"w": 1},
            cost=cost,
        )

    sums = joined_sums([of(0, 1, 8.0), of(0, 2, 1.0), of(0, 2, 2.0), of(1, 2, 2.5)])
    assert sums["seconds"] == 8.0 + 3.0
    assert sums["stages"] == [
        {**STAGE, "attacked": 8, "broken": 4, "forwards": 12, "seconds": 4.0 + 1.5}
    ]
    assert sums["warnings"] == {"w": 4}
    assert sums["cost"] == Cost(model_seconds=2.0 + 0.75, denied=12)._asdict()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(model="n"), "every process must get the same model"),
        (dict(attack="b"), "every process must get the same attack"),
        (dict(backend="cpu"), "every process must get the same backend"),
        (dict(n=3), r"every process must get the same data; they got \[None, 3\] samples"),
    ],
)
def test_processes_that_were_asked_for_other_things_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        Share(Place(0, 2), [found(), found(**other)])


def test_files_of_any_number_of_processes_are_found(tmp_path):
    names = ["run.pt", "run.rank0of2.pt", "run.rank11of12.pt"]
    others = ["run.rank0of2.json", "rerun.pt", "run.2.pt", ".run.pt.tmp", "runxpt", "run.rank.pt"]
    for name in names + others:
        (tmp_path / name).touch()
    assert [file.name for file in files_of(tmp_path / "run.pt")] == names
    assert path_of(tmp_path / "run.pt", Place(0, 1)) == tmp_path / "run.pt"
    assert path_of(tmp_path / "run.pt", Place(1, 3)) == tmp_path / "run.rank1of3.pt"
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        files_of(tmp_path / "no" / "run.pt")


def test_a_file_gives_back_what_was_saved(tmp_path):
    part = Unfinished(
        torch.tensor([2, 8]),
        torch.tensor([-1, 5]),
        0.5,
        {"w": 2},
        [STAGE],
        {
            name: torch.ones(2)
            for name in (
                "broken_by",
                "step",
                "prediction",
                "margin",
                "faults",
                "by_gradient",
                "by_search",
                "x_searched",
                "distance",
            )
        },
    )
    asked = State("a", "m", "1", "", "cpu", 9)
    blocks = [block(5, 6, 7), block(1, rank=1, world=2, seconds=0.25, stages=[STAGE])]
    state = State("a", "m", "1", "", "cpu", 9, total=9, blocks=blocks, unfinished=[part])
    for again in (state, State("a", "m", "1", "", "cpu", 9)):
        again.save(tmp_path / "c.pt")
        read = asked.restored(tmp_path / "c.pt")
        assert repr(read) == repr(again)
        # rows of their own: what is sent to other processes is not the whole file for each block
        for one in read.blocks:
            assert all(c.untyped_storage().nbytes() == c.nbytes for c in one.columns.values())


def test_a_part_is_kept_until_its_samples_are_finished():
    def part(*ids: int, stages: int) -> Unfinished:
        return Unfinished(torch.tensor(ids), torch.tensor(ids), 0.0, {}, [STAGE] * stages, {})

    state = State("a", "m", "1", "", "cpu", 9)
    for step in (part(1, 2, stages=1), part(3, 4, stages=1), part(1, 2, stages=2)):
        state.begin(step)
    assert [(p.ids.tolist(), len(p.stages)) for p in state.unfinished] == [([3, 4], 1), ([1, 2], 2)]
    state.finish(block(1, 2))
    assert [p.ids.tolist() for p in state.unfinished] == [[3, 4]]
