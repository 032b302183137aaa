"""The contenders: peers, the paper's values, those with one factor changed, and the tuned profiles. Plain data."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

LONG_STEPS = 500_000
"""Environment steps of the long runs."""
MILLION = 1_000_000
"""Of two of them."""

PROFILES = Path(__file__).parents[2] / "hyperparams"


@dataclass(frozen=True)
class Variant:
    """
    One contender.

    :param label: Name in tables and plots
    :param algorithm: ``"random"`` or a key of :data:`~benchmarks.learning.algorithms.ALGORITHMS`
    :param kwargs: Arguments of its constructor, as a hyperparameter file spells them (``action_noise`` is a mapping)
    :param steps: Environment steps
    :param every: Steps between evaluations
    """

    label: str
    algorithm: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    steps: int = 50_000
    every: int = 2_500

    @property
    def is_long(self) -> bool:
        """
        Whether its runs take so long that they need what shorter ones, stored before, do without: see
        :func:`~benchmarks.learning.unit.run`.
        """
        return self.steps >= LONG_STEPS


# RL Zoo's entry for MuJoCo in both ddpg.yml and td3.yml (rl-zoo3 2.9.2)
_ZOO = dict(
    learning_rate=1e-3,
    batch_size=256,
    train_freq=1,
    gradient_steps=1,
    action_noise=dict(type="normal", sigma=0.1),
    policy_kwargs=dict(net_arch=[400, 300]),
)

CONTENDERS: dict[str, Variant] = {
    "random": Variant("Random policy", "random"),
    "sb3_ddpg": Variant("SB3 DDPG", "ddpg", _ZOO),
    "sb3_td3": Variant("SB3 TD3", "td3", _ZOO),
    "crossq_256": Variant(
        "CrossQ, critics of 256", "crossq", dict(policy_kwargs=dict(net_arch=dict(pi=[256, 256], qf=[256, 256])))
    ),
    "crossq_1024": Variant("CrossQ, critics of 1024", "crossq"),  # its defaults
    # The paper's Figure 2, everything else at the paper's values, which are the class's defaults
    "paper_no_targets": Variant("paper, no target networks", "bn_ddpg", dict(use_target_networks=False)),
    "paper_no_norm": Variant("paper, no batch norm", "bn_ddpg", dict(policy_kwargs=dict(normalization=None))),
    "paper": Variant("paper (both)", "bn_ddpg"),
}

# The prototype's best settings, around which one factor changes at a time
_BASE = dict(learning_rate=1e-3, critic_learning_rate=1e-3, critic_weight_decay=0.0, tau=0.005, batch_size=256)
ABLATION_STEPS = 30_000
"""Fewer than elsewhere, so that every factor gets its three seeds."""


def _changed(label: str, policy: dict[str, Any] | None = None, **kwargs: Any) -> Variant:
    return Variant(label, "bn_ddpg", _BASE | kwargs | (dict(policy_kwargs=policy) if policy else {}), ABLATION_STEPS)


FACTORS: dict[str, dict[str, Variant]] = {
    "normalisation (base: batch norm)": {
        "ablation_no_norm": _changed("none", dict(normalization=None)),
        # Its default warm-up of 100,000 updates, in which it is batch norm, is longer than these runs
        "ablation_renorm": _changed("batch renorm", dict(normalization="batch_renorm", renorm_warmup_steps=1_000)),
        "ablation_layer_norm": _changed("layer norm", dict(normalization="layer")),
        "ablation_batch_layer": _changed("batch norm on the state, then layer norm", dict(normalization="batch_layer")),
    },
    "batch size (base: 256)": {"ablation_batch_64": _changed("64 (paper)", batch_size=64)},
    "targets' statistics (base: the minibatch's)": {
        "ablation_targets_copied": _changed("running, copied", target_statistics="running"),
        "ablation_targets_own": _changed(
            "the targets' own running", target_statistics="running_update", target_statistics_sync=None
        ),
    },
    "the action's layer in the critic (base: the second)": {
        "ablation_action_first": _changed("the first", dict(action_layer=1)),
    },
    "critic in the actor's loss (base: running statistics)": {
        "ablation_actor_loss_batch": _changed("the minibatch's", actor_loss_critic_statistics="batch"),
    },
    "exploration (base: OU, dt 1, sigma 0.2)": {
        "ablation_ou_slow": _changed("OU, dt 0.01", action_noise=dict(type="ou", dt=0.01)),
        "ablation_gaussian": _changed("Gaussian, sigma 0.2", action_noise=dict(type="normal", sigma=0.2)),
    },
    "critic's weight decay (base: 0)": {"ablation_decay": _changed("1e-2 (paper)", critic_weight_decay=1e-2)},
    "tau (base: 0.005)": {"ablation_tau_small": _changed("0.001 (paper)", tau=0.001)},
    "target networks (base: with)": {
        "ablation_no_targets": _changed("without", use_target_networks=False),
        "ablation_joint": _changed(
            "without, states and next states in one pass", use_target_networks=False, target_statistics="joint"
        ),
    },
    "normalised layers of the critic (base: before the action)": {
        "ablation_all_layers": _changed("all", dict(critic_norm_layers="all")),
    },
    "actor's learning rate (base: 1e-3)": {"ablation_actor_1e-4": _changed("1e-4 (paper)", learning_rate=1e-4)},
    "actor's and targets' updates (base: all)": {
        "ablation_delay_3": _changed("every third", policy_delay=3),
    },
    "critic's weights of fixed norm, as CrossQ + WN (base: free)": {
        "ablation_fixed_norm_critic": _changed("fixed", weight_normalization="critic"),
    },
    "batch norm's momentum (base: 0.1)": {"ablation_momentum_0.01": _changed("0.01", dict(norm_momentum=0.01))},
}
"""What the paper leaves unsaid and what the prototype put in doubt: factor, then its values other than the base's."""
CONTENDERS["ablation_base"] = _changed("base")
CONTENDERS |= {name: variant for values in FACTORS.values() for name, variant in values.items()}


