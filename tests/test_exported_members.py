"""What is public is written down, sorted, and the same at the front door and in the runtime."""

from __future__ import annotations

import pytest

import covidseg
import covidseg_runtime


@pytest.mark.parametrize("package", [covidseg, covidseg_runtime])
def test_every_public_name_exists(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name) is not None


def test_the_front_door_shows_the_runtime_and_nothing_else() -> None:
    assert covidseg.__all__ == covidseg_runtime.__all__
    for name in covidseg.__all__:
        assert getattr(covidseg, name) == getattr(covidseg_runtime, name)


def test_both_state_one_version() -> None:
    assert covidseg.__version__ == covidseg_runtime.__version__


@pytest.mark.parametrize("package", [covidseg, covidseg_runtime])
def test_dir_lists_the_public_names(package: object) -> None:
    assert dir(package) == sorted(package.__all__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", [covidseg, covidseg_runtime])
def test_an_unknown_name_is_an_attribute_error(package: object) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Segmentor'"):
        package.Segmentor  # type: ignore[attr-defined]  # noqa: B018
