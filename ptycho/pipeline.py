"""The straight line from a recipe to a result."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptycho.account import Account, warnings_kept
from ptycho.check import Plan, check_room, warnings_of
from ptycho.course import Prepared, Tell, solve_stages
from ptycho.data import Dataset4D
from ptycho.defaults import default_stages
from ptycho.device import choose_device
from ptycho.errors import DataError, OutOfMemoryError, RecipeError, Stopped
from ptycho.explain import suggestion
from ptycho.fingerprint import fingerprint
from ptycho.frames import Quantity
from ptycho.halves import Half, two_halves
from ptycho.io.checkpoint import FOLDER
from ptycho.io.result_file import RESULT, load_result, save_result
from ptycho.keeper import Identity, Keeper, never
from ptycho.known import known_object, known_start
from ptycho.loss import choose_loss
from ptycho.memory import is_out_of_memory
from ptycho.model import Ptychography
from ptycho.preview import PreviewWriter, discard_preview
from ptycho.quality import assess, check_field
from ptycho.ranks import Ranks
from ptycho.recipe import Recipe, model_from, solver_keys, solvers_from
from ptycho.report import report
from ptycho.residual import compare
from ptycho.result import EpochRecord, Result
from ptycho.runfolder import RunFolder
from ptycho.scan_fit import fit_scan
from ptycho.solvers import Solver
from ptycho.stages import seen_through, view_of
from ptycho.start import Known, ModelOptions, check_probe_fits
from ptycho.tilt_fit import fit_tilt

logger = logging.getLogger("ptycho")


#: Told of every epoch, those of the halves included: what happened, and how many epochs there will be at most.
Progress = Callable[[EpochRecord, int], None]
#: Shown the result as it stands after every epoch.
OnEpoch = Callable[[Result], object]


@dataclass(frozen=True)
class Job:
    """A run's inputs: what to do, on what, where, who is told. Of several processes that share it only the first of ``ranks`` has a folder."""

    recipe: Recipe
    data: Dataset4D
    device: torch.device
    folder: RunFolder | None = None
    progress: Progress | None = None
    stop: Callable[[], bool] = never
    ranks: Ranks = field(default_factory=Ranks)
    on_epoch: OnEpoch | None = None


def reconstruct(
    source: str | Path | Dataset4D | Recipe,
    *,
    solve: Any = None,
    device: str = "auto",
    output: str | Path | None = None,
    on_epoch: OnEpoch | None = None,
    halves: bool | None = None,
    stop: Callable[[], bool] = never,
    ranks: Ranks | None = None,
    **options: Any,
) -> Result:
    """Reconstruct a data set, or run a recipe.

    ``source`` is a data set from :func:`ptycho.read`, a recipe, or a recipe's path. ``options`` are keys of the recipe's [model]
    section (``probe_modes``, ``slices``, ...) and of one solver entry (``kind``, ``epochs``, ``batch``, ...); ``solve`` gives whole
    stages instead, as solver records or dictionaries. ``output`` is a folder for the results; without it nothing is written. A run that was
    interrupted there goes on, if recipe and data are the same. ``halves``
    (default: the recipe's) reconstructs two halves of the data too and compares them: the result's ``quality``. ``stop`` is asked after every
    batch; when it says True the state is kept in the folder and Stopped is raised. ``on_epoch`` is called after every epoch (not those of the halves)
    with the result as it stands, whose aberrations are still the nominal ones: :class:`ptycho.LiveFigure` shows it in a notebook. ``ranks``, from
    :func:`ptycho.ranks.joined`, are the processes that share the work: all call this function with the same arguments, the first one writes.
    Raises a PtychoError (RecipeError, DataError, OutputError, OutOfMemoryError, DivergedError) with a sentence that says what to do.
    """
    if not callable(stop):
        raise RecipeError("stop: a function is needed, which says True when to stop; a solver's own rule belongs into solve=[{...}]")
    if isinstance(source, (str, Path)):
        source = Recipe.load(source)
    recipe = source if isinstance(source, Recipe) else Recipe.of(source)
    recipe = _with_options(recipe, solve, options)
    if halves is not None:
        recipe = recipe.model_copy(update={"output": recipe.output.model_copy(update={"halves": halves})})
    ranks = ranks or Ranks()
    place = choose_device(device, ranks)
    folder = None if output is None or not ranks.first else RunFolder(output)
    data = source.read() if isinstance(source, Recipe) else source
    return run(Job(recipe, data, place, folder, None, stop, ranks, on_epoch))


