"""The rules of the house that a machine can check: who imports whom, and what no product code may do.

Each scan is also run on a line that breaks its rule, so that one which sees nothing does not pass.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("client", "common", "server", "simulations")
SIMULATED = ("common/evaluation/attacks/", "simulations/baselines/")
"""What attacks real rows, or does without privacy: nothing that a site or a coordinator runs imports any of it."""
FILES = {path.relative_to(ROOT).as_posix(): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
OPERATED = {name: path for name, path in FILES.items() if not name.startswith(SIMULATED)}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds the packages of this tree first."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


# --- who imports whom


def test_every_import_points_the_way_that_the_contracts_allow() -> None:
    done = run_python("import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_belongs_to_privshare_alone(package: str) -> None:
    # The names are generic: another distribution that installs one of them would shadow it.
    assert set(packages_distributions()[package]) == {"privshare"}


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            "common.privacy.ledger, common.privacy.mechanism, common.privacy.vectors, common.data.units",
            "flwr, ray, torch, opacus, server, client",
        ),
        (
            "common.data.windows, common.data.queries, common.data.changes, common.data.trajectories",
            "flwr, ray, torch, opacus, server, client, common.privacy",
        ),
        ("common.study, common.certificate, common.wire.messages", "flwr, ray, torch, opacus, server, client"),
        ("client.site", "flwr, ray, server"),
        ("client.cli", "flwr, ray, torch, opacus, server"),
        (
            "client.trainer, common.models.training, common.models.critics, common.models.sequences",
            "flwr, ray, server, client.vault, client.records, client.site",
        ),
        ("server.cli, server.rounds, server.publish, server.drafts, server.noise_controller", "flwr, ray, client"),
    ],
)
def test_what_must_run_without_something_does_not_import_it(modules: str, absent: str) -> None:
    done = run_python(f"import sys, {modules}; print(*({set(absent.split(', '))!r} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# --- what product code never does

BANNED_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
}
BANNED_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.Loader",
    "yaml.UnsafeLoader",
    "yaml.FullLoader",
    "pandas.read_pickle",
    "pd.read_pickle",
    "os.system",
    "os.popen",
}
# Between processes of one program, like multiprocessing; joblib's files are pickles.
OWN_PROCESSES = {"joblib.Parallel", "joblib.delayed", "joblib.parallel_config"}
# numpy's generators are made and passed on; its global one is anybody's.
NUMPY_RANDOM = {"default_rng", "Generator", "SeedSequence", "BitGenerator", "PCG64", "Philox"}


def dotted(node: ast.AST) -> str:
    """`a.b.c` as it stands in the source; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module and every name that is imported, with its module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            if not names <= OWN_PROCESSES:
                yield node.module
                yield from sorted(names)


def faults_of(source: str) -> list[str]:
    """What a source does that no product code may."""
    tree = ast.parse(source)
    found = [
        name for name in imported(tree) if name.split(".")[0] in BANNED_MODULES | {"random"} or name in BANNED_CALLS
    ]
    found += [
        name for name in imported(tree) if name.startswith("numpy.random.") and name.split(".")[2] not in NUMPY_RANDOM
    ]
    for node in ast.walk(tree):
        name = dotted(node)
        head, _, rest = name.partition(".random.")
        if head in ("np", "numpy") and rest and rest.split(".")[0] not in NUMPY_RANDOM:
            found.append(name)
        if isinstance(node, ast.Attribute) and name in BANNED_CALLS:
            found.append(name)
        if isinstance(node, ast.Name) and node.id in BANNED_CALLS:
            found.append(node.id)
        if isinstance(node, ast.keyword):
            allowed = {"allow_pickle": False, "weights_only": True, "shell": False}
            literal = node.value.value if isinstance(node.value, ast.Constant) else None
            if node.arg in allowed and literal is not allowed[node.arg]:
                found.append(str(node.arg))
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import joblib",
        "from joblib import load",
        "from joblib import Parallel, load",
        "import random",
        "from random import gauss",
        "eval('1')",
        "exec(text)",
        "f = eval",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "torch.load(path)",
        "from torch import load",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.unsafe_load(text)",
        "class _Loader(yaml.Loader): ...",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "pd.read_pickle(path)",
        "np.random.seed(1)",
        "np.random.normal(size=3)",
        "numpy.random.rand()",
        "x = np.random.randint",
        "from numpy.random import normal",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
    ],
)
def test_the_scan_sees_what_is_banned(line: str) -> None:
    assert faults_of(f"def work(path, text, name, flag):\n    {line}\n")


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "re.compile(text)",
        "np.random.default_rng(3).normal()",
        "np.random.Generator(np.random.PCG64(1))",
        "yaml.safe_load(text)",
        "from joblib import Parallel, delayed",
        "np.load(path, allow_pickle=False)",
        "from numpy.random import Generator",
        "torch.random.fork_rng()",
        "json.load(file)",
    ],
)
def test_the_scan_lets_the_rest_pass(line: str) -> None:
    assert faults_of(f"def work(path, text, model, file):\n    {line}\n") == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_unpickles_nothing_runs_no_text_and_uses_no_global_random_state(name: str) -> None:
    assert faults_of(FILES[name].read_text(encoding="utf-8")) == []


