"""The ways of writing an axis: what values each makes, where it applies, what is refused."""

from __future__ import annotations

import pytest

from fewstep.errors import UserError

FLAT = "base: {data: gaussians}\n"


def values(sweep, axis: str) -> list:
    return [dict(choice.settings)[axis] for choice in sweep.axes[axis].choices]


@pytest.mark.parametrize(
    ("form", "made"),
    [
        ("{range: [0, 4]}", [0, 1, 2, 3]),
        ("{range: [64, 257, 64]}", [64, 128, 192, 256]),
        ("{range: [5, 0, -2]}", [5, 3, 1]),
        ("{range: [0.1, 0.45, 0.1]}", [0.1, 0.2, 0.3, 0.4]),  # 0.1 * 3 is not 0.3 in floats
        ("{range: [0, 1, 0.5]}", [0.0, 0.5]),
        ("{logspace: [1.0e-4, 1.0e-2, 3]}", [1e-4, 1e-3, 1e-2]),
        ("{logspace: [1.0e-4, 1.0e-2, 5]}", [1e-4, 3.162e-4, 1e-3, 3.162e-3, 1e-2]),
        ("{logspace: [16, 1024, 4]}", [16, 64, 256, 1024]),
        ("{logspace: [1, 4, 6]}", [1, 2, 3, 4]),  # whole numbers, each once
        ("{logspace: [8.0, 1.0, 4]}", [8.0, 4.0, 2.0, 1.0]),
        ("{logspace: [0.9999, 0.99999, 3]}", [0.9999, 0.999945, 0.99999]),  # close to 1 is not 1
        ("{values: [3, 1]}", [3, 1]),
    ],
)
def test_ranges(write, form, made):
    found = values(write(f"axes: {{a: {form}}}"), "a")
    assert found == made
    assert [type(v) for v in found] == [type(v) for v in made]


def test_a_number_of_a_range_is_chosen_as_it_is_told(write):
    sweep = write(FLAT + "axes: {training.lr: {logspace: [1.0e-4, 1.0e-2, 5]}}")
    label = sweep.members()[1].label
    assert label == "training.lr=0.0003162 seed=0"
    (member,) = sweep.with_overrides([label.split()[0]]).members()
    assert member.config.training.lr == 3.162e-4


def test_a_zip_varies_settings_in_step(write):
    sweep = write(
        FLAT + "axes:\n"
        "  size:\n"
        "    zip:\n"
        "      label: [s, m, l]\n"
        "      backbone.width: {range: [16, 49, 16]}\n"
        "      training.lr: [3.0e-3, 2.0e-3, 1.0e-3]\n"
        "  training.clip: {zip: {training.clip: [1.0, null], training.ema: [0.9, 0.99]}}\n"
    )
    found = [
        (m.choices["size"], m.config.values["backbone"]["width"], m.config.training.lr)
        for m in sweep.members()
    ]
    assert found[::2] == [("s", 16, 3e-3), ("m", 32, 2e-3), ("l", 48, 1e-3)]
    # as in a list of mappings, a setting called as the axis gives the label
    told = [(m.choices["training.clip"], m.config.training.ema) for m in sweep.members()[:2]]
    assert told == [("1.0", 0.9), ("training.clip=None,training.ema=0.99", 0.99)]


CONDITIONAL = """
base: {data: gaussians}
axes:
  objective:
    - flow_matching
    - {objective: shortcut, label: online, objective.target: online}
    - {objective: shortcut, label: ema}
    - scm
  objective.bootstrap_share: {values: [0.25, 0.5], when: {objective: shortcut}}
  training.warmup: {range: [1, 3], when: {objective: [online, scm]}}
  training.ema: {values: [0.9, 0.8], when: {objective.bootstrap_share: 0.5, training.warmup: 2}}
"""


