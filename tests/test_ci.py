"""The action, the pre-commit hooks and docs/ci.md: everything that they say is run, as a CI system would run it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from processes import PACKAGE_FOLDER

import binarize_onnx
from binarize_onnx.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "ci.md").read_text()
DATA = Path(binarize_onnx.__file__).parent / "data"


def blocks(language: str, section: str = "") -> list[str]:
    """The code blocks of the page, or of one of its sections."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0] if section else PAGE
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def parsed(text: str) -> Any:
    return pytest.importorskip("yaml").safe_load(text)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A repository with the demo's model and data, and `bin` with the command and with a `python` that makes venvs."""
    shutil.copy(DATA / "demo.onnx", tmp_path / "net.onnx")
    with np.load(DATA / "demo_images.npz") as stored:
        images, labels = stored["images"][:8, None].astype(np.float32) / np.float32(255), stored["labels"][:8]
    np.savez(tmp_path / "test.npz", image=images, labels=labels)
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin" / "binarize-onnx", f'exec {shlex.quote(sys.executable)} -m binarize_onnx "$@"')
    return tmp_path


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def shell(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ
        | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(PACKAGE_FOLDER)}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )


# --- The page -----------------------------------------------------------------------------------------------------


def test_the_commands_of_the_page(workplace: Path) -> None:
    for block in blocks("sh"):
        done = shell(workplace, "bash", "-euo", "pipefail", "-c", block)
        assert done.returncode == 0, done.stderr
    reports = {p.name for p in (workplace / "reports").iterdir()}
    assert reports == {"convert.json", "convert.xml", "verify.json", "verify.xml"}
    convert, verify = (
        json.loads((workplace / "reports" / f"{name}.json").read_text()) for name in ("convert", "verify")
    )
    assert [gate["name"] for gate in convert["gates"]] == ["min-binary-macs", "max-size"]
    assert [gate["name"] for gate in verify["gates"]] == ["exact", "rounding", "min-agreement", "max-metric-drop"]
    assert (workplace / "summary.md").read_text().startswith("### inspect net.onnx\n")


def test_the_page_names_every_key_of_every_report(workplace: Path) -> None:
    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    net, out, report = (workplace / name for name in ("net.onnx", "net.bin.onnx", "report.json"))
    for command in (
        ("inspect", net),
        ("convert", net, out, "--max-size", "1MB"),
        ("verify", net, out, "--data", workplace / "test.npz", "--max-diff", "1"),
    ):
        done = CliRunner().invoke(main, [*map(str, command), "--report", str(report)])
        assert done.exit_code == 0, done.output
        found = json.loads(report.read_text())
        assert found["schema"] == 1
        assert keys(found) <= set(re.findall(r"`(\w+)`", PAGE))


def test_the_page_lists_every_gate() -> None:
    listed = re.findall(r"^\| `(\w+)` \| `(--[\w-]+)` \|", PAGE, re.MULTILINE)
    gates = [
        (name, option.opts[0])
        for name, command in main.commands.items()
        for option in command.params
        if str(getattr(option, "help", "")).startswith("Gate: ")
    ]
    assert sorted(listed) == sorted(gates)


def test_the_gitlab_job(workplace: Path) -> None:
    (job,) = parsed(blocks("yaml", "GitLab")[0]).values()
    assert [line.split()[0] for line in job["before_script"]] == ["pip"]  # the one line that needs a network
    for line in job["script"]:
        done = shell(workplace, "bash", "-c", line)
        assert done.returncode == 0, done.stderr
    assert len(list(workplace.glob(job["artifacts"]["reports"]["junit"]))) == 2
    assert all((workplace / path).exists() for path in job["artifacts"]["paths"])


# --- The action ---------------------------------------------------------------------------------------------------


@pytest.fixture
def action() -> Any:
    return parsed((ROOT / "action.yml").read_text())


def documented_inputs() -> dict[str, str]:
    """What the workflow on the page gives the action."""
    steps = parsed(blocks("yaml", "GitHub")[0])["jobs"]["convert"]["steps"]
    (step,) = (step for step in steps if "/binarize-onnx@" in step["uses"])
    return {name: str(value) for name, value in step["with"].items()}


