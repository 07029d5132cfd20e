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

} // namespace

PyObject* qMRMLNodeComboBox::currentNode() const
{
  return nodeByID(this->NodeID);
}

void qMRMLNodeComboBox::setCurrentNode(PyObject* node)
{
  const bool valid = node && node != Py_None;
  const QString id = valid ? textOf(node, "GetID") : QString();
  if (id == this->NodeID) {
    return;
  }
  this->NodeID = id;
  this->Box->clear();
  this->Box->addItem(valid ? textOf(node, "GetName") : this->NoneDisplay);
  emit currentNodeChanged(valid);
  emit currentNodeIDChanged(id);
}
