"""Machine code is never that of another function, wherever a function was written and whatever it refers to.

Each case is a text with one hole, filled with one thing and then with another; processes that share a cache must each print
what their own text says, and a third one that repeats the first must find its machine code on the disk.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import llmgym
from llmgym.core import fingerprint

ROOT = Path(llmgym.__file__).parents[1]
HEAD = "from llmgym.core.jit import kernel\n"
ENTRY = '@kernel(announce="whole")\n'


def process(folder: Path, *arguments: str, **environment: str) -> tuple[str, str]:
    """What a new process says on stdout and on stderr."""
    clean = {key: value for key, value in os.environ.items() if key != "LLMGYM_QUIET"}
    clean |= {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "LLMGYM_CACHE_DIR": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-B", *arguments],
        cwd=folder,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


def script(folder: Path, text: str) -> tuple[str, str]:
    (folder / "script.py").write_text(text)
    return process(folder, "script.py")


def command(folder: Path, text: str) -> tuple[str, str]:
    return process(folder, "-c", text)


def notebook(folder: Path, text: str) -> tuple[str, str]:
    return process(folder, "-c", f"exec(compile({text!r}, '<cell 1>', 'exec'), globals())")


def two_names(folder: Path, text: str) -> tuple[str, str]:
    """In a namespace of its own, which only calls itself main."""
    return process(folder, "-c", f"exec({text!r}, {{'__name__': '__main__'}})")


def module(folder: Path, text: str) -> tuple[str, str]:
    (folder / "written.py").write_text(text)
    return process(folder, "-c", "import written")


def loaded(folder: Path, text: str) -> tuple[str, str]:
    (folder / "a file.py").write_text(text)
    return process(
        folder,
        "-c",
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('by hand', 'a file.py')\n"
        "sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)",
    )


WAYS = [script, command, notebook, two_names, module, loaded]


def first_quick(cases: Iterable[Any], count: int) -> list[Any]:
    """All cases, of which those after the first few are left to the slow pass: each compiles in processes of its own."""
    return [case if k < count else pytest.param(case, marks=pytest.mark.slow) for k, case in enumerate(cases)]


def check(told: list[tuple[str, str]], one: str, other: str) -> None:
    assert [out for out, _ in told] == [one, other, one]
    assert "compiling whole for this machine (once" in told[0][1] and "compiling whole" in told[1][1]
    assert told[2][1] == "", "what was there before is found again"


@pytest.mark.parametrize("way", first_quick(WAYS, 1), ids=[way.__name__ for way in WAYS])
def test_its_own_code_and_what_it_takes_from_its_module(tmp_path, way):
    text = HEAD + "SCALE = {}\n@kernel\ndef part(x):\n    return {} * SCALE * x\n"
    text += f"{ENTRY}def whole(x):\n    return part(x) + 1.0\nprint(whole(10.0))"
    check([way(tmp_path, text.format("1.0", one)) for one in ("2.0", "3.0", "2.0")], "21.0", "31.0")
    assert way(tmp_path, text.format("5.0", "2.0"))[0] == "101.0"


@pytest.mark.parametrize(
    "use", first_quick(["import helper", "from helper import part, SCALE", "import helper as h"], 1)
)
@pytest.mark.parametrize("decorated", first_quick(["@kernel", "@numba.njit"], 1))
def test_a_helper_of_another_top_level_module(tmp_path, use, decorated):
    prefix = {"import helper": "helper.", "import helper as h": "h."}.get(use, "")
    text = (
        f"{HEAD}{use}\n{ENTRY}def whole(x):\n    return {prefix}part(x) + {prefix}SCALE\nprint(whole(10.0))"
    )
    told = []
    for scale, factor in (("1.0", "2.0"), ("1.0", "3.0"), ("1.0", "2.0"), ("4.0", "2.0")):
        helper = f"{HEAD}import numba\nimport further\nSCALE = {scale}\n{decorated}\ndef part(x):\n    return further.more(x)\n"
        (tmp_path / "helper.py").write_text(helper)
        (tmp_path / "further.py").write_text(f"{HEAD}@kernel\ndef more(x):\n    return {factor} * x\n")
        told.append(module(tmp_path, text))
    check(told[:3], "21.0", "31.0")
    assert told[3][0] == "24.0"


LANGUAGE = {
    "closure": """
def make(a):
    @entry
    def whole(x):
        return a * x
    return whole
whole = make(HOLE)
""",
    "default": """
@entry
def whole(x, a=HOLE):
    return a * x
""",
    "lambda": "whole = entry(lambda x: HOLE * x)",
    "array": """
A = np.array([1.0, HOLE])
@entry
def whole(x):
    return A[1] * x
