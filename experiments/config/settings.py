"""The settings of a run that belong to no objective, backbone or data set."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fewstep.errors import UserError, check_choice, check_fields, check_range
from fewstep.experiments.config.averages import WIDTH, check_width, decays, evaluated, weights_name
from fewstep.experiments.config.posthoc_fit import check_width_of
from fewstep.experiments.config.protocols import (
    PROTOCOLS,
    check_protocol,
    computable,
    with_settings,
)
from fewstep.experiments.config.schedules import SCHEDULES
from fewstep.registry import ADDED, added, bookkeeping, named

PRECISIONS = ("float32", "bfloat16")
SPLITS = ("train", "test")
PARALLEL = ("ddp", "fsdp")
INITS = ("auto", "random", "teacher")


@dataclass
class Training:
    """How a network is trained, whatever its objective.

    Attributes:
        steps: optimiser updates. batch_size: images an update.
        optimiser: adamw | adam | radam | muon, or {name: muon, momentum: 0.9} to set what it has.
        lr: peak learning rate. warmup: steps of linear warm-up to it.
        auxiliary_lr: that of the objective's auxiliary module (sCM's weight of the loss, say), on
            the same schedule; null for lr. companion_lr: that of its companion network.
        schedule: constant | cosine | linear (both to 0 at the last step) | inverse_sqrt.
        decay_from: step at which the schedule begins to fall, t_ref of inverse_sqrt; null for the
            end of the warm-up.
        betas, eps: of all optimisers; of muon, for the parameters that AdamW updates.
        weight_decay: decoupled for adamw and muon, added to the gradient for adam and radam.
        clip: bound on the norm of all gradients together, or null. Logs have the norm before,
            grad_norm.
        ema: decay of the averaged weights, or a list of decays, each of which is evaluated; the
            first one also makes targets and teaches.
        ema_warmup: whether the decays are reached as (1 + step) / (10 + step) grows.
        posthoc_ema: widths sigma_rel of the power-function averages that are stored every
            posthoc_every steps, to make those of other widths afterwards (Karras et al. 2024 take
            0.05 and 0.1).
        flip: whether images are mirrored from left to right with probability 1/2.
        augment: probability of each change of EDM's augmentation, of which the network is told.
        class_rows: consecutive rows of a batch that are of one class, a divisor of batch_size;
            null for classes as they come. batch_size itself for batches of one class.
        label_dropout: share of labels replaced by "none" (needed for guidance).
        precision: float32 | bfloat16 (autocast; weights stay float32).
        init: auto | random | teacher, the first weights. teacher takes those of a run with the same
            backbone, on whatever path; auto only where the path is the same, too.
        device: auto | cpu | cuda | cuda:0 | mps. compile: torch.compile the network.
        microbatch: images that the network is called with at a time, a divisor of batch_size, to
            save memory; the gradients are those of the whole batch. null for all.
        parallel: ddp | fsdp, how several processes (torchrun's, say) share a run: every one has the
            whole network, or (FSDP2) a part of it. batch_size is that of all together.
        activation_checkpointing: recompute activations in the backward pass, to save memory.
        log_every, validate_every, checkpoint_every: steps between; 0 for never.
    """

    steps: int = 2000
    batch_size: int = 128
    optimiser: Any = added("adamw")
    lr: float = 1e-3
    auxiliary_lr: float | None = added(None)
    companion_lr: float | None = added(None)
    warmup: int = 0
    schedule: str = "constant"
    decay_from: int | None = added(None)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None
    ema: Any = 0.999
    ema_warmup: bool = added(True)
    posthoc_ema: list[float] = field(default_factory=list, metadata=ADDED)
    posthoc_every: int = added(0)
    flip: bool = added(False)
    augment: float = added(0.0)
    class_rows: int | None = added(None)
    label_dropout: float = 0.0
    precision: str = "float32"
    init: str = "auto"
    device: str = bookkeeping("auto")
    compile: bool = bookkeeping(False)
    microbatch: int | None = bookkeeping(None)
    parallel: str = bookkeeping("ddp")
    activation_checkpointing: bool = bookkeeping(False)
    log_every: int = bookkeeping(50)
    validate_every: int = bookkeeping(250)
    checkpoint_every: int = bookkeeping(500)

    def __post_init__(self) -> None:
        check_fields("training", self, "steps batch_size", 1)
        check_fields(
            "training", self, "warmup weight_decay log_every validate_every checkpoint_every", 0
        )
        check_fields("training", self, "lr auxiliary_lr companion_lr eps clip", 0, open_low=True)
        check_fields("training", self, "label_dropout augment", 0, 1)
        decays(self.ema)
        self._check_posthoc_ema()
        self._check_microbatch()
        self._check_class_rows()
        if self.label_dropout == 1:  # then no label would be learned at all
            raise UserError("training.label_dropout must be at least 0 and less than 1, got 1")
        if len(self.betas) != 2:
            raise UserError(f"training.betas must be two numbers, got {list(self.betas)}")
        for beta in self.betas:
            check_range("training.betas", beta, 0, 0.999999)
        check_choice("training.precision", self.precision, PRECISIONS)
        check_choice("training.schedule", self.schedule, SCHEDULES)
        self._check_decay()
        check_choice("training.init", self.init, INITS)
        check_choice("training.parallel", self.parallel, PARALLEL)
        named("training.optimiser", self.optimiser)  # which there are, RunConfig knows

    def _check_decay(self) -> None:
        start, schedule = self.decay_from, f"training.schedule={self.schedule}"
        if self.schedule == "constant" and start is not None:
            raise UserError(
                f"training.decay_from={start} says when the learning rate begins to fall, and with "
                f"{schedule} it does not (choices that do: cosine, inverse_sqrt, linear)"
            )
        if self.schedule == "inverse_sqrt":
            if start is None:
                raise UserError(f"{schedule} needs training.decay_from, its t_ref in steps")
            check_range("training.decay_from", start, 1)
        elif start is not None:
            check_range("training.decay_from", start, 0)
            if start >= self.steps:
                raise UserError(
                    f"training.decay_from must be less than training.steps={self.steps} with "
                    f"{schedule}, got {start}"
                )

    def _check_microbatch(self) -> None:
        check_fields("training", self, "microbatch", 1)
        if self.microbatch is not None and self.batch_size % self.microbatch:
            divisors = [n for n in range(1, self.batch_size + 1) if self.batch_size % n == 0]
            nearest = min(divisors, key=lambda n: abs(n - self.microbatch))  # type: ignore[operator]
            raise UserError(
                f"training.microbatch must divide training.batch_size={self.batch_size}, "
                f"got {self.microbatch}; the nearest that does is {nearest}"
            )
        if self.microbatch is not None and self.activation_checkpointing:
            raise UserError(
                "training.microbatch cannot be used with training.activation_checkpointing: "
                "it computes everything again itself"
            )

    def _check_class_rows(self) -> None:
        check_fields("training", self, "class_rows", 1)
        if self.class_rows is not None and self.batch_size % self.class_rows:
            raise UserError(
                f"training.class_rows must divide training.batch_size={self.batch_size}, "
                f"got {self.class_rows}"
            )

    def weights_of(self, setting: str, asked: Sequence[Any]) -> list[str]:
        """The names of the weights that are ``asked`` for; ``UserError`` for some not to be had.

        ``setting``: where they are asked for.
        """
        names = evaluated(setting, asked, self.ema, self.posthoc_ema)
        for name in names:
            if name.startswith(WIDTH):
                stored = tuple(self.posthoc_ema), self.steps, self.posthoc_every
                check_width_of(*stored, float(name.partition("-")[2]))
        return names

    def check_kept_at(self, setting: str, step: int, names: Sequence[str]) -> None:
        """``UserError`` where weights ``names`` cannot be had after ``step`` of the updates."""
        if step >= self.steps:
            raise UserError(
                f"{setting} must be less than training.steps={self.steps}, after which every run "
                f"is evaluated, got {step}"
            )
        for name in names:
            if not name.startswith(WIDTH):
                continue
            if step % self.posthoc_every:
                raise UserError(
                    f"{setting}={step}: {name} is known at every training.posthoc_every="
                    f"{self.posthoc_every} steps alone"
                )
            stored = tuple(self.posthoc_ema), step, self.posthoc_every
            check_width_of(*stored, float(name.partition("-")[2]))

    def _check_posthoc_ema(self) -> None:
        for width in self.posthoc_ema:
            check_width("training.posthoc_ema", width)
        check_fields("training", self, "posthoc_every", 1 if self.posthoc_ema else 0)
        if self.posthoc_every and not self.posthoc_ema:
            raise UserError(
                f"training.posthoc_every is {self.posthoc_every}, and training.posthoc_ema names "
                f"no widths to store (the usual choice: [0.05,0.1])"
            )
        if len(set(self.posthoc_ema)) < len(self.posthoc_ema):
            raise UserError(f"training.posthoc_ema names a width twice: {list(self.posthoc_ema)}")


@dataclass
class Evaluation:
    """Which cells a run is evaluated at: the product of steps (and times), weights, guidance, sets.

    None of it changes the training, so none of it is part of a run's key.

    Attributes:
        steps: numbers of uniform sampling steps. times: irregular schedules, each falling from
            the path's t_max to 0; a single one may be written without the outer brackets.
        samplers: [{solver: heun}, ...], settings of the objective's own sampler, each a cell; none
            stands for the objective's own. {solver: amed} is trained for the run's network, and
            has settings of its own: trajectories, teacher_steps, scale.
        weights: any of ema (each of training.ema), raw, {ema: DECAY} (one of training.ema) and
            {sigma_rel: WIDTH}, made of those of training.posthoc_ema.
        at_steps: training steps after which the weights are kept and evaluated, too, beside those
            of the last step: FD over training.
        guidance: scales of classifier-free guidance (1: none).
        guidance_interval: [from, to], the shares of noise sigma / (alpha + sigma), 0 to 1, at which
            guidance acts: the linear path's time, the same noise levels for every objective.
        sample_sets: independent sets of samples per cell.
        samples: N, or null for as many as the held-out split has.
        metrics: fd | kid | precision | ..., or {name: kid, degree: 2} to set what it has.
        reference: train | test, the split samples are compared with; the other one is the floor.
        reference_file: an npz of mu and sigma, or of images arr_0, in place of the split.
        extractor: whose features are compared; "auto" takes cnn for images, raw for vectors. With
            settings, {name: pca, dimension: 32}; several in a list.
        batch_size: images sampled at a time.
        protocol: adm | dit | edm | torch_fidelity | clean_fid, whose way from samples to numbers is
            followed (``protocols.py``); null for our own. It fixes samples (all but the last two),
            roundings, resizing and metrics: where metrics is [fd], all that it has and that the
            reference file has references for.
    """

    steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 32, 128])
    times: list[list[float]] = field(default_factory=list)
    samplers: list[dict[str, Any]] = field(default_factory=list)
    weights: list[Any] = field(default_factory=lambda: ["ema"])
    at_steps: list[int] = field(default_factory=list, metadata=ADDED)
    guidance: list[float] = field(default_factory=lambda: [1.0])
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    sample_sets: int = 1
    samples: int | None = None
    metrics: list[Any] = field(default_factory=lambda: ["fd"])
    reference: str = "train"
    reference_file: str | None = None
    extractor: Any = "auto"
    batch_size: int = 1000
    protocol: str | None = added(None)

    def __post_init__(self) -> None:
        for steps in self.steps:
            check_range("evaluation.steps", steps, 1)
        for step in self.at_steps:
            check_range("evaluation.at_steps", step, 1)
        for scale in self.guidance:
            check_range("evaluation.guidance", scale, 0)
        for weights in self.weights:
            weights_name("evaluation.weights", weights)
        check_fields("evaluation", self, "sample_sets batch_size", 1)
        check_fields("evaluation", self, "samples", 2)
        check_choice("evaluation.reference", self.reference, SPLITS)
        name, interval = "evaluation.guidance_interval", list(self.guidance_interval)
        if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
            rule = "two rising shares of noise in [0, 1]"
            raise UserError(f"{name} must be {rule}, got {interval}")
        for name, values in (("metrics", self.metrics), ("extractor", self.extractors)):
            if not values:
                raise UserError(f"evaluation.{name}=[] names none")
            for value in values:
                named(f"evaluation.{name}", value)
        if self.protocol is not None:
            metrics = [] if self._takes_all else self.metrics
            check_protocol(self.protocol, self.samples, metrics, self.extractors)
            self.samples = self.samples or PROTOCOLS[self.protocol].samples

    @property
    def _takes_all(self) -> bool:
        """Whether the metrics are all that the protocol has."""
        return self.protocol is not None and self.metrics == ["fd"]

    @property
    def left_out(self) -> list[str]:
        """The protocol's metrics for which the reference file has nothing."""
        if self.protocol is None or not self._takes_all:
            return []
        known = computable(self.protocol, self.reference_file)
        return [name for name in PROTOCOLS[self.protocol].metrics if name not in known]

    @property
    def extractors(self) -> list[Any]:
        """``extractor``, which may be a single one, as a list."""
        several = isinstance(self.extractor, list | tuple)
        return list(self.extractor) if several else [self.extractor]

    def weights_of(self, training: Training) -> list[str]:
        """The names of the weights asked for; ``UserError`` for some that are not kept."""
        names = training.weights_of("evaluation.weights", self.weights)
        for step in self.at_steps:
            training.check_kept_at("evaluation.at_steps", step, names)
        return names

    def metric_requests(self) -> list[dict[str, Any]]:
        """Each metric in each extractor, as requested; kept in a cell's file beside its value.

        The first one is a run's main one, which searches and ``status`` look at.
        """
        rest = {} if self.reference_file is None else {"reference_file": self.reference_file}
        metrics = self.metrics
        if self.protocol is not None:
            rest["protocol"] = self.protocol
            if self._takes_all:
                metrics = computable(self.protocol, self.reference_file)
            metrics = [with_settings(self.protocol, metric) for metric in metrics]
        return [
            {
                "samples": self.samples,
                "reference": self.reference,
                "extractor": extractor,
                **({} if metric == "fd" else {"metric": metric}),
                **rest,
            }
            for metric in map(_brief, metrics)
            for extractor in map(_brief, self.extractors)
        ]


def _brief(value: Any) -> Any:
    return value["name"] if isinstance(value, dict) and len(value) == 1 else value


@dataclass
class Tracking:
    """Where sweeps are recorded.

    Attributes:
        uri: MLflow's tracking URI; null takes MLFLOW_TRACKING_URI, else sqlite under the run root.
        enabled: whether a sweep is synced when it ends (``fewstep sync`` always can be).
    """

    uri: str | None = None
    enabled: bool = True