def run(job: Job) -> Result:
    """Carry out a job; the run folder, if there is one, tells how it stands at any moment.

    The folder appears when data and recipe are known to be sound: what is wrong with them leaves nothing behind.
    """
    folder, given = job.folder, job.recipe.text()
    with _memory_told():
        prepared = _prepare(job, None if folder is None else folder.earlier_recipe(given))
    if job.ranks.count > 1:
        job.ranks.check_same(given + fingerprint(prepared.data), "recipe, or other data,")
    if folder is None:
        return _kept_run(job, prepared)
    folder.keep_out(job.data.source.header.path)
    folder.create(prepared.recipe.text(), given)
    folder.open_log(logger)
    try:
        return _kept_run(job, prepared)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        code = getattr(error, "exit_code", 130 if interrupted else 1)
        folder.fail(error, code, interrupted or isinstance(error, Stopped))
        raise
    finally:
        folder.close_log(logger)
        folder.close()


def _kept_run(job: Job, prepared: Prepared) -> Result:
    """The result that is there, or what is left of the run."""
    folder = job.folder
    done = job.ranks.told(load_result(folder.path) if folder is not None and folder.finished else None)
    if done is not None:
        return done
    keeper = Keeper(job.stop, folder, prepared.recipe.output, job.ranks)
    keeper.resume(None if folder is None else Identity(prepared.recipe.text(), fingerprint(prepared.data)))
    result = _all_parts(job, prepared, keeper)
    if folder is not None:
        folder.write("report.html", report(result))
        folder.set_status("finished", epoch=len(result.history), loss=result.history[-1].loss if result.history else None)
        keeper.finish()
        discard_preview(folder.path)
    return result


def _all_parts(job: Job, prepared: Prepared, keeper: Keeper) -> Result:
    """The reconstruction and, if it is wanted, those of two halves; each is saved as soon as it is there."""
    halves, known = prepared.recipe.output.halves, keeper.result(RESULT, prepared.recipe.text())
    result = known or _carry_out(_third(job, 0) if halves else job, prepared, keeper)
    if job.folder is not None:
        if known is None:
            save_result(result, job.folder.path)
        else:  # the checkpoint that it went on from may be older than the result
            job.folder.begin_metrics(known.history)
    if not halves or result.quality is not None:
        return result
    result = _judged(job, prepared, result, keeper)
    if job.folder is not None:
        save_result(result, job.folder.path)
    return result


def _prepare(job: Job, earlier: Path | None = None) -> Prepared:
    """``earlier`` is the recipe of the same run, begun before: what it found need not be found again."""
    found = job.ranks.told(None if earlier is None else Recipe.load(earlier))
    # Not one empty or damaged pattern is to be fitted: all of them are looked at, however large the file.
    data = replace(job.data, survey_all=True).without_bad_frames()
    options = job.recipe.model
    if job.recipe.solve and options.refine:
        name = "affine" if options.refine[0] == "scan" else options.refine[0]
        raise RecipeError(f"refine = {list(options.refine)}: [[solve]] says what is learned; put update = {{ {name} = 3 }} there instead")
    repaired: dict[str, Any] = {}
    if "scan" in options.refine:
        data, repaired = _repaired(data, options, found, job.ranks)
    if "tilt" in options.refine and options.slices > 1:
        if found is None:
            tilt = job.ranks.told(fit_tilt(data, options, workers=torch.get_num_threads()))
            logger.info(f"tilt: {tilt}")
            options = replace(options, tilt_mrad=tilt.tilt_mrad)
        else:
            options = replace(options, tilt_mrad=found.model.tilt_mrad)
    recipe = job.recipe.completed(replace(job.data, calibration=data.calibration), data.geometry.pixel_invA)
    if repaired:
        recipe = recipe.model_copy(update={"scan": recipe.scan.model_copy(update=repaired)})
    if not recipe.solve:
        model = replace(recipe.model, tilt_mrad=options.tilt_mrad, refine=())
        recipe = recipe.model_copy(update={"solve": _stages(data, options, ()), "model": model})
    if job.folder is not None:
        output = recipe.output.model_copy(update={"directory": str(job.folder.path.absolute())})
        recipe = recipe.model_copy(update={"output": output})
    known = known_start(options, data)
    _check_windows(data, options, recipe.solve, known)
    if job.ranks.count > 1:
        for stage in recipe.solve:
            stage.check_shared(job.ranks.count)
    plan = Plan(data, recipe.model, recipe.solve, Path(recipe.output.directory), job.device)
    check_room(plan)
    return Prepared(data, recipe, known, warnings_of(plan))