""",
    "tuple": """
class T(NamedTuple):
    a: float
A = (1, T(HOLE))
@entry
def whole(x):
    return A[1].a * x
""",
    "enum": """
class E(enum.IntEnum):
    A = int(HOLE)
@entry
def whole(x):
    return E.A.value * x
""",
    "function": """
@kernel
def two(x):
    return 2.0 * x
@kernel
def three(x):
    return 3.0 * x
def make(f):
    @entry
    def whole(x):
        return f(x)
    return whole
whole = make(two if HOLE == 2.0 else three)
""",
    "passed in": """
@kernel
def two(x):
    return 2.0 * x
@kernel
def three(x):
    return 3.0 * x
@entry
def call(f, x):
    return f(x)
def whole(x):
    return call(two if HOLE == 2.0 else three, x)
""",
    "inner": """
@entry
def whole(x):
    def inner(y):
        return HOLE * y
    return inner(x)
""",
    "recursion": """
@numba.njit
def part(x, n):
    if n > 0:
        return part(x + HOLE, n - 1)
    return x
@entry
def whole(x):
    return part(0.0, int(x))
""",
    "mutual recursion": """
@numba.njit
def even(x, n):
    if n > 0:
        return odd(x, n - 1)
    return x
@numba.njit
def odd(x, n):
    if n > 0:
        return even(x + 2.0 * HOLE, n - 1)
    return x
@entry
def whole(x):
    return even(0.0, int(x))
""",
    "conditional name": """
A, B = 2.0, 3.0
@entry
def whole(x):
    return (A if HOLE == 2.0 else B) * x
""",
    "module in a module": """
world = types.ModuleType("world")
world.inner = types.ModuleType("inner")
world.inner.A = HOLE
@entry
def whole(x):
    return world.inner.A * x
""",
    "module in a local name": """
world = types.ModuleType("world")
world.A = HOLE
@entry
def whole(x):
    w = world
    return w.A * x
""",
    "module in a closure": """
world = types.ModuleType("world")
world.A = HOLE
def make(w):
    @entry
    def whole(x):
        return w.A * x
    return whole
whole = make(world)
""",
    "universal function": """
@numba.vectorize
def times(x):
    return HOLE * x
@entry
def whole(x):
    return times(x)
""",
    "record": """
pair = np.zeros(1, [("a", "f8"), ("b", "f8")] if HOLE == 2.0 else [("b", "f8"), ("a", "f8")])
pair["a"], pair["b"] = 2.0, 3.0
whole_of = entry(lambda x, pair: pair[0].a * x)
def whole(x):
    return whole_of(x, pair) if HOLE == 2.0 else 10.0 + whole_of(x, pair)
