from __future__ import annotations

import json
import math

import pytest
import torch

from interventions.norms import mean_norm, project_mean_norm, remove_directions
from reft_math.training.norm_control import CONTROLLERS, Pid, make_controller
from reft_math.training.tracking import tracking


def biases(*norms: float) -> list[torch.Tensor]:
    """Vectors of those norms in different directions."""
    torch.manual_seed(0)
    return [torch.nn.functional.normalize(torch.randn(5), dim=0) * norm for norm in norms]


def test_mean_norm_is_the_mean_over_layers() -> None:
    assert mean_norm([torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0])]).item() == 3.0
    assert mean_norm([]).item() == 0.0


def test_mean_norm_takes_layers_of_several_devices() -> None:
    vectors = [torch.ones(3, device="meta"), torch.ones(3)]
    assert mean_norm(vectors).device.type == "meta"


def test_mean_norm_has_a_gradient_at_zero() -> None:
    vector = torch.zeros(3, requires_grad=True)
    mean_norm([vector]).backward()
    assert vector.grad is not None
    assert not vector.grad.isnan().any()


def test_projection_brings_the_mean_to_the_target_and_keeps_proportions_and_directions() -> None:
    vectors = biases(1.0, 3.0)
    before = [vector.clone() for vector in vectors]
    project_mean_norm(vectors, 0.5)
    assert mean_norm(vectors).item() == pytest.approx(0.5, rel=1e-6)
    for vector, old in zip(vectors, before, strict=True):
        torch.testing.assert_close(vector, old * 0.25)


def test_projection_leaves_what_is_inside_alone() -> None:
    vectors = biases(0.1, 0.2)
    before = [vector.clone() for vector in vectors]
    project_mean_norm(vectors, 0.5)
    assert all(torch.equal(vector, old) for vector, old in zip(vectors, before, strict=True))


def test_what_is_left_of_a_vector_is_orthogonal_to_its_direction_and_the_rest_is_untouched() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(7, generator=generator) for _ in range(3)]
    units = [torch.nn.functional.normalize(torch.randn(7, generator=generator), dim=0) for _ in range(2)]
    units.append(torch.zeros(7))
    before = [vector.double() for vector in vectors]
    remove_directions(vectors, units)
    for vector, unit, old in zip(vectors, units, before, strict=True):
        torch.testing.assert_close(vector.double(), old - (old @ unit.double()) * unit.double(), atol=1e-6, rtol=0)
    assert abs(vectors[0] @ units[0]) < 1e-6 < abs(before[0] @ units[0].double())
    assert torch.equal(vectors[2].double(), before[2])


def test_directions_come_one_for_each_vector_in_any_precision() -> None:
    vectors = [torch.tensor([3.0, 4.0])]
    remove_directions(vectors, [torch.tensor([0.0, 1.0], dtype=torch.float64)])
    assert vectors[0].tolist() == [3.0, 0.0]
    with pytest.raises(ValueError, match="shorter"):
        remove_directions(vectors, [])


def test_pid_is_the_formula() -> None:
    """Against the sum written out for three errors, far from the bounds."""
    pid, errors = Pid(1.0, (1e-9, 1e9)), (0.3, -0.2, 0.5)
    expected = 1.0
    for t, error in enumerate(errors):
        derivative = error - errors[t - 1] if t else 0.0
        expected *= 1 + 5.0 * (0.1 * error + 1e-4 * sum(errors[: t + 1]) + 0.01 * derivative)
        assert pid.update(error) == pytest.approx(expected, rel=1e-12)


def test_pid_has_no_derivative_kick_at_the_first_update() -> None:
    assert Pid(1.0, (0.0, 10.0)).update(1.0) == pytest.approx(1 + 5 * (0.1 + 1e-4))


