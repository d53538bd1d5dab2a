"""Flags of workers: whose `--workers` are, and what a run that goes on may be told."""

from esrl.cli.commands import train
from esrl.cli.recipes import recipe_of

ENV = "gymnasium/CartPole-v1"


def recipe(*argv):
    return recipe_of(train, argv)[0]


def test_workers_are_processes_of_the_environment_and_with_an_address_those_of_ray():
    local = recipe(ENV, "--workers", "4")
    assert (local.env, local.workers, local.ray_address) == (f"{ENV}?workers=4", None, None)
    ray = recipe(ENV, "--workers", "4", "--ray-address", "local", "--broadcast", "scalars")
    assert (ray.env, ray.workers, ray.ray_address, ray.broadcast) == (ENV, 4, "local", "scalars")


def test_a_run_goes_on_with_other_workers_or_with_none(tmp_path):
    (tmp_path / "recipe.toml").write_text(
        f'env = "{ENV}"\nagent = "eggroll"\nenv_steps = 1000\nray_address = "auto"\nworkers = 8\nblock_pairs = 2\n'
    )
    went_on = recipe("--resume", str(tmp_path), "--ray-address", "local", "--workers", "2")
    assert (went_on.ray_address, went_on.workers, went_on.block_pairs) == ("local", 2, 2)
    alone = recipe("--resume", str(tmp_path), "--ray-address", "none")
    assert (alone.ray_address, alone.workers, alone.block_pairs) == (None, None, 2)
