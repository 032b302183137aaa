"""How much is measured: a quick look, everything, and a smoke test of the harness itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """
    The extent of a run.

    :param rounds: Repetitions of every rate; each round measures every contender once
    :param slice_seconds: Time of one measurement
    :param warm_up: Updates before the first measurement of a model; Adam's moments reach denormal numbers in some hundred
    :param warm_up_batch: Further updates after every change of the batch size
    :param threads: Threads and cores for ``train()``
    :param learn_threads: Those for ``learn()``
    :param dimensions: States' and actions' dimensions for ``train()``, cheetah's first
    :param batches: Batch sizes for ``train()``
    :param calls: Batch sizes, at the first dimensions, for many updates in a call of ``train()``
    :param learn_warm_up: Environment steps before the first measurement of ``learn()``
    :param start_rounds: Repetitions of imports, first updates and memory, each with a new process
    :param breakdown_rounds: Repetitions of the profiles of an update
    :param breakdown_count: Updates in each of them
    :param scale_batches: Batch sizes of the scaling plot
    :param scale_widths: Hidden units of the scaling plot, the same in both layers
    :param scale_envs: Numbers of environments of the scaling plot
    :param scale_rounds: Repetitions there
    :param buffer_size: Transitions in the replay buffer whose memory is measured; 0 leaves it out
    :param device: ``"cpu"`` or ``"cuda"``
    :param contenders: Names of those measured if the command line does not say; None means all of the table of DDPGs
    :param neighbour_batches: Batch sizes of updates beside a second training on two cores
    :param family: Whether TD3, SAC and CrossQ are measured too, on the least of ``threads``
    """

    rounds: int = 7
    slice_seconds: float = 0.3
    warm_up: int = 1000
    warm_up_batch: int = 100
    threads: tuple[int, ...] = (2, 1)
    learn_threads: tuple[int, ...] = (2, 1)
    dimensions: tuple[tuple[int, int], ...] = ((17, 6),)
    batches: tuple[int, ...] = (64, 256)
    calls: tuple[int, ...] = ()
    learn_warm_up: int = 600
    start_rounds: int = 2
    breakdown_rounds: int = 3
    breakdown_count: int = 100
    scale_batches: tuple[int, ...] = ()
    scale_widths: tuple[int, ...] = ()
    scale_envs: tuple[int, ...] = ()
    scale_rounds: int = 3
    buffer_size: int = 0
    device: str = "cpu"
    contenders: tuple[str, ...] | None = None
    neighbour_batches: tuple[int, ...] = ()
    family: bool = False


PROFILES = {
    "quick": Profile(
        rounds=5,
        threads=(1,),
        learn_threads=(1,),
        start_rounds=1,
        breakdown_rounds=1,
        neighbour_batches=(64,),
    ),
    "full": Profile(
        rounds=5,
        warm_up_batch=20,
        dimensions=((17, 6), (3, 1), (348, 17)),
        batches=(64, 256, 16, 1024),
        calls=(64, 256),
        learn_warm_up=800,
        scale_batches=(64, 256, 1024, 4096, 16_384, 65_536),
        scale_widths=(64, 128, 256, 512, 1024),
        scale_envs=(1, 2, 4, 8, 16),
        buffer_size=1_000_000,
        neighbour_batches=(64, 256),
        family=True,
    ),
    "gpu": Profile(
        rounds=5,
        warm_up=300,
        warm_up_batch=50,
        threads=(2,),
        learn_threads=(2,),
        batches=(64, 256, 1024, 4096),
        calls=(64,),
        learn_warm_up=400,
        start_rounds=1,
        breakdown_rounds=0,
        scale_batches=(64, 1024, 16_384, 65_536),
        scale_widths=(256, 1024, 4096),
        device="cuda",
        # Numba's code is for the CPU, as the floor's products are, and Tianshou's subject
        contenders=("bnddpg", "bnddpg_no_norm", "bnddpg_autograd", "sb3_ddpg", "sb3_td3", "crossq", "sbx_ddpg"),
    ),
    "processor": Profile(
        rounds=9,
        slice_seconds=0.5,
        threads=(1,),
        learn_threads=(1,),
        calls=(64, 256),
        start_rounds=0,
        breakdown_rounds=0,
        contenders=("bnddpg", "bnddpg_compiled", "sb3_ddpg", "sbx_ddpg", "floor", "whole_floor"),
        neighbour_batches=(64, 256),
        family=True,
    ),
    "smoke": Profile(
        rounds=2,
        slice_seconds=0.02,
        warm_up=3,
        warm_up_batch=2,
        threads=(1,),
        learn_threads=(1,),
        batches=(64, 256),
        calls=(64,),
        learn_warm_up=110,
        start_rounds=1,
        breakdown_rounds=1,
        breakdown_count=2,
        scale_batches=(64, 256),
        scale_widths=(64, 128),
        scale_envs=(1, 2),
        scale_rounds=1,
        buffer_size=1000,
        neighbour_batches=(64,),
        family=True,
    ),
}
