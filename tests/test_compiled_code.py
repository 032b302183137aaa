"""The code that Numba compiles, and what is kept of it."""

import os
import pickle
import subprocess
import sys
import textwrap
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from conftest import random_batch
from fast_updates import needs_numba

from sb3_bn_ddpg import BNDDPG
from sb3_bn_ddpg.deterministic.engine_step import gradient_step
from sb3_bn_ddpg.fast.stamps import sources_of


@needs_numba
@pytest.mark.parametrize("fault", ["no folder", "a full disk", "a broken file"])
def test_compiled_where_nothing_can_be_kept(tmp_path, fault):
    """It compiles for this process alone, which one warning says."""
    code = """
        import sys, warnings
        from numba.core import caching
        fault = sys.argv[1]

        def raises(*args):
            raise {"a full disk": OSError(28, "No space left on device"), "a broken file": EOFError("Ran out of input")}[fault]

        if fault == "no folder":
            caching.CacheImpl._locator_classes = []
        else:
            setattr(caching.IndexDataCacheFile, "save" if fault == "a full disk" else "load", raises)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import numba, numpy
            from sb3_bn_ddpg.fast import numba_operations as ops
            target = numpy.zeros(3)
            numba.njit(lambda target: ops.move(target, target + 1, 0.5))(target)
        assert target.tolist() == [0.5] * 3
        texts = [str(warning.message) for warning in caught if "Numba can keep no compiled code" in str(warning.message)]
        assert len(texts) == 1 and "NUMBA_CACHE_DIR" in texts[0], texts
    """
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path))
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), fault], check=True, env=environment)


@needs_numba
def test_two_processes_that_compile_for_different_types_at_a_time(tmp_path):
    """Both read what is kept, then both write: each one's types lead to its own code, or to none."""
    code = """
        from sb3_bn_ddpg.fast import numba_operations as ops
        from sb3_bn_ddpg.fast.numba_compiler import compiled
        one, other = (compiled(ops.move.py_func)._cache._cache_file for _ in range(2))
        index, write = one._load_index, other._save_data
        other._load_index = dict  # as it was when both began

        def write_later(*args):
            one._load_index = dict
            one.save("of one", "code of one")
            write(*args)

        other._save_data = write_later
        other.save("of the other", "code of the other")
        one._load_index = index
        assert one.load("of one") == "code of one", one.load("of one")
    """
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path))
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)


@needs_numba
def test_a_line_says_that_a_step_is_compiled_once_a_machine(tmp_path):
    (tmp_path / "own_step.py").write_text(
        "from sb3_bn_ddpg.fast.numba_compiler import compiled\n\ndef double(x):\n    return 2 * x\n\n"
        "assert compiled(double, is_step=True)(2) == 4\n"
    )
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path / "cache"))

    def stderr() -> str:
        command = [sys.executable, str(tmp_path / "own_step.py")]
        return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stderr

    assert stderr().count("Compiling the gradient step") == 1
    assert "Compiling" not in stderr()


@needs_numba
def test_constants_share_one_code():
    """A pass, and all that it calls, is not compiled for each mode anew."""
    import numba

    from sb3_bn_ddpg.fast.numba_compiler import compiled

    def times(x, n):
        return x * n

    function = compiled(times)
    assert numba.njit(lambda x: function(x, 2) + function(x, 3))(2.0) == 10
    assert len(function.signatures) == 1


class Inner(NamedTuple):
    values: Any
    factor: int


class Outer(NamedTuple):
    inner: Inner
    several: tuple[Inner, ...]
    pair: tuple[Any, int]
    same: Inner


@needs_numba
def test_named_tuples_by_reference():
    """What compiled code reads and writes through them are the arrays of the tuple, and none is held beyond the call."""
    import numba

    from sb3_bn_ddpg.fast.numba_references import referenced

    @numba.njit
    def multiplied(outer):
        by_reference = referenced(outer)
        for k in range(len(by_reference.several)):
            inner = by_reference.several[k]
            inner.values[0] *= inner.factor
        inner, same = by_reference.inner, by_reference.same
        inner.values[0] *= inner.factor
        array, number = by_reference.pair
        array[0] += number
        return same.values[0]

    for dtype in (np.float32, np.float64):
        arrays = [np.full(2, k + 1, dtype) for k in range(4)]
        inner = Inner(arrays[0], 2)
        outer = Outer(inner, (Inner(arrays[1], 3), Inner(arrays[2], 4)), (arrays[3], 5), inner)
        counts = [sys.getrefcount(array) for array in arrays]
        assert multiplied(outer) == 2
        assert [sys.getrefcount(array) for array in arrays] == counts
        assert [array.tolist() for array in arrays] == [[2, 1], [6, 2], [12, 3], [9, 4]]


@needs_numba
def test_code_of_equal_content_has_a_name_for_each_key():
    """Of processors with one name, for example: Numba takes the next number until a name is free."""
    from sb3_bn_ddpg.fast.numba_compiler import _name_by_content

    names = []
    file = SimpleNamespace(_data_name_pattern="code.{number:d}.nbc", _dump=pickle.dumps)
    file.save = lambda key, data: names.append(file._data_name(1))
    _name_by_content(file)
    for key in ("one", "other", "one"):
        file.save(key, b"code")
    assert names[0] == names[2] != names[1]


