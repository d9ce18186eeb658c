"""Modules by the names they had in version 0.1, importable until 0.3; the first import warns.

``fewstep.objectives.base`` gives ``fewstep.objectives.core.base``: the same module, not a copy.
"""

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

from fewstep.deprecation import warn

# package: old=new, both below the package
MOVED = {
    "analysis": "origin=columns records=summary_types selection=filters ranking=significance "
    "samples=sample_images",
    "objectives": "base=core.base paths=core.paths tangent=core.tangent guidance=core.guidance "
    "samplers=core.samplers times=core.times edm=core.edm gaussian=core.gaussian "
    "teacher=core.teacher",
    "cli": "main=app",
    "experiments": "composition=config.hydra_schema settings=config.settings "
    "written=config.overrides reproduce=config.reproduce preflight=validation "
    "rundir=store.run_directory claim=store.lease provenance=store.provenance "
    "failures=store.failures trainer=training.trainer checkpoint=training.checkpoint "
    "loader=training.prefetch seeds=rng teacher=training.teacher pairs=training.reflow_pairs "
    "network=training.network rungs=early_stopping parallel=distributed.data_parallel "
    "sharded=distributed.batch_sharding drawing=evaluation.sampling "
    "measure=evaluation.measurement reference=metrics.reference frechet=metrics.frechet_distance "
    "bias=evaluation.fd_vs_samples diagnostics=evaluation.diagnostics bench=cost.step_benchmark "
    "loading=cost.loading_benchmark flops=cost.flops encode=autoencoders.encode "
    "autoencoder=autoencoders preparation=progress tracking_sweep=tracking.sweep_sync "
    "tracking_mirror=tracking.writer tracking_record=tracking.run_record "
    "tracking_store=tracking.store tracking_view=tracking.charts tracking_watch=tracking.watch",
    "experiments.data": "hub=huggingface idx=mnist store=memmap_cache plain_pickle=safe_unpickle "
    "holdout=split images=decode",
    "experiments.extractors": "pixels=raw_pca",
    "experiments.metrics": "frechet=fd manifold=prdc",
    "reports": "costs=tables.costs comparison=tables.comparison published=content.published "
    "apart=tables.published_table rows=content.row_groups terminal=tables.terminal "
    "captions=content.captions multiples=figures.drawing grid=figures.sample_grid "
    "mosaic=figures.image_grid bias=figures.fd_vs_samples diagnostics=figures.diagnostics "
    "ticks=figures.axis_ticks drawn=content.method_selection charts=figures.chart_data "
    "svg=html.svg tiles=html.thumbnails diagnostics_page=html.diagnostics_page page=markdown_page "
    "view=content.report_data text=content.formatting methods=content.methods "
    "provenance=content.provenance",
    "sweeps": "space=definition.sampling axes=definition.axes conditions=definition.conditions "
    "sweep=definition.sweep resources=definition.resources budget=definition.budget "
    "done=progress launching=launch_record threads=cpu_threads fork=local.fork_client "
    "forkserver=local.fork_server",
    "sweeps.ray": "feed=searcher team=process_group wanted=placement",
    "sweeps.slurm": "settle=reconcile chunks=arrays queue=squeue script=sbatch",
}

# package: names in modules that were moved, as module.old=new
RENAMED = {
    "analysis": "filters.Mixed=AmbiguousCells",
    "experiments": "data.memmap_cache.kept=cached_splits "
    "distributed.data_parallel.Alone=SingleProcess "
    "distributed.data_parallel.Copied=DataParallel distributed.data_parallel.Split=FullyShard "
    "evaluation.measurement.Measure=MetricInstance evaluation.sampling.Cell=SamplingConfig "
    "evaluation.sampling.Drawn=SampleBatch store.lease.Claim=RunLease store.lease.Busy=RunLocked "
    "store.lease.Superseded=LeaseLost store.lease.at_work=live_lease "
    "store.run_directory.Unreadable=CorruptFile tracking.store.StoreAway=StoreUnavailable "
    "tracking.sweep_sync.Look=SweepSnapshot",
    "reports": "content.formatting.account=run_counts",
    "sweeps": "definition.axes.facts=axis_values launch_record.remember=save_launch_record "
    "launch_record.recall=load_launch_record local.fork_client.Fork=ForkServerClient "
    "progress.Work=WorkEstimate ray.placement.Wanted=ResourceRequest "
    "ray.process_group.Team=RayProcessGroup ray.process_group.Lost=MachineLost "
    "ray.searcher.Feed=RunSearcher slurm.arrays.Wanted=RunToSubmit "
    "slurm.reconcile.settle=reconcile",
}


def renames(table: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """(package, old, new), of a table of ``package: old=new ...``."""
    for package, pairs in table.items():
        for pair in pairs.split():
            old, new = pair.split("=")
            yield f"fewstep.{package}", old, new


NEW_NAMES = {f"{package}.{old}": f"{package}.{new}" for package, old, new in renames(MOVED)}


class MovedModules:
    """A finder and loader, the last in Python's list: it sees only names that no file has."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in NEW_NAMES else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make an empty module, which ``exec_module`` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, NEW_NAMES[module.__name__]
        warn(old, new)
        module = sys.modules[old] = import_module(new)
        for package, path, new_name in renames(RENAMED):
            home, _, name = f"{package}.{path}".rpartition(".")
            if home == new:
                setattr(module, name, getattr(module, new_name))
