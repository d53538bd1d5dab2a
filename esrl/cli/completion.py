"""Completion of commands, flags, agents and environments for bash, zsh and fish."""

from __future__ import annotations

from esrl.core.errors import EsrlError, nearest

SHELLS = ("bash", "zsh", "fish")
_BASH = """# esrl's completion for bash: eval "$(esrl completion bash)"
_esrl() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  # Names of environments hold a colon or a slash, at which bash would part them.
  case "$before" in
{after}
    *)
      if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else
        case "${{COMP_WORDS[1]}}" in
{flags}
        esac
      fi;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -o bashdefault -F _esrl esrl
"""
_FISH = "# esrl's completion for fish: esrl completion fish | source\n"


def completion(shell: str) -> int:
    """Print a script that completes commands in your shell.

    For bash, and for zsh: eval "$(esrl completion bash)" in ~/.bashrc, eval "$(esrl completion zsh)" in ~/.zshrc.
    For fish: esrl completion fish > ~/.config/fish/completions/esrl.fish

    Args:
      shell: bash, zsh or fish.
    """
    if shell not in SHELLS:
        raise EsrlError(f"there is no completion for {shell!r}{nearest(shell, SHELLS)}")
    print(_fish() if shell == "fish" else _bash(zsh=shell == "zsh"), end="")
    return 0


def words() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What may follow: the words of each command, and of each flag whose values are known."""
    from esrl.cli.arguments import dashed
    from esrl.cli.main import COMMANDS, TAKE_ENV, command
    from esrl.cli.recipes import OF_ENV, RUN, plain_options
    from esrl.core.options import CHOICES, options_of
    from esrl.envs.catalog import known_names, suites
    from esrl.training.recipe import AGENTS, NETWORK_KEYS, NETWORKS

    names = [name for suite in suites() for name in known_names(suite) or ()]
    every = {name for agent in AGENTS for name in plain_options(agent)}
    of_recipe = sorted(map(dashed, {*RUN, *OF_ENV, *NETWORK_KEYS, *every}))
    found = {}
    for name in COMMANDS:
        own = [dashed(option) for option in options_of(command(name))]
        takes_recipe = name in TAKE_ENV
        found[name] = [*own, *(of_recipe if takes_recipe else ()), *(names if takes_recipe or name == "envs" else ())]
    found["completion"] += SHELLS
    after = {dashed(name): [str(choice) for choice in choices] for name, choices in CHOICES.items()}
    return found, after | {"--agent": list(AGENTS), "--network": list(NETWORKS)}


def _bash(zsh: bool) -> str:
    commands, after = words()
    begin = "autoload -U +X bashcompinit && bashcompinit\n" if zsh else ""
    return begin + _BASH.format(
        commands=" ".join(commands),
        after="\n".join(f'    {flag}) words="{" ".join(values)}";;' for flag, values in after.items()),
        flags="\n".join(f'          {name}) words="{" ".join(found)}";;' for name, found in commands.items()),
    )


def _fish() -> str:
    commands, after = words()
    lines = [f"complete -c esrl -n __fish_use_subcommand -f -a {name}" for name in commands]
    for name, found in commands.items():
        here = f"complete -c esrl -n '__fish_seen_subcommand_from {name}'"
        plain = [word for word in found if not word.startswith("--")]
        for flag in (word for word in found if word.startswith("--")):
            values = f" -x -a '{' '.join(after[flag])}'" if flag in after else ""
            lines.append(f"{here} -l {flag[2:]}{values}")
        if plain:
            lines.append(f"{here} -a '{' '.join(plain)}'")
    return _FISH + "\n".join(lines) + "\n"