@pytest.mark.parametrize(("error", "bound"), [(1.0, 2.0), (-1.0, 0.5)])
def test_pid_does_not_wind_up_at_a_bound(error: float, bound: float) -> None:
    """However long it was held at a bound, it leaves it as after a short while."""
    after = []
    for updates in (10, 1000):
        pid = Pid(1.0, (0.5, 2.0))
        for _ in range(updates):
            value = pid.update(error)
        assert value == bound
        after.append(pid.update(-error))
    assert after[0] == after[1] != bound


@pytest.mark.parametrize("error", [0.4, -0.4])
def test_a_bound_that_is_just_reached_holds_nothing_back(error: float) -> None:
    wanted = Pid(1.0, (0.0, 10.0)).update(error)
    pid = Pid(1.0, (min(wanted, 1.0), max(wanted, 1.0)))
    assert pid.update(error) == wanted
    assert pid.integral == error


@pytest.mark.parametrize("sign", [1, -1])
def test_an_error_that_falls_fast_still_counts_at_the_bound_it_leads_away_from(sign: int) -> None:
    """The derivative drives the value to the one bound while the error asks for the other."""
    pid = Pid(1.0, (0.99, 1.01))
    pid.update(sign * 1.0)
    assert pid.update(sign * 0.05) == (0.99 if sign > 0 else 1.01)
    assert pid.integral == sign * 0.05


def test_loss_weight_starts_at_500_over_the_rows_within_its_bounds() -> None:
    assert make_controller("note", 0.54, num_rows=10_000).loss_weight == pytest.approx(0.05)
    assert make_controller("note", 0.54, num_rows=100).loss_weight == 0.1
    assert make_controller("loss-weight", 0.54, num_rows=10**9).loss_weight == 1e-5, "its name until then"


@pytest.mark.parametrize("name", ["note", "step-size"])
def test_pid_controllers_act_every_fourth_step_and_against_the_error(name: str) -> None:
    controller = make_controller(name, 0.5, num_rows=10_000)
    values = []
    for _ in range(8):
        controller.after_step(biases(2.0))
        values.append(controller.loss_weight * controller.step_scale)
    start = 0.05 if name == "note" else 1.0
    assert values[:3] == [start] * 3
    assert start > values[3] == values[6] > values[7]


@pytest.mark.parametrize(("name", "least", "most"), [("note", 1e-5, 0.1), ("step-size", 1e-4, 1.0)])
def test_pid_controllers_go_to_a_bound_and_no_further(name: str, least: float, most: float) -> None:
    for norm, bound in ((0.0, most), (2.0, least)):
        controller = make_controller(name, 0.5, num_rows=10_000)
        vectors = biases(norm)
        for _ in range(60):
            controller.after_step(vectors)
        assert controller.loss_weight * controller.step_scale == bound


def test_pid_on_the_biases_is_the_formula_but_passes_no_target_and_grows_by_a_twentieth_at_most() -> None:
    controller, integral = make_controller("pid", 0.5, num_rows=1), 0.0
    errors = [0.6, 0.02, -0.05, -0.1, -0.05, 0.1, 0.01, -0.2]
    factors = []
    for t, error in enumerate(errors):
        vectors = biases(0.4 * (1 - error), 0.6 * (1 - error))
        before = [vector.clone() for vector in vectors]
        controller.after_step(vectors)
        change = error - errors[t - 1] if t else 0.0
        wanted = 1 + 5.0 * (0.18 * error + 0.01 * (integral + error) + 0.02 * change)
        whole = 1 / (1 - error)
        factors.append(min(max(wanted, min(1, whole)), max(1, min(1.05, whole))))
        if factors[-1] == wanted or (factors[-1] > wanted) == (error > 0):  # not held back where the error leads
            integral += error
        for vector, old in zip(vectors, before, strict=True):
            torch.testing.assert_close(vector, factors[-1] * old)
        assert controller.state_dict()["integral"] == pytest.approx(integral)
    assert factors[0] == factors[5] == 1.05, "at the upper bound"
    assert factors[2] == 1 / 1.05, "at the target"
    assert integral != 0, "and in between"