def run_action(action: Any, folder: Path, given: Mapping[str, str]) -> list[subprocess.CompletedProcess[str]]:
    """The action's run steps up to the first that fails, with the environment that GitHub makes of these inputs."""
    assert set(given) <= set(action["inputs"])
    values = {f"inputs.{name}": given.get(name, entry.get("default", "")) for name, entry in action["inputs"].items()}
    values["github.action_path"] = "/the action"
    done = []
    for step in (step for step in action["runs"]["steps"] if "run" in step):
        environment = {
            name: re.sub(r"\$\{\{ (.*?) \}\}", lambda found: values[found[1]], text)
            for name, text in step["env"].items()
        }
        script = folder / "step.sh"
        script.write_text(step["run"])
        assert step["shell"] == "bash"
        done.append(
            shell(
                folder,
                *("bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)),
                RUNNER_TEMP=str(folder / "temp"),
                GITHUB_STEP_SUMMARY=str(folder / "summary.md"),
                **environment,
            )
        )
        if done[-1].returncode:
            break
    return done


@pytest.fixture
def runner(workplace: Path) -> Path:
    """The workplace with a `python` in front of the real one: its environments have our command and no real pip."""
    fake = workplace / "temp" / "fake"
    fake.mkdir(parents=True)
    shutil.copy(workplace / "bin" / "binarize-onnx", fake / "binarize-onnx")
    executable(fake / "pip", f'printf "%s\\n" "$@" > {workplace / "temp" / "pip.txt"}')
    executable(workplace / "bin" / "python", f'[ "$1 $2" = "-m venv" ] && mkdir -p "$3" && cp -r {fake} "$3/bin"')
    return workplace


def test_the_action_on_the_inputs_of_the_page(action: Any, runner: Path) -> None:
    (runner / "summary.md").write_text("what other steps wrote\n")
    done = run_action(action, runner, documented_inputs())
    assert [step.returncode for step in done] == [0, 0, 0], done[-1].stderr
    assert (runner / "temp" / "pip.txt").read_text().split("\n")[-2:] == ["/the action", ""]
    summary = (runner / "summary.md").read_text()
    titles = re.findall(r"^(?:###|what) .*", summary, re.MULTILINE)
    assert titles == ["what other steps wrote", "### convert net.onnx", "### verify net.bin.onnx"]
    assert "FAILED" not in summary
    names = ("convert.json", "convert.xml", "verify.json", "verify.xml")
    assert sorted(p.name for p in (runner / "binarize-onnx-reports").iterdir()) == sorted(names)
    gates = json.loads((runner / "binarize-onnx-reports" / "verify.json").read_text())["gates"]
    assert {gate["name"]: gate["limit"] for gate in gates if gate["limit"]} == {
        "min-agreement": 0.99,
        "max-metric-drop": 0.5,
    }


def test_the_action_stops_at_a_failed_gate_with_its_reports(action: Any, runner: Path) -> None:
    done = run_action(action, runner, documented_inputs() | {"max-size": "1kB"})
    assert [step.returncode for step in done] == [0, 1]
    assert "error: max-size: " in done[-1].stderr
    assert not (runner / "net.bin.onnx").exists()
    assert "| max-size | FAILED |" in (runner / "summary.md").read_text()
    assert (runner / "binarize-onnx-reports" / "convert.xml").exists()
    (upload,) = (step for step in action["runs"]["steps"] if "uses" in step)
    assert upload["if"].startswith("always() && ")  # so that the reports of a failure can be read


def test_no_input_is_run_as_a_command(action: Any, runner: Path) -> None:
    calls = runner / "calls"
    executable(runner / "temp" / "fake" / "binarize-onnx", f'printf "%s\\0" "$@" >> {calls}')
    hostile = "$(touch hacked)`touch hacked`; touch hacked\" ' --json"
    for name in sorted(set(action["inputs"]) - {"artifact"}):
        calls.write_text("")
        done = run_action(action, runner, {"model": "net.onnx", "output": "net.bin.onnx"} | {name: hostile})
        assert [step.returncode for step in done] == [0, 0, 0], name
        assert not (runner / "hacked").exists(), name
        arguments = calls.read_text().split("\0")
        expected = [hostile, f"--{name}={hostile}", f"--report={hostile}/convert.json"]
        assert any(argument in expected for argument in arguments), name
        assert "--json" not in arguments
    for step in action["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
    assert {name for name, entry in action["inputs"].items() if entry.get("required")} == {"model", "output"}


def test_every_option_of_the_action_is_an_option_of_ours(action: Any) -> None:
    options = {
        option.opts[0].removeprefix("--") for name in ("convert", "verify") for option in main.commands[name].params
    }
    assert set(action["inputs"]) - {"model", "output", "reports", "artifact"} <= options


# --- pre-commit ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hooks() -> dict[str, Any]:
    return {hook["id"]: hook for hook in parsed((ROOT / ".pre-commit-hooks.yaml").read_text())}


def run_hook(
    hook: Mapping[str, Any], folder: Path, *files: str, args: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """As pre-commit runs it: the entry split as a shell would, then `args`, then the files unless it wants none."""
    chosen = [name for name in files if re.search(hook["files"], name)]
    return shell(folder, *shlex.split(hook["entry"]), *args, *(chosen if hook.get("pass_filenames", True) else []))


def test_the_hooks_of_the_page(hooks: dict[str, Any], workplace: Path) -> None:
    (repository,) = parsed(blocks("yaml", "pre-commit")[0])["repos"]
    assert [hook["id"] for hook in repository["hooks"]] == list(hooks)
    for hook in repository["hooks"]:
        done = run_hook(hooks[hook["id"]], workplace, "net.onnx", "test.npz", args=tuple(hook.get("args", ())))
        assert done.returncode == 0, done.stderr
    converted = (workplace / "net.bin.onnx").read_bytes()
    again = run_hook(hooks["binarize-onnx-convert"], workplace, "net.onnx", args=("net.onnx", "net.bin.onnx"))
    assert again.returncode == 0
    assert (workplace / "net.bin.onnx").read_bytes() == converted  # pre-commit finds nothing changed


def test_the_inspect_hook_looks_at_every_file(hooks: dict[str, Any], workplace: Path) -> None:
    (workplace / "a $(touch hacked).onnx").write_text("version https://git-lfs.github.com/spec/v1")
    (workplace / "-b.onnx").write_text("cut short")
    names = ("a $(touch hacked).onnx", "net.onnx", "-b.onnx")
    done = run_hook(hooks["binarize-onnx-inspect"], workplace, *names)
    assert done.returncode == 3
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [names[0], names[2]]
    assert "/stem/stem.0/Conv" in done.stdout
    assert not (workplace / "hacked").exists()
