"""
The declared offline trainings: algorithm x normalisation x dataset, and d3rlpy's own algorithms on the same datasets. Plain
data; :mod:`benchmarks.learning.matrix` makes variants of it, whose units run as all others do.
"""

from typing import Any, NamedTuple

TASKS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")


class Recipe(NamedTuple):
    """
    How a task's datasets are made, all by one training with a stored profile.

    :param teacher: The variant that is trained
    :param seed: Its seed, and that of what is recorded
    :param half_steps: Steps after which "medium" is recorded
    :param steps: All steps; "replay" is the replay buffer then
    :param medium_steps: Transitions of "medium"
    :param noise: Standard deviation of the noise on the recorded actions, in units of half an action's range
    """

    teacher: str = "td3_prototype"
    seed: int = 1_000
    half_steps: int = 25_000
    steps: int = 50_000
    medium_steps: int = 100_000
    noise: float = 0.1


RECIPE = Recipe()
OWN_RECIPES: dict[str, dict[str, Any]] = {"Hopper-v5": dict(teacher="sac_crossq", half_steps=47_500)}
"""
What is otherwise in a task's recipe. On Hopper the recipe's teacher stands still, for which the task pays, and this one jumps
once and falls, always alike, until 45,000 steps: data that hold little else tell no two algorithms apart.
"""
KINDS = {"medium": "a half-trained policy", "replay": "the replay buffer of a training"}
NORMALIZATIONS: dict[str, str | None] = {"none": None, "batch": "batch", "layer": "layer"}
LABELS = {"bn_iql": "IQL", "bn_td3_bc": "TD3+BC", "bn_awac": "AWAC", "bn_bcq": "BCQ"}
STEPS = {"bn_iql": 20_000, "bn_td3_bc": 20_000, "bn_awac": 5_000, "bn_bcq": 5_000}
"""
Gradient steps. AWAC's minibatches are four times those of IQL and TD3+BC: all three see as many transitions. BCQ
generates ten actions in each next state, by wide networks, so one of its steps takes as long as ten of the others'.
"""
N_EVALUATIONS = 10
PEER = "d3rlpy"
"""In the place of a normalisation: d3rlpy's algorithm, which has none."""


class Change(NamedTuple):
    """
    d3rlpy's algorithm with one thing made as its paper has it, to see whether scores differ by that.

    :param title: What is changed
    :param kind: One of :data:`KINDS`: the datasets on which scores differ
    :param algorithm: One of :data:`LABELS`
    :param suffix: Behind the algorithm's name, as ``d3rlpy_worker.py`` knows it
    :param columns: What stands over the scores before and after
    """

    title: str
    kind: str
    algorithm: str
    suffix: str
    columns: tuple[str, str]

    @property
    def variant(self) -> str:
        """The changed variant's name"""
        return variant_name(self.kind, self.algorithm, PEER + self.suffix)


CHANGES = (
    Change("d3rlpy's AWAC, its target without the entropy term", "replay", "bn_awac", "_no_entropy", ("with it", "without")),
    Change("d3rlpy's BCQ, its generated actions through tanh", "medium", "bn_bcq", "_tanh", ("as it is", "with tanh")),
)


class OfflineVariant(NamedTuple):
    """The first fields of :class:`~benchmarks.learning.contenders.Variant`."""

    label: str
    algorithm: str
    kwargs: dict[str, Any]
    steps: int
    every: int


def variant_name(kind: str, algorithm: str, normalization: str) -> str:
    """
    :param kind: One of :data:`KINDS`
    :param algorithm: One of :data:`LABELS`
    :param normalization: One of :data:`NORMALIZATIONS`, or :data:`PEER`
    :return: The variant's name
    """
    return f"offline_{kind}_{algorithm.removeprefix('bn_')}_{normalization}"


def _variant(kind: str, algorithm: str, normalization: str) -> OfflineVariant:
    kwargs: dict[str, Any] = dict(dataset=kind, recipe=RECIPE._asdict())
    name = algorithm
    if normalization.startswith(PEER):
        name = f"{PEER}_{algorithm.removeprefix('bn_')}{normalization.removeprefix(PEER)}"
    else:
        kwargs["policy_kwargs"] = dict(normalization=NORMALIZATIONS[normalization])
    label = f"{LABELS[algorithm]}, {normalization}"
    return OfflineVariant(label, name, kwargs, STEPS[algorithm], STEPS[algorithm] // N_EVALUATIONS)


VARIANTS = {
    variant_name(kind, algorithm, normalization): _variant(kind, algorithm, normalization)
    for kind in KINDS
    for algorithm in LABELS
    for normalization in (*NORMALIZATIONS, PEER)
}
VARIANTS |= {change.variant: _variant(change.kind, change.algorithm, PEER + change.suffix) for change in CHANGES}
PEERS = {variant.algorithm for variant in VARIANTS.values() if variant.algorithm.startswith(PEER)}


def names(*algorithms: str) -> list[str]:
    """
    :param algorithms: Some of :data:`LABELS`
    :return: Their variants, those to be compared one after the other
    """
    return [
        variant_name(kind, algorithm, normalization)
        for algorithm in algorithms
        for kind in KINDS
        for normalization in (*NORMALIZATIONS, PEER)
    ]
