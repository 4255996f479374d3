"""Quantised weights: what is stored, how far from what it was, and every path against the weights it stands for."""

import pytest
import torch

from filmstrip.errors import ConfigError
from filmstrip.kernels import StoredMatrix, find_kernels, product, quantize

needs_kernels = pytest.mark.skipif(find_kernels("wait")[0] is None, reason=find_kernels("wait")[1] or "off")
# Half a step of 254 or 15 over the range of a group, relative to its largest weight; 4 bits may clip up to 30 %.
WORST = {8: 0.51 / 127, 4: 0.31}  # scales are rounded to 16 bit, too


def weights(rows: int = 40, cols: int = 192) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [32, 64])
def test_the_nearest_numbers_are_stored(bits: int, group: int) -> None:
    weight = weights()
    stored = quantize(weight, bits, group)
    back = stored.widened(torch.float32)
    assert (stored.rows, stored.cols, stored.group) == (40, 192, group)
    largest = weight.view(40, -1, group).abs().amax(-1, keepdim=True)
    error = (back - weight).view(40, -1, group).abs() / largest
    assert error.max() <= WORST[bits] + 1e-6
    # Mean squared error of uniform noise of one step, which no other rounding goes below by much.
    step = 2 * largest / (2**bits - 2)
    noise = (step**2 / 12).mean().sqrt()
    assert (back - weight).square().mean().sqrt() <= noise * 1.01
    assert stored.nbytes == weight.numel() * bits / 8 + 2 * weight.numel() / group


def test_values_on_the_grid_come_back_exactly() -> None:
    for bits in (8, 4):
        most = 2 ** (bits - 1) - 1
        numbers = torch.randint(-most, most + 1, (8, 64), generator=torch.Generator().manual_seed(1)).float()
        numbers[:, 0] = most
        assert torch.equal(quantize(numbers * 0.25, bits, 64).widened(torch.float32), numbers * 0.25)


def test_zeros_and_extremes() -> None:
    weight = torch.zeros(3, 64)
    weight[1, 3], weight[2, 5] = 1e5, 1e-12
    for bits in (8, 4):
        back = quantize(weight, bits, 64).widened(torch.float32)
        assert back[0].eq(0).all() and back[2].abs().max() < 1e-7
        assert back[1, 3] == pytest.approx(1e5, rel=0.01)
        with pytest.raises(ConfigError, match=r"weights up to 1e\+30 are too large"):
            quantize(weight * 1e25, bits, 64)


@needs_kernels
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", range(1, 9))
def test_the_kernel_multiplies_with_what_is_stored(bits: int, rows: int) -> None:
    for cols, group in ((64, 64), (192, 32), (256, 128)):
        stored = quantize(weights(37, cols), bits, group)
        stored = StoredMatrix(stored.data, torch.randn(37), stored.scales)
        x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows))
        theirs = torch.nn.functional.linear(x, stored.widened(torch.float32), stored.bias)
        torch.testing.assert_close(product(x, stored), theirs, atol=1e-4, rtol=0)


@needs_kernels
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16", "8", "4"])
def test_a_row_of_a_product_equals_the_row_alone(stored: str) -> None:
    """Bit for bit, though how many rows and vectors are multiplied at once depends on the batch."""
    weight = weights(37, 192)
    matrix = quantize(weight, int(stored), 32) if stored.isdigit() else StoredMatrix(weight.to(getattr(torch, stored)))
    x = torch.randn(8, 192, generator=torch.Generator().manual_seed(3))
    alone = torch.cat([product(row[None], matrix) for row in x])
    for rows in range(2, 9):
        assert torch.equal(product(x[:rows], matrix), alone[:rows])


def test_many_rows_multiply_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filmstrip.kernels.products.PIECE", 1000)
    monkeypatch.setattr("filmstrip.kernels.products._local", type("Local", (), {})())
    stored = quantize(weights(), 4, 32)
    x = torch.randn(20, 192)
    theirs = x @ stored.widened(torch.float32).T
    torch.testing.assert_close(product(x, stored), theirs, atol=1e-4, rtol=0)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="192 inputs do not divide into groups of 128"):
        quantize(weights(), 8, 128)
    with pytest.raises(ConfigError, match="groups of 48"):
        quantize(weights(), 4, 48)
    with pytest.raises(ConfigError, match="8 or 4 bits, not 3"):
        quantize(weights(), 3, 32)