def test_pid_leaves_biases_of_zero_alone() -> None:
    controller, vectors = make_controller("pid", 0.5, num_rows=1), [torch.zeros(3)]
    controller.after_step(vectors)
    assert vectors[0].tolist() == [0, 0, 0]
    assert controller.state_dict()["integral"] == 0


@pytest.mark.parametrize(
    ("growth", "noise"), [(0.001, 0.0), (0.01, 0.0), (0.05, 0.02), (0.2, 0.05), (3.0, 0.0), (-0.01, 0.005)]
)
def test_pid_holds_a_norm_that_every_step_makes_grow_or_shrink(growth: float, noise: float) -> None:
    """By up to three times the target, in a plant of numbers: ``n ← f · |n + growth + noise|``."""
    generator = torch.Generator().manual_seed(0)
    controller, vectors, norms = make_controller("pid", 0.54, num_rows=1), biases(0.3), []
    for shock in torch.randn(300, generator=generator).tolist():
        norm = mean_norm(vectors).item()
        vectors[0].mul_(abs(norm + 0.54 * (growth + noise * shock)) / norm)
        controller.after_step(vectors)
        norms.append(mean_norm(vectors).item())
    held = tracking(norms, 0.54)
    assert held["overshoot"] is not None
    assert held["overshoot"] < 0.05
    assert held["steady_state_error"] == pytest.approx(0, abs=0.003)
    assert held["settling_step"] is not None
    assert held["settling_step"] < 80


def test_penalty_is_the_square_of_the_error_and_pulls_towards_the_target() -> None:
    controller = make_controller("penalty", 0.5, num_rows=1)
    vector = biases(2.0)[0].requires_grad_()
    penalty = controller.penalty([vector])
    assert isinstance(penalty, torch.Tensor)
    assert penalty.item() == pytest.approx(10.0 * 1.5**2, rel=1e-6)
    penalty.backward()
    assert vector.grad is not None
    torch.testing.assert_close(vector.grad, 2 * 10.0 * 1.5 * vector.detach() / 2.0)


def test_projection_acts_after_every_step() -> None:
    vectors = biases(2.0, 4.0)
    make_controller("projection", 0.54, num_rows=1).after_step(vectors)
    assert mean_norm(vectors).item() == pytest.approx(0.54, rel=1e-6)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_acts_through_its_own_hook_alone(name: str) -> None:
    controller = make_controller(name, 0.5, num_rows=10_000)
    vectors = biases(2.0)
    for _ in range(4):
        controller.after_step(vectors)
    acts = {
        "projection" if name == "projection" else "pid": mean_norm(vectors).item() < 1.9,
        "penalty": float(controller.penalty(biases(2.0))) != 0.0,
        "step-size": controller.step_scale != 1.0,
        "note": controller.loss_weight != 1.0,
    }
    assert [hook for hook, does in acts.items() if does] == ([] if name == "none" else [name])


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_goes_on_from_its_state_as_json(name: str) -> None:
    whole, stopped = (make_controller(name, 0.5, num_rows=5_000) for _ in range(2))
    norms = [0.1, 0.3, 0.5, 0.9, 1.2, 1.5, 1.1, 0.8, 0.7, 0.6, 0.5, 0.4]
    for norm in norms[:6]:
        whole.after_step(biases(norm))
        stopped.after_step(biases(norm))
    resumed = make_controller(name, 0.5, num_rows=5_000)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for norm in norms[6:]:
        whole.after_step(biases(norm))
        resumed.after_step(biases(norm))
        assert (resumed.loss_weight, resumed.step_scale) == (whole.loss_weight, whole.step_scale)


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_a_target_must_be_positive(target: float) -> None:
    with pytest.raises(ValueError, match="target norm must be positive"):
        make_controller("projection", target, num_rows=1)