@needs_numba
def test_nothing_is_kept_of_files_that_have_changed_since(monkeypatch, tmp_path):
    """It would be taken for the changed files' code in all processes to come."""
    from sb3_bn_ddpg.fast import numba_compiler

    kept, own = [], tmp_path / "own.py"
    own.write_text("FACTOR = 2")
    save = numba_compiler._unless_changed(kept.append, (str(own),))
    save("before")
    own.write_text("FACTOR = 20")
    save("after")
    own_again = numba_compiler._unless_changed(kept.append, (str(own),))
    own_again("its own are as they were")
    monkeypatch.setattr(numba_compiler, "package_stamps", lambda: (("file.py", 0.0, 0),))
    own_again("after")
    assert kept == ["before", "its own are as they were"]


@needs_numba
def test_an_own_step_is_compiled_anew_when_what_it_is_made_of_changes(tmp_path):
    """Numba looks at the file of the step alone."""
    step = """
        import numpy
        from parts import times
        from sb3_bn_ddpg.fast import numba_operations
        from sb3_bn_ddpg.fast import torch_operations as ops
        from sb3_bn_ddpg.fast.numba_compiler import compiled_steps
        from sb3_bn_ddpg.fast.parts import Transitions

        def step(parts, transitions, noise, reports, rates, tau, update_actor, update_targets, choices):
            ops.report(reports, 0, times(transitions.rewards), 1)

        ones = numpy.ones((1, 1, 1))
        reports, flags = numpy.zeros((1, 1)), numpy.ones(1, bool)
        compiled_steps(step, numba_operations)(0, Transitions(*[ones] * 5), ones, reports, (ones,) * 4, 0.0, flags, flags, 0)
        print(reports[0, 0])
    """
    (tmp_path / "own_step.py").write_text(textwrap.dedent(step))
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    seen = []
    for slope in (1.0, 1.0, 30.0):
        further = f"def more(x):\n    return {slope} * x\n"
        parts = "from further import more\n\ndef times(x):\n    return more(x)\n"
        for file, text in ((tmp_path / "further.py", further), (tmp_path / "parts.py", parts)):
            if not file.exists() or file.read_text() != text:
                file.write_text(text)
        command = [sys.executable, str(tmp_path / "own_step.py")]
        run = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        seen.append((float(run.stdout), "Compiling" in run.stderr))
    assert seen == [(1.0, True), (1.0, False), (30.0, True)]


def test_what_a_function_is_made_of():
    inner = dict(RATE=0.5, VECTOR=np.arange(2.0))
    exec("def function(x):\n    return x * RATE + VECTOR[0]", inner)
    outer = dict(call=SimpleNamespace(py_func=inner["function"]), module=textwrap)
    exec("def function(x):\n    return call(module.dedent(x)) + function(x)", outer)
    files, constants = sources_of(outer["function"])
    assert set(files) == {"<string>", textwrap.__file__}
    assert constants == ("RATE=0.5", "VECTOR=[0.0, 1.0]")


@needs_numba
@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["BNDDPG", "BNSAC"])
def test_kept_code_has_the_numbers_of_the_process_that_compiled_it(algorithm, tmp_path):
    """Else a training whose first process compiled would be resumed to other numbers, as once by the order of its sums."""
    code = """
        import hashlib, sys
        import sb3_bn_ddpg
        algorithm = getattr(sb3_bn_ddpg, sys.argv[1])
        model = algorithm("MlpPolicy", "Pendulum-v1", seed=0, learning_starts=80, batch_size=64, fast_update="compiled")
        model.learn(120)
        digest = hashlib.sha256()
        for tensor in model.policy.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        print(digest.hexdigest())
    """
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path))
    command = [sys.executable, "-c", textwrap.dedent(code), algorithm]
    compiling, reading = (
        subprocess.run(command, check=True, env=environment, capture_output=True, text=True) for _ in range(2)
    )
    assert "Compiling" in compiling.stderr
    assert "Compiling" not in reading.stderr
    assert reading.stdout == compiling.stdout


@needs_numba
def test_one_compiled_code_serves_networks_of_any_depth(make_model):
    from sb3_bn_ddpg.fast.compiled_update import compiled_function

    numbers = []
    for policy_kwargs in (dict(net_arch=[8]), dict(net_arch=[8, 8, 8], normalization="layer"), dict(net_arch=[])):
        model = make_model(fast_update="compiled", policy_kwargs=policy_kwargs)
        model._gradient_step(random_batch(model))
        assert type(model._fast_update).__name__ == "CompiledUpdate"
        numbers.append(len(compiled_function(gradient_step).signatures))
    assert len(set(numbers)) == 1


@needs_numba
def test_compiled_resumes_to_the_bit(make_model, tmp_path):
    whole = make_model("Pendulum-v1", fast_update="compiled").learn(120)
    half = make_model("Pendulum-v1", fast_update="compiled").learn(60, schedule_timesteps=120)
    half.save_checkpoint(tmp_path / "half")
    resumed = BNDDPG.resume(tmp_path / "half", env="Pendulum-v1")
    resumed.learn(60, reset_num_timesteps=False)
    for key, value in whole.policy.state_dict().items():
        assert th.equal(value, resumed.policy.state_dict()[key]), key
