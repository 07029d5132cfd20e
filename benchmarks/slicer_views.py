"""Pictures of the slice views and the 3D view of 3D Slicer, drawn without a screen.

    scene = standin.new_scene()  # tests/slicer/standin
    ...  # a volume as background of the composite nodes, a segmentation
    slicer_views.fit(volume)
    slicer_views.jump((60.0, -10.0, 40.0))
    picture = slicer_views.slice_view("Red", (512, 512))  # (H, W, 3) uint8

Real, that is Slicer's own compiled code (package slicer-core): vtkMRMLSliceLogic cuts, windows and blends the volumes;
Slicer's displayable managers draw all that lies over the image (segmentations, models, markups, crosshair, ruler,
orientation marker) and all of the 3D view with its camera, as far as the nodes of the scene ask for it.
Ours, in place of Slicer's Qt widgets, which slicer-core lacks: the window, the actor that puts the finished slice
image into it (Slicer: ctkVTKSliceView), and how close the 3D camera comes.
Missing: the text in the corners of the views (Slicer's module DataProbe), the frame around them (slider, pin, colour
bar), and what extensions would draw.

The window is OpenGL in memory. On Debian: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri.
How displayable managers are used from Python was learned from trame-slicer (github.com/KitwareMedical/trame-slicer).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Before VTK makes its first window: without this it looks for an X server, and says so, before it takes EGL.
if not os.environ.get("DISPLAY"):
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

# The managers that Slicer registers for each kind of view: qMRMLSliceView, qMRMLThreeDView and its modules.
_SLICE_MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLTransformsDisplayableManager2D",
    "vtkMRMLColorLegendDisplayableManager",
)
_3D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager3D",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLTransformsDisplayableManager3D",
    "vtkMRMLColorLegendDisplayableManager",
)


# --- where the views look -------------------------------------------------------------------------


def fit(volume: Any) -> None:
    """Make the slice views show the whole of a volume, centred, on a slice of it; as when Slicer has loaded it."""
    for logic in slicer.modules.slice_logics:
        node, size_mm, centre = logic.GetSliceNode(), [0.0] * 3, [0.0] * 3
        logic.FitSliceToVolume(volume, *node.GetDimensions()[:2])  # moves the slice to the centre
        logic.GetVolumeSliceDimensions(volume, size_mm, centre)
        # Not yet in the shape of a picture: ``slice_view`` adds what is missing of it.
        node.SetFieldOfView(size_mm[0], size_mm[1], node.GetFieldOfView()[2])
        logic.SnapSliceOffsetToIJK()


def jump(position_ras: Sequence[float]) -> None:
    """Move the slices through a point (RAS, mm); what they show beside stays in place."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *position_ras)


# --- pictures -------------------------------------------------------------------------------------


def slice_view(name: str, size: tuple[int, int]) -> np.ndarray:
    """What the slice view ``name`` ("Red", "Green", "Yellow") of Slicer shows, (H, W, 3) uint8.

    size: (width, height) in pixels. The field of view of the slice node is seen in whole, whatever the size's shape;
    the node stays as it is.
    """
    logic = {one.GetSliceNode().GetName(): one for one in slicer.modules.slice_logics}[name]
    with _window(size) as (window, renderer), _resized(logic.GetSliceNode(), size):
        renderer.GetActiveCamera().ParallelProjectionOn()
        image = _slice_image(logic)
        renderer.AddViewProp(image)
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        with _managed(factory, _SLICE_MANAGERS, renderer, logic.GetSliceNode()):
            return _pixels(window)


def view_3d(size: tuple[int, int]) -> np.ndarray:
    """What the 3D view of Slicer shows, seen from the front, (H, W, 3) uint8.

    size: (width, height) in pixels. The segmentations get their closed surfaces first, as by Slicer's button Show 3D.
    A scene without a 3D view gets the nodes of one (view, camera). The box is the one that Slicer draws around all
    data of the scene.
    """
    for segmentation in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        segmentation.CreateClosedSurfaceRepresentation()
    view_node = _view_node()
    factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
    with (
        _window(size) as (window, renderer),
        _managed(factory, _3D_MANAGERS, renderer, view_node) as managers,
    ):
        renderer.SetUseDepthPeeling(view_node.GetUseDepthPeeling())
        _look_from_the_front(renderer, view_node, managers)
        return _pixels(window)