def plan_of(recipe: Recipe, device: str = "auto", output: Path | None = None) -> Plan:
    """The run that a recipe describes, as :func:`ptycho.check.check` looks at it. Raises as :func:`reconstruct` does before its first epoch."""
    place = choose_device(device)
    data = replace(recipe.read(), survey_all=True).without_bad_frames()
    stages = _stages(data, recipe.model, recipe.solve)
    return Plan(data, recipe.model, stages, output or Path(recipe.output.directory), place)


def check_plan(plan: Plan) -> None:
    """Raise RecipeError when a stage's window cannot hold the probe: such a run would not begin."""
    if plan.options.probe_file is None:
        _check_windows(plan.data, plan.options, plan.stages, Known())


def _check_windows(data: Dataset4D, options: ModelOptions, stages: tuple[Solver, ...], known: Known) -> None:
    """What is wrong with a later stage is told before the first one begins."""
    for number, stage in enumerate(stages):
        if stage.update.opr and not options.opr_modes:
            raise RecipeError(f"solve.{number}.update.opr = {stage.update.opr}: nothing can vary; set opr_modes in [model], 1 or 2 to begin with")
        check_probe_fits(seen_through(data.geometry, view_of(data.pattern_shape, stage.bin, stage.detector_px)), options, known)


def _stages(data: Dataset4D, options: ModelOptions, given: tuple[Solver, ...]) -> tuple[Solver, ...]:
    """Those of the recipe, or what suits the data."""
    few = choose_loss("auto", data.survey().mean_electrons / (data.pattern_shape[0] * data.pattern_shape[1])) == "poisson"
    return given or default_stages(data.geometry, options, data.beam_electrons, few)


def _repaired(data: Dataset4D, options: ModelOptions, earlier: Recipe | None, ranks: Ranks) -> tuple[Dataset4D, dict[str, Any]]:
    """The data with the scan and the defocus that short reconstructions find, and what the recipe's [scan] has to say then."""
    if earlier is not None and earlier.scan.affine is not None and earlier.microscope.defocus_A is not None:
        affine, defocus_A = earlier.scan.affine, earlier.microscope.defocus_A
    else:
        affine, defocus_A = ranks.told(_fitted(data, options))
    found = {"affine": Quantity(affine, "", "fit_scan"), "defocus_A": Quantity(defocus_A, "Å", "fit_scan")}
    return replace(data, calibration=data.calibration | found), {"affine": affine}


def _fitted(data: Dataset4D, options: ModelOptions) -> tuple[tuple[tuple[float, float], tuple[float, float]], float]:
    """The scan's affine map, as a recipe has it, and the defocus."""
    fit = fit_scan(data, options, workers=torch.get_num_threads())
    logger.info(f"scan: {fit}")
    # The fit acts behind the turn of the scan, the recipe's affine before it.
    angle = np.deg2rad(data.rotation_deg)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    before = np.asarray(data.calibration["affine"].value if "affine" in data.calibration else np.eye(2))
    (a, b), (c, d) = (turn.T @ fit.affine.matrix @ turn @ before).tolist()
    return ((a, b), (c, d)), fit.defocus_A


def _carry_out(job: Job, prepared: Prepared, keeper: Keeper) -> Result:
    began = time.perf_counter()
    with warnings_kept(logger) as told, _memory_told():
        for warning in _warnings(job, prepared):
            logger.warning(warning)
        logger.info(_summary(prepared.data))
        result = _reconstructed(job, prepared, keeper)
    return replace(result, account=Account.of(result, prepared.data, job.device, told, time.perf_counter() - began))


def _warnings(job: Job, prepared: Prepared) -> list[str]:
    return list(dict.fromkeys((*job.data.warnings, *prepared.data.warnings, *prepared.warnings)))


def _reconstructed(job: Job, prepared: Prepared, keeper: Keeper) -> Result:
    geometry, text = prepared.data.geometry, prepared.recipe.text()
    nominal = (text, geometry.voltage_kV, geometry.semiangle_mrad, geometry.aberrations)
    tell = _teller(job, lambda model, history: Result.of(model, history, *nominal, final=False))
    model, patterns, history = solve_stages(prepared, job.device, tell, keeper)
    result = Result.of(model, history, *nominal)
    if result.instrument is not None and result.instrument.summary:
        logger.info(f"source and detector: {result.instrument.summary}")
    residual, examples = compare(model, patterns, seen_through(geometry, patterns.view))
    return replace(result, residual=residual, examples=examples)


