"""Configurations: what overrides make, what they are refused for, and what a key depends on."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import hydra
import pytest
import torch
from helpers.tiny import registered
from omegaconf import OmegaConf

from fewstep.backbones import BACKBONES, DiT
from fewstep.errors import UserError
from fewstep.experiments.config import run_config
from fewstep.experiments.config.run_config import GROUPS, Override, RunConfig, amend, compose
from fewstep.experiments.config.settings import Training
from fewstep.experiments.data import DATA
from fewstep.experiments.data.mnist import MNIST
from fewstep.objectives import OBJECTIVES, FlowMatching
from fewstep.objectives.core.samplers import sampling_field
from fewstep.registry import added

ENTRIES = [(group, name) for group, registry in GROUPS.items() for name in registry.names()]

# ---------------------------------------------------------------------------- what is composed


@pytest.mark.parametrize(("group", "name"), ENTRIES)
def test_every_registered_name_is_an_option_with_its_own_defaults(group: str, name: str) -> None:
    config = compose([f"{group}={name}"])
    assert config.values[group]["name"] == name
    made, entry = getattr(config, group), GROUPS[group][name]
    assert type(made) is type(entry)
    for f in fields(entry):
        if f.name != "root":  # the machine's business
            assert getattr(made, f.name) == getattr(entry, f.name)


def test_defaults() -> None:
    config = compose([])
    assert config.objective == OBJECTIVES["flow_matching"]
    assert config.data == DATA["digits"]
    assert config.backbone == BACKBONES["dit_digits"]
    assert config.training == Training()
    assert config.seed == 0


def test_data_suggests_a_backbone_and_the_user_decides() -> None:
    assert compose(["data=gaussians"]).values["backbone"]["name"] == "mlp"
    assert compose(["data=mnist"]).values["backbone"]["name"] == "dit_mnist"
    chosen = compose(["data=mnist", "backbone=dit_s_2"])
    assert chosen.backbone == DiT(384, 12, 6, 2)


def test_values_take_the_types_of_their_settings() -> None:
    config = compose(
        [
            "training.lr=1",
            "training.betas=[0,0.5]",
            "training.clip=null",
            "training.compile=true",
            ("training.steps", 7),
            "evaluation.times=[[1,0.5,0]]",
            "evaluation.guidance=[1,2]",
            "objective=shortcut",
            "objective.clip=4",
            "sweep=12",
        ]
    )
    assert isinstance(config.training.lr, float)
    assert config.training.lr == 1.0
    assert config.training.betas == [0.0, 0.5]
    assert config.training.clip is None
    assert config.training.compile is True
    assert config.training.steps == 7
    assert config.evaluation.times == [[1.0, 0.5, 0.0]]
    assert [type(g) for g in config.evaluation.guidance] == [float, float]
    assert config.objective.clip == 4.0  # type: ignore[attr-defined]
    assert config.values["sweep"] == "12"


def test_a_single_schedule_needs_no_outer_brackets() -> None:
    assert compose(["evaluation.times=[1,0.5,0]"]).evaluation.times == [[1.0, 0.5, 0.0]]
    assert compose(["evaluation.times=[]"]).evaluation.times == []


def test_the_last_override_of_a_kind_wins() -> None:
    config = compose(["seed=1", "objective=scm", "seed=2", "objective=shortcut"])
    assert config.seed == 2
    assert config.values["objective"]["name"] == "shortcut"


def test_compositions_do_not_share_what_they_hold() -> None:
    compose(["evaluation.steps=[3]"]).values["training"]["lr"] = 99
    again = compose([])
    assert again.training == Training()
    assert again.evaluation.steps == [1, 2, 4, 8, 32, 128]


@pytest.mark.parametrize("objective", OBJECTIVES.names())
@pytest.mark.parametrize("data", ["digits", "gaussians", "mnist"])
def test_the_quick_way_to_compose_gives_what_omegaconf_gives(objective: str, data: str) -> None:
    """An interpolation is resolved by OmegaConf among all settings; no interpolation, without it.

    The same values in another order, after others that fail: what is kept of them does no harm.
    """
    groups: list[Override] = [("objective", objective), ("data", data)]
    values: list[Override] = [
        ("training.lr", 1), ("training.betas", [0, 1 / 2]), ("evaluation.times", [1, 0.5, 0]),
        ("training.clip", None), ("training.compile", "yes"), ("training.steps", "12"),
        ("training.lr", 2.0), ("evaluation.steps", []), ("runs", "a b"), ("sweep", 7),
    ]  # fmt: skip
    quick = compose([*groups, *values]).values
    slow = compose([*groups, *values, ("training.warmup", "${seed}")]).values
    assert repr(quick) == repr(slow)
    for bad in (("training.lr", "high"), ("training.steps", True), ("training.betas", 3)):
        with contextlib.suppress(UserError):
            compose([*groups, bad])
    assert repr(compose([*groups, *reversed(values), *values]).values) == repr(slow)


def test_the_data_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_DATA", "/elsewhere")
    assert compose(["data=mnist"]).data == MNIST(root="/elsewhere")
    monkeypatch.setenv("FEWSTEP_DATA", "/there")
    assert compose(["data=mnist"]).data == MNIST(root="/there")
    assert compose(["data=mnist", "data.root=/given"]).data == MNIST(root="/given")
    for name in ("digits", "gaussians"):  # they need no files
        assert compose([f"data={name}"]).data == DATA[name]


# ------------------------------------------------------------------------------ what is refused

REFUSED: list[tuple[list[str], list[str]]] = [
    (["training.stesp=3"], ["unknown setting 'training.stesp'", "did you mean 'training.steps'"]),
    (["evaluation.stesp=[3]"], ["evaluation.batch_size"]),  # the choices
    (
        ["objective=scm", "objective.target_decay=0.9"],
        ["scm has none, it is a setting of consistency, consistency_distillation"],
    ),
    (
        [
            "training.posthoc_ema=[0.05,0.1]",
            "training.posthoc_every=1000",
            "training.steps=2000",
            "evaluation.weights=[{sigma_rel:0.25}]",
        ],
        ["sigma_rel 0.25 cannot be made of training.posthoc_ema", "2 steps of widths 0.05, 0.1"],
    ),
    (
        ["training.steps=9", "evaluation.at_steps=[3,9]"],
        ["evaluation.at_steps must be less than training.steps=9", "got 9"],
    ),
    (["evaluation.at_steps=[0]"], ["evaluation.at_steps", "0"]),
    (["trainin.steps=3"], ["did you mean 'training.steps'"]),
    (["objectve=scm"], ["unknown setting 'objectve'", "did you mean 'objective'"]),
    (["training=3"], ["unknown setting 'training'"]),
    (["objective.stages=3"], ["unknown setting 'objective.stages'", "objective.solver"]),
    (["objective=flow_machting"], ["unknown objective 'flow_machting'", "'flow_matching'"]),
    (["backbone=dit_digit"], ["unknown backbone 'dit_digit'", "did you mean 'dit_digits'"]),
    (["data=digit"], ["unknown data set 'digit'", "did you mean 'digits'"]),
    (["objective.solver=eular"], ["'eular'", "did you mean 'euler'", "heun"]),
    (["evaluation.extractor=incepton"], ["did you mean 'inception'", "auto", "cnn", "raw"]),
    (["evaluation.extractor={dimension:3}"], ["name: NAME", "{'dimension': 3}"]),
    (["evaluation.extractor=[raw,{name:pca,dim:3}]"], ["unknown setting 'dim' of pca"]),
    (["evaluation.extractor={name:pca,dimension:0}"], ["extractor.dimension", "at least 1", "0"]),
    (["evaluation.extractor=[]"], ["evaluation.extractor=[] names none"]),
    (["evaluation.metrics=kid"], ["takes a list", "'kid'"]),
    (["evaluation.metrics=[fd,kit]"], ["'kit'", "did you mean 'kid'", "coverage"]),
    (["evaluation.metrics=[{name:recall,k:0}]"], ["recall.k", "at least 1"]),
    (["evaluation.metrics=[]"], ["evaluation.metrics=[] names none"]),
    (["evaluation.samplers=[{steps:3}]"], ["'steps' of Flow matching's sampler", "solver"]),
    (["evaluation.samplers=[{solver:hein}]"], ["objective.solver 'hein'", "'heun'"]),
    (["objective.solver=amed"], ["objective.solver: amed", "evaluation.samplers=[{solver: amed}]"]),
    (
        ["objective=consistency", "evaluation.samplers=[{solver:amed}]"],
        ["solver amed follows the velocity of a flow, and Consistency", "learns none"],
    ),
    (["evaluation.samplers=[{solver:amed,nfe:3}]"], ["'nfe' of solver amed", "scale"]),
    (["evaluation.samplers=[{solver:amed,scale:wide}]"], ["samplers.scale", "a number", "'wide'"]),
    (["evaluation.samplers=[{solver:amed,trajectories:0}]"], ["trajectories", "at least 1", "0"]),
    (["evaluation.weights=[emma]"], ["'emma'", "did you mean 'ema'", "raw"]),
    (["training.precision=float16"], ["'float16'", "bfloat16"]),
    (["training.steps=abc"], ["training.steps", "'abc'", "Integer"]),
    (["training.steps=1.5"], ["training.steps", "1.5", "Integer"]),
    (["training.steps=null"], ["training.steps", "None"]),
    (["training.lr=fast"], ["training.lr", "'fast'", "Float"]),
    (["training.compile=maybe"], ["training.compile", "'maybe'", "bool"]),
    (["training.betas=0.9"], ["training.betas takes a list, written [a,b], got 0.9"]),
    (["training.betas=[0.9]"], ["training.betas must be two numbers", "[0.9]"]),
    (["evaluation.steps=4"], ["evaluation.steps takes a list, written [a,b], got 4"]),
    (["backbone.width=wide"], ["backbone.width", "'wide'"]),
    (["seed=one"], ["seed", "'one'"]),
    (["training.steps=-3"], ["training.steps must be at least 1, got -3"]),
    (["training.steps=0"], ["training.steps must be at least 1, got 0"]),
    (["training.lr=0"], ["training.lr must be greater than 0", "got 0"]),
    (["training.lr=nan"], ["training.lr", "nan"]),
    (["training.ema=1.5"], ["training.ema", "at most 1", "1.5"]),
    (["training.ema=[0.9,1]"], ["training.ema must be less than 1"]),
    (["training.clip=-1"], ["training.clip", "-1"]),
    (["evaluation.steps=[4,0]"], ["evaluation.steps", "at least 1", "got 0"]),
    (["evaluation.samples=1"], ["evaluation.samples", "at least 2", "got 1"]),
    (["objective=shortcut", "objective.finest=100"], ["objective.finest", "power of two", "100"]),
    (["backbone.width=30"], ["backbone.width", "30"]),
    (["training.lr=1,2"], ["'training.lr=1,2'", "several values"]),
    (["objective=scm,shortcut"], ["several values"]),
    (["training.lr=range(1,3)"], ["several values"]),
    (["objective=[scm,shortcut]"], ["objective takes the name of one objective"]),
    (["+training.new=1"], ["'+training.new=1'", "without '+', '~' or '@'"]),
    (["++training.lr=1"], ["without '+', '~' or '@'"]),
    (["~training.lr"], ["without '+', '~' or '@'"]),
    (["training.lr"], ["'training.lr'", "key=value"]),
    (["=3"], ["'=3'", "key=value"]),
    (["objective.name=scm"], ["objective.name", "objective=NAME"]),
    (["training.lr=${nowhere}"], ["nowhere"]),
    (["training.lr=???"], ["training.lr"]),
    (["sweep=../elsewhere"], ["'../elsewhere'"]),
    (["training.optimiser=moun"], ["unknown training.optimiser 'moun'", "did you mean 'muon'"]),
    (["training.optimiser={name:muon,momentun:1}"], ["'momentun' of muon", "'momentum'"]),
    (["training.optimiser={name:muon,momentum:1}"], ["training.optimiser.momentum", "got 1.0"]),
    (["training.optimiser={name:muon,momentum:x}"], ["muon.momentum must be a number, got 'x'"]),
    (["training.optimiser={momentum:1}"], ["training.optimiser takes a name or {name: NAME"]),
    (["training.optimiser=[adam]"], ["training.optimiser takes a name or {name: NAME"]),
]


@pytest.mark.parametrize(
    ("overrides", "told"), REFUSED, ids=[" ".join(o) + " " + t[0] for o, t in REFUSED]
)
def test_bad_input_is_told_in_one_line(overrides: list[str], told: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        compose(overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in told:
        assert part in message


# --------------------------------------------------------------------------------- the key


# settings that may only change along with another one, or have one value in a subclass
BOUND = {"adaptive_decay", "dt_bias", "mixing", "p", "tangent_step", "target", "target_decay"}
BOUND |= {"jump_share", "stages"}


def others(base: list[Any], key: str, value: Any) -> Iterator[RunConfig]:
    """Configurations that differ from ``base`` in the setting ``key`` alone, which is ``value``."""
    if key.endswith(".root"):
        candidates: list[Any] = ["/elsewhere"]
    elif key == "data.expected":
        candidates = ["3x8x8 train=4 test=2"]
    elif isinstance(value, bool):
        candidates = [not value]
    elif isinstance(value, str):  # what a refusal names as choices; a free word where none comes
        candidates = ["another word"]
        try:
            compose([*base, (key, candidates[0])])
        except UserError as error:
            candidates = str(error).split("choices: ")[1].rstrip(")").split(", ")
    elif isinstance(value, list | tuple) and any(isinstance(v, str) for v in value):
        candidates = [["another"]]
    elif isinstance(value, list | tuple):
        candidates = [[v / 2 for v in value], [v * 2 for v in value]]
    elif isinstance(value, int):
        candidates = [value * 2, value + 1, value - 1]
    else:
        candidates = [0.5, 1.0, 0.25, 2.0, 4.0, 0.003, 3, 2]
    for candidate in candidates:
        try:
            config = compose([*base, (key, candidate)])
        except UserError:
            continue
        if config.values != compose(base).values:
            yield config


# what a setting needs to be set
NEEDS = {
    "auxiliary_lr": ["objective=scm"],
    "companion_lr": ["objective=sid"],
    "decay_from": ["training.schedule=cosine"],
}


@pytest.mark.parametrize("f", fields(Training), ids=lambda f: f.name)
def test_training_settings_are_in_the_key_unless_they_keep_books(f: Any) -> None:
    base = NEEDS.get(f.name, [])
    default = compose(base)
    if f.name == "device":
        changed = compose(["training.device=cpu"])
    elif f.name == "class_rows":
        changed = compose(["training.class_rows=32"])
    elif f.name == "microbatch":
        changed = compose(["training.microbatch=32"])
    elif f.name.startswith("posthoc_"):  # neither is without the other
        kept = ["training.posthoc_ema=[0.1]", "training.posthoc_every=5"]
        other = {"posthoc_ema": "[0.2]", "posthoc_every": "6"}[f.name]
        default, changed = compose(kept), compose([*kept, f"training.{f.name}={other}"])
    else:
        changed = next(others(base, f"training.{f.name}", getattr(Training(), f.name)))
    assert changed.training != default.training
    assert (changed.key == default.key) == bool(f.metadata.get("bookkeeping"))


def test_bookkeeping_is_what_it_was_decided_to_be() -> None:
    books = {f.name for f in fields(Training) if f.metadata.get("bookkeeping")}
    assert books == {
        "device",
        "compile",
        "parallel",
        "activation_checkpointing",
        "microbatch",
        "log_every",
        "validate_every",
        "checkpoint_every",
    }


@pytest.mark.parametrize(("group", "name"), ENTRIES)
def test_group_settings_are_in_the_key_unless_they_cannot_change_a_training(
    group: str, name: str
) -> None:
    default = compose([f"{group}={name}"])
    for f in fields(GROUPS[group][name]):  # type: ignore[arg-type]
        value = default.values[group][f.name]
        changed = next(others([f"{group}={name}"], f"{group}.{f.name}", value), None)
        if changed is None:
            assert f.name in BOUND
            continue
        kept = any(f.metadata.get(kind) for kind in ("sampling", "bookkeeping"))
        assert (changed.key == default.key) == (f.name == "root" or kept), f.name


@pytest.mark.parametrize(
    "override",
    [
        "runs=/elsewhere",
        "sweep=another",
        "tracking.uri=http://localhost:5000",
        "tracking.enabled=false",
        "evaluation.steps=[3]",
        "evaluation.times=[[1,0]]",
        "evaluation.weights=[raw]",
        "evaluation.guidance=[2]",
        "evaluation.guidance_interval=[0.2,0.8]",
        "evaluation.sample_sets=2",
        "evaluation.samples=100",
        "evaluation.reference=test",
        "evaluation.extractor=raw",
        "evaluation.batch_size=10",
        "objective.solver=heun",
    ],
)
def test_the_key_does_not_depend_on(override: str) -> None:
    changed = compose([override])
    assert changed.values != compose([]).values
    assert changed.key == compose([]).key


@pytest.mark.parametrize("override", ["seed=1", "objective=scm", "data=gaussians", "backbone=mlp"])
def test_the_key_depends_on(override: str) -> None:
    assert compose([override]).key != compose([]).key


def test_the_key_does_not_depend_on_the_order_or_the_way_of_writing() -> None:
    one = compose(["seed=1", "training.lr=1e-3", "objective=scm"])
    other_way = compose(["objective=scm", ("training.lr", 0.001), ("seed", 1)])
    assert one.key == other_way.key
    assert len(one.key) == 12


@dataclass(frozen=True)
class Before(FlowMatching):
    """An objective as one version had it."""

    strength: float = 0.5


@dataclass(frozen=True)
class After(Before):
    """The same, with two settings that the next version has added."""

    power: int = added(2)
    names: tuple[str, ...] = added(("auto",))


def test_an_added_setting_enters_the_key_only_where_it_is_not_its_default() -> None:
    with registered("objective", "mine", Before()):
        before = compose(["objective=mine"])
    with registered("objective", "mine", After()):
        assert compose(["objective=mine"]).key == before.key
        assert RunConfig(before.values).key == before.key  # its spec.json lacks the settings
        assert amend(before, ["evaluation.steps=[3]"]).key == before.key
        others = [compose(["objective=mine", "objective.power=3"])]
        others += [compose(["objective=mine", f"objective.names={v}"]) for v in ("[]", "[a]")]
        assert len({before.key, *(other.key for other in others)}) == 4


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["data=image_folder", "training.steps=3"], "ed77b5e1076e"),
        (
            ["data=huggingface", "data.dataset=bugs", "objective=scm", "backbone=unet_digits"],
            "50e618ad4b7f",
        ),
        (["data=latents", "seed=3"], "28f60a2b437b"),
        ([], "5cdd9d6df235"),
    ],
)
def test_keys_are_those_of_version_0_2(overrides: list[str], key: str) -> None:
    """Whose gradients were clipped by default."""
    assert compose([*overrides, "training.clip=1.0"]).key == key


def test_spellings_of_an_optimiser_that_mean_the_same_have_one_key() -> None:
    same = {
        "": ("adamw", {"name": "adamw"}),
        "muon": ("muon", {"name": "muon"}, {"name": "muon", "momentum": 0.95, "adamw_lr": 1}),
        "other": (
            {"name": "muon", "momentum": 0.9},
            {"nesterov": True, "name": "muon", "momentum": 0.9},
        ),
    }
    keys = {}
    for meaning, spellings in same.items():
        configs = [compose([("training.optimiser", value)]) for value in spellings]
        (keys[meaning],) = {config.key for config in configs}
        (optimiser,) = {config.optimiser for config in configs}
        assert optimiser.momentum == 0.9 if meaning == "other" else True  # type: ignore[attr-defined]
        again = RunConfig(json.loads(json.dumps(configs[-1].values)))
        assert (again.key, again.optimiser) == (keys[meaning], optimiser)
        assert amend(configs[-1], ["evaluation.steps=[3]"]).key == keys[meaning]
    assert keys[""] == compose([]).key
    assert len(set(keys.values())) == 3
    assert compose(["training.optimiser={name:muon,momentum:0.9}"]).key == keys["other"]


def test_a_rate_of_its_own_needs_something_to_train() -> None:
    state = torch.get_rng_state()
    assert compose(["objective=scm", "training.auxiliary_lr=0.1"]).training.auxiliary_lr == 0.1
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UserError, match=r"lr=0.1: objective 'ect' has no auxiliary module to"):
        compose(["objective=ect", "training.auxiliary_lr=0.1"])
    with pytest.raises(UserError, match=r"lr=0.1: objective 'ect' has no companion network to"):
        compose(["objective=ect", "training.companion_lr=0.1"])


def test_a_spec_read_back_has_the_same_key() -> None:
    config = compose(["objective=shortcut", "training.lr=0.1", "evaluation.times=[[1,0.3,0]]"])
    again = RunConfig(json.loads(json.dumps(config.values)))
    assert again.values == config.values
    assert again.key == config.key


# ---------------------------------------------------------------------------------- amend


def test_amend_changes_cells_and_sampler_of_the_same_run() -> None:
    config = compose(["training.lr=0.5", "seed=4", "backbone.width=32"])
    before = copy.deepcopy(config.values)
    amended = amend(
        config,
        ["evaluation.steps=[3]", "objective.solver=heun", "runs=/there", "training.log_every=1"],
    )
    assert amended.key == config.key
    assert amended.evaluation.steps == [3]
    assert amended.objective == FlowMatching(solver="heun")
    assert amended.values["runs"] == "/there"
    assert amended.training.lr == 0.5
    assert amended.training.log_every == 1
    assert config.values == before  # a new one; the old is as it was
    assert amend(config, ["training.lr=0.5"]).values == config.values


@pytest.mark.parametrize(
    "override", ["training.steps=9", "seed=5", "backbone.depth=1", "data.test_images=100"]
)
def test_amend_refuses_what_would_be_another_run(override: str) -> None:
    config = compose(["seed=4"])
    with pytest.raises(UserError, match=r"another run of .*objective\.solver") as caught:
        amend(config, [override])
    assert override in str(caught.value)
    assert config.key in str(caught.value)


@pytest.mark.parametrize("override", ["objective=scm", "evaluation.stesp=[1]", "objective.p_std=1"])
def test_amend_refuses_what_is_no_setting_of_the_run(override: str) -> None:
    with pytest.raises(UserError):
        amend(compose([]), [override])


# ------------------------------------------------------------------------------ third parties


@dataclass(frozen=True)
class Mine(FlowMatching):
    """A third party's objective, with settings of every kind."""

    strength: float = 0.5
    rounds: int = 3
    flavour: str | None = None
    weights: tuple[float, ...] = (1.0, 2.0)
    corrector: int = sampling_field(0)

    title: ClassVar[str] = "Mine"