def test_a_conditional_axis_applies_only_where_its_condition_holds(write):
    """A condition may name a label, a setting behind labels, or another conditional axis."""
    sweep = write(CONDITIONAL)
    online = "objective=online objective.bootstrap_share"
    assert [m.label.removesuffix(" seed=0") for m in sweep.members()] == [
        "objective=flow_matching",
        f"{online}=0.25 training.warmup=1",
        f"{online}=0.25 training.warmup=2",
        f"{online}=0.5 training.warmup=1",
        f"{online}=0.5 training.warmup=2 training.ema=0.9",
        f"{online}=0.5 training.warmup=2 training.ema=0.8",
        "objective=ema objective.bootstrap_share=0.25",
        "objective=ema objective.bootstrap_share=0.5",
        "objective=scm training.warmup=1",
        "objective=scm training.warmup=2",
    ]
    flow = sweep.members()[0]
    assert flow.choices == {"objective": "flow_matching"}
    assert flow.config.training.warmup == 0
    chosen = sweep.with_overrides(["objective.bootstrap_share=0.25"]).members()
    told = [m.choices.get("objective.bootstrap_share") for m in chosen]
    assert told == [None, "0.25", "0.25", "0.25", None, None]


def test_exclusions_leave_combinations_out(write):
    sweep = write(
        FLAT + "axes:\n"
        "  objective: [flow_matching, scm, consistency]\n"
        "  training.lr: [1.0e-4, 1.0e-3, 1.0e-2]\n"
        "exclude:\n"
        "  - {objective: scm, training.lr: 0.01}\n"
        "  - {objective: [consistency], training.lr: [1.0e-4, 1.0e-3]}\n"
    )
    assert [(m.choices["objective"], m.config.training.lr) for m in sweep.members()] == [
        ("flow_matching", 1e-4),
        ("flow_matching", 1e-3),
        ("flow_matching", 1e-2),
        ("scm", 1e-4),
        ("scm", 1e-3),
        ("consistency", 1e-2),
    ]


TEACHERS = """
base: {data: gaussians}
axes:
  objective:
    - flow_matching
    - {objective: scd, teacher: flow_matching, label: taught}
  objective.tangent_warmup: {values: [5, 6], when: {objective: taught}}
"""


def test_students_that_vary_share_a_teacher_to_which_their_axis_does_not_apply(write):
    flow, five, six = write(TEACHERS).members()
    assert five.config.values["teacher"] == six.config.values["teacher"]
    assert five.config.values["teacher"].endswith(f"/{flow.config.key}")


def test_a_teacher_that_varies_where_its_student_does_not_is_refused(write):
    text = TEACHERS.replace("objective.tangent_warmup", "training.warmup")
    text = text.replace("when: {objective: taught}", "when: {objective: flow_matching}")
    with pytest.raises(UserError, match="which run of flow_matching teaches taught"):
        write(text).members()
    one = write(text.replace("[5, 6]", "[5]")).members()
    assert one[1].config.values["teacher"].endswith(f"/{one[0].config.key}")