def _teller(job: Job, so_far: Callable[[Ptychography, Sequence[EpochRecord]], Result]) -> Tell:
    """What is done with the news of every epoch; ``so_far`` makes them a result."""
    preview = None if job.folder is None else PreviewWriter(job.folder.path)

    def tell(model: Ptychography, history: Sequence[EpochRecord], total: int) -> None:
        record = history[-1]
        if job.folder is not None:
            job.folder.add_epoch(record)
            job.folder.set_status("running", epoch=record.epoch, epochs=total, loss=record.loss, held_out=record.held_out)
        if preview is not None:
            preview(lambda: so_far(model, history))
        if job.progress is not None:
            job.progress(record, total)
        if job.on_epoch is not None:
            job.on_epoch(so_far(model, history))

    return tell


def _judged(job: Job, prepared: Prepared, whole: Result, keeper: Keeper) -> Result:
    """``whole`` with its quality, from reconstructions of two halves of the data by the same recipe; as it is when the field is too small."""
    try:
        check_field(whole)
    except DataError as problem:
        logger.warning(str(problem))
        return whole.warned(str(problem))
    began, account = time.perf_counter(), whole.account
    by, halves = two_halves(prepared.data, prepared.recipe.model.seed)
    results: list[Result] = []
    for number, half in enumerate(halves, 1):
        keeper.enter(number, sum(len(result.history) for result in (whole, *results)))
        name, part = f"{FOLDER}/half-{number}.h5", _prepared_half(prepared, half, number)
        result = keeper.result(name, part.recipe.text())
        if result is None:
            logger.info(f"half {number} of 2: {'every second electron' if by == 'electrons' else 'every second position'}, drawn by chance")
            with _memory_told():
                result = _reconstructed(replace(_third(job, number), folder=None, on_epoch=None), part, keeper)
            keeper.keep_result(name, result)
        results.append(result)
    quality = assess(whole, (results[0], results[1]), (halves[0].positions, halves[1].positions), by)
    logger.info(quality.summary())
    return replace(whole, quality=quality, account=account and account.later(job.device, time.perf_counter() - began))


def _prepared_half(prepared: Prepared, half: Half, number: int) -> Prepared:
    """The same run on half of the data: with the loss that the whole has, and batches of its own."""
    survey, options = prepared.data.survey(), prepared.recipe.model
    per_pixel = survey.mean_electrons / prepared.data.pattern_shape[0] / prepared.data.pattern_shape[1]
    solve = tuple(replace(s, loss=choose_loss(s.loss, per_pixel), seed=s.seed + number) for s in prepared.recipe.solve)
    options = replace(options, background_e=options.background_e * half.electrons)
    recipe = prepared.recipe.model_copy(update={"model": options, "solve": solve})
    # A start from a direct method is that of the half's own electrons: what both halves share is no evidence.
    known = prepared.known if options.start == "flat" else known_object(options, half.data, prepared.known)
    return Prepared(half.data, recipe, known)


def _third(job: Job, number: int) -> Job:
    """The job as part ``number`` (0, 1, 2) of three alike: what is told of its epochs."""
    tell = job.progress
    if tell is None:
        return job

    def progress(record: EpochRecord, total: int) -> None:
        tell(replace(record, epoch=record.epoch + number * total), 3 * total)

    return replace(job, progress=progress)


@contextmanager
def _memory_told() -> Iterator[None]:
    """Out of memory, on the CPU or the GPU, as an error that says what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        what = "use a smaller batch or chunk in [[solve]], fewer slices or modes, or bin the patterns"
        raise OutOfMemoryError(f"out of memory: {error}; {what}") from None


def _with_options(recipe: Recipe, solve: Any, options: dict[str, Any]) -> Recipe:
    """The recipe with keyword options in place of its own values."""
    of_model = [f.name for f in fields(ModelOptions) if f.name != "seed"]
    model = {key: value for key, value in options.items() if key in of_model}
    stage = {key: value for key, value in options.items() if key not in of_model}
    if solve is not None and stage:
        raise RecipeError(f"{', '.join(stage)}: unknown beside solve; put them into its entries")
    for key in stage.keys() - solver_keys():
        raise RecipeError(f"{key}: unknown key{suggestion(key, [*of_model, *sorted(solver_keys())])}")
    update: dict[str, Any] = {}
    if model:
        update["model"] = model_from({**vars(recipe.model), **model})
    if solve is not None or stage:
        update["solve"] = solvers_from(solve if solve is not None else {"kind": "gradient", **stage})
    return recipe.model_copy(update=update)


def _summary(data: Dataset4D) -> str:
    """One line that says what is being reconstructed."""
    survey, geometry = data.survey(), data.geometry
    return (
        f"{data.name}: {data.n_positions} patterns of {data.pattern_shape[0]} x {data.pattern_shape[1]}, {survey.mean_electrons:.0f} electrons each "
        f"({geometry.dose_e_per_A2(survey.mean_electrons):.0f} per Å2)"
    )
