"""What torch expects of an optimizer: groups, schedulers, saving, scaling, closures, odd gradients."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch

import nsam
from nsam.backends.torch.optim import optimizer
from nsam.dsl.diagnostics import ProgramError


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("stop", [5, 8, 11])
@pytest.mark.parametrize("name", ["momentum", "adamw", "muon", "m3"])
def test_a_resumed_run_takes_the_same_path(name: str, stop: int, problem_of: Any, std: Any) -> None:
    problem = problem_of([(3, 5), (3, 5), (4,), (2, 3, 4)], torch.float32, 20)
    whole = problem.parameters()
    expected = problem.run(optimizer(std(name, lr=0.02), whole), whole)
    first = problem.parameters()
    before = optimizer(std(name, lr=0.02), first)
    problem.run(before, first, range(stop))
    state = saved_and_loaded(before.state_dict())
    problem.run(before, first, range(stop, stop + 2))  # a saved state does not follow the run it came from
    second = [torch.nn.Parameter(p.clone()) for p in expected[stop - 1]]
    after = optimizer(std(name, lr=0.5), second)
    after.load_state_dict(state)
    path = problem.run(after, second, range(stop, 20))
    assert all(torch.equal(a, b) for x, y in zip(path, expected[stop:], strict=True) for a, b in zip(x, y, strict=True))


def test_state_is_named_as_in_the_rule_and_shaped_as_the_parameter(problem_of: Any, std: Any) -> None:
    problem = problem_of([(3, 5), (4,)], torch.float32, 8)
    parameters = problem.parameters()
    made = optimizer(std("m3", lr=0.02), parameters)
    problem.run(made, parameters)
    for parameter in parameters:
        state = made.state[parameter]
        assert {"fast", "slow", "square"} <= state.keys()
        assert state["fast"].shape == state["slow"].shape == parameter.shape
        assert state["slow"].abs().max() > 0


def test_saved_tensors_share_no_memory(problem_of: Any, std: Any) -> None:
    problem = problem_of([(3, 5), (3, 5)], torch.float32, 3)
    parameters = problem.parameters()
    made = optimizer(std("adamw", lr=0.02), parameters)
    problem.run(made, parameters)
    tensors = [v for s in made.state_dict()["state"].values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors) == 4


def test_a_state_with_other_rules_is_refused(problem_of: Any, std: Any) -> None:
    problem = problem_of([(3, 5)], torch.float32)
    state = optimizer(std("muon", lr=0.02), problem.parameters()).state_dict()
    with pytest.raises(ValueError, match="muon"):
        optimizer(std("adamw", lr=0.02), problem.parameters()).load_state_dict(state)


def test_schedulers_move_every_rules_rate(problem_of: Any, distance: Any, std: Any) -> None:
    problem = problem_of([(3, 5), (7,)], torch.float64)
    mine, reference = problem.parameters(), problem.parameters()
    made, theirs = optimizer(std("adamw", lr=0.05), mine), torch.optim.AdamW(reference, lr=0.05)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=50) for o in (made, theirs)]
    path = problem.run(made, mine, after=schedules[0].step)
    assert distance(path, problem.run(theirs, reference, after=schedules[1].step)) < 1e-12
    assert made.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_parameters_of_a_rule_are_read_at_each_step(problem_of: Any, std: Any) -> None:
    problem = problem_of([(3, 5)], torch.float64)
    parameters = problem.parameters()
    made = optimizer(std("gd", lr=0.1), parameters)
    made.param_groups[0]["retain"] = 0.5
    path = problem.run(made, parameters, range(1))
    torch.testing.assert_close(path[0][0], 0.5 * problem.start[0] - 0.1 * problem.gradients[0][0])


def test_grad_scaler_on_the_cpu(std: Any) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(8, 4)
    ends = []
    for scaled in (False, True):
        weight = torch.nn.Parameter(torch.ones(3, 4))
        made = optimizer(std("m3", lr=0.05), [weight])
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10)
        for t in range(12):
            made.zero_grad()
            scaler.scale((inputs @ weight.T).square().mean()).backward()
            if t == 5:
                weight.grad[0, 0] = float("inf") if scaled else 0.0
            if scaled or t != 5:
                scaler.step(made)
            scaler.update()
        ends.append(weight.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


def test_closure_is_run_with_gradients_and_its_loss_returned(std: Any) -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    made = optimizer(std("gd", lr=0.1), [weight])

    def closure() -> Any:
        made.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert made.step(closure).item() == 9.0
    assert float(weight.detach()) == pytest.approx(2.4)


def test_parameters_without_a_gradient_stay_and_do_not_count(problem_of: Any, distance: Any, std: Any) -> None:
    """A parameter that got no gradient for some steps is where it would be without these steps."""
    problem = problem_of([(3, 5), (3, 5)], torch.float64, 12)
    both, alone = problem.parameters(), problem.parameters()[1:]
    made, reference = optimizer(std("m3", lr=0.02), both), optimizer(std("m3", lr=0.02), alone)
    path, expected = [], []
    for t in range(12):
        both[0].grad = problem.gradients[t][0].clone()
        both[1].grad = None if t in (3, 4, 7) else problem.gradients[t][1].clone()
        made.step()
        if t not in (3, 4, 7):
            alone[0].grad = problem.gradients[t][1].clone()
            reference.step()
        path.append([both[1].detach().clone()])
        expected.append([alone[0].detach().clone()])
    assert distance(path, expected) < 1e-12


def test_groups_have_their_own_values_and_can_be_added(problem_of: Any, std: Any) -> None:
    problem = problem_of([(3, 5), (4,), (2,)], torch.float64, 1)
    a, b, c = problem.parameters()
    made = optimizer(std("gd", lr=0.1), [{"params": [a]}, {"params": [b], "lr": 0.2}])
    made.add_param_group({"params": c, "lr": 0.3})
    problem.run(made, [a, b, c])
    for i, (parameter, rate) in enumerate([(a, 0.1), (b, 0.2), (c, 0.3)]):
        torch.testing.assert_close(parameter.detach(), problem.start[i] - rate * problem.gradients[0][i])


def test_matrices_and_others(problem_of: Any, std: Any) -> None:
    problem = problem_of([(3, 5), (4,)], torch.float64, 1)
    matrix, vector = problem.parameters()
    rules = [(std("gd", lr=0.1), "matrices"), (std("gd", lr=0.2), "others")]
    made = optimizer(rules, [matrix, vector])
    problem.run(made, [matrix, vector])
    torch.testing.assert_close(matrix.detach(), problem.start[0] - 0.1 * problem.gradients[0][0])
    torch.testing.assert_close(vector.detach(), problem.start[1] - 0.2 * problem.gradients[0][1])
    assert len(made.param_groups) == 2


def test_a_module_says_which_are_its_matrices(std: Any) -> None:
    module = torch.nn.Module()
    module.table, module.weight = torch.nn.Parameter(torch.ones(5, 2)), torch.nn.Parameter(torch.ones(2, 2))
    module.nsam_matrices = {"weight"}
    made = optimizer([(std("muon", lr=0.1), "matrices"), (std("adamw", lr=0.2), "others")], module)
    assert {g["nsam.rule"]: g["params"] for g in made.param_groups} == {
        "muon": [module.weight],
        "adamw": [module.table],
    }


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: torch.load(_pickled(o), weights_only=False)])
@pytest.mark.parametrize("products", [None, torch.bfloat16])
def test_copies_go_on_by_themselves(copied: Any, products: torch.dtype | None, problem_of: Any, std: Any) -> None:
    problem = problem_of([(3, 5)], torch.float64, 10)
    parameters = problem.parameters()
    made = optimizer(std("m3", lr=0.02), parameters, products=products)
    problem.run(made, parameters, range(5))
    other = copied(made)
    path = problem.run(other, other.param_groups[0]["params"], range(5, 10))
    assert torch.equal(path[-1][0], problem.run(made, parameters, range(5, 10))[-1][0])


def _pickled(made: Any) -> Any:
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    return file


def test_sparse_gradients_are_refused(std: Any) -> None:
    table = torch.nn.Parameter(torch.ones(3, 2))
    table.grad = torch.zeros(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer(std("gd", lr=0.1), [table]).step()


def test_a_rule_that_needs_keys_cannot_move_bare_tensors(std: Any) -> None:
    with pytest.raises(ProgramError, match="`key`") as caught:
        optimizer(std("dgd", lr=0.1), [torch.nn.Parameter(torch.ones(2, 2))])
    assert "keys=True" in (caught.value.diagnostics[0].help or "")


def test_a_parameter_without_a_rule_is_named(std: Any) -> None:
    with pytest.raises(ProgramError, match="`bias`"):
        optimizer([(std("muon", lr=0.1), "matrices")], torch.nn.Linear(2, 2))


def test_a_tensor_without_a_rule_is_refused(std: Any) -> None:
    with pytest.raises(ProgramError, match="no rule"):
        optimizer([(std("muon", lr=0.1), "matrices")], [torch.nn.Parameter(torch.ones(2))])


@pytest.mark.parametrize(("given", "error"), [([], ValueError), ([1.0], TypeError)])
def test_nothing_to_move_is_refused(given: Any, error: Any, std: Any) -> None:
    with pytest.raises(error):
        optimizer(std("gd", lr=0.1), given)


def test_one_tensor_is_not_a_list_of_its_rows() -> None:
    for shape in ((2,), (2, 2), ()):
        with pytest.raises(TypeError, match=r"give it as \[tensor\]"):
            nsam.optimizer("std.rules", "adamw", torch.nn.Parameter(torch.ones(shape)), lr=0.1)


@pytest.mark.parametrize("products", ["bf16", torch.int8, torch.complex64, 16])
def test_products_have_a_precision(products: Any) -> None:
    with pytest.raises(ProgramError) as caught:
        nsam.optimizer("std.rules", "muon", [torch.nn.Parameter(torch.ones(2, 2))], lr=0.1, products=products)
    assert caught.value.diagnostics[0].code == "N0402"


def test_arguments_are_numbers() -> None:
    for value in (float("nan"), torch.tensor(float("nan"))):
        with pytest.raises(ProgramError, match="`lr` is not a number"):
            nsam.optimizer("std.rules", "adamw", [torch.nn.Parameter(torch.ones(2))], lr=value)


def test_a_group_may_be_without_parameters(std: Any) -> None:
    """As torch has it: a process of a sharded optimizer may have none of a group."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    made = optimizer([(std("muon", lr=0.1), "matrices"), (std("adamw", lr=0.1), "others")], [weight])
    made.add_param_group({"params": [], "lr": 0.3})
    assert made.param_groups[-1]["lr"] == 0.3
    weight.grad = torch.ones(2, 2)
    made.step()
    again = optimizer([(std("muon", lr=0.1), "matrices"), (std("adamw", lr=0.1), "others")], [weight])
    again.add_param_group({"params": []})
    again.load_state_dict(made.state_dict())


