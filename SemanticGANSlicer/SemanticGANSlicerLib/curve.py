"""A curve as a picture, drawn with Qt alone."""

import qt

_WIDTH, _HEIGHT = 440, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 24, 20  # around the axes, for their words
_POINTS = 400  # more are not seen


def curvePixmap(title, points, low=None, high=None):
    """A QPixmap of points (x ascending, y) with the range of both axes; low, high: of y, None: as found."""
    pixmap = qt.QPixmap(_WIDTH, _HEIGHT)
    pixmap.fill(qt.QColor(255, 255, 255))
    painter = qt.QPainter()
    painter.begin(pixmap)
    painter.setPen(qt.QColor(40, 40, 40))
    painter.drawText(_LEFT, 16, title)
    _drawPoints(painter, points[:: max(1, len(points) // _POINTS)] + points[-1:], low, high)
    painter.end()
    return pixmap


def _drawPoints(painter, points, low, high):
    values = [y for _x, y in points]
    low = min(values) if low is None else low
    high = max(values) if high is None else high
    first, last = points[0][0], points[-1][0]
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place(x, y):
        along = (x - first) / (last - first) if last > first else 1.0
        up = min(max((y - low) / (high - low), 0.0), 1.0) if high > low else 0.5
        return round(_LEFT + along * (right - _LEFT)), round(bottom - up * (bottom - _TOP))

    painter.drawLine(_LEFT, _TOP, _LEFT, bottom)
    painter.drawLine(_LEFT, bottom, right, bottom)
    painter.drawText(4, _TOP + 8, f"{high:.3g}")
    painter.drawText(4, bottom, f"{low:.3g}")
    painter.drawText(_LEFT, _HEIGHT - 5, f"{first:,}")
    painter.drawText(right - 8 * len(f"{last:,}"), _HEIGHT - 5, f"{last:,}")
    painter.setPen(qt.QColor(21, 101, 192))
    places = [place(*point) for point in points]
    for (x, y), (nextX, nextY) in zip(places[:-1], places[1:], strict=True):
        painter.drawLine(x, y, nextX, nextY)
    painter.drawEllipse(places[-1][0] - 2, places[-1][1] - 2, 4, 4)