def _profile(algorithm: str) -> dict[str, Any]:
    """
    :param algorithm: Name of a profile of the folder ``hyperparams``
    :return: Its entry ``default``, without what is the benchmark's to say
    """
    kwargs: dict[str, Any] = yaml.safe_load((PROFILES / f"{algorithm}.yml").read_text())["default"]
    return {key: value for key, value in kwargs.items() if key not in ("n_timesteps", "policy", "learning_starts")}


CONTENDERS["tuned"] = Variant("BNDDPG, tuned", "bn_ddpg", _profile("bn_ddpg"))
TWICE: dict[str, Any] = dict(batch_size=128, gradient_steps=2)
"""Twice the gradient steps for about the same time."""
# The family's first profiles, in which nothing was chosen by a run of this benchmark
CONTENDERS["td3_prototype"] = Variant("BNTD3, prototype", "bn_td3", _profile("bn_td3") | dict(n_steps=5))
CONTENDERS["td3_twice"] = Variant("BNTD3, two minibatches of 128", "bn_td3", CONTENDERS["td3_prototype"].kwargs | TWICE)
CONTENDERS["sac_crossq"] = Variant("BNSAC, CrossQ's settings", "bn_sac", _profile("bn_sac_crossq"))
# Chosen among "profile_search.LATER_RULES", by a run or two on each of their tasks. Before BNSAC's the same with constant
# rates was chosen, for one run on a held-out task, reacher-easy (920), and parts of runs on two others; the change was made
# for its runs on the tuning tasks
CONTENDERS["td3_three"] = Variant("BNTD3, tuned", "bn_td3", _profile("bn_td3"))
CONTENDERS["crossq_scaled_two_falling"] = Variant("BNSAC, tuned", "bn_sac", _profile("bn_sac"))
TWO_UPDATES = "sac_two_updates"
"""XQC's number of updates a step, with whole minibatches."""
CONTENDERS[TWO_UPDATES] = Variant("BNSAC, tuned, two updates a step", "bn_sac", _profile("bn_sac") | dict(gradient_steps=2))


