"""Published trainings as options: what they set, what a user's own options change, what is said of it."""

import pytest

from train.recipes import RECIPES, describe, lay_recipe, passes

TYPED = {
    "paper": {"stream": "rgb"},
    "released-rgb": {"stream": "rgb"},
    "released-flow": {"stream": "flow"},
    "original": {"stream": "rgb"},
    "finetune": {"stream": "flow", "init": "k400.pt"},
}
EXPECTED = {  # clips a step, steps, schedule, learning rate
    "paper": (384, 110_000, "plateau", 0.1),
    "released-rgb": (384, 115_000, "released", 0.1),
    "released-flow": (384, 155_000, "released", 0.1),
    "original": (96, 5_000, "plateau", 0.025),
    "finetune": (96, 5_000, "plateau", 0.0025),
}


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_sets(name):
    found = lay_recipe(name, TYPED[name]).options
    batch, steps, schedule, rate = EXPECTED[name]
    assert (found["batch_size"], found["steps"], found["schedule"]) == (batch, steps, schedule)
    assert found["lr"] == pytest.approx(rate)
    rest = {key: found[key] for key in ("weight_decay", "dropout", "frames", "crop", "flip", "sync_bn")}
    assert rest == {"weight_decay": 1e-7, "dropout": 0.5, "frames": 64, "crop": 224, "flip": True, "sync_bn": False}
    assert found.get("patience") == (2 if schedule == "plateau" else None)


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_typed_wins(name):
    typed = {**TYPED[name], "dropout": 0.2, "lr": 0.7, "flip": False, "steps": 9, "accumulate": 5, "frames": 16}
    laid = lay_recipe(name, typed)
    assert not laid.options.keys() & typed.keys()
    yours = {setting.name: setting.yours for setting in laid.settings if setting.yours is not None}
    assert yours == {option: value for option, value in typed.items() if option not in ("stream", "init")}
    lines = {line.split()[0]: line for line in describe(name, laid).splitlines()}
    assert "0.2" in lines["--dropout"]
    assert "you; the recipe: 0.5" in lines["--dropout"]
    assert "no  " in lines["--flip"]
    assert "you; the recipe: yes" in lines["--flip"]


def test_another_batch_keeps_clips_and_the_rate_of_each():
    found = lay_recipe("released-rgb", {"stream": "rgb", "batch_size": 90}, devices=2).options
    assert "batch_size" not in found
    assert found["steps"] == -(-115_000 * 384 // 90)
    assert found["lr"] == pytest.approx(0.1 * 90 / 384)
    assert found["accumulate"] == 9  # 8 would do, but not with passes of one size


def test_epochs_take_the_place_of_steps():
    laid = lay_recipe("paper", {"stream": "rgb", "epochs": 2.5})
    assert "steps" not in laid.options
    assert "2.5 epochs" in describe("paper", laid)


@pytest.mark.parametrize(
    ("batch_size", "devices", "expected"),
    [(384, 64, 1), (384, 8, 8), (384, 1, 64), (384, 12, 8), (384, 128, 1), (97, 1, 17), (6, 1, 1), (7, 1, 2)],
)
def test_a_batch_is_taken_in_passes(batch_size, devices, expected):
    count = passes(batch_size, devices)
    assert count == expected
    assert -(-batch_size // (count * devices)) <= 6


def test_what_the_machine_changes_is_said():
    alone = describe("released-rgb", lay_recipe("released-rgb", TYPED["released-rgb"]))
    assert "384 clips a step on 1 device: 64 passes of 6 clips each" in alone
    many = describe("released-rgb", lay_recipe("released-rgb", TYPED["released-rgb"], devices=64))
    assert "384 clips a step on 64 devices: 1 pass of 6 clips each" in many
    synchronised = lay_recipe("released-rgb", {"stream": "rgb", "sync_bn": True}, devices=8)
    assert "sees 48 at a time" in describe("released-rgb", synchronised)


@pytest.mark.parametrize("name", ["paper", "original", "finetune"])
def test_a_plateau_without_validation_is_pointed_out(name):
    note = "Without --val-shards"
    assert note in describe(name, lay_recipe(name, TYPED[name]))
    for more in ({"val_shards": "k400"}, {"hold_out": 0.2}, {"schedule": "cosine"}):
        assert note not in describe(name, lay_recipe(name, {**TYPED[name], **more}))


@pytest.mark.parametrize("name", RECIPES)
def test_each_value_has_a_source(name):
    laid = lay_recipe(name, TYPED[name])
    for setting in (*laid.settings, *laid.fixed):
        assert any(word in setting.source for word in ("paper", "kinetics-i3d", "ours", "passes")), setting
    assert max(map(len, describe(name, laid).splitlines())) <= 140


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        ("released-rgb", {"stream": "flow"}, "released-flow is"),
        ("released-flow", {"stream": "rgb"}, "released-rgb is"),
        ("finetune", {"stream": "rgb"}, "--init"),
        ("fast", {"stream": "rgb"}, "'fast' is none of paper, "),
    ],
)
def test_recipes_that_do_not_fit_are_refused(name, typed, said):
    with pytest.raises(ValueError, match=said):
        lay_recipe(name, typed)