def test_an_entry_registered_at_run_time_has_a_typed_schema() -> None:
    compose([])  # Hydra has been at work before
    with registered("objective", "mine", Mine()):
        config = compose(["objective=mine", "objective.strength=1", "objective.weights=[3,4]"])
        assert config.objective == Mine(strength=1.0, weights=(3.0, 4.0))
        assert config.values["objective"]["weights"] == [3.0, 4.0]
        assert amend(config, ["objective.corrector=2"]).key == config.key
        for override, told in (
            ("objective.rounds=many", "Integer"),
            ("objective.stength=1", "did you mean 'objective.strength'"),
        ):
            with pytest.raises(UserError, match=told):
                compose(["objective=mine", override])
    with pytest.raises(UserError, match="unknown objective 'mine'"):
        compose(["objective=mine"])


def test_a_choice_of_groups_is_what_hydra_composes() -> None:
    """Values, in their order, with types and flags."""
    chosen = {"objective": "shortcut", "backbone": "unet_digits", "data": "image_folder"}
    with run_config._own_hydra() as store:
        store.store(name="root", node=run_config.Root)
        for group, name in [*run_config._defaults().items(), *chosen.items()]:
            node = run_config._schema(name, GROUPS[group][name])
            store.store(group=group, name=name, node=node)
        with hydra.initialize_config_module("fewstep.experiments.config", version_base="1.3"):
            theirs = hydra.compose("run", [f"{group}={name}" for group, name in chosen.items()])
    ours = run_config._composed(tuple(chosen.items())).config
    assert repr(OmegaConf.to_container(ours)) == repr(OmegaConf.to_container(theirs))
    assert ours._metadata.flags == theirs._metadata.flags
    for group in chosen:
        assert (
            OmegaConf.get_type(ours[group]).__name__ == OmegaConf.get_type(theirs[group]).__name__
        )
        for name in theirs[group]:
            a, b = ours[group]._get_node(name), theirs[group]._get_node(name)
            assert (type(a), a._metadata.ref_type) == (type(b), b._metadata.ref_type)