@contextmanager
def _window(size: tuple[int, int]) -> Iterator[tuple[Any, Any]]:
    """An invisible window with one renderer."""
    window, renderer = vtk.vtkRenderWindow(), vtk.vtkRenderer()
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(0)  # as Slicer: depth peeling loses translucent surfaces with more
    window.SetSize(*size)
    window.AddRenderer(renderer)
    interactor = vtk.vtkGenericRenderWindowInteractor()  # some managers ask for one
    interactor.SetRenderWindow(window)
    try:
        yield window, renderer
    finally:
        interactor.SetRenderWindow(None)
        window.Finalize()


@contextmanager
def _managed(factory: Any, managers: Sequence[str], renderer: Any, view_node: Any) -> Iterator[Any]:
    """Let Slicer's displayable managers fill a renderer with what the scene shows in a view."""
    factory.SetMRMLApplicationLogic(slicer.modules.application_logic)
    for manager in managers:
        if not factory.IsDisplayableManagerRegistered(manager):
            factory.RegisterDisplayableManager(manager)
    group = slicer.vtkMRMLDisplayableManagerGroup()
    group.Initialize(factory, renderer)
    group.SetMRMLDisplayableNode(view_node)
    try:
        yield group
    finally:
        group.SetMRMLDisplayableNode(None)  # they watch the scene no more


@contextmanager
def _resized(node: Any, size: tuple[int, int]) -> Iterator[None]:
    """Give a slice node the size of a window, with square pixels that cover at least its field of view."""
    dimensions, field = node.GetDimensions(), node.GetFieldOfView()
    mm_per_pixel = max(mm / pixels for mm, pixels in zip(field, size, strict=False))
    node.SetDimensions(*size, dimensions[2])
    node.SetFieldOfView(size[0] * mm_per_pixel, size[1] * mm_per_pixel, field[2])
    try:
        yield
    finally:
        node.SetDimensions(*dimensions)
        node.SetFieldOfView(*field)


def _slice_image(logic: Any) -> Any:
    """The actor of the blended image of a slice logic, under everything else."""
    mapper, actor = vtk.vtkImageMapper(), vtk.vtkActor2D()
    mapper.SetColorWindow(255)  # the logic's image is finished RGBA
    mapper.SetColorLevel(127.5)
    connection = logic.GetImageDataConnection()
    mapper.SetInputConnection(connection)
    actor.SetMapper(mapper)
    actor.SetVisibility(connection is not None)  # no volume in any layer
    actor.GetProperty().SetDisplayLocationToBackground()
    return actor


def _view_node() -> Any:
    """The node of the 3D view, made as Slicer's layout does when the scene has none."""
    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLViewNode")
    if node is None:
        logic = slicer.vtkMRMLViewLogic()
        logic.SetMRMLScene(slicer.mrmlScene)
        node = logic.AddViewNode("1")
    return node


def _look_from_the_front(renderer: Any, view_node: Any, managers: Any) -> None:
    """Turn the camera to the front, centre it on what the view shows and come close, as a user does by hand."""
    camera = managers.GetDisplayableManagerByClassName("vtkMRMLCameraDisplayableManager").GetCameraNode()
    shown = view_node.GetBoxVisible(), view_node.GetAxisLabelsVisible()
    view_node.SetBoxVisible(False)  # the old box and its letters are no part of what is shown
    view_node.SetAxisLabelsVisible(False)
    camera.RotateTo(camera.Anterior)
    renderer.ResetCameraScreenSpace(0.7)  # seven tenths of the picture: the letters still fit beside
    view_node.SetBoxVisible(shown[0])
    view_node.SetAxisLabelsVisible(shown[1])
    view_node.InvokeEvent(view_node.ResetFocalPointRequestedEvent)  # the box is fitted
    renderer.ResetCameraClippingRange()


def _pixels(window: Any) -> np.ndarray:
    """Render; returns (H, W, 3) uint8, the first row on top."""
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    image = grab.GetOutput()
    width, height, _ = image.GetDimensions()
    rows = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(
        height, width, 3
    )  # the first row is the lowest
    return rows[::-1].copy()
