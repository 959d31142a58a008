"""Which token sees which, which token is learnt from, and in what order rows come."""

from hypothesis import given
from hypothesis import strategies as st

from bt_compiler.optimize.batches import (
    IGNORED,
    PREFIX,
    TokenRow,
    epoch_batches,
    in_order,
    packed,
    packing_pays,
    padded,
    parts,
    shared_prefix,
)


def row(ids: list[int], start: int) -> TokenRow:
    return TokenRow(tuple(ids), start)


@st.composite
def token_rows(draw: st.DrawFn) -> list[TokenRow]:
    common = draw(st.lists(st.integers(0, 3), max_size=6))
    found = []
    for _ in range(draw(st.integers(1, 5))):
        own = draw(st.lists(st.integers(0, 3), min_size=2, max_size=8))
        ids = common + own
        found.append(row(ids, draw(st.integers(1, len(ids) - 1))))
    return found


@given(token_rows())
def test_a_packed_token_sees_exactly_the_tokens_before_it_in_its_own_row(rows: list[TokenRow]) -> None:
    batch = packed(rows)
    for owner, (ids, _, _) in enumerate(rows):
        places = [i for i, other in enumerate(batch.owners) if other in (PREFIX, owner)]
        assert [batch.ids[i] for i in places] == list(ids)
        assert [batch.positions[i] for i in places] == list(range(len(ids)))


@given(token_rows())
def test_only_completion_tokens_have_a_loss_and_each_is_predicted_by_the_token_before_it(rows: list[TokenRow]) -> None:
    batch = packed(rows)
    learnt = list(zip(batch.predicting, batch.labels, strict=True))
    expected = []
    for owner, (ids, start, _) in enumerate(rows):
        places = [i for i, other in enumerate(batch.owners) if other in (PREFIX, owner)]
        expected += [(places[index - 1], ids[index]) for index in range(start, len(ids))]
    assert learnt == expected


@given(token_rows())
def test_padded_lines_say_the_same(rows: list[TokenRow]) -> None:
    batch = padded(rows, filler=9)
    width = max(len(ids) for ids, _, _ in rows)
    for line, (ids, start, _) in enumerate(rows):
        assert batch.ids[line] == (9,) * (width - len(ids)) + ids
        assert sum(batch.real[line]) == len(ids)
        assert batch.positions[line][-len(ids) :] == tuple(range(len(ids)))
        predicted = {}
        for offset, label in enumerate(batch.labels[line]):
            if label != IGNORED:
                predicted[width - batch.keep + offset + 1] = label
        assert predicted == {width - len(ids) + index: ids[index] for index in range(start, len(ids))}


def test_the_mask_of_two_rows_token_by_token() -> None:
    rows = [row([1, 2, 3, 4, 5], 3), row([1, 2, 6, 7], 3)]
    batch = packed(rows)
    assert batch.ids == (1, 2, 3, 4, 5, 6, 7)
    assert batch.positions == (0, 1, 2, 3, 4, 2, 3)
    assert batch.owners == (PREFIX, PREFIX, 0, 0, 0, 1, 1)
    assert batch.predicting == (2, 3, 5)
    assert batch.labels == (4, 5, 7)


def test_a_token_that_predicts_one_with_loss_is_never_shared() -> None:
    rows = [row([1, 2, 3], 2), row([1, 2, 4], 2)]
    assert shared_prefix(rows) == 1


def test_an_epoch_holds_every_row_once_and_follows_from_seed_and_epoch() -> None:
    rows = [row([0] * (2 + i % 7), 1) for i in range(150)]
    first = epoch_batches(rows, batch=4, seed=1, epoch=0)
    assert sorted(i for batch in first for i in batch) == list(range(150))
    assert all(len(batch) <= 4 for batch in first)
    assert first == epoch_batches(rows, batch=4, seed=1, epoch=0)
    assert first != epoch_batches(rows, batch=4, seed=1, epoch=1)
    assert first != epoch_batches(rows, batch=4, seed=2, epoch=0)


def test_rows_of_like_length_come_together() -> None:
    rows = [row([0] * (2 + i % 16), 1) for i in range(64)]
    spread = [
        max(len(rows[i].ids) for i in batch) - min(len(rows[i].ids) for i in batch)
        for batch in epoch_batches(rows, batch=4, seed=3, epoch=0)
    ]
    assert max(spread) == 0


def test_packing_is_left_where_long_rows_share_nothing() -> None:
    long = [row([i] * 3000, 2900) for i in range(4)]
    assert not packing_pays(long)
    assert packing_pays([row([1] * 60 + [i] * 40, 95) for i in range(4)])


def test_parts_hold_all_rows_in_order_within_the_limit() -> None:
    rows = [row([i] * n, 1) for i, n in enumerate((5, 5, 30, 2, 2))]
    found = parts(rows, 10)
    assert [[r.ids[0] for r in part] for part in found] == [[0, 1], [2], [3, 4]]
    assert in_order(5, 2) == [(0, 1), (2, 3), (4,)]