""",
}
IN_EVERY_PROCESS = ("passed in", "universal function", "mutual recursion")
"""These are right, but their machine code is not kept."""


@pytest.mark.parametrize("kind", first_quick(LANGUAGE, 1))
def test_whatever_a_function_can_refer_to(tmp_path, kind):
    text = f"import enum, types\nfrom typing import NamedTuple\nimport numba\nimport numpy as np\n{HEAD}"
    text += f"entry = kernel(announce='whole')\n{LANGUAGE[kind]}\nprint(float(whole(10.0)))"
    told = [script(tmp_path, text.replace("HOLE", hole)) for hole in ("2.0", "3.0", "2.0")]
    if kind in IN_EVERY_PROCESS:
        assert [out for out, _ in told] == ["20.0", "30.0", "20.0"]
        assert all("in every process" in err for _, err in told)
    else:
        check(told, "20.0", "30.0")


@pytest.mark.slow
def test_the_fields_of_a_named_tuple_may_change_places(tmp_path):
    text = (
        HEAD
        + "from typing import NamedTuple\nimport numpy as np\nfrom llmgym.core.frames import frame_of, unpacking\n"
        "class State(NamedTuple):\n    {}: float\n    {}: float\n"
        "unpack = unpacking(State(1.0, 2.0))\n"
        + ENTRY
        + "def whole(frame):\n    state = unpack(frame)\n    return state.a + 10.0 * state.b\n"
        "print(whole(frame_of(State(1.0, 2.0))))"
    )
    check([script(tmp_path, text.format(*names)) for names in ("ab", "ba", "ab")], "21.0", "12.0")


OVERLOAD = "from numba.extending import overload\ndef twice(x): ...\n@overload(twice)\n"
EXTENSIONS = {
    "by itself": {"extension.py": OVERLOAD + "def _twice(x):\n    return lambda x: HOLE * x\n"},
    "a value of a further module": {
        "extension.py": OVERLOAD + "def _twice(x):\n    return lambda x: further.F * x\nimport further\n",
        "further.py": "F = HOLE\n",
    },
    "a package that is imported late": {
        "extension.py": OVERLOAD
        + "def _twice(x):\n    import deep.further\n    F = deep.F\n    return lambda x: F * x\n",
        "deep/__init__.py": "from even import deeper as F\n",
        "deep/further.py": "",
        "even.py": "deeper = HOLE\n",
    },
}


@pytest.mark.parametrize("kind", first_quick(EXTENSIONS, 1))
def test_an_extension_of_numba_in_another_module(tmp_path, kind):
    text = f"{HEAD}import extension\n{ENTRY}def whole(x):\n    return extension.twice(x)\nprint(whole(10.0))"
    told = []
    for factor in ("2.0", "3.0", "2.0"):
        for name, content in EXTENSIONS[kind].items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content.replace("HOLE", factor))
        told.append(script(tmp_path, text))
    check(told, "20.0", "30.0")


CANNOT_BE_DESCRIBED = {
    "pointer": (
        "import ctypes\ncos = ctypes.CDLL('libm.so.6').cos\ncos.restype = ctypes.c_double\ncos.argtypes = [ctypes.c_double]\n"
        "{entry}def whole(x):\n    return cos(0.0 * x)",
        "object at 0x",
    ),
    "extension": (
        "from numba.extending import overload\ndef one(x): ...\n@overload(one)\ndef _one(x):\n    return lambda x: 1.0\n"
        "{entry}def whole(x):\n    return one(x)",
        "an extension of numba that was written in __main__",
    ),
    "called": (
        "import numba\n@numba.njit\ndef one(x):\n    return ONE\nONE = 1.0\none(2.0)\n{entry}def whole(x):\n    return one(x)",
        "__main__.one, which was called before",
    ),
}


@pytest.mark.parametrize("kind", first_quick(CANNOT_BE_DESCRIBED, 1))
def test_what_cannot_be_described_is_compiled_in_every_process(tmp_path, kind):
    text, why = CANNOT_BE_DESCRIBED[kind]
    if sys.platform != "linux":
        pytest.skip("names a library of Linux")
    for _ in range(2):
        out, err = script(tmp_path, f"{HEAD}{text.format(entry=ENTRY)}\nprint(whole(10.0))")
        assert (
            out == "1.0"
            and "compiling whole for this machine (in every process, as it depends on" in err
            and why in err
        )
    assert not list((tmp_path / "cache").rglob("whole-*"))


@pytest.mark.slow
def test_a_file_that_is_not_in_sys_modules(tmp_path):
    """Stored machine code names the module of its functions; here another file has that name."""
    (tmp_path / "named.py").write_text("")
    for factor in ("2.0", "3.0", "2.0"):
        (tmp_path / "file.py").write_text(
            f"{HEAD}{ENTRY}def whole(x):\n    return {factor} * x\nprint(whole(10.0))"
        )
        out, err = process(
            tmp_path,
            "-c",
            "import importlib.util\nspec = importlib.util.spec_from_file_location('named', 'file.py')\n"
            "spec.loader.exec_module(importlib.util.module_from_spec(spec))",
        )
        assert out == f"{10 * float(factor)}" and "in every process" in err


@pytest.mark.parametrize(
    "again", first_quick(["importlib.reload(written)", "exec(open('written.py').read(), vars(written))"], 1)
)
def test_an_edit_within_one_process(tmp_path, again):
    """The code of after the edit is not stored as that of before, nor the other way round."""
    text = HEAD + ENTRY + "def whole(x):\n    return {} * x\n"
    old, new = text.format("2.0"), text.format("3.0")
    (tmp_path / "written.py").write_text(old)
    write = f"open('written.py', 'w').write({new!r})"
    told, _ = process(
        tmp_path,
        "-c",
        f"import importlib, written\n{write}\nprint(written.whole(10.0))\n{again}\nprint(written.whole(10.0))",
    )
    assert told.split() == ["20.0", "30.0"]
    ask = "import written; print(written.whole(10.0))"
    assert process(tmp_path, "-c", ask) == ("30.0", "")
    (tmp_path / "written.py").write_text(old)
    assert process(tmp_path, "-c", ask) == ("20.0", "")


def test_a_value_that_changes_between_two_signatures(tmp_path):
    """The part is compiled with the first value, the loop around it with the second; neither is stored as something else."""
    text = HEAD + (
        "import sys\nSCALE = 2.0\n@kernel\ndef part(x):\n    return SCALE * x\n"
        f"{ENTRY}def whole(x, y):\n    return part(x) + SCALE\n"
    )
    (tmp_path / "written.py").write_text(text)
    told, _ = process(
        tmp_path,
        "-c",
        "import written\nprint(written.whole(1.0, 1.0))\nwritten.SCALE = 3.0\nprint(written.whole(1.0, 1))",
    )
    assert told.split() == ["4.0", "5.0"]
    asked = "import written\n{}print(written.whole(1.0, 1.0), written.whole(1.0, 1))"
    assert process(tmp_path, "-c", asked.format(""))[0] == "4.0 4.0"
    assert process(tmp_path, "-c", asked.format("written.SCALE = 3.0\n"))[0] == "6.0 6.0"


@pytest.mark.slow
def test_functions_of_one_name_that_different_processes_stored(tmp_path):
    """They are linked into one loop, where each must remain itself."""
    text = HEAD + "def make(a):\n    @kernel\n    def part(x):\n        return a * x\n    return part\n"
    text += "def sum_of(f, g):\n    @kernel(announce='whole')\n    def whole(x):\n        return f(x) + g(x)\n    return whole\n"
    (tmp_path / "written.py").write_text(text)
    ask = "from written import make, sum_of\nf, g = make({}), make({})\nprint({}(10.0))"
    assert process(tmp_path, "-c", ask.format("2.0", "2.0", "sum_of(f, f)"))[0] == "40.0"
    assert process(tmp_path, "-c", ask.format("3.0", "3.0", "sum_of(f, f)"))[0] == "60.0"
    for _ in range(2):
        assert process(tmp_path, "-c", ask.format("2.0", "3.0", "sum_of(f, g)"))[0] == "50.0"
        assert process(tmp_path, "-c", ask.format("2.0", "7.0", "sum_of(g, f)"))[0] == "90.0"


def test_settings_of_the_compiler(tmp_path):
    text = f"{HEAD}import numpy as np\n{ENTRY}def whole(x):\n    return x[3]\n"
    text += "try:\n    print(whole(np.zeros(8)[:3]) is None)\nexcept IndexError:\n    print('outside')"
    (tmp_path / "script.py").write_text(text)
    assert process(tmp_path, "script.py")[0] == "False"
    assert process(tmp_path, "script.py", NUMBA_BOUNDSCHECK="1")[0] == "outside"


TWO_QUEUES = """
import sys
from typing import NamedTuple
import gymnasium, numpy as np
from gymnasium.spaces import Discrete
from llmgym.core.env import LaneEnv
from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels, Simulation
from llmgym.core.layout import Field, Layout

