"""Gradients side by side in one tensor."""

from __future__ import annotations

import torch

from dumbo.trainer.flat_gradients import ALIGNED, FlatGradients


def parameter(*shape: int, dtype: torch.dtype = torch.float32, of: torch.dtype | None = None) -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.ones(*shape, dtype=dtype))
    if of is not None:
        made.grad_dtype = of  # type: ignore[attr-defined]
    return made


def test_each_has_its_shape_and_a_place_of_its_own() -> None:
    parameters = [parameter(3, 5), parameter(1), parameter(40, dtype=torch.bfloat16), parameter(2, 2)]
    flat = FlatGradients(parameters)
    assert [view.shape for view in flat.views] == [one.shape for one in parameters]
    assert [view.dtype for view in flat.views] == [one.dtype for one in parameters]
    assert len(flat.whole) == 2
    for number, view in enumerate(flat.views):
        view.fill_(number + 1.0)
    assert [view.unique().tolist() for view in flat.views] == [[1.0], [2.0], [3.0], [4.0]]
    assert all(
        (view.data_ptr() - flat.whole[view.dtype == torch.bfloat16].data_ptr()) % ALIGNED == 0 for view in flat.views
    )
    flat.zero()
    assert not any(view.any() for view in flat.views)


def test_a_gradient_of_another_dtype_than_its_weight() -> None:
    """As master weights have them."""
    flat = FlatGradients([parameter(4, dtype=torch.bfloat16, of=torch.float32)])
    assert flat.views[0].dtype == torch.float32


def test_a_backward_pass_adds_to_them() -> None:
    layer = torch.nn.Linear(3, 2)
    flat = FlatGradients(list(layer.parameters()))
    for one, place in zip(layer.parameters(), flat.views, strict=True):
        one.grad = place
    for _ in range(2):
        layer(torch.ones(1, 3)).sum().backward()
    assert flat.views[0].tolist() == [[2.0] * 3] * 2
    assert flat.views[1].tolist() == [2.0, 2.0]
    assert all(one.grad is place for one, place in zip(layer.parameters(), flat.views, strict=True))