def with_changes(kwargs: dict[str, Any], policy: dict[str, Any] | None, changes: dict[str, Any]) -> dict[str, Any]:
    """The arguments with changes, of which those of the policy are apart."""
    return kwargs | dict(policy_kwargs=kwargs["policy_kwargs"] | (policy or {})) | changes


def _tuned_with(label: str, normalization: str | None, **changes: Any) -> Variant:
    return Variant(label, "bn_ddpg", with_changes(CONTENDERS["tuned"].kwargs, dict(normalization=normalization), changes))


CONTENDERS["tuned_no_norm"] = _tuned_with("tuned, no normalisation", None)
CONTENDERS["tuned_layer_norm"] = _tuned_with("tuned, layer norm", "layer")
# tau as SB3's DDPG and TD3 have it; without normalisation there are no statistics for the target to choose between
CONTENDERS["tuned_targets"] = _tuned_with(
    "tuned, target networks for batch norm", None, use_target_networks=True, tau=0.005, target_statistics="batch"
)


def _long(label: str, **kwargs: Any) -> Variant:
    # 40 evaluations take about a twentieth of a run's time, and the last four are of a tenth of its steps. The first four are
    # at steps at which the runs of 50,000 steps were evaluated, too
    return Variant(label, "bn_ddpg", kwargs, LONG_STEPS, every=12_500)


# The paper's values again. The random steps before the first update, of which the paper says nothing, are the 1,000 of
# all others, so that nothing but the number of steps tells them from "paper", "paper_no_norm" and "paper_no_targets"
CONTENDERS |= {
    "long_paper": _long("target networks and batch norm"),
    "long_paper_no_norm": _long("target networks, no batch norm", **CONTENDERS["paper_no_norm"].kwargs),
    "long_paper_no_targets": _long("batch norm, no target networks", **CONTENDERS["paper_no_targets"].kwargs),
}
# Where the paper says nothing and short runs decided, the other choice; everything else as "long_paper"
CONTENDERS |= {
    "long_targets_copied": _long("running statistics in the target, copied", target_statistics="running"),
    "long_ou_slow": _long("OU noise with dt 0.01", action_noise=dict(type="ou", dt=0.01)),
    # What the logs of the first runs point at: with decay the critic's weights end at a third of their first norm
    "long_no_decay": _long("no weight decay", critic_weight_decay=0.0),
    # Figure 2's other two variants without decay, which takes most of the critic's weights
    "long_no_decay_no_norm": _long(
        "no weight decay, no batch norm", **CONTENDERS["paper_no_norm"].kwargs, critic_weight_decay=0.0
    ),
    "long_no_decay_no_targets": _long(
        "no weight decay, no target networks", **CONTENDERS["paper_no_targets"].kwargs, critic_weight_decay=0.0
    ),
    # The Zoo's number for MuJoCo. The class's default of 100 would hardly differ from 1,000 in a run of this length
    "long_warmup": _long("10,000 random steps first", learning_starts=10_000),
}
# The best and the worst cell of the first seed, for twice as many steps
CONTENDERS |= {
    f"million_{name}": replace(CONTENDERS[f"long_paper_{name}"], steps=MILLION) for name in ("no_targets", "no_norm")
}

FAMILY = ("td3_three", "crossq_scaled_two_falling")
"""BNTD3's and BNSAC's tuned profiles."""
FIRST_FAMILY = ("td3_prototype", "sac_crossq")
"""Those before them."""
DOUBLED = tuple(f"{name}_100k" for name in (*FAMILY, "crossq_256"))
CONTENDERS |= {name: replace(CONTENDERS[name.removesuffix("_100k")], steps=100_000, every=5_000) for name in DOUBLED}
TUNED_NORMS = ("tuned", "tuned_no_norm", "tuned_layer_norm")
FIGURE2 = ("paper_no_targets", "paper_no_norm", "paper")
FIGURE2_LONG = ("long_paper", "long_paper_no_norm", "long_paper_no_targets")
SILENT_LONG = ("long_targets_copied", "long_ou_slow", "long_warmup")
CHANGE_LONG = ("long_no_decay", "long_no_decay_no_norm", "long_no_decay_no_targets")
PEERS = ("sb3_ddpg", "sb3_td3", "crossq_256")
