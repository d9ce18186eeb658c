"""What runs ask a machine for: defaults, rules, the command line, and what is refused."""

from __future__ import annotations

import pytest

from fewstep.errors import UserError
from fewstep.sweeps.definition.resources import Resources

SWEEP = """
base: {data: digits, evaluation.steps: []}
axes:
  objective:
    - flow_matching
    - {objective: shortcut, label: half, objective.bootstrap_share: 0.5}
  backbone: [dit_digits, dit_s_2]
  size: [{label: small, training.batch_size: 8}, {label: large, training.batch_size: 64}]
resources:
  cpus: 4
  memory_gb: 16
  rules:
    - when: {backbone: dit_s_2}
      gpus: 1
      hours: 12
    - when: {backbone: dit_s_2, size: large}
      gpus: 4
      nodes: 2
    - {when: {objective.bootstrap_share: 0.5}, memory_gb: 32}
    - {when: {training.clip: [1.0, null], objective: half, size: small}, cpus: 0.5}
slurm: {partition: high, setup: [module load cuda]}
"""


def test_rules_add_to_the_defaults_and_later_ones_win(write):
    asked = {tuple(m.choices.values()): m.resources for m in write(SWEEP).members()}
    assert asked == {
        ("flow_matching", "dit_digits", "small"): Resources(cpus=4, memory_gb=16),
        ("flow_matching", "dit_digits", "large"): Resources(cpus=4, memory_gb=16),
        ("flow_matching", "dit_s_2", "small"): Resources(1, 1, 4, 16, 12),
        ("flow_matching", "dit_s_2", "large"): Resources(2, 4, 4, 16, 12),
        ("half", "dit_digits", "small"): Resources(cpus=0.5, memory_gb=32),
        ("half", "dit_digits", "large"): Resources(cpus=4, memory_gb=32),
        ("half", "dit_s_2", "small"): Resources(1, 1, 0.5, 32, 12),
        ("half", "dit_s_2", "large"): Resources(2, 4, 4, 32, 12),
    }


def test_the_command_line_wins_over_all_rules_and_changes_no_key(write):
    sweep = write(SWEEP)
    changed = sweep.with_overrides(["resources.gpus=2", "resources.hours=0.5"])
    assert {(m.resources.gpus, m.resources.hours) for m in changed.members()} == {(2, 0.5)}
    assert [m.resources.cpus for m in changed.members()] == [
        m.resources.cpus for m in sweep.members()
    ]
    assert [m.config.values for m in changed.members()] == [
        m.config.values for m in sweep.members()
    ]
    without = write(SWEEP[: SWEEP.index("resources:")])
    assert {m.resources for m in without.members()} == {Resources()}
    assert [m.config.key for m in without.members()] == [m.config.key for m in sweep.members()]


def test_settings_of_launchers_pass_through(write):
    sweep = write(SWEEP)
    assert sweep.launchers == {"slurm": {"partition": "high", "setup": ["module load cuda"]}}
    changed = sweep.with_overrides(
        ["slurm.partition=low", "ray.address=auto", "slurm.options.nice=10", "slurm.options.qos=a"]
    )
    assert changed.launchers == {
        "slurm": {
            "partition": "low",
            "setup": ["module load cuda"],
            "options": {"nice": 10, "qos": "a"},
        },
        "ray": {"address": "auto"},
    }
    assert changed.overrides == ()
    assert sweep.launchers["slurm"]["partition"] == "high"


def test_resources_are_told_in_words():
    assert str(Resources()) == "1 CPU"
    assert str(Resources(2, 4, 8, 16.5, 24)) == "2 nodes, 4 GPUs, 8 CPUs, 16.5 GB, 24 h"
    assert str(Resources(gpus=0.25)) == "0.25 GPUs, 1 CPU"


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("resources: 4", "sweep {path}: resources must be a mapping of nodes, gpus, cpus, memory_"),
        ("resources: {cpu: 4}", "{path}: unknown resource 'cpu'; did you mean 'cpus'?"),
        ("resources: {gpus: -1}", "sweep {path}: resources.gpus must be at least 0"),
        ("resources: {gpus: 1.5}", "gpus must be a whole number, or a share below 1, got 1.5"),
        ("resources: {nodes: 0}", "resources.nodes must be at least 1, got 0"),
        ("resources: {nodes: 1.5}", "resources.nodes must be a whole number, got 1.5"),
        ("resources: {cpus: 0}", "resources.cpus must be greater than 0, got 0"),
        ("resources: {hours: 2h}", "resources.hours must be a number, got '2h'"),
        ("resources: {cpus: null}", "resources.cpus must be a number, got None"),
        ("resources: {memory_gb: true}", "resources.memory_gb must be a number, got True"),
        ("resources: {rules: {gpus: 1}}", "resources.rules must be a list of mappings with when:"),
        ("resources: {rules: [{gpus: 1}]}", "rule 1 must have when: and what it asks for, got"),
        ("resources: {rules: [{when: {a: 1}}]}", "rule 1 must have when: and what it asks for"),
        (
            "resources: {rules: [{when: {objective: scm}, gpus: 1}, {when: {a: 1}, gpu: 1}]}",
            "sweep {path}: unknown name 'a' in resources, rule 2, when",
        ),
        (
            "resources: {rules: [{when: {training.lrr: 1}, gpus: 1}]}",
            "unknown name 'training.lrr' in resources, rule 1, when; did you mean 'training.lr'?",
        ),
        (
            "resources: {rules: [{when: {backbone: dit_b}, gpus: 1}]}",
            "unknown value 'dit_b' of backbone in resources, rule 1, when; did you",
        ),
        (
            "resources: {rules: [{when: {objective: scm}, gpu: 1}]}",
            "sweep {path}: resources, rule 1: unknown resource 'gpu'; did you mean 'gpus'?",
        ),
        ("resources: {rules: [{when: {objective: scm}, gpus: x}]}", "rule 1: resources.gpus must"),
    ],
)
def test_bad_resources(write, tmp_path, field, told):
    with pytest.raises(UserError) as error:
        write(f"axes: {{objective: [scm]}}\n{field}")
    assert told.format(path=tmp_path / "mine.yaml") in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_resources_on_the_command_line(write):
    sweep = write("axes: {objective: [scm]}")
    with pytest.raises(UserError, match=r"unknown resource 'gpu'; did you mean 'gpus'"):
        sweep.with_overrides(["resources.gpu=1"])
    with pytest.raises(UserError, match=r"resources\.gpus must be a number, got 'many'"):
        sweep.with_overrides(["resources.gpus=many"])


def test_a_device_is_one_that_is_known(write):
    sweep = write("axes: {objective: [scm]}\nresources: {device: l40s, gpus: 2}")
    assert str(sweep.members()[0].resources) == "2 L40S GPUs, 1 CPU"
    told = r"unknown resources.device 'h10'; did you mean 'h100'\? \(choices: a100, cpu, h100, "
    with pytest.raises(UserError, match=told):
        sweep.with_overrides(["resources.device=h10"])
    with pytest.raises(UserError, match=r"resources\.device is cpu, but resources\.gpus=2"):
        sweep.with_overrides(["resources.device=cpu"]).members()
