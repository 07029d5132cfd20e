// Stand-ins for Slicer's qMRML widgets, without VTK: nodes are the Python objects of slicer-core, known by their id.
#pragma once

#include "PythonQt.h"
#include "PythonQtCppWrapperFactory.h"

#include "ctkMenuButton.h"

#include <QComboBox>
#include <QIcon>
#include <QStringList>
#include <QVBoxLayout>
#include <QVariant>
#include <QWidget>
#include <QtUiPlugin/QDesignerCustomWidgetCollectionInterface>
#include <QtUiPlugin/QDesignerCustomWidgetInterface>

// Only names, so that the signals are those of Slicer; what such a pointer points to is a Python object (VtkObjects).
class vtkMRMLNode;
class vtkMRMLScene;

/// The root of a panel, which hands the scene on. isEntered and reload are qSlicerScriptedLoadableModuleWidget's.
class qMRMLWidget : public QWidget
{
  Q_OBJECT
  Q_PROPERTY(bool isEntered MEMBER IsEntered)
  Q_PROPERTY(QVariant reload MEMBER Reload)

public:
  explicit qMRMLWidget(QWidget* parent = nullptr)
    : QWidget(parent)
  {
  }

public Q_SLOTS:
  void setMRMLScene(PyObject* scene) { emit mrmlSceneChanged(reinterpret_cast<vtkMRMLScene*>(scene)); }

Q_SIGNALS:
  void mrmlSceneChanged(vtkMRMLScene*);

private:
  bool IsEntered = false;
  QVariant Reload; // a Python function
};

/// Chooses a node of the scene, after qMRMLNodeComboBox and its model: nodes of the types, not hidden; without "None"
/// the first one that comes is chosen. As in Slicer it keeps no node alive, and forgets removed ones.
class qMRMLNodeComboBox : public QWidget
{
  Q_OBJECT
  Q_PROPERTY(QStringList nodeTypes READ nodeTypes WRITE setNodeTypes)
  Q_PROPERTY(bool noneEnabled MEMBER NoneEnabled)
  Q_PROPERTY(bool addEnabled MEMBER AddEnabled)
  Q_PROPERTY(bool removeEnabled MEMBER RemoveEnabled)
  Q_PROPERTY(bool renameEnabled MEMBER RenameEnabled)
  Q_PROPERTY(bool editEnabled MEMBER EditEnabled)
  Q_PROPERTY(bool showHidden MEMBER ShowHidden)
  Q_PROPERTY(bool showChildNodeTypes MEMBER ShowChildNodeTypes)
  Q_PROPERTY(bool selectNodeUponCreation MEMBER SelectNodeUponCreation)
  Q_PROPERTY(QString noneDisplay MEMBER NoneDisplay)
  Q_PROPERTY(QString currentNodeID READ currentNodeID NOTIFY currentNodeIDChanged)

public:
  explicit qMRMLNodeComboBox(QWidget* parent = nullptr)
    : QWidget(parent)
    , Box(new QComboBox)
  {
    auto* layout = new QVBoxLayout(this);
    layout->setContentsMargins(0, 0, 0, 0);
    layout->addWidget(this->Box);
    this->connect(this->Box, QOverload<int>::of(&QComboBox::activated), this, &qMRMLNodeComboBox::choose);
  }
  ~qMRMLNodeComboBox() override;

  /// New references.
  Q_INVOKABLE PyObject* currentNode() const;
  Q_INVOKABLE PyObject* nodeFromIndex(int index) const;
  Q_INVOKABLE int nodeCount() const { return this->IDs.size(); }
  QStringList nodeTypes() const { return this->NodeTypes; }
  void setNodeTypes(const QStringList& types)
  {
    this->NodeTypes = types;
    this->refresh();
  }
  QString currentNodeID() const { return this->NodeID; }
  /// How often a scene was given, for tests of the .ui file's connections.
  Q_INVOKABLE int sceneCount() const { return this->SceneCount; }

public Q_SLOTS:
  void setMRMLScene(vtkMRMLScene* scene);
  void setCurrentNode(PyObject* node);
  /// What the scene holds now; the host's observers call it.
  void refresh();

Q_SIGNALS:
  void currentNodeChanged(vtkMRMLNode*);
  void currentNodeIDChanged(const QString&);
  void currentNodeChanged(bool);
  void nodeAdded(vtkMRMLNode*);

private:
  void choose(int row);
  void select(const QString& id);
  bool lists(PyObject* node) const;
  void observe(PyObject* scene);

  QComboBox* Box;
  QStringList NodeTypes, IDs;
  PyObject* Scene = nullptr;
  QList<PyObject*> Tags;
  QString NodeID, NoneDisplay = "None";
  bool NoneEnabled = false, AddEnabled = true, RemoveEnabled = true, RenameEnabled = false, EditEnabled = true;
  bool ShowHidden = false, ShowChildNodeTypes = true, SelectNodeUponCreation = true;
  int SceneCount = 0;
};

/// Only the look of the real one.
class qMRMLSegmentationShow3DButton : public ctkMenuButton
{
  Q_OBJECT

public:
  explicit qMRMLSegmentationShow3DButton(QWidget* parent = nullptr)
    : ctkMenuButton(parent)
  {
    this->setText("Show 3D");
  }

public Q_SLOTS:
  void setSegmentationNode(PyObject* node) { this->setEnabled(node != Py_None); }
};

/// Gives Python the objects that the signals above carry.
class VtkObjects : public PythonQtForeignWrapperFactory
{
public:
  PyObject* wrap(const QByteArray& className, void* object) override
  {
    return className.startsWith("vtk") ? Py_NewRef(static_cast<PyObject*>(object)) : nullptr;
  }
  void* unwrap(const QByteArray&, PyObject*) override { return nullptr; }
};

/// What Python may make itself, not only the .ui file: ``slicer.qMRMLWidget()``.
class Constructors : public QObject
{
  Q_OBJECT

public Q_SLOTS:
  qMRMLWidget* new_qMRMLWidget(QWidget* parent = nullptr) { return new qMRMLWidget(parent); }
  void delete_qMRMLWidget(qMRMLWidget* widget) { delete widget; }
};

/// One class that .ui files may name.
class CustomWidget : public QDesignerCustomWidgetInterface
{
public:
  typedef QWidget* (*Maker)(QWidget* parent);

  CustomWidget(const char* name, Maker maker, bool container)
    : Name(name)
    , Make(maker)
    , Container(container)
  {
  }

  QString name() const override { return this->Name; }
  QWidget* createWidget(QWidget* parent) override { return this->Make(parent); }
  bool isContainer() const override { return this->Container; }
  QString group() const override { return QString(); }
  QString toolTip() const override { return QString(); }
  QString whatsThis() const override { return QString(); }
  QString includeFile() const override { return QString(); }
  QIcon icon() const override { return QIcon(); }

private:
  QString Name;
  Maker Make;
  bool Container;
};

/// The static plugin through which QUiLoader finds them.
class CustomWidgets : public QObject, public QDesignerCustomWidgetCollectionInterface
{
  Q_OBJECT
  Q_INTERFACES(QDesignerCustomWidgetCollectionInterface)
  Q_PLUGIN_METADATA(IID "org.qt-project.Qt.QDesignerCustomWidgetCollectionInterface")

public:
  QList<QDesignerCustomWidgetInterface*> customWidgets() const override;
};
