"""The settings that were tried in the search for the profiles of BNTD3 and BNSAC, and the tasks on which. Plain data."""

from dataclasses import replace
from typing import Any

from benchmarks.learning.contenders import ABLATION_STEPS, CONTENDERS, TWICE, Variant, with_changes
from benchmarks.learning.tasks import WALKER

# What lets one setting learn both where episodes end early and where they do not? One factor or a few at a time around BNTD3's
# first profile, whose returns have five steps
_ONE_STEP: dict[str, Any] = dict(n_steps=1, learning_rate=1e-3)
_FIXED_NORM: dict[str, Any] = dict(use_target_networks=True, tau=0.005, weight_normalization="both")
# As XQC: a bounded critic, rewards in units of the return's spread
_ATOMS: dict[str, Any] = _FIXED_NORM | dict(reward_scaling="return_std")
_QUICK: dict[str, Any] = dict(learning_rate=1e-3, ent_coef="auto_0.1")
_WARM: dict[str, Any] = _QUICK | dict(ent_coef="auto")
_WIDE: dict[str, Any] = dict(ent_coef="auto_0.1", target_entropy="auto_0.5")
_OF_ATOMS: dict[str, Any] = dict(n_atoms=101, v_min=-5.0, v_max=5.0)


def _rule(label: str, policy: dict[str, Any] | None = None, base: str = "bn_td3", **kwargs: Any) -> Variant:
    common = CONTENDERS["td3_prototype"].kwargs
    if base == "bn_sac":  # it explores by its own actions
        common = {key: value for key, value in common.items() if key not in ("action_noise", "target_policy_noise")}
    return Variant(label, base, with_changes(common, policy, kwargs), ABLATION_STEPS)


RULES = {
    "rule_five": _rule("five steps"),
    "rule_three": _rule("three steps", n_steps=3),
    "rule_one": _rule("one step", **_ONE_STEP),
    "rule_norm_one": _rule("one step, fixed-norm weights, targets", **_ONE_STEP, **_FIXED_NORM),
    "rule_atoms_one": _rule("one step, atoms", _OF_ATOMS, **_ATOMS, n_steps=1),
    "rule_atoms_three": _rule("three steps, atoms", _OF_ATOMS, **_ATOMS, n_steps=3),
    # Where a fall ends an episode, a deterministic actor learns within 5,000 steps to stand still, and then tries nothing else
    "rule_sac_one": _rule("BNSAC, one step", base="bn_sac", **_ONE_STEP),
    "rule_sac_five": _rule("BNSAC, five steps", base="bn_sac"),
    # Five steps with CrossQ's rate, and an entropy coefficient that need not fall from 1 for a third of the run
    "rule_sac_quick": _rule("BNSAC, five steps, rate 1e-3", base="bn_sac", **_QUICK),
    "rule_sac_short": _rule("BNSAC, five steps to one, rate 1e-3", base="bn_sac", **_QUICK, n_steps_final=1),
    # The same from 1, as CrossQ's: more entropy while returns are long
    "rule_sac_warm": _rule("BNSAC, five steps to one, rate 1e-3, entropy from 1", base="bn_sac", **_WARM, n_steps_final=1),
    # BNTD3's first profile with a stochastic actor, whose entropy coefficient begins low
    "rule_sac_low": _rule("BNSAC, five steps, entropy from 0.1", base="bn_sac", ent_coef="auto_0.1"),
    # As random as BNTD3's exploration noise makes it: a standard deviation of some 0.15, where dim(A) leaves 0.09
    "rule_sac_wide": _rule("BNSAC, five steps, entropy from 0.1 to dim(A) / 2", base="bn_sac", **_WIDE),
    # BNSAC's networks have 256 and 256 units by default, BNTD3's 400 and 300
    "rule_sac_low_400": _rule(
        "BNSAC, five steps, entropy from 0.1, 400 and 300 units", dict(net_arch=[400, 300]), "bn_sac", ent_coef="auto_0.1"
    ),
    # Twice the updates for about the same time
    "rule_sac_twice": _rule(
        "BNSAC, five steps, entropy from 0.1, two minibatches of 128", base="bn_sac", **TWICE, ent_coef="auto_0.1"
    ),
    "rule_twice": _rule("five steps, two minibatches of 128", **TWICE),
    # No shortening to one step, at which Q ran away on the walker
    "rule_sac_three": _rule("BNSAC, three steps, rate 1e-3", base="bn_sac", **_QUICK | dict(n_steps=3)),
    "rule_five_smallest": _rule("five steps, the smaller critic in the actor's loss", actor_loss_critics="smallest"),
    "rule_sac_atoms_one": _rule(
        "BNSAC, one step, atoms", _OF_ATOMS, "bn_sac", **_ATOMS, n_steps=1, ent_coef="auto_0.01", target_entropy="auto_0.5"
    ),
}


def _crossq_with(label: str, policy: dict[str, Any] | None = None, **changes: Any) -> Variant:
    return Variant(label, "bn_sac", with_changes(CONTENDERS["sac_crossq"].kwargs, policy, changes))


def _td3_crossq_with(label: str, **changes: Any) -> Variant:
    kwargs = {
        key: value for key, value in CONTENDERS["sac_crossq"].kwargs.items() if key not in ("ent_coef", "target_entropy")
    }
    return Variant(label, "bn_td3", kwargs | dict(target_policy_noise=0, n_steps=3) | changes)