def test_hooks_may_give_a_saved_state_other_names_before_it_is_checked(std: Any) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    made = optimizer(std("adamw", lr=0.1), [weight])
    weight.grad = torch.ones(2, 2)
    made.step()
    saved = made.state_dict()
    saved["state"][0]["exp_avg"] = saved["state"][0].pop("m")

    def rename(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        states = {
            number: {{"exp_avg": "m"}.get(name, name): x for name, x in one.items()}
            for number, one in state["state"].items()
        }
        return state | {"state": states}

    fresh = optimizer(std("adamw", lr=0.1), [weight])
    with pytest.raises(ValueError, match="no state `m`"):
        fresh.load_state_dict(saved)
    fresh.register_load_state_dict_pre_hook(rename)
    fresh.load_state_dict(saved)
    assert torch.equal(fresh.state[weight]["m"], made.state[weight]["m"])
    assert len(fresh._optimizer_load_state_dict_pre_hooks) == 1


def test_cleared_state_starts_again(problem_of: Any, std: Any) -> None:
    problem = problem_of([(3, 5), (3, 5)], torch.float64, 4)
    parameters = problem.parameters()
    made = optimizer(std("adamw", lr=0.1), parameters)
    problem.run(made, parameters)
    for parameter, start in zip(parameters, problem.start, strict=True):
        parameter.data.copy_(start)
    made.state.clear()
    path = problem.run(made, parameters)
    fresh = problem.parameters()
    assert torch.equal(path[-1][0], problem.run(optimizer(std("adamw", lr=0.1), fresh), fresh)[-1][0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_compiled_steps_equal_eager_ones(problem_of: Any, distance: Any, std: Any) -> None:
    problem = problem_of([(3, 5), (3, 5), (4,)], torch.float32, 9)
    rules = [(std("m3", lr=0.02), "matrices"), (std("adamw", lr=0.02), "others")]
    eager, compiled = problem.parameters(), problem.parameters()
    expected = problem.run(optimizer(rules, eager), eager)
    assert distance(problem.run(optimizer(rules, compiled, compiled=True), compiled), expected) < 1e-5
    public = problem.parameters()
    made = nsam.optimizer("std.rules", "adamw", public, lr=0.02, compiled=True)
    plain = problem.parameters()
    expected = problem.run(nsam.optimizer("std.rules", "adamw", plain, lr=0.02), plain)
    assert distance(problem.run(made, public), expected) < 1e-5


def test_compiled_is_no_parameter_of_an_outer_rule() -> None:
    program = nsam.loads("nsam 1\nrule r(lr, compiled = 1) {\n  self <- self - lr * compiled * grad\n}\n")
    with pytest.raises(ProgramError, match="`compiled`"):
        nsam.optimizer(program, "r", [torch.nn.Parameter(torch.ones(2))], lr=0.1)


@pytest.mark.parametrize("name", ["adamw", "muon", "m3", "delta_momentum"])
def test_parameters_without_entries_are_left_alone(name: str, std: Any) -> None:
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in ((0, 4), (3, 4), (0,), (2, 0, 4))]
    made = optimizer(std(name, lr=0.1), weights)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        made.step()
    made.load_state_dict(made.state_dict())
    made.step()
    assert [weight in made.state for weight in weights] == [False, True, False, False]
    assert not torch.equal(weights[1], torch.ones(3, 4))


def test_complex_parameters_are_refused(std: Any) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    made = optimizer(std("adamw", lr=0.1), [parameter])
    parameter.abs().square().sum().backward()
    with pytest.raises(RuntimeError, match="complex"):
        made.step()


def test_a_state_that_was_replaced_counts(std: Any) -> None:
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    made = optimizer(std("momentum", lr=1.0, beta=0.5), parameters)
    for replaced in (False, True):
        if replaced:
            (name,) = (key for key, value in made.state[parameters[0]].items() if isinstance(value, torch.Tensor))
            made.state[parameters[0]][name] = torch.zeros(3)
        before = [p.detach().clone() for p in parameters]
        for p in parameters:
            p.grad = torch.ones(3)
        made.step()
    moved = [(b - p.detach())[0].item() for b, p in zip(before, parameters, strict=True)]
    assert moved == [1.0, 1.5]


def test_groups_of_named_parameters(std: Any) -> None:
    module = torch.nn.Linear(3, 2)
    made = optimizer(
        [(std("muon", lr=0.1), "matrices"), (std("gd", lr=0.1), "others")],
        [{"params": list(module.named_parameters()), "lr": 0.5}],
    )
    assert [(group["param_names"], group["lr"]) for group in made.param_groups] == [(["weight"], 0.5), (["bias"], 0.5)]


@pytest.mark.parametrize("number", [torch.tensor(0.01), torch.tensor(0.01, dtype=torch.float64), np.float32(0.01)])
def test_a_rate_may_be_a_tensor_without_axes(number: Any) -> None:
    made = nsam.optimizer("std.rules", "gd", [torch.nn.Parameter(torch.ones(2))], lr=number)
    assert made.param_groups[0]["lr"] == float(number)
    with pytest.raises(ProgramError, match="`lr` is float, not Tensor"):
        nsam.optimizer("std.rules", "gd", [torch.nn.Parameter(torch.ones(2))], lr=torch.ones(1))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_parts_of_tensors_are_refused(tmp_path: Any, std: Any) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        module = torch.nn.Linear(3, 3)
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        for given in (module, module.parameters(), module.named_parameters(), [{"params": module.weight}]):
            with pytest.raises(ProgramError, match=r"N0480.*DTensor") as caught:
                optimizer(std("adamw", lr=0.01), given)
            assert "sharded=True" in (caught.value.diagnostics[0].help or "")
    finally:
        dist.destroy_process_group()
