"""Asks the engine which device "auto" is. It needs PyTorch for that, so it is asked in its own process."""

import json

from slicer.i18n import tr as _

from . import process


class DeviceProbe:
    """Starts at once; onText(text) gets the answer in words, or why there is none."""

    def __init__(self, python, onText):
        self._onText, self._lines = onText, []
        self._worker = process.Worker(self._onLine, self._onFinished, plain=True)
        try:
            self._worker.start(python(), ["-m", "sgan_core.cli.info", "--json"])
        except RuntimeError as error:
            self._onText(str(error))

    def close(self):
        """Ask no more."""
        self._worker.abandon()

    def _onLine(self, event):
        self._lines.append(event["text"])

    def _onFinished(self, outcome):
        try:
            found = json.loads("\n".join(self._lines))["auto"]["description"]
        except (ValueError, KeyError, TypeError):
            self._onText(
                _("auto: the engine did not answer ({reason})").format(
                    reason=outcome.message or _("no answer")
                )
            )
            return
        self._onText(_("auto: {device}").format(device=found))