# --- privacy noise

# Anything that draws from a distribution which noise is made of, or bytes that it could be made of.
DISTRIBUTIONS = {"normal", "standard_normal", "multivariate_normal", "normal_", "normalvariate", "gauss", "lognormal"}
DISTRIBUTIONS |= {"laplace", "exponential", "exponential_", "geometric", "standard_gamma", "discrete_gaussian"}
ENTROPY = {"secrets", "random.SystemRandom", "os.urandom", "os.getrandom", "uuid"}
NOISE = "common.privacy.noise"


def noises_of(source: str) -> set[str]:
    """Which of these a source uses: a distribution, first weights from one, entropy, a noise source of its own making,
    a draw of noise.
    """  # noqa: D205
    tree = ast.parse(source)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else dotted(node.func)
            if called in DISTRIBUTIONS:
                found.add("initialisation" if ".init." in f".{dotted(node.func)}" else "distribution")
            if called == "draw" and any(keyword.arg == "noise_stddev" for keyword in node.keywords):
                found.add("draw")
            found |= {"GaussianNoise", "SeededNoise"} & {called, *dotted(node.func).split(".")}
        if dotted(node) in ENTROPY:
            found.add("entropy")
    if any(name.split(".")[0] in {"secrets", "uuid"} or name in ENTROPY for name in imported(tree)):
        found.add("entropy")
    if any(name in (NOISE, f"{NOISE}._rounded_gaussians") for name in imported(tree)):
        found.add("noise module")
    return found


@pytest.mark.parametrize(
    ("line", "use"),
    [
        ("generator.normal(0, 1, 9)", "distribution"),
        ("weights.normal_()", "distribution"),
        ("init().normal_()", "distribution"),
        ("torch.nn.init.normal_(weights)", "initialisation"),
        ("init.normal_(weights)", "initialisation"),
        ("noise.draw(9, noise_stddev=1.0, context='x')", "draw"),
        ("source = SeededNoise(b'x')", "SeededNoise"),
        ("source = SeededNoise.of_site('north', 1)", "SeededNoise"),
        ("import secrets", "entropy"),
        ("key = os.urandom(32)", "entropy"),
        ("from common.privacy.noise import NoiseSource", "noise module"),
    ],
)
def test_the_scan_for_noise_sees_it(line: str, use: str) -> None:
    assert use in noises_of(f"{line}\n")


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        # Simulated people are drawn from distributions; what is drawn about real ones is noise, in one file. A
        # benchmark times the plain Gaussian beside it, one has sites that lie, and gaps are drawn as chance would have
        # them.
        (
            "distribution",
            {
                "simulations/bench/bad_peers.py",
                "simulations/bench/interactions.py",
                "simulations/bench/release.py",
                "simulations/scenarios/bank.py",
                "simulations/scenarios/icu.py",
                "common/evaluation/subgroups.py",
                "simulations/bench/scale.py",
            },
        ),
        # First weights, drawn before any row was seen.
        ("initialisation", {"common/models/neural.py"}),
        # The two mechanisms: of counts and of vectors.
        ("draw", {"common/privacy/mechanism.py"}),
        ("GaussianNoise", {"client/site.py", "simulations/bench/release.py"}),
        ("SeededNoise", {"simulations/federation.py", "client/worker.py", "simulations/bench/bad_peers.py"}),
        # The key of the noise, a site's own secret, the nonces that peers and sites sign for, what lets a program in
        # at the coordinator, and the seed of rows that nobody named.
        (
            "entropy",
            {
                "common/synthesis/synthesizer.py",
                "common/privacy/noise.py",
                "common/wire/envelopes.py",
                "client/keys.py",
                "client/witnesses.py",
                "server/dashboard.py",  # a token of the page
                "server/provision.py",
            },
        ),
        (
            "noise module",
            {
                "common/certificate.py",  # how exact a draw is
                "common/verification.py",
                "common/privacy/mechanism.py",
                "common/privacy/vectors.py",
                "client/site.py",
                "client/vault.py",
                "client/worker.py",
                "simulations/bench/bad_peers.py",
                "simulations/bench/release.py",
                "simulations/federation.py",
            },
        ),
    ],
)
def test_privacy_noise_comes_from_one_file_and_is_drawn_in_one(use: str, expected: set[str]) -> None:
    found = {name for name, path in OPERATED.items() if use in noises_of(path.read_text(encoding="utf-8"))}
    assert found == expected