class State(NamedTuple):
    level: np.ndarray

class Params(NamedTuple):
    size: int

@kernel
def reset_lane(state, params, lane, key):
    state.level[lane] = 0.0

@kernel
def step_lane(state, params, lane, action):
    state.level[lane] += action[0]
    return {reward}, False, state.level[lane] >= params.size, 1.0

@kernel
def observe_lane(state, params, lane, out):
    out[0] = state.level[lane]

@kernel
def mask_lane(state, params, lane, out):
    out[:] = 1

@kernel
def metrics_lane(state, params, lane, out):
    out[0] = state.level[lane]

class Count(Simulation):
    kernels = Kernels(reset_lane, step_lane, observe_lane, mask_lane, metrics_lane)

    def __init__(self):
        self.params, self.action_space, self.metric_names = Params(3), Discrete(2), ("level",)
        self.layout = Layout([Field("level", 1, 0.0, 3.0, "3", "units")])

    def allocate(self, lanes):
        return State(np.zeros(lanes))

    def audit(self, state, lane):
        return {{}}

    def expected_return(self, metrics):
        return 0.0

    def render(self, state, lane, mode):
        return ""

class CountEnv(LaneEnv):
    simulation_class = Count

env = CountEnv()
env.reset(seed=0)
print(env.step(1)[1], env.metrics()["level"], env.step(1)[1])
"""


@pytest.mark.parametrize("way", first_quick(WAYS, 1), ids=[way.__name__ for way in WAYS])
def test_an_environment_written_outside_of_the_package(tmp_path, way):
    told = [way(tmp_path, TWO_QUEUES.format(reward=reward)) for reward in ("-1.0", "2.0", "-1.0")]
    assert [out for out, _ in told] == ["-1.0 1.0 -1.0", "2.0 1.0 2.0", "-1.0 1.0 -1.0"]
    assert "compiling Count" in told[0][1] and "compiling Count" in told[1][1] and told[2][1] == ""


@pytest.mark.parametrize("env_id", llmgym.env_ids())
def test_every_environment_of_the_package_can_be_kept(env_id):
    spec = gymnasium.spec(env_id)
    simulation = gymnasium.envs.registration.load_env_creator(spec.entry_point).simulation_class
    for kernel in simulation.kernels:
        assert len(fingerprint.describe(kernel)) == 32
