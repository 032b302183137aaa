"""
Tune BNDDPG with Optuna, over the search space of `bn-ddpg train --optimize`, and train with the best values.

    python docs/examples/tune.py --trials 20 --timesteps 5000

It needs `pip install "sb3-bn-ddpg[zoo]"`. The same command goes on with the study, several at once share it, and
`optuna-dashboard sqlite:///runs/tune/optuna.db` shows it. Write an objective of your own as here; without one the command line
does all of this, and more: `bn-ddpg train --env Pendulum-v1 --optimize --n-trials 20 --n-timesteps 5000`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import optuna
from rl_zoo3.callbacks import TrialEvalCallback
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_bn_ddpg.zoo
from sb3_bn_ddpg import BNDDPG

N_EVALUATIONS = 4  # in each trial; after each one Optuna may prune it
EVALUATION_SEED = 10_000

sb3_bn_ddpg.zoo.register()  # RL Zoo's dictionary of samplers has bn_ddpg's from here on


def sample_hyperparameters(trial: optuna.trial.BaseTrial, n_actions: int) -> dict[str, Any]:
    """Arguments of BNDDPG; docs/zoo.md has the table of what varies."""
    without_her = dict(using_her_replay_buffer=False, her_kwargs={})
    return HYPERPARAMS_SAMPLER["bn_ddpg"](trial, n_actions, 1, without_her)


def objective(trial: optuna.Trial, env_id: str, timesteps: int) -> float:
    """Train with sampled hyperparameters; the mean return of the last evaluation."""
    env, evaluation_env = make_vec_env(env_id), make_vec_env(env_id, seed=EVALUATION_SEED)
    model = BNDDPG("MlpPolicy", env, **sample_hyperparameters(trial, env.action_space.shape[0]))
    evaluation = TrialEvalCallback(evaluation_env, trial, eval_freq=max(timesteps // N_EVALUATIONS, 1))
    try:
        model.learn(timesteps, callback=evaluation)
    except ValueError as error:  # a loss became NaN: no values to train with, but no reason to stop the search
        raise optuna.TrialPruned(str(error)) from error
    finally:
        env.close()
        evaluation_env.close()
    if evaluation.is_pruned:
        raise optuna.TrialPruned()
    return float(evaluation.last_mean_reward)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="a Gymnasium environment with continuous actions")
    parser.add_argument("--trials", type=int, default=20, help="trials to add to the study")
    parser.add_argument("--timesteps", type=int, default=5_000, help="environment steps of a trial, and of the last training")
    parser.add_argument("--out", type=Path, default=Path("runs/tune"), help="folder for the study and the model")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    study = optuna.create_study(
        # Values of trials of different lengths cannot be compared: a study for each
        study_name=f"bn_ddpg_{args.env}_{args.timesteps}",
        storage=f"sqlite:///{args.out}/optuna.db",
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )
    study.optimize(lambda trial: objective(trial, args.env, args.timesteps), n_trials=args.trials)
    if not study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
        sys.exit("No trial has finished; the same command adds more")
    print(f"Best of {len(study.trials)} trials: {study.best_trial.number}, with {study.best_value:.1f}: {study.best_params}")

    # The best trial's parameters by way of the sampler again. The best of many short runs was lucky, too: train anew.
    env = make_vec_env(args.env)
    best = sample_hyperparameters(optuna.trial.FixedTrial(study.best_params), env.action_space.shape[0])
    model = BNDDPG("MlpPolicy", env, seed=0, **best).learn(args.timesteps)
    mean, deviation = evaluate_policy(model, make_vec_env(args.env, seed=EVALUATION_SEED + 1), n_eval_episodes=10)
    model.save(args.out / "best_model")
    print(f"Trained with them: {mean:.1f} +- {deviation:.1f} over 10 episodes, saved as {args.out / 'best_model.zip'}")


if __name__ == "__main__":
    main()
