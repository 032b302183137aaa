"""Draw which layer sees which batch-norm statistics in which pass, from the defaults of the code: ``architecture.svg``."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import gymnasium as gym
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Patch
from torch import nn

from sb3_bn_ddpg import BNDDPG
from sb3_bn_ddpg.networks.statistics import PassStatistics

COLORS = {
    "batch_update": ("#f4a259", "minibatch; updates the running ones"),
    "batch": ("#f7dc9c", "minibatch; updates nothing"),
    "running": ("#8cb4d8", "running; updates nothing"),
    "running_update": ("#c39bd3", "running, updated by the minibatch before"),
}
WIDTH, HEIGHT, GAP, STEP = 1.5, 0.42, 0.14, 1.95


class HalfCheetahSpaces(gym.Env):
    """States and actions of the paper's cheetah."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (17,))
    action_space = gym.spaces.Box(-1, 1, (6,))


def layers(modules: list[nn.Module]) -> list[tuple[str, bool]]:
    """Names of the layers in order, and whether each is batch norm; an activation is named with its linear layer."""
    named: list[tuple[str, bool]] = []
    for module in modules:
        if isinstance(module, nn.BatchNorm1d):
            named.append((f"batch norm {module.num_features}", True))
        elif isinstance(module, nn.Linear):
            named.append((f"linear {module.out_features}", False))
        elif isinstance(module, (nn.ReLU, nn.Tanh)):
            named.append((type(module).__name__.replace("Tanh", "tanh"), False))
    return named


def box(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    """A layer."""
    axes.add_patch(FancyBboxPatch((x, y), WIDTH, HEIGHT, "round,pad=0,rounding_size=0.08", facecolor=color, edgecolor="0.35"))
    axes.text(x + WIDTH / 2, y + HEIGHT / 2, text, ha="center", va="center", fontsize=8)


def stack(axes: Axes, x: float, title: str, state: str, parts: list[tuple[str, bool]], statistics: str, output: str) -> None:
    """One network in one pass, from its input upwards."""
    y = 0.0
    for text, is_norm in [(state, False), *parts, (output, False)]:
        is_end = text in (state, output)
        box(axes, x, y, text, COLORS[statistics][0] if is_norm else "white" if is_end else "#eeeeee")
        y += HEIGHT + GAP
    axes.text(x + WIDTH / 2, -0.3, title, ha="center", va="center", fontsize=9, fontweight="bold")


def main() -> None:
    """Draw and save."""
    model = BNDDPG("MlpPolicy", HalfCheetahSpaces(), buffer_size=1, device="cpu")
    defaults = PassStatistics()
    actor = layers(list(model.actor.mu))
    critic = layers(list(model.critic.state_net))
    after_action = layers(list(model.critic.q_net))

    def critic_parts(action: str) -> list[tuple[str, bool]]:
        return [*critic, (f"join {action}", False), *after_action]

    groups = [
        ("Acting, predict", [("actor", "s", actor, "running", "μ(s)")]),
        (
            "TD target",
            [
                ("target actor", "s'", actor, defaults.target, "μ'(s')"),
                ("target critic", "s'", critic_parts("μ'(s')"), defaults.target, "Q'(s', μ'(s'))"),
            ],
        ),
        ("Critic's loss", [("critic", "s", critic_parts("a"), defaults.critic_loss, "Q(s, a)")]),
        (
            "Actor's loss",
            [
                ("actor", "s", actor, defaults.actor_loss_actor, "μ(s)"),
                ("critic", "s", critic_parts("μ(s)"), defaults.actor_loss_critic, "Q(s, μ(s))"),
            ],
        ),
    ]
    figure, axes = plt.subplots(figsize=(12.5, 6.2), layout="constrained")
    x, top = 0.0, (max(len(actor), len(critic_parts(""))) + 2) * (HEIGHT + GAP)
    for title, networks in groups:
        width = STEP * (len(networks) - 1) + WIDTH
        frame = (x - 0.2, -0.55), width + 0.4, top + 1.0
        axes.add_patch(FancyBboxPatch(*frame, "round,pad=0,rounding_size=0.1", facecolor="none", edgecolor="0.7"))
        axes.text(x + width / 2, top + 0.2, title, ha="center", va="center", fontsize=11)
        for index, network in enumerate(networks):
            stack(axes, x + STEP * index, *network)
        x += width + 0.7
    shown = ["running", *defaults.__dict__.values()]
    handles = [Patch(facecolor=color, edgecolor="0.35", label=text) for key, (color, text) in COLORS.items() if key in shown]
    axes.legend(
        handles=handles,
        title="Statistics that batch norm normalises with",
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=3,
    )
    axes.set(xlim=(-0.3, x - 0.4), ylim=(-0.65, top + 0.55), aspect="equal")
    axes.axis("off")
    matplotlib.rcParams["svg.hashsalt"] = "architecture"  # the same file from the same code
    for suffix in ("svg", "png"):
        figure.savefig(Path(__file__).with_suffix(f".{suffix}"), dpi=110, metadata={"Date": None} if suffix == "svg" else None)


if __name__ == "__main__":
    main()
