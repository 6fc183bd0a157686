"""Estimates what a run takes on this machine or on a cluster, before it starts."""

from __future__ import annotations

from dataclasses import replace

from ablation.calibration import Calibration, calibrate, measured
from ablation.cluster import connection as cluster
from ablation.cluster.connection import Layout
from ablation.driver.estimate import Estimate, estimate
from ablation.driver.probe import probe
from ablation.errors import UserError
from ablation.plan import Plan
from ablation.run_options import Options
from ablation.session import Session


def forecast(session: Session, options: Options, *, timed: bool) -> Estimate:
    """Estimates what is left of a session's plan.

    Args:
        session: its store has the paces of earlier trainings.
        options: which nodes, and how trials share them.
        timed: train a few steps on this machine first, and use their pace.

    Raises:
        UserError: no cluster answers, a trial would never fit, or none can be trained on this machine.
    """
    plan, layout = session.plan, _layout(session.plan, options)
    held = tuple(replace(trial, resources=layout.resources(trial.resources)) for trial in plan.trials)
    plan = replace(plan, trials=held)
    calibration = _calibration(session, plan, timed=timed)
    directory = session.workspace.trial_directory
    return estimate(plan, calibration, layout.nodes, limit=layout.limit, directory=directory)


def _calibration(session: Session, plan: Plan, *, timed: bool) -> Calibration | None:
    """From the probe, if it is asked for and measured something; else from earlier trainings."""
    work = plan.work()
    if timed and not cluster.gpus_here() and any(trial.resources and trial.resources.gpus for trial in work):
        raise UserError(
            "--probe trains a few steps on this machine, which has no GPU, and the trials need one. Run it "
            "on a machine with a GPU."
        )
    seen = probe(session.study.train, work, plan.setting.context) if timed else None
    if seen:
        return calibrate(plan, [seen], probed=True)
    return calibrate(plan, measured(plan, session.opened)) if session.opened else None


def _layout(plan: Plan, options: Options) -> Layout:
    wanted = [trial.resources for trial in plan.trials]
    whole = plan.setting.exclusive_gpus
    if options.cluster:
        with cluster.ray_for(options, wanted, exclusive_gpus=whole) as layout:
            return layout
    return cluster.here(options, wanted, cluster.gpus_here(), exclusive_gpus=whole)