# 30,000 steps were too few to tell: CrossQ's settings, behind there, lead on the walker after 50,000, but some runs diverge
# and some never get off the ground. What makes them reliable, and do returns of three steps do for both kinds of task?
_TARGETS: dict[str, Any] = dict(use_target_networks=True, tau=0.005)
_PLAIN: dict[str, Any] = dict(normalization="batch")
_NORM_FIRST: dict[str, Any] = _PLAIN | dict(norm_order="before_activation")  # weights of fixed norm need it
_SCALED: dict[str, Any] = dict(reward_scaling="return_std", ent_coef="auto_0.01")
_FALLING: dict[str, Any] = dict(learning_rate="lin_3e-4", critic_learning_rate="lin_1e-3")
# With theta * dt = 1 Ornstein-Uhlenbeck noise is white
_FALLING_NOISE: dict[str, Any] = dict(type="ou", theta=1.0, dt=1.0, sigma=dict(start=0.6, end=0.1, end_fraction=0.5))
LATER_RULES = {
    "crossq_three": _crossq_with("BNSAC as CrossQ, three steps", n_steps=3),
    "crossq_two": _crossq_with("BNSAC as CrossQ, two steps", n_steps=2),
    "crossq_targets": _crossq_with("BNSAC as CrossQ, targets", _PLAIN, **_TARGETS),
    "crossq_wn": _crossq_with("BNSAC as CrossQ, targets, fixed-norm weights", _NORM_FIRST, **_FIXED_NORM),
    "crossq_wn_three": _crossq_with(
        "BNSAC as CrossQ, targets, fixed-norm weights, three steps", _NORM_FIRST, **_FIXED_NORM, n_steps=3
    ),
    # Where rewards are small, an entropy coefficient that begins at 1 drowns them for a third of the run; units of the
    # return's spread make it mean the same everywhere
    "crossq_scaled": _crossq_with("BNSAC as CrossQ, rewards scaled, entropy from 0.01", **_SCALED),
    "crossq_scaled_two": _crossq_with(
        "BNSAC as CrossQ, rewards scaled, entropy from 0.01, two steps",
        **_SCALED,
        n_steps=2,
    ),
    "crossq_scaled_three": _crossq_with(
        "BNSAC as CrossQ, rewards scaled, entropy from 0.01, three steps",
        **_SCALED,
        n_steps=3,
    ),
    "crossq_scaled_short": _crossq_with(
        "BNSAC as CrossQ, rewards scaled, entropy from 0.01, three steps to one",
        **_SCALED,
        n_steps=3,
        n_steps_final=1,
    ),
    # Evaluations jump between good and bad ones at the end: rates that fall to zero let them settle
    "crossq_scaled_short_falling": _crossq_with(
        "BNSAC as CrossQ, rewards scaled, entropy from 0.01, three steps to one, falling rates",
        **_SCALED,
        n_steps=3,
        n_steps_final=1,
        learning_rate="lin_1e-3",
    ),
    # XQC's policy is wider. One run of three of the profile stood still on Hopper, and HalfCheetah is behind CrossQ
    "crossq_scaled_two_falling_wide": Variant(
        "BNSAC, tuned, with entropy to dim(A) / 2",
        "bn_sac",
        CONTENDERS["crossq_scaled_two_falling"].kwargs | dict(target_entropy="auto_0.5"),
    ),
    "crossq_scaled_wn": _crossq_with(
        "BNSAC as CrossQ, rewards scaled, entropy from 0.01, targets, fixed-norm weights",
        _NORM_FIRST,
        **_FIXED_NORM,
        **_SCALED,
    ),
    "crossq_atoms": _crossq_with(
        "BNSAC as CrossQ, targets, fixed-norm weights, atoms",
        _NORM_FIRST | _OF_ATOMS,
        **_ATOMS,
        ent_coef="auto_0.01",
        target_entropy="auto_0.5",
    ),
    # CrossQ's layers and rates (but DDPG's small output layers) without its entropy,
    # and white noise that falls in the place of it
    "td3_crossq_three": _td3_crossq_with(
        "BNTD3 with CrossQ's layers, three steps", action_noise=dict(type="normal", sigma=0.2)
    ),
    "td3_crossq_falling": _td3_crossq_with(
        "BNTD3 with CrossQ's layers, three steps, noise from 0.6 to 0.1",
        action_noise=_FALLING_NOISE,
    ),
    # The same two steps, scaled rewards and falling rates as BNSAC's tuned profile
    "td3_crossq_two_falling": _td3_crossq_with(
        "BNTD3 with CrossQ's layers, rewards scaled, two steps, falling rates, noise from 0.6 to 0.1",
        action_noise=_FALLING_NOISE,
        n_steps=2,
        reward_scaling="return_std",
        learning_rate="lin_1e-3",
    ),
    "td3_three_quick": replace(_rule("BNTD3, three steps, rate 1e-3", n_steps=3, learning_rate=1e-3), steps=50_000),
    "td3_three_falling": replace(_rule("BNTD3, three steps, falling rates", n_steps=3, **_FALLING), steps=50_000),
    "td3_two_falling": replace(_rule("BNTD3, two steps, falling rates", n_steps=2, **_FALLING), steps=50_000),
    # Is it the one critic that stands still on Hopper, or returns of five steps?
    "ddpg_three": Variant("BNDDPG, three steps", "bn_ddpg", CONTENDERS["tuned"].kwargs | dict(n_steps=3)),
}
RULE_TASKS = (WALKER, "dm_control/cartpole-swingup-v0", "HalfCheetah-v5")
"""One whose episodes end early, two whose episodes do not."""
# A first choice, CrossQ's settings with returns of three steps, stood still in its one run there, and was not made for that
# reason. So the hopper is no held-out task of BNSAC's and BNTD3's profiles any more; it was one of BNDDPG's
LATER_RULE_TASKS = (*RULE_TASKS, "Hopper-v5")