AXIS = "axis training.lr"


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (
            "{rnage: [1, 2]}",
            "sweep {path}: unknown field 'rnage' of axis training.lr; did you mean",
        ),
        ("{}", "must be a list or one of values, range, logspace, zip, uniform, loguniform, got"),
        ("{range: [1, 3], values: [1]}", f"{AXIS} must be a list or one of values, range"),
        ("{range: 5}", f"{AXIS}: range takes [start, stop] or [start, stop, step], got 5"),
        ("{range: [1, 2, 3, 4]}", f"{AXIS}: range takes [start, stop] or"),
        ("{range: [1, b]}", f"{AXIS}: range takes [start, stop] or"),
        ("{range: [1, 3, 0]}", f"{AXIS}: range [1, 3, 0]: the step is 0"),
        ("{range: [3, 1]}", f"{AXIS}: range [3, 1] has no value"),
        ("{range: [0, 1, 1.0e-9]}", "has 1000000000 values, more than 10000"),
        ("{range: [0, .inf]}", "range takes"),
        ("{logspace: [-4, -2, 5]}", "between two numbers above 0, not exponents, got [-4, -2, 5]"),
        ("{logspace: [1, 2]}", f"{AXIS}: logspace takes [low, high, how many], got [1, 2]"),
        ("{logspace: [1, 2, 2.5]}", "how many must be a whole number from 2, got 2.5"),
        ("{logspace: [1, 2, 1]}", "how many must be a whole number from 2, got 1"),
        ("{zip: [1, 2]}", f"{AXIS}: zip must be a mapping of settings to their values"),
        ("{zip: {a: 3}}", "zip: a must be a list of values, a range or a logspace, got 3"),
        ("{zip: {a: [1, 2], b: [1]}}", "zip needs as many values of each setting: a has 2, b has"),
        ("{zip: {label: [x, x], a: [1, 2]}}", "two values of axis training.lr are both called 'x'"),
        ("{uniform: [1, 1]}", f"{AXIS}: uniform [1, 1]: low must be below high"),
        ("{loguniform: [0, 1]}", f"{AXIS}: loguniform [0, 1]: low must be above 0"),
        ("{uniform: 3}", f"{AXIS}: uniform takes [low, high], got 3"),
        ("{uniform: [0, 1]}", f"{AXIS} is drawn at random; write sample"),
        ("{values: [1], when: scm}", "when (axes before it) must be a mapping of names to values"),
        ("{values: [1], when: {}}", "when (axes before it) must be a mapping of names to values"),
        (
            "{values: [1], when: {objectiv: scm}}",
            "unknown name 'objectiv' in axis training.lr, when (axes before it); "
            "did you mean 'objective'? (choices: objective)",
        ),
        (
            "{values: [1], when: {objective: smc}}",
            "unknown value 'smc' of objective in axis training.lr, when (axes before it); "
            "did you mean 'scm'? (choices: flow_matching, scm)",
        ),
        ("{values: [1], when: {after: 1}}", "'after'"),
        ("{uniform: [.nan, 1]}", "uniform takes [low, high]"),
        ("3", f"{AXIS} must be a list of values, got 3, or a mapping with one of values, range"),
    ],
)
def test_bad_axes(write, tmp_path, form, told):
    text = f"axes: {{objective: [flow_matching, scm], training.lr: {form}, after: [1, 2]}}"
    with pytest.raises(UserError) as error:
        write(text).members()
    assert told.format(path=tmp_path / "mine.yaml") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("exclude: {objective: scm}", "exclude must be a list of mappings of axes to values"),
        ("exclude: [{objective: smc}]", "sweep {path}: unknown value 'smc' of objective in "
         "exclude, entry 1; did you mean 'scm'"),
        ("exclude: [{objective: scm}, scm]", "exclude, entry 2 must be a mapping of names to"),
        ("exclude: [{seed: 1}]", "unknown name 'seed' in exclude, entry 1"),
        ("exclude: [{lr: 1}]\nsample: 1", "the values of lr are drawn at random, none can"),
        ("exclude: [{objective: [scm, flow_matching]}]\nsample: 1", "draws found 0 different"),
        ("sample: {seed: 3}", "sweep {path}: sample needs a count, got {{'seed': 3}}"),
        ("sample: {count: 0}", "sweep {path}: sample.count must be at least 1, got 0"),
        ("sample: {count: many}", "sample.count must be a whole number, got 'many'"),
        ("sample: {cuont: 3}", "sweep {path}: unknown field 'cuont' of sample; did you mean"),
        ("slurm: low", "sweep {path}: slurm must be a mapping, got 'low'"),
    ],
)  # fmt: skip
def test_bad_fields(write, tmp_path, text, told):
    axes = "axes: {objective: [flow_matching, scm], lr: {uniform: [0, 1]}}\n"
    with pytest.raises(UserError) as error:
        write(axes + text).members()
    assert told.format(path=tmp_path / "mine.yaml") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_grid_beyond_all_bounds_is_refused_before_it_is_made(write):
    axes = ", ".join(f"a{i}: {{range: [0, 1000]}}" for i in range(4))
    with pytest.raises(UserError, match="its axes have 1000000000000 combinations"):
        write(f"axes: {{{axes}}}").members()


def test_excluding_everything_leaves_no_runs(write):
    from fewstep.sweeps.plan import plan

    with pytest.raises(UserError, match="sweep mine has no runs"):
        plan(write("axes: {objective: [scm]}\nexclude: [{objective: scm}]"))