# --- who may touch what


def files_that(uses: Callable[[str], bool]) -> set[str]:
    return {
        name for name, path in OPERATED.items() if any(map(uses, imported(ast.parse(path.read_text(encoding="utf-8")))))
    }


def test_flower_and_ray_are_imported_where_messages_travel_alone() -> None:
    found = files_that(lambda name: name.split(".")[0] in ("flwr", "ray"))
    assert found == {
        "client/app.py",
        "client/link.py",
        "common/wire/parcels.py",
        "server/app.py",
        "server/launch.py",
        "simulations/bench/plain_flower/plain_app.py",  # an application of Flower's own, to compare with
        "simulations/federation.py",
    }


def calls_of(source: str) -> set[str]:
    """The last name of whatever a source calls."""
    called = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {func.attr if isinstance(func, ast.Attribute) else dotted(func) for func in called}


def callers_of(name: str) -> set[str]:
    """The files that call a function or make an object of this name; a simulation has no real rows."""
    return {
        file
        for file, path in OPERATED.items()
        if not file.startswith("simulations/") and name in calls_of(path.read_text(encoding="utf-8"))
    }


def test_the_vault_and_the_records_are_opened_by_the_site_alone() -> None:
    owners = files_that(lambda name: name == "client.vault")
    assert {name for name in owners if not name.startswith("simulations/")} == {"client/site.py"}
    # The vault has windows made from the long table, and opens no file.
    readers = files_that(lambda name: name == "client.records")
    assert {name for name in readers if not name.startswith("simulations/")} == {
        "client/site.py",
        "client/vault.py",
        "client/inspection.py",
    }
    # Whose numbers are for the steward's own terminal: nothing that answers requests reaches it.
    assert files_that(lambda name: name == "client.inspection") == {"client/doctor/checkup.py"}
    doctors = files_that(lambda name: name.startswith("client.doctor"))
    assert {name for name in doctors if not name.startswith("client/doctor/")} == {"client/commands/checks.py"}
    from_records = {name for name in imported(ast.parse(FILES["client/vault.py"].read_text())) if ".records." in name}
    assert from_records == {"client.records.read_windows"}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Vault(table)", "Vault"),
        ("vault.Vault(table)", "Vault"),
        ("x = [bound_units(table) for _ in y]", "bound_units"),
    ],
)
def test_the_scan_for_calls_sees_them(line: str, name: str) -> None:
    assert name in calls_of(f"{line}\n")
    assert name not in calls_of(f"from somewhere import {name}\ndef work(): return {name}\n")


@pytest.mark.parametrize(
    ("name", "callers"),
    [
        # Text becomes values in one file; the cells of the long table on the way to windows.
        ("read_records", {"client/site.py"}),
        ("make_windows", {"client/records.py"}),
        ("parse_table", {"client/records.py", "common/data/windows.py", "client/inspection.py"}),
        # From here on a unit is a row of codes, and no other file looks at one.
        ("Vault", {"client/site.py"}),
        # The inspection is the steward's: see the test of who opens records.
        ("read_windows", {"client/vault.py", "client/inspection.py"}),
        ("bound_units", {"client/vault.py"}),
        ("encode_table", {"client/vault.py"}),
        ("encode_windows", {"client/vault.py"}),
        ("histogram_codes", {"client/vault.py"}),
        ("window_hits", {"client/vault.py"}),
        ("Counter", {"client/vault.py"}),
        # What leaves it goes through a mechanism, and nothing else asks the ledger to pay.
        ("CountMechanism", {"client/vault.py"}),
        # Fakes are added up like units, without noise.
        ("VectorMechanism", {"client/vault.py", "common/models/neural.py"}),
        ("authorise", {"common/privacy/mechanism.py"}),
    ],
)
def test_real_rows_are_read_in_one_file_held_in_one_and_leave_by_the_mechanisms(name: str, callers: set[str]) -> None:
    assert callers_of(name) == callers
