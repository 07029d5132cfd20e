"""A progress bar with a line of text: what is being done, how long it still takes."""

from slicer.i18n import tr as _


class ProgressView:
    """Shows the progress of one run. bar: QProgressBar, label: QLabel."""

    def __init__(self, bar, label):
        self._bar, self._label = bar, label

    def start(self):
        self._bar.setRange(0, 0)
        self._bar.setVisible(True)
        self._label.setText("")

    def show(self, done, total, message, secondsLeft=None):
        """total 0: how far is not known yet."""
        self._bar.setVisible(True)
        self._bar.setRange(0, total)
        self._bar.setValue(done)
        left = _(", about {time} left").format(time=_words(secondsLeft)) if secondsLeft else ""
        self._label.setText(message[:1].upper() + message[1:] + left)

    def say(self, message):
        self._label.setText(message)

    def stop(self, message):
        self._bar.setVisible(False)
        self._bar.setRange(0, 1)
        self._label.setText(message)


def _words(seconds):
    if seconds < 90:
        return _("{n} s").format(n=max(1, round(seconds)))
    if seconds < 5400:
        return _("{n} min").format(n=round(seconds / 60))
    return _("{n:.1f} h").format(n=seconds / 3600)
