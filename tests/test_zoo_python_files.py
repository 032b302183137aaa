"""Hyperparameters in a Python file, whose classes are found again."""

import shlex
import sys
from pathlib import Path

import pytest
from zoo_runs import PYTHON_FILE

pytest.importorskip("rl_zoo3")

import rl_zoo3.train
import rl_zoo3.utils
import yaml
from zoo_managers import manager_of, model_of

from sb3_bn_ddpg import BNDDPG, XQC, zoo
from sb3_bn_ddpg.zoo import python_files

zoo.register()


@pytest.fixture
def python_file(tmp_path):
    (path := tmp_path / "a folder.v2" / "conf.py").parent.mkdir()
    path.write_text(PYTHON_FILE)
    return path


def forget_python_files():
    """As in another process."""
    for name in [name for name in sys.modules if name.startswith(python_files.PREFIX)]:
        del sys.modules[name]


@pytest.mark.parametrize("algo", ["bn_ddpg", "ddpg"])
def test_classes_of_a_python_file_are_found_again(algo, python_file, tmp_path):
    """By what reads a run's ``config.yml``, as ``enjoy`` and a resumed training do."""
    manager = manager_of(tmp_path, algo=algo, config=str(python_file))
    _, saved = manager.setup_experiment()
    forget_python_files()
    read, _ = rl_zoo3.utils.get_saved_hyperparams(manager.params_path)
    extractor_class = read["policy_kwargs"]["features_extractor_class"]
    assert extractor_class.__name__ == "Sets"
    assert extractor_class is not saved["policy_kwargs"]["features_extractor_class"]
    forget_python_files()
    python_file.unlink()
    with pytest.raises(yaml.YAMLError, match=rf"there is no file {python_file}"):
        rl_zoo3.utils.get_saved_hyperparams(manager.params_path)


def test_a_training_of_a_python_file_is_resumed(python_file, tmp_path):
    manager = manager_of(tmp_path, config=str(python_file))
    model, _ = manager.setup_experiment()
    manager.learn(model)
    forget_python_files()
    checkpoint = f"{manager.save_path}/checkpoint.zip"
    again = manager_of(tmp_path, trained_agent=checkpoint, n_timesteps=10)
    resumed, _ = again.setup_experiment()
    again.learn(resumed)
    assert resumed.num_timesteps == 70
    configs = [yaml.unsafe_load(Path(each.params_path, "config.yml").read_text()) for each in (manager, again)]
    assert configs[0] == configs[1]


def test_a_model_needs_no_python_file(python_file, tmp_path):
    """The class is in the model's own file, whichever way it was found."""
    folder = tmp_path / "models"
    folder.mkdir()
    model = model_of(tmp_path, config=str(python_file))
    model.save(folder / "from_file")
    forget_python_files()
    extractor_class = rl_zoo3.utils.get_class_by_name(f"{python_files.module_name(str(python_file))}.Sets")
    BNDDPG("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(features_extractor_class=extractor_class)).save(folder / "by_name")
    forget_python_files()
    python_file.unlink()
    for name in ("from_file", "by_name"):
        assert type(BNDDPG.load(folder / name).actor.features_extractor).__name__ == "Sets"


def test_schedules_of_a_python_file(tmp_path):
    """Of any kind that the constructor takes, such as those of XQC's arguments."""
    (tmp_path / "xqc.py").write_text(
        "from sb3_bn_ddpg import XQC\n\n\ndef falling(progress_remaining):\n    return 0.002 * progress_remaining\n\n\n"
        "entry = dict(policy='MlpPolicy', n_timesteps=155, **XQC | dict(learning_starts=150, critic_learning_rate=falling))\n"
        "hyperparams = {'Pendulum-v1': entry}\n"
    )
    manager = manager_of(tmp_path, algo="bn_sac", config=str(tmp_path / "xqc.py"))
    model, _ = manager.setup_experiment()
    assert model.learning_rate(1.0) == XQC["learning_rate"](1.0)
    assert model.learning_rate(0.0) == XQC["learning_rate"](0.0) > 0
    assert (model.critic_learning_rate(1.0), model.critic_learning_rate(0.5)) == (0.002, 0.001)
    manager.learn(model)
    forget_python_files()
    again = manager_of(tmp_path, algo="bn_sac", trained_agent=f"{manager.save_path}/checkpoint.zip", n_timesteps=5)
    resumed, _ = again.setup_experiment()
    again.learn(resumed)
    assert (resumed.num_timesteps, resumed.critic_learning_rate(0.5)) == (160, 0.001)


def test_a_python_file_is_read_anew(python_file, tmp_path):
    """As its text is now, and as it was before the Zoo changed the hyperparameters in place."""
    for _ in range(2):
        model = model_of(tmp_path, config=str(python_file), hyperparams={"batch_size": 4})
        assert (model.batch_size, model.actor.features_extractor.features_dim) == (4, 5)
        model = model_of(tmp_path, config=str(python_file))
        assert (model.batch_size, type(model.learning_starts)) == (8, int)
    python_file.write_text(PYTHON_FILE.replace("features_dim=5", "features_dim=6"))
    assert model_of(tmp_path, config=str(python_file)).actor.features_extractor.features_dim == 6


def test_search_with_a_python_file(python_file, tmp_path, capsys):
    """What it found is trained from its file and from the study, and the same command goes on with it."""
    kwargs = dict(optimize_hyperparameters=True, n_trials=1, n_eval_episodes=1, no_optim_plots=True)

    def search():
        manager = manager_of(tmp_path, config=str(python_file), **kwargs)
        manager.setup_experiment()
        manager.hyperparameters_optimization()
        return manager

    first = search()
    assert capsys.readouterr().out.count("bn-ddpg train ") == 2
    forget_python_files()
    (best_file,) = tmp_path.glob("logs/bn_ddpg/optuna/*/best.yml")
    from_file = model_of(tmp_path, config=str(best_file))
    from_study = model_of(tmp_path, config=str(python_file), trial_id=0)
    assert str(from_file.policy) == str(from_study.policy)
    assert type(from_file.actor.features_extractor).__name__ == "Sets"
    assert type(from_file.actor.mu[2]).__name__ == type(from_study.actor.mu[2]).__name__
    (moved := tmp_path / "moved").mkdir()
    python_file = python_file.rename(moved / "conf.py")
    assert search().study_name == first.study_name


def test_search_with_what_no_text_stands_for(python_file, tmp_path, capsys):
    """The study trains it all the same, with the Python file."""
    python_file.write_text(PYTHON_FILE.replace("activation_fn=rounded", "activation_fn=lambda: nn.Softplus()"))
    kwargs = dict(optimize_hyperparameters=True, n_trials=1, n_eval_episodes=1, no_optim_plots=True)
    search = manager_of(tmp_path, config=str(python_file), **kwargs)
    search.args.conf_file = str(python_file)
    search.setup_experiment()
    search.hyperparameters_optimization()
    *_, words, command = capsys.readouterr().out.splitlines()
    assert words.endswith("best.yml cannot hold policy_kwargs, which no text stands for")
    assert command.startswith("Train with it: bn-ddpg train --algo bn_ddpg --env Pendulum-v1 --storage sqlite:///")
    assert shlex.split(command)[-4:] == ["--trial-id", "0", "--conf-file", str(python_file)]
