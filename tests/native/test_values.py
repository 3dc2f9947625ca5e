"""Where the values of an expression are put: as those lie of which it is made."""

import pytest

from nsam.backends.torch.native.values import Buffer, Expression, View, expand, layout


def view(strides: tuple[int, ...], sizes: tuple[int, ...] = (2, 4, 8), offset: int = 0) -> View:
    return View(Buffer("x", 1024, "input"), sizes, strides, offset)


ROWS, COLUMNS, APART = (32, 8, 1), (32, 1, 4), (128, 2, 8)


@pytest.mark.parametrize(
    ("operands", "expected"),
    [
        ((view(ROWS),), ROWS),
        ((view(COLUMNS),), COLUMNS),
        ((view(APART),), COLUMNS),  # in their order, without the gaps
        ((view(COLUMNS), view(COLUMNS, offset=64)), COLUMNS),
        ((view(COLUMNS), view(ROWS)), ROWS),  # they disagree
        ((view(COLUMNS), expand(view((0, 0, 1), (1, 1, 8)), (2, 4, 8))), COLUMNS),  # a repeated row has no say
        ((view((-32, 1, 4), offset=32),), COLUMNS),
    ],
)
def test_layout(operands: tuple[View, ...], expected: tuple[int, ...]) -> None:
    text = " + ".join(f"{{{i}}}" for i in range(len(operands)))
    assert layout(Expression(text, operands, (2, 4, 8))) == expected


def test_dimensions_of_size_one_do_not_matter() -> None:
    found = View(Buffer("y", 32, "own"), (1, 4, 8), layout(view((0, 1, 4), (1, 4, 8))))
    assert found.strides == (0, 1, 4)
