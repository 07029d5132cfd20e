#include "widgets.h"

namespace {

/// What a method without arguments returns as text; empty for None and on an error.
QString textOf(PyObject* object, const char* method)
{
  PyObject* result = PyObject_CallMethod(object, method, nullptr);
  const char* text = result && PyUnicode_Check(result) ? PyUnicode_AsUTF8(result) : "";
  const QString copy = QString::fromUtf8(text);
  Py_XDECREF(result);
  PyErr_Clear();
  return copy;
}

/// slicer.mrmlScene.GetNodeByID(id): a new reference, None when there is no such node.
PyObject* nodeByID(const QString& id)
{
  PyObject* slicer = PyImport_ImportModule("slicer");
  PyObject* scene = slicer ? PyObject_GetAttrString(slicer, "mrmlScene") : nullptr;
  PyObject* node = scene ? PyObject_CallMethod(scene, "GetNodeByID", "s", id.toUtf8().constData()) : nullptr;
  Py_XDECREF(scene);
  Py_XDECREF(slicer);
  if (!node) {
    PyErr_Clear();
    node = Py_NewRef(Py_None);
  }
  return node;
}

/// Whether a method with one text as its argument answers yes.
bool isTrue(PyObject* object, const char* method, const char* argument = nullptr)
{
  PyObject* result =
    argument ? PyObject_CallMethod(object, method, "s", argument) : PyObject_CallMethod(object, method, nullptr);
  const bool yes = result && PyObject_IsTrue(result) == 1;
  Py_XDECREF(result);
  PyErr_Clear();
  return yes;
}

/// The observer of a scene. self: a capsule with the node chooser.
PyObject* sceneChanged(PyObject* self, PyObject*)
{
  static_cast<qMRMLNodeComboBox*>(PyCapsule_GetPointer(self, nullptr))->refresh();
  Py_RETURN_NONE;
}

PyMethodDef sceneChangedMethod = {"sceneChanged", sceneChanged, METH_VARARGS, nullptr};

} // namespace

qMRMLNodeComboBox::~qMRMLNodeComboBox()
{
  this->observe(nullptr);
}

void qMRMLNodeComboBox::setMRMLScene(vtkMRMLScene* scene)
{
  ++this->SceneCount;
  this->observe(reinterpret_cast<PyObject*>(scene));
  this->refresh();
}

void qMRMLNodeComboBox::observe(PyObject* scene)
{
  for (PyObject* tag : this->Tags) {
    Py_XDECREF(PyObject_CallMethod(this->Scene, "RemoveObserver", "O", tag));
    Py_DECREF(tag);
  }
  this->Tags.clear();
  Py_XINCREF(scene);
  Py_XDECREF(this->Scene);
  this->Scene = scene;
  if (!scene) {
    return;
  }
  PyObject* self = PyCapsule_New(this, nullptr, nullptr);
  PyObject* function = PyCFunction_New(&sceneChangedMethod, self);
  for (const char* event : {"NodeAddedEvent", "NodeRemovedEvent", "EndCloseEvent", "EndImportEvent"}) {
    PyObject* number = PyObject_GetAttrString(scene, event);
    if (PyObject* tag = PyObject_CallMethod(scene, "AddObserver", "OO", number, function)) {
      this->Tags << tag;
    }
    Py_XDECREF(number);
  }
  Py_DECREF(function);
  Py_DECREF(self);
  PyErr_Clear();
}

bool qMRMLNodeComboBox::lists(PyObject* node) const
{
  if (isTrue(node, "GetHideFromEditors") && !this->ShowHidden) {
    return false;
  }
  for (const QString& type : this->NodeTypes) {
    if (isTrue(node, "IsA", type.toUtf8().constData()) &&
      (this->ShowChildNodeTypes || textOf(node, "GetClassName") == type)) {
      return true;
    }
  }
  return false;
}

void qMRMLNodeComboBox::refresh()
{
  const QStringList before = this->IDs;
  this->IDs.clear();
  this->Box->clear();
  if (this->NoneEnabled) {
    this->Box->addItem(this->NoneDisplay);
  }
  PyObject* nodes = this->Scene ? PyObject_CallMethod(this->Scene, "GetNodes", nullptr) : nullptr;
  PyObject* iterator = nodes ? PyObject_GetIter(nodes) : nullptr;
  while (PyObject* node = iterator ? PyIter_Next(iterator) : nullptr) {
    if (this->lists(node)) {
      this->IDs << textOf(node, "GetID");
      this->Box->addItem(textOf(node, "GetName"));
    }
    Py_DECREF(node);
  }
  Py_XDECREF(iterator);
  Py_XDECREF(nodes);
  PyErr_Clear();
  const bool gone = !this->NodeID.isEmpty() && !this->IDs.contains(this->NodeID);
  if (gone || (this->NodeID.isEmpty() && !this->NoneEnabled)) {
    this->select(this->NoneEnabled ? QString() : this->IDs.value(0));
  }
  this->Box->setCurrentIndex(this->IDs.indexOf(this->NodeID) + (this->NoneEnabled ? 1 : 0));
  for (const QString& id : QStringList(this->IDs)) {
    if (!before.contains(id)) {
      PyObject* node = nodeByID(id);
      emit nodeAdded(reinterpret_cast<vtkMRMLNode*>(node));
      Py_DECREF(node);
    }
  }
}

void qMRMLNodeComboBox::choose(int row)
{
  this->select(this->IDs.value(row - (this->NoneEnabled ? 1 : 0)));
}

void qMRMLNodeComboBox::select(const QString& id)
{
  if (id == this->NodeID) {
    return;
  }
  this->NodeID = id;
  this->Box->setCurrentIndex(this->IDs.indexOf(id) + (this->NoneEnabled ? 1 : 0));
  PyObject* node = this->currentNode();
  emit currentNodeChanged(node == Py_None ? nullptr : reinterpret_cast<vtkMRMLNode*>(node));
  Py_DECREF(node);
  emit currentNodeChanged(!id.isEmpty());
  emit currentNodeIDChanged(id);
}

PyObject* qMRMLNodeComboBox::currentNode() const
{
  return nodeByID(this->NodeID);
}

PyObject* qMRMLNodeComboBox::nodeFromIndex(int index) const
{
  return nodeByID(this->IDs.value(index));
}

void qMRMLNodeComboBox::setCurrentNode(PyObject* node)
{
  const bool listed = node && node != Py_None && this->lists(node);
  this->select(listed ? textOf(node, "GetID") : QString());
}
