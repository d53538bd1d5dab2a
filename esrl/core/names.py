"""What options are called, were called before, and are called elsewhere; and what their defaults were."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from esrl.core.errors import nearest, notice

# What options, keys and flags were called at first, and are called now; and their values.
RENAMED = {
    "thin": "max_excess_variance",
    "distribution": "noise_distribution",
    "step_scale": "gradient_scale",
    "chunk": "chunk_pairs",
    "memory": "memory_gib",
    "evaluations": "num_evals",
    "evaluate_episodes": "eval_episodes",
}
RENAMED_VALUES = {
    ("gradient_scale", "plain"): "unbiased",
    ("shaping", "centred_rank"): "centered_rank",
    ("activation", "pqn"): "layernorm_relu",
}


def todays_name(name: str, known: Any) -> str:
    """An old name of a key or flag as it is called now, with a notice on standard error; others as they are."""
    if name in known or RENAMED.get(name) not in known:
        return name
    tell_renamed(f"{name} is called {RENAMED[name]} now")
    return RENAMED[name]


def todays_value(name: str, value: Any) -> Any:
    """An old name of a value, as `todays_name`."""
    new = RENAMED_VALUES.get((name, value)) if isinstance(value, str) else None
    if new is None:
        return value
    tell_renamed(f'{name} = "{value}" is called "{new}" now')
    return new


@cache  # one notice of each kind in a process
def tell_renamed(text: str) -> None:
    """Says on standard error what something is called now."""
    notice(f"{text}; the old name still works")


# What other libraries call an option; the command line takes these too, and Python says what it is called here.
SPOKEN = {
    "learning_rate": ("lr", "step_size", "stepsize"),
    "population": ("popsize", "pop_size", "population_size", "npop", "num_members"),
    "sigma": ("std", "sigma_init", "init_stdev", "noise_std", "noise_stdev"),
    "env_steps": ("total_timesteps", "timesteps", "total_steps", "num_timesteps", "max_steps", "steps"),
    "generations": ("num_generations", "iterations", "num_iterations", "updates", "num_updates"),
    "num_envs": ("n_envs",),
    "num_steps": ("n_steps", "unroll_length", "rollout_length"),
    "num_epochs": ("n_epochs", "update_epochs", "num_updates_per_batch"),
    "num_minibatches": ("n_minibatches",),
    "entropy_coef": ("ent_coef", "entropy_cost"),
    "value_coef": ("vf_coef", "vf_loss_coefficient"),
    "clip_eps": ("clip_range", "clip_coef", "clipping_epsilon", "clip_epsilon"),
    "gamma": ("discount", "discounting", "discount_factor"),
    "hidden": ("hidden_sizes", "hidden_dims", "hidden_layers", "hidden_layer_sizes", "net_arch"),
    "out": ("logdir", "log_dir", "output", "output_dir", "save_dir"),
    "agent": ("algo", "algorithm", "alg"),
    "eval_episodes": ("n_eval_episodes", "num_eval_episodes"),
    "max_episode_steps": ("episode_length", "max_steps_in_episode"),
}
_CALLED = {other: name for name, others in SPOKEN.items() for other in others}


def called_here(name: str, known: Iterable[str]) -> str | None:
    """What an option of another library is called here, where that is among the known ones."""
    here = _CALLED.get(name, "")
    return here if here in known and name not in known else None


# Options of the evolution strategies whose defaults changed, as they were. A run's folder always says them, so one that
# does not is older and has these.
FORMER_DEFAULTS = {"population": 512, "episodes_per_member": 1, "optimizer": "adam", "averaging": 0.0}
# Those of PPO. Until version 0.2 a run's folder left out the learning rate, and before that whatever had its default.
FORMER_PPO: dict[str, Any] = {"num_envs": 64, "num_steps": 64, "learning_rate": 3e-4, "entropy_coef": 0.0}


def todays(table: dict[str, Any]) -> dict[str, Any]:
    """A recipe with its tables, or one of these, in today's names."""
    inside = ("policy", "options")
    named = {RENAMED.get(k, k): todays(v) if k in inside and isinstance(v, dict) else v for k, v in table.items()}
    return {k: RENAMED_VALUES.get((k, v), v) if isinstance(v, str) else v for k, v in named.items()}


def near_option(name: str, known: Iterable[str]) -> str:
    """A clause for an unknown option: what it is called now, or names that are near."""
    known = list(known)
    new, here = RENAMED.get(name, ""), called_here(name, known)
    if here is not None:
        return f"; it is called {here} here"
    return f"; it is called {new} now" if new in known else nearest(name, known)
