import pytest

from covidseg_train.schedule import poly_learning_rate


def test_decays_from_base_to_zero():
    assert poly_learning_rate(0, 100, 0.01) == pytest.approx(0.01)
    assert poly_learning_rate(50, 100, 0.01) == pytest.approx(0.01 * 0.5**0.9)
    assert poly_learning_rate(100, 100, 0.01) == 0.0


def test_warm_up_is_linear():
    assert [poly_learning_rate(step, 100, 1.0, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
