"""When a run is kept on the disk, and when it stops."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptycho.errors import DataError, OutputError, Stopped
from ptycho.io.checkpoint import FOLDER, checkpoints, discard, load_latest, save_checkpoint
from ptycho.io.result_file import load_result, write_result
from ptycho.ranks import Ranks
from ptycho.recipe import OutputSection
from ptycho.result import EpochRecord, Result
from ptycho.runfolder import RunFolder, difference

logger = logging.getLogger("ptycho")

#: Saving takes at most about this share of the time.
_SHARE = 0.05


def never() -> bool:
    """Nobody asks to stop."""
    return False


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to: the complete recipe as text, the fingerprint of the data."""

    recipe: str
    data: str


class Keeper:
    """Keeps the state of a run in its folder now and then, gives it back to one that goes on, and ends a run that is asked to stop.

    A run has up to three parts, one after the other: the whole, and two halves of the data. What a part gives is kept when it is complete.
    Without a folder nothing is kept. Of several processes the first has the folder, and says to all where they begin; all stop when one is asked to.
    """

    def __init__(
        self, stop: Callable[[], bool] = never, folder: RunFolder | None = None, output: OutputSection | None = None, ranks: Ranks | None = None
    ) -> None:
        self.stop, self.folder, self.output, self.ranks = stop, folder, output or OutputSection(), ranks or Ranks()
        self.part, self._epochs_before = 0, 0
        self._identity: Identity | None = None
        self._kept: dict[str, Any] | None = None
        self._resumed = False
        self._saved_at, self._saved_epoch, self._took = time.monotonic(), 0, 0.0

    def resume(self, identity: Identity | None) -> None:
        """Look for a checkpoint, to go on from there. ``identity`` is that of the run in the folder, None without one.

        Raises OutputError when it belongs to another recipe or other data.
        """
        self._identity = identity
        self._kept = self.ranks.told(None if self.folder is None or identity is None else self._found(self.folder, identity))

    def _found(self, folder: RunFolder, identity: Identity) -> dict[str, Any] | None:
        found = load_latest(folder.path)
        if found is None:
            folder.begin_metrics(())
            return None
        path, kept = found
        if changed := difference(kept["recipe"], identity.recipe):
            raise OutputError(f"{folder.path}: there is a run of another recipe: {changed}; give another folder with -o, or --fresh to begin anew")
        if kept["data"] != identity.data:
            raise OutputError(f"{folder.path}: there is a run of other data; give another folder with -o, or --fresh to begin anew")
        for newer in checkpoints(folder.path):
            if newer.name > path.name:  # damaged: it was told of
                shutil.rmtree(newer, ignore_errors=True)
        self._resumed = True
        if kept["part"] == 0:
            # Epochs after the checkpoint come again; those of the halves are not in the file.
            folder.begin_metrics([EpochRecord(*record) for record in kept["state"]["history"]])
            folder.note(epoch=len(kept["state"]["history"]))
        logger.info(f"going on from {path.parent.name}/{path.name}")
        return dict(kept)

    def begin(self) -> dict[str, Any] | None:
        """The state in which the present part was kept; None where it is to begin at its beginning. To be asked once."""
        kept, self._kept = self._kept, None
        return kept["state"] if kept is not None and kept["part"] == self.part else None

    def enter(self, part: int, epochs_before: int) -> None:
        """The next part begins, so many epochs after the first."""
        self.part, self._epochs_before = part, epochs_before
        self._saved_epoch = 0

    def result(self, name: str, recipe: str) -> Result | None:
        """What a part of this very run, complete before it was interrupted, gave; None otherwise."""
        return self.ranks.told(self._result(name, recipe))

    def _result(self, name: str, recipe: str) -> Result | None:
        if not self._resumed or self.folder is None or not (self.folder.path / name).exists():
            return None
        try:
            found = load_result(self.folder.path / name)
        except DataError as error:
            logger.warning(f"{error}; it is made again")
            return None
        return None if difference(found.recipe, recipe) else found

    def keep_result(self, name: str, result: Result) -> None:
        """Keep what a part gave."""
        if self.folder is not None:
            write_result(self.folder.path / name, result)

    def after_batch(self, epochs_done: int, state: Callable[[], dict[str, Any] | None]) -> None:
        """Called between batches: keeps the state if it is time. Raises Stopped if somebody asks for that; ``state`` gives None if it is unsound."""
        stopping = self.ranks.any(self.stop())
        if self.folder is None:
            if stopping:
                self.ranks.wait()
                raise Stopped(f"stopped in epoch {epochs_done + 1}; nothing is kept without an output folder")
            return
        if stopping or self._due(epochs_done):
            self._save(epochs_done, state())
        if stopping:
            self.ranks.wait()  # whoever ends first may take the others along
            kept = checkpoints(self.folder.path)
            where = f"the state is kept in {kept[-1]}" if kept else "nothing is kept yet"
            raise Stopped(f"stopped in epoch {epochs_done + 1}: {where}; give the same command again to go on")

    def finish(self) -> None:
        """The run is complete: nobody needs its checkpoints."""
        if self.folder is not None:
            discard(self.folder.path)

    def _due(self, epochs_done: int) -> bool:
        minutes, epochs = self.output.checkpoint_minutes, self.output.checkpoint_epochs
        seconds = time.monotonic() - self._saved_at
        timely = minutes > 0 and seconds >= max(60 * minutes, self._took / _SHARE)
        return timely or (epochs > 0 and epochs_done >= self._saved_epoch + epochs)

    def _save(self, epochs_done: int, state: dict[str, Any] | None) -> Path | None:
        if state is None or self.folder is None or self._identity is None:
            return None
        self.folder.still_mine()
        began = time.monotonic()
        tree = {**vars(self._identity), "part": self.part, "state": state}
        path = save_checkpoint(self.folder.path, self._epochs_before + epochs_done + 1, state["solver"]["cursor"]["batches"], tree)
        self._saved_at, self._saved_epoch = time.monotonic(), epochs_done
        self._took = self._saved_at - began
        self.folder.note(checkpoint=f"{FOLDER}/{path.name}")
        return path
