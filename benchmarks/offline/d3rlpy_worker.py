"""
One training of d3rlpy, in its own environment, for :mod:`benchmarks.offline.d3rlpy_model`: answers requests, pickled pairs of
a word and its argument.
"""

import pickle
import sys
import time
from typing import Any

import numpy as np

NO_ENTROPY, TANH = "_no_entropy", "_tanh"
"""
Behind the name of an algorithm: AWAC without the entropy term that d3rlpy puts into its target; BCQ with the tanh that its
paper has behind the generated actions
"""


def algorithm_of(name: str) -> Any:
    """
    :param name: d3rlpy's algorithm
    :return: The same, by its authors' settings where d3rlpy's defaults are others: IQL's rewards by the spread of the returns,
        TD3+BC's standardised observations, AWAC's temperature and BCQ's networks. How many actions BCQ's target chooses
        among, whether AWAC's has an entropy term and BCQ's generated actions a tanh, is set in :func:`main`.
    """
    from d3rlpy.algos import AWACConfig, BCQConfig, IQLConfig, TD3PlusBCConfig
    from d3rlpy.models import VectorEncoderFactory
    from d3rlpy.preprocessing import ReturnBasedRewardScaler, StandardObservationScaler

    def encoder(*units: int) -> Any:
        return VectorEncoderFactory(hidden_units=list(units))

    both = dict(actor_encoder_factory=encoder(256, 256), critic_encoder_factory=encoder(256, 256))
    configs = dict(
        iql=lambda: IQLConfig(
            batch_size=256,
            value_encoder_factory=encoder(256, 256),
            reward_scaler=ReturnBasedRewardScaler(multiplier=1000.0),
            **both,
        ),
        td3_bc=lambda: TD3PlusBCConfig(batch_size=256, observation_scaler=StandardObservationScaler(), **both),
        awac=lambda: AWACConfig(
            batch_size=1024,
            lam=2.0,
            actor_encoder_factory=encoder(256, 256, 256, 256),
            critic_encoder_factory=encoder(256, 256),
        ),
        bcq=lambda: BCQConfig(
            batch_size=100,
            actor_encoder_factory=encoder(400, 300),
            critic_encoder_factory=encoder(400, 300),
            imitator_encoder_factory=encoder(750, 750),
        ),
    )
    return configs[name.removesuffix(NO_ENTROPY).removesuffix(TANH)]().create(device="cpu:0")


def main() -> None:
    """Take the algorithm, the seed and the arrays first; then make steps, and say what to do in given states."""
    answers, requests = sys.stdout.buffer, sys.stdin.buffer
    sys.stdout = sys.stderr  # libraries print
    import d3rlpy
    import structlog
    import torch as th

    th.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    name, seed, data = pickle.load(requests)
    d3rlpy.seed(seed)
    buffer = d3rlpy.dataset.MDPDataset(
        data["observations"], data["actions"], data["rewards"], data["terminations"], data["truncations"]
    )
    algorithm = algorithm_of(name)
    algorithm.build_with_dataset(buffer)
    if name.endswith(NO_ENTROPY):  # its coefficient is the exponential of this, 1, and nothing trains it
        next(algorithm.impl.modules.log_temp.parameters()).data.fill_(-np.inf)
    if name.endswith(TANH):  # d3rlpy's decoder takes the tanh for with_squash=False alone, and nothing asks for that
        algorithm.impl.modules.vae_decoder.register_forward_hook(lambda module, arguments, actions: actions.tanh())
    scaler = algorithm.config.observation_scaler
    if scaler is not None:  # else its first evaluation, before any step, fails; fit leaves one alone that knows the data
        scaler.fit_with_transition_picker(buffer.episodes, buffer.transition_picker)
    quiet: dict[str, Any] = dict(show_progress=False, logger_adapter=d3rlpy.logging.NoopAdapterFactory())
    while True:
        try:
            what, argument = pickle.load(requests)
        except EOFError:
            return
        answer: Any = None
        if name.startswith("bcq"):  # here target and acting choose among equally many actions, the authors' among 10 and 100
            algorithm.impl._n_action_samples = 10 if what == "fit" else 100
        if what == "fit":
            algorithm.fit(buffer, n_steps=argument, n_steps_per_epoch=argument, save_interval=argument + 1, **quiet)
            answer = time.process_time()
        else:
            answer = np.asarray(algorithm.predict(argument))
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
